//! Volumes on real monitors with vaults in software, and a real verifier that permits a backup.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;

use coffer_attestation::Digest;
use coffer_attestation::event_log::{EventType, LogBuilder, SEPARATOR};
use serde_json::json;

use crate::real_monitor::Monitor;
use crate::support::{Place, succeeds};
use crate::verifier::Served;

struct Host(Monitor);

impl Host {
    fn new() -> Self {
        Self(Monitor::start_with_vault())
    }

    /// One that takes the verifier's leave.
    fn under(served: &Served) -> Self {
        let pin = succeeds(&mut served.admin(&["verifier", "pin"]));
        let pin: serde_json::Value = serde_json::from_str(&pin).expect("JSON");
        Self(Monitor::start_with_vault_under(pin["release_key"].as_str().expect("a key")))
    }

    fn coffer(&self, place: &Place, args: &[&str]) -> assert_cmd::Command {
        let mut command = place.coffer();
        command.args(args).env("COFFER_HOST", self.0.endpoint());
        command
    }

    #[track_caller]
    fn says(&self, place: &Place, args: &[&str]) -> String {
        succeeds(&mut self.coffer(place, args))
    }

    #[track_caller]
    fn refuses(&self, place: &Place, args: &[&str], error: &str) {
        let endpoint = self.0.endpoint();
        place.refused(&[args, &["--host", &endpoint]].concat()).says(1, error, "");
    }

    fn json(&self, place: &Place, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(place, &[args, &["--json"]].concat())).expect("JSON")
    }
}

#[test]
fn a_volume_is_made_tended_and_removed() {
    let (host, place) = (Host::new(), Place::new());
    host.says(&place, &["volume", "create", "db", "--size", "4M", "--for", "open"]);
    host.refuses(
        &place,
        &["volume", "create", "db", "--size", "4M", "--for", "open"],
        "there is a volume `db` already (volume-exists)",
    );
    host.says(
        &place,
        &["volume", "create", "raw", "--kind", "raw", "--size", "1M", "--for", "open"],
    );
    host.says(&place, &["volume", "create", "t", "--kind", "vtpm", "--for", "open"]);
    assert_eq!(host.says(&place, &["volume", "ls"]).lines().count(), 4);

    let before = host.json(&place, &["disk", "info", "db"]);
    assert_eq!((&before["kind"], &before["bytes"]), (&"encrypted".into(), &(4 << 20).into()));
    assert!(host.says(&place, &["disk", "check", "db"]).contains("damaged:            0"));
    assert_eq!(host.says(&place, &["disk", "grow", "db", "8M"]), "db 8 MiB\n");
    host.refuses(&place, &["disk", "grow", "db", "4M"], "");
    host.refuses(&place, &["disk", "rekey", "raw"], "(wrong-kind)");
    assert_eq!(host.says(&place, &["disk", "rekey", "db"]), "db\n");
    assert!(host.says(&place, &["disk", "check", "db"]).contains("damaged:            0"));
    assert_eq!(host.json(&place, &["disk", "info", "db"])["bytes"], 8 << 20);

    assert_eq!(host.says(&place, &["volume", "rm", "db"]), "db\n");
    assert_eq!(host.says(&place, &["volume", "rm", "db"]), "db\n", "again");
    host.refuses(&place, &["volume", "inspect", "db"], "(no-such-volume)");
}

#[test]
fn a_host_without_a_vault_says_so() {
    let monitor = Monitor::start(&[]);
    let refused = Place::new().refused(&["volume", "ls", "--host", &monitor.endpoint()]);
    refused.says(1, "(no-vault)", "--vault");
    let refused = Place::new().refused(&["host", "transport-key", "--host", &monitor.endpoint()]);
    refused.says(1, "(no-vault)", "--vault");
}

#[test]
fn a_volume_goes_to_the_host_that_the_verifier_permits() {
    let (here, there, other) = (Host::new(), Host::new(), Host::new());
    let served = Served::start();
    let place = &served.place;
    place.write("pin.json", succeeds(&mut served.admin(&["verifier", "pin"])));
    for (host, name) in [(&here, "here.json"), (&there, "there.json"), (&other, "other.json")] {
        place.write(name, host.says(place, &["host", "transport-key", "--json"]));
    }
    let create = ["disk", "create", "db", "--size", "4M", "--for", "open"];
    let id = here.says(place, &[&create[..], &["--verifier-key", "pin.json"]].concat());
    here.says(place, &["disk", "create", "no-verifier", "--size", "4M", "--for", "open"]);
    let permit = |to: &str, out: &str| {
        let args = ["verifier", "permit", "--volume", id.trim(), "--from", "here.json"];
        let mut asked = served.admin(&[&args[..], &["--to", to, "--out", out]].concat());
        // These hosts have no TPM, and can show nothing.
        served.refused(&mut asked).says(1, "(unknown-vault)", "--dangerously-unattested");
        let args = [&args[..], &["--dangerously-unattested"]].concat();
        let serial =
            succeeds(&mut served.admin(&[&args[..], &["--to", to, "--out", out]].concat()));
        let log = succeeds(&mut served.admin(&["verifier", "decisions"]));
        assert!(log.contains(serial.trim()), "{log}");
    };
    permit("there.json", "permit");
    permit("other.json", "other-permit");

    here.refuses(
        place,
        &["disk", "backup", "no-verifier", "x", "--permit", "permit"],
        "(no-permit)",
    );
    place.write("forged", {
        let mut bytes = std::fs::read(place.path("permit")).expect("a permit");
        *bytes.last_mut().expect("bytes") ^= 1;
        bytes
    });
    here.refuses(place, &["disk", "backup", "db", "x", "--permit", "forged"], "(bad-permit)");
    here.says(place, &["disk", "backup", "db", "db.backup", "--permit", "permit"]);
    here.says(place, &["disk", "backup", "db", "other.backup", "--permit", "other-permit"]);
    assert!(!place.path("db.backup.part").exists());

    there.refuses(place, &["disk", "restore", "other.backup", "db"], "(backup-foreign)");
    cut(place, "db.backup", "cut.backup");
    there.refuses(place, &["disk", "restore", "cut.backup", "db"], "(backup-corrupt)");
    there.says(place, &["disk", "restore", "db.backup", "db"]);
    let restored = there.json(place, &["disk", "info", "db"]);
    assert_eq!((&restored["owner"], &restored["bytes"]), (&"open".into(), &(4 << 20).into()));
    assert_ne!(restored["id"], id.trim());
    there.refuses(place, &["disk", "restore", "db.backup", "again"], "(permit-used)");

    // However much more is sent than was read, the refusal arrives.
    let long = OpenOptions::new().append(true).open(place.path("db.backup")).expect("open");
    let length = long.metadata().expect("a length").len();
    long.set_len(length + (256 << 20)).expect("lengthen");
    there.refuses(place, &["disk", "restore", "db.backup", "db"], "(volume-exists)");
}

/// What these hosts lack is a TPM: so far leave leads.
#[test]
fn leave_to_reseal_goes_from_the_verifier_to_the_vault_it_names() {
    let served = Served::start();
    let (host, other, plain) = (Host::under(&served), Host::under(&served), Host::new());
    let place = &served.place;
    let mut vault = host.json(place, &["host", "vault"]);
    assert_eq!((&vault["sealed_to"], &vault["registers"]), (&json!(null), &json!([])));
    assert!(host.says(place, &["host", "vault"]).contains("registers:     none: no TPM"));
    let separator = Digest::of(&[SEPARATOR]);
    let log = (0..8).fold(LogBuilder::new(), |log, pcr| {
        log.event(pcr, EventType::SEPARATOR, separator, SEPARATOR)
    });
    place.write("log.bin", log.finish());
    let replayed = succeeds(place.coffer().args(["eventlog", "replay", "--json", "log.bin"]));
    place.write("to.json", replayed);
    let args = ["verifier", "permit", "--to", "to.json", "--out", "permit", "--vault"];
    let permit = |vault: &serde_json::Value| {
        place.write("here.json", vault.to_string());
        served.admin(&[&args[..], &["here.json"]].concat())
    };
    served.refused(&mut permit(&vault)).says(1, "it is not sealed to registers", "needs no permit");
    vault["sealed_to"] = json!("11".repeat(32));
    vault["registers"] = json!([0, 9]);
    served.refused(&mut permit(&vault)).says(1, "register 9", "eventlog replay");
    vault["registers"] = json!([0, 7]);
    let serial = succeeds(&mut permit(&vault));
    let log = succeeds(&mut served.admin(&["verifier", "decisions"]));
    assert!(log.contains(serial.trim()), "{log}");

    let reseal = ["host", "reseal", "--permit", "permit"];
    host.refuses(place, &reseal, "(vault-no-tpm)");
    other.refuses(place, &reseal, "the permit is for another vault (bad-permit)");
    plain.refuses(place, &reseal, "(no-verifier)");
    let mut bytes = std::fs::read(place.path("permit")).expect("a permit");
    *bytes.last_mut().expect("bytes") ^= 1;
    place.write("permit", bytes);
    host.refuses(place, &reseal, "(bad-permit)");
}

#[test]
fn a_fleets_key_goes_from_the_operator_to_the_hosts_it_is_granted_to() {
    let served = Served::start();
    let (here, there, plain) = (Host::under(&served), Host::under(&served), Host::new());
    let place = &served.place;
    let create = |key: &str| {
        let mut command = place.coffer();
        command.args(["verifier", "fleet", "create", "--key", key]);
        command
    };
    let [fleet, another] = ["fleet", "another"].map(|key| succeeds(&mut create(key)));
    assert_ne!(fleet, another);
    let mode = std::fs::metadata(place.path("fleet")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    served.refused(&mut create("fleet")).says(1, "cannot create", "");
    for (host, name) in [(&here, "here.json"), (&there, "there.json"), (&plain, "plain.json")] {
        place.write(name, host.says(place, &["host", "vault", "--json"]));
    }
    let args = ["verifier", "fleet", "grant"];
    let grant = |key: &str, vault: &str, out: &str| {
        let args = [&args[..], &["--key", key, "--vault", vault, "--out", out]].concat();
        served.refused(&mut served.admin(&args)).says(1, "(unknown-vault)", "attest");
        let args = [&args[..], &["--dangerously-unattested"]].concat();
        let serial = succeeds(&mut served.admin(&args));
        let log = succeeds(&mut served.admin(&["verifier", "decisions"]));
        assert!(log.contains(serial.trim()), "{log}");
    };
    grant("fleet", "here.json", "here.grant");
    grant("fleet", "there.json", "there.grant");
    grant("another", "here.json", "another.grant");
    grant("fleet", "plain.json", "plain.grant");
    let secret = std::fs::read(place.path("fleet")).expect("a key");
    let sent = std::fs::read(place.path("here.grant")).expect("a grant");
    assert!(!sent.windows(32).any(|part| part == &secret[secret.len() - 32..]));
    let bad = [&args[..], &["--key", "here.json", "--vault", "here.json", "--out", "x"]].concat();
    served.refused(&mut served.admin(&bad)).says(1, "is not the key of a fleet", "fleet create");

    let join = |grant: &'static str| ["host", "join", "--grant", grant];
    here.refuses(place, &join("there.grant"), "the permit is for another vault (bad-permit)");
    plain.refuses(place, &join("plain.grant"), "(no-verifier)");
    assert_eq!(here.json(place, &["host", "vault"])["fleet"], json!(null));
    for _ in 0..2 {
        assert_eq!(here.json(place, &join("here.grant"))["fleet"], fleet.trim());
    }
    here.refuses(place, &join("another.grant"), "(other-fleet)");
    assert!(there.says(place, &join("there.grant")).contains(fleet.trim()));
    assert_eq!(there.json(place, &["host", "vault"])["fleet"], fleet.trim());
}

fn cut(place: &Place, from: &str, to: &str) {
    let bytes = std::fs::read(place.path(from)).expect("a backup");
    place.write(to, &bytes[..bytes.len() - 1]);
}

#[test]
fn damage_on_the_hosts_storage_is_found_and_said() {
    let (host, place) = (Host::new(), Place::new());
    let id = host.says(&place, &["volume", "create", "db", "--size", "4M", "--for", "open"]);
    host.says(&place, &["disk", "check", "db"]);
    let path = host.0.folder.path(&format!("vault/volumes/{}.disk", id.trim()));
    let mut file: File = OpenOptions::new().write(true).open(path).expect("the volume's file");
    let length = file.metadata().expect("a length").len();
    file.set_len(8192).expect("shorten it");
    host.refuses(&place, &["disk", "check", "db"], "(volume-short)");
    assert!(host.says(&place, &["disk", "repair", "db"]).contains("given up now:       0"));
    assert_eq!(file.metadata().expect("a length").len(), length);
    host.says(&place, &["disk", "check", "db"]);
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.write_all(&vec![0x5a; usize::try_from(length).expect("small")]).expect("damage it");
    host.refuses(&place, &["disk", "check", "db"], "");
    // Of what is no disk any more nothing is repaired.
    host.refuses(&place, &["disk", "repair", "db"], "(not-a-disk)");
}
