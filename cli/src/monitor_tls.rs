//! TLS to a monitor (SPEC 6.4.5): its CA is pinned, nothing else is trusted, and this client shows a certificate of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::args::MonitorArgs;
use crate::error::{Error, Service};

/// How a monitor is known, and this client to it.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl Tls {
    /// From the files that the flags name.
    pub fn load(args: &MonitorArgs) -> Result<Self, Error> {
        let (ca, certificate, key) = match (&args.tls_ca, &args.tls_cert, &args.tls_key) {
            (Some(ca), Some(certificate), Some(key)) => (ca, certificate, key),
            _ => {
                return Err(Error::usage(
                    "a monitor at an https:// address wants three files",
                    "give --tls-ca, --tls-cert and --tls-key, or COFFER_TLS_CA, COFFER_TLS_CERT and COFFER_TLS_KEY",
                ));
            }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root).map_err(|e| bad(ca, "a CA certificate in PEM", &e))?;
        }
        let parsed = PrivateKeyDer::from_pem_slice(&read(key)?);
        let parsed = parsed.map_err(|e| bad(key, "a private key in PEM", &e))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(certificate)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder.with_root_certificates(roots).with_client_auth_cert(chain, parsed)
            })
            .map_err(|e| bad(certificate, "the certificate of the key given", &e))?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Greets the monitor behind `stream`; `authority` is its host and port.
    pub async fn greet(
        &self,
        authority: &str,
        stream: TcpStream,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(std::io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

/// What an error says of certificates, if that is what it is about: the reason, and what to try.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> Option<(String, &'static str)> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some(explain(tls));
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref());
        at = inner.map(|e| e as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn explain(error: &rustls::Error) -> (String, &'static str) {
    const MONITORS: &str =
        "give the CA of this monitor with --tls-ca, and the name its certificate has with --host";
    const OURS: &str = "give a certificate that the monitor's client CA signed and that is in force, with --tls-cert and --tls-key";
    match error {
        rustls::Error::InvalidCertificate(why) => {
            let why = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "it has expired"
                }
                CertificateError::UnknownIssuer => "it was not signed by the CA given",
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => "it is for another name",
                _ => "it does not verify",
            };
            (format!("its certificate is not acceptable: {why}"), MONITORS)
        }
        rustls::Error::AlertReceived(alert) => {
            let why = match alert {
                AlertDescription::CertificateExpired => "it has expired",
                AlertDescription::CertificateRequired => "there is none",
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "its client CA did not sign it"
                }
                _ => "it does not verify",
            };
            (format!("it refuses this client's certificate: {why}"), OURS)
        }
        other => (format!("TLS failed: {other}"), MONITORS),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(path, "a certificate in PEM", &"there is none in it")),
        Err(e) => Err(bad(path, "a certificate in PEM", &e)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(Error::file("read", path))
}

fn bad(path: &Path, expected: &'static str, detail: &dyn std::fmt::Display) -> Error {
    Error::BadFile {
        path: PathBuf::from(path),
        expected,
        detail: detail.to_string(),
        hint: format!("the {} and its clients agree on these files beforehand", Service::Monitor),
    }
}
