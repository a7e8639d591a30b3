//! TPM 2.0 structures as they are judged (TCG TPM 2.0 Library, Parts 1 and 2; SPEC section 4): public areas, what a
//! TPM attests to, signatures. Those that hosts and guests write and read too are `coffer-formats`'.
//!
//! Only what Coffer speaks: ECC and RSA keys, everything a TPM attests to. Structures are read strictly over the
//! bytes received; a field this build does not know is refused, never skipped.

pub mod attest;
mod ecdsa_p256;
pub mod name;
pub mod public;
mod roca;
pub mod signature;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use coffer_exchange::tpm::*;
