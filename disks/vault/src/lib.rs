//! The host's one sealed store (SPEC 11.14 to 11.19): volumes, states of vTPMs, counters, and data that guests seal.
//!
//! ```text
//!  host TPM --+- key, sealed to PCRs --> root key --HKDF--> keys of volumes, of sealed data, of transport
//!             '- one NV counter -------> encrypted disk: counters of the volumes | records by name
//! ```
//! Confidential, authenticated, rollback-proof and crash-consistent, as the encrypted disk it is (SPEC 11.1).
//!
//! Trusts the TPM, the host as it booted, and its caller for who a guest is. Refuses by name whoever a policy does not
//! name, and every byte of its folder that is not what was written there last. As trusted as the monitor.
#![forbid(unsafe_code)]

mod attach;
mod backup;
mod counters;
mod error;
mod fleet;
mod folder;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod guests;
mod identity;
mod key_file;
mod keys;
mod making;
mod manage;
mod pace;
mod permit;
mod records;
mod requests;
mod reseal;
mod root;
mod sealed;
#[cfg(test)]
mod tests;
mod vault;
mod volume;
mod volume_record;
mod volumes;

pub use coffer_disk::DiskError;

pub use attach::{Hold, VTPM_STATE_MAX, VtpmState};
pub use counters::COUNTERS_MAX;
pub use error::VaultError;
pub use fleet::{FLEET_KEY_FILE, FleetKey, WrappedFleetKey};
pub use identity::{Identity, Owner};
pub use manage::{Refusal, Verb, manage};
pub use pace::Pace;
pub use permit::{PERMIT_LABEL, PERMIT_MAX, Permit, SignedPermit};
pub use requests::{CreateVolume, GrowVolume, VaultInfo, VolumeReport, point, release_key};
pub use root::{Connect, Root};
pub use sealed::{SEALED_MAX, SEALED_OVERHEAD, Unsealed};
pub use vault::Vault;
pub use volume::{Attached, AttachedDisk, NewKind, NewVolume, VolumeInfo, VolumeKind};
