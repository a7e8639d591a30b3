//! The EK certificate itself, held to the TCG EK Credential Profile 2.6, section 3.
//!
//! | field | asked | profile |
//! |---|---|---|
//! | basicConstraints | there, critical, no authority | 3.2.10 |
//! | keyUsage | if there: critical; keyEncipherment for RSA, keyAgreement for ECC; no signing of certificates or CRLs | 3.2.6 |
//! | extKeyUsage | tcg-kp-EKCertificate among what is there | 3.2.16 |
//! | subjectAltName | one directory name with manufacturer, model, version, each once; critical if the subject is empty | 3.2.9 |
//! | authorityKeyIdentifier | there, not critical | 3.2.4 |
//! | subjectDirectoryAttributes | if there: not critical; tpmSpecification readable | 3.2.11 |

use x509_parser::prelude::*;

use super::certificate::{Certificate, Issued, is_empty_name};
use super::der::{self, Der};
use super::key::PublicKey;
use super::quirk::Quirk;
use super::{Validity, vendor};
use crate::Reject;
use crate::tpm::public::Key;

/// tcg-kp-EKCertificate.
pub(super) const EK_CERTIFICATE: &str = "2.23.133.8.1";
/// tcg-at-tpmManufacturer, tcg-at-tpmModel, tcg-at-tpmVersion.
const TPM_ATTRIBUTES: [&str; 3] = ["2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3"];
/// tcg-at-tpmSpecification, 2.23.133.2.16, as DER content.
const TPM_SPECIFICATION: [u8; 5] = [0x67, 0x81, 0x05, 0x02, 0x10];
/// id-ce-subjectDirectoryAttributes.
const DIRECTORY_ATTRIBUTES: &str = "2.5.29.9";
/// id-ce-authorityKeyIdentifier.
const AUTHORITY_KEY: &str = "2.5.29.35";
/// Most bytes of a text attribute that are worth keeping.
const ATTRIBUTE_MAX: usize = 64;

/// A judged EK certificate.
pub(super) struct Leaf {
    pub(super) issued: Issued,
    pub(super) validity: Validity,
    pub(super) key: Key,
    pub(super) tpm: Tpm,
    pub(super) specification: Option<TpmSpecification>,
    pub(super) quirks: Vec<Quirk>,
}

/// Attributes of the directory name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tpm {
    pub(super) manufacturer: String,
    pub(super) model: String,
    pub(super) version: String,
    /// The manufacturer's four bytes.
    pub(super) maker: u32,
}

/// The TPM specification a chip was made to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TpmSpecification {
    /// Family, such as `2.0`.
    pub family: String,
    /// Level.
    pub level: u32,
    /// Revision times 100, such as 138.
    pub revision: u32,
}

/// Reads and judges a certificate as it was read from NV.
pub(super) fn read(received: &[u8]) -> Result<Leaf, Reject> {
    let (certificate, rest) = Certificate::parse(received, Reject::BadEkCert)?;
    // One that vouches for itself is nobody's endorsement, whatever else it is.
    if certificate.subject() == certificate.issuer() {
        return Err(Reject::UntrustedRoot);
    }
    check_not_an_authority(&certificate)?;
    if !certificate.purposes().is_some_and(|all| all.iter().any(|one| one == EK_CERTIFICATE)) {
        return Err(Reject::BadEkCert);
    }
    if certificate.extension(AUTHORITY_KEY).is_none_or(|extension| extension.critical) {
        return Err(Reject::BadEkCert);
    }
    let tpm = tpm(&certificate)?;
    let (key, for_oaep) = PublicKey::read_leaf(certificate.x509().public_key())?;
    check_key_usage(&certificate, &key)?;
    let mut quirks = padding(rest, tpm.maker)?;
    for quirk in deviations(&certificate).into_iter().chain(for_oaep.then_some(Quirk::RsaesOaepKey))
    {
        quirks.push(quirk.tolerate(tpm.maker, Reject::BadEkCert)?);
    }
    Ok(Leaf {
        issued: certificate.issued().ok_or(Reject::BadEkCert)?,
        validity: Validity {
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
        },
        key,
        tpm,
        specification: specification(&certificate)?,
        quirks,
    })
}

/// basicConstraints are there, critical, and say that this is no authority.
pub(super) fn check_not_an_authority(certificate: &Certificate<'_>) -> Result<(), Reject> {
    match certificate.basic_constraints() {
        Some((constraints, true))
            if !constraints.ca && constraints.path_len_constraint.is_none() =>
        {
            Ok(())
        }
        _ => Err(Reject::BadEkCert),
    }
}

fn check_key_usage(certificate: &Certificate<'_>, key: &Key) -> Result<(), Reject> {
    let Some((usage, critical)) = certificate.key_usage() else { return Ok(()) };
    let right = match key {
        Key::Rsa(_) => usage.key_encipherment(),
        Key::P256(_) | Key::P384(_) => usage.key_agreement(),
    };
    let signs = usage.key_cert_sign() || usage.crl_sign();
    if critical && right && !signs { Ok(()) } else { Err(Reject::BadEkCert) }
}

/// The TPM a certificate is for.
pub(super) fn tpm(certificate: &Certificate<'_>) -> Result<Tpm, Reject> {
    let (names, critical) = certificate.alternative_names().ok_or(Reject::BadEkCert)?;
    if is_empty_name(certificate.subject()) && !critical {
        return Err(Reject::BadEkCert);
    }
    let mut directory = names.iter().filter_map(|name| match name {
        GeneralName::DirectoryName(name) => Some(name),
        _ => None,
    });
    let readable = !names.iter().any(|name| matches!(name, GeneralName::Invalid(..)));
    let (Some(name), None, true) = (directory.next(), directory.next(), readable) else {
        return Err(Reject::BadEkCert);
    };
    let [manufacturer, model, version] =
        TPM_ATTRIBUTES.map(|oid| attribute(name, oid).ok_or(Reject::BadEkCert));
    let manufacturer = manufacturer?;
    let maker = vendor::id(&manufacturer).ok_or(Reject::BadEkCert)?;
    Ok(Tpm { manufacturer, model: model?, version: version?, maker })
}

/// An attribute that is there once, as printable text.
fn attribute(name: &X509Name<'_>, oid: &str) -> Option<String> {
    let mut all = name.iter_attributes().filter(|a| a.attr_type().to_id_string() == oid);
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let text = only.as_str().ok()?;
    let printable = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    (printable && (1..=ATTRIBUTE_MAX).contains(&text.len())).then(|| text.to_owned())
}

/// tpmSpecification, which makers put into subjectDirectoryAttributes; `None` if it is not there.
pub(super) fn specification(
    certificate: &Certificate<'_>,
) -> Result<Option<TpmSpecification>, Reject> {
    match certificate.extension(DIRECTORY_ATTRIBUTES) {
        None => Ok(None),
        Some(extension) => read_specification(extension.value).ok_or(Reject::BadEkCert),
    }
}

/// `SEQUENCE OF Attribute`; one that holds no tpmSpecification is `Some(None)`.
fn read_specification(value: &[u8]) -> Option<Option<TpmSpecification>> {
    let mut attributes = Der::only(value, der::SEQUENCE)?;
    let mut found = None;
    while !attributes.is_empty() {
        let mut attribute = attributes.enter(der::SEQUENCE)?;
        let oid = attribute.read(der::OID)?;
        let mut values = attribute.enter(der::SET)?;
        if oid != TPM_SPECIFICATION {
            continue;
        }
        let mut fields = values.enter(der::SEQUENCE)?;
        let family = std::str::from_utf8(fields.read(der::UTF8_STRING)?).ok()?;
        let printable = family.bytes().all(|b| (0x20..0x7f).contains(&b));
        let level = number(fields.read(der::INTEGER)?)?;
        let revision = number(fields.read(der::INTEGER)?)?;
        let whole = fields.is_empty() && values.is_empty() && found.is_none();
        if !whole || !printable || family.len() > ATTRIBUTE_MAX {
            return None;
        }
        found = Some(TpmSpecification { family: family.to_owned(), level, revision });
    }
    Some(found)
}

fn number(content: &[u8]) -> Option<u32> {
    let (first, _) = content.split_first()?;
    let bytes = (first & 0x80 == 0 && content.len() <= 4).then_some(content)?;
    Some(bytes.iter().fold(0, |sum, b| sum << 8 | u32::from(*b)))
}

/// What follows the certificate in its NV index.
fn padding(rest: &[u8], maker: u32) -> Result<Vec<Quirk>, Reject> {
    let quirk = match rest {
        [] => return Ok(vec![]),
        _ if rest.iter().all(|b| *b == 0) => Quirk::ZeroPadding,
        _ if rest.iter().all(|b| *b == 0xff) => Quirk::OnesPadding,
        _ => return Err(Reject::TrailingData),
    };
    Ok(vec![quirk.tolerate(maker, Reject::TrailingData)?])
}

/// Where a certificate deviates from DER in the ways x509-parser reads past.
pub(super) fn deviations(certificate: &Certificate<'_>) -> Vec<Quirk> {
    const KEY_USAGE: &str = "2.5.29.15";
    const BASIC_CONSTRAINTS: &str = "2.5.29.19";
    let value = |oid| certificate.extension(oid).map(|extension| extension.value);
    let serial = certificate.x509().raw_serial();
    [
        (!is_ordered(certificate.issuer())).then_some(Quirk::UnorderedIssuer),
        matches!(serial, [0, second, ..] if second & 0x80 == 0)
            .then_some(Quirk::SerialLeadingZeros),
        value(KEY_USAGE).is_some_and(has_trailing_zeros).then_some(Quirk::KeyUsageTrailingZeros),
        (value(BASIC_CONSTRAINTS) == Some(&[der::SEQUENCE, 3, 1, 1, 0]))
            .then_some(Quirk::ExplicitDefault),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether each RDN's attributes ascend (X.690, 11.6). A name this reader cannot walk is not in order.
fn is_ordered(name: &[u8]) -> bool {
    let Some(mut rdns) = Der::only(name, der::SEQUENCE) else { return false };
    while !rdns.is_empty() {
        let Some(mut rdn) = rdns.enter(der::SET) else { return false };
        let mut last: &[u8] = &[];
        while !rdn.is_empty() {
            let Some(attribute) = rdn.next() else { return false };
            if attribute.whole < last {
                return false;
            }
            last = attribute.whole;
        }
    }
    true
}

/// Whether the last bit of a named bit list is zero (X.690, 11.2.2).
fn has_trailing_zeros(value: &[u8]) -> bool {
    let bits = Der::new(value).read(der::BIT_STRING);
    match bits.and_then(|bits| bits.split_first()) {
        Some((unused, bits)) => match bits.last() {
            Some(last) => last.trailing_zeros() != u32::from(*unused),
            None => false,
        },
        None => false,
    }
}
