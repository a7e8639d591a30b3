//! The integrity disk: dm-verity's layout, for reading only, every block verified up to the root hash (SPEC 3.5).
//!
//! *Optimistic*: a block is verified when it is read. *Ahead of time*: all of it is verified before the disk exists for
//! anybody, and each block again when it is read, for storage may answer differently the second time. Reader and tree
//! are `coffer-image`'s.

use coffer_formats::Digest;
use coffer_image::blob::ReadAt;
use coffer_image::verity::{self, Salt, VerityError, VerityReader};

use crate::BLOCK;
use crate::device::{BlockDevice, inside};
use crate::error::{DiskError, Place};

/// A disk that is its root hash.
#[derive(Debug)]
pub struct Integrity<S>(VerityReader<S>);

impl<S: ReadAt> Integrity<S> {
    /// Verifies each block when it is read.
    pub fn optimistic(
        storage: S,
        data_size: u64,
        root: Digest,
        salt: &Salt,
    ) -> Result<Self, DiskError> {
        VerityReader::new(storage, data_size, root, salt)
            .map(Self)
            .map_err(|_| DiskError::BadShape { blocks: data_size / BLOCK as u64, spare: 0 })
    }

    /// Verifies everything now.
    pub fn ahead_of_time(
        storage: S,
        data_size: u64,
        root: Digest,
        salt: &Salt,
    ) -> Result<Self, DiskError> {
        let mut disk = Self::optimistic(storage, data_size, root, salt)?;
        disk.0.verify_all().map_err(refused)?;
        Ok(disk)
    }
}

impl<S: ReadAt> BlockDevice for Integrity<S> {
    fn blocks(&self) -> u64 {
        self.0.geometry().data_blocks()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        inside(first, buffer.len(), self.blocks()).inspect_err(|_| buffer.fill(0))?;
        self.0.read_blocks(first, buffer).map_err(refused)
    }

    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    /// Nothing is ever dirty.
    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

fn refused(error: VerityError) -> DiskError {
    match error {
        VerityError::Mismatch(at) | VerityError::Truncated(at) => DiskError::Corrupt(place(at)),
        VerityError::Read(_, source) => DiskError::storage("reading")(source),
        VerityError::OutOfRange(first) => DiskError::OutOfRange { first, count: 1 },
    }
}

/// Level 0 of dm-verity holds the digests of data; here that is level 1.
fn place(at: verity::Place) -> Place {
    match at {
        verity::Place::Data { block } => Place::Data(block),
        verity::Place::Tree { level, block } => {
            Place::Node { level: level as u8 + 1, index: block }
        }
    }
}
