//! The bytes of Coffer evidence that hosts write and read (SPEC sections 3 to 5).
//!
//! Monitors link this crate and nothing that judges, so it counts among what a host has to trust.
//! It performs no I/O, reads no clock, holds no unsafe code and links no C. It trusts nothing it parses:
//! every length is bounded, every byte string is hashed as received, never re-encoded.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")
)]

pub mod binding;
pub mod cbor;
pub mod channel;
pub mod claims;
pub mod digest;
pub mod endorsement;
pub mod event_log;
pub mod evidence;
pub mod launch;
pub mod merkle;
pub mod proof;
pub mod protocol;
pub mod reject;
pub mod tpm;

pub use digest::{Digest, InstanceId, Nonce, ObjectName};
pub use reject::Reject;
