//! The vault on real TPMs, and against whoever owns its folder.

mod attacks;
mod backups;
mod fleets;
mod guests;
mod making;
mod reseal;
mod support;
#[path = "../../../anchor/tests/swtpm/mod.rs"]
mod swtpm;
mod volumes;
