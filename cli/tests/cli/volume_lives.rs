//! Volumes on real monitors with vaults in software, and a real verifier that permits a backup.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};

use crate::real_monitor::Monitor;
use crate::support::{Place, succeeds};
use crate::verifier::Served;

struct Host(Monitor);

impl Host {
    fn new() -> Self {
        Self(Monitor::start_with_vault())
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
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.write_all(&vec![0x5a; usize::try_from(length).expect("small")]).expect("damage it");
    host.refuses(&place, &["disk", "check", "db"], "");
}
