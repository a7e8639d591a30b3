//! Event logs: what a verdict may rest on is within limits, shows the same events, and replays alike.
#![no_main]

use coffer_attestation::event_log::{parse, show};
use coffer_formats::tpm::hash::HashAlg;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let shown = show(data, Some(HashAlg::Sha256));
    if let Ok(log) = parse(data) {
        assert!(log.events().len() <= 4096);
        assert!(log.events().iter().map(|event| event.data.len()).sum::<usize>() <= data.len());
        let shown = shown.as_ref().expect("what is parsed is shown");
        assert_eq!(shown.broken(), None);
        assert_eq!(shown.events(), log.events());
        for pcr in 0..24 {
            assert_eq!(log.replay(pcr), shown.replay(pcr));
        }
        let _ = log.check_separators();
    }
});
