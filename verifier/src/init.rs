//! `coffer verifier init`: makes a data folder with every key the service needs (SPEC 7.1).
//!
//! The folder is built beside its destination and renamed into place, so a failure leaves nothing and
//! nothing that exists is ever overwritten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::data_dir::{DataDir, create_private_dir, write_private, write_public};
use crate::keys::{ReleaseKey, hash_token, random};

/// What `init` is told.
#[derive(Debug, Clone)]
pub struct InitConfig {
    /// Data folder to make; must not exist or be empty.
    pub dir: PathBuf,
    /// `https://host[:port]`: where guests reach this verifier, and the audience of evidence.
    pub url: String,
    /// DNS names and IP addresses the server certificate shall carry, beside the host of `url`.
    pub names: Vec<String>,
}

/// What `init` made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// Where the admin token is, in clear.
    pub admin_token: PathBuf,
    /// Where the CA certificate is.
    pub ca_certificate: PathBuf,
    /// Release key for images to pin: SEC1 uncompressed point, hex.
    pub release_key: String,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Something is there already.
    #[error("`{0}` is not empty")]
    Exists(PathBuf),
    /// The URL cannot be an audience.
    #[error("`{0}` is not a URL of the form `https://host[:port]`")]
    Url(String),
    /// A name the certificate cannot carry.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Name(String),
    /// The operating system refused.
    #[error("cannot write `{path}`: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system has no randomness.
    #[error("the system gives no random bytes")]
    Randomness,
    /// A certificate could not be made.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl InitError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => {
                "name another folder, or move the old one away: it holds keys that images pin"
            }
            Self::Url(_) => {
                "give the address guests use, such as `https://verifier.example:8443`, without a path"
            }
            Self::Name(_) => {
                "give names such as `verifier.example` or addresses such as `192.0.2.7`"
            }
            Self::Io { .. } => "check that the parent folder exists, is writable and has room",
            Self::Randomness => "check that getrandom(2) works on this system",
            Self::Certificate(_) => "check the names given for the server certificate",
        }
    }
}

/// Settings kept in the data folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Format version, 1.
    pub(crate) version: u32,
    /// Audience of evidence.
    pub(crate) url: String,
    /// Names in the server certificate.
    pub(crate) names: Vec<String>,
    /// Whether a host enrols only if a current CRL speaks of each certificate of its chain (SPEC 7.2.1).
    #[serde(default)]
    pub(crate) require_crls: bool,
}

/// Makes the data folder.
pub fn init(config: &InitConfig) -> Result<Initialised, InitError> {
    refuse_existing(&config.dir)?;
    let host = host_of(&config.url).ok_or_else(|| InitError::Url(config.url.clone()))?;
    let mut names = vec![host.to_owned()];
    names.extend(config.names.iter().filter(|n| *n != host).cloned());
    if let Some(bad) = names.iter().find(|n| !is_name(n)) {
        return Err(InitError::Name(bad.clone()));
    }

    let draft = Draft::beside(&config.dir)?;
    let settings = Settings { version: 1, url: config.url.clone(), names, require_crls: false };
    let release_key = fill(&draft.dir, &settings)?;
    draft.publish(&config.dir)?;

    let dir = DataDir::new(&config.dir);
    Ok(Initialised {
        admin_token: dir.admin_token(),
        ca_certificate: dir.ca_certificate(),
        release_key,
    })
}

/// A folder under construction; removed unless published.
struct Draft {
    dir: DataDir,
    published: bool,
}

impl Draft {
    fn beside(target: &Path) -> Result<Self, InitError> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = target.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4()));
        create_private_dir(&path).map_err(|source| InitError::Io { path: path.clone(), source })?;
        Ok(Self { dir: DataDir::new(path), published: false })
    }

    fn publish(mut self, target: &Path) -> Result<(), InitError> {
        // rename(2) replaces an empty folder and refuses any other, so a race cannot overwrite keys.
        fs::rename(self.dir.path(), target).map_err(|source| match source.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                InitError::Exists(target.to_owned())
            }
            _ => InitError::Io { path: target.to_owned(), source },
        })?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // Nothing to add if this fails too: the error that brought us here is being reported.
            let _ = fs::remove_dir_all(self.dir.path());
        }
    }
}

fn refuse_existing(dir: &Path) -> Result<(), InitError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(InitError::Exists(dir.to_owned())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(InitError::Exists(dir.to_owned()))
        }
        Err(source) => Err(InitError::Io { path: dir.to_owned(), source }),
    }
}

fn fill(dir: &DataDir, settings: &Settings) -> Result<String, InitError> {
    let private = |path: PathBuf, bytes: &[u8]| {
        write_private(&path, bytes).map_err(|source| InitError::Io { path, source })
    };
    let public = |path: PathBuf, bytes: &[u8]| {
        write_public(&path, bytes).map_err(|source| InitError::Io { path, source })
    };
    let folders =
        [dir.ek_roots(), dir.dangerous_software_ek_roots(), dir.ek_intermediates(), dir.ek_crls()];
    for path in folders {
        create_private_dir(&path).map_err(|source| InitError::Io { path, source })?;
    }

    let json = serde_json::to_vec_pretty(settings).expect("plain strings always encode");
    public(dir.settings(), &json)?;

    let certificates = Certificates::make(&settings.names)?;
    public(dir.ca_certificate(), certificates.ca.as_bytes())?;
    private(dir.ca_key(), certificates.ca_key.as_bytes())?;
    public(dir.tls_certificate(), certificates.server.as_bytes())?;
    private(dir.tls_key(), certificates.server_key.as_bytes())?;

    let release = ReleaseKey::generate().map_err(|_| InitError::Randomness)?;
    private(dir.release_key(), release.secret_bytes().as_slice())?;
    let at_rest = random::<32>().map_err(|_| InitError::Randomness)?;
    private(dir.at_rest_key(), at_rest.as_slice())?;

    let token_bytes = random::<32>().map_err(|_| InitError::Randomness)?;
    let token = Zeroizing::new(hex::encode(token_bytes.as_slice()));
    private(dir.admin_token(), token.as_bytes())?;
    private(dir.admin_token_hash(), hash_token(&token).to_hex().as_bytes())?;
    Ok(release.public_hex())
}

struct Certificates {
    ca: String,
    ca_key: Zeroizing<String>,
    server: String,
    server_key: Zeroizing<String>,
}

impl Certificates {
    fn make(names: &[String]) -> Result<Self, rcgen::Error> {
        let now = OffsetDateTime::now_utc();
        // A day back, for hosts whose clock is behind.
        let start = now - Duration::days(1);

        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.distinguished_name.push(DnType::CommonName, "Coffer verifier CA");
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.not_before = start;
        // Images pin this certificate for as long as they live.
        ca.not_after = now + Duration::days(3650);
        let ca_key = KeyPair::generate()?;
        let ca_certificate = ca.self_signed(&ca_key)?;

        let mut server = CertificateParams::new(names.to_vec())?;
        server.distinguished_name.push(DnType::CommonName, "Coffer verifier");
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        server.not_before = start;
        // The longest life common TLS clients accept.
        server.not_after = now + Duration::days(825);
        let server_key = KeyPair::generate()?;
        let issuer = Issuer::from_params(&ca, &ca_key);
        let server_certificate = server.signed_by(&server_key, &issuer)?;

        Ok(Self {
            ca: ca_certificate.pem(),
            ca_key: Zeroizing::new(ca_key.serialize_pem()),
            server: server_certificate.pem(),
            server_key: Zeroizing::new(server_key.serialize_pem()),
        })
    }
}

/// The host of `https://host[:port]`; anything more is not an audience.
fn host_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(h, p)| (h, p.strip_prefix(':')))?,
        None => rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p))),
    };
    let port_is_fine = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p != 0));
    (is_name(host) && port_is_fine).then_some(host)
}

fn is_name(name: &str) -> bool {
    if name.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_host_of_an_audience() {
        for (url, host) in [
            ("https://verifier.example", "verifier.example"),
            ("https://verifier.example:8443", "verifier.example"),
            ("https://192.0.2.7:443", "192.0.2.7"),
            ("https://[::1]:443", "::1"),
        ] {
            assert_eq!(host_of(url), Some(host), "{url}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_audience() {
        for url in [
            "http://v.example",
            "https://",
            "https://v.example/",
            "https://v.example/x",
            "https://v:0",
            "https://v:99999",
            "https://u@v",
            "https://V.example",
            "https://v example",
            "https://[::1",
        ] {
            assert_eq!(host_of(url), None, "{url}");
        }
    }
}
