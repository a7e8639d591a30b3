//! A quote by itself: signature, structure, qualifying data, registers (SPEC 7.3, steps 4 to 7).

use coffer_attestation::quote::{BoundQuote, QuoteKey, ReceivedQuote};
use coffer_attestation::tpm::attest::ClockInfo;
use coffer_attestation::tpm::hash::HashAlg;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Reject, clock};
use serde::Deserialize;

use super::{Hex, Judged, Refused, context, file, pcrs};
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
    let bank = HashAlg::from_name(&context.bank)
        .ok_or_else(|| Refused::BadCase(format!("no bank is called `{}`", context.bank)))?;
    let key = Public::parse(file(files, "ak.pub"))?;
    let bound = ReceivedQuote::new(file(files, "quote.msg"), file(files, "quote.sig"))
        .authenticate(&QuoteKey::endorsement_primary(&key))?
        .bind(&context.extra_data.0, Reject::NonceMismatch)?;
    let now = match bank {
        HashAlg::Sha256 => exactly(bound, &context.pcrs, files)?,
        _ => among(bound, bank, &context.pcrs, files)?,
    };
    if context.safe_clock {
        clock::require_safe(&now)?;
    }
    Ok(())
}

/// Coffer's own way: these registers of the SHA-256 bank and no others.
fn exactly(bound: BoundQuote, required: &[u8], files: &Files) -> Result<ClockInfo, Reject> {
    let quoted = bound.pcrs(required, &pcrs::of_sha256(files)?)?;
    quoted.check_reliable()?;
    Ok(quoted.clock_info())
}

/// The way of a tool that takes any bank: the values sent are for the registers signed, in that order.
fn among(
    bound: BoundQuote,
    bank: HashAlg,
    required: &[u8],
    files: &Files,
) -> Result<ClockInfo, Reject> {
    let sent = pcrs::of_any_bank(files)?;
    if !bound.selected().eq(sent.iter().map(|(bank, pcr, _)| (*bank, *pcr))) {
        return Err(Reject::SelectionMismatch);
    }
    let values: Vec<_> = sent.into_iter().map(|(.., value)| value).collect();
    let quoted = bound.registers(&values)?;
    quoted.rely_on(bank, required)?;
    Ok(quoted.signed().clock_info)
}
