//! `coffer host reference`: predictions from files, and files that are none.

use coffer_attestation::event_log::{EventType, LogBuilder, SEPARATOR};
use coffer_attestation::{Digest, predict};

use crate::support::{Place, succeeds};

pub const REFERENCE_ARGS: &[&str] = &[
    "host",
    "reference",
    "--name",
    "rack",
    "--kernel",
    "vmlinuz",
    "--initrd",
    "initrd",
    "--cmdline",
    "quiet",
    "--event-log",
    "log.bin",
    "--profile",
    "sealed",
];

/// The least that is a PE32+ application: headers, no section.
fn pe() -> Vec<u8> {
    let mut pe = vec![0u8; 0x400];
    let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80u32.to_le_bytes());
    put(0x80, b"PE\0\0");
    put(0x80 + 20, &240u16.to_le_bytes());
    put(0x98, &0x20bu16.to_le_bytes());
    put(0x98 + 60, &0x400u32.to_le_bytes());
    put(0x98 + 108, &16u32.to_le_bytes());
    pe
}

pub fn reference_inputs() -> Place {
    let place = Place::new();
    place.write("vmlinuz", pe());
    place.write("initrd", "initrd");
    let separator = Digest::of(&[SEPARATOR]);
    let log = (0..8).fold(LogBuilder::new(), |log, pcr| {
        log.event(pcr, EventType::SEPARATOR, separator, SEPARATOR)
    });
    place.write("log.bin", log.finish());
    place
}

#[test]
fn a_reference_is_predicted_from_files_and_firmware_taken_from_the_log() {
    let place = reference_inputs();
    let out = succeeds(place.coffer().args(REFERENCE_ARGS).args(["--svn", "3"]));
    let found: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(found["svn"], 3);
    assert_eq!((&found["profile"], &found["monitor_svn"]), (&"sealed".into(), &1.into()));
    assert_eq!(found["kernel"], predict::authenticode_sha256(&pe()).expect("a PE").to_hex());
    assert_eq!(found["cmdline"], predict::load_options("quiet").to_hex());
    let pcr = Digest::ZERO.extend(&Digest::of(&[SEPARATOR])).to_hex();
    assert_eq!(found["firmware"], serde_json::json!({"0": pcr, "2": pcr, "3": pcr, "7": pcr}));

    succeeds(place.coffer().args(REFERENCE_ARGS).args(["--svn", "3", "-o", "ref.json"]));
    assert_eq!(std::fs::read_to_string(place.path("ref.json")).expect("written"), out);
}

#[test]
fn a_reference_states_what_the_build_is_and_leaves_nothing_to_a_guess() {
    let place = reference_inputs();
    let unstated = &REFERENCE_ARGS[..REFERENCE_ARGS.len() - 2];
    for more in [&[][..], &["--profile", "any"]] {
        let output = place.coffer().args(unstated).args(more).output().expect("coffer starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--profile"), "{said}");
    }
    let more = ["--profile", "developer", "--monitor-svn", "7"];
    let out = succeeds(place.coffer().args(unstated).args(more));
    let found: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&found["profile"], &found["monitor_svn"]), (&"developer".into(), &7.into()));
}

#[test]
fn refuses_files_that_are_not_what_they_should_be() {
    let place = reference_inputs();
    place.write("vmlinuz", "MZ");
    place.refused(REFERENCE_ARGS).says(
        1,
        "`vmlinuz` is not a kernel that firmware can start",
        "vmlinuz",
    );
    let place = reference_inputs();
    place.write("log.bin", "log");
    place.refused(REFERENCE_ARGS).says(
        1,
        "`log.bin` is not a TCG event log",
        "binary_bios_measurements",
    );
    let place = reference_inputs();
    std::fs::remove_file(place.path("initrd")).expect("remove");
    place.refused(REFERENCE_ARGS).says(
        1,
        "cannot read `initrd`: it does not exist",
        "check the path",
    );
    let place = reference_inputs();
    place.refused(&[REFERENCE_ARGS, &["-o", "no/such/ref.json"]].concat()).says(
        1,
        "cannot create `no/such/ref.json`",
        "make the folder",
    );
}
