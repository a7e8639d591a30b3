//! Boots a plain machine once and takes what it tells: no network, no nested virtualisation, a limit on its time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::{Digest, predict};

use super::about::{About, Fact};
use super::boot_path::BootPath;
use super::media::{self, Section};
use super::recording::Recording;
use crate::host_tpm::HostTpm;
use crate::machine::OVMF;
use crate::process::{self, Running};
use crate::workspace;

/// Longest from power to power-off. With Secure Boot an idle machine takes 40 s, most of them in GRUB.
const LIMIT: Duration = Duration::from_secs(300);
const MEMORY_MIB: u64 = 1024;
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet";
/// Where the firmware looks on a disk it has no boot entry for (UEFI 2.10, 3.5.1.1).
const DEFAULT_LOADER: &str = "/EFI/BOOT/BOOTX64.EFI";
/// Debian's signed GRUB reads its configuration there.
const GRUB_CFG: &str = "/EFI/debian/grub.cfg";

/// What a machine starts.
enum Media {
    /// QEMU hands kernel and initrd to the firmware.
    Kernel(PathBuf, PathBuf),
    /// A disk with an EFI system partition's files.
    Disk(PathBuf),
}

/// Boots the path's machine.
pub fn record(folder: &Path, path: BootPath) -> Result<(Recording, About)> {
    let initrd = folder.join("initrd");
    media::initrd(&initrd, path)?;
    let (media, measured) = prepare(folder, path, initrd)?;
    let tpm_folder = folder.join("tpm");
    std::fs::create_dir_all(&tpm_folder)?;
    let tpm = HostTpm::manufacture_with_banks(&tpm_folder, path.banks())?;
    let output = boot(folder, path, &tpm, &media)?;
    let recording = Recording::find(&output).with_context(|| {
        format!("the console ends:\n{}", process::tail(&folder.join("console.log"), 20))
    })?;
    let firmware = if path == BootPath::Seabios { "seabios" } else { "ovmf" };
    let about = About::new(path, &recording, &[firmware, "qemu-system-x86", "swtpm"], measured)?;
    Ok((recording, about))
}

/// The media, and what measuring them comes to.
fn prepare(folder: &Path, path: BootPath, initrd: PathBuf) -> Result<(Media, Vec<Fact>)> {
    match path {
        BootPath::OvmfSecurebootShimGrub => grub(folder, initrd),
        BootPath::UkiSystemdStub => uki(folder, initrd),
        _ => direct(path, initrd),
    }
}

fn direct(path: BootPath, initrd: PathBuf) -> Result<(Media, Vec<Fact>)> {
    let kernel = workspace::kernel()?;
    let bytes = std::fs::read(&initrd)?;
    let mut facts = Vec::new();
    if path != BootPath::Seabios {
        let handed =
            predict::qemu::kernel(&std::fs::read(&kernel)?, bytes.len(), MEMORY_MIB << 20)?;
        facts = vec![
            Fact::new(4, "kernel, Authenticode", predict::authenticode_sha256(&handed)?),
            Fact::new(9, "command line", predict::qemu::load_options(CMDLINE)),
            Fact::new(9, "initrd", predict::initrd(&bytes)),
        ];
    }
    Ok((Media::Kernel(kernel, initrd), facts))
}

fn grub(folder: &Path, initrd: PathBuf) -> Result<(Media, Vec<Fact>)> {
    let loaders = workspace::boot_loaders()?;
    let shim = loaders.join("usr/lib/shim/shimx64.efi.signed");
    let grub = loaders.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let (kernel, configuration) = (workspace::kernel()?, folder.join("grub.cfg"));
    std::fs::write(&configuration, grub_cfg())?;
    let facts = vec![
        Fact::new(4, "shim, Authenticode", authenticode(&shim)?),
        Fact::new(4, "GRUB, Authenticode", authenticode(&grub)?),
        Fact::new(8, "command line", Digest::of(&[kernel_cmdline().as_bytes()])),
        Fact::new(9, "grub.cfg", Digest::of(&[grub_cfg().as_bytes()])),
        Fact::new(9, "kernel", Digest::of(&[&std::fs::read(&kernel)?])),
        Fact::new(9, "initrd", predict::initrd(&std::fs::read(&initrd)?)),
        // shim verifies the kernel for GRUB, and measures what it verifies.
        Fact::new(4, "kernel, Authenticode", authenticode(&kernel)?),
    ];
    let files = [
        (shim, DEFAULT_LOADER),
        (grub, "/EFI/BOOT/grubx64.efi"),
        (configuration, GRUB_CFG),
        (kernel, "/vmlinuz"),
        (initrd, "/initrd"),
    ];
    let disk = folder.join("esp.img");
    media::esp(&disk, &files)?;
    Ok((Media::Disk(disk), facts))
}

fn grub_cfg() -> String {
    format!(
        "set timeout=0\nmenuentry \"Recorded\" {{\n  linux {}\n  initrd /initrd\n}}\n",
        kernel_cmdline()
    )
}

/// The command line as GRUB measures it, the kernel's name first.
fn kernel_cmdline() -> String {
    format!("/vmlinuz {CMDLINE}")
}

fn uki(folder: &Path, initrd: PathBuf) -> Result<(Media, Vec<Fact>)> {
    let stub = workspace::boot_loaders()?.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    let (release, cmdline) = (folder.join("os-release"), folder.join("cmdline"));
    std::fs::write(&release, "ID=coffer-lab\nPRETTY_NAME=\"Coffer's lab\"\n")?;
    std::fs::write(&cmdline, CMDLINE)?;
    let kernel = workspace::kernel()?;
    // In the order in which the stub measures them, which is not by address.
    let sections = [
        Section { name: ".linux", file: kernel.clone() },
        Section { name: ".osrel", file: release },
        Section { name: ".cmdline", file: cmdline },
        Section { name: ".initrd", file: initrd.clone() },
    ];
    let image = folder.join("uki.efi");
    media::uki(&image, &stub, &sections)?;
    let mut facts = vec![
        Fact::new(4, "UKI, Authenticode", authenticode(&image)?),
        Fact::new(4, "kernel, Authenticode", authenticode(&kernel)?),
        // The kernel's own stub measures once more what systemd's hands it.
        Fact::new(9, "command line", predict::load_options(CMDLINE)),
        Fact::new(9, "initrd", predict::initrd(&std::fs::read(&initrd)?)),
    ];
    for Section { name, file } in &sections {
        facts.push(Fact::new(
            11,
            format!("section name {name}"),
            Digest::of(&[name.as_bytes(), &[0]]),
        ));
        facts.push(Fact::new(11, format!("section {name}"), Digest::of(&[&std::fs::read(file)?])));
    }
    let disk = folder.join("esp.img");
    media::esp(&disk, &[(image, DEFAULT_LOADER)])?;
    Ok((Media::Disk(disk), facts))
}

fn authenticode(file: &Path) -> Result<Digest> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    Ok(predict::authenticode_sha256(&bytes)?)
}

/// Everything the recorder's serial port took down.
fn boot(folder: &Path, path: BootPath, tpm: &HostTpm, media: &Media) -> Result<String> {
    let output = folder.join("recording.log");
    let swtpm = tpm.power_on()?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg", "-smp", "1", "-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"])
        .args(firmware(folder, path)?)
        .arg("-chardev")
        .arg(format!("socket,id=tpm,path={}", tpm.socket().display()))
        .args(["-tpmdev", "emulator,id=tpm,chardev=tpm"])
        // SeaBIOS knows both; one path has the other interface.
        .args([
            "-device",
            if path == BootPath::Seabios { "tpm-tis,tpmdev=tpm" } else { "tpm-crb,tpmdev=tpm" },
        ])
        .arg("-serial")
        .arg(format!("file:{}", folder.join("console.log").display()))
        .arg("-serial")
        .arg(format!("file:{}", output.display()));
    match media {
        Media::Kernel(kernel, initrd) => {
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", CMDLINE])
        }
        Media::Disk(disk) => command
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,readonly=on,file={}", disk.display()))
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0,romfile="]),
    };
    let mut qemu = Running::start(&mut command, &folder.join("qemu.log"))?;
    let ended = qemu.wait(LIMIT);
    drop(swtpm);
    let status = ended.with_context(|| {
        format!("the console ends:\n{}", process::tail(&folder.join("console.log"), 20))
    })?;
    ensure!(status.success(), "QEMU failed: {}", process::tail(&folder.join("qemu.log"), 5));
    let bytes = std::fs::read(&output)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Machine and firmware. Secure Boot's variables are Debian's, with Microsoft's keys; only code in SMM may change them.
fn firmware(folder: &Path, path: BootPath) -> Result<Vec<String>> {
    let (machine, code, variables) = match path {
        BootPath::Seabios => return Ok(vec!["-M".to_owned(), "q35".to_owned()]),
        BootPath::OvmfSecurebootShimGrub => {
            ("q35,smm=on", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd")
        }
        _ => ("q35", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    };
    let own = folder.join("variables.fd");
    std::fs::copy(Path::new(OVMF).join(variables), &own)
        .context("cannot copy the firmware's variables; install `ovmf`")?;
    let pflash = |options: &str, file: &Path| {
        format!("if=pflash,format=raw{options},file={}", file.display())
    };
    let mut arguments = vec!["-M".to_owned(), machine.to_owned()];
    arguments.extend(["-drive".to_owned(), pflash(",readonly=on", &Path::new(OVMF).join(code))]);
    arguments.extend(["-drive".to_owned(), pflash("", &own)]);
    if path == BootPath::OvmfSecurebootShimGrub {
        let guarded = "driver=cfi.pflash01,property=secure,value=on";
        arguments.extend(["-global".to_owned(), guarded.to_owned()]);
    }
    Ok(arguments)
}
