//! TLS between appliances by their ENDORSE certificates (SPEC 6.9.4): each side takes the other for what its monitor says it
//! is, and for nothing else. No name, no CA store.

use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use coffer_attestation::Reject;
use coffer_exchange::endorsement::GuestId;
use coffer_exchange::peer::{Own, Peer, PeerRefusal, check_peer};
use coffer_exchange::x509::Certificate;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName,
    Error, OtherError, PeerIncompatible, ServerConfig, ServerConnection, SignatureScheme, Stream,
    version,
};

/// What an appliance has for its handshakes.
#[derive(Debug)]
pub struct Identity {
    own: GuestId,
    own_ca: Vec<u8>,
    key: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// From GET-ID, and a key with the chain that ENDORSE gave for it.
    pub fn new(
        own: GuestId,
        own_ca: Vec<u8>,
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Arc<Self>> {
        let key = ring::sign::any_ecdsa_type(key).context("the key is none for ECDSA")?;
        // Not from_der, which refuses the critical extension.
        let key = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        Ok(Arc::new(Self { own, own_ca, key, provider: Arc::new(ring::default_provider()) }))
    }

    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        beside: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Peer, Error> {
        let own = Own { id: &self.own, ca: &self.own_ca };
        let judged = match beside {
            [ca] => check_peer(&own, certificate, ca, &[], now.as_secs()),
            _ => Err(PeerRefusal::Forged),
        };
        judged.map_err(|refusal| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
        })
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let parsed = Certificate::parse(certificate)
            .map_err(|_: Reject| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(parsed.spki),
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    /// A handshake as the one who is connected to.
    pub fn accept(self: &Arc<Self>, transport: impl Read + Write) -> Result<Vec<u8>> {
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(Judge(Arc::clone(self))))
            .with_cert_resolver(self.key.clone());
        let mut tls = ServerConnection::new(Arc::new(config))?;
        greet(&mut tls, transport)
    }

    /// A handshake as the one who connects. Nobody has a name here.
    pub fn connect(self: &Arc<Self>, transport: impl Read + Write) -> Result<Vec<u8>> {
        let config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Judge(Arc::clone(self))))
            .with_client_cert_resolver(self.key.clone());
        let name = ServerName::try_from("peer")?;
        let mut tls = ClientConnection::new(Arc::new(config), name)?;
        greet(&mut tls, transport)
    }

    /// The instance the peer's certificate names.
    pub fn who(&self, certificate: &[u8]) -> Result<String> {
        let parsed = Certificate::parse(certificate)?;
        let id = parsed.guest_id.context("it is no guest's")?;
        let id: GuestId = coffer_attestation::cbor::decode(id, id.len())?;
        Ok(id.instance_id.to_hex())
    }
}

/// Both say hello inside; the peer's certificate.
fn greet<C, D>(tls: &mut C, mut transport: impl Read + Write) -> Result<Vec<u8>>
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    D: rustls::SideData,
{
    let mut stream = Stream::new(tls, &mut transport);
    stream.write_all(b"hello")?;
    stream.flush()?;
    let mut said = [0; 5];
    stream.read_exact(&mut said)?;
    anyhow::ensure!(&said == b"hello", "the peer says something else");
    let certificates = tls.peer_certificates().context("the peer shows no certificate")?;
    Ok(certificates.first().context("the peer shows no certificate")?.to_vec())
}

/// The refusal that ended a handshake, if one of ours did.
pub fn refusal(error: &anyhow::Error) -> Option<PeerRefusal> {
    let tls = error.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<Error>()?;
    match tls {
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
            why.downcast_ref::<PeerRefusal>().copied()
        }
        _ => None,
    }
}

#[derive(Debug)]
struct Judge(Arc<Identity>);

const NO_TLS12: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        beside: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.judge(certificate, beside, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        beside: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.judge(certificate, beside, now).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(NO_TLS12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use coffer_attestation::launch::BoxKind;
    use coffer_attestation::{Digest, InstanceId};
    use coffer_exchange::channel::{Answer, Request};
    use coffer_services::{Services, endorsement::Endorsements};
    use p256::SecretKey;
    use p256::elliptic_curve::sec1::ToSec1Point as _;
    use p256::pkcs8::EncodePrivateKey as _;

    use super::*;

    /// A host's monitor.
    fn monitor() -> Services {
        let endorsements = Arc::new(Endorsements::new(None).unwrap());
        Services {
            vault: Err("this host keeps no sealed store".into()),
            endorsements,
            pace: Arc::default(),
        }
    }

    /// A guest of it, with a key of its own. `certified` is whose key the certificate is for.
    fn guest(
        monitor: &Services,
        n: u8,
        image: u8,
        box_kind: BoxKind,
        certified: u8,
    ) -> Arc<Identity> {
        let vm = GuestId {
            version: 1,
            box_kind,
            image_id: Digest([image; 32]),
            signer: None,
            svn: 1,
            launch_digest: Digest([n; 32]),
            instance_id: InstanceId([n; 16]),
            incarnation: 1,
            hak_name: None,
        };
        let Answer::Id(own, ca) = monitor.answer(&vm, Request::GetId) else { panic!("no id") };
        let of = |n: u8| SecretKey::from_slice(&[n; 32]).unwrap();
        let point = of(certified).public_key().to_sec1_point(false);
        let point = point.as_bytes().to_vec().into();
        let chain = match monitor.answer(&vm, Request::Endorse(point)) {
            Answer::Endorsed(leaf, ca) => [leaf, ca].map(|der| Vec::from(der).into()).into(),
            other => panic!("{other:?}"),
        };
        let key = of(n).to_pkcs8_der().unwrap();
        let key = PrivateKeyDer::try_from(key.as_bytes()).unwrap();
        Identity::new(*own, ca.into(), chain, &key).unwrap()
    }

    /// What comes of a handshake for who is connected to, and for who connects.
    fn shake(server: &Arc<Identity>, client: &Arc<Identity>) -> (Result<String>, Result<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = Arc::clone(server);
        let served = std::thread::spawn(move || {
            serving.accept(ours).and_then(|certificate| serving.who(&certificate))
        });
        let called = client.connect(theirs).and_then(|certificate| client.who(&certificate));
        (served.join().unwrap(), called)
    }

    /// Both refuse, each when it is the one who judges first.
    #[track_caller]
    fn refuse(one: &Arc<Identity>, other: &Arc<Identity>, expected: PeerRefusal) {
        let (served, called) = shake(one, other);
        assert!(served.is_err());
        assert_eq!(refusal(&called.unwrap_err()), Some(expected));
    }

    #[test]
    fn two_appliances_of_one_image_shake_hands_and_a_third_does_not() {
        let host = monitor();
        let closed = |n, image| guest(&host, n, image, BoxKind::Closed, n);
        let (one, two, third) = (closed(1, 7), closed(2, 7), closed(3, 8));
        let (served, called) = shake(&one, &two);
        assert_eq!(served.unwrap(), "02".repeat(16));
        assert_eq!(called.unwrap(), "01".repeat(16));
        refuse(&one, &third, PeerRefusal::OtherImage);
        refuse(&third, &one, PeerRefusal::OtherImage);
        // An open box of the same image, and a closed one on a host that nobody vouches for.
        let open = guest(&host, 4, 7, BoxKind::Open, 4);
        refuse(&open, &one, PeerRefusal::NotClosed);
        refuse(&guest(&monitor(), 5, 7, BoxKind::Closed, 5), &one, PeerRefusal::NotOfThisHost);
    }

    #[test]
    fn a_server_judges_its_clients_too() {
        let host = monitor();
        let one = guest(&host, 1, 7, BoxKind::Closed, 1);
        let open = guest(&host, 2, 7, BoxKind::Open, 2);
        // The open box takes the closed one for what it is, and is not taken.
        let (served, called) = shake(&one, &open);
        assert_eq!(refusal(&served.unwrap_err()), Some(PeerRefusal::NotClosed));
        assert!(called.is_err());
    }

    #[test]
    fn a_certificate_without_its_key_is_worth_nothing() {
        let host = monitor();
        let one = guest(&host, 1, 7, BoxKind::Closed, 1);
        let thief = guest(&host, 2, 7, BoxKind::Closed, 9);
        let (served, called) = shake(&one, &thief);
        assert!(served.unwrap_err().to_string().contains("invalid peer certificate: BadSignature"));
        assert!(called.is_err());
    }
}
