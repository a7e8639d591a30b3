//! Sizes: how many nodes a tree has, and how much storage a disk needs.

use crate::error::DiskError;
use crate::{BLOCK, FANOUT};

/// Most blocks of data: 1 TiB, as an integrity disk. Keeps the tree at five levels and every offset far from overflow.
pub const BLOCKS_MAX: u64 = 1 << 28;
/// Fewest spare blocks: one write of one block and the commit that follows touch at most six (a block, five nodes),
/// and a chunk that crosses into a second path eleven.
pub const SPARE_MIN: u64 = 16;
/// The two superblocks.
pub(crate) const RESERVED: u64 = 2;

/// What a disk is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Blocks of data.
    pub blocks: u64,
    /// Blocks beyond what a full disk needs. So much can be overwritten between two commits.
    pub spare: u64,
}

impl Shape {
    /// With the usual room: a sixteenth of the data, at least 1024 blocks (4 MiB).
    pub fn of(blocks: u64) -> Self {
        Self { blocks, spare: (blocks / 16).max(1024) }
    }

    /// Blocks of storage.
    pub(crate) fn physical(self) -> Result<u64, DiskError> {
        let fits = (1..=BLOCKS_MAX).contains(&self.blocks)
            && (SPARE_MIN..=BLOCKS_MAX).contains(&self.spare);
        if !fits {
            return Err(DiskError::BadShape { blocks: self.blocks, spare: self.spare });
        }
        Ok(RESERVED + self.blocks + nodes(self.blocks) + self.spare)
    }

    /// Bytes of storage.
    pub fn storage(self) -> Result<u64, DiskError> {
        Ok(self.physical()? * BLOCK as u64)
    }

    /// The shape that has `blocks` in `physical` blocks of storage; `None` if there is none.
    pub(crate) fn within(blocks: u64, physical: u64) -> Option<Self> {
        let fixed =
            (1..=BLOCKS_MAX).contains(&blocks).then(|| RESERVED + blocks + nodes(blocks))?;
        let shape = Self { blocks, spare: physical.checked_sub(fixed)? };
        shape.physical().is_ok().then_some(shape)
    }
}

/// Levels of nodes over `blocks` blocks, at least one.
pub(crate) fn levels(blocks: u64) -> u8 {
    let mut levels = 1;
    let mut reach = FANOUT;
    while reach < blocks {
        levels += 1;
        reach *= FANOUT;
    }
    levels
}

/// Nodes of level `level`, 1 being the lowest.
pub(crate) fn nodes_of(blocks: u64, level: u8) -> u64 {
    (0..level).fold(blocks, |below, _| below.div_ceil(FANOUT))
}

fn nodes(blocks: u64) -> u64 {
    (1..=levels(blocks)).map(|level| nodes_of(blocks, level)).sum()
}
