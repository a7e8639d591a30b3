//! What a verifier permits a vault, signed with its release key (SPEC 11.17.1, 11.18.1, 11.19.1).
//!
//! `[payload, signature]`: ECDSA P-256 with SHA-256 over a label, that tells what is permitted, and the payload. Leave to
//! take a volume elsewhere is given by the key that the volume names, all else by the one that the host's configuration
//! names. Whoever only carries a permit can change nothing in it.

use coffer_formats::{InstanceId, cbor};
use minicbor::{Decode, Encode};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};

use crate::error::VaultError;
use crate::vault::{Vault, panicked};

/// What goes before the payload when leave to take a volume elsewhere is signed.
pub const PERMIT_LABEL: &[u8] = b"coffer/volume-permit/v1\0";
/// Most bytes of a signed permit.
pub const PERMIT_MAX: usize = 1024;
const VERSION: u8 = 1;

/// What a verifier signs for a volume.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Permit {
    /// Format version, 1.
    #[n(0)]
    pub version: u8,
    /// The volume, by its id.
    #[n(1)]
    pub volume: InstanceId,
    /// Transport key of the vault that it leaves.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sender: [u8; 65],
    /// Transport key of the vault that it goes to.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub recipient: [u8; 65],
    /// Good for one restoring.
    #[n(4)]
    pub serial: InstanceId,
    /// Good until then, in Unix seconds; by the clock of each host.
    #[n(5)]
    pub expiry: u64,
}

/// A payload that a verifier signs.
pub(crate) trait Leave: Encode<()> + for<'b> Decode<'b, ()> {
    /// Tells it from all else that the key signs.
    const LABEL: &'static [u8];
    /// Format version.
    fn version(&self) -> u8;
    /// Good until then, in Unix seconds.
    fn expiry(&self) -> u64;
}

impl Leave for Permit {
    const LABEL: &'static [u8] = PERMIT_LABEL;

    fn version(&self) -> u8 {
        self.version
    }

    fn expiry(&self) -> u64 {
        self.expiry
    }
}

/// Payload and signature as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedPermit {
    /// Encoded [`Permit`], or another that a verifier signs.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// `r | s`.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl SignedPermit {
    /// The bytes that are signed for the payload of a [`Permit`].
    pub fn signed_bytes(payload: &[u8]) -> Vec<u8> {
        [PERMIT_LABEL, payload].concat()
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, VaultError> {
        cbor::decode(bytes, PERMIT_MAX).map_err(|_| VaultError::BadPermit("does not parse"))
    }

    /// What is alleged.
    pub(crate) fn claimed<T: Leave>(&self) -> Result<T, VaultError> {
        cbor::decode(&self.payload, PERMIT_MAX)
            .ok()
            .filter(|permit: &T| permit.version() == VERSION)
            .ok_or(VaultError::BadPermit("does not parse"))
    }

    /// What this verifier permits, now.
    pub(crate) fn verify<T: Leave>(&self, key: &[u8; 65], now: u64) -> Result<T, VaultError> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| VaultError::BadKey)?;
        let forged = VaultError::BadPermit("is not the verifier's");
        let Ok(signature) = Signature::from_slice(&self.signature) else { return Err(forged) };
        let signed = [T::LABEL, &self.payload].concat();
        key.verify(&signed, &signature).map_err(|_| forged)?;
        let permit: T = self.claimed()?;
        match permit.expiry() >= now {
            true => Ok(permit),
            false => Err(VaultError::BadPermit("has expired")),
        }
    }
}

impl Vault {
    pub(crate) fn is_used(&self, serial: InstanceId) -> Result<bool, VaultError> {
        Ok(self.0.records.get(&record(serial))?.is_some())
    }

    /// Notes that a permit was used. Only one can.
    pub(crate) fn use_up(&self, serial: InstanceId, expiry: u64) -> Result<(), VaultError> {
        let _one = self.0.counting.lock().map_err(|_| panicked())?;
        match self.is_used(serial)? {
            true => Err(VaultError::PermitUsed),
            false => self.0.records.put(&record(serial), &expiry.to_le_bytes()),
        }
    }
}

fn record(serial: InstanceId) -> String {
    format!("permit/{serial}")
}
