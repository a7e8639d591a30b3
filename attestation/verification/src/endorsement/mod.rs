//! Endorsement: is this EK the EK of a TPM some vendor vouches for? (TCG EK Credential Profile 2.6;
//! RFC 5280 section 6; SPEC 7.2.)
//!
//! Two lists of roots that never mix: TPM vendors, and software roots that an operator loaded as dangerous.
//! swtpm's certificates look like real ones in every field, so only the list tells them apart.
//! Nothing a certificate points to (AIA, CRL) is fetched. A leaf past its notAfter is accepted: the key is
//! in the chip for life, and vendors' dates differ; authorities must be valid now.

mod certificate;

use certificate::Certificate;

use crate::Reject;
use crate::tpm::public::Public;

/// Most certificates beside the leaf; vendors' chains have two or three.
const CHAIN_MAX: usize = 8;
/// Most bytes of one certificate; EK certificates are about 1.5 KiB.
const CERTIFICATE_MAX: usize = 16 << 10;

/// Certificates a chain may end in, DER. A certificate in both lists counts as software.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Authorities of TPM vendors.
    pub hardware: Vec<Vec<u8>>,
    /// Authorities of software TPMs: for development, and said so in every verdict.
    pub dangerous_software: Vec<Vec<u8>>,
}

/// What a trusted authority says of a TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsed {
    /// tcg-at-tpmManufacturer, such as `id:494E5443`.
    pub manufacturer: String,
    /// tcg-at-tpmModel.
    pub model: String,
    /// tcg-at-tpmVersion.
    pub version: String,
    /// True if the chain ends in a dangerous software root.
    pub software: bool,
}

/// Verifies that `leaf` certifies `ek` and that a path leads from it to a root.
///
/// Trailing zero bytes after the leaf are dropped: vendors pad the NV index they store it in.
pub fn verify_chain(
    leaf: &[u8],
    chain: &[Vec<u8>],
    ek: &Public,
    roots: &Roots,
    now_unix: u64,
) -> Result<Endorsed, Reject> {
    let sizes = chain.iter().map(Vec::len).chain([leaf.len()]);
    if chain.len() > CHAIN_MAX || sizes.max() > Some(CERTIFICATE_MAX) {
        return Err(Reject::LimitExceeded);
    }
    let leaf = Certificate::parse_padded(leaf)?;
    leaf.check_endorsement_leaf(now_unix)?;
    if leaf.key()? != *ek.key() {
        return Err(Reject::EkMismatch);
    }
    let (manufacturer, model, version) = leaf.tpm_attributes()?;
    let chain = chain.iter().map(|der| Certificate::parse(der)).collect::<Result<_, _>>()?;
    let software = find_root(leaf, chain, roots, now_unix)?;
    Ok(Endorsed { manufacturer, model, version, software })
}

/// Walks from the leaf to a root; true if it is a software root. Each round ends the path or uses up one
/// certificate of the chain, so loops and unused certificates do no harm.
fn find_root(
    leaf: Certificate<'_>,
    mut chain: Vec<Certificate<'_>>,
    roots: &Roots,
    now: u64,
) -> Result<bool, Reject> {
    let mut subject = leaf;
    for authorities_below in 0..=CHAIN_MAX {
        for (list, software) in [(&roots.dangerous_software, true), (&roots.hardware, false)] {
            if is_issued_by_one_of(&subject, list, authorities_below, now)? {
                return Ok(software);
            }
        }
        let issuer = take_issuer(&subject, &mut chain)?;
        issuer.check_authority(authorities_below, now)?;
        subject = issuer;
    }
    Err(Reject::LimitExceeded)
}

/// The certificate of the chain that issued `subject`. Several may bear its name: the signature tells.
fn take_issuer<'a>(
    subject: &Certificate<'_>,
    chain: &mut Vec<Certificate<'a>>,
) -> Result<Certificate<'a>, Reject> {
    let mut otherwise = Reject::UntrustedRoot;
    for (index, authority) in chain.iter().enumerate() {
        if authority.issued(subject) {
            match subject.check_signature(authority) {
                Ok(()) => return Ok(chain.swap_remove(index)),
                Err(reject) => otherwise = reject,
            }
        }
    }
    Err(otherwise)
}

fn is_issued_by_one_of(
    subject: &Certificate<'_>,
    roots: &[Vec<u8>],
    authorities_below: usize,
    now: u64,
) -> Result<bool, Reject> {
    let mut otherwise = Ok(false);
    for der in roots {
        // A root this build cannot judge endorses nobody, and must not keep others from endorsing.
        let Ok(root) = Certificate::parse(der) else { continue };
        // Vendors have several roots of one name, and renew roots with their key.
        if root.issued(subject) && subject.check_signature(&root).is_ok() {
            match root.check_authority(authorities_below, now) {
                Ok(()) => return Ok(true),
                Err(reject) => otherwise = Err(reject),
            }
        }
    }
    otherwise
}
