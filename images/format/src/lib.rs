//! The appliance image: descriptor, OCI layout, dm-verity tree (SPEC section 3).
//!
//! Reads and checks; building is `coffer-image-build`. Everything here is hostile input until its digest
//! matched: the image ID is the SHA-256 of the descriptor bytes as received.
#![forbid(unsafe_code)]

pub mod appliance;
pub mod blob;
pub mod descriptor;
pub mod layout;
pub mod reach;
pub mod rules;
pub mod signature;
pub mod verity;
