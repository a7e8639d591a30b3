//! systemd's log: what is read is within limits, names userspace's registers only, and replays alike.
#![no_main]

use coffer_attestation::event_log::Registers;
use coffer_attestation::event_log::cel::CelLog;
use coffer_formats::tpm::hash::HashAlg;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(log) = CelLog::parse(data) else { return };
    assert!(log.records().len() <= 4096);
    let replay = || {
        let mut registers = Registers::reset(HashAlg::Sha256, 0);
        log.replay(&mut registers).map(|()| registers)
    };
    assert_eq!(replay(), replay());
    let all_have_digests = log.records().iter().all(|r| r.digest_in(HashAlg::Sha256).is_some());
    assert_eq!(replay().is_ok(), all_have_digests);
    for record in log.records() {
        assert!([8, 9, 11, 12, 13, 14, 15].contains(&record.pcr));
        let _ = record.text_is_measured(HashAlg::Sha256);
    }
});
