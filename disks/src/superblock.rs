//! The two superblocks, byte for byte (SPEC 11.2).
//!
//! ```text
//!   0 "COFFERDK"      8 version 1 (u32)    12 block size 4096 (u32)   16 disk id (16)   32 epoch (u64)
//!  40 blocks (u64)   48 physical (u64)     56 root entry (48)        104 key slot: salt (32), key (32), tag (16)
//! 184 features (u64, zero)                192 zero to 4064          4064 HMAC-SHA-256 over all before it
//! ```
//! Nothing in it counts before the MAC was checked, except to give a refusal its name.

use hmac::Mac as _;

use crate::entry::Entry;
use crate::error::DiskError;
use crate::keys::{DataKey, DiskId, DiskKey, KeySlot, SuperblockKey};
use crate::shape::Shape;
use crate::{BLOCK, bytes};

const MAGIC: &[u8; 8] = b"COFFERDK";
const VERSION: u32 = 1;
const MAC_AT: usize = BLOCK - 32;

/// One state of a disk: everything follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub id: DiskId,
    /// Number of the state: what the anchor has to say for it to count.
    pub epoch: u64,
    pub shape: Shape,
    pub root: Entry,
    pub slot: KeySlot,
}

/// Why a superblock is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unfit {
    /// No magic.
    Absent,
    /// The MAC is another, or what it covers breaks the format.
    Corrupt,
    /// Of another disk.
    Foreign,
    /// The disk key does not open the key slot.
    WrongKey,
    /// Of another format.
    Unsupported { version: u32, features: u64 },
}

impl From<Unfit> for DiskError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Absent => Self::NotADisk,
            Unfit::Corrupt => Self::Corrupt(crate::error::Place::Superblock(0)),
            Unfit::Foreign => Self::Foreign,
            Unfit::WrongKey => Self::WrongKey,
            Unfit::Unsupported { version, features } => {
                Self::UnsupportedVersion { version, features }
            }
        }
    }
}

impl Superblock {
    /// Its block, under a MAC.
    pub(crate) fn encode(&self, key: &SuperblockKey) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let physical = self.shape.physical().unwrap_or_default();
        let fields: [(usize, &[u8]); 11] = [
            (0, MAGIC),
            (8, &VERSION.to_le_bytes()),
            (12, &(BLOCK as u32).to_le_bytes()),
            (16, &self.id.0),
            (32, &self.epoch.to_le_bytes()),
            (40, &self.shape.blocks.to_le_bytes()),
            (48, &physical.to_le_bytes()),
            (56, &self.root.encode()),
            (104, &self.slot.salt),
            (136, &self.slot.wrapped),
            (168, &self.slot.tag),
        ];
        for (offset, field) in fields {
            bytes::put(&mut block, offset, field);
        }
        let (covered, mac) = block.split_at_mut(MAC_AT);
        let mut hmac = key.mac();
        hmac.update(covered);
        mac.copy_from_slice(&hmac.finalize().into_bytes());
        block
    }

    /// Authenticates a block; what it says, the key it wraps, and what the next superblock is authenticated under.
    pub(crate) fn open(
        block: &[u8; BLOCK],
        key: &DiskKey,
        id: DiskId,
    ) -> Result<(Self, DataKey, SuperblockKey), Unfit> {
        if bytes::get(block, 0) != *MAGIC {
            return Err(Unfit::Absent);
        }
        let (version, features) = (bytes::get_u32(block, 8), bytes::get_u64(block, 184));
        if version != VERSION || features != 0 {
            return Err(Unfit::Unsupported { version, features });
        }
        if bytes::get(block, 16) != id.0 {
            return Err(Unfit::Foreign);
        }
        let slot = KeySlot {
            salt: bytes::get(block, 104),
            wrapped: bytes::get(block, 136),
            tag: bytes::get(block, 168),
        };
        let data_key = DataKey::unwrap(&slot, key, id).ok_or(Unfit::WrongKey)?;
        let (covered, mac) = block.split_at(MAC_AT);
        let superblock_key = key.superblock_key(id, &slot);
        let mut hmac = superblock_key.mac();
        hmac.update(covered);
        hmac.verify_slice(mac).map_err(|_| Unfit::Corrupt)?;
        let superblock = Self::parse(block, id, slot).ok_or(Unfit::Corrupt)?;
        // Accepts exactly what `encode` makes: reserved bytes are zero.
        let same = superblock.encode(&superblock_key) == *block;
        same.then_some((superblock, data_key, superblock_key)).ok_or(Unfit::Corrupt)
    }

    fn parse(block: &[u8; BLOCK], id: DiskId, slot: KeySlot) -> Option<Self> {
        let shape = Shape::within(bytes::get_u64(block, 40), bytes::get_u64(block, 48))?;
        let root = Entry::decode(&bytes::get(block, 56));
        Some(Self { id, epoch: bytes::get_u64(block, 32), shape, root, slot })
    }
}
