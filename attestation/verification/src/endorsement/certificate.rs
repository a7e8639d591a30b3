//! One X.509 certificate, parsed by x509-parser and judged here.

use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use rsa::BoxedUint;
use sha2::Digest as _;
use x509_parser::prelude::*;
use x509_parser::public_key::RSAPublicKey;

use crate::Reject;
use crate::tpm::public::Key;

/// tcg-kp-EKCertificate (EK Credential Profile 2.6, 3.2.16).
const EK_CERTIFICATE: &str = "2.23.133.8.1";
/// tcg-at-tpmManufacturer, tcg-at-tpmModel, tcg-at-tpmVersion (3.2.9).
const TPM_ATTRIBUTES: [&str; 3] = ["2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"];
/// Most bytes of such an attribute that are worth keeping.
const ATTRIBUTE_MAX: usize = 64;

pub(super) struct Certificate<'a>(X509Certificate<'a>);

impl<'a> Certificate<'a> {
    /// Parses a certificate with nothing after it.
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, Reject> {
        let (rest, certificate) = Self::split(der)?;
        if rest.is_empty() { Ok(certificate) } else { Err(Reject::TrailingData) }
    }

    /// Parses a certificate that zero bytes may follow.
    pub(super) fn parse_padded(der: &'a [u8]) -> Result<Self, Reject> {
        let (rest, certificate) = Self::split(der)?;
        if rest.iter().all(|b| *b == 0) { Ok(certificate) } else { Err(Reject::TrailingData) }
    }

    fn split(der: &'a [u8]) -> Result<(&'a [u8], Self), Reject> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| Reject::BadEkCert)?;
        let well_formed = x509.version() == X509Version::V3
            // RFC 5280, 4.1.1.2: the algorithm is named twice and must agree.
            && x509.signature_algorithm == x509.tbs_certificate.signature
            && x509.extensions_map().is_ok()
            && x509.extensions().iter().all(is_understood);
        if well_formed { Ok((rest, Self(x509))) } else { Err(Reject::BadEkCert) }
    }

    /// True if this certificate's subject is the other's issuer, byte for byte.
    pub(super) fn issued(&self, other: &Certificate<'_>) -> bool {
        self.0.subject().as_raw() == other.0.issuer().as_raw()
    }

    /// An EK certificate: not an authority, not self-signed, for endorsement, already valid.
    pub(super) fn check_endorsement_leaf(&self, now: u64) -> Result<(), Reject> {
        if self.issued(self) {
            return Err(Reject::UntrustedRoot);
        }
        let authority = self.basic_constraints()?.is_some_and(|constraints| constraints.ca)
            || self.key_usage()?.is_some_and(KeyUsage::key_cert_sign);
        let endorses = matches!(
            self.0.extended_key_usage(),
            Ok(Some(usage)) if usage.value.other.iter().any(|oid| oid.to_id_string() == EK_CERTIFICATE)
        );
        let started = self.0.validity().not_before.timestamp() <= timestamp(now)?;
        if authority || !endorses || !started { Err(Reject::BadEkCert) } else { Ok(()) }
    }

    /// An authority that is valid now and may have this many authorities below it.
    pub(super) fn check_authority(&self, authorities_below: usize, now: u64) -> Result<(), Reject> {
        let constraints = self.basic_constraints()?.ok_or(Reject::BadEkCert)?;
        let long_enough = constraints
            .path_len_constraint
            .is_none_or(|most| usize::try_from(most).is_ok_and(|most| authorities_below <= most));
        // Without a key usage extension every usage is allowed (RFC 5280, 4.2.1.3).
        let signs = self.key_usage()?.is_none_or(KeyUsage::key_cert_sign);
        let (now, validity) = (timestamp(now)?, self.0.validity());
        let valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
        if constraints.ca && long_enough && signs && valid {
            Ok(())
        } else {
            Err(Reject::BadEkCert)
        }
    }

    /// Verifies this certificate's signature by the issuer's key.
    pub(super) fn check_signature(&self, issuer: &Certificate<'_>) -> Result<(), Reject> {
        let message = self.0.tbs_certificate.as_ref();
        let signature = self.0.signature_value.data.as_ref();
        let algorithm = self.0.signature_algorithm.algorithm.to_id_string();
        let verified = match (algorithm.as_str(), issuer.key()?) {
            ("1.2.840.113549.1.1.5" | "1.2.840.10045.4.1", _) => return Err(Reject::WeakHash),
            ("1.2.840.113549.1.1.11", Key::Rsa(key)) => {
                rsa::<sha2::Sha256>(*key, message, signature)
            }
            ("1.2.840.113549.1.1.12", Key::Rsa(key)) => {
                rsa::<sha2::Sha384>(*key, message, signature)
            }
            ("1.2.840.113549.1.1.13", Key::Rsa(key)) => {
                rsa::<sha2::Sha512>(*key, message, signature)
            }
            ("1.2.840.10045.4.3.2", key) => ecdsa(&key, &sha2::Sha256::digest(message), signature),
            ("1.2.840.10045.4.3.3", key) => ecdsa(&key, &sha2::Sha384::digest(message), signature),
            ("1.2.840.10045.4.3.4", key) => ecdsa(&key, &sha2::Sha512::digest(message), signature),
            _ => return Err(Reject::BadEkCert),
        };
        if verified { Ok(()) } else { Err(Reject::BadEkCert) }
    }

    /// The certified key.
    pub(super) fn key(&self) -> Result<Key, Reject> {
        let spki = self.0.public_key();
        let bytes = spki.subject_public_key.data.as_ref();
        match spki.algorithm.algorithm.to_id_string().as_str() {
            // rsaEncryption, and id-RSAES-OAEP as some vendors certify an EK.
            "1.2.840.113549.1.1.1" | "1.2.840.113549.1.1.7" => rsa_key(bytes),
            "1.2.840.10045.2.1" => {
                let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
                match curve.map(|oid| oid.to_id_string()).as_deref() {
                    Some("1.2.840.10045.3.1.7") => p256::PublicKey::from_sec1_bytes(bytes)
                        .map(Key::P256)
                        .map_err(|_| Reject::BadKey),
                    Some("1.3.132.0.34") => p384::PublicKey::from_sec1_bytes(bytes)
                        .map(Key::P384)
                        .map_err(|_| Reject::BadKey),
                    _ => Err(Reject::WeakKey),
                }
            }
            _ => Err(Reject::BadEkCert),
        }
    }

    /// Manufacturer, model and version from the directory name in the subject alternative name.
    pub(super) fn tpm_attributes(&self) -> Result<(String, String, String), Reject> {
        let names = match self.0.subject_alternative_name() {
            Ok(Some(names)) => &names.value.general_names,
            _ => return Err(Reject::BadEkCert),
        };
        let attribute = |oid: &str| {
            names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::DirectoryName(name) => Some(name),
                    _ => None,
                })
                .flat_map(|name| name.iter_attributes())
                .find(|attribute| attribute.attr_type().to_id_string() == oid)
                .and_then(|attribute| attribute.as_str().ok())
                .filter(|text| {
                    text.len() <= ATTRIBUTE_MAX && text.bytes().all(|b| (0x20..0x7f).contains(&b))
                })
                .map(str::to_owned)
                .ok_or(Reject::BadEkCert)
        };
        let [manufacturer, model, version] = TPM_ATTRIBUTES;
        Ok((attribute(manufacturer)?, attribute(model)?, attribute(version)?))
    }

    fn basic_constraints(&self) -> Result<Option<&BasicConstraints>, Reject> {
        let extension = self.0.basic_constraints().map_err(|_| Reject::BadEkCert)?;
        Ok(extension.map(|extension| extension.value))
    }

    fn key_usage(&self) -> Result<Option<&KeyUsage>, Reject> {
        let extension = self.0.key_usage().map_err(|_| Reject::BadEkCert)?;
        Ok(extension.map(|extension| extension.value))
    }
}

/// A critical extension must be one that is judged here (RFC 5280, 4.2); none may be unreadable.
fn is_understood(extension: &X509Extension<'_>) -> bool {
    use ParsedExtension as P;
    match extension.parsed_extension() {
        P::ParseError { .. } => false,
        P::BasicConstraints(_)
        | P::KeyUsage(_)
        | P::ExtendedKeyUsage(_)
        | P::SubjectAlternativeName(_) => true,
        _ => !extension.critical,
    }
}

fn rsa_key(der: &[u8]) -> Result<Key, Reject> {
    let (rest, key) = RSAPublicKey::from_der(der).map_err(|_| Reject::BadKey)?;
    let modulus = key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus);
    if !rest.is_empty() || modulus.first().is_none_or(|b| b & 0x80 == 0) {
        return Err(Reject::BadKey);
    }
    if !matches!(modulus.len(), 256..=512) || key.try_exponent() != Ok(65537) {
        return Err(Reject::WeakKey);
    }
    let n = BoxedUint::from_be_slice_vartime(modulus);
    rsa::PublicKey::new(n, BoxedUint::from(65537u64))
        .map(|key| Key::Rsa(Box::new(key)))
        .map_err(|_| Reject::BadKey)
}

/// RSASSA-PKCS1-v1_5 (RFC 8017, 8.2.2).
fn rsa<D>(key: rsa::PublicKey, message: &[u8], signature: &[u8]) -> bool
where
    D: sha2::Digest + rsa::pkcs8::AssociatedOid,
{
    rsa::pkcs1v15::Signature::try_from(signature).is_ok_and(|signature| {
        rsa::pkcs1v15::VerifyingKey::<D>::new(key)
            .verify_prehash(&D::digest(message), &signature)
            .is_ok()
    })
}

/// ECDSA with a DER signature (RFC 5480, appendix A).
fn ecdsa(key: &Key, prehash: &[u8], signature: &[u8]) -> bool {
    match key {
        Key::P256(key) => p256::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
            p256::ecdsa::VerifyingKey::from(key).verify_prehash(prehash, &signature).is_ok()
        }),
        Key::P384(key) => p384::ecdsa::Signature::from_der(signature).is_ok_and(|signature| {
            p384::ecdsa::VerifyingKey::from(key).verify_prehash(prehash, &signature).is_ok()
        }),
        Key::Rsa(_) => false,
    }
}

fn timestamp(unix: u64) -> Result<i64, Reject> {
    i64::try_from(unix).map_err(|_| Reject::LimitExceeded)
}
