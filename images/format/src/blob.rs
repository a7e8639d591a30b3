//! An open blob: bytes of known size somewhere in an open file, and reading at an offset.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use coffer_formats::Digest;
use sha2::{Digest as _, Sha256};

/// Reading at an offset, without a position that threads would share.
pub trait ReadAt {
    /// Fills `buffer` from `offset` on, or fails with `UnexpectedEof` if the bytes end before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let bytes = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// A blob of an image. Its size was compared with the descriptor; its content was not looked at yet.
#[derive(Debug)]
pub struct Blob {
    file: File,
    start: u64,
    size: u64,
}

impl Blob {
    /// `size` bytes of `file` from `start` on.
    pub fn new(file: File, start: u64, size: u64) -> Self {
        Self { file, start, size }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file and where the blob starts in it: 0 in a folder, elsewhere in a tar.
    pub fn into_file(self) -> (File, u64) {
        (self.file, self.start)
    }

    /// The same, lent.
    pub fn file(&self) -> (&File, u64) {
        (&self.file, self.start)
    }

    /// Reads it from the begin, whatever was read before.
    pub fn reader(&self) -> BlobReader<'_> {
        BlobReader { blob: self, position: 0 }
    }

    /// All bytes. The caller has judged the size.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// SHA-256 of all bytes.
    pub fn digest(&self) -> io::Result<Digest> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0_u8; 1 << 18];
        let mut offset = 0;
        while offset < self.size {
            let count = (self.size - offset).min(buffer.len() as u64) as usize;
            let (part, _) = buffer.split_at_mut(count);
            self.read_exact_at(part, offset)?;
            hash.update(part);
            offset += count as u64;
        }
        Ok(Digest(hash.finalize().into()))
    }
}

impl ReadAt for Blob {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let start = self.start.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, start)
    }
}

/// A [`Blob`] read from front to back.
#[derive(Debug)]
pub struct BlobReader<'a> {
    blob: &'a Blob,
    position: u64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size - self.position;
        let count = left.min(buffer.len() as u64) as usize;
        let (part, _) = buffer.split_at_mut(count);
        let read = self.blob.file.read_at(part, self.blob.start.saturating_add(self.position))?;
        self.position += read as u64;
        Ok(read)
    }
}
