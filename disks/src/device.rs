//! What a device model sees of a disk, of whichever kind.

use crate::anchor::Anchor;
use crate::disk::Disk;
use crate::error::DiskError;
use crate::store::Store;
use crate::{BLOCK, BLOCK_BYTES};

/// A device of 4096-byte blocks. Requests beyond its end are `out-of-range`; after an error a buffer is all zero.
pub trait BlockDevice {
    /// Blocks there are.
    fn blocks(&self) -> u64;
    /// Whether writes are refused: the guest is to be told.
    fn is_read_only(&self) -> bool;
    /// Fills `buffer`, whole blocks, from block `first` on. Kinds that promise it have verified what is in it then.
    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError>;
    /// Writes whole blocks from block `first` on.
    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError>;
    /// Makes blocks zero.
    fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError>;
    /// Returns when what was written survives a power cut.
    fn flush(&mut self) -> Result<(), DiskError>;
}

impl<S: Store, A: Anchor> BlockDevice for Disk<S, A> {
    fn blocks(&self) -> u64 {
        self.info().shape.blocks
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        Disk::read(self, first, buffer)
    }

    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError> {
        Disk::write(self, first, data)
    }

    fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError> {
        Disk::zero(self, first, count)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Disk::flush(self)
    }
}

/// A raw disk: no promise but that of the storage.
#[derive(Debug)]
pub struct Raw<S> {
    store: S,
    blocks: u64,
}

impl<S: Store> Raw<S> {
    /// All whole blocks of the storage.
    pub fn new(store: S) -> Result<Self, DiskError> {
        let length = store.len().map_err(DiskError::storage("measuring the storage"))?;
        Ok(Self { store, blocks: length / BLOCK_BYTES })
    }
}

impl<S: Store> BlockDevice for Raw<S> {
    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&mut self, first: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let result = inside(first, buffer.len(), self.blocks).and_then(|()| {
            // Storage that became shorter fails; nothing was promised of it that could be broken.
            let read = self.store.read_at(first * BLOCK_BYTES, buffer);
            read.map_err(DiskError::storage("reading"))
        });
        result.inspect_err(|_| buffer.fill(0))
    }

    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError> {
        inside(first, data.len(), self.blocks)?;
        self.store.write_at(first * BLOCK_BYTES, data).map_err(DiskError::storage("writing data"))
    }

    fn zero(&mut self, first: u64, count: u64) -> Result<(), DiskError> {
        let end = first.checked_add(count).filter(|end| *end <= self.blocks);
        let end = end.ok_or(DiskError::OutOfRange { first, count })?;
        (first..end).try_for_each(|block| self.write(block, &[0; BLOCK]))
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.store.flush().map_err(DiskError::storage("flushing"))
    }
}

/// Whether `len` bytes from block `first` on are whole blocks of a disk of `blocks`.
pub(crate) fn inside(first: u64, len: usize, blocks: u64) -> Result<(), DiskError> {
    if !len.is_multiple_of(BLOCK) {
        return Err(DiskError::Unaligned(len));
    }
    let count = (len / BLOCK) as u64;
    let inside = first.checked_add(count).is_some_and(|end| end <= blocks);
    inside.then_some(()).ok_or(DiskError::OutOfRange { first, count })
}
