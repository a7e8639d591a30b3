//! The other ends of an attestation, for tests: a real vTPM (swtpm), a monitor on a Unix socket, and a
//! verifier behind real TLS that checks the VM quote before it releases anything.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod monitor;
pub mod verifier;
pub mod vtpm;
