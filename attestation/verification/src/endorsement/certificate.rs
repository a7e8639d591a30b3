//! One X.509 certificate as x509-parser reads it, held to what RFC 5280 asks of every certificate.
//!
//! Refused whatever the certificate is for: versions other than 3, an extension twice, one that does not parse,
//! a critical one that is not judged here, and name constraints, critical or not: makers' authorities have
//! none, and constraints that are read past would be constraints broken. Policies are judged with
//! any-policy as the acceptable set (RFC 5280, 6.1.1 (c)), so they refuse nothing, critical or not.

use x509_parser::prelude::*;

use super::der::{self, Der};
use super::key::{Signed, envelope};
use crate::{Digest, Reject};

/// Most bytes of one certificate; EK certificates are about 1.5 KiB, makers' authorities at most 2.5 KiB.
pub(super) const CERTIFICATE_MAX: usize = 16 << 10;
/// Most bytes of a serial number (RFC 5280, 4.1.2.2).
const SERIAL_MAX: usize = 20;
/// id-qt-cps and id-qt-unotice (RFC 5280, 4.2.1.4): they inform people and decide nothing.
const QUALIFIERS: [&str; 2] = ["1.3.6.1.5.5.7.2.1", "1.3.6.1.5.5.7.2.2"];

/// A well-formed certificate.
pub(super) struct Certificate<'a> {
    x509: X509Certificate<'a>,
}

/// What revocation and path building need of a certificate below an authority.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    /// Name of the issuer, DER.
    pub(super) issuer: Vec<u8>,
    /// Serial number without leading zeros.
    pub(super) serial: Vec<u8>,
    /// URLs of its CRL distribution points: reported and compared, never fetched.
    pub(super) crl_points: Vec<String>,
    pub(super) signed: Signed,
}

impl<'a> Certificate<'a> {
    /// Parses a certificate and hands back what follows it; `otherwise` is the reject if it is none.
    pub(super) fn parse(bytes: &'a [u8], otherwise: Reject) -> Result<(Self, &'a [u8]), Reject> {
        if bytes.len() > CERTIFICATE_MAX {
            return Err(Reject::LimitExceeded);
        }
        Self::read(bytes).filter(|(read, _)| read.is_well_formed()).ok_or(otherwise)
    }

    /// Parses without judging the extensions, for [`super::inspect`].
    pub(super) fn read(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let follows = envelope(bytes)?;
        let (rest, x509) = X509Certificate::from_der(bytes).ok()?;
        (rest == follows).then_some((Self { x509 }, rest))
    }

    fn is_well_formed(&self) -> bool {
        let x509 = &self.x509;
        x509.version() == X509Version::V3
            && x509.extensions_map().is_ok()
            && x509.extensions().iter().all(is_understood)
            && !is_empty_name(self.issuer())
            && self.serial().is_some()
    }

    /// The bytes received, without what follows.
    pub(super) fn as_bytes(&self) -> &'a [u8] {
        self.x509.as_raw()
    }

    pub(super) fn fingerprint(&self) -> Digest {
        Digest::of(&[self.as_bytes()])
    }

    pub(super) fn subject(&self) -> &[u8] {
        self.x509.subject().as_raw()
    }

    pub(super) fn issuer(&self) -> &[u8] {
        self.x509.issuer().as_raw()
    }

    pub(super) fn x509(&self) -> &X509Certificate<'a> {
        &self.x509
    }

    pub(super) fn not_before(&self) -> i64 {
        self.x509.validity().not_before.timestamp()
    }

    pub(super) fn not_after(&self) -> i64 {
        self.x509.validity().not_after.timestamp()
    }

    /// The serial number without leading zeros, if it is positive and not too long.
    pub(super) fn serial(&self) -> Option<Vec<u8>> {
        serial(self.x509.raw_serial())
    }

    /// What a path needs of this certificate as one that was issued.
    pub(super) fn issued(&self) -> Option<Issued> {
        Some(Issued {
            issuer: self.issuer().to_vec(),
            serial: self.serial()?,
            crl_points: self.crl_points(),
            signed: self.signed(),
        })
    }

    pub(super) fn signed(&self) -> Signed {
        Signed::new(
            self.x509.tbs_certificate.as_ref(),
            &self.x509.signature_algorithm,
            &self.x509.signature_value.data,
        )
    }

    /// The extension of this OID. Well-formed certificates have at most one.
    pub(super) fn extension(&self, oid: &str) -> Option<&X509Extension<'a>> {
        self.x509.extensions().iter().find(|extension| extension.oid.to_id_string() == oid)
    }

    /// basicConstraints, and whether it is critical.
    pub(super) fn basic_constraints(&self) -> Option<(&BasicConstraints, bool)> {
        let extension = self.x509.basic_constraints().ok().flatten()?;
        Some((extension.value, extension.critical))
    }

    /// keyUsage, and whether it is critical.
    pub(super) fn key_usage(&self) -> Option<(&KeyUsage, bool)> {
        let extension = self.x509.key_usage().ok().flatten()?;
        Some((extension.value, extension.critical))
    }

    /// The purposes of extKeyUsage that have no name in RFC 5280, as OIDs; `None` without the extension.
    pub(super) fn purposes(&self) -> Option<Vec<String>> {
        let usage = self.x509.extended_key_usage().ok().flatten()?.value;
        let any = usage.any.then(|| ANY_PURPOSE.to_owned());
        Some(usage.other.iter().map(|oid| oid.to_id_string()).chain(any).collect())
    }

    /// Names of subjectAltName, and whether it is critical.
    pub(super) fn alternative_names(&self) -> Option<(&[GeneralName<'a>], bool)> {
        let extension = self.x509.subject_alternative_name().ok().flatten()?;
        Some((extension.value.general_names.as_slice(), extension.critical))
    }

    /// URLs in cRLDistributionPoints.
    pub(super) fn crl_points(&self) -> Vec<String> {
        let points = self.x509.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::CRLDistributionPoints(points) => Some(points.points.as_slice()),
            _ => None,
        });
        let names = points.unwrap_or_default().iter().filter_map(|p| p.distribution_point.as_ref());
        names.flat_map(point_urls).collect()
    }
}

/// anyExtendedKeyUsage.
pub(super) const ANY_PURPOSE: &str = "2.5.29.37.0";

/// URLs of a distribution point.
pub(super) fn point_urls(name: &DistributionPointName<'_>) -> Vec<String> {
    match name {
        DistributionPointName::FullName(names) => names.iter().filter_map(url).collect(),
        DistributionPointName::NameRelativeToCRLIssuer(_) => vec![],
    }
}

pub(super) fn url(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(url) => Some((*url).to_owned()),
        _ => None,
    }
}

/// True for a name without an attribute.
pub(super) fn is_empty_name(name: &[u8]) -> bool {
    name == [der::SEQUENCE, 0]
}

/// A serial number as received, positive and of at most 20 bytes, without leading zeros.
pub(super) fn serial(received: &[u8]) -> Option<Vec<u8>> {
    let negative = received.first().is_none_or(|b| b & 0x80 != 0);
    let stripped: Vec<u8> = received.iter().copied().skip_while(|b| *b == 0).collect();
    ((1..=SERIAL_MAX).contains(&stripped.len()) && !negative).then_some(stripped)
}

/// Whether an extension is judged, or may be left unjudged (RFC 5280, 4.2).
fn is_understood(extension: &X509Extension<'_>) -> bool {
    use ParsedExtension as P;
    match extension.parsed_extension() {
        P::ParseError { .. } | P::NameConstraints(_) => false,
        P::BasicConstraints(_)
        | P::KeyUsage(_)
        | P::ExtendedKeyUsage(_)
        | P::SubjectAlternativeName(_) => is_one_element(extension.value),
        P::CertificatePolicies(policies) => {
            !extension.critical
                || policies
                    .iter()
                    .flat_map(|policy| policy.policy_qualifiers.iter().flatten())
                    .all(|q| QUALIFIERS.contains(&q.policy_qualifier_id.to_id_string().as_str()))
        }
        _ => !extension.critical,
    }
}

/// x509-parser reads past what follows a value.
fn is_one_element(value: &[u8]) -> bool {
    let mut der = Der::new(value);
    der.next().is_some() && der.is_empty()
}
