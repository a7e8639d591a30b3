//! `coffer` as people run it: the real binary, its messages, its exit codes, and what it leaves behind.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a test may panic")]

mod conformance;
mod doctor;
mod enroll;
mod full_disk;
mod help;
mod host;
mod image;
mod monitor;
mod mtls;
mod openapi;
mod real_monitor;
mod support;
mod tpm2_tools;
mod usage;
mod verifier;
mod volume;
mod volume_lives;
