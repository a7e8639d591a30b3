//! Secrets on their way from a signed release to files on a tmpfs (SPEC 8.2, 8.4).
//!
//! Plain secrets live in buffers that are wiped, have no `Debug`, and are written only after every secret
//! of the release was opened: it is all of them or none.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use coffer_exchange::evidence::Evidence;
use coffer_exchange::release::{Release, SealedSecret, SignedRelease};
use coffer_exchange::{Digest, Nonce, binding};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR, Serializable as _};
use zeroize::Zeroizing;

use crate::Failure;
use crate::appliance::{SecretPlan, WantedSecret};

/// Where an appliance finds its secrets.
pub const SECRETS_PATH: &str = "/run/coffer/secrets";

/// The HPKE key of one attestation. Its private half never leaves this value.
pub struct ReleaseKey {
    private: <X25519HkdfSha256 as hpke::Kem>::PrivateKey,
    public: [u8; 32],
}

impl ReleaseKey {
    /// A fresh key from the kernel's random numbers.
    pub fn generate() -> Self {
        let (private, public) = X25519HkdfSha256::gen_keypair();
        Self { private, public: public.to_bytes().into() }
    }

    /// The public half, for the runtime data.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    fn open(&self, sealed: &SealedSecret, info: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        type Encapsulated = <X25519HkdfSha256 as hpke::Kem>::EncappedKey;
        let encapsulated = Encapsulated::from_bytes(&sealed.encapsulated).ok()?;
        let aad = binding::release_aad(&sealed.id, sealed.version);
        let mut context = hpke::setup_receiver::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.private,
            &encapsulated,
            info,
        )
        .ok()?;
        context.open(&sealed.ciphertext, &aad).ok().map(Zeroizing::new)
    }
}

/// Secrets that were opened and match what the image asked for, in its order.
pub struct OpenedSecrets(Vec<(WantedSecret, Zeroizing<Vec<u8>>)>);

/// Judges a signed release and opens its secrets (SPEC 8.3). Takes the key by value: it serves once.
pub fn open_release(
    bytes: &[u8],
    plan: &SecretPlan,
    key: ReleaseKey,
    nonce: &Nonce,
    evidence: &[u8],
) -> Result<OpenedSecrets, Failure> {
    let digest = Evidence::digest(evidence);
    let release = SignedRelease::open(bytes, &plan.verifier.release_key, nonce, &digest)
        .map_err(Failure::Release)?;
    refuse_unexpected(&release, plan)?;
    let opened = plan.wanted.iter().map(|wanted| open_one(wanted, &release, &key, nonce, &digest));
    opened.collect::<Result<_, _>>().map(OpenedSecrets)
}

fn refuse_unexpected(release: &Release, plan: &SecretPlan) -> Result<(), Failure> {
    for (position, sealed) in release.secrets.iter().enumerate() {
        let asked = plan.wanted.iter().any(|wanted| wanted.id == sealed.id);
        let repeated = release.secrets.iter().take(position).any(|other| other.id == sealed.id);
        if !asked || repeated {
            return Err(Failure::SecretUnexpected(crate::channel::printable(&sealed.id)));
        }
    }
    Ok(())
}

fn open_one(
    wanted: &WantedSecret,
    release: &Release,
    key: &ReleaseKey,
    nonce: &Nonce,
    evidence: &Digest,
) -> Result<(WantedSecret, Zeroizing<Vec<u8>>), Failure> {
    let sealed = release.secrets.iter().find(|sealed| sealed.id == wanted.id);
    let sealed = sealed.ok_or_else(|| Failure::SecretMissing(wanted.id.clone()))?;
    let info = binding::release_info(evidence, nonce);
    let plain = key.open(sealed, &info);
    let plain = plain.ok_or_else(|| Failure::SecretUnsealable(wanted.id.clone()))?;
    Ok((wanted.clone(), plain))
}

/// Proof that every secret the image asked for is in its file. Minted by [`OpenedSecrets::place`] alone.
pub struct PlacedSecrets {
    directory: PathBuf,
}

impl PlacedSecrets {
    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl OpenedSecrets {
    /// Writes the files into `directory`, which must not exist yet and must lie on a tmpfs.
    pub fn place(self, directory: &Path) -> Result<PlacedSecrets, Failure> {
        make_private(directory)?;
        for (wanted, plain) in &self.0 {
            write_new(&directory.join(&wanted.file), wanted.mode, plain)
                .map_err(|source| Failure::SecretStore { file: wanted.file.clone(), source })?;
        }
        Ok(PlacedSecrets { directory: directory.into() })
    }
}

fn make_private(directory: &Path) -> Result<(), Failure> {
    let fail = |source| Failure::SecretStore { file: directory.display().to_string(), source };
    if let Some(parent) = directory.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(fail)?;
    }
    DirBuilder::new().mode(0o700).create(directory).map_err(fail)
}

/// O_EXCL and O_NOFOLLOW: the file is ours or there is none.
fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(bytes)?;
    // Not left to open: the mode there is subject to umask.
    file.set_permissions(Permissions::from_mode(mode))
}
