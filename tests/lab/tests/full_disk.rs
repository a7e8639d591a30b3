//! The storage under a vault has no room left: the guest sees an I/O error, the host names the volume, the cause and the
//! remedy, VMs whose volumes have their room go on and so does the vault, and nothing that was flushed is lost (SPEC 6.3,
//! 11.9, 11.10, 11.14.5).
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::process::Command;
use std::time::Duration;

use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::keeper::{Maker, create_volume, heard, runs, start, stop, told};
use coffer_lab::process::{self, Running};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::wait;
use coffer_lab::workdir::Workdir;
use serde_json::{Value, json};

/// Keeps one word for good, then writes more than there is room for.
const FILLER: &str = r#"#!/bin/sh
say() { echo "KEEPER $*"; }
say found "$(cat /data/word 2>/dev/null)"
echo precious > /data/word
sync
say kept
if dd if=/dev/zero of=/data/rest bs=64k count=800 conv=fsync 2> /tmp/said; then
    say room
else
    say failed "$(cat /tmp/said)"
fi
trap 'exit 0' TERM
while :; do sleep 1; done
"#;
/// Writes all of its volume's file, so that it needs no more room; then flushes something every second, which the vault has
/// to commit too.
const OTHER: &str = r#"#!/bin/sh
for round in 1 2 3 4 5 6 7 8; do
    dd if=/dev/zero of=/data/rest bs=64k count=40 conv=fsync 2> /dev/null || exit 1
done
echo "KEEPER here"
trap 'exit 0' TERM
n=0
while :; do
    sleep 1
    n=$((n + 1))
    dd if=/dev/zero of=/data/beat bs=4k count=1 conv=fsync 2> /dev/null && echo "KEEPER beat $n"
done
"#;

struct Stage {
    workdir: Workdir,
    maker: Maker,
    /// Its image, and the other's.
    filler: String,
    other: String,
    tpm: HostTpm,
    disk: VaultDisk,
}

impl Stage {
    fn prepare() -> Self {
        let workdir = Workdir::new().unwrap();
        let maker = Maker::new(workdir.path()).unwrap();
        let filler = maker.on_volume("filler", 1, FILLER, &json!({})).unwrap().id;
        let other = maker.on_volume("other", 1, OTHER, &json!({})).unwrap().id;
        let tpm = HostTpm::manufacture(&workdir.folder("tpm").unwrap()).unwrap();
        // Files of volumes have holes: less than the volume is there, once the vault's own disk and the other's have theirs.
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "270M").unwrap();
        // Nothing is kept back for root, as whom the vault writes.
        let said = Command::new("/usr/sbin/tune2fs").args(["-m", "0"]).arg(disk.path()).output();
        assert!(said.unwrap().status.success());
        Self { workdir, maker, filler, other, tpm, disk }
    }

    fn boot(&self) -> LabHost {
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            vault: Some(self.disk.path().to_owned()),
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder("host").unwrap(), &self.tpm, &config).unwrap()
    }
}

#[test]
fn a_full_disk_is_named_and_loses_nothing_that_was_flushed() {
    let stage = Stage::prepare();
    let host = stage.boot();
    let owner = format!("image:{}", stage.filler);
    create_volume(&host, &["full", "--size", "64M", "--for", &owner]).unwrap();
    let owner = format!("image:{}", stage.other);
    create_volume(&host, &["small", "--size", "8M", "--for", &owner]).unwrap();
    start(&host, "other", "other", &["--volume", "data=small"], "here").unwrap();
    let events = stage.workdir.path().join("events");
    let url = format!("{}/v1/events", host.api().unwrap());
    let mut listener =
        Running::start(Command::new("curl").args(["-sSN", "--max-time", "300", &url]), &events)
            .unwrap();

    let lines = start(&host, "filler", "filler", &["--volume", "data=full"], "failed").unwrap();
    assert_eq!(told(&lines, "found").unwrap(), "");
    assert!(lines.iter().any(|line| line == "kept"), "{lines:?}");
    let failed = told(&lines, "failed ").unwrap();
    // Or its file system had seen an error already, and let nobody write.
    assert!(failed.contains("error") || failed.contains("Read-only"), "{failed}");
    let told = wait::until("the event", Duration::from_secs(20), || {
        let told = std::fs::read_to_string(&events)?;
        let lines = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.into_iter().find(|event| event["event"] == "disk-failed"))
    })
    .unwrap();
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.starts_with("storage-full: volume `full`: "), "{told}");
    listener.kill();

    // The host, and what needs no room, go on.
    assert!(runs(&host, "other").unwrap());
    let beats = heard(&host, "other", "beat").unwrap().len();
    wait::until("another beat", Duration::from_secs(30), || {
        Ok((heard(&host, "other", "beat")?.len() > beats).then_some(()))
    })
    .unwrap();
    stop(&host, "filler").unwrap();
    stop(&host, "other").unwrap();
    host.power_off().unwrap();

    // With room, what was flushed is there, and there is room for the rest.
    let disk = stage.disk.path();
    let larger = std::fs::OpenOptions::new().write(true).open(disk).unwrap();
    larger.set_len(400 << 20).unwrap();
    for (program, arguments) in [("/usr/sbin/e2fsck", &["-fy"][..]), ("/usr/sbin/resize2fs", &[])] {
        let mut command = Command::new(program);
        let said =
            process::run(command.args(arguments).arg(disk), Duration::from_secs(60)).unwrap();
        assert!(matches!(said.code, Some(0 | 1)), "{program}: {}{}", said.out, said.err);
    }
    let host = stage.boot();
    let lines = start(&host, "filler", "filler", &["--volume", "data=full"], "room").unwrap();
    assert_eq!(self::told(&lines, "found ").unwrap(), "precious");
    stop(&host, "filler").unwrap();
    host.power_off().unwrap();
}
