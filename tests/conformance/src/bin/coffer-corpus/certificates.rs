//! EK certificate chains with fixed keys and deterministic signatures, to be made wrong before they are signed.

use coffer_attestation::tpm::template;
use coffer_attestation::tpm::wire::Writer;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SerialNumber, SignatureAlgorithm, SigningKey,
};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use time::OffsetDateTime;

use crate::keys::{Key, Private};

/// 2026-06-01, when the chains are judged.
pub const NOW: u64 = 1_780_272_000;
/// tcg-kp-EKCertificate.
pub const EK_CERTIFICATE: &[u64] = &[2, 23, 133, 8, 1];

/// A key that certificates name and that signs them.
pub struct Signer {
    key: Key,
    public: Vec<u8>,
}

impl Signer {
    pub fn new(key: Key) -> Self {
        let public = match &key.private {
            Private::Rsa(key) => key.as_public_key().to_pkcs1_der().unwrap().as_bytes().to_vec(),
            _ => [&[4], &key.unique()[..]].concat(),
        };
        Self { key, public }
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.key.private {
            Private::P256(_) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Private::P384(_) => &rcgen::PKCS_ECDSA_P384_SHA384,
            Private::Rsa(_) => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign_der(message))
    }
}

/// A certificate to be, and its key.
pub struct Party {
    pub params: CertificateParams,
    pub signer: Signer,
}

impl Party {
    pub fn issue(&self, issuer: &Party) -> Vec<u8> {
        let issuer = Issuer::from_params(&issuer.params, &issuer.signer);
        self.params.signed_by(&self.signer, &issuer).unwrap().der().to_vec()
    }

    pub fn self_signed(&self) -> Vec<u8> {
        self.params.self_signed(&self.signer).unwrap().der().to_vec()
    }

    /// A CRL of this authority that names these serial numbers.
    pub fn revoke(&self, serials: &[&[u8]], next_update: u64) -> Vec<u8> {
        let revoked = |serial: &&[u8]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: at(NOW - 5000),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(NOW - 4000),
            next_update: at(next_update),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_params(&self.params, &self.signer);
        list.signed_by(&issuer).unwrap().der().to_vec()
    }
}

/// Root, intermediate and leaf; a case changes one of them before they are signed.
pub struct Chain {
    pub root: Party,
    pub intermediate: Party,
    pub leaf: Party,
    /// Other intermediates, root first, between root and `intermediate`.
    pub between: Vec<Party>,
}

impl Chain {
    pub fn ecc() -> Self {
        Self {
            root: Party { params: authority("root"), signer: Signer::new(Key::p384(11)) },
            intermediate: Party {
                params: authority("intermediate"),
                signer: Signer::new(Key::p256(12)),
            },
            leaf: Party { params: ek("id:494E5443"), signer: Signer::new(Key::p256(13)) },
            between: vec![],
        }
    }

    pub fn rsa() -> Self {
        let mut leaf = ek("id:494E5443");
        leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        Self {
            root: Party { params: authority("root"), signer: Signer::new(Key::rsa("rsa2048")) },
            intermediate: Party {
                params: authority("intermediate"),
                signer: Signer::new(Key::rsa("rsa2048-other")),
            },
            leaf: Party { params: leaf, signer: Signer::new(Key::rsa("rsa2048")) },
            between: vec![],
        }
    }

    /// The leaf's key as an EK of its template.
    pub fn ek(&self) -> Vec<u8> {
        let unique = self.leaf.signer.key.unique();
        if matches!(self.leaf.signer.key.private, Private::Rsa(_)) {
            let template = template::ek_rsa2048();
            return Writer::new().bytes(&template[..template.len() - 258]).tpm2b(&unique).finish();
        }
        let template = template::ek_p256();
        let (x, y) = unique.split_at(32);
        Writer::new().bytes(&template[..template.len() - 68]).tpm2b(x).tpm2b(y).finish()
    }

    /// Root, and what a host sends beside its leaf, the leaf's issuer first.
    pub fn authorities(&self) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut issuer = &self.root;
        let mut sent = Vec::new();
        for party in self.between.iter().chain([&self.intermediate]) {
            sent.push(party.issue(issuer));
            issuer = party;
        }
        sent.reverse();
        (self.root.self_signed(), sent)
    }

    pub fn leaf(&self) -> Vec<u8> {
        self.leaf.issue(&self.intermediate)
    }
}

/// What every EK certificate has: no subject, so its names are critical.
pub fn ek(maker: &str) -> CertificateParams {
    let mut params = valid();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE.to_vec())];
    params.custom_extensions = vec![tpm_name(maker, true)];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&[0x42, 0x17]));
    params
}

pub fn authority(name: &str) -> CertificateParams {
    let mut params = valid();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&[0x21, 0x05]));
    params
}

fn valid() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = at(NOW - 1_000_000);
    params.not_after = at(NOW + 1_000_000);
    params
}

pub fn at(unix: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix as i64).unwrap()
}

/// An extension with this content.
pub fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// subjectAltName with manufacturer, model and version in a directory name.
pub fn tpm_name(maker: &str, critical: bool) -> CustomExtension {
    let attribute = |(n, text): (u8, &str)| {
        let oid = der(6, &[vec![0x67, 0x81, 0x05, 0x02, n]]);
        der(0x31, &[der(0x30, &[oid, der(12, &[text.as_bytes().to_vec()])])])
    };
    let attributes = [(1, maker), (2, "Model"), (3, "id:00010002")].map(attribute);
    let name = der(0xa4, &[der(0x30, &attributes)]);
    extension(&[2, 5, 29, 17], critical, der(0x30, &[name]))
}

/// authorityInfoAccess with one URL of the issuer's certificate.
pub fn issuers_url(url: &str) -> CustomExtension {
    let ca_issuers = der(6, &[vec![0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x02]]);
    let location = der(0x86, &[url.as_bytes().to_vec()]);
    let access = der(0x30, &[der(0x30, &[ca_issuers, location])]);
    extension(&[1, 3, 6, 1, 5, 5, 7, 1, 1], false, access)
}

/// DER of short content.
pub fn der(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let length = match u8::try_from(content.len()).unwrap() {
        short @ 0..0x80 => vec![short],
        long => vec![0x81, long],
    };
    [vec![tag], length, content].concat()
}
