//! Where things are in the checkout. Everything made here is below `target/` or `.coffer/`, both ignored by git.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Target triple of what runs inside a guest, linked statically.
pub const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The checkout.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout this program was built from.
    pub fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .filter(|root| root.join("Cargo.toml").is_file())
            .context("cannot find the checkout; start it as `cargo xtask` inside it")?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// Top folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Downloads and what was unpacked from them.
    pub fn cache(&self) -> PathBuf {
        self.root.join(".coffer/cache")
    }

    /// A program of the release build.
    pub fn program(&self, name: &str) -> PathBuf {
        self.target().join("release").join(name)
    }

    fn target(&self) -> PathBuf {
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }
}
