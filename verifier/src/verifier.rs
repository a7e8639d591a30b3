//! The service's state: store, keys, policies, roots and clock, loaded once at start.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coffer_attestation::Digest;
use coffer_attestation::endorsement::{CrlPolicy, Roots};
use coffer_policies::{LoadError, Policies, Source};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::clock::{Clock, Moment};
use crate::data_dir::DataDir;
use crate::flow::enroll::SESSION_TTL_S;
use crate::init::Settings;
use crate::keys::{AtRest, FileKey, KeyError, ReleaseKey, random};
use crate::roots::{self, RootsError};
use crate::store::{Store, StoreError};
use crate::strangers::Strangers;

/// Flows run at once.
const TURNS: usize = 64;

/// Everything a request may need.
pub(crate) struct Verifier {
    pub(crate) url: String,
    pub(crate) ca_pem: String,
    pub(crate) store: Store,
    pub(crate) policies: Policies,
    pub(crate) release_key: ReleaseKey,
    pub(crate) at_rest: Box<dyn AtRest>,
    pub(crate) admin_token_hash: Digest,
    pub(crate) roots: Roots,
    pub(crate) revoked_firmware: Vec<u64>,
    pub(crate) clock: Arc<dyn Clock>,
    /// This process: whose steady clock a moment is by.
    run: [u8; 16],
    pub(crate) strangers: Strangers,
    /// Turns to work: a request keeps its turn until its work is done, whether or not its peer still waits.
    pub(crate) turns: Arc<Semaphore>,
}

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no data folder there.
    #[error("`{0}` is not a verifier's data folder")]
    NotInitialised(PathBuf),
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Randomness,
    /// A key may be read by others.
    #[error("`{0}` may be read by other users")]
    Exposed(PathBuf),
    /// A file does not hold what `init` wrote.
    #[error("`{0}` is damaged")]
    Damaged(PathBuf),
    /// Another process uses the folder.
    #[error("another verifier runs on `{0}`")]
    InUse(PathBuf),
    /// A policy was not loaded.
    #[error(transparent)]
    Policy(#[from] LoadError),
    /// An EK root, an intermediate or a CRL was not loaded.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// The database cannot be opened.
    #[error("`{path}`: {detail}")]
    Database {
        /// Where.
        path: PathBuf,
        /// Why.
        detail: String,
    },
}

impl OpenError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotInitialised(_) => "make one with `coffer verifier init`",
            Self::Io { .. } => "check that the folder belongs to the user the service runs as",
            Self::Randomness => "check that `/dev/urandom` can be read",
            Self::Exposed(_) => {
                "`chmod 600` it, and consider the key known to whoever could read it"
            }
            Self::Damaged(_) => {
                "restore it from a backup; a new key would not be the one images pin"
            }
            Self::InUse(_) => "stop the other one first",
            Self::Policy(_) => {
                "correct the policy; nothing is released under a policy that does not load"
            }
            Self::Roots(_) => "remove the file, or replace it by what its folder is for",
            Self::Database { .. } => {
                "check permissions and free space; restore the file from a backup if it is damaged"
            }
        }
    }
}

impl Verifier {
    pub(crate) async fn open(
        dir: &DataDir,
        policies: &[Source],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let settings = settings(dir)?;
        let policies = Policies::load(policies)?;
        let crl_policy =
            if settings.require_crls { CrlPolicy::Required } else { CrlPolicy::IfPresent };
        let roots = roots::load(dir, crl_policy)?;
        let damaged = |path: PathBuf| move |_: KeyError| OpenError::Damaged(path);
        let release_key = ReleaseKey::from_bytes(&read_private(&dir.release_key())?)
            .map_err(damaged(dir.release_key()))?;
        let at_rest = FileKey::from_bytes(&read_private(&dir.at_rest_key())?)
            .map_err(damaged(dir.at_rest_key()))?;
        let hash = read_private(&dir.admin_token_hash())?;
        let admin_token_hash = std::str::from_utf8(&hash)
            .ok()
            .and_then(|text| Digest::from_hex(text.trim()))
            .ok_or_else(|| OpenError::Damaged(dir.admin_token_hash()))?;
        let ca_pem = String::from_utf8(read(&dir.ca_certificate())?)
            .map_err(|_| OpenError::Damaged(dir.ca_certificate()))?;
        let store = Store::open(&dir.database()).await.map_err(|e| database(dir, &e))?;
        let run = *random().map_err(|_| OpenError::Randomness)?;
        let verifier = Self {
            url: settings.url,
            ca_pem,
            store,
            policies,
            release_key,
            at_rest: Box::new(at_rest),
            admin_token_hash,
            roots,
            revoked_firmware: revoked_firmware(dir)?,
            clock,
            run,
            strangers: Strangers::default(),
            turns: Arc::new(Semaphore::new(TURNS)),
        };
        let forget = verifier.store.forget_before(&verifier.moment(), SESSION_TTL_S).await;
        forget.map_err(|e| database(dir, &e))?;
        Ok(verifier)
    }

    /// This moment, by both clocks.
    pub(crate) fn moment(&self) -> Moment {
        Moment { wall: self.clock.now(), steady: self.clock.steady(), run: self.run }
    }
}

/// firmwareVersion of TPMs that nobody's host may have any more, as quotes sign it: 1 to 16 hex digits a
/// line, `#` starts a comment. A line that is neither refuses the start: it may be the one that matters.
fn revoked_firmware(dir: &DataDir) -> Result<Vec<u64>, OpenError> {
    let path = dir.revoked_tpm_firmware();
    if !path.try_exists().map_err(|source| OpenError::Io { path: path.clone(), source })? {
        return Ok(Vec::new());
    }
    let text = String::from_utf8(read(&path)?).map_err(|_| OpenError::Damaged(path.clone()))?;
    text.lines()
        .map(|line| line.split_once('#').map_or(line, |(version, _)| version).trim())
        .filter(|version| !version.is_empty())
        .map(|version| u64::from_str_radix(version, 16))
        .collect::<Result<_, _>>()
        .map_err(|_| OpenError::Damaged(path))
}

/// Holds the data folder for this process; the lock goes with the file.
pub(crate) struct Lock {
    _file: fs::File,
}

impl Lock {
    pub(crate) fn take(dir: &DataDir) -> Result<Self, OpenError> {
        settings(dir)?;
        let path = dir.settings();
        let file =
            fs::File::open(&path).map_err(|source| OpenError::Io { path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(dir.path().to_owned())),
            Err(fs::TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
        }
    }
}

/// Reads a file only its owner may read; refuses it otherwise, as ssh does.
pub(crate) fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let mut file = fs::File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.mode() & 0o077 != 0 {
        return Err(OpenError::Exposed(path.to_owned()));
    }
    // Room for any key at once, so that no copy is left behind by a growing buffer.
    let mut bytes = Zeroizing::new(Vec::with_capacity(16 << 10));
    file.read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

fn settings(dir: &DataDir) -> Result<Settings, OpenError> {
    let path = dir.settings();
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NotInitialised(dir.path().to_owned()));
        }
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let settings: Settings =
        serde_json::from_slice(&bytes).map_err(|_| OpenError::Damaged(path.clone()))?;
    if settings.version != 1 {
        return Err(OpenError::Damaged(path));
    }
    Ok(settings)
}

fn database(dir: &DataDir, error: &StoreError) -> OpenError {
    OpenError::Database { path: dir.database(), detail: error.to_string() }
}
