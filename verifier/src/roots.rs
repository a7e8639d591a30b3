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
        Err(RootsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(vec![])
        }
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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
        KeyIdMethod, KeyPair, SerialNumber,
    };
    use tempfile::TempDir;

    use super::*;

    /// A data folder, two authorities as PEM, and a CRL by the first.
    struct Scene {
        folder: TempDir,
        dir: DataDir,
        authorities: [String; 2],
        crl: rcgen::CertificateRevocationList,
    }

    impl Scene {
        fn new() -> Self {
            let folder = TempDir::new().unwrap();
            let dir = DataDir::new(folder.path());
            fs::create_dir_all(dir.dangerous_software_ek_roots()).unwrap();
            let authority = |name: &str| {
                let mut params = CertificateParams::default();
                params.distinguished_name.push(DnType::CommonName, name);
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                (params, KeyPair::generate().unwrap())
            };
            let (first, second) = (authority("one"), authority("two"));
            let now = time::OffsetDateTime::UNIX_EPOCH;
            let list = CertificateRevocationListParams {
                this_update: now,
                next_update: now + time::Duration::days(1),
                crl_number: SerialNumber::from(1u64),
                issuing_distribution_point: None,
                revoked_certs: vec![],
                key_identifier_method: KeyIdMethod::Sha256,
            };
            let crl = list.signed_by(&Issuer::from_params(&first.0, &first.1)).unwrap();
            let authorities =
                [first, second].map(|(params, key)| params.self_signed(&key).unwrap().pem());
            Self { folder, dir, authorities, crl }
        }

        fn load(&self) -> Result<Roots, RootsError> {
            load(&self.dir, CrlPolicy::IfPresent)
        }
    }

    #[test]
    fn loads_a_bundle_with_text_between_and_files_beside_it() {
        let scene = Scene::new();
        assert_eq!(scene.load().unwrap().len(), (0, 0), "no folder but the two");
        let [one, two] = &scene.authorities;
        let bundle = format!(
            "##\n## tpm-ca-certificates.pem\n##\n\n#\n# Owner: NTC\n#\n{one}\n# IFX\n{two}"
        );
        fs::write(scene.dir.ek_roots().join("bundle.pem"), bundle).unwrap();
        assert_eq!(scene.load().unwrap().len(), (2, 0));
        // The same authority among the software roots no longer counts as a chip's.
        fs::write(scene.dir.dangerous_software_ek_roots().join("local.pem"), one).unwrap();
        assert_eq!(scene.load().unwrap().len(), (1, 1));

        fs::create_dir(scene.dir.ek_intermediates()).unwrap();
        fs::create_dir(scene.dir.ek_crls()).unwrap();
        fs::write(scene.dir.ek_intermediates().join("two.pem"), two).unwrap();
        fs::write(scene.dir.ek_crls().join("a.crl"), scene.crl.der()).unwrap();
        fs::write(scene.dir.ek_crls().join("b.pem"), scene.crl.pem().unwrap()).unwrap();
        assert_eq!(scene.load().unwrap().len(), (1, 1), "intermediates are no roots");
    }

    #[test]
    fn a_file_that_is_not_what_its_folder_is_for_refuses_the_set() {
        let scene = Scene::new();
        let [one, two] = &scene.authorities;
        let roots = scene.dir.ek_roots();
        let check = |path: PathBuf, content: &[u8]| {
            fs::write(&path, content).unwrap();
            let verdict = scene.load().map(|roots| roots.len());
            fs::remove_file(path).unwrap();
            verdict
        };
        assert!(matches!(check(roots.join("a"), b"text"), Err(RootsError::NotACertificate(_))));
        assert!(matches!(check(roots.join("a"), b""), Err(RootsError::NotACertificate(_))));
        let crl = scene.crl.pem().unwrap();
        assert!(matches!(
            check(roots.join("a"), crl.as_bytes()),
            Err(RootsError::NotACertificate(_))
        ));
        let cut = check(roots.join("a"), &[0x30, 0x82, 1]);
        assert!(matches!(cut, Err(RootsError::Unusable { number: 1, .. })));
        let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let second = check(roots.join("a"), format!("{one}{broken}{two}").as_bytes());
        assert!(matches!(second, Err(RootsError::Unusable { number: 2, .. })));
        let crls = scene.dir.ek_crls();
        fs::create_dir(&crls).unwrap();
        assert!(matches!(check(crls.join("a"), one.as_bytes()), Err(RootsError::NotACrl(_))));
        let cut = check(crls.join("a"), &[0x30, 0x82, 1]);
        assert!(matches!(cut, Err(RootsError::Unusable { reject: Reject::CrlUnusable, .. })));
        assert!(matches!(check(crls.join("a"), crl.as_bytes()), Ok((0, 0))));
        assert!(scene.folder.path().exists());
    }
}
