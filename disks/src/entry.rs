//! What a parent says of its child: where it lies and the one seal it has (SPEC 11.3).

use crate::bytes;

/// Bytes of an entry.
pub(crate) const ENTRY: usize = 48;

/// The seal of one write of one block: no two writes have the same salt and counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seal {
    /// Of the session that wrote it; names its key.
    pub salt: [u8; 16],
    /// Number of the write in the session; its nonce.
    pub counter: u64,
    /// GCM tag.
    pub tag: [u8; 16],
}

/// A child; or none: then all blocks below are zero; or one that a repair gave up: then all blocks below are errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// Block of the storage; 0, where a superblock lies, for none.
    pub physical: u64,
    pub seal: Seal,
}

impl Entry {
    pub(crate) const NONE: Self =
        Self { physical: 0, seal: Seal { salt: [0; 16], counter: 0, tag: [0; 16] } };

    /// 48 bytes of 0xFF.
    pub(crate) const LOST: Self = Self {
        physical: u64::MAX,
        seal: Seal { salt: [255; 16], counter: u64::MAX, tag: [255; 16] },
    };

    pub(crate) fn is_none(&self) -> bool {
        self.physical == 0
    }

    pub(crate) fn is_lost(&self) -> bool {
        *self == Self::LOST
    }

    /// Whether it names a block of the storage.
    pub(crate) fn is_stored(&self) -> bool {
        !self.is_none() && !self.is_lost()
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY] {
        let mut out = [0; ENTRY];
        bytes::put(&mut out, 0, &self.physical.to_le_bytes());
        bytes::put(&mut out, 8, &self.seal.salt);
        bytes::put(&mut out, 24, &self.seal.counter.to_le_bytes());
        bytes::put(&mut out, 32, &self.seal.tag);
        out
    }

    pub(crate) fn decode(from: &[u8; ENTRY]) -> Self {
        Self {
            physical: bytes::get_u64(from, 0),
            seal: Seal {
                salt: bytes::get(from, 8),
                counter: bytes::get_u64(from, 24),
                tag: bytes::get(from, 32),
            },
        }
    }
}
