//! `coffer-init`: PID 1 and attestation agent of an appliance (SPEC 1.6, 3.3, 7.3, 8).
//!
//! ```text
//! Booted --mount--> Mounted --attest--> Attested --run--> Running --supervise--> power off
//!    |                 |                   |                 |
//!    +-----------------+---- any failure --+-----------------+--> report, power off
//! ```
//! It trusts its initrd (measured) and what that pins: one verifier's CA and release key. It trusts nothing
//! from the host: the monitor's answers only travel through it, and the verifier judges them. It refuses
//! any release that is not signed by the pinned key, not for this challenge and this evidence, or not
//! exactly what the image asked for. There is no shell, no option and no second try after a refusal.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")
)]

pub mod api;
pub mod appliance;
pub mod attest;
pub mod boot;
pub mod channel;
pub mod failure;
pub mod http;
pub mod program;
pub mod secrets;
pub mod supervisor;
pub mod tpm;
pub mod verifier;
pub mod volumes;
pub mod workload;

pub use failure::Failure;
