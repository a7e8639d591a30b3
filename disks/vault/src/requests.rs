//! What is asked of a vault, and told of it, in JSON: the part of the management API that is about volumes (SPEC 6.4.6).

use std::fs::File;

use coffer_disk::Report;
use coffer_formats::Digest;
use serde::{Deserialize, Serialize};

use crate::error::VaultError;
use crate::identity::Owner;
use crate::vault::Vault;
use crate::volume::{NewKind, NewVolume, VolumeInfo, VolumeKind};

/// Asks for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name: 1 to 63 of `a-z 0-9 - _ .`, a letter or digit first.
    pub name: String,
    /// What it is to promise.
    pub kind: VolumeKind,
    /// Bytes of a raw or encrypted one, a multiple of 4096.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// The data of an integrity volume: a file below the monitor's folder for disks.
    #[serde(default)]
    pub source: Option<String>,
    /// Who may attach it: `image:HEX`, `signer:HEX`, `signer:HEX,svn=N` or `open`.
    pub owner: Owner,
    /// Release key of the verifier that may permit backups, an uncompressed point of P-256 in hex; none can be made
    /// without. Only images with this verifier attach such a volume.
    #[serde(default)]
    pub verifier_key: Option<String>,
}

/// Makes a volume larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowVolume {
    /// Bytes it is to have, a multiple of 4096.
    pub bytes: u64,
}

/// The vault of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultInfo {
    /// Its id, 16 random bytes in hex.
    pub id: String,
    /// What backups for it are encrypted to, an uncompressed point of P-256 in hex.
    pub transport_key: String,
    /// Release key of the verifier whose leave it takes, an uncompressed point in hex; nobody changes whom it opens for
    /// without.
    #[serde(default)]
    pub verifier_key: Option<String>,
    /// Registers that its key is sealed to; none without a TPM.
    #[serde(default)]
    pub registers: Vec<u8>,
    /// Digest of these and their values: what leave to reseal it names.
    #[serde(default)]
    pub sealed_to: Option<Digest>,
    /// The same of the host that it was resealed for and that did not boot yet.
    #[serde(default)]
    pub resealed_to: Option<Digest>,
    /// Its fleet, by its id, 16 bytes in hex.
    #[serde(default)]
    pub fleet: Option<String>,
}

/// What reading and verifying all of a volume found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeReport {
    /// Blocks of data that hold something.
    pub data: u64,
    /// Blocks of the tree above.
    pub nodes: u64,
    /// Blocks of data that a repair gave up, and that nothing was written to since.
    pub lost: u64,
    /// Damaged places, or those a repair gave up now; what lies below a damaged node was not reached.
    pub damaged: u64,
    /// The first of them, in words.
    pub places: Vec<String>,
}

/// The uncompressed point that this hex is.
pub fn point(hex: &str) -> Result<[u8; 65], VaultError> {
    let mut point = [0; 65];
    hex::decode_to_slice(hex, &mut point).map_err(|_| VaultError::BadKey)?;
    Ok(point)
}

/// The release key that this hex is: a point on the curve.
pub fn release_key(hex: &str) -> Result<[u8; 65], VaultError> {
    let point = point(hex)?;
    p256::PublicKey::from_sec1_bytes(&point).map_err(|_| VaultError::BadKey)?;
    Ok(point)
}

impl Vault {
    /// Makes the volume that is asked for; `open` opens the data of an integrity volume.
    pub fn create(
        &self,
        asked: &CreateVolume,
        open: impl FnOnce(&str) -> std::io::Result<File>,
    ) -> Result<VolumeInfo, VaultError> {
        let misfit = |verb| VaultError::WrongKind { kind: asked.kind.as_str(), verb };
        let kind = match (asked.kind, asked.bytes, &asked.source) {
            (VolumeKind::Raw, Some(bytes), None) => NewKind::Raw { bytes },
            (VolumeKind::Encrypted, Some(bytes), None) => NewKind::Encrypted { bytes },
            (VolumeKind::Integrity, None, Some(path)) => {
                let source = open(path).map_err(VaultError::storage("opening the data"))?;
                NewKind::Integrity { source }
            }
            (VolumeKind::Vtpm, None, None) => NewKind::Vtpm,
            (VolumeKind::Raw | VolumeKind::Encrypted, ..) => {
                return Err(misfit("be made of anything but a size"));
            }
            (VolumeKind::Integrity, ..) => return Err(misfit("be made of anything but a file")),
            (VolumeKind::Vtpm, ..) => return Err(misfit("be given a size or a file")),
        };
        let verifier_key = asked.verifier_key.as_deref().map(point).transpose()?;
        self.create_volume(&NewVolume {
            name: asked.name.clone(),
            kind,
            owner: asked.owner,
            verifier_key,
        })
    }

    /// What is told of the vault.
    pub fn info(&self) -> Result<VaultInfo, VaultError> {
        let sealing = self.0.sealing.as_ref();
        Ok(VaultInfo {
            id: hex::encode(self.id()),
            transport_key: hex::encode(self.transport_key()),
            verifier_key: self.0.verifier.map(hex::encode),
            registers: sealing.map(|it| it.registers.numbers().to_vec()).unwrap_or_default(),
            sealed_to: sealing.map(|it| it.policy),
            resealed_to: self.next(),
            fleet: self.fleet()?.map(|key| key.id().to_hex()),
        })
    }
}

impl From<Report> for VolumeReport {
    fn from(report: Report) -> Self {
        let Report { data, nodes, lost, damaged, places, .. } = report;
        let places = places.iter().map(ToString::to_string).collect();
        Self { data, nodes, lost, damaged, places }
    }
}
