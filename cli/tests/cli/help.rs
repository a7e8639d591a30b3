//! The help of every command, as it stands in `tests/help/`. Set `COFFER_UPDATE_SNAPSHOTS=1` to rewrite it.

use std::path::Path;

use crate::support::{Place, succeeds};

const COMMANDS: &[&str] = &[
    "",
    "image",
    "image build",
    "image import",
    "image inspect",
    "image verify",
    "image keygen",
    "image sign",
    "host",
    "host enroll",
    "host reference",
    "host info",
    "host transport-key",
    "host vault",
    "host reseal",
    "host join",
    "run",
    "ps",
    "logs",
    "console",
    "stop",
    "pause",
    "resume",
    "reset",
    "rm",
    "inspect",
    "events",
    "stats",
    "openapi",
    "volume",
    "volume create",
    "volume ls",
    "volume inspect",
    "volume rm",
    "disk",
    "disk create",
    "disk info",
    "disk check",
    "disk repair",
    "disk rekey",
    "disk grow",
    "disk backup",
    "disk restore",
    "verifier",
    "verifier init",
    "verifier serve",
    "verifier pin",
    "verifier token",
    "verifier permit",
    "verifier fleet",
    "verifier fleet create",
    "verifier fleet grant",
    "verifier trust-host",
    "verifier hosts",
    "verifier decisions",
    "secret",
    "secret put",
    "quote",
    "quote verify",
    "eventlog",
    "eventlog show",
    "eventlog replay",
    "eventlog explain",
    "ek",
    "ek inspect",
    "ek make-credential",
    "evidence",
    "evidence show",
    "evidence explain",
    "doctor",
    "conformance",
];

#[test]
fn help_is_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let update = std::env::var_os("COFFER_UPDATE_SNAPSHOTS").is_some();
    for command in COMMANDS {
        let words: Vec<_> = command.split_whitespace().collect();
        let help = succeeds(Place::new().coffer().args(&words).arg("--help"));
        let file = folder.join(format!(
            "{}.txt",
            ["coffer"].iter().chain(&words).copied().collect::<Vec<_>>().join("-")
        ));
        if update {
            std::fs::write(&file, &help).expect("write the snapshot");
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(help, expected, "help of `coffer {command}` changed; see the head of this file");
    }
}

#[test]
fn every_leaf_command_shows_examples() {
    let groups = [
        "",
        "image",
        "host",
        "volume",
        "disk",
        "verifier",
        "verifier fleet",
        "secret",
        "quote",
        "eventlog",
        "ek",
        "evidence",
    ];
    for command in COMMANDS.iter().filter(|c| !groups.contains(c)) {
        let help = succeeds(Place::new().coffer().args(command.split_whitespace()).arg("--help"));
        assert!(help.contains("Examples:\n"), "coffer {command}");
    }
}
