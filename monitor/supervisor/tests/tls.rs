//! The API over TLS as clients of another make meet it (SPEC 6.4, 6.4.5): a certificate of the client CA that is in force
//! gets an answer, each near miss an alert and no byte of one; who only holds connections keeps no launch from its files.
//! `cli/tests/cli/mtls.rs` has what our own client says of it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coffer_formats::launch::BoxKind;
use common::{Monitor, TestImage};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::json;

const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;
const SERVER: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ServerAuth;
/// Years in which a certificate is in force.
const NOW: (i32, i32) = (2020, 2090);

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

/// A certificate and its key.
struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Self { params, key: KeyPair::generate().unwrap() }
    }

    fn certificate(&self) -> rcgen::Certificate {
        self.params.self_signed(&self.key).unwrap()
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose, (from, to): (i32, i32)) -> Signed {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(to, 1, 1);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        Signed { certificate: params.signed_by(&key, &issuer).unwrap(), key }
    }
}

struct Scene {
    monitor: Monitor,
    address: String,
    server: Authority,
    clients: Authority,
    _files: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let (server, clients) = (Authority::new("server"), Authority::new("clients"));
        let own = server.sign(SERVER, NOW);
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, pem: String| -> PathBuf {
            let path = files.path().join(name);
            fs::write(&path, pem).unwrap();
            path
        };
        let certificate = file("certificate", own.certificate.pem());
        let key = file("key", own.key.serialize_pem());
        let client_ca = file("client-ca", clients.certificate().pem());
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let [certificate, key, client_ca] =
            [&certificate, &key, &client_ca].map(|path| path.to_str().unwrap());
        let files_of_tls = ["--tls-cert", certificate, "--tls-key", key, "--client-ca", client_ca];
        let monitor = Monitor::start_on_bare_dev_with(
            &[&["--tls-listen", &address], &files_of_tls[..]].concat(),
        );
        // Its Unix socket, by which it is known to be up, is there a moment before.
        while TcpStream::connect(&address).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        Self { monitor, address, server, clients, _files: files }
    }

    /// One that shows this certificate, or none.
    fn client(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        shown: Option<&Signed>,
    ) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.server.certificate().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match shown {
            None => config.with_no_client_auth(),
            Some(Signed { certificate, key }) => {
                let key = PrivatePkcs8KeyDer::from(key.serialize_der());
                let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
                config.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key)).unwrap()
            }
        };
        Client { address: self.address.clone(), config: config.into() }
    }

    fn ours(&self) -> Client {
        self.client(&TLS13, Some(&self.clients.sign(CLIENT, NOW)))
    }

    #[track_caller]
    fn refused(&self, what: &str, shown: &Signed, alert: &str) {
        let said = self.client(&TLS13, Some(shown)).ask();
        assert!(said.as_ref().is_err_and(|said| said.contains(alert)), "{what}: {said:?}");
    }
}

struct Client {
    address: String,
    config: Arc<ClientConfig>,
}

impl Client {
    /// The head of the answer, or the alert that is all it gets.
    fn ask(&self) -> Result<String, String> {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let client = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut stream = StreamOwned::new(client, stream);
        let mut answer = String::new();
        stream
            .write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .and_then(|()| stream.read_to_string(&mut answer))
            .map_err(|alert| alert.to_string())?;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    }
}

#[test]
fn a_certificate_of_the_client_ca_that_is_in_force_is_what_it_takes() {
    let scene = Scene::new();
    let ours = scene.clients.sign(CLIENT, NOW);
    assert!(scene.client(&TLS13, Some(&ours)).ask().is_ok());
    let none = scene.client(&TLS13, None).ask();
    assert!(none.as_ref().is_err_and(|said| said.contains("CertificateRequired")), "{none:?}");
    // Signed by a key that the client CA does not have, under its name; and by the CA of the server.
    let impostor = Authority::new("clients").sign(CLIENT, NOW);
    scene.refused("another CA of that name", &impostor, "alert: ");
    scene.refused("another CA", &Authority::new("stranger").sign(CLIENT, NOW), "UnknownCA");
    scene.refused("the server's CA", &scene.server.sign(CLIENT, NOW), "UnknownCA");
    scene.refused("expired", &scene.clients.sign(CLIENT, (2019, 2020)), "CertificateExpired");
    scene.refused("not yet in force", &scene.clients.sign(CLIENT, (2089, 2090)), "alert: ");
    scene.refused("for a server", &scene.clients.sign(SERVER, NOW), "alert: ");
    // A certificate that is in order mends no older version.
    let older = scene.client(&TLS12, Some(&ours)).ask();
    assert!(older.as_ref().is_err_and(|said| said.contains("ProtocolVersion")), "{older:?}");
    assert!(scene.client(&TLS13, Some(&ours)).ask().is_ok());
}

/// Connections of one listener at a time (SPEC 6.4).
const PLACES: usize = 128;

#[test]
fn who_finds_no_place_waits_for_one() {
    let scene = Scene::new();
    let ours = scene.ours();
    let mut held: Vec<TcpStream> =
        (1..PLACES).map(|_| TcpStream::connect(&scene.address).unwrap()).collect();
    // The last place is free.
    assert!(ours.ask().is_ok());
    held.push(TcpStream::connect(&scene.address).unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| ours.ask());
        thread::sleep(Duration::from_millis(1000));
        assert!(!waiting.is_finished(), "more than {PLACES} at a time");
        let given_up = Instant::now();
        held.pop();
        assert!(waiting.join().unwrap().is_ok());
        // Sooner than the others lose their places for saying nothing.
        assert!(given_up.elapsed() < Duration::from_secs(5));
    });
}

/// Descriptors that the monitor may have in the next test, and connections to it: fewer than have a place or wait for one.
const FILES: u64 = 192;
const HELD: usize = 240;

#[test]
fn connections_that_show_no_certificate_take_nothing_from_launches() {
    let scene = Scene::new();
    TestImage::write(&scene.monitor.images().join("test"), BoxKind::Closed);
    let mut early = UnixStream::connect(scene.monitor.dir.path().join("api.sock")).unwrap();
    let body = json!({ "image": "test", "box": "closed" }).to_string();
    let mut launch = || {
        let length = body.len();
        write!(early, "POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = vec![0; 4096];
        let n = early.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    // In order as far as a machine without KVM goes.
    assert!(launch().contains("kvm-unusable"));
    let process = rustix::process::Pid::from_raw(scene.monitor.pid() as i32);
    let few = rustix::process::Rlimit { current: Some(FILES), maximum: Some(FILES) };
    rustix::process::prlimit(process, rustix::process::Resource::Nofile, few).unwrap();
    let held = [(); HELD].map(|()| TcpStream::connect(&scene.address).unwrap());
    thread::sleep(Duration::from_millis(500));
    let answer = launch();
    assert!(answer.contains("kvm-unusable"), "{answer}");
    drop(held);
    assert!(scene.ours().ask().is_ok());
}
