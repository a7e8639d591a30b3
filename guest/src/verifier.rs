//! The guest's side of the verifier protocol (SPEC 7.3): TLS 1.3, the pinned CA and nothing else.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use coffer_exchange::evidence::CMW_MEDIA_TYPE;
use coffer_exchange::protocol::{Challenge, ErrorBody};
use coffer_exchange::release::RELEASE_MAX;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::ServerName;

use crate::Failure;
use crate::appliance::PinnedVerifier;
use crate::channel::printable;
use crate::http::{self, HttpError, Response};

/// How long a connection may take; the verifier is a network away, not a planet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one read or write may take; a release checks two quotes and writes a log.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of a JSON answer.
const JSON_MAX: usize = 16 << 10;

/// A TLS connection to the pinned verifier.
pub struct Connection<'a> {
    verifier: &'a PinnedVerifier,
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl<'a> Connection<'a> {
    /// Connects and completes the handshake, so that a wrong server is told apart from no server.
    pub fn open(verifier: &'a PinnedVerifier) -> Result<Self, Failure> {
        let fail = |error| classify(verifier, error);
        let config = client_config(verifier)?;
        let name = ServerName::IpAddress(verifier.address.into());
        let mut tls = ClientConnection::new(config, name)
            .map_err(|source| Failure::Untrusted { address: verifier.authority.clone(), source })?;
        let address = SocketAddr::new(verifier.address, verifier.port);
        let mut tcp = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(fail)?;
        tcp.set_nodelay(true).map_err(fail)?;
        tcp.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
        tcp.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).map_err(fail)?;
        }
        Ok(Self { verifier, stream: StreamOwned::new(tls, tcp) })
    }

    /// `POST /v1/challenge`.
    pub fn challenge(&mut self) -> Result<Challenge, Failure> {
        let response = self.post("/v1/challenge", "application/json", b"", JSON_MAX)?;
        serde_json::from_slice(&response)
            .map_err(|_| Failure::BadAnswer("the challenge does not parse"))
    }

    /// `POST /v1/release` with wrapped evidence; the signed release as received.
    pub fn release(&mut self, evidence: &[u8]) -> Result<Vec<u8>, Failure> {
        self.post("/v1/release", CMW_MEDIA_TYPE, evidence, RELEASE_MAX)
    }

    fn post(
        &mut self,
        path: &str,
        kind: &str,
        body: &[u8],
        limit: usize,
    ) -> Result<Vec<u8>, Failure> {
        let result =
            http::post(&mut self.stream, &self.verifier.authority, path, kind, body, limit);
        match result {
            Ok(Response { status: 200, body, .. }) => Ok(body),
            Ok(Response { body, .. }) => Err(refusal(&body)),
            Err(HttpError::Protocol(reason)) => Err(Failure::BadAnswer(reason)),
            Err(HttpError::Io(error)) => Err(classify(self.verifier, error)),
        }
    }
}

/// TLS 1.3 with ring, the pinned anchors, no client certificate, no resumption across boots.
fn client_config(verifier: &PinnedVerifier) -> Result<Arc<ClientConfig>, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in &verifier.ca {
        let added = roots.add(certificate.clone());
        added.map_err(|error| Failure::Appliance(format!("the verifier's CA: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3 cipher suites")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn refusal(body: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(error) => {
            Failure::Refused { code: printable(&error.code), message: printable(&error.message) }
        }
        Err(_) => Failure::BadAnswer("the refusal does not parse"),
    }
}

/// A TLS error means the wrong peer; anything else means no peer, and may pass.
fn classify(verifier: &PinnedVerifier, error: io::Error) -> Failure {
    let address = verifier.authority.clone();
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
    match tls {
        Some(source) => Failure::Untrusted { address, source },
        None => Failure::Unreachable { address, source: error },
    }
}
