//! The data folder: which file holds what, and how files with keys are written.
//!
//! The folder is 0700 and every file with a key is created 0600 before a byte is in it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Paths in a verifier's data folder.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

macro_rules! files {
    ($( $(#[$doc:meta])* $name:ident = $file:literal; )*) => {
        impl DataDir {
            $( $(#[$doc])* pub fn $name(&self) -> PathBuf { self.0.join($file) } )*
        }
    };
}

files! {
    /// Settings made at `init`: URL and names.
    settings = "verifier.json";
    /// CA certificate, PEM; pinned in images.
    ca_certificate = "ca.pem";
    /// CA key, PEM.
    ca_key = "ca.key";
    /// Server certificate, PEM.
    tls_certificate = "tls.pem";
    /// Server key, PEM.
    tls_key = "tls.key";
    /// Release-signing key, 32 bytes.
    release_key = "release.key";
    /// Key that encrypts secrets at rest, 32 bytes.
    at_rest_key = "at-rest.key";
    /// The admin token in clear, for the operator to move away.
    admin_token = "admin-token";
    /// SHA-256 of the admin token; all the service needs.
    admin_token_hash = "admin-token.sha256";
    /// The database.
    database = "verifier.db";
    /// TPM firmware versions that are refused, one in hex a line; need not exist.
    revoked_tpm_firmware = "revoked-tpm-firmware";
    /// EK roots of TPM makers: PEM or DER files.
    ek_roots = "ek-roots";
    /// EK roots of software TPMs: PEM or DER files.
    dangerous_software_ek_roots = "ek-roots/dangerous-software";
}

impl DataDir {
    /// The folder at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Creates a folder only its owner may enter.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)
}

/// Creates a file that must not exist, readable by its owner only, and flushes it to disk.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(path, 0o600, bytes)
}

/// Creates a file that must not exist, readable by anybody who may enter the folder.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_new(path, 0o644, bytes)
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
