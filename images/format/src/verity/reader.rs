//! Reading data blocks of an integrity disk, each verified up to the root hash, from hostile storage.
//!
//! Data is read into the caller's buffer and hashed there on every read: storage may answer differently the
//! second time. Hash blocks that were verified once are kept in memory of this process, where storage cannot
//! reach them. Nothing that failed its check is left in the caller's buffer.

use std::io;

use coffer_formats::Digest;

use super::geometry::BlockHasher;
use super::{BLOCK, DIGEST, FANOUT, Geometry, Salt, UnfitSize};
use crate::blob::ReadAt;

/// Hash blocks kept per level: 1 MiB of memory for the digests of 128 MiB of data.
const CACHED_BLOCKS: u64 = 256;

/// Where a block that does not match lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A data block.
    Data {
        /// Its number.
        block: u64,
    },
    /// A hash block.
    Tree {
        /// Its level; 0 holds the digests of data blocks.
        level: usize,
        /// Its number in the level.
        block: u64,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data { block } => write!(f, "data block {block}"),
            Self::Tree { level, block } => write!(f, "hash block {block} of level {level}"),
        }
    }
}

/// Why a read gives no data. The VM stops on the first three: its disk is not the one that was measured.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// A block has another digest than the block above it, or the root hash, says.
    #[error("{0} does not match the root hash")]
    Mismatch(Place),
    /// The storage ends before the block does.
    #[error("{0} is missing: the disk is truncated")]
    Truncated(Place),
    /// The storage fails.
    #[error("{0} cannot be read: {1}")]
    Read(Place, #[source] io::Error),
    /// The caller asked for what the disk does not have.
    #[error("block {0} is beyond the end of the disk, or the buffer is no whole number of blocks")]
    OutOfRange(u64),
}

/// A verified view of a disk.
#[derive(Debug)]
pub struct VerityReader<S> {
    source: S,
    geometry: Geometry,
    root: Digest,
    hasher: BlockHasher,
    /// Verified hash blocks, by level.
    kept: Vec<Kept>,
}

impl<S: ReadAt> VerityReader<S> {
    /// A reader over a blob of data, superblock and tree. Reads nothing yet.
    pub fn new(source: S, data_size: u64, root: Digest, salt: &Salt) -> Result<Self, UnfitSize> {
        let geometry = Geometry::new(data_size)?;
        let kept = geometry.levels().iter().map(|level| Kept::new(level.blocks)).collect();
        Ok(Self { source, geometry, root, hasher: salt.hasher(), kept })
    }

    /// The layout of the disk.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Reads one data block. On an error the buffer is all zero.
    pub fn read_block(&mut self, index: u64, buffer: &mut [u8; BLOCK]) -> Result<(), VerityError> {
        self.read_blocks(index, buffer)
    }

    /// Reads data blocks from `first` on until `buffer` is full, with one read of the storage.
    ///
    /// `buffer` must be a whole number of blocks. On an error it is all zero: nothing unverified is left.
    pub fn read_blocks(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), VerityError> {
        let result = self.fill(first, buffer);
        if result.is_err() {
            buffer.fill(0);
        }
        result
    }

    /// Reads and verifies everything: all data blocks and all hash blocks.
    pub fn verify_all(&mut self) -> Result<(), VerityError> {
        let mut buffer = vec![0_u8; FANOUT as usize * BLOCK];
        let blocks = self.geometry.data_blocks();
        for first in (0..blocks).step_by(FANOUT as usize) {
            let count = FANOUT.min(blocks - first) as usize;
            let (part, _) = buffer.split_at_mut(count * BLOCK);
            self.read_blocks(first, part)?;
        }
        Ok(())
    }

    fn fill(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), VerityError> {
        let count = (buffer.len() / BLOCK) as u64;
        let inside = first.checked_add(count).is_some_and(|end| end <= self.geometry.data_blocks());
        if !inside || !buffer.len().is_multiple_of(BLOCK) {
            return Err(VerityError::OutOfRange(first));
        }
        let place = Place::Data { block: first };
        self.source
            .read_exact_at(buffer, first * BLOCK as u64)
            .map_err(|error| read_error(place, error))?;
        for (block, data) in (first..).zip(buffer.chunks_exact(BLOCK)) {
            let expected = self.expected(0, block)?;
            if self.hasher.digest(data) != expected {
                return Err(VerityError::Mismatch(Place::Data { block }));
            }
        }
        Ok(())
    }

    /// The digest that hash level `level` holds for block `child` of the level below it.
    ///
    /// Recursion ends at the top; there are at most four levels.
    fn expected(&mut self, level: usize, child: u64) -> Result<Digest, VerityError> {
        let Some(at) = self.geometry.levels().get(level).copied() else {
            return Ok(self.root);
        };
        let block = child / FANOUT;
        let slot = (child % FANOUT) as usize * DIGEST;
        if let Some(digest) = self.kept.get(level).and_then(|kept| kept.digest(block, slot)) {
            return Ok(digest);
        }
        let expected = self.expected(level + 1, block)?;
        let place = Place::Tree { level, block };
        let mut bytes = Box::new([0_u8; BLOCK]);
        let offset = at.offset + block * BLOCK as u64;
        self.source.read_exact_at(&mut *bytes, offset).map_err(|error| read_error(place, error))?;
        if self.hasher.digest(&*bytes) != expected {
            return Err(VerityError::Mismatch(place));
        }
        let digest = digest_at(&bytes, slot);
        if let Some(kept) = self.kept.get_mut(level) {
            kept.put(block, bytes);
        }
        digest.ok_or(VerityError::Mismatch(place))
    }
}

fn read_error(place: Place, error: io::Error) -> VerityError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => VerityError::Truncated(place),
        _ => VerityError::Read(place, error),
    }
}

fn digest_at(block: &[u8; BLOCK], offset: usize) -> Option<Digest> {
    block.get(offset..offset + DIGEST).and_then(Digest::from_slice)
}

/// Verified hash blocks of one level; a block has one possible slot, so that looking is one comparison.
#[derive(Debug)]
struct Kept(Vec<Option<(u64, Box<[u8; BLOCK]>)>>);

impl Kept {
    fn new(blocks: u64) -> Self {
        Self((0..blocks.min(CACHED_BLOCKS)).map(|_| None).collect())
    }

    fn digest(&self, block: u64, offset: usize) -> Option<Digest> {
        match self.0.get((block % CACHED_BLOCKS) as usize) {
            Some(Some((number, bytes))) if *number == block => digest_at(bytes, offset),
            _ => None,
        }
    }

    fn put(&mut self, block: u64, bytes: Box<[u8; BLOCK]>) {
        if let Some(slot) = self.0.get_mut((block % CACHED_BLOCKS) as usize) {
            *slot = Some((block, bytes));
        }
    }
}
