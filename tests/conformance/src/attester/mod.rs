//! A host and a VM in software, with fixed test keys: what the generator signs with, and who speaks to a
//! verifier in cases of the `protocol` surface. Nothing it makes is believed anywhere but where a test
//! key is trusted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "test keys and made-up hosts; what is wrong with them is wrong with the case"
)]

pub mod attest;
pub mod host;
pub mod keys;
pub mod scene;
