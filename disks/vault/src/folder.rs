//! The vault's folder: files written whole or not at all, and a lock (SPEC 11.14.3).
//!
//! Each step that is to be on the medium before the next goes through [`Steps`], where a test can cut it off.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    path: PathBuf,
    lock: File,
    steps: Steps,
}

impl Folder {
    /// Makes the folder if it is not there, and locks it.
    pub(crate) fn open(path: &Path, steps: Steps) -> Result<Self, VaultError> {
        let failed = |source| VaultError::Storage { doing: "opening the vault's folder", source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path.join(VOLUMES)).map_err(failed)?;
        let lock = File::open(path).map_err(failed)?;
        match coffer_disk::try_lock(&lock) {
            Ok(()) => Ok(Self { path: path.to_owned(), lock, steps }),
            Err(TryLockError::WouldBlock) => Err(VaultError::Busy),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn steps(&self) -> &Steps {
        &self.steps
    }

    /// A step that is none of the folder's.
    pub(crate) fn step(&self) -> Result<(), VaultError> {
        (self.steps)().map_err(VaultError::storage("a step"))
    }

    pub(crate) fn has(&self, name: &str) -> Result<bool, VaultError> {
        self.path(name).try_exists().map_err(VaultError::storage("looking for a file"))
    }

    /// A small file; none if there is none.
    pub(crate) fn read(
        &self,
        name: &'static str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let file = match File::open(self.path(name)) {
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
        let (path, new) = (self.path(name), self.path(&format!("{name}.new")));
        let written = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            (self.steps)()?;
            fs::rename(&new, &path)?;
            self.lock.sync_all()
        };
        written().map_err(VaultError::storage("writing a file"))
    }

    /// Renames a file, over one that may be there.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), VaultError> {
        self.step()?;
        fs::rename(self.path(from), self.path(to))
            .and_then(|()| self.sync())
            .map_err(VaultError::storage("renaming a file"))
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), VaultError> {
        self.step()?;
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => {
                other.and_then(|()| self.sync()).map_err(VaultError::storage("removing a file"))
            }
        }
    }

    /// A new file to read and write.
    pub(crate) fn create(&self, name: &str) -> Result<File, VaultError> {
        self.step()?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600);
        let file = file.open(self.path(name)).map_err(VaultError::storage("making a file"))?;
        self.sync().map_err(VaultError::storage("making a file"))?;
        Ok(file)
    }

    /// What is in `volumes` with this ending, without it.
    pub(crate) fn volume_files(&self, ending: &str) -> Result<Vec<String>, VaultError> {
        let listed = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(self.path(VOLUMES))?;
            let names = entries.map(|entry| Ok(entry?.file_name().into_string()));
            let names = names.collect::<io::Result<Vec<_>>>()?;
            let stems = names.into_iter().flatten();
            Ok(stems.filter_map(|name| Some(name.strip_suffix(ending)?.to_owned())).collect())
        };
        listed().map_err(VaultError::storage("listing the volumes' files"))
    }

    fn sync(&self) -> io::Result<()> {
        self.lock.sync_all()?;
        File::open(self.path(VOLUMES))?.sync_all()
    }
}
