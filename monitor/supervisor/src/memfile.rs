//! Copies a file into sealed memory while hashing: what was hashed is what is loaded (SPEC 6.5).
//!
//! The copy has no name, and the seals keep everybody, ourselves included, from changing it afterwards. A
//! file that changes on disk meanwhile, or after, changes nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use coffer_formats::Digest;
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest as _, Sha256};

/// Bytes copied at once: enough to make system calls cheap, small enough for the second-level cache.
const CHUNK: usize = 128 << 10;

/// A sealed copy.
#[derive(Debug)]
pub struct MemFile {
    file: File,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the copy.
    pub digest: Digest,
}

impl MemFile {
    /// Copies all of `from`. `name` shows up in `/proc` alone.
    pub fn copy(name: &str, mut from: impl Read) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create(name, flags)?);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut size = 0;
        loop {
            let n = match from.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let chunk = buffer.get(..n).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            hash.update(chunk);
            file.write_all(chunk)?;
            size += chunk.len() as u64;
        }
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(Self { file, size, digest: Digest(hash.finalize().into()) })
    }
}

impl AsFd for MemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn hashes_what_it_holds_and_lets_nobody_change_it() {
        let bytes: Vec<u8> = (0..CHUNK * 2 + 17).map(|n| n as u8).collect();
        let copy = MemFile::copy("kernel", bytes.as_slice()).unwrap();
        assert_eq!((copy.digest, copy.size), (Digest::of(&[&bytes]), bytes.len() as u64));
        assert!(copy.file.write_at(b"x", 0).is_err());
        assert!(copy.file.set_len(0).is_err());
        let mut read = vec![0; bytes.len()];
        copy.file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, bytes);
    }
}
