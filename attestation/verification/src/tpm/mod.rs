//! TPM 2.0 structures as they are judged (TCG TPM 2.0 Library, Parts 1 and 2; SPEC section 4): public areas, what a
//! TPM attests to, signatures. Those that hosts and guests write and read too are `coffer-formats`'.
//!
//! Only what Coffer speaks: ECC and RSA keys, everything a TPM attests to. Structures are read strictly over the
//! bytes received; a field this build does not know is refused, never skipped.

pub mod attest;
pub mod attributes;
mod ecdsa_p256;
pub mod name;
pub mod public;
mod roca;
pub mod signature;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use coffer_exchange::tpm::*;

/// TPM_ALG_ID values (Part 2, 6.3): those of signatures that only others than Coffer's keys make, and the rest.
pub mod alg {
    pub use coffer_exchange::tpm::alg::*;

    /// RSASSA-PKCS1-v1_5.
    pub const RSASSA: u16 = 0x0014;
    /// RSASSA-PSS.
    pub const RSAPSS: u16 = 0x0016;
}
