//! Reads a crypto-agile log into events of the SHA-256 bank. Little-endian throughout, unlike the TPM.

use coffer_formats::event_log::SPEC_ID;

use super::{Event, EventType, STARTUP_LOCALITY};
use crate::evidence::EVENT_LOG_MAX;
use crate::tpm::alg;
use crate::tpm::pcr::PCR_COUNT;
use crate::tpm::wire::Reader;
use crate::{Digest, Reject};

/// Most events: a GRUB boot logs about 100, one per script line; a server with many boot entries a few hundred.
const EVENTS_MAX: usize = 4096;
/// Most bytes of one event's data: the largest seen are dbx variables of about 24 KiB.
const EVENT_DATA_MAX: usize = 128 << 10;
/// Most banks in the header: TPMs implement up to five.
const BANKS_MAX: usize = 8;
/// The debug register: never part of a firmware log.
const DEBUG_PCR: u32 = 16;

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog {
    pub(super) events: Vec<Event>,
    /// Locality in which TPM2_Startup ran: the last byte of PCR 0's first value.
    pub(super) startup_locality: u8,
}

impl EventLog {
    /// The events after the Spec ID header, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The measured events of one register, in order.
    pub fn of_pcr(&self, pcr: u8) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |e| e.pcr == pcr && e.is_measured())
    }
}

/// Parses a whole log. Logs of TPM 1.2 style and logs without SHA-256 are [`Reject::BankNotAllowed`].
pub fn parse(bytes: &[u8]) -> Result<EventLog, Reject> {
    if bytes.len() > EVENT_LOG_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut r = Reader::new(bytes);
    let banks = header(&mut r)?;
    let mut log = EventLog { events: Vec::new(), startup_locality: 0 };
    let mut locality_seen = false;
    while !r.rest().is_empty() {
        if log.events.len() == EVENTS_MAX {
            return Err(Reject::LimitExceeded);
        }
        let event = event(&mut r, &banks)?;
        if let Some(locality) = startup_locality(&event)? {
            // It names PCR 0's first value, so it stands before anything extends PCR 0, and once.
            if locality_seen || log.of_pcr(0).next().is_some() {
                return Err(Reject::Malformed);
            }
            locality_seen = true;
            log.startup_locality = locality;
        }
        log.events.push(event);
    }
    Ok(log)
}

/// A bank as the header lists it.
struct Bank {
    algorithm: u16,
    size: usize,
}

/// TCG_PCR_EVENT with TCG_EfiSpecIDEventStruct (PFP 1.06, 10.4.5.1).
fn header(r: &mut Reader<'_>) -> Result<Vec<Bank>, Reject> {
    let (pcr, kind, digest) = (u32_le(r)?, u32_le(r)?, r.array::<20>()?);
    let mut spec = Reader::new(sized(r)?);
    if kind != EventType::NO_ACTION.0 {
        // A TPM 1.2 log: it starts with a measured event and holds SHA-1 only.
        return Err(Reject::BankNotAllowed);
    }
    if pcr != 0 || digest != [0; 20] || spec.array::<16>()? != *SPEC_ID {
        return Err(Reject::Malformed);
    }
    // Platform class, versions and UINTN size do not change how the log is read.
    spec.bytes(8)?;
    let count = usize::try_from(u32_le(&mut spec)?).map_err(|_| Reject::LimitExceeded)?;
    if count > BANKS_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut banks: Vec<Bank> = Vec::with_capacity(count);
    for _ in 0..count {
        let bank = Bank { algorithm: u16_le(&mut spec)?, size: usize::from(u16_le(&mut spec)?) };
        if banks.iter().any(|b| b.algorithm == bank.algorithm)
            || known_size(bank.algorithm).is_some_and(|size| size != bank.size)
            || !(20..=64).contains(&bank.size)
        {
            return Err(Reject::Malformed);
        }
        banks.push(bank);
    }
    let vendor = usize::from(spec.u8()?);
    spec.bytes(vendor)?;
    spec.finish()?;
    if !banks.iter().any(|b| b.algorithm == alg::SHA256) {
        return Err(Reject::BankNotAllowed);
    }
    Ok(banks)
}

/// TCG_PCR_EVENT2: every bank of the header once, and the data.
fn event(r: &mut Reader<'_>, banks: &[Bank]) -> Result<Event, Reject> {
    let (pcr, kind, count) = (u32_le(r)?, EventType(u32_le(r)?), u32_le(r)?);
    let index = u8::try_from(pcr).map_err(|_| Reject::Malformed)?;
    if index >= PCR_COUNT || pcr == DEBUG_PCR || usize::try_from(count) != Ok(banks.len()) {
        return Err(Reject::Malformed);
    }
    let mut seen = [false; BANKS_MAX];
    let mut sha256 = None;
    for _ in 0..count {
        let algorithm = u16_le(r)?;
        let (bank, seen) = banks
            .iter()
            .zip(&mut seen)
            .find(|(bank, _)| bank.algorithm == algorithm)
            .ok_or(Reject::Malformed)?;
        if std::mem::replace(seen, true) {
            return Err(Reject::Malformed);
        }
        let digest = r.bytes(bank.size)?;
        if kind == EventType::NO_ACTION && digest.iter().any(|b| *b != 0) {
            return Err(Reject::Malformed);
        }
        if algorithm == alg::SHA256 {
            sha256 = Digest::from_slice(digest);
        }
    }
    let digest = sha256.ok_or(Reject::Malformed)?;
    Ok(Event { pcr: index, kind, digest, data: sized(r)?.to_vec() })
}

/// The locality a StartupLocality event names; 0, 3 and, with an H-CRTM, 4 (PFP 1.06, 10.4.5.3).
fn startup_locality(event: &Event) -> Result<Option<u8>, Reject> {
    if event.is_measured() {
        return Ok(None);
    }
    match event.data.strip_prefix(STARTUP_LOCALITY) {
        None => Ok(None),
        Some([locality @ (0 | 3 | 4)]) if event.pcr == 0 => Ok(Some(*locality)),
        Some(_) => Err(Reject::Malformed),
    }
}

fn known_size(algorithm: u16) -> Option<usize> {
    match algorithm {
        alg::SHA1 => Some(20),
        alg::SHA256 => Some(32),
        alg::SHA384 => Some(48),
        alg::SHA512 => Some(64),
        _ => None,
    }
}

fn sized<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Reject> {
    let size = usize::try_from(u32_le(r)?).map_err(|_| Reject::LimitExceeded)?;
    if size > EVENT_DATA_MAX {
        return Err(Reject::LimitExceeded);
    }
    r.bytes(size)
}

fn u16_le(r: &mut Reader<'_>) -> Result<u16, Reject> {
    r.array().map(u16::from_le_bytes)
}

fn u32_le(r: &mut Reader<'_>) -> Result<u32, Reject> {
    r.array().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::LogBuilder;
    use super::*;
    use proptest::prelude::*;

    const D: Digest = Digest([9; 32]);
    /// Bytes of the header [`LogBuilder`] writes.
    const HEADER: usize = 32 + 33;

    fn good() -> Vec<u8> {
        LogBuilder::new()
            .event(0, EventType::NO_ACTION, Digest::ZERO, b"StartupLocality\0\x03")
            .event(0, EventType::S_CRTM_VERSION, D, b"v")
            .event(4, EventType::IPL, D, b"abc")
            .finish()
    }

    fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut log = good();
        log[at..at + bytes.len()].copy_from_slice(bytes);
        log
    }

    #[test]
    fn accepts_the_log_the_near_misses_are_made_of() {
        let log = parse(&good()).unwrap();
        assert_eq!(log.events.len(), 3);
        assert_eq!(log.startup_locality, 3);
    }

    #[test]
    fn refuses_every_near_miss() {
        let no_action = |data: &[u8]| {
            LogBuilder::new().event(0, EventType::NO_ACTION, Digest::ZERO, data).finish()
        };
        let locality_late = LogBuilder::new()
            .event(0, EventType::S_CRTM_VERSION, D, b"v")
            .event(0, EventType::NO_ACTION, Digest::ZERO, b"StartupLocality\0\x03")
            .finish();
        let locality_twice = LogBuilder::new()
            .event(0, EventType::NO_ACTION, Digest::ZERO, b"StartupLocality\0\x03")
            .event(0, EventType::NO_ACTION, Digest::ZERO, b"StartupLocality\0\x03")
            .finish();
        let extended_no_action = LogBuilder::new().event(0, EventType::NO_ACTION, D, b"").finish();
        let pcr = |pcr: u8| LogBuilder::new().event(pcr, EventType::IPL, D, b"").finish();
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("empty", vec![], Reject::Malformed),
            ("measured first event (TPM 1.2)", patched(4, &[8, 0, 0, 0]), Reject::BankNotAllowed),
            ("spec id misspelt", patched(32, b"X"), Reject::Malformed),
            ("spec id digest not zero", patched(8, b"X"), Reject::Malformed),
            ("SHA-1 bank only", patched(60, &[4, 0, 20, 0]), Reject::BankNotAllowed),
            ("SHA-256 of 20 bytes", patched(62, &[20, 0]), Reject::Malformed),
            ("nine banks", patched(56, &[9, 0, 0, 0]), Reject::LimitExceeded),
            ("no banks", patched(56, &[0, 0, 0, 0]), Reject::Malformed),
            ("register 24", pcr(24), Reject::Malformed),
            ("register 16", pcr(16), Reject::Malformed),
            ("register 2^32-1", patched(HEADER, &[0xff; 4]), Reject::Malformed),
            ("two digests, one bank", patched(HEADER + 8, &[2, 0, 0, 0]), Reject::Malformed),
            ("no digest", patched(HEADER + 8, &[0, 0, 0, 0]), Reject::Malformed),
            ("bank not in the header", patched(HEADER + 12, &[4, 0]), Reject::Malformed),
            ("data over its limit", patched(HEADER + 46, &[0, 0, 3, 0]), Reject::LimitExceeded),
            ("data beyond the end", patched(HEADER + 46, &[0, 1, 0, 0]), Reject::Malformed),
            ("locality late", locality_late, Reject::Malformed),
            ("locality twice", locality_twice, Reject::Malformed),
            ("locality 2", no_action(b"StartupLocality\0\x02"), Reject::Malformed),
            ("locality of two bytes", no_action(b"StartupLocality\0\x03\0"), Reject::Malformed),
            ("EV_NO_ACTION with a digest", extended_no_action, Reject::Malformed),
            ("zero padding", [good(), vec![0; 12]].concat(), Reject::Malformed),
            ("over the limit", vec![0; EVENT_LOG_MAX + 1], Reject::LimitExceeded),
        ];
        for (name, bytes, reject) in cases {
            assert_eq!(parse(bytes).map(|_| ()), Err(*reject), "{name}");
        }
    }

    #[test]
    fn refuses_truncation_at_every_byte_inside_an_event() {
        let log = good();
        let whole: Vec<usize> = (0..=3)
            .map(|n| {
                let events = &parse(&log).unwrap().events[..n];
                HEADER + events.iter().map(|e| 50 + e.data.len()).sum::<usize>()
            })
            .collect();
        for len in 0..log.len() {
            assert_eq!(parse(&log[..len]).is_ok(), whole.contains(&len), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn never_panics(tail in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..70) {
            let mut log = LogBuilder::new().finish();
            log.truncate(cut);
            log.extend(tail);
            let _ = parse(&log);
        }

        #[test]
        fn reads_what_was_written(
            events in proptest::collection::vec(
                (0u8..16, 4u32..20, any::<[u8; 32]>(), proptest::collection::vec(any::<u8>(), 0..50)),
                0..20,
            ),
        ) {
            let log = events.iter().fold(LogBuilder::new(), |log, (pcr, kind, digest, data)| {
                log.event(*pcr, EventType(*kind), Digest(*digest), data)
            });
            let parsed = parse(&log.finish()).unwrap();
            let back: Vec<_> =
                parsed.events.into_iter().map(|e| (e.pcr, e.kind.0, e.digest.0, e.data)).collect();
            prop_assert_eq!(back, events);
        }
    }
}
