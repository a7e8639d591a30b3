//! The vault on real TPMs, and against whoever owns its folder.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod attacks;
mod guests;
mod making;
mod support;
#[path = "../../../anchor/tests/swtpm/mod.rs"]
mod swtpm;
mod volumes;
