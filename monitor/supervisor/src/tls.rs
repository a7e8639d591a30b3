//! The API over TCP for whoever has a certificate (SPEC 6.4.5): TLS 1.3, and no word before the client has shown one
//! that the client CA signed and that is in force. There is nothing in between: who has one manages this host.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::Router;
use axum_server::Server;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;

use crate::gate::{Gate, Place};

/// How long a client may take to show its certificate, and then to say what it wants: so long it keeps others out.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and as whom.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Address.
    pub listen: SocketAddr,
    config: RustlsConfig,
}

impl Tls {
    /// Reads the server's chain and key, and the CA of its clients; all PEM. What is wrong is told in one clause.
    pub fn load(
        listen: SocketAddr,
        chain: &Path,
        key: &Path,
        client_ca: &Path,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let certificates = |path: &Path| -> Result<Vec<_>, String> {
            let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            found.map_err(|e: Error| format!("`{}`: {e}", path.display()))
        };
        let key =
            PrivateKeyDer::from_pem_file(key).map_err(|e| format!("`{}`: {e}", key.display()))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(client_ca)? {
            roots.add(root)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients.build()?)
            .with_single_cert(certificates(chain)?, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { listen, config: RustlsConfig::from_config(Arc::new(config)) })
    }

    /// Serves on a socket that was bound there.
    pub async fn serve(self, listener: TcpListener, router: Router) -> std::io::Result<()> {
        let tls = RustlsAcceptor::new(self.config).handshake_timeout(HEAD_TIMEOUT);
        let mut server =
            Server::<Place<SocketAddr>>::from_listener(Gate::new(listener)).acceptor(tls);
        server.http_builder().http1().header_read_timeout(HEAD_TIMEOUT);
        let service = router.into_make_service_with_connect_info::<Place<SocketAddr>>();
        server.first_request_timeout(HEAD_TIMEOUT).serve(service).await
    }
}
