//! `coffer verifier serve`: opens the data folder, binds, serves over TLS 1.3 until told to stop.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use coffer_policies::Source;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::task::JoinHandle;

use crate::clock::{Clock, SystemClock};
use crate::data_dir::DataDir;
use crate::flow::admin;
use crate::http::connections::Gate;
use crate::http::router;
use crate::store::Store;
use crate::verifier::{Lock, OpenError, Verifier, read, read_private};

/// Open connections; a guest needs one.
const CONNECTIONS_MAX: usize = 512;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of a request, and for silence between two requests on one connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long running requests may take when the service is told to stop.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of one connection's read buffer, and so of a request's head.
const HEAD_MAX: usize = 16 << 10;

/// What `serve` is told.
#[derive(Clone)]
pub struct ServeConfig {
    /// Data folder made by `init`.
    pub dir: PathBuf,
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Policies that decide; see [`policy_source`].
    pub policies: Vec<Source>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
}

impl ServeConfig {
    /// The default policy alone, and the system's clock.
    pub fn new(dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            dir: dir.into(),
            listen,
            policies: Source::shipped("default").into_iter().collect(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why the service did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A named policy is neither shipped nor a file.
    #[error("cannot read policy `{name}`: {source}")]
    Policy {
        /// As given.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("`{0}` is in use")]
    AddressInUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on `{address}`: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificate and key do not serve.
    #[error("the server certificate cannot be used: {0}")]
    Certificate(String),
    /// The decisions log cannot be written.
    #[error("the decisions log cannot be written: {0}")]
    Log(String),
    /// The server ended by itself.
    #[error("the server ended: {0}")]
    Ended(String),
}

impl ServeError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Open(error) => error.hint(),
            Self::Policy { .. } => {
                "name a file, or one of `default`, `dangerous-software-tpm`, `dangerous-developer-host`"
            }
            Self::AddressInUse(_) => {
                "stop the program that listens there, or give another `--listen` address"
            }
            Self::Listen { .. } => {
                "give an address of this machine; ports below 1024 need privileges"
            }
            Self::Certificate(_) => {
                "restore `tls.pem` and `tls.key` from a backup of the data folder"
            }
            Self::Log(_) => {
                "check free space and permissions; nothing is released that cannot be logged"
            }
            Self::Ended(_) => "see the log for the reason",
        }
    }
}

/// A policy by its shipped name or by the path of a file.
pub fn policy_source(name_or_path: &str) -> Result<Source, ServeError> {
    if let Some(shipped) = Source::shipped(name_or_path) {
        return Ok(shipped);
    }
    let text = std::fs::read_to_string(name_or_path)
        .map_err(|source| ServeError::Policy { name: name_or_path.to_owned(), source })?;
    Ok(Source { name: name_or_path.to_owned(), text })
}

/// A running service. Dropping it stops the service without grace.
pub struct Handle {
    address: SocketAddr,
    server: axum_server::Handle<SocketAddr>,
    /// Taken when it has ended.
    task: Option<JoinHandle<io::Result<()>>>,
    store: Store,
    _lock: Lock,
}

impl Handle {
    /// Where it listens; tells the port if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets running requests finish, for a few seconds, and closes the database.
    pub async fn shutdown(mut self) -> Result<(), ServeError> {
        self.server.graceful_shutdown(Some(GRACE));
        self.ended().await
    }

    /// Waits until the server ends by itself, which it does only on an error. May be dropped and asked again.
    pub async fn wait(&mut self) -> Result<(), ServeError> {
        self.ended().await
    }

    async fn ended(&mut self) -> Result<(), ServeError> {
        let Some(task) = self.task.as_mut() else { return Ok(()) };
        let outcome = task.await;
        self.task = None;
        self.store.close().await;
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ServeError::Ended(error.to_string())),
            Err(error) => Err(ServeError::Ended(error.to_string())),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.server.shutdown();
    }
}

/// Starts the service. When this returns, it answers.
pub async fn serve(config: ServeConfig) -> Result<Handle, ServeError> {
    let dir = DataDir::new(&config.dir);
    let lock = Lock::take(&dir)?;
    let tls = tls(&dir)?;
    // Bound before the database is touched: a wrong address changes nothing.
    let listener = bind(config.listen)?;
    let listen_error = |source| ServeError::Listen { address: config.listen, source };
    let address = listener.local_addr().map_err(listen_error)?;
    let verifier = Verifier::open(&dir, &config.policies, config.clock).await?;
    admin::log_start(&verifier, &uuid::Uuid::new_v4().to_string())
        .await
        .map_err(|fault| ServeError::Log(fault.explanation))?;
    let dangerous: Vec<_> =
        verifier.policies.ids().into_iter().filter(|id| id.starts_with("dangerous")).collect();
    if !dangerous.is_empty() {
        tracing::warn!(policies = ?dangerous, "dangerous policies are in force");
    }

    let store = verifier.store.clone();
    let server = axum_server::Handle::new();
    let task = tokio::spawn({
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(Arc::new(tls)))
            .handshake_timeout(HANDSHAKE_TIMEOUT)
            .acceptor(Gate::new(CONNECTIONS_MAX));
        let mut http = axum_server::from_tcp(listener)
            .map_err(listen_error)?
            .acceptor(acceptor)
            .handle(server.clone())
            .first_request_timeout(HEAD_TIMEOUT)
            .http1_only();
        http.http_builder().http1().header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX);
        let app = router(Arc::new(verifier)).into_make_service();
        async move { http.serve(app).await }
    });
    tracing::info!(%address, "serving");
    Ok(Handle { address, server, task: Some(task), store, _lock: lock })
}

fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::AddressInUse(address),
        _ => ServeError::Listen { address, source },
    })
}

/// TLS 1.3 only, ring, HTTP/1.1.
fn tls(dir: &DataDir) -> Result<ServerConfig, ServeError> {
    let bad = |what: String| ServeError::Certificate(what);
    let certificates = read(&dir.tls_certificate())?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificates)
        .collect::<Result<_, _>>()
        .map_err(|_| bad("`tls.pem` is not PEM".to_owned()))?;
    let key = PrivateKeyDer::from_pem_slice(&read_private(&dir.tls_key())?)
        .map_err(|_| bad("`tls.key` is not a PEM key".to_owned()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| bad(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| bad(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
