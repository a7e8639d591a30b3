//! A sealed host keeps its vault over an upgrade of its build by leave of the verifier that its configuration names, and not
//! without: what an appliance keeps on a volume, and what it sealed, opens under the next build, and not before it may
//! (SPEC 11.16, 11.18).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use coffer_lab::coffer::Coffer;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::initrd::Extras;
use coffer_lab::keeper::{Maker, create_volume, keep, refused as launch_refused, stop};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::verifier::Verifier;
use coffer_lab::workdir::Workdir;
use serde_json::json;

struct Stage {
    workdir: Workdir,
    tpm: HostTpm,
    verifier: Verifier,
    maker: Maker,
    disk: VaultDisk,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
        let verifier = Verifier::start(&workdir.folder("verifier")?, &[&tpm])?;
        let maker = Maker::new(workdir.path())?;
        maker.sign(&maker.keeper("keeper", 1, &json!({}))?)?;
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "512M")?;
        Ok(Self { workdir, tpm, verifier, maker, disk })
    }

    /// Boots a build, which is one by what its initrd holds.
    fn boot(&self, build: &str) -> Result<LabHost> {
        let key = self.verifier.pin()?["release_key"].as_str().context("a key")?.to_owned();
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(self.disk.path().to_owned()),
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

/// Starts the keeper and stops it; how often it was there, and all that it said.
fn keeps(host: &LabHost) -> (u32, Vec<String>) {
    let kept = keep(host, "keeper", "kept").unwrap();
    stop(host, "keeper").unwrap();
    kept
}

#[test]
fn a_vault_opens_for_the_build_that_its_verifier_permits_and_for_no_other() {
    let stage = Stage::prepare().unwrap();
    let host = stage.boot("first").unwrap();
    create_volume(&host, &["kept", "--size", "64M", "--for", &stage.maker.owner()]).unwrap();
    assert_eq!(keeps(&host).0, 0);
    let here = stage.file("here.json", &vault(&host));
    host.power_off().unwrap();

    // Upgraded without asking, the host keeps nothing; and tells what it boots.
    let host = stage.boot("second").unwrap();
    let refused = volumes(&host).unwrap_err();
    assert!(refused.contains("seal-pcrs-moved"), "{refused}");
    let volume = ["--volume", "data=kept"];
    launch_refused(&host.run("keeper", "keeper", &volume).unwrap(), "no-vault");
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

    // Under the next build the appliance finds what it left, and opens what it sealed under the one before.
    let host = stage.boot("second").unwrap();
    let (found, lines) = keeps(&host);
    assert_eq!(found, 1);
    assert!(lines.contains(&"unsealed secret of launch 0".to_owned()), "{lines:?}");
    // The leave led here, and leads nowhere any more.
    let refused = reseal(&host, &permit).unwrap_err();
    assert!(refused.contains("permit-used"), "{refused}");
    host.power_off().unwrap();

    // Nor does the build before open it now.
    let host = stage.boot("first").unwrap();
    let refused = volumes(&host).unwrap_err();
    assert!(refused.contains("seal-pcrs-moved"), "{refused}");
}
