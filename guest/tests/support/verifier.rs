//! A verifier behind real TLS. It checks the VM quote and the binding of everything the guest made, then
//! releases: honestly, or with one of the deceits a guest must see through.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use coffer_attestation::quote::{QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::public::Public;
use coffer_exchange::evidence::Evidence;
use coffer_exchange::release::{Release, SealedSecret, SignedRelease};
use coffer_exchange::runtime::RuntimeData;
use coffer_exchange::tpm::pcr::VM_SELECTION;
use coffer_exchange::{Digest, InstanceId, Nonce, Reject, binding, cbor};
use coffer_init::appliance::{PinnedVerifier, SecretPlan, WantedSecret};
use hpke::{Deserializable as _, Kem as _, OpModeS, Serializable as _};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// One lie, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deceit {
    None,
    // The release.
    SignsWithAnotherKey,
    AnswersAnotherNonce,
    AnswersOtherEvidence,
    TampersAfterSigning,
    OmitsASecret,
    AddsASecret,
    RepeatsASecret,
    SealsToAnotherKey,
    SwapsCiphertexts,
    ClaimsAnotherVersion,
    ReleasesJunk,
    // The service.
    Refuses,
    RefusesInHtml,
    AnswersTooMuch,
    // The connection.
    ShowsAnotherCa,
    ShowsAnotherAddress,
    ShowsAnExpiredCertificate,
    SpeaksTls12,
    SpeaksPlainHttp,
    /// Closes this many connections before it serves one.
    Drops(usize),
    /// Closes the first connection when the evidence comes.
    DropsTheFirstRelease,
}

pub struct Verifier {
    port: u16,
    ca: CertificateDer<'static>,
    release_key: SigningKey,
    pub connections: Arc<AtomicUsize>,
}

pub const SECRETS: [(&str, &[u8]); 2] =
    [("nginx/tls-key", b"the private key"), ("nginx/token", b"the token")];

impl Verifier {
    pub fn start(deceit: Deceit) -> Self {
        let (ca, config) = certificates(deceit);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let release_key = signing_key(1);
        let connections = Arc::new(AtomicUsize::new(0));
        let service = Arc::new(Service { deceit, config, connections: Arc::clone(&connections) });
        thread::spawn(move || {
            for stream in listener.incoming() {
                let service = Arc::clone(&service);
                thread::spawn(move || service.serve(stream.unwrap()));
            }
        });
        Self { port, ca, release_key, connections }
    }

    /// What an image pins to get its secrets here.
    pub fn plan(&self) -> SecretPlan {
        let authority = format!("127.0.0.1:{}", self.port);
        let verifier = PinnedVerifier {
            audience: format!("https://{authority}"),
            authority,
            address: "127.0.0.1".parse().unwrap(),
            port: self.port,
            ca: vec![self.ca.clone()],
            release_key: *self.release_key.verifying_key(),
        };
        let file = |id: &str| id.rsplit('/').next().unwrap().to_owned();
        let wanted = SECRETS.iter().map(|(id, _)| WantedSecret {
            id: (*id).into(),
            file: file(id),
            mode: 0o400,
        });
        SecretPlan { verifier, wanted: wanted.collect() }
    }
}

fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).unwrap()
}

fn certificates(deceit: Deceit) -> (CertificateDer<'static>, Arc<ServerConfig>) {
    let authority = || {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (pinned, other) = (authority(), authority());
    let issuer = if deceit == Deceit::ShowsAnotherCa { &other } else { &pinned };
    let address = if deceit == Deceit::ShowsAnotherAddress { "127.0.0.2" } else { "127.0.0.1" };
    let mut params = CertificateParams::new(vec![address.into()]).unwrap();
    if deceit == Deceit::ShowsAnExpiredCertificate {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let version = if deceit == Deceit::SpeaksTls12 {
        &rustls::version::TLS12
    } else {
        &rustls::version::TLS13
    };
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
    (pinned.der().clone(), Arc::new(config))
}

struct Service {
    deceit: Deceit,
    config: Arc<ServerConfig>,
    connections: Arc<AtomicUsize>,
}

impl Service {
    fn serve(&self, mut tcp: TcpStream) {
        let earlier = self.connections.fetch_add(1, Ordering::SeqCst);
        match self.deceit {
            Deceit::Drops(count) if earlier < count => return,
            Deceit::SpeaksPlainHttp => {
                let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                return;
            }
            _ => {}
        }
        let tls = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(tls, tcp));
        let nonce = Nonce([earlier as u8 + 1; 32]);
        while let Some((path, body)) = read_request(&mut stream) {
            if path == "/v1/release" && self.deceit == Deceit::DropsTheFirstRelease && earlier == 0
            {
                return;
            }
            let (status, answer) = self.answer(&path, &body, nonce);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", answer.len());
            let stream = stream.get_mut();
            if stream.write_all(&[head.as_bytes(), &answer].concat()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, path: &str, body: &[u8], nonce: Nonce) -> (u16, Vec<u8>) {
        match (path, self.deceit) {
            ("/v1/challenge", _) => {
                (200, format!(r#"{{"nonce":"{nonce}","expires_in_s":60}}"#).into_bytes())
            }
            ("/v1/release", Deceit::Refuses) => (
                403,
                br#"{"code":"policy-denied","message":"no policy permits this release","request_id":"1"}"#.to_vec(),
            ),
            ("/v1/release", Deceit::RefusesInHtml) => (502, b"<html>bad gateway</html>".to_vec()),
            ("/v1/release", Deceit::ReleasesJunk) => (200, b"junk".to_vec()),
            ("/v1/release", Deceit::AnswersTooMuch) => (200, vec![0; (1 << 20) + 1]),
            ("/v1/release", _) => (200, release(self.deceit, body, &nonce)),
            _ => (404, b"{}".to_vec()),
        }
    }
}

/// Checks what the guest made, and releases.
fn release(deceit: Deceit, cmw: &[u8], nonce: &Nonce) -> Vec<u8> {
    let evidence = Evidence::from_cmw(cmw).unwrap();
    assert_eq!(evidence.nonce, *nonce);
    let report_data = RuntimeData::report_data(&evidence.runtime_data);
    let key = Public::parse(&evidence.vm.vak_public).unwrap();
    let quoted = ReceivedQuote::of(&evidence.vm.quote)
        .authenticate(&QuoteKey::endorsement_primary(&key))
        .unwrap()
        .bind(binding::vm_quote(nonce, &report_data).as_bytes(), Reject::NonceMismatch)
        .unwrap()
        .pcrs(VM_SELECTION, &evidence.vm.quote.pcrs)
        .unwrap();
    assert_eq!(*quoted.get(4).unwrap(), Digest::ZERO.extend(&Digest::of(&[b"kernel"])));
    assert_eq!(evidence.vm.quote.event_log, b"an event log");
    assert_eq!(evidence.host, super::monitor::host_part(nonce, &report_data));
    let runtime = RuntimeData::decode(&evidence.runtime_data).unwrap();
    assert!(runtime.audience.starts_with("https://127.0.0.1:"));
    assert_eq!(runtime.resources, SECRETS.map(|(id, _)| id));

    let digest = Evidence::digest(cmw);
    let mut release = Release {
        version: 1,
        nonce: *nonce,
        evidence: digest,
        instance_id: InstanceId([9; 16]),
        secrets: SECRETS
            .iter()
            .map(|(id, plain)| seal(id, plain, &runtime.hpke_key, &digest, nonce))
            .collect(),
    };
    let mut signer = signing_key(1);
    match deceit {
        Deceit::SignsWithAnotherKey => signer = signing_key(2),
        Deceit::AnswersAnotherNonce => release.nonce = Nonce([0xee; 32]),
        Deceit::AnswersOtherEvidence => release.evidence = Digest::ZERO,
        Deceit::OmitsASecret => drop(release.secrets.pop()),
        Deceit::AddsASecret => {
            release.secrets.push(seal("other", b"x", &runtime.hpke_key, &digest, nonce))
        }
        Deceit::RepeatsASecret => release.secrets.push(release.secrets[0].clone()),
        Deceit::SealsToAnotherKey => {
            let (_, other) = hpke::kem::X25519HkdfSha256::gen_keypair();
            release.secrets[1] =
                seal(SECRETS[1].0, SECRETS[1].1, &other.to_bytes().into(), &digest, nonce);
        }
        Deceit::SwapsCiphertexts => {
            let [first, second] = &mut release.secrets[..] else { unreachable!() };
            std::mem::swap(&mut first.ciphertext, &mut second.ciphertext);
            std::mem::swap(&mut first.encapsulated, &mut second.encapsulated);
        }
        Deceit::ClaimsAnotherVersion => release.secrets[0].version += 1,
        _ => {}
    }
    let mut payload = cbor::encode(&release);
    let signature: p256::ecdsa::Signature = signer.sign(&SignedRelease::signed_bytes(&payload));
    if deceit == Deceit::TampersAfterSigning {
        *payload.last_mut().unwrap() ^= 1;
    }
    cbor::encode(&SignedRelease { payload, signature: signature.to_bytes().to_vec() })
}

fn seal(id: &str, plain: &[u8], key: &[u8; 32], evidence: &Digest, nonce: &Nonce) -> SealedSecret {
    use hpke::aead::AesGcm256;
    use hpke::kdf::HkdfSha256;
    use hpke::kem::X25519HkdfSha256;
    let key = <X25519HkdfSha256 as hpke::Kem>::PublicKey::from_bytes(key).unwrap();
    let info = binding::release_info(evidence, nonce);
    let (encapsulated, mut context) =
        hpke::setup_sender::<AesGcm256, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &key, &info)
            .unwrap();
    let ciphertext = context.seal(plain, &binding::release_aad(id, 3)).unwrap();
    SealedSecret {
        id: id.into(),
        version: 3,
        encapsulated: encapsulated.to_bytes().to_vec(),
        ciphertext,
    }
}

type TlsStream = BufReader<StreamOwned<ServerConnection, TcpStream>>;

fn read_request(stream: &mut TlsStream) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.strip_prefix("POST ")?.split(' ').next()?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).ok()?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((path, body))
}
