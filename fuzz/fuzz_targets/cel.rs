//! systemd's log, as it comes or a true one with edits: what is read is within limits, names userspace's registers
//! only, and replays alike; one that was changed and not only respelt leads elsewhere.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::event_log::Registers;
use coffer_attestation::event_log::cel::CelLog;
use coffer_formats::tpm::hash::HashAlg;
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

const BANK: HashAlg = HashAlg::Sha256;

/// Three records of a boot, as systemd writes them.
static TRUE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let record = |pcr: u8, text: &str| {
        let digest = BANK.digest(&[text.as_bytes()]);
        format!(
            "\u{1e}{{\"pcr\":{pcr},\"digests\":[{{\"hashAlg\":\"sha256\",\"digest\":\"{digest}\"}}],\"content_type\":\"systemd\",\"content\":{{\"eventType\":\"phase\",\"string\":\"{text}\",\"bootId\":\"b\",\"timestamp\":1}}}}\n"
        )
    };
    [record(11, "enter-initrd"), record(15, "machine-id:x"), record(11, "ready")].concat().into()
});

fn replay(log: &CelLog) -> Option<Registers> {
    let mut registers = Registers::reset(BANK, 0);
    log.replay(&mut registers).ok().map(|()| registers)
}

/// What was extended, in order.
fn extended(log: &CelLog) -> Vec<(u8, Option<coffer_formats::tpm::hash::Ha>)> {
    log.records().iter().map(|record| (record.pcr, record.digest_in(BANK))).collect()
}

static TRUE_LOG: LazyLock<CelLog> =
    LazyLock::new(|| CelLog::parse(&TRUE).expect("the original is read"));

fuzz_target!(init: {
    assert!(TRUE_LOG.records().iter().all(|record| record.text_is_measured(BANK)));
}, |data: &[u8]| {
    let edits;
    let bytes: &[u8] = match data.first() {
        Some(0x1e | b'[' | b'{') | None => data,
        Some(_) => {
            edits = edited(&TRUE, data);
            &edits
        }
    };
    let Ok(log) = CelLog::parse(bytes) else { return };
    assert!(log.records().len() <= 4096);
    assert_eq!(CelLog::parse(bytes).as_ref(), Ok(&log));
    let replayed = replay(&log);
    assert_eq!(replayed.is_some(), extended(&log).iter().all(|(_, digest)| digest.is_some()));
    if let Some(registers) = replayed {
        // Registers apart, order among them says nothing.
        let of = |log: &CelLog, pcr: u8| -> Vec<_> {
            extended(log).into_iter().filter(|(index, _)| *index == pcr).collect()
        };
        let original = replay(&TRUE_LOG).expect("the original replays");
        for pcr in 0..24 {
            let same = of(&log, pcr) == of(&TRUE_LOG, pcr);
            assert_eq!(registers.get(pcr) == original.get(pcr), same, "register {pcr}");
        }
    }
    for record in log.records() {
        assert!([8, 9, 11, 12, 13, 14, 15].contains(&record.pcr));
        let _ = record.text_is_measured(BANK);
    }
});
