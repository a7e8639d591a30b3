//! An event log over registers that count as quoted (SPEC 7.3, step 12).
//!
//! Registers come from nowhere but a verified quote, so the judge signs one with a test key.

use coffer_attestation::event_log::EventLog;
use coffer_attestation::event_log::cel::CelLog;
use coffer_attestation::event_log::ima::ImaList;
use coffer_attestation::quote::{QuoteKey, QuotedPcrs, ReceivedQuote};
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::{Digest, Reject, event_log};
use serde::Deserialize;

use super::{Judged, Refused, context, file, pcrs};
use crate::attester::attest::{Attest, selection};
use crate::attester::keys::Key;
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// True for a PC's firmware log: PCR 0 to 7 must have their separators, the Secure Boot state is read, and
    /// what events describe is described.
    firmware: bool,
    /// True if an IMA list comes along, under PCR 10.
    #[serde(default)]
    ima: bool,
    /// True if a list of systemd's comes along (CEL-JSON), which goes on where firmware ended.
    #[serde(default)]
    cel: bool,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let quoted = quoted(files)?;
    let log = event_log::parse(file(files, "log.bin"))?;
    match (context.ima, context.cel) {
        (true, _) => replays(&log, &quoted)?,
        (false, true) => goes_on(&log, &CelLog::parse(file(files, "cel.json"))?, &quoted)?,
        (false, false) => log.check_replay(&quoted).map_err(|(_, reject)| reject)?,
    }
    if context.firmware {
        log.check_firmware().map_err(|(_, reject)| reject)?;
    }
    if context.ima {
        let list = ImaList::binary(file(files, "ima.bin"))?;
        let firmware = log.registers(HashAlg::Sha256).ok_or(Reject::BankNotAllowed)?;
        list.covered(&firmware, &Ha::from(*quoted.get(IMA_PCR)?))?;
    }
    Ok(())
}

/// Whether the log replays in full: PCR 10 is not firmware's, and answers for its own list.
fn replays(log: &EventLog<'_>, quoted: &QuotedPcrs) -> Result<(), Reject> {
    let registers = log.registers(HashAlg::Sha256).ok_or(Reject::BankNotAllowed)?;
    let firmware = quoted.iter().filter(|(pcr, _)| *pcr != IMA_PCR);
    let firmware = firmware.map(|(pcr, value)| (pcr, Ha::from(*value)));
    registers.check(firmware).map_err(|(_, reject)| reject)
}

/// Whether both logs, one after the other, lead to the registers.
fn goes_on(log: &EventLog<'_>, cel: &CelLog, quoted: &QuotedPcrs) -> Result<(), Reject> {
    let mut registers = log.registers(HashAlg::Sha256).ok_or(Reject::BankNotAllowed)?;
    cel.replay(&mut registers)?;
    let quoted = quoted.iter().map(|(pcr, value)| (pcr, Ha::from(*value)));
    registers.check(quoted).map_err(|(_, reject)| reject)
}

/// CONFIG_IMA_MEASURE_PCR_IDX.
const IMA_PCR: u8 = 10;

/// The registers under a signature.
fn quoted(files: &Files) -> Result<QuotedPcrs, Refused> {
    let sent = pcrs::of_sha256(files)?;
    let indices: Vec<u8> = sent.iter().map(|value| value.index).collect();
    let digests: Vec<&[u8]> = sent.iter().map(|value| value.digest.as_bytes()).collect();
    let key = Key::p256(1);
    let extra = Digest::ZERO;
    let attest = Attest {
        magic: 0xff54_4347,
        kind: 0x8018,
        signer: key.qualified_name(),
        extra: extra.0.to_vec(),
        clock: 0,
        resets: 0,
        restarts: 0,
        safe: 1,
        firmware: 0,
        selection: selection(&[(0x000b, &indices)]),
        digest: Digest::of(&digests).0.to_vec(),
        body: None,
        tail: vec![],
    }
    .encode();
    let public = Public::parse(&key.public())?;
    let bound = ReceivedQuote::new(&attest, &key.sign(&attest))
        .authenticate(&QuoteKey::endorsement_primary(&public))?
        .bind(extra.as_bytes(), Reject::NonceMismatch)?;
    Ok(bound.pcrs(&indices, &sent)?)
}
