//! What appliances keep, across launches, images and reboots of their host, and what becomes of it in the hands of who owns
//! the storage: two hosts, each with a TPM of its own, and one disk that is put back, carried over and opened twice (SPEC 3.7.1,
//! 6.9, 11). That the same succeeds where no TPM holds the vault, `storage_twins` shows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use anyhow::Result;
use coffer_lab::appliance::Part;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::keeper::{Maker, count, create_volume, keep, keep_plain, no_vault, refused, stop};
use coffer_lab::rival::Root;
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::workdir::Workdir;
use serde_json::json;

/// Everything there is.
struct Stage {
    workdir: Workdir,
    maker: Maker,
    /// Image ID of the counter's.
    counter: String,
    /// The host's storage.
    disk: VaultDisk,
}

impl Stage {
    fn prepare() -> Result<Self> {
        let workdir = Workdir::new()?;
        let maker = Maker::new(workdir.path())?;
        for (name, svn) in [("keeper-1", 1), ("keeper-2", 2)] {
            maker.sign(&maker.keeper(name, svn, &json!({}))?)?;
        }
        maker.keeper("keeper-unsigned", 3, &json!({}))?;
        let next = maker.keeper("keeper-3", 3, &json!({}))?;
        maker.sign(&next)?;
        next.tampered(Part::Initrd, &maker.images.join("keeper-3-forged"))?;
        let counter = maker.counter("counter", &json!({}))?.id;
        maker.plain()?;
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "512M")?;
        Ok(Self { workdir, maker, counter, disk })
    }

    fn tpm(&self, name: &str) -> Result<HostTpm> {
        HostTpm::manufacture(&self.workdir.folder(name)?)
    }

    fn boot(&self, name: &str, tpm: &HostTpm, disk: &VaultDisk) -> Result<LabHost> {
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(disk.path().to_owned()),
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder(name)?, tpm, &config)
    }
}

#[test]
fn what_is_kept_survives_reboots_and_upgrades_and_nothing_older_or_elsewhere_opens() {
    let stage = Stage::prepare().unwrap();
    let (tpm, other) = (stage.tpm("tpm").unwrap(), stage.tpm("other-tpm").unwrap());
    let volume = |host: &LabHost, words: &[&str]| create_volume(host, words).unwrap();
    let launch = |host: &LabHost, image: &str, name: &str, more: &[&str]| {
        host.run(image, name, more).unwrap()
    };
    let keep = |host: &LabHost, image: &str| keep(host, image, "kept").unwrap();
    let count = |host: &LabHost| count(host, "registers").unwrap();
    let keep_plain = |host: &LabHost| keep_plain(host, "plain").unwrap();
    let stop = |host: &LabHost, vm: &str| stop(host, vm).unwrap();

    // First life: made, used, and used by nobody else.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    let kept = volume(&host, &["kept", "--size", "64M", "--for", &stage.maker.owner()]);
    let image = format!("image:{}", stage.counter);
    volume(&host, &["registers", "--kind", "vtpm", "--for", &image]);
    let plain = volume(&host, &["plain", "--kind", "raw", "--size", "16M", "--for", "open"]);
    assert_eq!(keep_plain(&host), 0);
    let (found, first) = keep(&host, "keeper-1");
    assert_eq!(found, 0, "{first:?}");
    let second = launch(&host, "keeper-1", "second", &["--volume", "data=kept"]);
    refused(&second, "volume-in-use");
    let at = count(&host);
    refused(&launch(&host, "counter", "twin", &["--vtpm", "registers"]), "volume-in-use");
    refused(&launch(&host, "counter", "fresh", &[]), "vTPM that lasts");
    stop(&host, "keeper");
    stop(&host, "counter");
    refused(&launch(&host, "keeper-unsigned", "thief", &["--volume", "data=kept"]), "not-owner");
    refused(&launch(&host, "keeper-1", "open", &["--open", "--volume", "data=kept"]), "not-owner");
    // The same, launched again.
    let (found, lines) = keep(&host, "keeper-1");
    assert_eq!(found, 1);
    assert!(lines.contains(&"unsealed secret of launch 0".to_owned()), "{lines:?}");
    assert_eq!(count(&host), at + 1);
    stop(&host, "keeper");
    stop(&host, "counter");
    host.power_off().unwrap();
    let before = stage.disk.copy("before.raw").unwrap();

    // Second life: the host rebooted, the image is the next one of the same signer.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    // Who stores a newer image and changes it locks nobody out by that: `keeper-2` opens all the same.
    refused(
        &launch(&host, "keeper-3-forged", "forged", &["--volume", "data=kept"]),
        "initrd-digest",
    );
    let (found, lines) = keep(&host, "keeper-2");
    assert_eq!(found, 2);
    assert!(lines.contains(&"unsealed secret of launch 1".to_owned()), "{lines:?}");
    assert!(lines.contains(&"counter 3".to_owned()), "{lines:?}");
    stop(&host, "keeper");
    refused(&launch(&host, "keeper-1", "old", &["--volume", "data=kept"]), "svn-too-low");
    assert_eq!(count(&host), at + 2);
    stop(&host, "counter");
    host.power_off().unwrap();
    let after = stage.disk.copy("after.raw").unwrap();

    // The storage of before: nothing of it opens, the volume's data and the vTPM's counter among it.
    let host = stage.boot("host", &tpm, &before).unwrap();
    let why = no_vault(&host).unwrap();
    assert!(why.contains("stale"), "{why}");
    refused(&launch(&host, "keeper-2", "rolled", &["--volume", "data=kept"]), "no-vault");
    refused(&launch(&host, "counter", "rolled", &["--vtpm", "registers"]), "no-vault");
    drop(host);

    // A copy of the newest, on another host.
    let host = stage.boot("other", &other, &after).unwrap();
    let why = no_vault(&host).unwrap();
    assert!(why.contains("seal-other-tpm"), "{why}");
    drop(host);

    // And at home again, unharmed: everything is where it was left.
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    assert_eq!(keep(&host, "keeper-2").0, 3);
    assert_eq!(count(&host), at + 3);
    stop(&host, "keeper");
    stop(&host, "counter");
    assert_eq!(keep_plain(&host), 1);
    host.power_off().unwrap();

    // Files of volumes put back, beside a vault that is the newest: what was promised nothing of is what it was before, and
    // nobody notices; what is encrypted is refused.
    for id in [&kept, &plain] {
        stage.disk.put_back(id, &before).unwrap();
    }
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    assert_eq!(keep_plain(&host), 1);
    let rolled = launch(&host, "keeper-2", "keeper", &["--volume", "data=kept"]);
    refused(&rolled, "(stale)");
    assert!(
        rolled.message.contains("volume `kept`") && rolled.message.contains("hint:"),
        "{rolled:?}"
    );

    // A copy of the vault, opened beside it in the same boot and with the same TPM: it goes on, and the one that it was made of
    // does not. Of two that start at once one is left.
    volume(&host, &["before-the-rival", "--kind", "vtpm", "--for", "open"]);
    let rival = host.rival(Root::Tpm).unwrap();
    assert_eq!((rival.volumes.0, rival.made.0), (200, 201), "{:?} {:?}", rival.volumes, rival.made);
    let known = rival.volumes.1.as_array().unwrap();
    assert!(known.iter().any(|volume| volume["id"] == kept), "{known:?}");
    let words = ["too-late", "--kind", "vtpm", "--for", "open"];
    let late = host.coffer().unwrap().run(["volume", "create"], |c| c.args(words)).unwrap().said;
    assert!(!late.ok && late.err.contains("superseded"), "{late:?}");
    refused(&launch(&host, "counter", "counter", &["--vtpm", "registers"]), "superseded");
    drop(rival);
    host.power_off().unwrap();
    let host = stage.boot("host", &tpm, &stage.disk).unwrap();
    let why = no_vault(&host).unwrap();
    assert!(why.contains("stale"), "{why}");
}
