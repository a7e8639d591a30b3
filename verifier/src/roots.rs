//! Loads what EK certificate chains are judged by: roots, intermediates and CRLs, PEM or DER files in folders.
//!
//! Which folder a root lies in is the operator's statement about it; a software root never counts as a chip's.
//! PEM files may hold any number of certificates with text between them, as the published bundles of all
//! makers do. A file that does not hold what its folder is for refuses the whole set: a root that silently is
//! not there shows only as hosts that cannot enrol, and a CRL that is not, not at all. Nothing is fetched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{CrlPolicy, Roots};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use crate::data_dir::DataDir;

/// Most bytes of one file: a bundle of all known makers is below 1 MiB, and so are their CRLs.
const FILE_MAX: u64 = 8 << 20;

/// A root, an intermediate or a CRL could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("`{0}` is neither a PEM nor a DER certificate")]
    NotACertificate(PathBuf),
    /// The file holds no CRL.
    #[error("`{0}` is neither a PEM nor a DER revocation list")]
    NotACrl(PathBuf),
    /// The file holds one that this build cannot judge by.
    #[error("number {number} in `{path}` is not acceptable: {reject}")]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Which, from 1.
        number: usize,
        /// Why.
        reject: Reject,
    },
}

/// Reads all four folders. Those for intermediates and CRLs may be missing.
pub(crate) fn load(dir: &DataDir, crl_policy: CrlPolicy) -> Result<Roots, RootsError> {
    let mut roots = Roots::new();
    roots.set_crl_policy(crl_policy);
    for path in files(&dir.ek_roots())? {
        add(&path, certificates(&path)?, |der| roots.add_hardware(der))?;
    }
    for path in files(&dir.dangerous_software_ek_roots())? {
        add(&path, certificates(&path)?, |der| roots.add_dangerous_software(der))?;
    }
    for path in optional_files(&dir.ek_intermediates())? {
        add(&path, certificates(&path)?, |der| roots.add_intermediate(der))?;
    }
    for path in optional_files(&dir.ek_crls())? {
        add(&path, crls(&path)?, |der| roots.add_crl(der))?;
    }
    Ok(roots)
}

fn add(
    path: &Path,
    ders: Vec<Vec<u8>>,
    mut add: impl FnMut(&[u8]) -> Result<(), Reject>,
) -> Result<(), RootsError> {
    for (n, der) in ders.iter().enumerate() {
        add(der).map_err(|reject| RootsError::Unusable {
            path: path.to_owned(),
            number: n + 1,
            reject,
        })?;
    }
    Ok(())
}

/// Files of a folder that need not be there: data folders of the first version lack it.
fn optional_files(folder: &Path) -> Result<Vec<PathBuf>, RootsError> {
    match files(folder) {
        Err(RootsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        other => other,
    }
}

/// Files of a folder, in the order of their names, so that an error is the same each time.
fn files(folder: &Path) -> Result<Vec<PathBuf>, RootsError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if fs::metadata(&path).map_err(io_error(&path))?.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, RootsError> {
    let found = |pem: &[u8]| {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        found.ok().map(|all| all.iter().map(|der| der.to_vec()).collect())
    };
    read(path, found)?.ok_or_else(|| RootsError::NotACertificate(path.to_owned()))
}

fn crls(path: &Path) -> Result<Vec<Vec<u8>>, RootsError> {
    let found = |pem: &[u8]| {
        let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
        found.ok().map(|all| all.iter().map(|der| der.to_vec()).collect())
    };
    read(path, found)?.ok_or_else(|| RootsError::NotACrl(path.to_owned()))
}

/// What a file holds, DER or by `pem`; `None` if nothing.
fn read(
    path: &Path,
    pem: impl FnOnce(&[u8]) -> Option<Vec<Vec<u8>>>,
) -> Result<Option<Vec<Vec<u8>>>, RootsError> {
    const DER_SEQUENCE: u8 = 0x30;
    let size = fs::metadata(path).map_err(io_error(path))?.len();
    if size > FILE_MAX {
        return Ok(None);
    }
    let bytes = fs::read(path).map_err(io_error(path))?;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(Some(vec![bytes]));
    }
    Ok(pem(&bytes).filter(|found| !found.is_empty()))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RootsError {
    let path = path.to_owned();
    move |source| RootsError::Io { path, source }
}
