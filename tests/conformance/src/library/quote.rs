//! A quote by itself: signature, structure, qualifying data, registers (SPEC 7.3, steps 4 to 7).

use coffer_attestation::evidence::QuotePart;
use coffer_attestation::quote::ReceivedQuote;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, Reject};
use serde::Deserialize;

use super::{Hex, Judged, context, file, pcrs};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// Qualifying data the verifier asked for.
    extra_data: Hex,
    /// Bank the verifier wants.
    bank: String,
    /// Registers of it.
    pcrs: Vec<u8>,
    /// True if the clock has to be safe.
    #[serde(default)]
    safe_clock: bool,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let key = Public::parse(file(files, "ak.pub"))?;
    let part = QuotePart {
        attest: file(files, "quote.msg").to_vec(),
        signature: file(files, "quote.sig").to_vec(),
        pcrs: pcrs::read(files)?,
        event_log: vec![],
    };
    if context.bank != "sha256" {
        return Err(Reject::BankNotAllowed.into());
    }
    let extra = Digest::from_slice(&context.extra_data.0).ok_or(Reject::NonceMismatch)?;
    ReceivedQuote::new(&part)
        .authenticate(&key)?
        .bind(&extra, Reject::NonceMismatch)?
        .pcrs(&context.pcrs)?;
    Ok(())
}
