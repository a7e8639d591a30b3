//! Sealing and opening single blocks (SPEC 11.4).
//!
//! Why no nonce is ever used twice under one key: a session draws 32 bytes when the disk is opened, and its salt is
//! their hash together with the value of the anchor, which no other session has. The salt gives the session its own
//! key; the nonce counts the writes of the session in memory, where neither storage nor a power cut reaches it. A
//! rolled-back or cut disk is opened by a new session, hence under a new key.

use std::collections::VecDeque;

use aes_gcm::aead::inout::InOutBuf;
use sha2::{Digest as _, Sha256};

use crate::bytes;
use crate::entropy::Entropy;
use crate::entry::Seal;
use crate::error::{DiskError, Place};
use crate::keys::{DataKey, DiskId, SessionCipher};

/// Writes under one session key. 2^32 blocks of 256 cipher blocks: the advantage of telling GCM from random stays
/// below (2^40)^2 / 2^129 = 2^-49.
const WRITES_MAX: u64 = 1 << 32;
/// Ciphers of earlier sessions kept ready: about 1 KiB each.
const CIPHERS_KEPT: usize = 16;
const SALT: &[u8] = b"coffer/disk-salt/v1\0";

/// Seals under the session's key and opens what any session sealed.
pub(crate) struct Sealer {
    id: DiskId,
    data_key: DataKey,
    session: Session,
    /// Used last, first.
    kept: VecDeque<([u8; 16], SessionCipher)>,
}

impl Sealer {
    /// The session that begins with the anchor at `epoch`.
    pub(crate) fn new(
        id: DiskId,
        data_key: DataKey,
        epoch: u64,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, DiskError> {
        let mut seed = [0; 32];
        entropy.fill(&mut seed)?;
        let session = Session::new(seed, epoch, 0, id, &data_key);
        Ok(Self { id, data_key, session, kept: VecDeque::with_capacity(CIPHERS_KEPT) })
    }

    pub(crate) fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    /// Seals `plain` into `sealed`.
    pub(crate) fn seal(&mut self, place: Place, plain: &[u8], sealed: &mut [u8]) -> Seal {
        if self.session.writes == WRITES_MAX {
            self.session = self.session.next(self.id, &self.data_key);
        }
        let counter = self.session.writes;
        self.session.writes += 1;
        #[cfg(test)]
        crate::tests::nonces::witness(self.id, &self.session.salt, counter);
        let buffer = InOutBuf::new(plain, sealed).expect("both are a block");
        let tag = self.session.cipher.seal(counter, &self.aad(place), buffer);
        Seal { salt: self.session.salt, counter, tag }
    }

    /// Opens `data` in place.
    pub(crate) fn open(
        &mut self,
        place: Place,
        seal: &Seal,
        data: &mut [u8],
    ) -> Result<(), DiskError> {
        let aad = self.aad(place);
        let cipher = if seal.salt == self.session.salt {
            &self.session.cipher
        } else {
            Self::kept(&mut self.kept, self.id, &self.data_key, &seal.salt)
        };
        cipher
            .open(seal.counter, &aad, data.into(), &seal.tag)
            .then_some(())
            .ok_or(DiskError::Corrupt(place))
    }

    fn kept<'a>(
        kept: &'a mut VecDeque<([u8; 16], SessionCipher)>,
        id: DiskId,
        data_key: &DataKey,
        salt: &[u8; 16],
    ) -> &'a SessionCipher {
        match kept.iter().position(|(known, _)| known == salt) {
            Some(at) => kept.swap(0, at),
            None => {
                kept.truncate(CIPHERS_KEPT - 1);
                kept.push_front((*salt, data_key.session(id, salt)));
            }
        }
        kept.front().map(|(_, cipher)| cipher).expect("it was just put there")
    }

    /// Disk, level (0 for data) and number.
    fn aad(&self, place: Place) -> [u8; 25] {
        let (level, index) = match place {
            Place::Data(block) => (0, block),
            Place::Node { level, index } => (level, index),
            // Superblocks carry a MAC instead; the level is no node's.
            Place::Superblock(slot) => (u8::MAX, slot),
        };
        let mut aad = [0; 25];
        bytes::put(&mut aad, 0, &self.id.0);
        bytes::put(&mut aad, 16, &[level]);
        bytes::put(&mut aad, 17, &index.to_le_bytes());
        aad
    }
}

struct Session {
    seed: [u8; 32],
    epoch: u64,
    part: u64,
    salt: [u8; 16],
    cipher: SessionCipher,
    writes: u64,
}

impl Session {
    fn new(seed: [u8; 32], epoch: u64, part: u64, id: DiskId, data_key: &DataKey) -> Self {
        let mut hash = Sha256::new_with_prefix(SALT);
        hash.update(seed);
        hash.update(epoch.to_le_bytes());
        hash.update(part.to_le_bytes());
        let salt = bytes::get(&hash.finalize(), 0);
        Self { seed, epoch, part, salt, cipher: data_key.session(id, &salt), writes: 0 }
    }

    /// Another key for the same session, when one has sealed enough.
    fn next(&self, id: DiskId, data_key: &DataKey) -> Self {
        Self::new(self.seed, self.epoch, self.part + 1, id, data_key)
    }
}
