//! The Debian packages Coffer needs on the machine, each with its reason.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::progress::Progress;

/// Package and why.
const NEEDED: &[(&str, &str)] = &[
    (
        "build-essential",
        "compiler and linker for ring and SQLite, static C library for coffer-init",
    ),
    ("pkg-config", "finds the TPM software stack when tss-esapi is built"),
    ("libtss2-dev", "TPM 2.0 software stack, for the monitor's host TPM"),
    ("libtss2-tcti-device0", "reaches /dev/tpmrm0; loaded when the monitor runs"),
    ("libtss2-tcti-swtpm0", "reaches a software TPM on a developer host"),
    ("swtpm", "the vTPM of every VM, and the TPM of the lab's host"),
    ("swtpm-tools", "makes the lab host's TPM with its EK certificate"),
    (
        "qemu-system-x86",
        "the lab's host machine (SVM, nested paging), and the launch benchmark's peer",
    ),
    ("ovmf", "UEFI firmware of the lab's host: measured boot"),
    ("erofs-utils", "mkfs.erofs: root file systems of appliances"),
    ("cryptsetup-bin", "veritysetup: the independent check of integrity disks"),
    ("passt", "user-mode network of VMs"),
    ("mmdebstrap", "a stock Debian disk for the lab, with the packages' own scripts run"),
    ("e2fsprogs", "mkfs.ext4: its file system, and disks of tests"),
    ("fdisk", "sfdisk: its partition table"),
    ("zstd", "unpacks kernels that are packed with it"),
    ("xz-utils", "unpacks kernel modules, and kernels that are packed with it"),
    ("cpio", "independent reader of initrds in tests"),
    ("iproute2", "virtual links in tests of the guest's network"),
    ("tpm2-tools", "independent reader of quotes, event logs and certificates in tests"),
    ("openssl", "makes the demo's site key and certificate"),
    ("curl", "the demo's HTTPS client, which knows nothing of Coffer"),
];

/// Makes sure every package is there.
pub fn ensure(progress: &mut Progress) -> Result<()> {
    let step = progress.begin("Debian packages");
    let missing = missing()?;
    if missing.is_empty() {
        progress.end(step, &format!("{} there", NEEDED.len()));
        return Ok(());
    }
    for (name, why) in &missing {
        eprintln!("      installing {name:<22} {why}");
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    command::quiet(&step, apt()?.args(["-q", "update"]))?;
    command::quiet(
        &step,
        apt()?.args(["-q", "-y", "--no-install-recommends", "install"]).args(&names),
    )?;
    progress.end(step, &format!("{} installed", names.len()));
    Ok(())
}

/// Refreshes apt's indexes if there are none, as on a machine fresh from an image.
pub fn ensure_indexes(progress: &mut Progress) -> Result<()> {
    let known =
        command::output(Command::new("apt-cache").args(["policy", "linux-image-cloud-amd64"]))?;
    if known.contains("Candidate: ") && !known.contains("Candidate: (none)") {
        return Ok(());
    }
    progress.step("Package indexes", |step| {
        command::quiet(step, apt()?.args(["-q", "update"]))?;
        Ok(((), "updated".to_owned()))
    })
}

/// Those that are not there, each with its reason.
pub fn missing() -> Result<Vec<(&'static str, &'static str)>> {
    let mut absent = Vec::new();
    for (name, why) in NEEDED {
        let query = Command::new("dpkg-query")
            .args(["-W", "-f", "${db:Status-Status}", name])
            .output()
            .context("cannot start `dpkg-query`; Coffer's set-up knows Debian 12 only")?;
        if !query.status.success() || query.stdout != b"installed" {
            absent.push((*name, *why));
        }
    }
    Ok(absent)
}

fn apt() -> Result<Command> {
    let root = command::output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut apt = if root { Command::new("apt-get") } else { Command::new("sudo") };
    if !root {
        let sudo = Command::new("sudo").arg("-n").arg("true").output();
        if !sudo.is_ok_and(|o| o.status.success()) {
            bail!(
                "installing packages needs root; run as root, or install them and use --no-install"
            );
        }
        apt.arg("apt-get");
    }
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    Ok(apt)
}
