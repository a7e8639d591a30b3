//! An EK certificate chain (SPEC 7.2).

use coffer_attestation::endorsement::{CrlPolicy, Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use serde::Deserialize;

use super::{Judged, Refused, context, file, named};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// Unix seconds.
    now: u64,
    /// Files of roots of makers of chips.
    roots: Vec<String>,
    /// Files of roots of software TPMs, which count only where a policy names them.
    software_roots: Vec<String>,
    /// Files sent beside the certificate, its issuer first.
    chain: Vec<String>,
    /// Files of CRLs the operator brought.
    crls: Vec<String>,
    /// True if a certificate of which no current CRL speaks is refused.
    crl_required: bool,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let ek = Public::parse(file(files, "ek.pub"))?;
    let roots = roots(files, &context)?;
    let chain = named(files, &context.chain);
    verify_chain(file(files, "ek.der"), &chain, &ek, &roots, context.now)?;
    Ok(())
}

/// What the operator trusts; a root that cannot be read is the case's fault.
fn roots(files: &Files, context: &Context) -> Result<Roots, Refused> {
    let bad = |reject| Refused::BadCase(format!("a root or CRL: {reject}"));
    let mut roots = Roots::new();
    for der in named(files, &context.roots) {
        roots.add_hardware(&der).map_err(bad)?;
    }
    for der in named(files, &context.software_roots) {
        roots.add_dangerous_software(&der).map_err(bad)?;
    }
    for der in named(files, &context.crls) {
        roots.add_crl(&der).map_err(bad)?;
    }
    if context.crl_required {
        roots.set_crl_policy(CrlPolicy::Required);
    }
    Ok(roots)
}
