//! The claims of SPEC 11, each with its near misses.

mod model;
mod support;
