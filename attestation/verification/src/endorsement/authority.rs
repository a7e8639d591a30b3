//! A certificate that issues others: roots, makers' intermediates, and what a host sends beside its leaf.

use super::certificate::{ANY_PURPOSE, Certificate, Issued};
use super::key::PublicKey;
use crate::{Digest, Reject};

/// An authority's certificate, read once.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) subject: Vec<u8>,
    pub(super) fingerprint: Digest,
    pub(super) issued: Issued,
    /// A key that is too weak or unknown refuses what is issued by it, not the set it is in.
    key: Result<PublicKey, Reject>,
    not_before: i64,
    not_after: i64,
    is_authority: bool,
    path_length: Option<u32>,
    signs_certificates: bool,
    signs_crls: bool,
    purposes: Option<Vec<String>>,
}

/// What an authority is held to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand<'a> {
    /// The leaf's notBefore: when the chain was made, as its issuer says.
    pub(super) since: i64,
    /// The verifier's time.
    pub(super) now: i64,
    /// The extended key usage of the leaf.
    pub(super) purpose: &'a str,
}

impl Authority {
    /// Reads a certificate with nothing after it. Whether it may issue is [`Authority::check`]'s to say.
    pub(super) fn read(der: &[u8]) -> Result<Self, Reject> {
        let (certificate, rest) = Certificate::parse(der, Reject::BadEkChain)?;
        if !rest.is_empty() {
            return Err(Reject::TrailingData);
        }
        let constraints = certificate.basic_constraints().map(|(constraints, _)| constraints);
        let usage = certificate.key_usage().map(|(usage, _)| usage);
        Ok(Self {
            subject: certificate.subject().to_vec(),
            fingerprint: certificate.fingerprint(),
            issued: certificate.issued().ok_or(Reject::BadEkChain)?,
            key: PublicKey::read(certificate.x509().public_key()),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            is_authority: constraints.is_some_and(|constraints| constraints.ca),
            path_length: constraints.and_then(|constraints| constraints.path_len_constraint),
            // Without a key usage extension every usage is allowed (RFC 5280, 4.2.1.3).
            signs_certificates: usage.is_none_or(|usage| usage.key_cert_sign()),
            signs_crls: usage.is_none_or(|usage| usage.crl_sign()),
            purposes: certificate.purposes(),
        })
    }

    /// The key, or why none is accepted.
    pub(super) fn key(&self) -> Result<&PublicKey, Reject> {
        self.key.as_ref().map_err(|reject| *reject)
    }

    /// Whether it may sign revocation lists.
    pub(super) fn signs_crls(&self) -> bool {
        self.is_authority && self.signs_crls
    }

    /// An authority for this purpose with at most so many authorities below it, whose validity touches the
    /// time from the leaf's notBefore until now (SPEC 7.2.1). Self-issued certificates count for the path
    /// length too, which RFC 5280 would not ask.
    pub(super) fn check(&self, authorities_below: usize, demand: Demand<'_>) -> Result<(), Reject> {
        let long_enough = self
            .path_length
            .is_none_or(|most| usize::try_from(most).is_ok_and(|most| authorities_below <= most));
        let serves = self.purposes.as_ref().is_none_or(|purposes| {
            purposes.iter().any(|purpose| purpose == demand.purpose || purpose == ANY_PURPOSE)
        });
        let valid = self.not_before <= demand.now && demand.since <= self.not_after;
        if self.is_authority && self.signs_certificates && long_enough && serves && valid {
            Ok(())
        } else {
            Err(Reject::BadEkChain)
        }
    }

    /// Whether its validity has ended.
    pub(super) fn has_expired(&self, now: i64) -> bool {
        self.not_after < now
    }
}
