//! Programs that know nothing of Coffer read the guest's TPM and the image's disk, unmodified (SPEC 3.5 to 3.7).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use coffer_attestation::Digest;
use coffer_attestation::tpm::hash::HashAlg;
use coffer_image::descriptor::Disk;
use coffer_lab::process;
use serde_json::{Value, json};

use crate::world::{World, enter};

/// Runs tpm2-tools in a guest and prints what they say.
const SCRIPT: &str = "\
b=/bin/busybox; export TPM2TOOLS_TCTI=device:/dev/tpmrm0
echo BEGIN pcrs; tpm2_pcrread sha256 || exit 1
echo BEGIN pcrs384; tpm2_pcrread sha384 || exit 1
echo BEGIN banks; tpm2_getcap pcrs || exit 1
echo BEGIN log; tpm2_eventlog /sys/kernel/security/tpm0/binary_bios_measurements || exit 1
echo BEGIN certificate; tpm2_getekcertificate -o /tmp/ek.der || exit 1
$b base64 /tmp/ek.der; echo BEGIN end";

pub fn recipe() -> Value {
    json!({
        "name": "tools",
        "workload": {
            "argv": ["/bin/busybox", "sh", "-c", SCRIPT],
            "env": ["PATH=/usr/bin:/bin"],
            "tmpfs": ["/tmp"],
        },
    })
}

#[test]
fn tpm2_tools_read_registers_event_log_and_certificate() {
    let world = enter();
    // Open, for the twin of the refused open box: one that asks for no secret runs.
    let launch = world.host.run("tools", "tools", &["--open"]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log("tools", "BEGIN end");
    let measured = world.host.inspect("tools").unwrap();
    world.host.remove("tools").unwrap();

    let registers = section(&log, "pcrs", "pcrs384");
    let registers384 = section(&log, "pcrs384", "banks");
    let launch_digest = measured["measurements"]["launch_digest"].as_str().unwrap();
    let expected = Digest::of(&[&[0; 32], &hex::decode(launch_digest).unwrap()]).to_string();
    assert_eq!(register(registers, 17), expected, "PCR 17 is not the launch digest's");
    let record = hex::decode(measured["measurements"]["launch_record"].as_str().unwrap()).unwrap();
    let bank = HashAlg::Sha384;
    let expected = bank.zero().extend(bank.digest(&[&record]).as_bytes()).to_string();
    assert_eq!(register(registers384, 17), expected, "PCR 17 is not the launch record's");
    // Every other bank is listed without a register, or not at all.
    let banks = section(&log, "banks", "log").lines().filter(|line| line.contains(" 0, "));
    let banks: Vec<&str> =
        banks.filter_map(|line| line.trim().split_once(':')).map(|b| b.0).collect();
    assert_eq!(banks, ["- sha256", "- sha384"]);

    let events = section(&log, "log", "certificate");
    for event in measured["measurements"]["events"].as_array().unwrap() {
        let digest = event["digest"].as_str().unwrap();
        assert!(events.contains(digest), "tpm2_eventlog does not show {event}");
    }
    let replayed = events.rsplit_once("pcrs:").unwrap().1;
    let (replayed, replayed384) = replayed.split_once("sha384:").unwrap();
    for pcr in [0, 4, 9, 11, 12] {
        assert_eq!(register(replayed, pcr), register(registers, pcr), "PCR {pcr}");
        assert_eq!(register(replayed384, pcr), register(registers384, pcr), "PCR {pcr}, SHA-384");
    }
    check_certificate(&world, section(&log, "certificate", "end"));
}

fn section<'a>(log: &'a str, name: &str, next: &str) -> &'a str {
    let (_, rest) = log.split_once(&format!("BEGIN {name}\n")).unwrap();
    rest.split_once(&format!("BEGIN {next}\n")).unwrap().0
}

/// `  17: 0xAB...` or `  17 : 0xAB...`, in lower case.
fn register(text: &str, index: u8) -> String {
    text.lines()
        .find_map(|line| {
            let (number, value) = line.split_once(':')?;
            (number.trim().parse() == Ok(index))
                .then(|| value.trim().trim_start_matches("0x").to_lowercase())
        })
        .unwrap_or_else(|| panic!("no PCR {index} in:\n{text}"))
}

fn check_certificate(world: &World, base64: &str) {
    let (text, der) = ("ek.base64", "ek.der");
    let folder = world.scene.workdir.path();
    std::fs::write(folder.join(text), base64).unwrap();
    let decode =
        format!("base64 -d {text} > {der} && openssl x509 -inform DER -in {der} -noout -text");
    let said = process::run(
        Command::new("sh").args(["-c", &decode]).current_dir(folder),
        Duration::from_secs(20),
    )
    .unwrap();
    assert!(said.ok, "not a certificate: {}\n{base64}", said.err);
    assert!(said.out.contains("prime256v1"), "not the vEK's certificate: {}", said.out);
}

#[test]
fn veritysetup_accepts_the_sealed_disk_and_refuses_the_forged_one() {
    let world = enter();
    let descriptor = world.scene.site.descriptor().unwrap();
    let Some(Disk::Integrity { blob, data_size, root_hash, .. }) = descriptor.disks.first() else {
        panic!("the site has no disk");
    };
    let verify = |layout: &Path| {
        let disk = layout.join("blobs/sha256").join(blob.digest.0.to_string());
        process::run(
            Command::new("veritysetup")
                .arg("verify")
                .args([&disk, &disk])
                .arg(root_hash.to_string())
                .arg(format!("--hash-offset={data_size}")),
            Duration::from_secs(60),
        )
        .unwrap()
    };
    let sealed = verify(&world.scene.site.layout);
    assert!(sealed.ok, "{}{}", sealed.out, sealed.err);
    assert!(!verify(&world.scene.images.join("forged-rootfs")).ok);
}
