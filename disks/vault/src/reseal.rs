//! Sealing the vault to the host as it will boot after an upgrade, by its verifier's leave (SPEC 11.18).
//!
//! ```text
//!  vault.key: sealed to `from` --permit {vault, from, to}--> vault.next: sealed to `to` --boot of that--> vault.key
//! ```
//! Whoever may reseal may have the vault open on a host of his own, so the management role only carries the permit. A permit
//! says from which host it leads to which, so one of an earlier upgrade leads nowhere; and it is good once. Resealing takes
//! nothing back: the key stays the same, and an older key file, put back, opens on the host that it was sealed to.

use coffer_formats::evidence::PcrValue;
use coffer_formats::{Digest, InstanceId};
use minicbor::{Decode, Encode};

use crate::error::VaultError;
use crate::folder::NEXT;
use crate::key_file::{KeyFile, Stage};
use crate::permit::{Leave, SignedPermit};
use crate::vault::{Vault, panicked};
use crate::volume_record::now;

/// What a verifier signs for a vault's next host.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct ResealPermit {
    #[n(0)]
    pub version: u8,
    /// The vault, by its id.
    #[n(1)]
    pub vault: InstanceId,
    /// The policy that it is sealed under.
    #[n(2)]
    pub from: Digest,
    /// Values of the same registers, ascending, that it is to be sealed to.
    #[n(3)]
    pub to: Vec<PcrValue>,
    /// Good for one resealing.
    #[n(4)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds; by the host's clock.
    #[n(5)]
    pub expiry: u64,
}

impl Leave for ResealPermit {
    const LABEL: &'static [u8] = b"coffer/reseal-permit/v1\0";

    fn version(&self) -> u8 {
        self.version
    }

    fn expiry(&self) -> u64 {
        self.expiry
    }
}

impl Vault {
    /// Seals the key also to the host that the verifier's permit names. Asked again, nothing more is done; as it boots now
    /// the host opens its vault in any case.
    pub fn reseal(&self, permit: &[u8]) -> Result<(), VaultError> {
        let _one = self.0.changing.lock().map_err(|_| panicked())?;
        let permit: ResealPermit = self.permitted(permit)?;
        if permit.vault.0 != self.id() {
            return Err(VaultError::BadPermit("is for another vault"));
        }
        let sealing = self.0.sealing.as_ref().ok_or(VaultError::NoTpm)?;
        let to = sealing.registers.policy(&permit.to);
        let to = to.map_err(|_| VaultError::BadPermit("names other registers than the vault's"))?;
        match self.is_used(permit.serial)? {
            true if self.next() == Some(to) => return Ok(()),
            true => return Err(VaultError::PermitUsed),
            false if permit.from != sealing.policy => {
                return Err(VaultError::BadPermit("is for a host that the vault is not sealed to"));
            }
            false => {}
        }
        self.use_up(permit.serial, permit.expiry)?;
        self.0.root.reseal(&self.0.folder, &self.0.keys, &permit.to)
    }

    /// What the host's verifier permits, now.
    pub(crate) fn permitted<T: Leave>(&self, permit: &[u8]) -> Result<T, VaultError> {
        let verifier = self.0.verifier.ok_or(VaultError::NoVerifier)?;
        SignedPermit::decode(permit)?.verify(&verifier, now())
    }

    /// The policy that the vault is sealed under too, for the next boot; none if there is no file that says so.
    pub(crate) fn next(&self) -> Option<Digest> {
        let bytes = self.0.folder.read(NEXT).ok()??;
        let file = KeyFile::decode(NEXT, bytes).ok()?;
        let stage = file.verify(&self.0.keys).ok()?;
        let sealing = file.sealing().ok()??;
        matches!(stage, Stage::Vault { .. }).then_some(sealing.policy)
    }
}
