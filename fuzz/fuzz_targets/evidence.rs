//! Evidence in its CMW, as it comes or a true one with edits: what is accepted is within the limits of SPEC 4.5
//! and is its own encoding.
#![no_main]

use std::sync::LazyLock;

use coffer_exchange::evidence::{DESCRIPTOR_MAX, EVENT_LOG_MAX, Evidence};
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

const RECORDED: &[u8] =
    include_bytes!("../../tests/conformance/corpus/originals/evidence-batch-7/evidence.cmw");

/// The recorded evidence with its long parts cut off: their content is nothing to the decoder, and short inputs
/// run ten times as fast.
static SHORT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut evidence = Evidence::from_cmw(RECORDED).expect("a recorded evidence");
    for quote in [&mut evidence.vm.quote, &mut evidence.host.quote] {
        quote.pcrs.truncate(3);
        quote.event_log.truncate(30);
    }
    evidence.host.descriptor.truncate(30);
    evidence.to_cmw()
});

fuzz_target!(init: {
    assert!(Evidence::from_cmw(&SHORT).is_ok() && SHORT.len() < 2048, "{}", SHORT.len());
}, |data: &[u8]| {
    // A CBOR array of two.
    if data.first() == Some(&0x82) {
        check(data);
    } else {
        check(&edited(&SHORT, data));
    }
});

fn check(data: &[u8]) {
    if let Ok(evidence) = Evidence::from_cmw(data) {
        assert_eq!(evidence.to_cmw(), data);
        for quote in [&evidence.vm.quote, &evidence.host.quote] {
            assert!(quote.event_log.len() <= EVENT_LOG_MAX && quote.pcrs.len() <= 24);
        }
        assert!(evidence.host.descriptor.len() <= DESCRIPTOR_MAX);
        assert!(evidence.host.inclusion.path.len() <= 32);
    }
}
