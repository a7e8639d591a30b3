//! The launch record: one launch of one image, as the monitor made it (SPEC 3.4).
//!
//! Its digest is measured into PCR 17 of the VM's vTPM by the hash sequence, which only the monitor
//! can perform, and named in the VM claims.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{Digest, InstanceId, cbor};

/// Terra's two kinds of box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum BoxKind {
    /// Sealed: runs exactly its image; nobody on the host looks in or changes it.
    #[n(0)]
    Closed,
    /// For development: same image, but no promise. Never satisfies a closed-box policy.
    #[n(1)]
    Open,
}

impl BoxKind {
    /// The name used in JSON, Cedar and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
        }
    }
}

/// A disk as attached at launch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LaunchDisk {
    /// Name from the descriptor.
    #[n(0)]
    pub name: String,
    /// `integrity` or `raw`.
    #[n(1)]
    pub kind: String,
    /// dm-verity root hash for an integrity disk.
    #[n(2)]
    pub root_hash: Option<Digest>,
    /// Size the guest sees, in bytes.
    #[n(3)]
    pub size: u64,
    /// The volume of the host's vault that it is, by the id drawn when it was made: another one is another volume, whatever
    /// its name.
    #[n(4)]
    pub volume: Option<InstanceId>,
}

/// A network interface as attached at launch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LaunchNic {
    /// MAC address.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub mac: [u8; 6],
    /// Backend: `passt` or `tap`.
    #[n(1)]
    pub backend: String,
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LaunchRecord {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// Open or closed.
    #[n(1)]
    pub box_kind: BoxKind,
    /// SHA-256 of the descriptor bytes.
    #[n(2)]
    pub image_id: Digest,
    /// Number of vCPUs.
    #[n(3)]
    pub vcpus: u8,
    /// Guest memory in MiB.
    #[n(4)]
    pub memory_mib: u32,
    /// Disks in the order the guest sees them.
    #[n(5)]
    pub disks: Vec<LaunchDisk>,
    /// Network interfaces in the order the guest sees them.
    #[n(6)]
    pub nics: Vec<LaunchNic>,
    /// This launch.
    #[n(7)]
    pub instance_id: InstanceId,
    /// Incarnation of the VM; 1 unless it moved or was restored.
    #[n(8)]
    pub incarnation: u64,
}

impl LaunchRecord {
    /// Canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Launch digest of an encoded record.
    pub fn digest(encoded: &[u8]) -> Digest {
        Digest::of(&[encoded])
    }
}
