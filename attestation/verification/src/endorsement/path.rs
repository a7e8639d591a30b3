//! The way from a leaf to a root (RFC 5280, 6.1, searched from the leaf up).
//!
//! Depth first over what the host sent and what the operator loaded, each name looked up in an index. The first
//! way on which every signature verifies and every authority is acceptable is taken. Roots that are
//! software come first: where a name is in both lists, software is what counts.

use super::authority::{Authority, Demand};
use super::certificate::Issued;
use super::roots::Roots;
use crate::Reject;

/// Most authorities between leaf and root; makers' chains have at most three (Intel's on-die CA).
pub(super) const INTERMEDIATES_MAX: usize = 8;
/// Most signatures verified for one chain. A straight chain needs one for each authority and one for each
/// namesake tried in vain; makers have at most five authorities of one name.
const SIGNATURES_MAX: u32 = 64;

/// A way from a leaf to a root.
#[derive(Debug)]
pub(super) struct Path<'a> {
    /// The leaf's issuer first, the root last.
    pub(super) authorities: Vec<&'a Authority>,
    /// Whether the root is a software root.
    pub(super) software: bool,
}

/// Finds the way from `leaf` over the authorities sent and loaded.
pub(super) fn find<'a>(
    leaf: &'a Issued,
    sent: &'a [Authority],
    roots: &'a Roots,
    demand: Demand<'_>,
) -> Result<Path<'a>, Reject> {
    let mut search = Search { sent, roots, demand, signatures: SIGNATURES_MAX, trail: vec![] };
    let software = search.climb(leaf, Reject::BadEkCert)?;
    Ok(Path { authorities: search.trail, software })
}

struct Search<'a, 'd> {
    sent: &'a [Authority],
    roots: &'a Roots,
    demand: Demand<'d>,
    signatures: u32,
    /// Authorities from the leaf's issuer up to where the search is.
    trail: Vec<&'a Authority>,
}

/// Why no way leads on: a fault that was found is told before the absence of a way.
struct Refusal(Reject);

impl Refusal {
    fn note(&mut self, reject: Reject) {
        if self.0 == Reject::UntrustedRoot {
            self.0 = reject;
        }
    }
}

impl<'a> Search<'a, '_> {
    /// True if the way from `subject` ends in a software root. `unsigned` is the reject where the host sent
    /// an authority of the issuer's name and the signature is nobody's: its own statement does not hold. A root
    /// that is merely of that name says nothing, since every swtpm's authority has the same.
    fn climb(&mut self, subject: &'a Issued, unsigned: Reject) -> Result<bool, Reject> {
        let mut refusal = Refusal(Reject::UntrustedRoot);
        let mut signed = false;
        let roots = self.roots;
        for (authority, software) in roots.anchors(&subject.issuer) {
            match self.is_issued_by(subject, authority) {
                Ok(()) => signed = true,
                Err(Reject::BadSignature) => continue,
                Err(reject) => {
                    refusal.note(reject);
                    continue;
                }
            }
            match authority.check(self.trail.len(), self.demand) {
                Ok(()) => {
                    self.trail.push(authority);
                    return Ok(software);
                }
                Err(reject) => refusal.note(reject),
            }
        }
        let sent = self.sent.iter().filter(|sent| sent.subject == subject.issuer);
        for authority in sent.chain(roots.intermediates(&subject.issuer)) {
            if let Some(back) =
                self.trail.iter().position(|on| on.fingerprint == authority.fingerprint)
            {
                // One that issued itself ends here; one met lower down leads round in a circle.
                if back + 1 < self.trail.len() {
                    refusal.note(Reject::LimitExceeded);
                }
                continue;
            }
            match self.is_issued_by(subject, authority) {
                Ok(()) => signed = true,
                Err(Reject::BadSignature) => continue,
                Err(reject) => {
                    refusal.note(reject);
                    continue;
                }
            }
            match self.pass(authority) {
                Ok(software) => return Ok(software),
                Err(reject) => refusal.note(reject),
            }
        }
        if !signed && self.sent.iter().any(|sent| self.could_issue(sent, subject)) {
            refusal.note(unsigned);
        }
        Err(refusal.0)
    }

    /// Goes on from an intermediate that signed the certificate below it.
    fn pass(&mut self, authority: &'a Authority) -> Result<bool, Reject> {
        authority.check(self.trail.len(), self.demand)?;
        if self.trail.len() >= INTERMEDIATES_MAX {
            return Err(Reject::LimitExceeded);
        }
        self.trail.push(authority);
        self.climb(&authority.issued, Reject::BadEkChain).inspect_err(|_| {
            self.trail.pop();
        })
    }

    /// Whether an authority has the issuer's name and is not on the way already.
    fn could_issue(&self, authority: &Authority, subject: &Issued) -> bool {
        authority.subject == subject.issuer
            && self.trail.iter().all(|on| on.fingerprint != authority.fingerprint)
    }

    fn is_issued_by(&mut self, subject: &Issued, authority: &Authority) -> Result<(), Reject> {
        self.signatures = self.signatures.checked_sub(1).ok_or(Reject::LimitExceeded)?;
        subject.signed.verify(authority.key()?)
    }
}
