//! A block that was changed reaches no guest: one that prints what it reads prints nothing of it (SPEC 3.5). Twins: it
//! prints the block as it was made, and prints the changed one where nobody verifies.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use coffer_lab::appliance;
use coffer_lab::scene::Scene;
use coffer_lab::workspace;
use serde_json::{Value, json};

use crate::world::enter;

/// The changed block, on a raw disk of the host's.
const DISK: &str = "/dev/vdd";
/// Lines of 64 bytes that fill a block, and the one that is changed.
const LINES: usize = 64;
const CHANGED: usize = 40;
const LIMIT: Duration = Duration::from_secs(60);

/// Says that it is about to, which the console has printed before it does.
const SCRIPT: &str = "b=/bin/busybox; $b echo PRINTS; $b sleep 2; $b cat /srv/block /srv/end";

fn line(n: usize) -> String {
    format!("PRINTED line {n:02} {}", "of a block that nobody may change".repeat(2))
        .chars()
        .take(63)
        .collect()
}

fn block() -> String {
    (0..LINES).map(|n| line(n) + "\n").collect()
}

/// The line with the bit flipped: `l` of `line` became `m`.
fn changed() -> String {
    line(CHANGED).replacen("line", "mine", 1)
}

fn recipe() -> Value {
    json!({
        "name": "printer",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", SCRIPT] },
        "network": { "mode": "none" },
    })
}

/// Images, and the raw disk.
pub fn prepare(scene: &Scene) -> Result<PathBuf> {
    let root = scene.workdir.path().join("printer-rootfs");
    appliance::copy_tree(&workspace::rootfs("tools")?, &root)?;
    std::fs::create_dir_all(root.join("srv"))?;
    std::fs::write(root.join("srv/block"), block())?;
    std::fs::write(root.join("srv/end"), "PRINTED all\n")?;
    let image = appliance::build(&recipe(), &root, &scene.images.join("printer"))?;
    let at = CHANGED * 64 + "PRINTED ".len();
    let forged = scene.images.join("printer-forged");
    let forged = image.tampered_file(block().as_bytes(), at as u64, &forged)?;
    let disk = scene.workdir.path().join("printer.raw");
    forged.unverified(&scene.images.join("printer-raw"), &disk)?;
    Ok(disk)
}

fn printed(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.starts_with("PRINTED ")).collect()
}

#[test]
fn of_a_changed_block_a_guest_that_prints_it_prints_nothing() {
    let world = enter();
    let launch = world.host.run("printer-forged", "printer", &[]).unwrap();
    let end = world.ended_within("printer", LIMIT);
    assert_eq!(end["reason"], "disk-integrity", "{launch:?}");
    let log = world.host.logs("printer").unwrap().replace('\r', "");
    assert_eq!(printed(&log), Vec::<&str>::new(), "{log}");
    assert!(log.lines().any(|line| line == "PRINTS"), "{log}");
    world.host.remove("printer").unwrap();
}

#[test]
fn it_prints_the_block_as_it_was_made() {
    let world = enter();
    world.host.run("printer", "printer", &[]).unwrap();
    let log = world.finished_log("printer", "PRINTED all");
    world.host.remove("printer").unwrap();
    let lines: Vec<String> = (0..LINES).map(line).chain(["PRINTED all".into()]).collect();
    assert_eq!(printed(&log), lines);
}

#[test]
fn it_prints_the_changed_block_where_nobody_verifies() {
    let world = enter();
    let disk = format!("root={DISK}");
    world.host.run("printer-raw", "printer", &["--open", "--disk", &disk]).unwrap();
    let log = world.finished_log("printer", "PRINTED all");
    world.host.remove("printer").unwrap();
    assert_eq!(printed(&log).get(CHANGED), Some(&changed().as_str()), "{log}");
}
