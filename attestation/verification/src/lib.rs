//! What a verifier may believe: verification of Coffer evidence.
//!
//! This crate performs no I/O, reads no clock, holds no unsafe code and links no C. Time, nonces and
//! reference values are passed in; what comes out is a verdict type that only this crate can mint.
//! It implements SPEC.md sections 3 to 8. It trusts nothing it parses: every length is bounded, every
//! byte string is hashed as received, never re-encoded. The formats themselves are `coffer-formats` and
//! `coffer-exchange`, which hosts and guests share; verifiers find them here too.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")
)]

pub mod appraisal;
pub mod clock;
pub mod credential;
pub mod endorsement;
pub mod enroll;
pub mod event_log;
pub mod host_reference;
pub mod ledger;
pub mod predict;
pub mod quote;
pub mod report;
mod statement;
pub mod tpm;

pub use statement::Statement;

pub use coffer_exchange::{Digest, InstanceId, Nonce, ObjectName, Reject};
pub use coffer_exchange::{
    binding, cbor, channel, claims, digest, evidence, launch, merkle, permit, proof, protocol,
    reject, release, runtime,
};
