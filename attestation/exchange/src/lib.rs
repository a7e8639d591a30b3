//! What guests and verifiers say to each other, and guests to their TPMs (SPEC sections 4, 5, 7, 8). No host links it.
//!
//! All of `coffer-formats` is here too: whoever speaks with both needs one crate. No I/O, no clock, no unsafe code, no C.
//! It trusts nothing it parses.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")
)]

pub mod binding;
pub mod evidence;
pub mod merkle;
pub mod peer;
pub mod permit;
pub mod protocol;
pub mod release;
pub mod runtime;
pub mod tpm;
pub mod x509;

pub use coffer_formats::{
    Digest, InstanceId, Nonce, ObjectName, Reject, cbor, channel, claims, digest, endorsement,
    event_log, launch, proof, reject,
};
