//! The disk that a lab host's vault lies on, in the hands of who owns the storage: copied, put back, and carried over.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::process;

const LIMIT: Duration = Duration::from_secs(60);

/// A disk image with a file system, used by one host at a time.
pub struct VaultDisk(PathBuf);

impl VaultDisk {
    /// Makes one, empty, of a size such as `512M`.
    pub fn format(path: &Path, size: &str) -> Result<Self> {
        let said =
            process::run(Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg(path).arg(size), LIMIT)?;
        ensure!(said.ok, "mkfs.ext4 failed: {}", said.err);
        Ok(Self(path.to_path_buf()))
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Another disk, beside this one, with what is on it now.
    pub fn copy(&self, name: &str) -> Result<Self> {
        let copy = self.0.with_file_name(name);
        let said =
            process::run(Command::new("cp").arg("--sparse=always").arg(&self.0).arg(&copy), LIMIT)?;
        ensure!(said.ok, "cp failed: {}", said.err);
        Ok(Self(copy))
    }

    /// Puts the file of a volume back as it is on a copy from earlier.
    pub fn put_back(&self, volume_id: &str, from: &Self) -> Result<()> {
        let (name, file) = (format!("{volume_id}.disk"), self.0.with_extension("file"));
        from.settle()?;
        self.settle()?;
        from.debugfs(&format!("dump /vault/volumes/{name} {}\n", file.display()))?;
        self.replace(&name, &file)
    }

    /// Changes one byte of a block of a volume's file.
    pub fn damage(&self, volume_id: &str, block: usize) -> Result<()> {
        let (name, file) = (format!("{volume_id}.disk"), self.0.with_extension("file"));
        self.settle()?;
        self.debugfs(&format!("dump /vault/volumes/{name} {}\n", file.display()))?;
        let mut bytes = std::fs::read(&file)?;
        let byte = bytes.get_mut(block * coffer_disk::BLOCK).context("no such block")?;
        *byte ^= 1;
        std::fs::write(&file, bytes)?;
        self.replace(&name, &file)
    }

    /// Puts a symbolic link in the place of a volume's file.
    pub fn link(&self, volume_id: &str, target: &str) -> Result<()> {
        let name = format!("{volume_id}.disk");
        self.settle()?;
        self.debugfs(&format!("cd /vault/volumes\nrm {name}\nsymlink {name} {target}\n"))
    }

    fn replace(&self, name: &str, file: &Path) -> Result<()> {
        self.debugfs(&format!("cd /vault/volumes\nrm {name}\nwrite {} {name}\n", file.display()))
    }

    /// A host that was switched off leaves its journal to be read; that is no error (e2fsck(8): 1 is "corrected").
    fn settle(&self) -> Result<()> {
        let said = process::run(Command::new("/usr/sbin/e2fsck").arg("-fy").arg(&self.0), LIMIT)?;
        ensure!(matches!(said.code, Some(0 | 1)), "e2fsck failed: {}{}", said.out, said.err);
        Ok(())
    }

    fn debugfs(&self, commands: &str) -> Result<()> {
        let script = self.0.with_extension("debugfs");
        std::fs::write(&script, commands)?;
        let mut debugfs = Command::new("/usr/sbin/debugfs");
        let said = process::run(debugfs.arg("-w").arg("-f").arg(&script).arg(&self.0), LIMIT)?;
        ensure!(said.ok && !said.err.contains("File not found"), "debugfs: {}", said.err);
        Ok(())
    }
}
