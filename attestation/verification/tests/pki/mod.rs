//! Certificate chains to be made wrong: root, intermediate and leaf by rcgen, and leaves changed below
//! what rcgen writes and signed again.
#![allow(dead_code, reason = "each test binary uses its part")]

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{Endorsed, Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use coffer_attestation::tpm::wire::Writer;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber, SigningKey,
};
use time::OffsetDateTime;

/// 2026-06-01, when the made chains are judged.
pub const NOW: u64 = 1_780_272_000;
/// tcg-kp-EKCertificate.
pub const EK_CERTIFICATE: &[u64] = &[2, 23, 133, 8, 1];

/// A certificate to be, and its key.
pub struct Party {
    pub params: CertificateParams,
    pub key: KeyPair,
}

/// Root, intermediate and leaf; a case changes one of them before they are signed.
pub struct Chain {
    pub root: Party,
    pub intermediate: Party,
    pub leaf: Party,
}

impl Chain {
    pub fn good() -> Self {
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        Self {
            root: Party { params: authority("root"), key: p384 },
            intermediate: Party { params: authority("intermediate"), key: p256() },
            leaf: Party { params: ek("id:00000001"), key: p256() },
        }
    }

    pub fn judge(&self) -> Result<Endorsed, Reject> {
        let (root, issuer, leaf) = self.sign();
        verify_chain(&leaf, &[issuer], &self.ek(), &hardware([&root]), NOW)
    }

    /// The verdict with the leaf's bytes changed after signing.
    pub fn judge_changed(
        &self,
        change: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) -> Result<Endorsed, Reject> {
        let (root, issuer, leaf) = self.sign();
        verify_chain(&change(leaf), &[issuer], &self.ek(), &hardware([&root]), NOW)
    }

    /// The verdict with the leaf's content changed and signed again.
    pub fn judge_resigned(&self, edit: impl FnOnce(&mut Vec<Vec<u8>>)) -> Result<Endorsed, Reject> {
        self.judge_changed(|leaf| resign(&leaf, &self.intermediate.key, edit))
    }

    pub fn sign(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let root = self.root.params.self_signed(&self.root.key).unwrap();
        let issuer = issue(&self.intermediate, &self.root);
        (root.der().to_vec(), issuer, issue(&self.leaf, &self.intermediate))
    }

    /// The leaf's key as an EK of template L-2.
    pub fn ek(&self) -> Public {
        let template = template::ek_p256();
        let (x, y) = self.leaf.key.public_key_raw()[1..].split_at(32);
        let bytes =
            Writer::new().bytes(&template[..template.len() - 68]).tpm2b(x).tpm2b(y).finish();
        Public::parse(&bytes).unwrap()
    }
}

pub fn p256() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

pub fn hardware<'a>(ders: impl IntoIterator<Item = &'a Vec<u8>>) -> Roots {
    let mut roots = Roots::new();
    ders.into_iter().for_each(|der| roots.add_hardware(der).unwrap());
    roots
}

/// What every EK certificate has, by a maker.
pub fn ek(maker: &str) -> CertificateParams {
    let mut params = named("ek");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE.to_vec())];
    params.custom_extensions = vec![tpm_name(maker, &[1, 2, 3])];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&[0x42, 0x17]));
    params
}

pub fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&[0x21, 0x05]));
    params
}

pub fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(NOW - 1_000_000);
    params.not_after = at(NOW + 1_000_000);
    params
}

pub fn issue(subject: &Party, issuer: &Party) -> Vec<u8> {
    sign_with(&subject.params, &subject.key, issuer)
}

pub fn sign_with(params: &CertificateParams, key: &impl PublicKeyData, issuer: &Party) -> Vec<u8> {
    let issuer = Issuer::from_params(&issuer.params, &issuer.key);
    params.signed_by(key, &issuer).unwrap().der().to_vec()
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

/// subjectAltName with a directory name of these TCG attributes, each in its RDN.
pub fn tpm_name(maker: &str, attributes: &[u8]) -> CustomExtension {
    extension(&[2, 5, 29, 17], false, der(0x30, &[directory_name(maker, attributes)]))
}

pub fn directory_name(maker: &str, attributes: &[u8]) -> Vec<u8> {
    let attribute = |n: &u8| {
        let text = if *n == 1 { maker.to_owned() } else { format!("id:0000000{n}") };
        tpm_attribute(*n, &text)
    };
    der(0xa4, &[der(0x30, &attributes.iter().map(attribute).collect::<Vec<_>>())])
}

/// An RDN of one TCG attribute.
pub fn tpm_attribute(n: u8, text: &str) -> Vec<u8> {
    let oid = der(6, &[vec![0x67, 0x81, 0x05, 0x02, n]]);
    der(0x31, &[der(0x30, &[oid, der(12, &[text.as_bytes().to_vec()])])])
}

/// One DER element of these parts.
pub fn der(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let length = match content.len() {
        n @ 0..=0x7f => vec![n as u8],
        n @ 0x80..=0xff => vec![0x81, n as u8],
        n @ 0x100..=0xffff => vec![0x82, (n >> 8) as u8, n as u8],
        n => vec![0x83, (n >> 16) as u8, (n >> 8) as u8, n as u8],
    };
    [vec![tag], length, content].concat()
}

/// The elements in a content, whole.
pub fn elements(mut content: &[u8]) -> Vec<Vec<u8>> {
    let mut all = vec![];
    while !content.is_empty() {
        let (head, length) = match content[1] {
            0x81 => (3, usize::from(content[2])),
            0x82 => (4, usize::from(content[2]) << 8 | usize::from(content[3])),
            n => (2, usize::from(n)),
        };
        let (one, rest) = content.split_at(head + length);
        all.push(one.to_vec());
        content = rest;
    }
    all
}

/// The elements inside one constructed element.
pub fn inside(element: &[u8]) -> Vec<Vec<u8>> {
    let head = match element[1] {
        0x81 => 3,
        0x82 => 4,
        _ => 2,
    };
    elements(&element[head..])
}

/// Positions in a tbsCertificate (RFC 5280, 4.1).
pub const SERIAL: usize = 1;
pub const ISSUER: usize = 3;
pub const SUBJECT: usize = 5;
pub const KEY: usize = 6;
pub const EXTENSIONS: usize = 7;

/// Changes the fields of tbsCertificate and signs again with a P-256 key.
pub fn resign(
    certificate: &[u8],
    issuer: &KeyPair,
    edit: impl FnOnce(&mut Vec<Vec<u8>>),
) -> Vec<u8> {
    let [tbs, algorithm, _] = inside(certificate).try_into().unwrap();
    let mut fields = inside(&tbs);
    edit(&mut fields);
    let tbs = der(0x30, &fields);
    let signature = issuer.sign(&tbs).unwrap();
    der(0x30, &[tbs, algorithm, der(3, &[vec![0], signature])])
}

/// Changes one extension's DER, found by the end of its OID.
pub fn edit_extension(fields: &mut [Vec<u8>], oid: &[u8], edit: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let [list] = inside(&fields[EXTENSIONS]).try_into().unwrap();
    let mut all = inside(&list);
    let one = all.iter_mut().find(|one| inside(one)[0].ends_with(oid)).unwrap();
    let mut parts = inside(one);
    edit(&mut parts);
    *one = der(0x30, &parts);
    fields[EXTENSIONS] = der(0xa3, &[der(0x30, &all)]);
}

/// A change of one good chain, and what then comes out.
#[track_caller]
pub fn refuses(reject: Reject, name: &str, change: impl FnOnce(&mut Chain)) {
    let mut chain = Chain::good();
    change(&mut chain);
    assert_eq!(chain.judge(), Err(reject), "{name}");
}

#[track_caller]
pub fn accepts(name: &str, change: impl FnOnce(&mut Chain)) -> Endorsed {
    let mut chain = Chain::good();
    change(&mut chain);
    chain.judge().unwrap_or_else(|reject| panic!("{name}: {reject:?}"))
}

/// subjectDirectoryAttributes with a tpmSpecification of level 0 and this revision, DER.
pub fn specification(critical: bool, revision: &[u8]) -> rcgen::CustomExtension {
    let attribute = specification_of("2.0", &[revision.to_vec()]);
    extension(&[2, 5, 29, 9], critical, der(0x30, &[attribute]))
}

/// tpmSpecification of level 0 with what follows the level.
pub fn specification_of(family: &str, more: &[Vec<u8>]) -> Vec<u8> {
    let oid = der(6, &[vec![0x67, 0x81, 0x05, 0x02, 0x10]]);
    let family = der(12, &[family.as_bytes().to_vec()]);
    let value = der(0x30, &[&[family, vec![2, 1, 0]], more].concat());
    der(0x30, &[oid, der(0x31, &[value])])
}

/// Name constraints that permit one DNS name.
pub fn constraints() -> Vec<u8> {
    der(0x30, &[der(0xa0, &[der(0x30, &[der(0x82, &[b"a.example".to_vec()])])])])
}
