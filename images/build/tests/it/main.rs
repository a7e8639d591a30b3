//! Building, verifying and refusing images, with a small fake kernel; real kernels are booted by the lab tests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod building;
mod fixture;
mod hosts;
mod importing;
mod modules;
mod signing;
mod verifying;
mod volumes;
