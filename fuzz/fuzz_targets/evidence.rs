//! Evidence in its CMW: what is accepted is within the limits of SPEC 4.5 and is its own encoding.
#![no_main]

use coffer_formats::evidence::{DESCRIPTOR_MAX, EVENT_LOG_MAX, Evidence};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(evidence) = Evidence::from_cmw(data) {
        assert_eq!(evidence.to_cmw(), data);
        for quote in [&evidence.vm.quote, &evidence.host.quote] {
            assert!(quote.event_log.len() <= EVENT_LOG_MAX && quote.pcrs.len() <= 24);
        }
        assert!(evidence.host.descriptor.len() <= DESCRIPTOR_MAX);
        assert!(evidence.host.inclusion.path.len() <= 32);
    }
});
