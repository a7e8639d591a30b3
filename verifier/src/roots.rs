//! Loads the roots that EK certificate chains may end in: PEM or DER files in two folders.
//!
//! Which folder a root lies in is the operator's statement about it; a software root never counts as a chip's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coffer_attestation::endorsement::Roots;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::data_dir::DataDir;

/// Most bytes of one file: a bundle of all known makers is about 1 MiB.
const FILE_MAX: u64 = 8 << 20;

/// A root could not be loaded.
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
}

/// Reads both folders. A file that is not a certificate refuses the whole set: a root that silently is not
/// there shows only as hosts that cannot enrol.
pub(crate) fn load(dir: &DataDir) -> Result<Roots, RootsError> {
    Ok(Roots {
        hardware: load_folder(&dir.ek_roots())?,
        dangerous_software: load_folder(&dir.dangerous_software_ek_roots())?,
    })
}

fn load_folder(folder: &Path) -> Result<Vec<Vec<u8>>, RootsError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| RootsError::Io { path, source }
    };
    let mut roots = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        let metadata = fs::metadata(&path).map_err(io_error(&path))?;
        if !metadata.is_file() {
            continue;
        }
        if metadata.len() > FILE_MAX {
            return Err(RootsError::NotACertificate(path));
        }
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        roots.extend(certificates(&bytes).ok_or(RootsError::NotACertificate(path))?);
    }
    Ok(roots)
}

fn certificates(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Some(vec![bytes.to_vec()]);
    }
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = found.ok().filter(|found| !found.is_empty())?;
    Some(found.into_iter().map(|der| der.as_ref().to_vec()).collect())
}
