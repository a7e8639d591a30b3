//! The disk that a host's vault lies on is unplugged while a guest writes to a volume: the guest sees I/O errors and never
//! wrong data, the host names volume, cause and remedy, all that needs no vault goes on, and once the disk is plugged in again
//! and the monitor has started anew everything that was flushed is there (SPEC 6.3, 11.9, 11.10).
//!
//! A vault is one folder: its own disk, which has the counters of all volumes, is gone with the volumes.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::time::Duration;

use coffer_lab::events::Events;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::keeper::{Maker, create_volume, heard, refused, runs, start, stop, told};
use coffer_lab::plug::Plug;
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::wait;
use coffer_lab::workdir::Workdir;
use serde_json::json;

/// Writes numbered blocks and tells each that was flushed, until one is not; then reads all of them, from the disk. At its
/// start it tells how many it found and goes on after those.
const WRITER: &str = r#"#!/bin/sh
trap 'exit 0' TERM
say() { echo "KEEPER $*"; }
block() { printf '%4096d' "$1"; }
# Of the first blocks, so many: as they were written, otherwise, and not to be read at all.
check() {
    n=0 right=0 wrong=0 unread=0
    while [ $n -lt "$1" ]; do
        if ! read=$(dd if=/data/log bs=4k skip=$n count=1 iflag=direct 2> /dev/null); then
            unread=$((unread + 1))
        elif [ "$read" = "$(block $n)" ]; then
            right=$((right + 1))
        else
            wrong=$((wrong + 1))
        fi
        n=$((n + 1))
    done
    echo "$right $wrong $unread"
}
touch /data/log
n=$(($(stat -c %s /data/log) / 4096))
say found "$(check $n)"
while block $n | dd of=/data/log bs=4k iflag=fullblock oflag=append conv=notrunc,fsync 2> /tmp/said; do
    n=$((n + 1))
    say flushed $n
done
say failed "$(cat /tmp/said)"
say after "$(check $n)"
while :; do sleep 1; done
"#;
/// Has nothing on a volume.
const OTHER: &str = r#"#!/bin/sh
trap 'exit 0' TERM
n=0
while :; do echo "KEEPER beat $n"; sleep 1; n=$((n + 1)); done
"#;
/// Writes to a disk of the host's that stays, and tells each block that was flushed.
const ELSEWHERE: &str = r#"#!/bin/busybox sh
b=/bin/busybox
trap 'exit 0' TERM
n=0
while $b printf '%8s' $n | $b dd of=/dev/vdb conv=notrunc,fsync 2> /dev/null; do
    $b echo "KEEPER beat $n"
    $b sleep 1
    n=$((n + 1))
done
$b echo "KEEPER failed"
while :; do $b sleep 1; done
"#;
/// The image store is `vda`; the disk that stays comes before the vault's.
const STAYS: &str = "rest=/dev/vdb";
const GOES: &str = "vdc";

struct Stage {
    workdir: Workdir,
    maker: Maker,
    /// Whose volume it is.
    owner: String,
    tpm: HostTpm,
    disk: VaultDisk,
}

impl Stage {
    fn prepare() -> Self {
        let workdir = Workdir::new().unwrap();
        let maker = Maker::new(workdir.path()).unwrap();
        let writer = maker.on_volume("writer", 1, WRITER, &json!({})).unwrap();
        maker.on_volume("other", 1, OTHER, &json!({ "volumes": [] })).unwrap();
        maker.on_raw("elsewhere", ELSEWHERE).unwrap();
        let tpm = HostTpm::manufacture(&workdir.folder("tpm").unwrap()).unwrap();
        let disk = VaultDisk::format(&workdir.path().join("vault.raw"), "512M").unwrap();
        Self { workdir, maker, owner: format!("image:{}", writer.id), tpm, disk }
    }

    fn boot(&self) -> LabHost {
        let stays = self.workdir.path().join("stays.raw");
        std::fs::File::create(&stays).unwrap().set_len(16 << 20).unwrap();
        let config = LabConfig {
            images: Some(self.maker.images.clone()),
            raw_disks: vec![stays],
            vault: Some(self.disk.path().to_owned()),
            ..LabConfig::default()
        };
        LabHost::boot(&self.workdir.folder("host").unwrap(), &self.tpm, &config).unwrap()
    }
}

/// Waits until a VM that beats has done so twice more.
fn goes_on(host: &LabHost, vm: &str) {
    assert!(runs(host, vm).unwrap());
    let beats = heard(host, vm, "beat").unwrap().len();
    wait::until(&format!("two more beats of {vm}"), Duration::from_secs(30), || {
        Ok((heard(host, vm, "beat")?.len() >= beats + 2).then_some(()))
    })
    .unwrap();
}

/// Right, wrong and unread blocks, after this word.
fn counted(lines: &[String], word: &str) -> [u64; 3] {
    let counts: Vec<_> =
        told(lines, word).unwrap().split(' ').map(|count| count.parse().unwrap()).collect();
    counts.try_into().unwrap()
}

fn flushed(lines: &[String]) -> u64 {
    let mut told = lines.iter().rev().filter_map(|line| line.strip_prefix("flushed "));
    told.next().unwrap().trim().parse().unwrap()
}

#[test]
fn an_unplugged_disk_is_named_gives_nothing_wrong_and_loses_nothing_that_was_flushed() {
    let stage = Stage::prepare();
    let host = stage.boot();
    create_volume(&host, &["kept", "--size", "64M", "--for", &stage.owner]).unwrap();
    start(&host, "other", "other", &[], "beat").unwrap();
    start(&host, "elsewhere", "elsewhere", &["--open", "--disk", STAYS], "beat").unwrap();
    let events = Events::of(&host, &stage.workdir.path().join("events")).unwrap();
    let on_volume = ["--volume", "data=kept"];
    let lines = start(&host, "writer", "writer", &on_volume, "flushed 8").unwrap();
    assert_eq!(counted(&lines, "found "), [0; 3]);

    let plug = Plug::of(&host, GOES).unwrap();
    plug.pull().unwrap();
    let lines = heard(&host, "writer", "after").unwrap();
    let failed = told(&lines, "failed ").unwrap();
    let errors = ["Input/output error", "Read-only file system"];
    assert!(errors.iter().any(|error| failed.contains(error)), "{failed}");
    let count = flushed(&lines);
    let [right, wrong, unread] = counted(&lines, "after ");
    assert_eq!((wrong, right + unread), (0, count), "{lines:?}");
    // It is the volume's own file that fails, or the vault's disk with its counter, whichever a flush was at.
    let detail = events.detail("writer", "disk-failed").unwrap();
    let causes = ["storage-failed: volume `kept`: ", "anchor-failed: volume `kept`: "];
    assert!(causes.iter().any(|cause| detail.starts_with(cause)), "{detail}");
    assert!(detail.contains("; check the ") && detail.contains("open the disk again"), "{detail}");
    // Who keeps the counter says why it failed.
    let alone = "its keeper could not move or read it;";
    assert!(detail.starts_with("storage-failed") || !detail.contains(alone), "{detail}");

    // What needs no vault goes on, and starts.
    goes_on(&host, "other");
    goes_on(&host, "elsewhere");
    start(&host, "other", "another", &[], "beat").unwrap();
    goes_on(&host, "another");
    // What needs it is refused by name, before and after the disk is back: the monitor has the one that is gone.
    stop(&host, "writer").unwrap();
    for back in [false, true] {
        if back {
            plug.put_back().unwrap();
        }
        let made = create_volume(&host, &["new", "--size", "1M", "--for", "open"]);
        let made = made.unwrap_err().to_string();
        assert!(
            made.contains("(storage-failed)") && made.contains("start the monitor anew"),
            "{made}"
        );
        let launched = host.run("writer", "writer", &on_volume).unwrap();
        refused(&launched, "(storage-failed)");
        assert!(launched.message.contains("volume `kept`"), "{launched:?}");
    }
    goes_on(&host, "other");
    goes_on(&host, "elsewhere");
    for vm in ["other", "another", "elsewhere"] {
        stop(&host, vm).unwrap();
    }
    host.power_off().unwrap();

    // Plugged in, and the monitor started anew.
    let host = stage.boot();
    let next = format!("flushed {}", count + 3);
    let lines = start(&host, "writer", "writer", &on_volume, &next).unwrap();
    let [found, wrong, unread] = counted(&lines, "found ");
    assert_eq!((wrong, unread), (0, 0), "{lines:?}");
    assert!(found >= count, "{found} of {count} that were flushed");
    stop(&host, "writer").unwrap();
    host.power_off().unwrap();
}
