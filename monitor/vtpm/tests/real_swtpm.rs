//! The vTPM against a real swtpm: what a guest finds in it, and what it cannot do (SPEC 2.5, 3.6, 3.7).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use coffer_exchange::tpm::command::{self, Hierarchy};
use coffer_exchange::tpm::response::{self, TpmError};
use coffer_formats::Digest;
use coffer_formats::event_log::{VmEvent, vm_launch_log};
use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::{pcr, template};
use coffer_vtpm::{EK_CERTIFICATE_INDEX, Swtpm, SwtpmConfig, Vtpm, VtpmError, Walls};

/// TPM_RC_LOCALITY.
const RC_LOCALITY: u32 = 0x907;
/// TPM_RC_HIERARCHY for the first handle.
const RC_HIERARCHY: u32 = 0x185;

const RECORD: &[u8] = b"a launch record";
const CERTIFICATE: &[u8] = &[0x30; 1500];

fn swtpm(name: &str) -> (PathBuf, Swtpm) {
    let state = std::env::temp_dir().join(format!("coffer-vtpm-{}-{name}", std::process::id()));
    let config = SwtpmConfig {
        restored: None,
        program: "/usr/bin/swtpm".into(),
        state: state.clone(),
        walls: Walls::DangerouslyNone,
    };
    (state, Swtpm::spawn(&config).unwrap())
}

fn events() -> Vec<VmEvent> {
    let [kernel, initrd, cmdline, descriptor] =
        ["kernel", "initrd", "cmdline", "descriptor"].map(|what| Digest::of(&[what.as_bytes()]));
    vm_launch_log("monitor", &kernel, &initrd, &cmdline, &descriptor, RECORD).events
}

fn sealed(name: &str) -> (Vtpm, Guest) {
    let (_, swtpm) = swtpm(name);
    let keyed = swtpm.initialise().unwrap().make_keys().unwrap();
    let measured = keyed.certify(CERTIFICATE).unwrap().measure(&events(), RECORD).unwrap();
    let (vtpm, data) = measured.seal().unwrap();
    (vtpm, Guest(UnixStream::from(data)))
}

/// A guest's view: the data channel.
struct Guest(UnixStream);

impl Guest {
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        self.0.write_all(command).unwrap();
        let mut answer = vec![0; 4096];
        let n = self.0.read(&mut answer).unwrap();
        answer.truncate(n);
        answer
    }
}

#[test]
fn pcr_17_is_the_hash_sequence_over_the_launch_record() {
    let (_vtpm, mut guest) = sealed("pcr17");
    for bank in pcr::VM_BANKS {
        let answer = guest.run(&command::pcr_read(bank, &[17]));
        let expected = bank.zero().extend(bank.digest(&[RECORD]).as_bytes());
        assert_eq!(response::pcr_read_in(bank, &answer), Ok(vec![(17, expected)]), "{bank}");
    }
}

#[test]
fn every_event_is_in_both_banks() {
    let (_vtpm, mut guest) = sealed("both");
    // Registers nobody quotes too.
    for pcr in [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 17] {
        for bank in pcr::VM_BANKS {
            let digests = events().into_iter().filter(|event| event.pcr == pcr);
            let expected = digests
                .flat_map(|event| event.digests())
                .filter(|digest| digest.hash() == bank)
                .fold(bank.zero(), |value, digest| value.extend(digest.as_bytes()));
            assert_ne!(expected, bank.zero());
            let answer = guest.run(&command::pcr_read(bank, &[pcr]));
            assert_eq!(response::pcr_read_in(bank, &answer), Ok(vec![(pcr, expected)]), "{bank}");
        }
    }
}

#[test]
fn guest_can_neither_extend_nor_reset_pcr_17() {
    let (_vtpm, mut guest) = sealed("locality");
    for bank in pcr::VM_BANKS {
        let extend = guest.run(&command::pcr_extend(17, &[bank.digest(&[b"forged"])]));
        assert_eq!(response::ok(&extend), Err(TpmError::Code(RC_LOCALITY)));
    }
    // TPM2_PCR_Reset(17) with an empty password.
    let reset = hex("8002 0000001b 0000013d 00000011 00000009 40000009 0000 00 0000");
    assert_eq!(response::ok(&guest.run(&reset)), Err(TpmError::Code(RC_LOCALITY)));
}

#[test]
fn platform_hierarchy_is_closed() {
    let (_vtpm, mut guest) = sealed("platform");
    for command in [
        command::pcr_allocate(&[HashAlg::Sha256]),
        command::nv_define(0x0150_0001, 8, 1 | 1 << 16 | 1 << 30),
        command::hierarchy_disable_platform(),
        command::create_primary(Hierarchy::Platform, &template::vm_ak()),
    ] {
        assert_eq!(response::ok(&guest.run(&command)), Err(TpmError::Code(RC_HIERARCHY)));
    }
}

#[test]
fn guest_derives_the_attestation_key_the_monitor_named() {
    let (vtpm, mut guest) = sealed("vak");
    let made = guest.run(&command::create_primary(Hierarchy::Endorsement, &template::vm_ak()));
    let (_, public) = response::create_primary(&made).unwrap();
    assert_eq!(public, vtpm.keys.ak.as_bytes());
    assert_ne!(vtpm.keys.ak.object_name(), vtpm.keys.ek.object_name());
}

#[test]
fn two_launches_share_no_key() {
    let (a, _) = sealed("fresh-a");
    let (b, _) = sealed("fresh-b");
    assert_ne!(a.keys.ak.object_name(), b.keys.ak.object_name());
    assert_ne!(a.keys.ek.object_name(), b.keys.ek.object_name());
}

#[test]
fn guest_reads_the_ek_certificate_and_cannot_change_it() {
    let (_vtpm, mut guest) = sealed("nv");
    let public =
        response::nv_read_public(&guest.run(&command::nv_read_public(EK_CERTIFICATE_INDEX)));
    assert_eq!(usize::from(public.unwrap().size), CERTIFICATE.len());
    let read = guest.run(&command::nv_read(EK_CERTIFICATE_INDEX, 1000, 0));
    assert_eq!(response::nv_read(&read).unwrap(), &CERTIFICATE[..1000]);
    let write = guest.run(&command::nv_write(EK_CERTIFICATE_INDEX, 0, &[1]));
    assert!(response::ok(&write).is_err());
}

#[test]
fn there_is_no_bank_that_is_not_measured_into() {
    let (_vtpm, mut guest) = sealed("banks");
    for bank in HashAlg::ALL {
        let answer = guest.run(&command::pcr_read(bank, &[0]));
        // The answered selection is empty where there is no bank.
        let there = u8::from(pcr::VM_BANKS.contains(&bank));
        assert_eq!(answer.get(14..18), Some(&[0, 0, 0, 1][..]));
        assert_eq!(answer.get(20..24), Some(&[3, there, 0, 0][..]), "{bank}");
    }
    // TPM2_GetCapability(TPM_CAP_PCRS): a bank that this build has no name for would stand here too.
    let answer = guest.run(&hex("8001 00000016 0000017a 00000005 00000000 00000001"));
    let listed = &answer[15..];
    let count = u32::from_be_bytes(listed[..4].try_into().unwrap());
    let (entries, rest) = listed[4..].as_chunks::<6>();
    assert_eq!((count as usize, rest), (entries.len(), &[][..]));
    let allocated: Vec<u16> = entries
        .iter()
        .filter(|entry| entry[3..] != [0; 3])
        .map(|entry| u16::from_be_bytes([entry[0], entry[1]]))
        .collect();
    assert_eq!(allocated, pcr::VM_BANKS.map(HashAlg::id));
}

#[test]
fn refuses_a_launch_whose_record_is_not_the_one_logged() {
    let (_, swtpm) = swtpm("mismatch");
    let keyed = swtpm.initialise().unwrap().make_keys().unwrap();
    let result = keyed.certify(CERTIFICATE).unwrap().measure(&events(), b"another record");
    assert!(matches!(result, Err(VtpmError::PcrMismatch(17, HashAlg::Sha256))));
}

#[test]
fn refuses_a_launch_of_which_another_bank_holds_something_else() {
    let (_, swtpm) = swtpm("other-bank");
    let keyed = swtpm.initialise().unwrap().make_keys().unwrap();
    let mut events = events();
    // What the sequence made of the record is not what this event says of it.
    events.last_mut().unwrap().sha384 = HashAlg::Sha384.digest(&[b"another record"]);
    let result = keyed.certify(CERTIFICATE).unwrap().measure(&events, RECORD);
    assert!(matches!(result, Err(VtpmError::PcrMismatch(17, HashAlg::Sha384))));
}

#[test]
fn leaves_neither_process_nor_state_behind() {
    let (state, swtpm) = swtpm("drop");
    let process = PathBuf::from(format!("/proc/{}", swtpm.pid()));
    assert!(state.exists() && process.exists());
    drop(swtpm);
    assert!(!state.exists() && !process.exists());
}

/// Set for the run of [`a_full_disk_is_named_and_nothing_stays`] that has one.
const FULL_DISK: &str = "COFFER_TEST_FULL_DISK";

#[test]
fn a_full_disk_is_named_and_nothing_stays() {
    if let Some(disk) = std::env::var_os(FULL_DISK) {
        return on_a_full_disk(disk.into());
    }
    let disk = std::env::temp_dir().join(format!("coffer-vtpm-{}-full", std::process::id()));
    std::fs::create_dir(&disk).unwrap();
    // Two pages: one for a file as the monitor keeps beside it, one for the first state, none for the next.
    let script =
        "mount -t tmpfs -o size=8k tmpfs \"$0\" && echo x > \"$0/children\" && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(&disk)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_full_disk_is_named_and_nothing_stays", "--nocapture"])
        .env(FULL_DISK, &disk)
        .output()
        .unwrap();
    std::fs::remove_dir(&disk).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("a full disk was refused"), "{output:?}");
}

fn on_a_full_disk(disk: PathBuf) {
    let config = SwtpmConfig {
        restored: None,
        program: "/usr/bin/swtpm".into(),
        state: disk.join("vtpm"),
        walls: Walls::DangerouslyNone,
    };
    let swtpm = Swtpm::spawn(&config).unwrap();
    let process = PathBuf::from(format!("/proc/{}", swtpm.pid()));
    let Err(error) = swtpm.initialise() else { panic!("it found room") };
    let text = error.to_string();
    assert!(matches!(error, VtpmError::NoSpace(..)), "{text}");
    assert!(text.contains("swtpm said: SWTPM_NVRAM_StoreData"), "{text}");
    assert!(!process.exists() && !config.state.exists());
    assert!(disk.join("children").exists());
    println!("a full disk was refused");
}

#[test]
fn a_swtpm_that_fails_for_another_reason_is_quoted() {
    let (state, swtpm) = swtpm("quoted");
    // Its lock cannot be taken: somebody else's state, for all it knows.
    std::fs::create_dir(state.join(".lock")).unwrap();
    let Err(error) = swtpm.initialise() else { panic!("it took the lock") };
    let VtpmError::Said(_, said) = error else { panic!("{error}") };
    assert!(said.contains("Could not open lockfile"), "{said}");
}

#[test]
fn ends_when_the_vm_process_closes_the_data_channel() {
    let (mut vtpm, guest) = sealed("eof");
    assert!(!vtpm.has_ended());
    drop(guest);
    let ended = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        vtpm.has_ended()
    });
    assert!(ended);
}

#[test]
fn never_takes_over_existing_state() {
    let state = std::env::temp_dir().join(format!("coffer-vtpm-{}-taken", std::process::id()));
    std::fs::create_dir(&state).unwrap();
    let config = SwtpmConfig {
        restored: None,
        program: "/usr/bin/swtpm".into(),
        state: state.clone(),
        walls: Walls::DangerouslyNone,
    };
    assert!(matches!(Swtpm::spawn(&config), Err(VtpmError::State(..))));
    std::fs::remove_dir(&state).unwrap();
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}
