//! One lab host, and what has to be true on it. The tests take turns: the host is small and its CPU emulated.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod bad_input;
mod consolidation;
mod egress;
mod hostile_guest;
mod jail;
mod key;
mod lifecycle;
mod management;
mod open;
mod peers;
mod printer;
mod refusals;
mod tools;
mod vcpus;
mod world;
