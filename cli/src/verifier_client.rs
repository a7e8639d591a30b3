//! HTTPS to the verifier: its CA is pinned, nothing else is trusted, no proxy is used (SPEC 7).
//!
//! The admin token and secrets pass through here; they are wiped after use and never printed.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coffer_attestation::protocol::ErrorBody;
use rustls::CertificateError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};
use zeroize::Zeroizing;

use crate::args::{AdminArgs, VerifierArgs};
use crate::error::{Error, Service, io_reason};

/// Decisions with a measured row for each event are the largest answer.
const ANSWER_MAX: u64 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(60);

/// A verifier, with or without the right to administer it.
pub struct Verifier {
    url: String,
    agent: Agent,
    bearer: Option<HeaderValue>,
}

impl Verifier {
    /// A verifier that everybody may ask.
    pub fn public(args: &VerifierArgs) -> Result<Self, Error> {
        let url = check_url(&args.url)?;
        Ok(Self { url, agent: agent(read_ca(&args.ca)?), bearer: None })
    }

    /// A verifier to administer.
    pub fn admin(args: &AdminArgs) -> Result<Self, Error> {
        Self::public(&args.verifier)?.with_token(&args.admin_token_file)
    }

    /// The same, with the admin token in that file.
    pub fn with_token(mut self, file: &Path) -> Result<Self, Error> {
        self.bearer = Some(read_token(file)?);
        Ok(self)
    }

    /// `GET`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        self.json(request.call())
    }

    /// `POST` of JSON, answered in JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let request = self.agent.post(format!("{}{path}", self.url));
        self.json(self.send(request, body)?)
    }

    /// `PUT` of JSON, answered in JSON.
    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let request = self.agent.put(format!("{}{path}", self.url));
        self.json(self.send(request, body)?)
    }

    /// `PUT` of JSON, answered with nothing.
    pub fn put_only(&self, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let request = self.agent.put(format!("{}{path}", self.url));
        self.accepted(self.send(request, body)?).map(drop)
    }

    /// The body may hold a secret: its buffer is wiped.
    fn send(
        &self,
        request: ureq::RequestBuilder<ureq::typestate::WithBody>,
        body: &impl Serialize,
    ) -> Result<Result<Response<Body>, ureq::Error>, Error> {
        let body = to_wiped_json(body).map_err(|e| bad_answer(e.to_string()))?;
        let mut request = request.header("content-type", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        Ok(request.send(body.as_slice()))
    }

    fn json<T: DeserializeOwned>(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, Error> {
        let mut response = self.accepted(answer)?;
        let bytes = read_all(&mut response).map_err(|e| self.failure(e))?;
        serde_json::from_slice(&bytes).map_err(|e| bad_answer(e.to_string()))
    }

    fn accepted(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Error> {
        let mut response = answer.map_err(|e| self.failure(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = read_all(&mut response).map_err(|e| self.failure(e))?;
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Error::Refused { service: Service::Verifier, body: Box::new(body) },
            Err(_) => bad_answer(format!("status {}", status.as_u16())),
        })
    }

    fn failure(&self, error: ureq::Error) -> Error {
        let error = match error {
            ureq::Error::Io(e) => match e.downcast::<rustls::Error>() {
                Ok(tls) => ureq::Error::Rustls(tls),
                Err(e) => ureq::Error::Io(e),
            },
            other => other,
        };
        match error {
            ureq::Error::Rustls(rustls::Error::InvalidCertificate(why)) => {
                self.bad_certificate(&why)
            }
            ureq::Error::Rustls(e) => self.down(
                format!("TLS fails: {e}"),
                "check that the address is a Coffer verifier's; it speaks TLS 1.3",
            ),
            ureq::Error::Io(e) => self
                .down(io_reason(&e), "start it with `coffer verifier serve`, or check the address"),
            ureq::Error::HostNotFound => self.down(
                "its name is not known".into(),
                "check the name in the URL and this machine's DNS",
            ),
            ureq::Error::Timeout(_) => self.down(
                "it took too long".into(),
                "check that nothing between here and there drops packets",
            ),
            ureq::Error::BodyExceedsLimit(_) => bad_answer("it is too long".into()),
            ureq::Error::ConnectionFailed => self.down(
                "connection failed".into(),
                "start it with `coffer verifier serve`, or check the address",
            ),
            other => bad_answer(other.to_string()),
        }
    }

    fn down(&self, reason: String, hint: &str) -> Error {
        let (service, endpoint) = (Service::Verifier, self.url.clone());
        Error::Down { service, endpoint, reason, hint: hint.into() }
    }

    fn bad_certificate(&self, why: &CertificateError) -> Error {
        use CertificateError as C;
        let (reason, hint) = match why {
            C::UnknownIssuer | C::BadSignature => (
                "it is not issued by the CA given".to_owned(),
                "give the CA file of this very verifier with --ca; `coffer verifier init` made it",
            ),
            C::NotValidForName | C::NotValidForNameContext { .. } => (
                "it is for another name".to_owned(),
                "use a name that was given to `coffer verifier init --name`",
            ),
            C::Expired | C::ExpiredContext { .. } => (
                "it has expired".to_owned(),
                "renew it at the verifier, or set this machine's clock",
            ),
            C::NotValidYet | C::NotValidYetContext { .. } => {
                ("it is not valid yet".to_owned(), "set this machine's clock")
            }
            other => (other.to_string(), "renew it at the verifier"),
        };
        Error::Certificate { url: self.url.clone(), reason, hint: hint.into() }
    }
}

/// JSON in a buffer that is wiped. It is sized first: a buffer that grows leaves copies behind.
fn to_wiped_json(value: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut size = Count(0);
    serde_json::to_writer(&mut size, value)?;
    let mut json = Zeroizing::new(Vec::with_capacity(size.0));
    serde_json::to_writer(&mut *json, value)?;
    Ok(json)
}

struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check_url(url: &str) -> Result<String, Error> {
    let authority = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let clean = |a: &&str| {
        !a.is_empty() && a.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    };
    match authority.filter(clean) {
        Some(authority) => Ok(format!("https://{authority}")),
        None => Err(Error::usage(
            format!("`{url}` is not the URL of a verifier"),
            "write `https://NAME` or `https://NAME:PORT`",
        )),
    }
}

fn read_ca(path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let pem = std::fs::read(path).map_err(Error::file("read", path))?;
    let bad = |detail: &str| Error::BadFile {
        path: path.to_owned(),
        expected: "a CA certificate",
        detail: detail.into(),
        hint: "give the `ca.pem` that `coffer verifier init` made".into(),
    };
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => return Err(bad("it holds a key")),
            Err(_) => return Err(bad("it is not PEM")),
        }
    }
    if certificates.is_empty() {
        return Err(bad("it holds no certificate"));
    }
    Ok(certificates)
}

fn read_token(path: &Path) -> Result<HeaderValue, Error> {
    let text =
        std::fs::read_to_string(path).map(Zeroizing::new).map_err(Error::file("read", path))?;
    let token = text.trim();
    let header = Zeroizing::new(format!("Bearer {token}"));
    let value =
        HeaderValue::from_str(&header).ok().filter(|_| !token.is_empty() && !token.contains(' '));
    let mut value = value.ok_or_else(|| Error::BadFile {
        path: path.to_owned(),
        expected: "an admin token",
        detail: "it must hold one word".into(),
        hint: "give the token file that `coffer verifier init` made".into(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn agent(roots: Vec<Certificate<'static>>) -> Agent {
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .https_only(true)
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(TIMEOUT))
        .build()
        .new_agent()
}

fn read_all(response: &mut Response<Body>) -> Result<Vec<u8>, ureq::Error> {
    response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec()
}

fn bad_answer(detail: String) -> Error {
    Error::BadAnswer { service: Service::Verifier, detail }
}
