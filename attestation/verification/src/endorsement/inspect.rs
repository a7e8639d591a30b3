//! What a certificate says, for people and programs that look at one. Nothing here is believed: no signature
//! is verified, and text is shown with what is not printable replaced.

use x509_parser::prelude::*;

use super::certificate::{CERTIFICATE_MAX, Certificate, url};
use super::key::PublicKey;
use super::leaf::TpmSpecification;
use super::quirk::Quirk;
use super::{device, leaf, vendor};
use crate::{Digest, Reject};

/// Most characters of one text in a report.
const TEXT_MAX: usize = 512;

/// A certificate's contents. Every field is the certificate's word.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct CertificateReport {
    /// SHA-256 over the certificate without padding.
    pub sha256: Digest,
    /// Bytes of the certificate, and of padding after it.
    pub size: (usize, usize),
    /// Name of the subject; empty in most EK certificates.
    pub subject: String,
    /// Name of the issuer.
    pub issuer: String,
    /// Serial number, hexadecimal, as encoded.
    pub serial: String,
    /// Start of validity.
    pub not_before: Instant,
    /// End of validity.
    pub not_after: Instant,
    /// Kind and size of the key; `None` for one this build does not accept.
    pub key: Option<String>,
    /// SHA-256 over the SubjectPublicKeyInfo.
    pub key_sha256: Digest,
    /// How it is signed.
    pub signature_algorithm: String,
    /// Whether it is an authority's.
    pub authority: bool,
    /// Key usages, as RFC 5280 names them.
    pub key_usage: String,
    /// Extended key usages that have no name in RFC 5280, as OIDs.
    pub extended_key_usage: Vec<String>,
    /// The TPM it is for.
    pub tpm: Option<TpmReport>,
    /// The TPM specification it names.
    pub specification: Option<TpmSpecification>,
    /// hardwareModuleName of a device certificate.
    pub hardware: Option<device::Hardware>,
    /// Where the issuer's certificate may be had. Nothing here fetches it.
    pub issuer_urls: Vec<String>,
    /// Where CRLs may be had.
    pub crl_urls: Vec<String>,
    /// Deviations from DER or the profile.
    pub quirks: Vec<Quirk>,
    /// Why it would be refused as an EK certificate, before any chain is looked at.
    pub refused_as_ek: Option<Reject>,
}

/// A point in time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Instant {
    /// Seconds since 1970.
    pub unix: i64,
    /// The same for people.
    pub text: String,
}

/// A TPM as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TpmReport {
    /// tcg-at-tpmManufacturer.
    pub manufacturer: String,
    /// The manufacturer's name, if it is known here.
    pub vendor: Option<&'static str>,
    /// tcg-at-tpmModel.
    pub model: String,
    /// tcg-at-tpmVersion.
    pub version: String,
}

/// Reads a certificate, padded or not. One that is no certificate at all is [`Reject::Malformed`].
pub fn inspect(bytes: &[u8]) -> Result<CertificateReport, Reject> {
    if bytes.len() > CERTIFICATE_MAX {
        return Err(Reject::LimitExceeded);
    }
    let (certificate, rest) = Certificate::read(bytes).ok_or(Reject::Malformed)?;
    let judged = leaf::read(bytes);
    let quirks = match &judged {
        Ok(leaf) => leaf.quirks.clone(),
        Err(_) => leaf::deviations(&certificate),
    };
    let x509 = certificate.x509();
    let authority = certificate.basic_constraints().is_some_and(|(constraints, _)| constraints.ca);
    let usage = certificate.key_usage().map(|(usage, _)| usage.to_string());
    let key = PublicKey::read(x509.public_key())
        .or_else(|_| PublicKey::read_leaf(x509.public_key()).map(|(key, _)| PublicKey::Tpm(key)));
    Ok(CertificateReport {
        sha256: certificate.fingerprint(),
        size: (certificate.as_bytes().len(), rest.len()),
        subject: printable(&x509.subject().to_string()),
        issuer: printable(&x509.issuer().to_string()),
        serial: hex::encode(x509.raw_serial()),
        not_before: instant(x509.validity().not_before),
        not_after: instant(x509.validity().not_after),
        key: key.ok().map(|key| key.describe()),
        key_sha256: Digest::of(&[x509.public_key().raw]),
        signature_algorithm: certificate.signed().algorithm().to_owned(),
        authority,
        key_usage: usage.unwrap_or_default(),
        extended_key_usage: certificate.purposes().unwrap_or_default(),
        tpm: leaf::tpm(&certificate).ok().map(|tpm| TpmReport {
            vendor: vendor::name(tpm.maker),
            manufacturer: tpm.manufacturer,
            model: tpm.model,
            version: tpm.version,
        }),
        specification: leaf::specification(&certificate).ok().flatten(),
        hardware: device::hardware(&certificate).ok(),
        issuer_urls: issuer_urls(x509),
        crl_urls: certificate.crl_points().iter().map(|url| printable(url)).collect(),
        quirks,
        refused_as_ek: judged.err(),
    })
}

/// caIssuers of authorityInfoAccess.
fn issuer_urls(x509: &X509Certificate<'_>) -> Vec<String> {
    const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";
    let access =
        x509.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityInfoAccess(access) => Some(access.accessdescs.as_slice()),
            _ => None,
        });
    let issuers = access.unwrap_or_default().iter();
    let issuers = issuers.filter(|one| one.access_method.to_id_string() == CA_ISSUERS);
    issuers.filter_map(|one| url(&one.access_location)).map(|url| printable(&url)).collect()
}

fn instant(time: ASN1Time) -> Instant {
    Instant { unix: time.timestamp(), text: time.to_string() }
}

/// Text that is safe on a terminal and in a log.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(TEXT_MAX).map(shown).collect()
}
