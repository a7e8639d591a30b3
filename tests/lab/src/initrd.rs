//! The lab host's initrd: the sealed host's programs, and the lab's probe.
//!
//! Everything in it is measured (PCR 9). It differs from a production host in three things, all visible in the
//! evidence: the probe, the decoy key the probe must find, and an API on TCP, since no Unix socket leads out of QEMU.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use coffer_image_build::{HostInitrd, ModuleTree};

use crate::bench::agent;
use crate::{probe, process, workspace};

/// Where the decoy key is on the host.
pub const DECOY: &str = "/etc/coffer/decoy.pem";
/// The host's own address.
pub const ADDRESS: &str = "10.0.2.15";
/// Port of the management API on the host.
pub const API_PORT: u16 = 7070;

/// Modules in the order they load: network card, image store disk, KVM, and what VMs' networks need.
const MODULES: [&str; 8] =
    ["virtio_pci", "virtio_net", "virtio_blk", "erofs", "irqbypass", "kvm", "kvm_amd", "tun"];

/// What dm-crypt over dm-integrity needs for AES-GCM in a file, and `cryptsetup` for its key slots.
const CRYPT_MODULES: [&str; 10] = [
    "loop",
    "aesni_intel",
    "gcm",
    "ghash_generic",
    "ctr",
    "xts",
    "algif_skcipher",
    "algif_aead",
    "dm_integrity",
    "dm_crypt",
];

/// What goes into an initrd beyond the ordinary.
#[derive(Default, Clone)]
pub struct Extras {
    /// Key the probe must find in the host's files: the proof that it would find another.
    pub decoy: Option<PathBuf>,
    /// Bytes of a file that only makes this initrd differ.
    pub marker: Option<String>,
    /// QEMU and its agent, for the launch benchmark.
    pub qemu: bool,
    /// dm-crypt, dm-integrity and what sets them up, for the disk benchmark.
    pub crypt: bool,
    /// The device with the file system for the vault.
    pub vault_disk: Option<String>,
    /// Release key of the verifier that permits what changes whom the vault opens for, hex.
    pub vault_verifier: Option<String>,
    /// Key and counter of the vault in files beside it, in place of the TPM: what the TPM keeps away happens.
    pub dangerously_software_vault: bool,
}

/// Writes the initrd to `out`.
pub fn write(out: &Path, extras: &Extras) -> Result<()> {
    let modules = ModuleTree::open(&workspace::kernel_modules()?)?;
    let storage = extras.vault_disk.is_some().then_some("ext4");
    let crypt: &[&str] = if extras.crypt { &CRYPT_MODULES } else { &[] };
    let wanted: Vec<&str> =
        MODULES.into_iter().chain(storage).chain(crypt.iter().copied()).collect();
    let modules = modules.closure(&wanted)?;
    let names: Vec<&str> = modules.iter().map(|m| m.file_name.as_str()).collect();
    let mut initrd = HostInitrd::new()
        .binary(stripped("coffer-lab", out)?, probe::PROGRAM)
        .binary(stripped("coffer-monitor", out)?, probe::MONITOR)
        .binary(stripped("coffer-vmm", out)?, "/usr/bin/coffer-vmm")
        .binary("/usr/bin/swtpm", "/usr/bin/swtpm")
        .binary("/usr/bin/passt", "/usr/bin/passt")
        // passt starts its AVX2 build where the CPU has it.
        .binary("/usr/bin/passt.avx2", "/usr/bin/passt.avx2")
        .library("libtss2-tcti-device.so.0")
        .symlink(probe::PROGRAM, "/init")
        .directory("/var/lib/coffer/images", 0o755)
        .data("nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\nroot:x:0:0:root:/root:/usr/sbin/nologin\n", "/etc/passwd", 0o644)
        .data("root:x:0:\nnogroup:x:65534:\n", "/etc/group", 0o644)
        .data(serde_json::to_vec_pretty(&host_configuration(&names, extras))?, "/etc/coffer/host.json", 0o644);
    for module in modules {
        let path = format!("/etc/coffer/modules/{}", module.file_name);
        initrd = initrd.data(module.bytes, path, 0o644);
    }
    if let Some(decoy) = &extras.decoy {
        initrd = initrd.file(decoy, DECOY, 0o600);
    }
    if let Some(marker) = &extras.marker {
        initrd = initrd.data(marker.clone(), "/etc/coffer/marker", 0o644);
    }
    if extras.qemu {
        initrd = with_qemu(initrd);
    }
    if extras.crypt {
        initrd = initrd.binary("/usr/sbin/cryptsetup", "/usr/sbin/cryptsetup");
    }
    initrd.write(out).context("cannot make the lab host's initrd")?;
    Ok(())
}

/// A copy without debugging symbols, beside the initrd: firmware and kernel read and hash every byte of it.
pub(crate) fn stripped(name: &str, beside: &Path) -> Result<PathBuf> {
    let copy = beside.with_file_name(format!("{name}.stripped"));
    let program = workspace::program(name)?;
    process::must("strip", [OsStr::new("-o"), copy.as_os_str(), program.as_os_str()])?;
    Ok(copy)
}

/// `/etc/coffer/host.json`, as `coffer-monitor init` reads it.
fn host_configuration(modules: &[&str], extras: &Extras) -> serde_json::Value {
    serde_json::json!({
        "version": 1,
        "modules": modules,
        // The one guest address of QEMU's user network.
        "network": { "interface": null, "address": ADDRESS, "prefix": 24, "gateway": "10.0.2.2" },
        "images_disk": "/dev/vda",
        "vault_disk": extras.vault_disk,
        "vault_verifier": extras.vault_verifier,
        "dangerously_software_vault": extras.dangerously_software_vault,
        // Open boxes may have the host's disks; the image store is mounted, and so taken.
        "disks": "/dev",
        "dangerously_listen_tcp": format!("0.0.0.0:{API_PORT}"),
        "tcti": null,
    })
}

/// The peer of the launch benchmark, with the firmware `-M microvm` starts.
fn with_qemu(initrd: HostInitrd<'_>) -> HostInitrd<'_> {
    initrd
        .binary("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64")
        .file("/usr/share/seabios/bios-microvm.bin", "/usr/share/seabios/bios-microvm.bin", 0o644)
        .file("/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/linuxboot_dma.bin", 0o644)
        .file("/usr/share/qemu/pvh.bin", "/usr/share/qemu/pvh.bin", 0o644)
        .data("", agent::MARKER, 0o644)
}
