//! Where a disk's bytes lie: hostile storage with one honest word, that `flush` reaches the medium.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use crate::error::DiskError;

/// Storage. It may lose, alter, replay and reorder; then reads fail. Durability alone is taken from it: what was
/// written before `flush` returned must survive a power cut.
pub trait Store {
    /// Bytes there are.
    fn len(&self) -> io::Result<u64>;
    /// Whether there are none.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buffer` from `offset` on, or fails with `UnexpectedEof`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything written before is on the medium.
    fn flush(&mut self) -> io::Result<()>;
}

impl<S: Store + ?Sized> Store for Box<S> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (**self).flush()
    }
}

/// Locks a file, or says that somebody has it. A child that is being started holds what its parent has given up until it is
/// a program of its own: that is waited for.
pub fn try_lock(file: &File) -> Result<(), TryLockError> {
    let mut tries = 20;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if tries > 0 => tries -= 1,
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file or a block device, locked against others as long as it is open.
#[derive(Debug)]
pub struct FileStore(File);

impl FileStore {
    /// Takes an open file and locks it.
    pub fn new(file: File) -> Result<Self, DiskError> {
        match try_lock(&file) {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(DiskError::Busy),
            Err(TryLockError::Error(error)) => Err(DiskError::storage("locking")(error)),
        }
    }
}

impl Store for FileStore {
    /// By seeking: the metadata of a block device says nothing of its size.
    fn len(&self) -> io::Result<u64> {
        io::Seek::seek(&mut &self.0, io::SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Storage in memory, for tests and benchmarks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStore(pub Vec<u8>);

impl MemoryStore {
    /// `len` zero bytes.
    pub fn zeroed(len: u64) -> Self {
        Self(vec![0; usize::try_from(len).unwrap_or(usize::MAX)])
    }
}

impl Store for MemoryStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = range(offset, buffer.len())?;
        buffer.copy_from_slice(self.0.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let range = range(offset, bytes.len())?;
        self.0.get_mut(range).ok_or(io::ErrorKind::StorageFull)?.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn range(offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
