//! An EK certificate chain (SPEC 7.2).

use coffer_attestation::endorsement::{Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use serde::Deserialize;

use super::{Judged, context, file, named};
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
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let ek = Public::parse(file(files, "ek.pub"))?;
    let roots = Roots {
        hardware: named(files, &context.roots),
        dangerous_software: named(files, &context.software_roots),
    };
    let chain = named(files, &context.chain);
    verify_chain(file(files, "ek.der"), &chain, &ek, &roots, context.now)?;
    Ok(())
}
