//! Open boxes: a stock Debian disk with its own kernel and initrd, at a console, on a raw disk (SPEC 1.5, 3.2, 3.8);
//! what a closed box has of that, which is nothing; and what an open box gets of a closed one's, which is nothing too.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::Digest;
use coffer_lab::appliance::Image;
use coffer_lab::coffer::Coffer;
use coffer_lab::console::Console;
use coffer_lab::scene::Scene;
use coffer_lab::{process, wait, workspace};
use serde_json::{Value, json};

use crate::world::{World, enter};

/// The disks as the host has them, behind its image store.
const ROOT: &str = "/dev/vdb";
const TOOLS: &str = "/dev/vdc";
/// A distribution starts a hundred programs on an emulated CPU in an emulated CPU.
const BOOT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(60);

/// The image of the stock disk, which declares the site's secret as its own: whoever makes an open image may. And the
/// disks: that one, and one with the program that asks.
pub fn prepare(scene: &Scene) -> Result<Vec<PathBuf>> {
    let disk = workspace::stock_disk()?;
    let layout = scene.images.join("stock");
    let imported = Coffer::plain().run(["image", "import"], |c| {
        c.arg(&disk).args(["--name", "stock"]).arg("-o").arg(&layout)
    })?;
    let image = Image { layout, id: imported.must()?.trim().to_owned() };
    Coffer::plain().run(["image", "verify"], |c| c.arg(&image.layout))?.must()?;
    let site: Value = Coffer::plain()
        .run(["image", "inspect", "--json"], |c| c.arg(&scene.site.layout))?
        .json()?;
    image.redescribed(|descriptor| {
        for field in ["verifier", "secrets"] {
            descriptor[field] = site["descriptor"][field].clone();
        }
    })?;
    let tools = scene.workdir.path().join("tools.raw");
    tools_disk(scene, &site["appliance"], &tools)?;
    Ok(vec![disk, tools])
}

/// A file system with the program that asks and what it is to ask for.
fn tools_disk(scene: &Scene, appliance: &Value, disk: &Path) -> Result<()> {
    let folder = scene.workdir.folder("tools-disk")?;
    std::fs::write(folder.join("appliance.json"), appliance.to_string())?;
    let (ask, program) = (folder.join("ask"), workspace::program("coffer-lab-ask")?);
    process::must("strip", [OsStr::new("-o"), ask.as_os_str(), program.as_os_str()])?;
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&folder).arg(disk).arg("32M");
    let said = process::run(&mut mkfs, Duration::from_secs(30))?;
    ensure!(said.ok, "mkfs.ext4 failed: {}", said.err);
    Ok(())
}

/// What the registers of a VM's vTPM have to hold, by what the monitor says it measured.
fn expected_registers(measurements: &Value) -> Result<BTreeMap<u64, String>> {
    let mut registers: BTreeMap<u64, Digest> = BTreeMap::new();
    for event in measurements["events"].as_array().context("events")? {
        let digest = event["digest"].as_str().and_then(Digest::from_hex).context("a digest")?;
        let value = registers.entry(event["pcr"].as_u64().context("a register")?);
        let value = value.or_insert(Digest::ZERO);
        *value = Digest::of(&[value.as_bytes(), digest.as_bytes()]);
    }
    Ok(registers.into_iter().map(|(pcr, value)| (pcr, value.to_hex())).collect())
}

fn start(world: &World, more: &[&str]) -> Console {
    let disk = ["--open", "--disk", ROOT];
    let launch = world.host.run("stock", "stock", &[&disk[..], more].concat()).unwrap();
    assert_eq!(launch.reason(), "running", "{launch:?}");
    let mut console = Console::open(&world.host.api().unwrap(), "stock").unwrap();
    console.log_in("root", "coffer", BOOT).unwrap();
    console
}

#[test]
fn a_stock_disk_boots_measured_is_spoken_with_keeps_what_is_written_and_gets_no_secret() {
    let world = enter();
    let mut console = start(&world, &[]);

    // Its vTPM answers, and holds what was measured.
    let vm = world.host.inspect("stock").unwrap();
    assert_eq!(vm["vm"]["box"], "open");
    let registers = expected_registers(&vm["measurements"]).unwrap();
    assert!(registers.len() >= 8 && registers.contains_key(&17), "{registers:?}");
    let read = "for p in /sys/class/tpm/tpm0/pcr-sha256/*; do echo ${p##*/} $(cat $p); done";
    let said = console.run(read, SOON).unwrap();
    for (register, value) in &registers {
        let line = format!("{register} {}", value.to_uppercase());
        assert!(said.lines().any(|l| l == line), "no `{line}` in:\n{said}");
    }
    assert_eq!(console.run("test -c /dev/tpm0 && echo there", SOON).unwrap(), "there");

    // Its disk is its alone, and keeps what was flushed although the VM is killed.
    console.run("echo kept-$((40 + 2)) > /var/kept && sync", SOON).unwrap();
    let second = world.host.run("stock", "second", &["--open", "--disk", ROOT]).unwrap();
    assert!(second.message.contains("disk-in-use"), "{second:?}");
    // Nobody else types meanwhile.
    let other = world.host.coffer().unwrap().run(["console", "stock"], |c| c).unwrap().said;
    assert!(!other.ok && other.err.contains("busy"), "{other:?}");
    world.host.coffer().unwrap().run(["stop", "-t", "0", "stock"], |c| c).unwrap().must().unwrap();
    drop(console);
    world.host.remove("stock").unwrap();

    let mut console = start(&world, &["--disk", &format!("tools={TOOLS}")]);
    assert_eq!(console.run("cat /var/kept", SOON).unwrap(), "kept-42");

    // Root of an open box asks for the site's key as the site does, with a vTPM that is real and a host that is enrolled.
    console.run("mount -o ro /dev/vdb /mnt && modprobe vmw_vsock_virtio_transport", SOON).unwrap();
    let said = console.run("/mnt/ask /mnt/appliance.json", SOON).unwrap();
    assert!(said.contains("ASK policy-denied"), "{said}");
    let decision = world.scene.last_release().unwrap();
    assert_eq!(decision["code"], "policy-denied", "{decision}");
    assert_eq!(decision["release"]["box"], "open");

    // It ends as a machine does.
    console.send("poweroff\n").unwrap();
    let limit = Duration::from_secs(120);
    wait::until("the end of the VM", limit, || {
        Ok((world.host.inspect("stock")?["vm"]["state"] == "stopped").then_some(()))
    })
    .unwrap();
    world.host.remove("stock").unwrap();
}

#[test]
fn a_closed_box_has_neither_console_nor_raw_disk() {
    let world = enter();
    let said = world.host.coffer().unwrap().run(["console", "site"], |c| c).unwrap().said;
    assert!(said.code == Some(1) && said.err.contains("(closed-box)"), "{said:?}");
    let request = json!({ "image": "site", "box": "closed", "name": "disk",
        "disks": [{ "name": "data", "path": TOOLS }] });
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "30", "--json", &request.to_string()]);
    curl.arg(format!("{}/v1/vms", world.host.api().unwrap()));
    let said = process::run(&mut curl, SOON).unwrap();
    let answer: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(answer["code"], "closed-box", "{answer}");
    // The host's own disk, which it has mounted, is nobody's.
    let taken = world.host.run("stock", "taken", &["--open", "--disk", "/dev/vda"]).unwrap();
    assert!(taken.message.contains("disk-"), "{taken:?}");
}
