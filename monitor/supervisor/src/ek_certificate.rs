//! EK certificates of vTPMs: a guest's tools find in NV what they would find in a chip's.
//!
//! They say that this monitor made this vTPM, for as long as this monitor runs: the CA's key is made at
//! start and never stored. A verifier trusts the host quote over the vAK's name, not these (SPEC 3.7).

use coffer_formats::tpm::made::MadeKey;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SignatureAlgorithm,
};
use time::{Duration, OffsetDateTime};

/// The monitor's own CA.
pub struct VtpmAuthority {
    issuer: Issuer<'static, KeyPair>,
}

impl VtpmAuthority {
    /// Makes a key and a name.
    pub fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Coffer monitor vTPM CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// A certificate for a vEK, DER (TCG EK Credential Profile 2.6, 3.2).
    pub fn certify(&self, ek: &MadeKey) -> Result<Vec<u8>, rcgen::Error> {
        let subject = SubjectKey(ek.point().to_vec());
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        // The subject is empty; the name is in a critical subjectAltName (RFC 5280, 4.1.2.6).
        params.distinguished_name = DistinguishedName::new();
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::days(365);
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE_USAGE.to_vec())];
        params.use_authority_key_identifier_extension = true;
        let mut name = CustomExtension::from_oid_content(SUBJECT_ALT_NAME, directory_name());
        name.set_criticality(true);
        params.custom_extensions = vec![name];
        Ok(params.signed_by(&subject, &self.issuer)?.der().to_vec())
    }
}

struct SubjectKey(Vec<u8>);

impl PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// id-ce-subjectAltName.
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
/// tcg-kp-EKCertificate.
const EK_CERTIFICATE_USAGE: [u64; 5] = [2, 23, 133, 8, 1];

/// GeneralNames { directoryName { manufacturer, model, version } } (profile 3.1.2): 2.23.133.2.{1,2,3}.
fn directory_name() -> Vec<u8> {
    let attributes: Vec<u8> = [(1, "id:49424D00"), (2, "swtpm-coffer"), (3, "id:20191023")]
        .iter()
        .flat_map(|(kind, value)| {
            // 2.23.133.2.N in base 128: 2*40+23 = 0x67, 133 = 0x81 0x05.
            let oid = der(0x06, &[0x67, 0x81, 0x05, 0x02, *kind]);
            let text = der(0x0c, value.as_bytes());
            der(0x31, &der(0x30, &[oid, text].concat()))
        })
        .collect();
    let name = der(0x30, &attributes);
    // [4] EXPLICIT directoryName, inside a SEQUENCE OF GeneralName.
    der(0x30, &der(0xa4, &name))
}

/// Tag, length, content. Nothing of ours is as long as 64 KiB.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let head: &[u8] = match length {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}
