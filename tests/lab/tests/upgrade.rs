//! A sealed host keeps its vault over an upgrade of its build by leave of the verifier that its configuration names, and not
//! without (SPEC 11.18).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_lab::coffer::Coffer;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::initrd::Extras;
use coffer_lab::process;
use coffer_lab::verifier::Verifier;
use coffer_lab::workdir::Workdir;

struct Stage {
    workdir: Workdir,
    tpm: HostTpm,
    verifier: Verifier,
    disk: PathBuf,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        workdir.folder("images")?;
        let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
        let verifier = Verifier::start(&workdir.folder("verifier")?, &tpm)?;
        let disk = workdir.path().join("vault.raw");
        let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
        let made = process::run(mkfs.arg("-q").arg(&disk).arg("512M"), Duration::from_secs(60))?;
        ensure!(made.ok, "mkfs.ext4 failed: {}", made.err);
        Ok(Self { workdir, tpm, verifier, disk })
    }

    /// Boots a build, which is one by what its initrd holds.
    fn boot(&self, build: &str) -> Result<LabHost> {
        let key = self.verifier.pin()?["release_key"].as_str().context("a key")?.to_owned();
        let config = LabConfig {
            images: Some(self.workdir.path().join("images")),
            vault: Some(self.disk.clone()),
            extras: Extras {
                marker: Some(build.to_owned()),
                vault_verifier: Some(key),
                ..Extras::default()
            },
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder(build)?, &self.tpm, &config)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let file = self.workdir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    fn permit(&self, vault: &Path, registers: &Path, name: &str) -> PathBuf {
        let permit = self.workdir.path().join(name);
        let asked = self.verifier.operator().run(["verifier", "permit"], |c| {
            c.arg("--vault").arg(vault).arg("--to").arg(registers).arg("--out").arg(&permit)
        });
        asked.unwrap().must().unwrap();
        permit
    }
}

/// Volumes of the host, or why it has none.
fn volumes(host: &LabHost) -> Result<String, String> {
    let said = host.coffer().unwrap().run(["volume", "ls"], |c| c).unwrap().said;
    if said.ok { Ok(said.out) } else { Err(said.err) }
}

fn vault(host: &LabHost) -> String {
    host.coffer().unwrap().run(["host", "vault"], |c| c.arg("--json")).unwrap().must().unwrap()
}

fn reseal(host: &LabHost, permit: &Path) -> Result<String, String> {
    let said = host.coffer().unwrap().run(["host", "reseal"], |c| c.arg("--permit").arg(permit));
    let said = said.unwrap().said;
    if said.ok { Ok(said.out) } else { Err(said.err) }
}

#[test]
fn a_vault_opens_for_the_build_that_its_verifier_permits_and_for_no_other() {
    let stage = Stage::prepare().unwrap();
    let host = stage.boot("first").unwrap();
    let create = host
        .coffer()
        .unwrap()
        .run(["volume", "create"], |c| c.args(["kept", "--size", "4M", "--for", "open"]));
    create.unwrap().must().unwrap();
    let here = stage.file("here.json", &vault(&host));
    host.power_off().unwrap();

    // Upgraded without asking, the host keeps nothing; and tells what it boots.
    let host = stage.boot("second").unwrap();
    let refused = volumes(&host).unwrap_err();
    assert!(refused.contains("seal-pcrs-moved"), "{refused}");
    let log = stage.workdir.path().join("second.bin");
    host.event_log(&log).unwrap();
    let replayed = Coffer::plain().run(["eventlog", "replay"], |c| c.arg("--json").arg(&log));
    let second = stage.file("second.json", &replayed.unwrap().must().unwrap());
    host.power_off().unwrap();

    let host = stage.boot("first").unwrap();
    assert!(volumes(&host).unwrap().contains("kept"));
    // Leave that was changed on its way is none.
    let permit = stage.permit(&here, &second, "permit");
    let mut forged = std::fs::read(&permit).unwrap();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    let other = stage.workdir.path().join("forged");
    std::fs::write(&other, forged).unwrap();
    let refused = reseal(&host, &other).unwrap_err();
    assert!(refused.contains("bad-permit"), "{refused}");
    reseal(&host, &permit).unwrap();
    // Asked again, nothing more is done.
    reseal(&host, &permit).unwrap();
    host.power_off().unwrap();

    let host = stage.boot("second").unwrap();
    assert!(volumes(&host).unwrap().contains("kept"));
    // The leave led here, and leads nowhere any more.
    let refused = reseal(&host, &permit).unwrap_err();
    assert!(refused.contains("permit-used"), "{refused}");
    host.power_off().unwrap();

    // Nor does the build before open it now.
    let host = stage.boot("first").unwrap();
    let refused = volumes(&host).unwrap_err();
    assert!(refused.contains("seal-pcrs-moved"), "{refused}");
}
