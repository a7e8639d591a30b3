//! Keys that sign images, and signing one (SPEC 3.9).
//!
//! The signature goes into `index.json`, which has no say in what the image is: blobs and image ID stay as they
//! are. Only folders are signed; a tar is made of the folder afterwards.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use coffer_formats::Digest;
use coffer_image::layout::{Layout, LayoutError};
use coffer_image::signature::{self, SignatureError, Signer};
use p256::ecdsa::{Signature, SigningKey, signature::Signer as _};
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use serde::Serialize;
use serde_json::Value;
use zeroize::Zeroizing;

/// Most bytes of a key file: some twenty times a P-256 key in PEM.
const KEY_MAX: u64 = 4 << 10;

/// Why there is no key, or no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The image cannot be opened.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// It is no folder.
    #[error("`{0}` is not a folder, and only images in folders are signed")]
    NotAFolder(PathBuf),
    /// It has another signer's signature, or one that does not count.
    #[error("the image is already signed, by {by}")]
    Signed {
        /// By whom.
        by: String,
    },
    /// There is a file where the key is to go.
    #[error("`{0}` exists already")]
    Exists(PathBuf),
    /// The key file holds something else.
    #[error("`{0}` is not a P-256 private key in PEM (PKCS#8)")]
    NotAKey(PathBuf),
    /// The system gives no randomness.
    #[error("the system gives no random bytes")]
    Randomness,
    /// Reading or writing failed.
    #[error("cannot {doing} `{path}`: {source}")]
    File {
        /// What was done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl SignError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Layout(error) => error.hint(),
            Self::NotAFolder(_) => "unpack the tar with `tar -xf`, and sign the folder",
            Self::Signed { .. } => "replace its signature with --force",
            Self::Exists(_) => "choose another file: a key that is replaced is lost",
            Self::NotAKey(_) => {
                "make one with `coffer image keygen`, or convert it with `openssl pkcs8 -topk8 -nocrypt`"
            }
            Self::Randomness => "run it again when the system has started",
            Self::File { .. } => "check the path, its permissions and free space",
        }
    }
}

/// A signed image.
#[derive(Debug, Clone, Serialize)]
pub struct Signed {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of the descriptor, as before.
    pub image_id: Digest,
    /// SHA-256 of the key's point.
    pub signer: Digest,
}

/// Signs images. Its public half is what policies call a signer.
pub struct ImageKey(SigningKey);

impl ImageKey {
    /// A new one.
    pub fn generate() -> Result<Self, SignError> {
        loop {
            let mut bytes = Zeroizing::new([0; 32]);
            fill(bytes.as_mut_slice())?;
            // A random scalar is out of range once in 2^32 tries.
            if let Ok(key) = SigningKey::from_slice(bytes.as_slice()) {
                return Ok(Self(key));
            }
        }
    }

    /// Reads PEM.
    pub fn read(path: &Path) -> Result<Self, SignError> {
        let mut text = Zeroizing::new(String::new());
        let file = File::open(path).map_err(failed("read", path))?;
        match file.take(KEY_MAX).read_to_string(&mut text) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                return Err(failed("read", path)(error));
            }
            _ => {}
        }
        let key = SigningKey::from_pkcs8_pem(&text);
        key.map(Self).map_err(|_| SignError::NotAKey(path.into()))
    }

    /// Writes it to a new file that only its owner may read.
    pub fn write_new(&self, path: &Path) -> Result<(), SignError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        let pem = pem.map_err(|_| SignError::NotAKey(path.into()))?;
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => SignError::Exists(path.into()),
            _ => failed("create", path)(error),
        })?;
        let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| {
            // Half a key is no key; the error that is told is the first.
            let _ = fs::remove_file(path);
            failed("write", path)(error)
        })
    }

    /// Who signs with it.
    pub fn signer(&self) -> Signer {
        Signer::of(self.0.verifying_key())
    }

    /// Signs the image at `path`. A signature by somebody else is replaced under `force` only.
    pub fn sign(&self, path: &Path, force: bool) -> Result<Signed, SignError> {
        if fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
            return Err(SignError::NotAFolder(path.into()));
        }
        let layout = Layout::open(path)?;
        let signed_by = match layout.signer() {
            Ok(Some(signer)) if signer != self.signer() => Some(signer.digest().to_string()),
            Ok(_) => None,
            Err(error) => Some(unknown(error)),
        };
        if let Some(by) = signed_by.filter(|_| !force) {
            return Err(SignError::Signed { by });
        }
        // RFC 6979: the same key and image give the same bytes.
        let image_id = layout.image_id();
        let signature: Signature = self.0.sign(&signature::signed_bytes(&image_id));
        let index = path.join("index.json");
        let annotated = annotate(&fs::read(&index).map_err(failed("read", &index))?, |into| {
            for (name, value) in signature::annotations(self.0.verifying_key(), &signature) {
                into.insert(name.into(), value.into());
            }
        });
        // It was opened as a layout above; who changes it meanwhile gets an error and keeps the change.
        let annotated = annotated.ok_or_else(|| LayoutError::NotALayout(path.into()))?;
        replace(&index, &annotated).map_err(failed("write", &index))?;
        let found = Layout::open(path)?;
        match found.signer().map_err(LayoutError::from)? {
            Some(signer) if signer == self.signer() && found.image_id() == image_id => {
                Ok(Signed { path: path.into(), image_id, signer: signer.digest() })
            }
            _ => Err(LayoutError::from(SignatureError::Wrong).into()),
        }
    }
}

fn unknown(error: SignatureError) -> String {
    format!("nobody known ({error})")
}

/// `index.json` with the annotations of its one entry changed; what else is in it stays.
fn annotate(
    index: &[u8],
    change: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> Option<Vec<u8>> {
    let mut index: Value = serde_json::from_slice(index).ok()?;
    let entry = index.get_mut("manifests")?.get_mut(0)?.as_object_mut()?;
    change(
        entry
            .entry("annotations")
            .or_insert_with(|| Value::Object(Default::default()))
            .as_object_mut()?,
    );
    serde_json::to_vec(&index).ok()
}

/// Writes a file beside the old one and renames it there.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(fs::metadata(path)?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(parent)?.sync_all()
}

fn fill(bytes: &mut [u8]) -> Result<(), SignError> {
    let mut left = bytes;
    while !left.is_empty() {
        let flags = rustix::rand::GetRandomFlags::empty();
        let count =
            rustix::rand::getrandom(&mut *left, flags).map_err(|_| SignError::Randomness)?;
        left = left.get_mut(count..).unwrap_or_default();
    }
    Ok(())
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SignError {
    let path = path.to_owned();
    move |source| SignError::File { doing, path, source }
}
