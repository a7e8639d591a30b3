//! What a verifier's operator trusts, read once: roots, intermediates and revocation lists, by name.
//!
//! Two lists of roots that never mix: TPM makers', and software roots that an operator loaded as dangerous.
//! swtpm's certificates look like real ones in every field, so only the list tells them apart.

use std::collections::BTreeMap;

use super::authority::Authority;
use super::crl::{Crl, CrlPolicy};
use crate::{Digest, Reject};

/// Most certificates or lists of one kind: twenty times what all makers publish (169 in late 2025).
const ENTRIES_MAX: usize = 4096;

/// Certificates a chain may end in or pass, and CRLs. A root in both lists counts as software.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// By subject; software roots before hardware roots.
    anchors: BTreeMap<Vec<u8>, Vec<Anchor>>,
    /// By subject.
    intermediates: BTreeMap<Vec<u8>, Vec<Authority>>,
    /// By issuer.
    crls: BTreeMap<Vec<u8>, Vec<Crl>>,
    crl_policy: CrlPolicy,
    entries: usize,
}

#[derive(Debug, Clone)]
struct Anchor {
    authority: Authority,
    software: bool,
}

impl Roots {
    /// No root at all: nobody is endorsed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts an authority of a TPM maker. A certificate that this build cannot judge is refused.
    pub fn add_hardware(&mut self, der: &[u8]) -> Result<(), Reject> {
        self.add_anchor(der, false)
    }

    /// Trusts an authority of software TPMs: for development, and said so in every verdict.
    pub fn add_dangerous_software(&mut self, der: &[u8]) -> Result<(), Reject> {
        self.add_anchor(der, true)
    }

    /// Adds a certificate that chains may pass: hosts seldom have their makers' intermediates in NV.
    pub fn add_intermediate(&mut self, der: &[u8]) -> Result<(), Reject> {
        let authority = usable(der)?;
        self.count()?;
        let namesakes = self.intermediates.entry(authority.subject.clone()).or_default();
        if namesakes.iter().all(|known| known.fingerprint != authority.fingerprint) {
            namesakes.push(authority);
        }
        Ok(())
    }

    /// Adds a CRL. Whose it is, and whether it is current, is judged with each chain.
    pub fn add_crl(&mut self, der: &[u8]) -> Result<(), Reject> {
        let crl = Crl::read(der)?;
        self.count()?;
        self.crls.entry(crl.issuer.clone()).or_default().push(crl);
        Ok(())
    }

    /// What follows where no CRL speaks of a certificate.
    pub fn set_crl_policy(&mut self, policy: CrlPolicy) {
        self.crl_policy = policy;
    }

    /// How many hardware roots and software roots there are.
    pub fn len(&self) -> (usize, usize) {
        let software = self.anchors.values().flatten().filter(|anchor| anchor.software).count();
        (self.anchors.values().flatten().count() - software, software)
    }

    /// True without a root.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// Roots of this name, and whether each is a software root; those come first.
    pub(super) fn anchors(&self, name: &[u8]) -> impl Iterator<Item = (&Authority, bool)> {
        let anchors = self.anchors.get(name).map(Vec::as_slice).unwrap_or_default();
        anchors.iter().map(|anchor| (&anchor.authority, anchor.software))
    }

    /// Intermediates of this name.
    pub(super) fn intermediates(&self, name: &[u8]) -> &[Authority] {
        self.intermediates.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// CRLs of this issuer.
    pub(super) fn crls(&self, issuer: &[u8]) -> &[Crl] {
        self.crls.get(issuer).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn crl_policy(&self) -> CrlPolicy {
        self.crl_policy
    }

    fn add_anchor(&mut self, der: &[u8], software: bool) -> Result<(), Reject> {
        let authority = usable(der)?;
        self.count()?;
        let namesakes = self.anchors.entry(authority.subject.clone()).or_default();
        let same = |fingerprint: &Digest| authority.fingerprint == *fingerprint;
        match namesakes.iter_mut().find(|anchor| same(&anchor.authority.fingerprint)) {
            Some(known) => known.software |= software,
            None => namesakes.push(Anchor { authority, software }),
        }
        namesakes.sort_by_key(|anchor| !anchor.software);
        Ok(())
    }

    fn count(&mut self) -> Result<(), Reject> {
        if self.entries >= ENTRIES_MAX {
            return Err(Reject::LimitExceeded);
        }
        self.entries += 1;
        Ok(())
    }
}

fn usable(der: &[u8]) -> Result<Authority, Reject> {
    let authority = Authority::read(der)?;
    authority.key()?;
    Ok(authority)
}
