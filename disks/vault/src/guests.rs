//! What guests ask of the vault over their channels (SPEC 6.9.5): seal, unseal, counters.
//!
//! Who asks is the monitor's word. Requests are bounded where they are read; a refusal is one line that begins with a code.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use coffer_formats::channel::{Answer, Request};

use crate::error::VaultError;
use crate::identity::{Identity, Owner};
use crate::vault::Vault;

/// One guest's counters move once in so long: each move is a write to the TPM's NV memory, which wears out.
const PAUSE: Duration = Duration::from_secs(1);

/// When a counter of one guest last moved.
#[derive(Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Does it when it is its turn: whoever comes next waits in line.
    fn keep<T>(&self, act: impl FnOnce() -> T) -> T {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = last.map_or(PAUSE, |last| last.elapsed());
        std::thread::sleep(PAUSE.saturating_sub(since));
        let done = act();
        *last = Some(Instant::now());
        done
    }
}

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
            let to = to.parse::<Owner>();
            to.and_then(|to| vault.seal(by, &to, fleet, &data))
                .map(|blob| Answer::Sealed(blob.into()))
        }
        Request::Unseal(blob) => vault.unseal(by, &blob).map(|unsealed| {
            let Identity { box_kind, image_id, signer, svn } = unsealed.sealed_by;
            Answer::Unsealed(unsealed.data.to_vec().into(), box_kind, image_id, signer, svn)
        }),
        Request::Counter(name, false) => vault.counter(by, &name, false).map(Answer::Counter),
        Request::Counter(name, true) => {
            pace.keep(|| vault.counter(by, &name, true)).map(Answer::Counter)
        }
        _ => return Err("bad-request: that is no service".into()),
    };
    answered.map_err(|error: VaultError| format!("{}: {error}", error.code()))
}
