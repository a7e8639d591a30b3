//! Bodies of events: device paths, variables, signature lists, GPTs and what a boot is made of. As they come, or
//! those of recorded logs with edits: what is called backed is what the digest is of.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::event_log::body::{Body, signature_lists};
use coffer_attestation::event_log::boot::Boot;
use coffer_attestation::event_log::{EventType, LogBuilder, parse};
use coffer_formats::Digest;
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("../../attestation/verification/tests/vectors/", $name))
    };
}

const LOGS: [&[u8]; 4] = [
    recorded!("lab-ovmf-direct-kernel.bin"),
    recorded!("eventlogs/ovmf-secureboot-shim-grub/log.bin"),
    recorded!("eventlogs/uki-systemd-stub/log.bin"),
    recorded!("eventlogs/seabios/log.bin"),
];

/// Register, type and data of what machines measured; long lists of signatures are of many alike.
static EVENTS: LazyLock<Vec<(u8, EventType, Vec<u8>)>> = LazyLock::new(|| {
    let logs = LOGS.map(|log| parse(log).expect("a recorded log"));
    let events = logs.iter().flat_map(|log| log.events()).filter(|event| event.data.len() <= 1024);
    events.map(|event| (event.pcr, event.kind, event.data.to_vec())).collect()
});

fuzz_target!(init: {
    assert!(EVENTS.len() > 60, "{} events", EVENTS.len());
}, |input: (u8, u32, &[u8])| {
    let (pcr, kind, data) = input;
    let (pcr, kind, data) = if pcr < 24 {
        // Event types of PFP 1.06 lie in these two ranges.
        let kind = if kind & 1 == 0 { kind >> 1 & 0x1f } else { 0x8000_0000 | kind >> 1 & 0xff };
        (pcr, EventType(kind), data.to_vec())
    } else {
        let (pcr, kind, recorded) = &EVENTS[kind as usize % EVENTS.len()];
        (*pcr, *kind, edited(recorded, data))
    };
    let _ = signature_lists(&data).map(|lists| assert!(lists.len() <= data.len() / 28));
    let digest = if kind == EventType::NO_ACTION { Digest::ZERO } else { Digest::of(&[data.as_slice()]) };
    let bytes = LogBuilder::new().event(pcr, kind, digest, &data).finish();
    if let Ok(log) = parse(&bytes) {
        for event in log.events() {
            let _ = Body::read(event);
            if let Some(backed) = event.content(log.bank()).backed() {
                assert_eq!(Digest::of(&[backed.bytes()]), digest);
            }
        }
        let _ = Boot::extract(&log);
    }
});
