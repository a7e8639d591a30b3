//! A byte of an encrypted volume changes on the storage it lies on: the VM ends before the block reaches its guest, the host
//! names volume, cause and remedy; what is repaired is an error until the guest has written it (SPEC 6.3, 11.10, 11.20). And a
//! link in the place of a volume's file leads nowhere (SPEC 11.14.3).
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::time::Duration;

use coffer_lab::coffer::Answer;
use coffer_lab::events::Events;
use coffer_lab::host::{LabConfig, LabHost};
use coffer_lab::host_tpm::HostTpm;
use coffer_lab::keeper::{Maker, create_volume, refused, start, stop, told};
use coffer_lab::vault_disk::VaultDisk;
use coffer_lab::wait;
use coffer_lab::workdir::Workdir;

/// Reads 16 blocks, from the disk: how many are as they should be, are otherwise, and are not to be read at all.
const READER: &str = r#"#!/bin/busybox sh
b=/bin/busybox
block() { printf '%4096d' "$1"; }
check() {
    n=0 right=0 wrong=0 unread=0
    while [ $n -lt 16 ]; do
        if ! read=$($b dd if=/dev/vdb bs=4k skip=$n count=1 iflag=direct 2> /dev/null); then
            unread=$((unread + 1))
        elif [ "$read" = "$(block $n)" ]; then
            right=$((right + 1))
        else
            wrong=$((wrong + 1))
        fi
        n=$((n + 1))
    done
    $b echo "KEEPER $1 $right $wrong $unread"
}
trap 'exit 0' TERM
check found
"#;
/// Writes them, each for good, and reads again.
const WRITER: &str = r#"
n=0
while [ $n -lt 16 ]; do
    block $n | $b dd of=/dev/vdb bs=4k seek=$n iflag=fullblock conv=notrunc,fsync 2> /dev/null || $b echo "KEEPER cannot write $n"
    n=$((n + 1))
done
check left
"#;
const REST: &str = "while :; do $b sleep 1; done\n";

#[test]
fn a_damaged_block_is_an_error_until_the_guest_has_written_it() {
    let workdir = Workdir::new().unwrap();
    let maker = Maker::new(workdir.path()).unwrap();
    maker.on_raw("reader", &[READER, REST].concat()).unwrap();
    maker.on_raw("writer", &[READER, WRITER, REST].concat()).unwrap();
    let tpm = HostTpm::manufacture(&workdir.folder("tpm").unwrap()).unwrap();
    let vault = VaultDisk::format(&workdir.path().join("vault.raw"), "512M").unwrap();
    let config = LabConfig {
        images: Some(maker.images.clone()),
        vault: Some(vault.path().to_owned()),
        ..LabConfig::default()
    };
    let folder = workdir.folder("host").unwrap();
    let boot = || LabHost::boot(&folder, &tpm, &config).unwrap();
    let on_volume = ["--open", "--volume", "data=kept"];
    let read = |host: &LabHost, vm: &str| {
        let lines = start(host, "reader", vm, &on_volume, "found").unwrap();
        told(&lines, "found ").unwrap().to_owned()
    };
    let written = |host: &LabHost| {
        let lines = start(host, "writer", "writer", &on_volume, "left").unwrap();
        assert_eq!(told(&lines, "left ").unwrap(), "16 0 0");
        stop(host, "writer").unwrap();
        told(&lines, "found ").unwrap().to_owned()
    };
    let disk = |host: &LabHost, verb| {
        host.coffer().unwrap().run(["disk", verb, "--json", "kept"], |c| c).unwrap()
    };

    let host = boot();
    let id = create_volume(&host, &["kept", "--size", "1M", "--for", "open"]).unwrap();
    let bare = ["bare", "--kind", "raw", "--size", "1M", "--for", "open"];
    let bare = create_volume(&host, &bare).unwrap();
    let on_bare = ["--open", "--volume", "data=bare"];
    start(&host, "reader", "bare", &on_bare, "found 0 16 0").unwrap();
    stop(&host, "bare").unwrap();
    assert_eq!(written(&host), "0 16 0");
    assert_eq!(read(&host, "before"), "16 0 0");
    stop(&host, "before").unwrap();
    assert_eq!(counts(&disk(&host, "check")), [0, 0]);
    host.power_off().unwrap();

    // What was written first lies behind the superblocks.
    vault.damage(&id, 2).unwrap();
    vault.link(&bare, "../vault.disk").unwrap();
    let host = boot();
    let events = Events::of(&host, &workdir.path().join("events")).unwrap();
    // Its kernel looks for partitions in that block.
    host.run("reader", "damaged", &on_volume).unwrap();
    wait::until("the end of its VM", Duration::from_secs(60), || {
        Ok((host.inspect("damaged")?["vm"]["reason"] == "disk-integrity").then_some(()))
    })
    .unwrap();
    let log = host.logs("damaged").unwrap();
    assert!(!log.contains("KEEPER"), "{log}");
    let detail = events.detail("damaged", "disk-failed").unwrap();
    let named = detail.starts_with("corrupt: volume `kept`: ");
    assert!(named && detail.contains("repair the disk"), "{detail}");
    host.remove("damaged").unwrap();
    let linked = host.run("reader", "linked", &on_bare).unwrap();
    refused(&linked, "(storage-failed)");
    let said = &linked.message;
    assert!(said.contains("volume `bare`") && said.contains("no regular file"), "{said}");
    let checked = disk(&host, "check");
    assert!(
        !checked.said.ok && checked.said.err.contains("coffer disk repair"),
        "{:?}",
        checked.said
    );
    assert_eq!(counts(&checked), [1, 0]);

    let repaired = disk(&host, "repair");
    assert!(repaired.said.ok, "{:?}", repaired.said);
    assert_eq!(counts(&repaired), [1, 1]);
    assert_eq!(read(&host, "lost"), "15 0 1");
    let detail = events.detail("lost", "disk-failed").unwrap();
    assert!(detail.starts_with("lost: volume `kept`: "), "{detail}");
    stop(&host, "lost").unwrap();
    let checked = disk(&host, "check");
    assert!(!checked.said.ok, "{:?}", checked.said);
    assert_eq!(counts(&checked), [0, 1]);

    assert_eq!(written(&host), "15 0 1");
    let checked = disk(&host, "check");
    assert!(checked.said.ok, "{:?}", checked.said);
    assert_eq!(counts(&checked), [0, 0]);
    host.power_off().unwrap();
}

/// Damaged and lost, of a report.
fn counts(answer: &Answer) -> [u64; 2] {
    let report: serde_json::Value = serde_json::from_str(&answer.said.out).unwrap();
    ["damaged", "lost"].map(|field| report.get(field).unwrap().as_u64().unwrap())
}
