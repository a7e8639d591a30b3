//! A stock Debian disk for the lab: the distribution's own packages, set up by their own scripts, on a disk with a
//! partition table, as anybody's disk image is. Nothing of ours is in it but a password and a network address.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;
use crate::debs::{Staging, stamp};
use crate::progress::{Progress, Step};
use crate::workspace::Workspace;

/// Folder of the cache.
const NAME: &str = "stock-disk";
/// What is not essential anyway: a kernel, what makes its initrd, an init, and tools to look around with.
const PACKAGES: &str =
    "linux-image-cloud-amd64,initramfs-tools,zstd,systemd-sysv,udev,dbus,iproute2,kmod";
/// The disk: a table, one partition from 1 MiB on, and room for the backup table at its end.
const DISK_MIB: u64 = 1024;
const PARTITION_MIB: u64 = DISK_MIB - 2;
/// What is written into the root file system, from its top.
const FILES: [(&str, &str); 3] = [
    ("etc/hostname", "stock\n"),
    ("etc/fstab", "/dev/vda1 / ext4 errors=remount-ro 0 1\n"),
    (
        "etc/systemd/network/wired.network",
        "[Match]\nName=e*\n[Network]\nAddress=192.168.76.2/24\nGateway=192.168.76.1\n",
    ),
];

/// The cache's folder for it, if it is not complete.
pub fn missing(cache: &Path) -> Option<(&'static str, PathBuf)> {
    let folder = cache.join(NAME);
    stamp(&folder).is_none().then_some(("stock disk", folder))
}

/// Makes `.coffer/cache/stock-disk/disk.raw`.
pub fn make(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    let target = workspace.cache().join(NAME);
    progress.step("Stock Debian disk", |step| {
        if stamp(&target).is_some() {
            return Ok(((), "(cached)".to_owned()));
        }
        let fresh = Staging::new(&target)?;
        let root = fresh.beside("debs")?.join("root");
        install(step, &root)?;
        for (path, text) in FILES {
            std::fs::write(root.join(path), text)
                .with_context(|| format!("cannot write `{path}`"))?;
        }
        partition(step, &root, &fresh.path().join("disk.raw"))?;
        fresh.finish(&format!("Debian, {PACKAGES}\n"))?;
        Ok(((), format!("{DISK_MIB} MiB")))
    })
}

/// Runs the packages' own scripts in a folder; root's password is `coffer`.
fn install(step: &Step, root: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--variant=minbase", "--format=directory", &format!("--include={PACKAGES}")])
        .args(["doc", "man", "locale"].map(|f| format!("--dpkgopt=path-exclude=/usr/share/{f}/*")))
        .arg("--customize-hook=echo root:coffer | chroot \"$1\" chpasswd")
        .arg("--customize-hook=chroot \"$1\" systemctl enable systemd-networkd")
        .arg("bookworm")
        .arg(root);
    command::quiet(step, &mut mmdebstrap).map(drop)
}

fn partition(step: &Step, root: &Path, disk: &Path) -> Result<()> {
    std::fs::File::create_new(disk)?.set_len(DISK_MIB << 20)?;
    let table = disk.with_file_name("table");
    std::fs::write(
        &table,
        format!("label: gpt\nstart=1MiB, size={PARTITION_MIB}MiB, type=linux\n"),
    )?;
    let script =
        "sfdisk --quiet \"$1\" < \"$2\" && mkfs.ext4 -q -E offset=1048576 -d \"$3\" \"$1\" \"$4\"";
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script, "sh"]).arg(disk).arg(&table).arg(root);
    // Of a file mke2fs takes a size in words as it is.
    command::quiet(step, shell.arg(format!("{PARTITION_MIB}M")))?;
    std::fs::remove_file(&table)?;
    Ok(())
}
