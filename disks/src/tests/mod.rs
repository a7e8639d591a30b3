//! The claims of SPEC 11, each with its near misses.

mod adversary;
mod damage;
mod kinds;
mod ledger;
mod model;
pub(crate) mod nonces;
mod power_cut;
mod remote;
mod repair;
mod scramble;
mod session;
mod superblocks;
mod support;
mod trees;
