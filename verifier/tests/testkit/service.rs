//! The service on a loopback port, and a client that trusts its CA alone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coffer_attestation::evidence::CMW_MEDIA_TYPE;
use coffer_attestation::protocol::ErrorBody;
use coffer_attestation::{Digest, Reject};
use coffer_verifier::{
    Clock, DataDir, Handle, InitConfig, ServeConfig, SystemClock, api, init, policy_source, serve,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// The audience; the certificate also carries the loopback address the tests connect to.
pub const URL: &str = "https://192.0.2.7:8443";

/// The system's clock, set ahead by hand.
#[derive(Default)]
pub struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> u64 {
        SystemClock.now() + self.0.load(Ordering::SeqCst)
    }

    fn steady(&self) -> u64 {
        SystemClock.steady() + self.0.load(Ordering::SeqCst)
    }
}

pub struct Service {
    folder: TempDir,
    runtime: Option<Runtime>,
    handle: Option<Handle>,
    clock: Arc<TestClock>,
    policies: Vec<String>,
    pub client: Client,
}

impl Service {
    pub fn start(policies: &[&str], prepare: impl FnOnce(&DataDir)) -> Self {
        let folder = TempDir::new().unwrap();
        let dir = folder.path().join("data");
        let names = vec!["127.0.0.1".to_owned()];
        init(&InitConfig { dir: dir.clone(), url: URL.into(), names }).unwrap();
        prepare(&DataDir::new(&dir));
        let mut service = Self {
            folder,
            runtime: None,
            handle: None,
            clock: Arc::default(),
            policies: policies.iter().map(|&p| p.to_owned()).collect(),
            client: Client::new(&dir, 0),
        };
        service.run();
        service
    }

    pub fn dir(&self) -> DataDir {
        DataDir::new(self.folder.path().join("data"))
    }

    pub fn address(&self) -> SocketAddr {
        self.handle.as_ref().unwrap().local_addr()
    }

    fn run(&mut self) {
        let runtime = Runtime::new().unwrap();
        let mut config = ServeConfig::new(self.dir().path(), ([127, 0, 0, 1], 0).into());
        config.policies = self.policies.iter().map(|p| policy_source(p).unwrap()).collect();
        config.clock = self.clock.clone();
        let handle = runtime.block_on(serve(config)).unwrap();
        self.client = Client::new(self.dir().path(), handle.local_addr().port());
        (self.runtime, self.handle) = (Some(runtime), Some(handle));
    }

    pub fn stop(&mut self) {
        let (runtime, handle) = (self.runtime.take().unwrap(), self.handle.take().unwrap());
        runtime.block_on(handle.shutdown()).unwrap();
    }

    pub fn restart(&mut self) {
        self.stop();
        self.run();
    }

    /// Moves the service's clock.
    pub fn later(&self, seconds: u64) {
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Runs statements on the database behind the service's back.
    pub fn sql(&self, statements: &[&'static str]) {
        let url = format!("sqlite://{}", self.dir().database().display());
        self.runtime.as_ref().unwrap().block_on(async {
            use sqlx::Connection as _;
            let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
            for statement in statements {
                sqlx::query(*statement).execute(&mut connection).await.unwrap();
            }
            connection.close().await.unwrap();
        });
    }

    pub fn release_key(&self) -> p256::ecdsa::VerifyingKey {
        let info: api::Info = self.get("/v1/info").ok();
        p256::ecdsa::VerifyingKey::from_sec1_bytes(&hex::decode(info.release_key).unwrap()).unwrap()
    }

    pub fn put_secret(&self, id: &str, value: &[u8], images: &[Digest]) -> api::SecretVersion {
        let request =
            api::PutSecret { value: api::Base64Value::new(value), images: images.to_vec() };
        self.put(&format!("/v1/admin/secrets/{id}"), &request).ok()
    }
}

impl std::ops::Deref for Service {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub request_id: String,
    body: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub fn bytes(self) -> Vec<u8> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.body
    }

    #[track_caller]
    pub fn ok<T: DeserializeOwned>(self) -> T {
        serde_json::from_slice(&self.bytes()).unwrap()
    }

    #[track_caller]
    pub fn no_content(self) {
        assert_eq!(self.status, 204, "{}", String::from_utf8_lossy(&self.body));
    }

    #[track_caller]
    pub fn error(self) -> ErrorBody {
        assert!(self.status >= 400, "accepted");
        let error: ErrorBody = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(error.request_id, self.request_id);
        error
    }

    #[track_caller]
    pub fn refused(self, reject: Reject) {
        assert_eq!(self.error().code, reject.code());
    }
}

/// An HTTPS client with an admin token.
#[derive(Clone)]
pub struct Client {
    pub agent: Agent,
    pub base: String,
    pub token: Option<String>,
}

impl Client {
    pub fn new(dir: &Path, port: u16) -> Self {
        let dir = DataDir::new(dir);
        let pem = std::fs::read(dir.ca_certificate()).unwrap();
        Self {
            agent: agent(RootCerts::new_with_certs(&[Certificate::from_pem(&pem)
                .unwrap()
                .to_owned()])),
            base: format!("https://127.0.0.1:{port}"),
            token: Some(std::fs::read_to_string(dir.admin_token()).unwrap()),
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        answer(request.call().unwrap())
    }

    pub fn delete(&self, path: &str) -> Answer {
        let token = self.token.as_deref().unwrap_or_default();
        let request = self.agent.delete(format!("{}{path}", self.base));
        answer(request.header("authorization", format!("Bearer {token}")).call().unwrap())
    }

    pub fn put(&self, path: &str, body: &impl Serialize) -> Answer {
        let token = self.token.as_deref().unwrap_or_default();
        let request = self.agent.put(format!("{}{path}", self.base));
        answer(request.header("authorization", format!("Bearer {token}")).send_json(body).unwrap())
    }

    pub fn admin_post(&self, path: &str, body: &impl Serialize) -> Answer {
        let token = self.token.as_deref().unwrap_or_default();
        let request = self.agent.post(format!("{}{path}", self.base));
        answer(request.header("authorization", format!("Bearer {token}")).send_json(body).unwrap())
    }

    /// Without a token, as guests and hosts ask.
    pub fn post(&self, path: &str, body: &impl Serialize) -> Answer {
        answer(self.agent.post(format!("{}{path}", self.base)).send_json(body).unwrap())
    }

    pub fn release(&self, evidence: &[u8]) -> Answer {
        let request = self.agent.post(format!("{}/v1/release", self.base));
        answer(request.content_type(CMW_MEDIA_TYPE).send(evidence).unwrap())
    }
}

pub fn agent(roots: RootCerts) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(roots)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let id = response.headers().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let body = response.body_mut().with_config().limit(4 << 20).read_to_vec().unwrap();
    Answer { status: response.status().as_u16(), request_id: id, body }
}
