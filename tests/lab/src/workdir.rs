//! The one folder everything of a lab lives in.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

use crate::guard;

/// A temporary folder; removed when dropped, after a panic too, unless `keep` was called or `COFFER_KEEP` is set: keys
/// and a TPM's state are in it.
pub struct Workdir {
    path: PathBuf,
    keep: AtomicBool,
}

impl Workdir {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("coffer-lab.")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let path = folder.keep();
        let keep = std::env::var_os("COFFER_KEEP").is_some();
        if !keep {
            guard::own(&path)?;
        }
        Ok(Self { path, keep: AtomicBool::new(keep) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make `{}`", path.display()))?;
        Ok(path)
    }

    /// Somebody will want to look at it.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("COFFER_KEEP=1 keeps the lab's files of a run that fails");
        }
        if self.keep.load(Ordering::Relaxed) {
            eprintln!("the lab's files are kept in `{}`", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove `{}`: {error}", self.path.display());
        }
        guard::leave(&self.path);
    }
}
