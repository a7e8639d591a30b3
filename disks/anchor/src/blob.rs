//! A sealed key at rest (SPEC 11.13): what the TPM made, and what it takes to ask for it back. Hides nothing but the key.
//!
//! ```text
//!  0   8  "COFFERSK"                     50  32    policy digest
//!  8   4  version, 1                     82  2+n   TPM2B_PRIVATE
//! 12   3  registers, SHA-256 bank            2+m   TPM2B_PUBLIC
//! 15   1  zero                               32    SHA-256 of all before it
//! 16  34  name of the storage key
//! ```
//! Integers are big-endian, as in the TPM structures. The digest finds accidents; what is altered on purpose the TPM finds.

use coffer_formats::tpm::alg;
use coffer_formats::tpm::wire::{Reader, Writer};
use coffer_formats::{Digest, ObjectName, Reject};

use crate::error::SealError;
use crate::registers::Registers;

/// fixedTPM, fixedParent, adminWithPolicy, noDA (TPMA_OBJECT, Part 2, 8.3): no authValue gets it out, only its policy.
const SEALED_ATTRIBUTES: u32 = 0x0000_0492;

/// A key that one TPM can give back, while some of its registers have certain values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    pub(crate) registers: Registers,
    pub(crate) storage: ObjectName,
    pub(crate) policy: Digest,
    pub(crate) private: Vec<u8>,
    pub(crate) public: Vec<u8>,
}

impl SealedKey {
    /// The registers it is sealed to.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The policy it is sealed under: registers and values, in a digest.
    pub fn policy(&self) -> Digest {
        self.policy
    }

    /// Name of the storage key it is sealed under.
    pub fn storage(&self) -> ObjectName {
        self.storage
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let body = Writer::new()
            .bytes(MAGIC)
            .u32(VERSION)
            .bytes(&self.registers.bitmap())
            .u8(0)
            .bytes(self.storage.as_bytes())
            .bytes(self.policy.as_bytes())
            .tpm2b(&self.private)
            .tpm2b(&self.public)
            .finish();
        let digest = Digest::of(&[&body]);
        Writer::new().bytes(&body).bytes(digest.as_bytes()).finish()
    }

    /// Reads exactly what [`SealedKey::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SealError> {
        let mut r = Reader::new(bytes);
        if r.array().ok().as_ref() != Some(MAGIC) {
            return Err(SealError::Foreign);
        }
        match r.u32() {
            Ok(VERSION) => {}
            Ok(version) => return Err(SealError::UnsupportedVersion(version)),
            Err(_) => return Err(SealError::Torn),
        }
        let (body, digest) = bytes.split_last_chunk::<{ Digest::LEN }>().ok_or(SealError::Torn)?;
        if Digest::of(&[body]) != Digest(*digest) {
            return Err(SealError::Torn);
        }
        Self::structure(body.get(HEAD..).unwrap_or_default())
    }

    /// What comes between version and digest: whole, so whatever is wrong in it was made so.
    fn structure(body: &[u8]) -> Result<Self, SealError> {
        let parts = |body| -> Result<_, Reject> {
            let mut r = Reader::new(body);
            let (bitmap, reserved) = (r.array()?, r.u8()?);
            let (storage, policy) = (ObjectName(r.array()?), Digest(r.array()?));
            let (private, public) = (r.tpm2b(PART_MAX)?.to_vec(), r.tpm2b(PART_MAX)?.to_vec());
            r.finish()?;
            Ok((bitmap, reserved, storage, policy, private, public))
        };
        let (bitmap, reserved, storage, policy, private, public) =
            parts(body).map_err(|_| SealError::Altered)?;
        let registers = Registers::from_bitmap(bitmap).map_err(|_| SealError::Altered)?;
        if reserved != 0 || !is_sealed_to(&public, &policy) {
            return Err(SealError::Altered);
        }
        Ok(Self { registers, storage, policy, private, public })
    }
}

/// The public area of a key that is to be sealed, up to `unique`: data that leaves its TPM by this policy only.
pub(crate) fn template(policy: &Digest) -> Writer {
    Writer::new()
        .u16(KEYEDHASH)
        .u16(alg::SHA256)
        .u32(SEALED_ATTRIBUTES)
        .tpm2b(policy.as_bytes())
        .u16(alg::NULL)
}

/// True if the public area is the template with a digest for `unique`.
pub(crate) fn is_sealed_to(public: &[u8], policy: &Digest) -> bool {
    let unique = public.strip_prefix(template(policy).finish().as_slice());
    matches!(unique, Some([0, 32, digest @ ..]) if digest.len() == Digest::LEN)
}

const MAGIC: &[u8; 8] = b"COFFERSK";
const VERSION: u32 = 1;
/// Magic and version.
const HEAD: usize = 12;
/// TPM_ALG_KEYEDHASH.
const KEYEDHASH: u16 = 0x0008;
/// Most bytes of either part: a sealed key takes a tenth of that.
const PART_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blob(pcrs: &[u8], private: &[u8], fill: u8) -> SealedKey {
        let policy = Digest([fill; 32]);
        SealedKey {
            registers: Registers::of(pcrs).unwrap(),
            storage: ObjectName([fill; 34]),
            policy,
            private: private.to_vec(),
            public: template(&policy).tpm2b(&[fill; 32]).finish(),
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(
            pcrs in proptest::collection::btree_set(0u8..16, 1..16),
            private in proptest::collection::vec(any::<u8>(), 0..300),
            fill: u8,
        ) {
            let blob = blob(&pcrs.into_iter().collect::<Vec<_>>(), &private, fill);
            prop_assert_eq!(SealedKey::decode(&blob.encode()).unwrap(), blob);
        }

        #[test]
        fn takes_nothing_it_would_not_write(
            at in 0usize..400, value: u8, cut in 0usize..8, digest: bool,
        ) {
            let mut bytes = blob(&[0, 7], &[3; 160], 9).encode();
            let at = at % bytes.len();
            bytes[at] = value;
            if digest {
                bytes.truncate(bytes.len() - 32 - cut);
                let digest = Digest::of(&[&bytes]);
                bytes.extend_from_slice(digest.as_bytes());
            }
            if let Ok(blob) = SealedKey::decode(&bytes) {
                prop_assert_eq!(blob.encode(), bytes);
            }
        }

        #[test]
        fn stands_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let headed = [&MAGIC[..], &VERSION.to_be_bytes(), &bytes].concat();
            let digest = Digest::of(&[&headed]);
            for bytes in [&bytes[..], &headed, &[&headed[..], digest.as_bytes()].concat()] {
                prop_assert!(SealedKey::decode(bytes).is_err());
            }
        }
    }
}
