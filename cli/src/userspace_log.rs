//! Lists that run on from firmware's log, shown and replayed by `coffer eventlog`: systemd's (TCG CEL in JSON)
//! and the kernel's list of files (IMA, `ima-ng` and `ima-sig`, binary or ASCII).
//!
//! Which it is stands in the first bytes, where firmware's log always has register 0 to 7. Nothing of it is
//! authentic until a quote covers the registers that it replays to.

use coffer_attestation::Reject;
use coffer_attestation::event_log::Registers;
use coffer_attestation::event_log::cel::CelLog;
use coffer_attestation::event_log::ima::ImaList;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use serde::Serialize;

/// The register IMA extends (CONFIG_IMA_MEASURE_PCR_IDX).
const IMA_PCR: u8 = 10;

/// A list that is no firmware's.
pub enum UserspaceLog<'a> {
    /// systemd's.
    Cel(CelLog),
    /// The kernel's.
    Ima(ImaList<'a>),
}

/// One event of it.
#[derive(Serialize)]
pub struct Event {
    pub event: usize,
    pub pcr: u8,
    /// systemd's word for it, or IMA's.
    pub kind: String,
    /// What was extended in the bank shown; none if the record has no digest in it.
    pub digest: Option<String>,
    /// True if the text below is what was measured, or part of it.
    pub measured: bool,
    /// Text or path.
    pub text: Option<String>,
    /// Digest of a file's contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl<'a> UserspaceLog<'a> {
    /// Reads a list; none if the bytes begin as firmware's logs do.
    pub fn read(bytes: &'a [u8]) -> Option<Result<Self, Reject>> {
        let ima = |list: Result<ImaList<'a>, Reject>| Some(list.map(Self::Ima));
        match bytes {
            [IMA_PCR, 0, 0, 0, ..] => ima(ImaList::binary(bytes)),
            [b'1', b'0', b' ', ..] => ima(ImaList::ascii(bytes)),
            [b'{' | b'[' | 0x1e, ..] => Some(CelLog::parse(bytes).map(Self::Cel)),
            _ => None,
        }
    }

    /// Its format's name.
    pub fn format(&self) -> &'static str {
        match self {
            Self::Cel(_) => "cel-json",
            Self::Ima(_) => "ima",
        }
    }

    /// Its events, digests in this bank.
    pub fn events(&self, bank: HashAlg) -> Vec<Event> {
        let text = |digest: Ha| digest.to_string();
        match self {
            Self::Cel(log) => (0..)
                .zip(log.records())
                .map(|(event, record)| Event {
                    event,
                    pcr: record.pcr,
                    kind: record.event_type.as_ref().unwrap_or(&record.content_type).clone(),
                    digest: record.digest_in(bank).map(text),
                    measured: record.text_is_measured(bank),
                    text: record.text.clone(),
                    file: None,
                })
                .collect(),
            Self::Ima(list) => (0..)
                .zip(list.entries())
                .map(|(event, entry)| Event {
                    event,
                    pcr: IMA_PCR,
                    kind: if entry.signature().is_empty() { "file" } else { "signed file" }.into(),
                    digest: Some(text(entry.extended(bank))),
                    measured: true,
                    text: Some(String::from_utf8_lossy(entry.path()).into_owned()),
                    file: Some(text(entry.digest)),
                })
                .collect(),
        }
    }

    /// True if others measured into its registers before; IMA is alone in its own.
    pub fn runs_on(&self) -> bool {
        matches!(self, Self::Cel(_))
    }

    /// The registers it extends, from registers that nothing was measured into before.
    pub fn replay(&self, bank: HashAlg) -> Result<Vec<(u8, Ha)>, Reject> {
        let mut registers = Registers::reset(bank, 0);
        let mut touched: Vec<u8> = match self {
            Self::Cel(log) => {
                log.replay(&mut registers)?;
                log.records().iter().map(|record| record.pcr).collect()
            }
            Self::Ima(list) => {
                for entry in list.entries() {
                    registers.extend(IMA_PCR, &entry.extended(bank))?;
                }
                vec![IMA_PCR]
            }
        };
        touched.sort_unstable();
        touched.dedup();
        Ok(touched.into_iter().filter_map(|pcr| Some((pcr, registers.get(pcr)?))).collect())
    }
}
