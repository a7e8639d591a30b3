//! HTTP to the monitor, over its Unix socket, over TLS, or over TCP (SPEC 6.4).
//!
//! The monitor is not trusted with anything here: what a VM is worth is the verifier's to say. Answers are
//! bounded and parsed strictly.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use coffer_attestation::protocol::ErrorBody;
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::args::MonitorArgs;
use crate::error::{Error, Service, io_reason};
use crate::monitor_tls::{self, Tls};

/// A host event log is the largest answer: 512 KiB as bytes, twice that as hex.
const ANSWER_MAX: usize = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A launch hashes the whole image before it answers; a stop waits for its grace, at most 600 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(660);

/// A request's body: whole, or as it comes.
type Outgoing = BoxBody<Bytes, Infallible>;

/// Where a monitor listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket on this machine.
    Unix(PathBuf),
    /// `host:port`, with TLS and certificates on both sides.
    Tls(String),
    /// `host:port`, without TLS: for a network that is protected by other means.
    Tcp(String),
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let hint =
            "write `unix:/run/coffer/monitor.sock`, `https://HOST:PORT` or `http://ADDRESS:PORT`";
        if let Some(path) = text.strip_prefix("unix:").filter(|p| !p.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let after = |scheme| text.strip_prefix(scheme).map(|rest| rest.trim_end_matches('/'));
        match (after("https://"), after("http://")) {
            (Some(a), _) if has_port(a) => Ok(Self::Tls(a.to_owned())),
            (_, Some(a)) if has_port(a) => Ok(Self::Tcp(a.to_owned())),
            _ => Err(Error::usage(format!("`{text}` is not an address of a monitor"), hint)),
        }
    }
}

fn has_port(authority: &str) -> bool {
    let clean = authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    let split = authority.rsplit_once(':');
    clean
        && split.is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0)
        })
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(authority) => write!(f, "https://{authority}"),
            Self::Tcp(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// A monitor; each request takes a connection of its own.
#[derive(Clone)]
pub struct Monitor {
    endpoint: Endpoint,
    tls: Option<Tls>,
}

impl Monitor {
    /// The monitor that the flags name.
    pub fn new(args: &MonitorArgs) -> Result<Self, Error> {
        let endpoint = args.endpoint.parse()?;
        let tls = match endpoint {
            Endpoint::Tls(_) => Some(Tls::load(args)?),
            _ => None,
        };
        Ok(Self { endpoint, tls })
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET`, answered in JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.json(response).await
    }

    /// `POST` of JSON, answered in JSON.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|e| bad_answer(e.to_string()))?;
        let response = self.send(Method::POST, path, body.into()).await?;
        self.json(response).await
    }

    /// `POST` of JSON, answered in JSON once all of a volume was gone through, however long that takes.
    pub async fn work<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|e| bad_answer(e.to_string()))?;
        let response = self.exchange(Method::POST, path, Full::new(body.into()).boxed()).await?;
        self.json(response).await
    }

    /// `POST` of a few bytes, answered in JSON.
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let response = self.send(Method::POST, path, body.into()).await?;
        self.json(response).await
    }

    /// `DELETE`, answered with nothing.
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        self.send(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    /// `GET`, answered with text that may never end.
    pub async fn stream(&self, path: &str) -> Result<TextStream, Error> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        Ok(TextStream { body: response.into_body() })
    }

    /// `POST` of bytes as they come, for as long as they come.
    pub async fn upload(&self, path: &str, bytes: Channel<Bytes>) -> Result<(), Error> {
        self.exchange(Method::POST, path, bytes.boxed()).await.map(drop)
    }

    /// The same, answered in JSON.
    pub async fn upload_for<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: Channel<Bytes>,
    ) -> Result<T, Error> {
        let response = self.exchange(Method::POST, path, bytes.boxed()).await?;
        self.json(response).await
    }

    /// `POST` of bytes, answered with bytes of any number.
    pub async fn download(&self, path: &str, body: Bytes) -> Result<Download, Error> {
        let response = self.exchange(Method::POST, path, Full::new(body).boxed()).await?;
        // Without either the end of the connection would be the end of the answer, whatever had ended it (RFC 9112 6.3).
        let headers = response.headers();
        if !headers.contains_key("transfer-encoding") && !headers.contains_key("content-length") {
            return Err(bad_answer("it does not say where it ends".into()));
        }
        Ok(Download { body: response.into_body() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Error> {
        let answer = self.exchange(method, path, Full::new(body).boxed());
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        answer.unwrap_or_else(|_| Err(self.down(&io::ErrorKind::TimedOut.into())))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Outgoing,
    ) -> Result<Response<Incoming>, Error> {
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.connect());
        let mut sender =
            connect.await.unwrap_or_else(|_| Err(self.down(&io::ErrorKind::TimedOut.into())))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.host_header())
            .header("content-type", "application/json")
            .body(body)
            .map_err(|e| bad_answer(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    async fn connect(&self) -> Result<http1::SendRequest<Outgoing>, Error> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| self.down(&e))?;
                self.handshake(stream).await
            }
            Endpoint::Tcp(authority) | Endpoint::Tls(authority) => {
                let stream =
                    TcpStream::connect(authority.as_str()).await.map_err(|e| self.down(&e))?;
                match &self.tls {
                    None => self.handshake(stream).await,
                    Some(tls) => {
                        let greeted = tls.greet(authority, stream).await;
                        self.handshake(greeted.map_err(|e| self.down(&e))?).await
                    }
                }
            }
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<http1::SendRequest<Outgoing>, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.broken(&e))?;
        // The connection's own error reaches the request that uses it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }

    fn host_header(&self) -> &str {
        match &self.endpoint {
            Endpoint::Unix(_) => "localhost",
            Endpoint::Tcp(authority) | Endpoint::Tls(authority) => authority,
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Error> {
        let bytes = read_all(response).await?;
        serde_json::from_slice(&bytes).map_err(|e| bad_answer(e.to_string()))
    }

    async fn refusal(&self, response: Response<Incoming>) -> Error {
        let status = response.status();
        match read_all(response).await.map(|bytes| serde_json::from_slice::<ErrorBody>(&bytes)) {
            Ok(Ok(body)) => Error::Refused { service: Service::Monitor, body: Box::new(body) },
            _ => bad_answer(format!("status {}", status.as_u16())),
        }
    }

    fn broken(&self, error: &hyper::Error) -> Error {
        if let Some((reason, hint)) = monitor_tls::reason(error) {
            return self.down_because(reason, hint);
        }
        if error.is_parse() {
            return bad_answer("it is not HTTP".into());
        }
        self.down(&io::ErrorKind::ConnectionReset.into())
    }

    fn down(&self, error: &io::Error) -> Error {
        if let Some((reason, hint)) = monitor_tls::reason(error) {
            return self.down_because(reason, hint);
        }
        let hint = match (&self.endpoint, error.kind()) {
            (_, io::ErrorKind::PermissionDenied) => {
                "run as a user who may use that socket, or name another with --host or COFFER_HOST"
            }
            (Endpoint::Unix(_), _) => {
                "start coffer-monitor on this machine, or name its socket with --host or COFFER_HOST"
            }
            (Endpoint::Tcp(_) | Endpoint::Tls(_), _) => {
                "check that coffer-monitor runs there and that the port is forwarded"
            }
        };
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "there is no such socket".into(),
            _ => io_reason(error),
        };
        self.down_because(reason, hint)
    }

    fn down_because(&self, reason: String, hint: &str) -> Error {
        let (service, endpoint) = (Service::Monitor, self.endpoint.to_string());
        Error::Down { service, endpoint, reason, hint: hint.into() }
    }
}

/// Text that comes piece by piece.
pub struct TextStream {
    body: Incoming,
}

impl TextStream {
    /// The next piece; nothing at the end or when the monitor went away.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                return Some(data);
            }
        }
    }
}

/// Bytes that come piece by piece, and have an end.
pub struct Download {
    body: Incoming,
}

impl Download {
    /// The next piece; nothing once all of it came.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.map_err(|_| Error::BrokenOff)?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
    match tokio::time::timeout(ANSWER_TIMEOUT, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        _ => Err(bad_answer("it is cut short or too long".into())),
    }
}

fn bad_answer(detail: String) -> Error {
    Error::BadAnswer { service: Service::Monitor, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_a_socket_or_an_address_with_port() {
        assert_eq!("unix:/a b".parse::<Endpoint>().ok(), Some(Endpoint::Unix("/a b".into())));
        assert_eq!(
            "http://[::1]:80/".parse::<Endpoint>().ok(),
            Some(Endpoint::Tcp("[::1]:80".into()))
        );
        assert_eq!("https://h:1".parse::<Endpoint>().ok(), Some(Endpoint::Tls("h:1".into())));
        for bad in [
            "",
            "unix:",
            "/run/x.sock",
            "http://",
            "http://h",
            "http://h:0",
            "http://:1",
            "http://h:1/x",
            "https://h",
            "http://a b:1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
