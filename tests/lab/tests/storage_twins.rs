//! Where no TPM holds the vault, every attack that `storage` shows refused succeeds: what is put back from earlier is taken,
//! a copy opens on another host, and two hosts run one volume and one vTPM at once (SPEC 3.7.1, 11.14.1). What is left then is
//! the verifier of an appliance that asks one: it takes launches of a vTPM that follow one another, and no others (SPEC 7.8).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use anyhow::Result;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::initrd::Extras;
use coffer_lab::keeper::{Maker, count, create_volume, keep, runs, stop, with_secret};
use coffer_lab::rival::Root;
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::verifier::{DEVELOPER_POLICY, Verifier};
use coffer_lab::workdir::Workdir;
use serde_json::json;

const VMS: [&str; 2] = ["keeper", "counter"];
const WORD_ID: &str = "asker/word";

struct Stage {
    workdir: Workdir,
    maker: Maker,
    tpms: [HostTpm; 2],
    verifier: Verifier,
    disk: VaultDisk,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let maker = Maker::new(workdir.path())?;
        maker.sign(&maker.keeper("keeper-1", 1, &json!({}))?)?;
        maker.sign(&maker.counter("counter", &json!({}))?)?;
        let tpm = |name: &str| HostTpm::manufacture(&workdir.folder(name)?);
        let tpms = [tpm("tpm")?, tpm("other-tpm")?];
        let folder = workdir.folder("verifier")?;
        let verifier = Verifier::start_under(DEVELOPER_POLICY, &folder, &[&tpms[0], &tpms[1]])?;
        // A counter of which a verifier is asked at each launch.
        let asker = maker.counter("asker", &with_secret(&verifier.pin()?, WORD_ID))?;
        maker.sign(&asker)?;
        let word = folder.join("word");
        std::fs::write(&word, "swordfish")?;
        let put = verifier.operator().run(["secret", "put", WORD_ID], |c| {
            c.arg("--from-file").arg(&word).args(["--image", &asker.id])
        });
        put?.must()?;
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "512M")?;
        Ok(Self { workdir, maker, tpms, verifier, disk })
    }

    /// Boots a host with a TPM of its own, as in `storage`; only that its vault has key and counter in files.
    fn boot(&self, name: &str, tpm: &HostTpm, disk: &VaultDisk) -> Result<LabHost> {
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(disk.path().to_owned()),
            verifier_port: Some(self.verifier.port()),
            extras: Extras { dangerously_software_vault: true, ..Extras::default() },
            ..LabConfig::default()
        };
        let host = LabHost::boot(&self.workdir.folder(name)?, tpm, &config)?;
        assert_eq!(host.info()?["profile"], "developer", "it is none that is sealed");
        Ok(host)
    }
}

/// Starts both; what the keeper found, and where the counter is.
#[track_caller]
fn both(host: &LabHost) -> (u32, u64) {
    let (found, lines) = keep(host, "keeper-1", "kept").unwrap();
    if let Some(launch) = found.checked_sub(1) {
        assert!(lines.contains(&format!("unsealed secret of launch {launch}")), "{lines:?}");
    }
    (found, count(host, "registers").unwrap())
}

/// Launches the one that asks a verifier, and removes it; what came of it.
#[track_caller]
fn ask(host: &LabHost) -> String {
    let launched = host.run("asker", "asker", &["--vtpm", "asked"]).unwrap();
    host.remove("asker").unwrap();
    launched.reason()
}

/// Stops both; then the power is cut: a host that is not sealed takes no order to power off.
fn end(host: LabHost) {
    VMS.iter().for_each(|vm| stop(&host, vm).unwrap());
    drop(host);
}

#[test]
fn without_the_tpm_old_storage_is_taken_a_copy_opens_elsewhere_and_two_hosts_run_one_vm() {
    let stage = Stage::prepare().unwrap();
    let [tpm, other_tpm] = &stage.tpms;
    let owner = stage.maker.owner();

    let host = stage.boot("host", tpm, &stage.disk).unwrap();
    create_volume(&host, &["kept", "--size", "64M", "--for", &owner]).unwrap();
    create_volume(&host, &["registers", "--kind", "vtpm", "--for", &owner]).unwrap();
    create_volume(&host, &["asked", "--kind", "vtpm", "--for", &owner]).unwrap();
    stage.verifier.trust(&host, "host").unwrap();
    stage.verifier.enrol(&host, "host").unwrap();
    let (found, at) = both(&host);
    assert_eq!(found, 0);
    assert_eq!(ask(&host), "running");
    end(host);
    let (before, clone) =
        (stage.disk.copy("before.raw").unwrap(), stage.disk.copy("clone.raw").unwrap());

    let host = stage.boot("host", tpm, &stage.disk).unwrap();
    assert_eq!(both(&host), (1, at + 1));
    for _ in 0..2 {
        assert_eq!(ask(&host), "running");
    }
    end(host);

    // Rolled back: the same is found, and the vTPM's counter, which never falls, gives the same value, again.
    let host = stage.boot("host", tpm, &before).unwrap();
    assert_eq!(both(&host), (1, at + 1));
    assert_eq!(ask(&host), "incarnation-rollback");

    // Cloned, on a host with another TPM, where what was sealed opens too; and started twice, for the other still runs.
    let other = stage.boot("other", other_tpm, &clone).unwrap();
    assert_eq!(both(&other), (1, at + 1));
    for host in [&host, &other] {
        assert!(VMS.iter().all(|vm| runs(host, vm).unwrap()));
    }
    stage.verifier.trust(&other, "other").unwrap();
    stage.verifier.enrol(&other, "other").unwrap();
    assert_eq!(ask(&other), "duplicate-vm-identity");

    // And twice on one host: the copy goes on, and so does what it was made of.
    let rival = other.rival(Root::Software).unwrap();
    assert_eq!((rival.volumes.0, rival.made.0), (200, 201), "{:?} {:?}", rival.volumes, rival.made);
    create_volume(&other, &["after", "--kind", "vtpm", "--for", "open"]).unwrap();
    drop(rival);
    end(other);
    end(host);
}
