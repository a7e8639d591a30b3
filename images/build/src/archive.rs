//! A newc cpio archive that is the same for the same contents (SPEC 3.3): sorted, owner and time zero,
//! inode numbers in order, every parent directory there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use coffer_formats::Digest;
use cpio::newc::{Builder, ModeFileType};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// Files of an archive, by path without leading `/`.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Node>,
}

#[derive(Debug)]
enum Node {
    Directory { mode: u32 },
    Bytes { mode: u32, bytes: Vec<u8> },
    Copy { mode: u32, from: PathBuf },
    Link { target: String },
    Device { mode: u32, major: u32, minor: u32 },
}

/// Why an archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a path an archive can hold.
    #[error("`{0}` cannot be a path in an initrd")]
    Path(String),
    /// Two different things under one path.
    #[error("`{0}` is to be two things in the initrd")]
    Twice(String),
    /// An input cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The input.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// newc holds files of less than 4 GiB.
    #[error("`{0}` is too large for an initrd")]
    TooLarge(String),
    /// Writing failed.
    #[error("cannot write the initrd: {0}")]
    Write(#[source] io::Error),
}

/// Size and digest of a written archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SealedArchive {
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub digest: Digest,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; parents are added by themselves, mode 0755.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), ArchiveError> {
        self.insert(path, Node::Directory { mode })
    }

    /// Adds a file with these bytes.
    pub fn bytes(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        self.insert(path, Node::Bytes { mode, bytes })
    }

    /// Adds a file that is read when the archive is written.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<(), ArchiveError> {
        self.insert(path, Node::Copy { mode, from: from.into() })
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        self.insert(path, Node::Link { target: target.into() })
    }

    /// Adds a character device.
    pub fn device(
        &mut self,
        path: &str,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> Result<(), ArchiveError> {
        self.insert(path, Node::Device { mode, major, minor })
    }

    /// Writes it all.
    pub fn write(&self, out: &mut dyn Write) -> Result<SealedArchive, ArchiveError> {
        let mut out = Hashing { out, hash: Sha256::new(), size: 0 };
        for (ino, (path, node)) in (1..).zip(&self.entries) {
            node.write(path, ino, &mut out)?;
        }
        cpio::newc::trailer(&mut out).map_err(ArchiveError::Write)?;
        out.flush().map_err(ArchiveError::Write)?;
        Ok(SealedArchive { size: out.size, digest: Digest(out.hash.finalize().into()) })
    }

    /// Writes it to a file that must not exist; on failure there is none.
    pub fn write_new(&self, path: &Path) -> Result<SealedArchive, ArchiveError> {
        let mut out =
            BufWriter::with_capacity(1 << 20, File::create_new(path).map_err(ArchiveError::Write)?);
        let result = self.write(&mut out);
        drop(out);
        if result.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(path);
        }
        result
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<(), ArchiveError> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let plain =
            |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !path.split('/').all(plain) || path == TRAILER {
            return Err(ArchiveError::Path(path.into()));
        }
        for (end, _) in path.match_indices('/') {
            let (parent, _) = path.split_at(end);
            match self.entries.get(parent) {
                None => drop(self.entries.insert(parent.into(), Node::Directory { mode: 0o755 })),
                Some(Node::Directory { .. }) => {}
                Some(_) => return Err(ArchiveError::Twice(parent.into())),
            }
        }
        match (self.entries.get(path), &node) {
            // A parent that was added by itself gets the mode asked for.
            (None, _) | (Some(Node::Directory { .. }), Node::Directory { .. }) => {
                self.entries.insert(path.into(), node);
                Ok(())
            }
            (Some(Node::Copy { from: one, .. }), Node::Copy { from: other, .. })
                if one == other =>
            {
                Ok(())
            }
            _ => Err(ArchiveError::Twice(path.into())),
        }
    }
}

/// The name that ends a cpio archive.
pub(crate) const TRAILER: &str = "TRAILER!!!";

impl Node {
    fn write(&self, path: &str, ino: u32, out: &mut Hashing<'_>) -> Result<(), ArchiveError> {
        let entry = |kind: ModeFileType, mode: u32| {
            Builder::new(path).ino(ino).mode(mode & 0o7777).set_mode_file_type(kind)
        };
        match self {
            Self::Directory { mode } => {
                put(path, entry(ModeFileType::Directory, *mode).nlink(2), &mut io::empty(), 0, out)
            }
            Self::Bytes { mode, bytes } => {
                let length = bytes.len() as u64;
                put(path, entry(ModeFileType::Regular, *mode), &mut bytes.as_slice(), length, out)
            }
            Self::Copy { mode, from } => {
                let fail = |source| ArchiveError::Read { path: from.clone(), source };
                let mut file = File::open(from).map_err(fail)?;
                let length = file.metadata().map_err(fail)?.len();
                put(path, entry(ModeFileType::Regular, *mode), &mut file, length, out)
            }
            Self::Device { mode, major, minor } => {
                let device = entry(ModeFileType::Char, *mode).rdev_major(*major).rdev_minor(*minor);
                put(path, device, &mut io::empty(), 0, out)
            }
            Self::Link { target } => {
                let length = target.len() as u64;
                put(path, entry(ModeFileType::Symlink, 0o777), &mut target.as_bytes(), length, out)
            }
        }
    }
}

fn put(
    path: &str,
    entry: Builder,
    from: &mut dyn io::Read,
    length: u64,
    out: &mut Hashing<'_>,
) -> Result<(), ArchiveError> {
    let size = u32::try_from(length).map_err(|_| ArchiveError::TooLarge(path.into()))?;
    let mut writer = entry.write(out, size);
    // A file that grew meanwhile is cut, one that shrank fails.
    let copied =
        io::copy(&mut io::Read::take(from, length), &mut writer).map_err(ArchiveError::Write)?;
    if copied != length {
        let source = io::ErrorKind::UnexpectedEof.into();
        return Err(ArchiveError::Read { path: path.into(), source });
    }
    writer.finish().map_err(ArchiveError::Write)?;
    Ok(())
}

/// Counts and hashes what passes.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
