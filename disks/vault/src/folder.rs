//! The vault's folder: files written whole or not at all, and a lock (SPEC 11.14.3).
//!
//! Whoever owns the storage puts there what he likes. So all is reached from the folder as it was opened, by names without
//! folders in them; no symbolic link is followed, no FIFO waited for, and what is no regular file is refused.
//!
//! Each step that is to be on the medium before the next goes through [`Steps`], where a test can cut it off.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::key_file::FILE_MAX;

/// Asked before each step that reaches the medium or the TPM; an error is the power cut before it.
pub(crate) type Steps = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// The key file of a vault.
pub(crate) const KEY: &str = "vault.key";
/// The same, sealed to registers as they will be.
pub(crate) const NEXT: &str = "vault.next";
/// The key file of a vault that is being made.
pub(crate) const MAKING: &str = "vault.making";
/// The disk's id, in hex.
pub(crate) const ID: &str = "vault.id";
/// The disk.
pub(crate) const DISK: &str = "vault.disk";
/// The counter of a vault without a TPM.
pub(crate) const COUNTER: &str = "vault.counter";
/// The files of the volumes.
pub(crate) const VOLUMES: &str = "volumes";

/// A folder, locked.
pub(crate) struct Folder {
    /// The folder itself, locked.
    root: File,
    volumes: File,
    steps: Steps,
}

impl Folder {
    /// Makes the folder if it is not there, and locks it.
    pub(crate) fn open(path: &Path, steps: Steps) -> Result<Self, VaultError> {
        let failed = |source| VaultError::Storage { doing: "opening the vault's folder", source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let (root, volumes) = folders(path).map_err(failed)?;
        match coffer_disk::try_lock(&root) {
            Ok(()) => Ok(Self { root, volumes, steps }),
            Err(TryLockError::WouldBlock) => Err(VaultError::Busy),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Opens a file.
    pub(crate) fn file(&self, name: &str, access: OFlags) -> io::Result<File> {
        self.regular(name, access).map_err(|error| {
            let named = format!("`{name}`: {error}");
            io::Error::new(error.kind(), named)
        })
    }

    fn regular(&self, name: &str, access: OFlags) -> io::Result<File> {
        let (folder, name) = self.place(name);
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match rustix::io::retry_on_intr(open) {
            // A link; a FIFO that nobody reads, or a socket; a folder.
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Err(no_file()),
            opened => File::from(opened?),
        };
        if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
    }

    /// The folder that a name is in, and what it is called there.
    fn place<'a>(&self, name: &'a str) -> (&File, &'a str) {
        match name.strip_prefix(VOLUMES).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) => (&self.volumes, rest),
            None => (&self.root, name),
        }
    }

    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// A step that is none of the folder's.
    pub(crate) fn step(&self) -> Result<(), VaultError> {
        (self.steps)().map_err(VaultError::storage("a step"))
    }

    pub(crate) fn has(&self, name: &str) -> Result<bool, VaultError> {
        let (folder, name) = self.place(name);
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(false),
            found => found
                .map(|_| true)
                .map_err(|error| VaultError::storage("looking for a file")(error.into())),
        }
    }

    /// A small file; none if there is none.
    pub(crate) fn read(
        &self,
        name: &'static str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let file = match self.file(name, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(VaultError::storage("opening a file"))?,
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_MAX as usize + 1));
        let read = file.take(FILE_MAX + 1).read_to_end(&mut bytes);
        match read.map_err(VaultError::storage("reading a file"))? as u64 {
            0..=FILE_MAX => Ok(Some(bytes)),
            _ => Err(VaultError::KeyFile(name)),
        }
    }

    /// Writes a small file: whole, or what was there before stays.
    pub(crate) fn write(&self, name: &'static str, bytes: &[u8]) -> Result<(), VaultError> {
        self.step()?;
        let new = format!("{name}.new");
        let written = || -> io::Result<()> {
            let mut file = self.file(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            (self.steps)()?;
            rustix::fs::renameat(&self.root, &*new, &self.root, name)?;
            self.root.sync_all()
        };
        written().map_err(VaultError::storage("writing a file"))
    }

    /// Renames a file, over one that may be there.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), VaultError> {
        self.step()?;
        let ((from_folder, from), (to_folder, to)) = (self.place(from), self.place(to));
        rustix::fs::renameat(from_folder, from, to_folder, to)
            .map_err(io::Error::from)
            .and_then(|()| self.sync())
            .map_err(VaultError::storage("renaming a file"))
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VaultError> {
        self.step()?;
        let (folder, name) = self.place(name);
        let unlink = |flags| match rustix::fs::unlinkat(folder, name, flags) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        };
        let removed = match unlink(AtFlags::empty()) {
            // A folder that somebody put there is in nobody's way, and what is in it is not ours to remove.
            Err(Errno::ISDIR) => match unlink(AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY) => Ok(()),
                done => done,
            },
            done => done,
        };
        removed
            .map_err(io::Error::from)
            .and_then(|()| self.sync())
            .map_err(VaultError::storage("removing a file"))
    }

    /// A new file to read and write.
    pub(crate) fn create(&self, name: &str) -> Result<File, VaultError> {
        self.step()?;
        let file = self.file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL);
        let file = file.map_err(VaultError::storage("making a file"))?;
        self.sync().map_err(VaultError::storage("making a file"))?;
        Ok(file)
    }

    /// What is in `volumes` with this ending, without it.
    pub(crate) fn volume_files(&self, ending: &str) -> Result<Vec<String>, VaultError> {
        let listed = || -> io::Result<Vec<String>> {
            let entries = Dir::read_from(&self.volumes)?;
            let names = entries.map(|entry| Ok(entry?.file_name().to_owned().into_string()));
            let names = names.collect::<io::Result<Vec<_>>>()?;
            let stems = names.into_iter().flatten();
            Ok(stems.filter_map(|name| Some(name.strip_suffix(ending)?.to_owned())).collect())
        };
        listed().map_err(VaultError::storage("listing the volumes' files"))
    }

    fn sync(&self) -> io::Result<()> {
        self.root.sync_all()?;
        self.volumes.sync_all()
    }
}

/// The folder, which its path may reach through links but must not be one, and that of the volumes in it.
fn folders(path: &Path) -> io::Result<(File, File)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // A slash at its end would have a link followed.
    let path: std::path::PathBuf = path.components().collect();
    let root = rustix::fs::open(&path, flags, Mode::empty())?;
    match rustix::fs::mkdirat(&root, VOLUMES, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let volumes = rustix::fs::openat(&root, VOLUMES, flags, Mode::empty())?;
    Ok((root.into(), volumes.into()))
}

fn no_file() -> io::Error {
    io::Error::other("it is no regular file")
}
