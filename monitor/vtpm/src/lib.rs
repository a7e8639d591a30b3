//! One virtual TPM per VM: a `swtpm` process, its control channel, and the order in which it is made.
//!
//! Implements SPEC 3.6, 3.7 and 6.5. A vTPM goes through fixed stages, each a type of its own, so that a step
//! left out does not compile:
//!
//! ```text
//! Swtpm --initialise--> Initialised --make_keys--> Keyed --certify--> Certified
//!   process runs          started, SHA-256          vEK, vAK           EK certificate
//!                         and SHA-384 banks only    known              in NV
//! Certified --measure--> Measured --seal--> Vtpm
//!   nothing of the launch   PCRs hold the launch,      platform hierarchy closed,
//!   is in it yet            read back and compared     locality 0, for a guest to use
//! ```
//!
//! It trusts `swtpm` and libtpms to be a TPM; it does not trust the answers to be well-formed, and compares
//! the PCRs with its own arithmetic before a guest may run. It refuses a swtpm that holds a state or
//! migration key it was not given, one that answers anything but success, and PCRs that differ.
//!
//! The control socket can export the TPM's state in clear (SPEC 1.4), so it never leaves this crate; a VM
//! process gets the data channel and nothing else.
#![forbid(unsafe_code)]

mod control;
mod error;
mod process;
mod stages;

pub use error::VtpmError;
pub use process::{STATE_FILE, Swtpm, SwtpmConfig, Walls, version};
pub use stages::{Certified, Initialised, Keyed, Keys, Measured, Vtpm};

/// NV index of the ECC P-256 EK certificate (TCG EK Credential Profile 2.6, 2.2.1.5).
pub const EK_CERTIFICATE_INDEX: u32 = 0x01c0_000a;
