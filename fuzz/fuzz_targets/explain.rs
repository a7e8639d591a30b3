//! Logs explained in any bank: what is shown is what decides. The verdict is that of the strict reader and of
//! the checks that appraisal makes; a register that is quoted otherwise is the one that is named.
#![no_main]

use coffer_attestation::Reject;
use coffer_attestation::event_log::{explain, parse_bank, show};
use coffer_formats::tpm::hash::{Ha, HashAlg};
use coffer_fuzz::one_in;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let bank = HashAlg::ALL.into_iter().nth(usize::from(*choice) % 5);
    let shown = show(bytes, bank);
    let explained = explain(bytes, bank, None, &[]);
    assert_eq!(shown.as_ref().err(), explained.as_ref().err());
    let (Ok(shown), Ok(explained)) = (shown, explained) else { return };
    assert!(explained.events.len() <= 4096 && explained.events.len() == shown.events().len());
    assert_eq!(explained.broken, shown.broken());
    assert_eq!(explained.notes.len(), shown.quirks().len());

    let strict = parse_bank(bytes, shown.bank());
    let accepted = strict.as_ref().is_ok_and(|log| log.check_firmware().is_ok());
    assert_eq!(explained.verdict.reject.is_none(), accepted);

    // Quoted as it replays: the same verdict. Quoted otherwise in one register: that one.
    if !one_in(4, data) {
        return;
    }
    let Some(registers) = shown.registers(shown.bank()) else { return };
    let mut quoted: Vec<(u8, Ha)> =
        (0..24).map(|pcr| (pcr, registers.get(pcr).expect("24 registers"))).collect();
    let again = explain(bytes, None, Some(&quoted), &[]).expect("explained before");
    assert_eq!(again.verdict.reject, explained.verdict.reject);
    let pcr = choice % 24;
    quoted[usize::from(pcr)].1 = registers.get(pcr).expect("24 registers").extend(&[1]);
    let other = explain(bytes, None, Some(&quoted), &[]).expect("explained before").verdict;
    if strict.is_ok() {
        assert_eq!((other.reject, other.pcr), (Some(Reject::ReplayMismatch), Some(pcr)));
    } else {
        assert_eq!(other.reject, explained.verdict.reject);
    }
});
