//! An image from a distribution's disk: kernel, initrd and command line are sealed, the disk itself is not.
//!
//! What comes of it is an open box (SPEC 3.2): it boots measured, and its root is a raw disk that whoever starts it
//! brings, of which nothing is promised.

use std::fs;
use std::path::{Path, PathBuf};

use coffer_formats::launch::BoxKind;
use coffer_image::descriptor::{
    ConsoleMode, Descriptor, Disk, MEMORY_MIB, Range, Shape, VCPUS_MAX, Vtpm,
};
use coffer_image::rules::{Invalid, check_cmdline, is_name};

use crate::build::finish;
use crate::output::Output;
use crate::recipe::nat;
use crate::stock_disk::{BootFiles, StockDisk};
use crate::{BuildError, BuiltImage, vmlinux};

/// What to make an image of.
#[derive(Debug, Clone)]
pub struct ImportPlan {
    /// Raw disk image.
    pub disk: PathBuf,
    /// Kernel and initrd, if not the newest on the disk.
    pub boot: Option<(PathBuf, PathBuf)>,
    /// Whole kernel command line, if not the ordinary one with the disk's root.
    pub cmdline: Option<String>,
    /// Name of the image, if not the disk's.
    pub name: Option<String>,
    /// The OCI image layout folder to write.
    pub output: PathBuf,
    /// Replace an image that is there.
    pub force: bool,
}

/// After `root=`, each with its reason.
const CMDLINE: [&str; 6] = [
    // What the distribution's boot loader would leave to be done later, for want of knowing the disk to be sound.
    "rw",
    // The console that `coffer console` speaks with.
    "console=ttyS0",
    // One UART, no PCI bus: see the appliance's own command line.
    "8250.nr_uarts=1",
    "pci=off",
    // A kernel that panicked stops the VM at once instead of waiting.
    "panic=-1",
    "random.trust_cpu=on",
];

/// An initrd of a distribution unpacks to some 200 MiB beside the kernel.
const MEMORY_LEAST: u32 = 512;

/// Makes the image. On an error nothing is left behind and an image that was there is as it was.
pub fn import(plan: &ImportPlan) -> Result<BuiltImage, BuildError> {
    let name = match &plan.name {
        Some(name) => name.clone(),
        None => name_of(&plan.disk),
    };
    if !is_name(&name) {
        let why = "must match `[a-z0-9-]{1,63}`";
        return Err(Invalid { field: "name".into(), why }.into());
    }
    let disk = StockDisk::open(&plan.disk)?;
    let cmdline = match &plan.cmdline {
        Some(cmdline) => cmdline.clone(),
        None => format!("root={} {}", disk.root()?, CMDLINE.join(" ")),
    };
    check_cmdline(cmdline.as_bytes())?;
    let BootFiles { kernel, initrd } = match &plan.boot {
        Some((kernel, initrd)) => {
            BootFiles { kernel: read("kernel", kernel)?, initrd: read("initrd", initrd)? }
        }
        None => disk.boot_files()?,
    };
    let output = Output::begin(&plan.output, plan.force)?;
    let kernel = output.blob(&vmlinux::unpack(&kernel, output.scratch())?)?;
    let initrd = output.blob(&initrd)?;
    let cmdline = output.blob(cmdline.as_bytes())?;
    let descriptor = Descriptor {
        version: 1,
        name,
        box_kind: BoxKind::Open,
        svn: 1,
        architecture: "x86_64".into(),
        kernel,
        initrd,
        cmdline,
        disks: vec![Disk::Raw { name: "root".into() }],
        shape: Shape {
            vcpus: Range { min: 1, max: VCPUS_MAX },
            memory_mib: Range { min: MEMORY_LEAST, max: MEMORY_MIB.max },
        },
        console: ConsoleMode::Output,
        vtpm: Vtpm::Fresh,
        network: nat(),
        verifier: None,
        secrets: Vec::new(),
        not_after: None,
    };
    finish(descriptor, output)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(BuildError::input(what, path))
}

/// `Debian 12.raw` makes `debian-12`.
fn name_of(disk: &Path) -> String {
    let stem = disk.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_disk_is_made_a_name() {
        assert_eq!(name_of(Path::new("a/Debian 12.raw")), "debian-12");
        assert_eq!(name_of(Path::new("debian-12-nocloud-amd64.raw")), "debian-12-nocloud-amd64");
        assert_eq!(name_of(Path::new("/")), "");
    }
}
