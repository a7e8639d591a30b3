//! Volumes: named data that outlives the instances that use it (SPEC 11.15).

use std::fs::File;
use std::os::fd::OwnedFd;

use coffer_disk::DiskId;
use coffer_formats::{Digest, InstanceId};
use coffer_image::verity::Salt;
use serde::{Deserialize, Serialize};

use crate::attach::{Hold, VtpmState};
use crate::identity::Owner;

/// What a volume promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// Nothing.
    Raw,
    /// What is read is what it was made of.
    Integrity,
    /// All that SPEC 11.1 says.
    Encrypted,
    /// The same, of the state of a vTPM.
    Vtpm,
}

impl VolumeKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Integrity => "integrity",
            Self::Encrypted => "encrypted",
            Self::Vtpm => "vtpm",
        }
    }
}

/// What is told of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its id, 16 random bytes.
    pub id: InstanceId,
    /// What it promises.
    pub kind: VolumeKind,
    /// Bytes a guest sees.
    pub bytes: u64,
    /// Who may attach it.
    pub owner: Owner,
    /// Lowest security version that may.
    pub svn_floor: u32,
    /// When it was made, in Unix seconds by the host's clock.
    pub created: u64,
    /// Whether somebody uses it.
    pub attached: bool,
}

/// A volume to be made.
pub struct NewVolume {
    /// Its name: 1 to 63 of `a-z 0-9 - _ .`, a letter or digit first.
    pub name: String,
    /// What it is to be.
    pub kind: NewKind,
    /// Who may attach it.
    pub owner: Owner,
    /// The uncompressed point of the verifier's release key, which permits backups. Such a volume is attached only to
    /// images with this verifier: see [`Vault::attach_verified`](crate::Vault::attach_verified).
    pub verifier_key: Option<[u8; 65]>,
}

/// What a volume is to be.
pub enum NewKind {
    /// Zeros.
    Raw {
        /// Bytes, a multiple of 4096.
        bytes: u64,
    },
    /// The data of this file, padded with zeros to whole blocks; the vault builds the tree.
    Integrity {
        /// Data only.
        source: File,
    },
    /// Zeros.
    Encrypted {
        /// Bytes, a multiple of 4096.
        bytes: u64,
    },
    /// Nothing yet.
    Vtpm,
}

/// A volume in use. It is free when this, and the state of a vTPM taken from it, is dropped.
pub struct Attached {
    /// The volume.
    pub volume: VolumeInfo,
    /// What the VM gets.
    pub disk: AttachedDisk,
    /// Keeps the volume taken, whatever becomes of the rest; dropped last.
    pub hold: Hold,
}

/// What the VM gets. Files are locked.
pub enum AttachedDisk {
    /// A file to read and write.
    Raw {
        /// Read and write.
        file: File,
    },
    /// A blob as SPEC 3.5 has it.
    Integrity {
        /// For reading.
        file: File,
        /// Bytes of data.
        data_size: u64,
        /// What verifies it.
        root_hash: Digest,
        /// The tree's.
        salt: Salt,
    },
    /// A disk for [`coffer_disk::Disk::open`], with key and anchor by [`coffer_disk::RemoteAnchor::connect`].
    Encrypted {
        /// Read and write.
        file: File,
        /// Which disk.
        id: DiskId,
        /// Its size.
        blocks: u64,
        /// The disk's end of the stream.
        channel: OwnedFd,
    },
    /// The state of a vTPM.
    Vtpm(VtpmState),
}
