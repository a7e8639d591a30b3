//! What the vault keeps of a volume (SPEC 11.15.1): a record `volume/NAME`, deterministic CBOR.

use coffer_formats::{Digest, InstanceId, cbor};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::error::VaultError;
use crate::identity::Owner;
use crate::volume::{VolumeInfo, VolumeKind};

/// Most bytes of a record.
const MAX: usize = 4096;
const VERSION: u8 = 1;

#[derive(Clone, Encode, Decode)]
#[cbor(map)]
pub(crate) struct VolumeRecord {
    #[n(0)]
    pub version: u8,
    /// Drawn when it was made.
    #[n(1)]
    pub id: InstanceId,
    /// 0 raw, 1 integrity, 2 encrypted, 3 vtpm.
    #[n(2)]
    pub kind: u8,
    /// Bytes a guest sees.
    #[n(3)]
    pub bytes: u64,
    /// Kind and digest.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub owner: [u8; 33],
    /// Lowest security version of the policy.
    #[n(5)]
    pub svn: u32,
    /// Lowest that may by now.
    #[n(6)]
    pub floor: u32,
    /// Unix seconds.
    #[n(7)]
    pub created: u64,
    /// Bytes of its file.
    #[n(8)]
    pub stored: u64,
    /// Encrypted: how often its key was changed.
    #[n(9)]
    pub generation: u32,
    /// Encrypted: it is being changed, and either key may be the right one.
    #[n(10)]
    pub rekeying: bool,
    /// Encrypted: its counter.
    #[n(11)]
    pub holder: Option<u64>,
    /// Encrypted: its disk.
    #[n(12)]
    pub disk: Option<InstanceId>,
    /// Integrity: its root hash.
    #[n(13)]
    pub root_hash: Option<Digest>,
    /// Integrity: its salt.
    #[n(14)]
    pub salt: Option<Digest>,
    /// The verifier's key: a point of P-256, uncompressed.
    #[n(15)]
    pub verifier: Option<ByteVec>,
}

impl VolumeRecord {
    pub(crate) fn new(
        id: [u8; 16],
        kind: VolumeKind,
        owner: &Owner,
        verifier: Option<[u8; 65]>,
    ) -> Self {
        Self {
            version: VERSION,
            id: InstanceId(id),
            kind: match kind {
                VolumeKind::Raw => 0,
                VolumeKind::Integrity => 1,
                VolumeKind::Encrypted => 2,
                VolumeKind::Vtpm => 3,
            },
            bytes: 0,
            owner: owner.canonical(),
            svn: owner.svn(),
            floor: owner.svn(),
            created: now(),
            stored: 0,
            generation: 0,
            rekeying: false,
            holder: None,
            disk: None,
            root_hash: None,
            salt: None,
            verifier: verifier.map(|key| ByteVec::from(key.to_vec())),
        }
    }

    pub(crate) fn key(name: &str) -> String {
        format!("{PREFIX}{name}")
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    pub(crate) fn decode(name: &str, bytes: &[u8]) -> Result<Self, VaultError> {
        let record: Option<Self> = cbor::decode(bytes, MAX).ok();
        let good = |record: &Self| {
            let encrypted = record.kind == 2;
            let integrity = record.kind == 1;
            record.version == VERSION
                && record.kind <= 3
                && Owner::from_canonical(&record.owner, record.svn).is_some()
                && record.floor >= record.svn
                && record.holder.is_none_or(|holder| holder < crate::records::HOLDERS)
                && (record.holder.is_some(), record.disk.is_some()) == (encrypted, encrypted)
                && (record.root_hash.is_some(), record.salt.is_some()) == (integrity, integrity)
                && record.verifier.as_ref().is_none_or(|key| key.len() == 65)
        };
        record.filter(good).ok_or_else(|| VaultError::Record(Self::key(name)))
    }

    pub(crate) fn kind(&self) -> VolumeKind {
        match self.kind {
            0 => VolumeKind::Raw,
            1 => VolumeKind::Integrity,
            2 => VolumeKind::Encrypted,
            _ => VolumeKind::Vtpm,
        }
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner::from_canonical(&self.owner, self.svn).expect("decode refuses any other")
    }

    pub(crate) fn verifier(&self) -> Option<[u8; 65]> {
        self.verifier.as_ref().and_then(|key| key.as_slice().try_into().ok())
    }

    pub(crate) fn info(&self, name: &str, attached: bool) -> VolumeInfo {
        VolumeInfo {
            name: name.to_owned(),
            id: self.id,
            kind: self.kind(),
            bytes: self.bytes,
            owner: self.owner(),
            svn_floor: self.floor,
            created: self.created,
            attached,
        }
    }

    /// Name of its file, without the ending.
    pub(crate) fn file(&self) -> String {
        format!("{}/{}", crate::folder::VOLUMES, self.id)
    }

    /// Name of the record of a vTPM's state.
    pub(crate) fn state(&self) -> String {
        format!("{STATE_PREFIX}{}", self.id)
    }

    /// Name of the record of how often a vTPM was launched.
    pub(crate) fn launches(&self) -> String {
        format!("{LAUNCHES_PREFIX}{}", self.id)
    }
}

/// For people, and for the expiry of a permit: the host's clock is the host's.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Names of records of volumes begin so.
pub(crate) const PREFIX: &str = "volume/";
/// Names of records of states of vTPMs begin so.
pub(crate) const STATE_PREFIX: &str = "vtpm/";
/// Names of records of how often a vTPM was launched begin so; eight bytes, little-endian.
pub(crate) const LAUNCHES_PREFIX: &str = "launches/";
/// Ending of a volume's file.
pub(crate) const ENDING: &str = ".disk";
/// Ending of a file that is its volume's only if a record says so.
pub(crate) const PENDING: &str = ".pending";
