//! One lab host, and what has to be true on it. The tests take turns: the host is small and its CPU emulated.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod bad_input;
mod egress;
mod jail;
mod key;
mod lifecycle;
mod open;
mod management;
mod refusals;
mod tools;
mod vcpus;
mod world;
