//! The explanation against logs that machines wrote: what is shown is what decides.

use coffer_attestation::event_log::{self, EventType, LogBuilder, explain};
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::{Digest, Reject};

const LOG: &[u8] = include_bytes!("vectors/lab-ovmf-direct-kernel.bin");

fn quoted() -> Vec<(u8, Ha)> {
    let log = event_log::parse(LOG).expect("a recorded log");
    (0..10).map(|pcr| (pcr, log.replay(pcr))).collect()
}

#[test]
fn explains_a_lab_host() {
    let explained = explain(LOG, None, Some(&quoted()), &[]).unwrap();
    assert_eq!((explained.verdict.reject, explained.secure_boot), (None, Some(false)));
    assert_eq!((explained.events.len(), explained.bank, explained.broken), (25, "sha256", None));
    let text =
        |event: usize| (explained.events[event].data, explained.events[event].text.as_deref());
    assert_eq!(text(3), ("whole", Some("SecureBoot = 0")));
    assert_eq!(text(13), ("whole", Some("Calling EFI Application from Boot Option")));
    assert_eq!(text(11), ("part", Some("BootOrder, 2 bytes")));
    assert_eq!(text(22), ("claimed", Some("0x8f3b22ec: Linux initrd")));
    assert!(explained.events.iter().all(|event| event.malformed.is_none()));
    let booted = |what: &str| explained.boot.iter().filter(|item| item.what == what).count();
    assert_eq!((booted("application"), booted("initrd"), booted("command-line")), (1, 1, 1));
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["registers"][0]["ok"], true);
}

#[test]
fn names_the_register_at_fault() {
    let mut values = quoted();
    values[4].1 = values[4].1.extend(&[0; 32]);
    let verdict = explain(LOG, None, Some(&values), &[]).unwrap().verdict;
    assert_eq!((verdict.reject, verdict.pcr), (Some(Reject::ReplayMismatch), Some(4)));
    assert!(verdict.why.contains(&values[4].1.to_string()), "{}", verdict.why);
    let padded = [LOG, &[0; 64]].concat();
    let explained = explain(&padded, None, Some(&quoted()), &[]).unwrap();
    assert_eq!(explained.verdict.reject, Some(Reject::Malformed));
    assert_eq!((explained.notes.len(), explained.events.len()), (1, 25));
    let unseparated = LogBuilder::new().event(4, EventType::IPL, Digest::ZERO, b"x").finish();
    let verdict = explain(&unseparated, None, None, &[]).unwrap().verdict;
    assert_eq!((verdict.reject, verdict.pcr), (Some(Reject::SeparatorInvalid), Some(0)));
    let absent = explain(LOG, Some(HashAlg::Sha384), None, &[]).map(drop);
    assert_eq!(absent, Err(Reject::BankNotAllowed));
}

/// Logs of other machines, in the folder this variable names: read to the end, and every body understood, save
/// in logs of TPM 1.2 style, where the shim of Debian 10 logs a byte too many.
#[test]
#[ignore = "asks for logs that are not ours: COFFER_EVENT_LOGS names their folder"]
fn explains_logs_from_elsewhere() {
    let folder = std::env::var_os("COFFER_EVENT_LOGS").expect("COFFER_EVENT_LOGS");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let explained = explain(&std::fs::read(&path).unwrap(), None, None, &[]).unwrap();
        println!("{} {:?} {:?}", path.display(), explained.verdict, explained.notes);
        for item in &explained.boot {
            println!("  {item:?}");
        }
        for event in &explained.events {
            println!("  {event:?}");
        }
        assert_eq!(explained.broken, None, "{}", path.display());
        let malformed = explained.events.iter().find(|event| event.malformed.is_some());
        let malformed = malformed.filter(|_| explained.format != "tpm-1.2");
        assert_eq!(malformed, None, "{}", path.display());
    }
}
