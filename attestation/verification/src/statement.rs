//! What a host states, read strictly: its claims, a VM's claims, a launch record (SPEC 3.4, 4.3, 4.4).

use crate::claims::{HostClaims, VmClaims};
use crate::launch::LaunchRecord;
use crate::{Reject, cbor};

/// Something a host encodes and a verifier decodes.
pub trait Statement: Sized {
    /// Decodes strictly.
    fn decode(bytes: &[u8]) -> Result<Self, Reject>;
}

/// Most bytes of a statement: claims of either kind are a few hundred; a launch record has 16 disks and NICs of about
/// 100 bytes each.
const STATEMENT_MAX: usize = 4096;

macro_rules! statements {
    ($($type:ty),*) => {
        $(impl Statement for $type {
            fn decode(bytes: &[u8]) -> Result<Self, Reject> {
                let statement: Self = cbor::decode(bytes, STATEMENT_MAX)?;
                if statement.version != 1 {
                    return Err(Reject::UnsupportedVersion);
                }
                Ok(statement)
            }
        })*
    };
}

statements!(HostClaims, VmClaims, LaunchRecord);
