//! What goes from one host to another, by leave of the verifier that both are enrolled at: a volume in a backup, and what is
//! sealed for a fleet; two hosts, each with a TPM of its own (SPEC 11.17, 11.19).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use coffer_lab::coffer::Coffer;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::initrd::Extras;
use coffer_lab::keeper::{Maker, create_volume, keep, stop, told, with_secret};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::verifier::Verifier;
use coffer_lab::workdir::Workdir;
use serde_json::Value;

/// What the verifier releases to the keeper.
const WORD: &str = "swordfish";
const WORD_ID: &str = "keeper/word";
/// Says what it was released, what it finds of what was sealed, and seals anew; what cannot be sealed stays as it was.
const SCRIPT: &str = r#"#!/bin/sh
guest=/run/coffer/bin/coffer-guest
say() { echo "KEEPER $*"; }
look() {
    [ -f "/data/$1" ] || return
    if $guest unseal < "/data/$1" > /tmp/open 2> /tmp/said; then
        say "$1" opens: "$(cat /tmp/open)"
    else
        say "$1" refused: "$(head -n 1 /tmp/said)"
    fi
}
seal() {
    if printf 'sealed by launch %s' "$count" | $guest seal --to signer:SIGNER $2 > /tmp/blob 2> /tmp/said; then
        cp /tmp/blob "/data/$1"
    else
        say "$1" not sealed: "$(head -n 1 /tmp/said)"
    fi
}
count=$(cat /data/count 2>/dev/null || echo 0)
say word "$(cat /run/coffer/secrets/word)"
say found "$count"
look own
look fleet
seal own
seal fleet --fleet
echo $((count + 1)) > /data/count
sync
say left "$((count + 1))"
trap 'exit 0' TERM
while :; do sleep 1; done
"#;

struct Stage {
    workdir: Workdir,
    maker: Maker,
    verifier: Verifier,
    tpms: [HostTpm; 2],
    pin: Value,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let tpm = |name: &str| HostTpm::manufacture(&workdir.folder(name)?);
        let tpms = [tpm("here-tpm")?, tpm("there-tpm")?];
        let verifier = Verifier::start(&workdir.folder("verifier")?, &[&tpms[0], &tpms[1]])?;
        let pin = verifier.pin()?;
        let maker = Maker::new(workdir.path())?;
        let recipe = with_secret(&pin, WORD_ID);
        let script = SCRIPT.replace("SIGNER", &maker.signer);
        let image = maker.on_volume("keeper", 1, &script, &recipe)?;
        maker.sign(&image)?;
        let stage = Self { workdir, maker, verifier, tpms, pin };
        stage.file("word", WORD);
        stage.file("pin.json", &stage.pin.to_string());
        let put = stage.verifier.operator().run(["secret", "put", WORD_ID], |c| {
            c.arg("--from-file").arg(stage.path("word")).args(["--image", &image.id])
        });
        put?.must()?;
        Ok(stage)
    }

    /// Boots one of the two, and enrols it.
    fn boot(&self, name: &str, tpm: &HostTpm) -> Result<LabHost> {
        let disk = VaultDisk::format(&self.path(&format!("{name}.raw")), "512M")?;
        let release_key = self.pin["release_key"].as_str().context("a key")?.to_owned();
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(disk.path().to_owned()),
            verifier_port: Some(self.verifier.port()),
            extras: Extras { vault_verifier: Some(release_key), ..Extras::default() },
            ..LabConfig::default()
        };
        let host = LabHost::boot(&self.workdir.folder(name)?, tpm, &config)?;
        self.verifier.trust(&host, name)?;
        self.verifier.enrol(&host, name)?;
        Ok(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workdir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A copy of a file with one bit of it flipped, in its middle.
    fn flipped(&self, name: &str, copy: &str) {
        let mut bytes = std::fs::read(self.path(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(self.path(copy), bytes).unwrap();
    }

    /// Runs `coffer` with words, of which those that begin with `@` are files here; what it printed, or why not.
    fn run(&self, coffer: &Coffer, words: &[&str]) -> Result<String, String> {
        let said = coffer.run([], |c| {
            words.iter().fold(c, |c, word| match word.strip_prefix('@') {
                Some(name) => c.arg(self.path(name)),
                None => c.arg(word),
            })
        });
        let said = said.unwrap().said;
        if said.ok { Ok(said.out.trim().to_owned()) } else { Err(said.err) }
    }

    #[track_caller]
    fn on(&self, host: &LabHost, words: &[&str]) -> String {
        self.run(&host.coffer().unwrap(), words).unwrap()
    }

    #[track_caller]
    fn refused(&self, host: &LabHost, words: &[&str], code: &str) {
        let why = self.run(&host.coffer().unwrap(), words).unwrap_err();
        assert!(why.contains(&format!("({code})")), "{why}");
    }

    #[track_caller]
    fn operator(&self, words: &[&str]) {
        self.run(&self.verifier.operator(), words).unwrap();
    }
}

/// Starts the keeper on this volume and stops it; how often it was there, and all that it said.
#[track_caller]
fn kept(host: &LabHost, volume: &str) -> (u32, Vec<String>) {
    let (found, lines) = keep(host, "keeper", volume).unwrap();
    assert_eq!(told(&lines, "word ").unwrap(), WORD, "{lines:?}");
    stop(host, "keeper").unwrap();
    (found, lines)
}

#[track_caller]
fn says(lines: &[String], begins: &str, rest: &str) {
    let found = told(lines, begins).unwrap();
    assert!(found.starts_with(rest), "{lines:?}");
}

#[test]
fn a_volume_and_what_is_sealed_for_a_fleet_go_where_the_verifier_permits_and_nowhere_else() {
    let stage = Stage::prepare().unwrap();
    let here = stage.boot("here", &stage.tpms[0]).unwrap();
    let there = stage.boot("there", &stage.tpms[1]).unwrap();
    let owner = stage.maker.owner();
    let pin = stage.path("pin.json");
    let bound = ["--size", "16M", "--for", &owner, "--verifier-key", pin.to_str().unwrap()];
    let volume = |host, name: &str| create_volume(host, &[&[name][..], &bound].concat()).unwrap();
    let (id, another) = (volume(&here, "kept"), volume(&here, "another"));
    create_volume(&here, &["bound-to-none", "--size", "4M", "--for", &owner]).unwrap();
    volume(&there, "scratch");

    // Both attest. Neither is in a fleet, and nothing is sealed for one.
    for (host, volume) in [(&here, "kept"), (&there, "scratch")] {
        let (found, lines) = kept(host, volume);
        assert_eq!(found, 0);
        says(&lines, "fleet not sealed: ", "coffer-guest: no-fleet");
    }
    stage.operator(&["verifier", "fleet", "create", "--key", "@fleet.key"]);
    for (host, name) in [(&here, "here"), (&there, "there")] {
        let (vault, key) = (format!("{name}.vault"), format!("{name}.key"));
        stage.file(&vault, &stage.on(host, &["host", "vault", "--json"]));
        stage.file(&key, &stage.on(host, &["host", "transport-key", "--json"]));
        let (vault, grant) = (format!("@{vault}"), format!("@{name}.grant"));
        let words = ["verifier", "fleet", "grant", "--key", "@fleet.key", "--vault"];
        stage.operator(&[&words[..], &[&vault, "--out", &grant]].concat());
    }
    stage.on(&here, &["host", "join", "--grant", "@here.grant"]);
    let (found, lines) = kept(&here, "kept");
    assert_eq!(found, 1);
    says(&lines, "own opens: ", "sealed by launch 0");

    let permit = |volume: &str, from: &str, to: &str, out: &str| {
        let words = ["verifier", "permit", "--volume", volume, "--from", from, "--to", to];
        stage.operator(&[&words[..], &["--out", out]].concat());
    };
    permit(&id, "@here.key", "@there.key", "@permit");
    permit(&another, "@here.key", "@there.key", "@of-another");
    permit(&id, "@there.key", "@here.key", "@of-another-host");
    let backup = |name: &'static str, file: &'static str, permit: &'static str| {
        ["disk", "backup", name, file, "--permit", permit]
    };
    stage.file("nothing", "");
    stage.flipped("permit", "altered-permit");
    for no_leave in ["@nothing", "@altered-permit", "@of-another", "@of-another-host"] {
        stage.refused(&here, &backup("kept", "@none", no_leave), "bad-permit");
    }
    stage.refused(&here, &backup("bound-to-none", "@none", "@permit"), "no-permit");
    stage.on(&here, &backup("kept", "@kept.backup", "@permit"));

    // On its way it is opened by nobody else, altered by nobody, and taken once.
    stage.refused(&here, &["disk", "restore", "@kept.backup", "again"], "backup-foreign");
    stage.flipped("kept.backup", "altered.backup");
    stage.refused(&there, &["disk", "restore", "@altered.backup", "kept"], "backup-corrupt");
    stage.on(&there, &["disk", "restore", "@kept.backup", "kept"]);
    stage.refused(&there, &["disk", "restore", "@kept.backup", "again"], "permit-used");

    // The data is there. What was sealed there for the other host, or for a fleet that this one is not in, does not open.
    let (found, lines) = kept(&there, "kept");
    assert_eq!(found, 2);
    says(&lines, "own refused: ", "coffer-guest: sealed-foreign");
    says(&lines, "fleet refused: ", "coffer-guest: no-fleet");
    says(&lines, "fleet not sealed: ", "coffer-guest: no-fleet");
    stage.refused(&there, &["host", "join", "--grant", "@here.grant"], "bad-permit");
    stage.on(&there, &["host", "join", "--grant", "@there.grant"]);
    let (found, lines) = kept(&there, "kept");
    assert_eq!(found, 3);
    says(&lines, "own opens: ", "sealed by launch 2");
    says(&lines, "fleet opens: ", "sealed by launch 1");

    // And back: what the one sealed for the fleet, the other opens.
    let info: Value =
        serde_json::from_str(&stage.on(&there, &["disk", "info", "--json", "kept"])).unwrap();
    permit(info["id"].as_str().unwrap(), "@there.key", "@here.key", "@back");
    stage.on(&there, &backup("kept", "@back.backup", "@back"));
    stage.on(&here, &["disk", "restore", "@back.backup", "returned"]);
    let (found, lines) = kept(&here, "returned");
    assert_eq!(found, 4);
    says(&lines, "own refused: ", "coffer-guest: sealed-foreign");
    says(&lines, "fleet opens: ", "sealed by launch 3");
    // What was given away is here as it was.
    assert_eq!(kept(&here, "kept").0, 2);
    here.power_off().unwrap();
    there.power_off().unwrap();
}
