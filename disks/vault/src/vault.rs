//! The vault: opening it, and what it does.

use std::io::{Read, Write};
use std::path::Path;

use coffer_disk::Report;
use coffer_formats::evidence::PcrValue;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::identity::{Identity, Owner};
use crate::root::Root;
use crate::volume::{Attached, NewVolume, VolumeInfo};

/// A vault in use. Clones share it.
#[derive(Clone)]
pub struct Vault;

/// What was sealed, and who sealed it.
pub struct Unsealed {
    /// The data.
    pub data: Zeroizing<Vec<u8>>,
    /// Who sealed it, as the monitor knew it then.
    pub sealed_by: Identity,
}

#[expect(unused_variables, clippy::unused_self, reason = "bodies follow")]
impl Vault {
    /// Opens the vault in `folder`, or makes it where none is and none was.
    pub fn open(folder: &Path, root: Root) -> Result<Self, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Names the vault: random, drawn when it was made.
    pub fn id(&self) -> [u8; 16] {
        [0; 16]
    }

    /// Makes a volume.
    pub fn create_volume(&self, new: &NewVolume) -> Result<VolumeInfo, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// One volume.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Removes a volume that nobody uses; its data opens no more.
    pub fn remove_volume(&self, name: &str) -> Result<(), VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Attaches a volume that names no verifier.
    pub fn attach(&self, name: &str, user: &Identity) -> Result<Attached, VaultError> {
        self.attach_verified(name, user, None)
    }

    /// Attaches a volume; `verifier_key` is the `release_key` of the image's descriptor. A volume with a verifier goes
    /// only to images with the same one: otherwise whoever makes a volume could permit himself its backup.
    pub fn attach_verified(
        &self,
        name: &str,
        user: &Identity,
        verifier_key: Option<&[u8; 65]>,
    ) -> Result<Attached, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Reads and verifies all of a volume that nobody uses.
    pub fn check(&self, name: &str) -> Result<Report, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Makes a raw or encrypted volume larger.
    pub fn grow(&self, name: &str, bytes: u64) -> Result<VolumeInfo, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Gives an encrypted volume another key.
    pub fn rekey(&self, name: &str) -> Result<VolumeInfo, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Writes an encrypted volume to `out` for the host that the verifier's permit names.
    pub fn backup(&self, name: &str, permit: &[u8], out: &mut dyn Write) -> Result<(), VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Makes a new volume of a backup for this host.
    pub fn restore(&self, name: &str, input: &mut dyn Read) -> Result<VolumeInfo, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// The uncompressed point that backups for this vault are encrypted to.
    pub fn transport_key(&self) -> [u8; 65] {
        [0; 65]
    }

    /// Seals at most 64 KiB, so that only whom `to` means unseals it.
    pub fn seal(
        &self,
        by: &Identity,
        to: &Owner,
        fleet: bool,
        data: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Unseals what was sealed to `by`.
    pub fn unseal(&self, by: &Identity, blob: &[u8]) -> Result<Unsealed, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// A counter of the guest's signer (of its image, if nobody signed it), moved by one first if `advance`.
    pub fn counter(&self, by: &Identity, name: &str, advance: bool) -> Result<u64, VaultError> {
        Err(VaultError::NoTpm)
    }

    /// Seals the root key to other register values too, for the host as it will boot next.
    pub fn reseal(&self, values: &[PcrValue]) -> Result<(), VaultError> {
        Err(VaultError::NoTpm)
    }
}
