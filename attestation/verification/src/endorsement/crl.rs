//! Certificate revocation lists, offline (RFC 5280, 5 and 6.3).
//!
//! The operator brings them; nothing is fetched. A list counts if its issuer is the certificate's, by name and by
//! signature over the bytes received. What a genuine list names is revoked for good, current or not: a
//! revocation does not lapse with its list. Only that a list does *not* name a certificate lapses.
//! Refused when read: delta lists, indirect lists, lists for some reasons only, any other critical extension.

use x509_parser::prelude::*;

use super::authority::Authority;
use super::certificate::{Issued, point_urls, serial};
use super::key::{Signed, envelope};
use super::{Warning, Warnings};
use crate::Reject;

/// Most bytes of a list. Makers' lists are below 1 MiB; this is 200,000 entries and more.
const CRL_MAX: usize = 8 << 20;
/// Most entries: a maker that revokes more chips than this revokes the authority.
const ENTRIES_MAX: usize = 250_000;

/// What follows where no current list of its issuer speaks of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CrlPolicy {
    /// It is accepted; that a list was there and out of date is a warning.
    #[default]
    IfPresent,
    /// It is refused: `crl-unusable`.
    Required,
}

/// One list, read once.
#[derive(Debug, Clone)]
pub(super) struct Crl {
    pub(super) issuer: Vec<u8>,
    signed: Signed,
    this_update: i64,
    next_update: Option<i64>,
    /// Serial numbers without leading zeros, sorted.
    revoked: Vec<Vec<u8>>,
    scope: Scope,
}

/// Which certificates a list is complete for (issuingDistributionPoint; RFC 5280, 5.2.5).
#[derive(Debug, Clone)]
struct Scope {
    leaves: bool,
    authorities: bool,
    /// Only those that name one of these URLs as distribution point.
    points: Option<Vec<String>>,
}

impl Crl {
    /// Reads a list with nothing after it.
    pub(super) fn read(der: &[u8]) -> Result<Self, Reject> {
        if der.len() > CRL_MAX {
            return Err(Reject::LimitExceeded);
        }
        let follows = envelope(der).ok_or(Reject::CrlUnusable)?;
        let (rest, list) =
            CertificateRevocationList::from_der(der).map_err(|_| Reject::CrlUnusable)?;
        if !follows.is_empty() || !rest.is_empty() {
            return Err(Reject::TrailingData);
        }
        let tbs = &list.tbs_cert_list;
        if tbs.revoked_certificates.len() > ENTRIES_MAX {
            return Err(Reject::LimitExceeded);
        }
        let well_formed = tbs.extensions_map().is_ok()
            && tbs.revoked_certificates.iter().all(|entry| {
                // A certificateIssuer in an entry, always critical, would make the serial another's.
                entry.extensions().iter().all(|e| !e.critical || is_reason(e))
            });
        if !well_formed {
            return Err(Reject::CrlUnusable);
        }
        let entries = tbs.revoked_certificates.iter();
        let mut revoked: Vec<_> = entries.filter_map(|entry| serial(entry.raw_serial())).collect();
        revoked.sort_unstable();
        Ok(Self {
            issuer: tbs.issuer.as_raw().to_vec(),
            signed: Signed::new(
                tbs.as_ref(),
                &list.signature_algorithm,
                &list.signature_value.data,
            ),
            this_update: tbs.this_update.timestamp(),
            next_update: tbs.next_update.map(|time| time.timestamp()),
            revoked,
            scope: Scope::read(tbs.extensions())?,
        })
    }

    fn lists(&self, certificate: &Issued) -> bool {
        self.revoked.binary_search(&certificate.serial).is_ok()
    }

    /// A list that does not say when the next one comes is never current.
    fn is_current(&self, now: i64) -> bool {
        self.this_update <= now && self.next_update.is_some_and(|next| now <= next)
    }
}

impl Scope {
    fn read(extensions: &[X509Extension<'_>]) -> Result<Self, Reject> {
        let mut scope = Self { leaves: true, authorities: true, points: None };
        for extension in extensions {
            match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(point) => {
                    if point.indirect_crl
                        || point.only_some_reasons.is_some()
                        || point.only_contains_attribute_certs
                    {
                        return Err(Reject::CrlUnusable);
                    }
                    scope.leaves = !point.only_contains_ca_certs;
                    scope.authorities = !point.only_contains_user_certs;
                    scope.points = point.distribution_point.as_ref().map(point_urls);
                }
                _ if extension.critical => return Err(Reject::CrlUnusable),
                _ => {}
            }
        }
        Ok(scope)
    }

    fn covers(&self, certificate: &Issued, is_leaf: bool) -> bool {
        let kind = if is_leaf { self.leaves } else { self.authorities };
        kind && self
            .points
            .as_ref()
            .is_none_or(|points| points.iter().any(|point| certificate.crl_points.contains(point)))
    }
}

fn is_reason(extension: &X509Extension<'_>) -> bool {
    matches!(extension.parsed_extension(), ParsedExtension::ReasonCode(_))
}

/// Judges one certificate of a path by the lists there are.
pub(super) fn check(
    certificate: &Issued,
    is_leaf: bool,
    issuer: &Authority,
    lists: &[Crl],
    policy: CrlPolicy,
    now: i64,
    warnings: &mut Warnings,
) -> Result<(), Reject> {
    let mut answer = Answer::None;
    let key = issuer.key()?;
    for list in lists {
        // Makers have several authorities of one name; a list is one of them's.
        if !issuer.signs_crls() || list.signed.verify(key).is_err() {
            answer = answer.max(Answer::Unverified);
            continue;
        }
        if list.lists(certificate) {
            return Err(Reject::Revoked);
        }
        if list.scope.covers(certificate, is_leaf) {
            let current = list.is_current(now);
            answer = answer.max(if current { Answer::Current } else { Answer::Stale });
        }
    }
    match (answer, policy) {
        (Answer::Current, _) | (Answer::None, CrlPolicy::IfPresent) => Ok(()),
        (_, CrlPolicy::Required) => Err(Reject::CrlUnusable),
        (Answer::Stale, CrlPolicy::IfPresent) => {
            warnings.add(Warning::StaleCrl);
            Ok(())
        }
        (Answer::Unverified, CrlPolicy::IfPresent) => {
            warnings.add(Warning::UnverifiedCrl);
            Ok(())
        }
    }
}

/// The best that the lists say of a certificate they do not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    None,
    Unverified,
    Stale,
    Current,
}
