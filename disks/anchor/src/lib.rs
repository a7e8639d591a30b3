//! What an encrypted disk takes from the host's TPM (SPEC 11.12, 11.13): a counter that storage cannot turn back, and
//! a key that only this TPM gives back, only to a host that booted as it was sealed for.
//!
//! ```text
//!   SealedKey (a file) --unseal, PCRs--> PlainKey --+--> DiskKey -----.
//!                                                   '--> CounterAuth   >-- Disk::open
//!   NV counter index  <--HMAC under CounterAuth--------> NvAnchor ----'
//! ```
//!
//! Trusts the TPM, and the host as it booted. Not the bus, the storage, nor who has owner auth: of [`NvAnchor`] they get a
//! refusal at most; of [`SealedKey`] a listener on the bus gets nothing, and see there for one that speaks on it. Refuses
//! by name. tpm2-tss is not used: what goes over the bus is written and read here, thirteen TPM commands.
#![forbid(unsafe_code)]

mod blob;
mod counter;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod kdf;
mod link;
mod registers;
mod sealed;
mod session;
mod tpm;

pub use blob::SealedKey;
pub use counter::{CounterAuth, CounterIndex, NvAnchor};
pub use error::{CounterError, SealError, TpmError};
pub use link::{Link, Stream};
pub use registers::Registers;
pub use sealed::PlainKey;
pub use tpm::Tpm;
