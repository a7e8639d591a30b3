//! The key of a vault at rest (SPEC 11.14.3): how it is got back, and how far its counter was when it was made.
//!
//! ```text
//!  0   8  "COFFERVK"              16   8  first value of the counter; stage 0: zero
//!  8   4  version, 1              24   n  a sealed key (11.13), or the 32 bytes of the key
//! 12   1  stage: 0 trial, 1 vault     32  HMAC-SHA-256 under the key file's key
//! 13   1  root: 0 TPM, 1 software
//! 14   2  zero                            integers are little-endian
//! ```

use coffer_anchor::{Registers, SealedKey};
use coffer_formats::Digest;
use hmac::Mac as _;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::keys::{Keys, mac_is};

const MAGIC: &[u8; 8] = b"COFFERVK";
const VERSION: u32 = 1;
const HEAD: usize = 24;
const MAC: usize = 32;
/// Most bytes of a file: a sealed key takes 500.
pub(crate) const FILE_MAX: u64 = 4096;

/// What the counter of a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// To learn where the vault's counter will begin. Anchors nothing, ever.
    Trial,
    /// The vault's counter, which began here.
    Vault {
        /// The value at which it began.
        first: u64,
    },
}

/// How the key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    Sealed,
    InClear,
}

/// What a key is sealed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealing {
    pub registers: Registers,
    /// Registers and values, in a digest.
    pub policy: Digest,
}

/// A file as read. What it says counts only once [`KeyFile::verify`] said so.
pub(crate) struct KeyFile {
    bytes: Zeroizing<Vec<u8>>,
    name: &'static str,
    stage: Stage,
    kept: Kept,
}

impl KeyFile {
    pub(crate) fn encode(stage: Stage, kept: Kept, key: &[u8], keys: &Keys) -> Zeroizing<Vec<u8>> {
        let (stage, first) = match stage {
            Stage::Trial => (0, 0),
            Stage::Vault { first } => (1, first),
        };
        let kept = u8::from(kept == Kept::InClear);
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + key.len() + MAC));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[stage, kept, 0, 0]);
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(key);
        let mac = keys.file_mac().chain_update(&*bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        bytes
    }

    pub(crate) fn decode(
        name: &'static str,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<Self, VaultError> {
        let parts = || {
            let head = bytes.first_chunk::<HEAD>().filter(|_| bytes.len() >= HEAD + MAC)?;
            let (magic, rest) = head.split_first_chunk::<8>()?;
            let (version, rest) = rest.split_first_chunk::<4>()?;
            let (kinds, first) = rest.split_first_chunk::<4>()?;
            let good = magic == MAGIC && u32::from_le_bytes(*version) == VERSION;
            let first = u64::from_le_bytes(*first.first_chunk()?);
            let (stage, kept) = match (kinds, first) {
                ([0, kept, 0, 0], 0) => (Stage::Trial, kept),
                ([1, kept, 0, 0], first) => (Stage::Vault { first }, kept),
                _ => return None,
            };
            let kept = match kept {
                0 => Kept::Sealed,
                1 => Kept::InClear,
                _ => return None,
            };
            good.then_some((stage, kept))
        };
        let (stage, kept) = parts().ok_or(VaultError::KeyFile(name))?;
        Ok(Self { bytes, name, stage, kept })
    }

    /// How the key is kept: alleged, and refuted by what is in the file.
    pub(crate) fn kept(&self) -> Kept {
        self.kept
    }

    /// The key, as it is kept.
    pub(crate) fn key(&self) -> &[u8] {
        self.bytes.get(HEAD..self.bytes.len().saturating_sub(MAC)).unwrap_or_default()
    }

    /// What the key is sealed to, if it is: as true as the file.
    pub(crate) fn sealing(&self) -> Result<Option<Sealing>, VaultError> {
        if self.kept == Kept::InClear {
            return Ok(None);
        }
        let sealed = SealedKey::decode(self.key())?;
        Ok(Some(Sealing { registers: sealed.registers().clone(), policy: sealed.policy() }))
    }

    /// What the file says, if the key in it wrote it.
    pub(crate) fn verify(&self, keys: &Keys) -> Result<Stage, VaultError> {
        let whole = self.bytes.split_last_chunk::<MAC>();
        let authentic = whole.is_some_and(|(body, mac)| mac_is(keys.file_mac(), body, mac));
        authentic.then_some(self.stage).ok_or(VaultError::KeyFile(self.name))
    }
}
