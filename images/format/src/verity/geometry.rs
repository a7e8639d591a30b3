//! Where the blocks of an integrity disk lie.

use coffer_formats::Digest;
use sha2::{Digest as _, Sha256};

use super::{BLOCK, FANOUT};

/// Most bytes of data. Keeps every offset far from overflow and the tree at four levels.
const DATA_MAX: u64 = 1 << 40;
/// Most bytes of a salt; dm-verity allows 256, but nothing needs more than a digest's width.
const SALT_MAX: usize = 32;

/// A data size that is zero, no multiple of 4096, or more than 1 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an integrity disk cannot have {0} bytes of data")]
pub struct UnfitSize(pub u64);

/// One level of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// Hash blocks in it.
    pub blocks: u64,
    /// Where they begin, counted from the begin of the blob.
    pub offset: u64,
}

/// The layout that follows from the data size alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    data_blocks: u64,
    levels: Vec<Level>,
}

impl Geometry {
    /// The layout for `data_size` bytes.
    pub fn new(data_size: u64) -> Result<Self, UnfitSize> {
        let fits = (BLOCK as u64..=DATA_MAX).contains(&data_size)
            && data_size.is_multiple_of(BLOCK as u64);
        if !fits {
            return Err(UnfitSize(data_size));
        }
        let data_blocks = data_size / BLOCK as u64;
        let mut levels = Vec::new();
        let mut below = data_blocks;
        while below > 1 {
            below = below.div_ceil(FANOUT);
            levels.push(Level { blocks: below, offset: 0 });
        }
        // The top level lies first.
        let mut offset = data_size + BLOCK as u64;
        for level in levels.iter_mut().rev() {
            level.offset = offset;
            offset += level.blocks * BLOCK as u64;
        }
        Ok(Self { data_blocks, levels })
    }

    /// Blocks of data.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Bytes of data; the superblock begins here.
    pub fn data_size(&self) -> u64 {
        self.data_blocks * BLOCK as u64
    }

    /// Bytes of the tree.
    pub fn tree_size(&self) -> u64 {
        self.levels.iter().map(|level| level.blocks * BLOCK as u64).sum()
    }

    /// Bytes of data, superblock and tree.
    pub fn blob_size(&self) -> u64 {
        self.data_size() + BLOCK as u64 + self.tree_size()
    }

    /// Levels of the tree, level 0 (digests of data blocks) first; none where there is one data block.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }
}

/// A salt, at most 32 bytes; may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salt(Vec<u8>);

impl Salt {
    /// From bytes; `None` if there are more than 32.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= SALT_MAX).then(|| Self(bytes.to_vec()))
    }

    /// From lower-case hex, as in the descriptor.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() > 2 * SALT_MAX || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        Self::new(&hex::decode(text).ok()?)
    }

    /// Lower-case hex.
    pub fn to_hex(&self) -> String {
        hex::encode(&self.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A hash that has taken the salt in already; cloning it is cheaper than hashing the salt per block.
    pub(super) fn hasher(&self) -> BlockHasher {
        BlockHasher(Sha256::new_with_prefix(&self.0))
    }
}

/// `SHA-256(salt | block)`.
#[derive(Clone)]
pub(super) struct BlockHasher(Sha256);

impl std::fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockHasher")
    }
}

impl BlockHasher {
    pub(super) fn digest(&self, block: &[u8]) -> Digest {
        Digest(self.0.clone().chain_update(block).finalize().into())
    }
}
