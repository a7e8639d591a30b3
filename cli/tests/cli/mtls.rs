//! A real `coffer-monitor` over TLS: whoever has a certificate of its client CA manages it, and nobody else (SPEC 6.4.5).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::real_monitor::Monitor;
use crate::support::{Place, Refusal, succeeds};

const CLIENT: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ClientAuth;
const SERVER: ExtendedKeyUsagePurpose = ExtendedKeyUsagePurpose::ServerAuth;

/// A CA and what it signs, in files.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    file: PathBuf,
}

impl Authority {
    fn new(place: &Place, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let file = place.write(&format!("{name}.pem"), pem);
        Self { params, key, file }
    }

    /// Certificate and key, good until `year`.
    fn sign(
        &self,
        place: &Place,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        year: i32,
    ) -> [PathBuf; 2] {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        [
            place.write(&format!("{name}.crt"), certificate),
            place.write(&format!("{name}.key"), key.serialize_pem()),
        ]
    }
}

struct Scene {
    place: Place,
    monitor: Monitor,
    address: String,
    server: Authority,
    clients: Authority,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let server = Authority::new(&place, "server-ca");
        let clients = Authority::new(&place, "client-ca");
        let [certificate, key] = server.sign(&place, "server", SERVER, 2090);
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let [certificate, key, ca] =
            [&certificate, &key, &clients.file].map(|path| path.to_str().unwrap().to_owned());
        let flags = ["--tls-listen", &address, "--tls-cert", &certificate];
        let flags = [&flags[..], &["--tls-key", &key, "--client-ca", &ca]].concat();
        let monitor = Monitor::start(&flags);
        Self { place, monitor, address, server, clients }
    }

    fn ps(&self, ca: &Path, [certificate, key]: &[PathBuf; 2]) -> assert_cmd::Command {
        let mut coffer = self.place.coffer();
        coffer.args(["ps", "--json", "--host", &format!("https://{}", self.address)]);
        coffer.arg("--tls-ca").arg(ca);
        coffer.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        coffer
    }

    /// What the monitor answers a client of another make, which has no certificate.
    fn raw(&self, version: &'static rustls::SupportedProtocolVersion) -> std::io::Result<String> {
        let mut roots = RootCertStore::empty();
        let ca = std::fs::read(&self.server.file).unwrap();
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(client, TcpStream::connect(&self.address).unwrap());
        stream.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

#[test]
fn a_certificate_of_the_client_ca_is_what_it_takes() {
    let scene = Scene::new();
    let ours = scene.clients.sign(&scene.place, "ours", CLIENT, 2090);
    let ca = scene.server.file.clone();
    assert_eq!(succeeds(&mut scene.ps(&ca, &ours)), "[]\n");
    // The same by the environment.
    let mut by_environment = scene.place.coffer();
    by_environment.arg("ps").env("COFFER_HOST", format!("https://{}", scene.address));
    by_environment.env("COFFER_TLS_CA", &ca);
    by_environment.env("COFFER_TLS_CERT", &ours[0]).env("COFFER_TLS_KEY", &ours[1]);
    assert!(succeeds(&mut by_environment).starts_with("ID "));

    let refused = |ca: &Path, files: &[PathBuf; 2], reason: &str, hint: &str| {
        let output = scene.ps(ca, files).output().unwrap();
        assert_eq!(output.stdout, b"");
        Refusal::of(&output).says(1, reason, hint);
    };
    let theirs = "refuses this client's certificate";
    let stranger = Authority::new(&scene.place, "stranger");
    let strange = stranger.sign(&scene.place, "strange", CLIENT, 2090);
    refused(&ca, &strange, &format!("{theirs}: its client CA did not sign it"), "--tls-cert");
    let expired = scene.clients.sign(&scene.place, "expired", CLIENT, 2020);
    refused(&ca, &expired, &format!("{theirs}: it has expired"), "--tls-cert");
    // The certificate of a server is none of a client, nor is the server's CA one of clients.
    let wrong_use = scene.clients.sign(&scene.place, "use", SERVER, 2090);
    refused(&ca, &wrong_use, theirs, "--tls-cert");
    let by_server_ca = scene.server.sign(&scene.place, "by-server", CLIENT, 2090);
    refused(&ca, &by_server_ca, theirs, "--tls-cert");
    // A monitor that is not the one meant gets nothing said to it.
    let not_signed = "its certificate is not acceptable: it was not signed by the CA given";
    refused(&stranger.file, &ours, not_signed, "--tls-ca");
}

#[test]
fn without_a_certificate_or_with_an_older_tls_or_with_none_there_is_no_answer() {
    let scene = Scene::new();
    let none = scene.raw(&rustls::version::TLS13).unwrap_err();
    assert!(none.to_string().contains("CertificateRequired"), "{none}");
    let older = scene.raw(&rustls::version::TLS12).unwrap_err();
    assert!(older.to_string().contains("ProtocolVersion"), "{older}");
    let mut stream = TcpStream::connect(&scene.address).unwrap();
    stream.write_all(b"GET /v1/vms HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // However it ends.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    // The Unix socket of the same monitor answers all the while.
    let by_socket = ["ps", "--json", "--host", &scene.monitor.endpoint()];
    assert_eq!(succeeds(scene.place.coffer().args(by_socket)), "[]\n");
}

#[test]
fn files_that_are_missing_or_wrong_are_said_before_anything_is_asked() {
    let place = Place::new();
    let https = "https://127.0.0.1:1";
    place.refused(&["ps", "--host", https]).says(2, "wants three files", "COFFER_TLS_CA");
    let odd = place.write("odd", "not PEM");
    let odd = odd.to_str().unwrap();
    let files = ["--tls-ca", odd, "--tls-cert", odd, "--tls-key", odd];
    let refusal = place.refused(&[&["ps", "--host", https][..], &files].concat());
    refusal.says(1, "is not a certificate in PEM", "beforehand");
    // And by the monitor, before it takes its state directory.
    let files = ["--tls-cert", odd, "--tls-key", odd, "--client-ca", odd];
    let said = Monitor::fails(&[&["--tls-listen", "127.0.0.1:1"][..], &files].concat());
    assert!(said.contains("--tls-listen") && said.contains("hint: name PEM files"), "{said}");
    let said = Monitor::fails(&["--tls-listen", "127.0.0.1:1"]);
    assert!(said.contains("--client-ca"), "{said}");
}
