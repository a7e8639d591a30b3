//! From the key a caller holds to the keys that touch bytes (SPEC 11.5).
//!
//! ```text
//! disk key --HKDF(slot salt)-+-> wrap key --GCM--> data key --HKDF--> session key, one per session salt
//!                            '-> superblock key
//! ```
//! The data key is drawn once and never changes; rekeying wraps it under another disk key. Rekeying
//! hands a disk on; it is no defence against who had the old key and a copy of the storage, hence the data key: under a
//! known key a GCM tag binds nothing.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut as _, Aes256Gcm, KeyInit as _};
use hkdf::Hkdf;
use hmac::Hmac;
use sha2::Sha256;
use zeroize::Zeroize as _;

use crate::entropy::Entropy;
use crate::error::DiskError;

const KEY: usize = 32;
const WRAP: &[u8] = b"coffer/disk-wrap/v1\0";
const SUPERBLOCK: &[u8] = b"coffer/disk-superblock/v1\0";
const SESSION: &[u8] = b"coffer/disk-session/v1\0";

/// Names a disk: drawn when it is made, kept by whoever keeps its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DiskId(pub [u8; 16]);

impl std::fmt::Display for DiskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// 32 secret bytes in one place: moving them copies a pointer. Wiped when dropped; no `Debug`.
struct Secret(Box<[u8; KEY]>);

impl Secret {
    fn zero() -> Self {
        Self(Box::new([0; KEY]))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The secret that opens a disk.
pub struct DiskKey(Secret);

impl DiskKey {
    /// Takes 32 bytes nobody can guess; the caller's copy is wiped.
    pub fn new(bytes: &mut [u8; KEY]) -> Self {
        let mut key = Secret::zero();
        key.0.copy_from_slice(bytes);
        bytes.zeroize();
        Self(key)
    }

    /// A wrap key is used once: its salt is drawn anew for each wrapping. So its nonce is zero.
    fn wrap_key(&self, id: DiskId, salt: &[u8; KEY]) -> Aes256Gcm {
        Aes256Gcm::new((&*self.derive(WRAP, id, salt).0).into())
    }

    /// What superblocks with this key slot are authenticated under.
    pub(crate) fn superblock_key(&self, id: DiskId, slot: &KeySlot) -> SuperblockKey {
        SuperblockKey(self.derive(SUPERBLOCK, id, &slot.salt))
    }

    fn derive(&self, label: &[u8], id: DiskId, salt: &[u8; KEY]) -> Secret {
        let mut key = Secret::zero();
        Hkdf::<Sha256>::new(Some(salt), &*self.0.0)
            .expand_multi_info(&[label, &id.0], &mut *key.0)
            .expect("HKDF gives 32 bytes");
        key
    }
}

/// What superblocks are authenticated under, until the next rekeying.
pub(crate) struct SuperblockKey(Secret);

impl SuperblockKey {
    pub(crate) fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&*self.0.0).expect("HMAC takes a key of any length")
    }
}

/// The data key, wrapped: part of each superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeySlot {
    pub salt: [u8; KEY],
    pub wrapped: [u8; KEY],
    pub tag: [u8; 16],
}

/// What all blocks of a disk are sealed under.
pub(crate) struct DataKey(Secret);

impl DataKey {
    pub(crate) fn draw(entropy: &mut dyn Entropy) -> Result<Self, DiskError> {
        let mut key = Secret::zero();
        entropy.fill(&mut *key.0)?;
        Ok(Self(key))
    }

    pub(crate) fn wrap(
        &self,
        key: &DiskKey,
        id: DiskId,
        entropy: &mut dyn Entropy,
    ) -> Result<KeySlot, DiskError> {
        let mut salt = [0; KEY];
        entropy.fill(&mut salt)?;
        let mut wrapped = *self.0.0;
        let tag = key
            .wrap_key(id, &salt)
            .encrypt_inout_detached(&[0; 12].into(), &id.0, wrapped.as_mut_slice().into())
            .expect("GCM seals 32 bytes");
        Ok(KeySlot { salt, wrapped, tag: tag.into() })
    }

    /// `None` under another key, or if the slot was altered: the two look the same.
    pub(crate) fn unwrap(slot: &KeySlot, key: &DiskKey, id: DiskId) -> Option<Self> {
        let mut data_key = Secret::zero();
        data_key.0.copy_from_slice(&slot.wrapped);
        key.wrap_key(id, &slot.salt)
            .decrypt_inout_detached(
                &[0; 12].into(),
                &id.0,
                data_key.0.as_mut_slice().into(),
                &slot.tag.into(),
            )
            .ok()
            .map(|()| Self(data_key))
    }

    /// The cipher of the session with this salt.
    pub(crate) fn session(&self, id: DiskId, salt: &[u8; 16]) -> SessionCipher {
        let mut key = Secret::zero();
        // HKDF-Expand alone: the data key is uniformly random (RFC 5869 section 3.3).
        Hkdf::<Sha256>::from_prk(&*self.0.0)
            .expect("a data key is as long as a digest")
            .expand_multi_info(&[SESSION, &id.0, salt], &mut *key.0)
            .expect("HKDF gives 32 bytes");
        SessionCipher(Aes256Gcm::new((&*key.0).into()))
    }
}

/// AES-256-GCM under the key of one session. The nonce is the number of the write.
pub(crate) struct SessionCipher(Aes256Gcm);

impl SessionCipher {
    /// Seals `data`; the tag.
    pub(crate) fn seal(&self, counter: u64, aad: &[u8], data: InOutBuf<'_, '_, u8>) -> [u8; 16] {
        let tag = self.0.encrypt_inout_detached(&nonce(counter), aad, data);
        tag.expect("GCM seals a block").into()
    }

    /// Opens `data`; false, and nothing written, if the tag is another.
    pub(crate) fn open(
        &self,
        counter: u64,
        aad: &[u8],
        data: InOutBuf<'_, '_, u8>,
        tag: &[u8; 16],
    ) -> bool {
        self.0.decrypt_inout_detached(&nonce(counter), aad, data, &(*tag).into()).is_ok()
    }
}

fn nonce(counter: u64) -> aes_gcm::Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    crate::bytes::put(&mut nonce, 4, &counter.to_le_bytes());
    nonce.into()
}
