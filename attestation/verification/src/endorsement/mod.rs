//! Endorsement: is this EK the EK of a TPM some maker vouches for? (TCG EK Credential Profile 2.6;
//! RFC 5280 sections 5 and 6; SPEC 7.2.1.)
//!
//! ```text
//! leaf   profile, maker's quirks          bad-ek-cert       leaf.rs, quirk.rs
//! key    certified = the TPM's            ek-mismatch
//! path   signatures, authorities, roots   bad-ek-chain, untrusted-root, limit-exceeded   path.rs
//! CRLs   those the operator brought       revoked, crl-unusable                          crl.rs
//! ```
//!
//! The second way to know a TPM, by an IAK certificate, is [`device`] (SPEC 7.2.2).
//! Nothing a certificate points to is fetched: this crate has no network code to call, and URLs in AIA and CRL
//! distribution points are data to [`inspect`] and to compare.
//!
//! Time: a leaf past its notAfter is accepted with a warning, since the key is in the chip for life and makers'
//! dates differ. An authority's validity must touch the time from the leaf's notBefore until now: it
//! vouched while it was valid, and makers do not reissue certificates of chips in the field. One that has
//! expired since is a warning; what ends trust in it is its removal or a CRL.

mod authority;
mod certificate;
mod certify;
mod crl;
mod der;
pub mod device;
mod inspect;
mod key;
mod leaf;
mod path;
mod quirk;
mod roots;
mod vendor;

use authority::{Authority, Demand};
use certificate::Issued;
pub use certify::verify_certified_ak;
pub use crl::CrlPolicy;
pub use inspect::{CertificateReport, inspect};
pub use leaf::TpmSpecification;
pub use quirk::{Known, QUIRKS, Quirk};
pub use roots::Roots;

use crate::Reject;
use crate::tpm::public::Public;

/// Most certificates beside the leaf.
pub const CHAIN_MAX: usize = path::INTERMEDIATES_MAX;

/// What a trusted authority says of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsed {
    /// tcg-at-tpmManufacturer, such as `id:494E5443`.
    pub manufacturer: String,
    /// tcg-at-tpmModel.
    pub model: String,
    /// tcg-at-tpmVersion.
    pub version: String,
    /// tpmSpecification, if the certificate has it.
    pub specification: Option<TpmSpecification>,
    /// True if the chain ends in a dangerous software root.
    pub software: bool,
    /// Where the certificate deviates from DER or the profile, as its maker's are known to.
    pub quirks: Vec<Quirk>,
    /// What does not refuse the TPM and an operator should know.
    pub warnings: Vec<Warning>,
}

/// What does not refuse a certificate and should be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warning {
    /// The leaf is past its notAfter.
    LeafExpired,
    /// An authority of the chain has expired since the leaf was made.
    AuthorityExpired,
    /// The CRL for a certificate is out of date; it does not list it.
    StaleCrl,
    /// There are CRLs of the issuer's name and none verifies by its key.
    UnverifiedCrl,
}

impl Warning {
    /// One clause for people.
    pub fn message(self) -> &'static str {
        match self {
            Self::LeafExpired => "the certificate of the TPM has expired",
            Self::AuthorityExpired => "an authority of the chain has expired",
            Self::StaleCrl => "a CRL is out of date",
            Self::UnverifiedCrl => "a CRL is not signed by the issuer it names",
        }
    }
}

/// Warnings, each once.
#[derive(Debug, Default)]
struct Warnings(Vec<Warning>);

impl Warnings {
    fn add(&mut self, warning: Warning) {
        if !self.0.contains(&warning) {
            self.0.push(warning);
        }
    }
}

/// Verifies that `leaf` certifies `ek` and that a path leads from it to a root.
///
/// `leaf` is as read from NV: padding after the certificate is dropped. `chain` is what the host sent
/// beside it, in any order; what is not on the way does no harm.
pub fn verify_chain(
    leaf: &[u8],
    chain: &[Vec<u8>],
    ek: &Public,
    roots: &Roots,
    now_unix: u64,
) -> Result<Endorsed, Reject> {
    let now = timestamp(now_unix)?;
    let sent = read_chain(chain)?;
    let leaf = leaf::read(leaf)?;
    if leaf.key != *ek.key() {
        return Err(Reject::EkMismatch);
    }
    let vouched = vouch(&leaf.issued, leaf.validity, leaf::EK_CERTIFICATE, &sent?, roots, now)?;
    let leaf::Tpm { manufacturer, model, version, .. } = leaf.tpm;
    Ok(Endorsed {
        manufacturer,
        model,
        version,
        specification: leaf.specification,
        software: vouched.software,
        quirks: leaf.quirks,
        warnings: vouched.warnings.0,
    })
}

/// Reads what a host sent. A chain too long or too large is refused before anything is looked at; one that
/// does not read only after the leaf was, so that the leaf's fault is told first.
fn read_chain(chain: &[Vec<u8>]) -> Result<Result<Vec<Authority>, Reject>, Reject> {
    if chain.len() > CHAIN_MAX
        || chain.iter().any(|certificate| certificate.len() > certificate::CERTIFICATE_MAX)
    {
        return Err(Reject::LimitExceeded);
    }
    Ok(chain.iter().map(|der| Authority::read(der)).collect())
}

/// notBefore and notAfter of a leaf.
#[derive(Debug, Clone, Copy)]
struct Validity {
    not_before: i64,
    not_after: i64,
}

/// What the authorities above a leaf come to.
struct Vouched {
    software: bool,
    warnings: Warnings,
}

/// Path and revocation, the same for EK and IAK certificates.
fn vouch(
    leaf: &Issued,
    validity: Validity,
    purpose: &str,
    sent: &[Authority],
    roots: &Roots,
    now: i64,
) -> Result<Vouched, Reject> {
    if validity.not_before > now {
        return Err(Reject::BadEkChain);
    }
    let demand = Demand { since: validity.not_before, now, purpose };
    let path = path::find(leaf, sent, roots, demand)?;
    let mut warnings = Warnings::default();
    if validity.not_after < now {
        warnings.add(Warning::LeafExpired);
    }
    let mut below = leaf;
    for (n, authority) in path.authorities.iter().enumerate() {
        if authority.has_expired(now) {
            warnings.add(Warning::AuthorityExpired);
        }
        let (lists, policy) = (roots.crls(&below.issuer), roots.crl_policy());
        crl::check(below, n == 0, authority, lists, policy, now, &mut warnings)?;
        below = &authority.issued;
    }
    Ok(Vouched { software: path.software, warnings })
}

fn timestamp(unix: u64) -> Result<i64, Reject> {
    i64::try_from(unix).map_err(|_| Reject::LimitExceeded)
}
