//! The host's TPM: its identity, its quotes, and the activation of an enrolment credential (SPEC 5.3, 7.2).
//!
//! tpm2-tss is the one C library in the monitor, and it opens the TPM without close-on-exec: in the
//! supervisor its descriptor would leak into every VM process. So a process of its own, the [`keeper`],
//! holds the TPM and starts no children; the supervisor has [`HostTpm`], a client with one owning thread
//! through which every request goes, where requests that wait together share one quote.
//!
//! ```text
//! many VMs --> HostTpm --> queue --> thread: batch, RFC 6962 tree --socket pair--> keeper process --TCTI--> TPM
//! ```
//!
//! It trusts the TPM to be a TPM (enrolment proves which one) and nothing else. It refuses TCTIs it cannot
//! reach as named, and PCR values that are not the quoted ones.
#![forbid(unsafe_code)]

mod client;
mod desk;
mod error;
pub mod event_log;
pub mod keeper;
mod link;
mod queue;
mod tcti;
mod tpm;
mod wire;

pub use client::{Batched, HostTpm, Timing};
pub use desk::Waiting;
pub use error::HostTpmError;
pub use tcti::Tcti;
pub use wire::{Identity, Quoted};
