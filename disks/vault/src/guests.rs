//! What guests ask of the vault over their channels (SPEC 6.9.5): seal, unseal, counters.
//!
//! Who asks is the monitor's word. Requests are bounded where they are read; a refusal is one line that begins with a code.

use coffer_formats::channel::{Answer, Request};

use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::identity::{Identity, Owner};
use crate::pace::Pace;
use crate::vault::Vault;

/// Answers `by`, on a host that has this vault, or says why it has none.
pub fn answer(
    vault: &Result<Vault, String>,
    by: &Identity,
    pace: &Pace,
    request: Request,
) -> Result<Answer, String> {
    let vault = vault.as_ref().map_err(|why| format!("no-vault: {why}"))?;
    let answered = match request {
        Request::Seal(to, fleet, data) => {
            let (to, data) = (to.parse::<Owner>(), Zeroizing::new(Vec::from(data)));
            to.and_then(|to| vault.seal(by, &to, fleet, &data))
                .map(|blob| Answer::Sealed(blob.into()))
        }
        Request::Unseal(blob) => vault.unseal(by, &blob).map(|mut unsealed| {
            let Identity { box_kind, image_id, signer, svn } = unsealed.sealed_by;
            // Moved, not copied: who writes the answer wipes it.
            let data = std::mem::take(&mut *unsealed.data);
            Answer::Unsealed(data.into(), box_kind, image_id, signer, svn)
        }),
        Request::Counter(of, name, advance) => {
            let of = of.parse::<Owner>();
            let count = |of| match advance {
                false => vault.counter(by, &of, &name, false),
                true => pace.keep(|| vault.counter(by, &of, &name, true)),
            };
            of.and_then(count).map(Answer::Counter)
        }
        _ => return Err("bad-request: that is no service".into()),
    };
    answered.map_err(|error: VaultError| format!("{}: {error}", error.code()))
}
