//! The claims of SPEC 11, each with its near misses.

mod adversary;
mod model;
mod power_cut;
mod support;
