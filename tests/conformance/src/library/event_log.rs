//! An event log over registers that count as quoted (SPEC 7.3, step 12).
//!
//! Registers come from nowhere but a verified quote, so the judge signs one with a key of its own.

use coffer_attestation::evidence::QuotePart;
use coffer_attestation::quote::{QuotedPcrs, ReceivedQuote};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use coffer_attestation::tpm::wire::Writer;
use coffer_attestation::{Digest, Reject, event_log};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer as _;
use serde::Deserialize;

use super::{Judged, Refused, context, file, pcrs};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// True for a PC's firmware log: PCR 0 to 7 must have their separators.
    firmware: bool,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let quoted = quoted(files)?;
    let log = event_log::parse(file(files, "log.bin"))?;
    log.check_replay(&quoted).map_err(|(_, reject)| reject)?;
    if context.firmware {
        log.check_separators().map_err(|(_, reject)| reject)?;
    }
    Ok(())
}

/// The registers under a signature.
fn quoted(files: &Files) -> Result<QuotedPcrs, Refused> {
    let bad = |what: &str| Refused::BadCase(what.into());
    let values = pcrs::read(files)?;
    let indices: Vec<u8> = values.iter().map(|value| value.index).collect();
    let digests: Vec<&[u8]> = values.iter().map(|value| value.digest.as_bytes()).collect();
    let (key, public) = key().ok_or_else(|| bad("no key"))?;
    let extra = Digest::ZERO;
    let bits =
        indices.iter().fold(0u32, |bits, pcr| bits | 1u32.checked_shl((*pcr).into()).unwrap_or(0));
    let [a, b, c, _] = bits.to_le_bytes();
    let attest = Writer::new()
        .u32(0xff54_4347)
        .u16(0x8018)
        .tpm2b(public.endorsement_qualified_name().as_bytes())
        .tpm2b(extra.as_bytes())
        .bytes(&[0; 16])
        .u8(1)
        .bytes(&[0; 8])
        .u32(1)
        .u16(0x000b)
        .u8(3)
        .bytes(&[a, b, c])
        .tpm2b(Digest::of(&digests).as_bytes())
        .finish();
    let signature: p256::ecdsa::Signature = key.sign(&attest);
    let bytes = signature.to_bytes();
    let (r, s) = bytes.split_at(32);
    let signature = Writer::new().u16(0x0018).u16(0x000b).tpm2b(r).tpm2b(s).finish();
    let part = QuotePart { attest, signature, pcrs: values, event_log: vec![] };
    let bound =
        ReceivedQuote::new(&part).authenticate(&public)?.bind(&extra, Reject::NonceMismatch)?;
    Ok(bound.pcrs(&indices)?)
}

/// A key for this and nothing else; what it signs is believed here because we wrote it.
fn key() -> Option<(SigningKey, Public)> {
    let key = SigningKey::from_slice(&[1; 32]).ok()?;
    let point = key.verifying_key().to_sec1_point(false);
    let (x, y) = point.as_bytes().get(1..)?.split_at_checked(32)?;
    let template = template::host_ak();
    let fixed = template.get(..template.len().checked_sub(68)?)?;
    let public = Writer::new().bytes(fixed).tpm2b(x).tpm2b(y).finish();
    Some((key, Public::parse(&public).ok()?))
}
