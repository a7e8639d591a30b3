//! Firmware logs: what is read, limits, and near misses.

use super::super::LogBuilder;
use super::*;
use crate::Digest;
use proptest::prelude::*;

const D: Digest = Digest([9; 32]);
/// Bytes of the header [`LogBuilder`] writes.
const HEADER: usize = 32 + 33;
/// Bytes of an event it writes, without data.
const EVENT: usize = 50;

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
    let bytes = good();
    let log = parse(&bytes).unwrap();
    assert_eq!(log.events.len(), 3);
}

#[test]
fn pcr_0_begins_at_the_locality_the_log_names() {
    for locality in [0, 3, 4] {
        let data = [&STARTUP_LOCALITY[..], &[locality]].concat();
        let bytes = LogBuilder::new().event(0, EventType::NO_ACTION, Digest::ZERO, &data).finish();
        assert_eq!(parse(&bytes).unwrap().startup_locality(), locality);
    }
    let silent = LogBuilder::new().finish();
    assert_eq!(parse(&silent).unwrap().startup_locality(), 0);
}

#[test]
fn limits_admit_the_last_that_is_within() {
    let limit = Err(Reject::LimitExceeded);
    let read = |sizes: &[usize]| {
        let add = |log: LogBuilder, size: &usize| log.event(4, EventType::IPL, D, &vec![1; *size]);
        parse(&sizes.iter().fold(LogBuilder::new(), add).finish()).map(|log| log.events.len())
    };
    assert_eq!(read(&[EVENT_DATA_MAX]), Ok(1));
    assert_eq!(read(&[EVENT_DATA_MAX + 1]), limit);
    assert_eq!(read(&[0; EVENTS_MAX]), Ok(EVENTS_MAX));
    assert_eq!(read(&[0; EVENTS_MAX + 1]), limit);
    let last = EVENT_LOG_MAX - HEADER - 3 * EVENT_DATA_MAX - 4 * EVENT;
    let filled = |last: usize| read(&[EVENT_DATA_MAX, EVENT_DATA_MAX, EVENT_DATA_MAX, last]);
    assert_eq!(filled(last), Ok(4));
    assert_eq!(filled(last + 1), limit);
}

#[test]
fn the_header_lists_each_bank_once_and_by_its_size() {
    let read = |more: &[[u16; 2]]| {
        let banks = [&[[0x0b, 32]], more].concat();
        let mut spec = [&SPEC_ID[..], &[0, 0, 0, 0, 0, 2, 0, 2]].concat();
        spec.extend((banks.len() as u32).to_le_bytes());
        spec.extend(banks.as_flattened().iter().flat_map(|field| field.to_le_bytes()));
        spec.push(0);
        let mut log = [&[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20]].concat();
        log.extend((spec.len() as u32).to_le_bytes());
        log.extend(spec);
        parse(&log).map(|log| log.banks().len())
    };
    assert_eq!(read(&[]), Ok(1));
    assert_eq!(read(&[[0x0c, 48], [0x0d, 64], [4, 20]]), Ok(4));
    let unknown: Vec<[u16; 2]> = (0..7).map(|n| [0x100 + n, 20 + n]).collect();
    assert_eq!(read(&unknown), Ok(1), "eight in all");
    assert_eq!(read(&[&unknown[..], &[[0x12, 32]]].concat()), Err(Reject::LimitExceeded));
    assert_eq!(read(&[[0x12, 20], [0x13, 64]]), Ok(1));
    for (what, more) in [
        ("a bank twice", &[[0x0b, 32]][..]),
        ("an unknown bank twice", &[[0x12, 32], [0x12, 32]]),
        ("SHA-384 of 32 bytes", &[[0x0c, 32]]),
        ("an unknown bank of 19 bytes", &[[0x12, 19]]),
        ("an unknown bank of 65 bytes", &[[0x12, 65]]),
    ] {
        assert_eq!(read(more), Err(Reject::Malformed), "{what}");
    }
}

#[test]
fn refuses_every_near_miss() {
    let no_action =
        |data: &[u8]| LogBuilder::new().event(0, EventType::NO_ACTION, Digest::ZERO, data).finish();
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
            let parsed = parse(&log).unwrap();
            let events = &parsed.events[..n];
            HEADER + events.iter().map(|e| EVENT + e.data.len()).sum::<usize>()
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
        let log = log.finish();
        let parsed = parse(&log).unwrap();
        let back: Vec<_> = parsed
            .events
            .iter()
            .map(|e| (e.pcr, e.kind.0, e.digest.sha256().unwrap().0, e.data.to_vec()))
            .collect();
        prop_assert_eq!(back, events);
    }
}
