//! Bodies of events: device paths, variables, signature lists, GPTs and what a boot is made of.
#![no_main]

use coffer_attestation::event_log::body::{Body, signature_lists};
use coffer_attestation::event_log::boot::Boot;
use coffer_attestation::event_log::{EventType, LogBuilder, parse};
use coffer_formats::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u32, &[u8])| {
    let (pcr, kind, data) = input;
    let _ = signature_lists(data).map(|lists| assert!(lists.len() <= data.len() / 28));
    // Event types of PFP 1.06 lie in these two ranges.
    let kind = EventType(if kind & 1 == 0 { kind >> 1 & 0x1f } else { 0x8000_0000 | kind >> 1 & 0xff });
    let digest =
        if kind == EventType::NO_ACTION { Digest::ZERO } else { Digest::of(&[data]) };
    let bytes = LogBuilder::new().event(pcr % 24, kind, digest, data).finish();
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
