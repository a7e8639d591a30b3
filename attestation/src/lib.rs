//! What a verifier may believe: formats and verification of Coffer evidence.
//!
//! This crate performs no I/O, reads no clock, holds no unsafe code and links no C. Time, nonces and
//! reference values are passed in; what comes out is a verdict type that only this crate can mint.
//! It implements SPEC.md sections 3 to 8. It trusts nothing it parses: every length is bounded, every
//! byte string is hashed as received, never re-encoded.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")
)]

pub mod appraisal;
pub mod binding;
pub mod cbor;
pub mod channel;
pub mod claims;
pub mod credential;
pub mod digest;
pub mod endorsement;
pub mod enroll;
pub mod event_log;
pub mod evidence;
pub mod host_reference;
pub mod launch;
pub mod merkle;
pub mod predict;
pub mod protocol;
pub mod quote;
pub mod reject;
pub mod release;
pub mod report;
pub mod runtime;
pub mod tpm;

pub use digest::{Digest, InstanceId, Nonce, ObjectName};
pub use reject::Reject;
