//! A verifier's leave to take one volume from one host to another (SPEC 11.17.1).
//!
//! `[payload, signature]`: ECDSA P-256 with SHA-256 over `"coffer/volume-permit/v1\0" | payload`, by the key that the
//! volume names. Both hosts are in it by their transport keys, so a permit helps nobody else to write or read a backup.

use coffer_formats::{InstanceId, cbor};
use minicbor::{Decode, Encode};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};

use crate::error::VaultError;

/// What goes before the payload when it is signed.
pub const PERMIT_LABEL: &[u8] = b"coffer/volume-permit/v1\0";
/// Most bytes of a signed permit.
pub const PERMIT_MAX: usize = 1024;
const VERSION: u8 = 1;

/// What a verifier signs.
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

/// Payload and signature as they travel.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SignedPermit {
    /// Encoded [`Permit`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// `r | s`.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

impl SignedPermit {
    /// The bytes that are signed for a payload.
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
    pub(crate) fn claimed(&self) -> Result<Permit, VaultError> {
        cbor::decode(&self.payload, PERMIT_MAX)
            .ok()
            .filter(|permit: &Permit| permit.version == VERSION)
            .ok_or(VaultError::BadPermit("does not parse"))
    }

    /// What this verifier permits, now.
    pub(crate) fn verify(&self, key: &[u8; 65], now: u64) -> Result<Permit, VaultError> {
        let key = VerifyingKey::from_sec1_bytes(key).map_err(|_| VaultError::BadKey)?;
        let forged = VaultError::BadPermit("is not the verifier's");
        let Ok(signature) = Signature::from_slice(&self.signature) else { return Err(forged) };
        key.verify(&Self::signed_bytes(&self.payload), &signature).map_err(|_| forged)?;
        let permit = self.claimed()?;
        match permit.expiry >= now {
            true => Ok(permit),
            false => Err(VaultError::BadPermit("has expired")),
        }
    }
}
