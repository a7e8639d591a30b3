//! The lab host's machine: QEMU's software CPU with SVM and nested paging, UEFI firmware, a TPM.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::host_tpm::HostTpm;
use crate::process::{self, Running};
use crate::workspace;

/// Where Debian's `ovmf` puts the firmware.
pub(crate) const OVMF: &str = "/usr/share/OVMF";
/// Address at which the lab host finds the verifier.
pub const VERIFIER_ADDRESS: &str = "10.0.2.100";

/// CPUs of a lab host. With two, a host under QEMU 7.2 was seen to panic: a reschedule interrupt from the other CPU came
/// right after VMRUN in `__svm_vcpu_run`, before the host's GS was reloaded, where the global interrupt flag should hold
/// it off. One CPU gets no such interrupts; whether that removes the cause is not known.
const CPUS: u32 = 1;

/// What the machine boots and whom it reaches.
pub struct MachineSpec<'a> {
    /// Kernel file.
    pub kernel: &'a Path,
    /// Initrd file.
    pub initrd: &'a Path,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Disk images, read-only, `/dev/vda` first.
    pub disks: &'a [PathBuf],
    /// Disk images to write to, after those.
    pub raw_disks: &'a [PathBuf],
    /// Ports of the host to reach from here; each gets a free port on 127.0.0.1.
    pub ports: &'a [u16],
    /// Port on 127.0.0.1 where the verifier listens.
    pub verifier_port: Option<u16>,
    /// Memory, MiB.
    pub memory_mib: u32,
}

/// A machine that runs.
pub struct Machine {
    qemu: Running,
    console: PathBuf,
    forwards: Vec<(u16, u16)>,
    _tpm: Running,
}

impl Machine {
    /// Switches it on; its console goes to a file in `folder`.
    pub fn power_on(folder: &Path, tpm: &HostTpm, spec: &MachineSpec<'_>) -> Result<Self> {
        let console = folder.join("console.log");
        let vars = folder.join("OVMF_VARS.fd");
        std::fs::copy(Path::new(OVMF).join("OVMF_VARS_4M.fd"), &vars)
            .context("cannot copy the firmware's variables; install `ovmf`")?;
        let forwards = free_ports(spec.ports)?;
        let swtpm = tpm.power_on()?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "EPYC,+svm,+npt"])
            .args(["-smp", &CPUS.to_string()])
            .args([
                "-m",
                &spec.memory_mib.to_string(),
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-drive")
            .arg(format!("if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE_4M.fd"))
            .arg("-drive")
            .arg(format!("if=pflash,format=raw,file={}", vars.display()))
            .arg("-chardev")
            .arg(format!("socket,id=tpm,path={}", tpm.socket().display()))
            .args(["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-netdev")
            .arg(network(&forwards, spec.verifier_port)?)
            // Without `romfile=` the card's own boot code would be measured, and would change with QEMU.
            .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        for (at, disk) in spec.disks.iter().enumerate() {
            command
                .arg("-drive")
                .arg(format!("if=none,id=disk{at},format=raw,readonly=on,file={}", disk.display()))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=disk{at}"));
        }
        for (at, disk) in spec.raw_disks.iter().enumerate() {
            // What a lab writes need not outlive the machine it runs on.
            command
                .arg("-drive")
                .arg(format!("if=none,id=raw{at},format=raw,cache=unsafe,file={}", disk.display()))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive=raw{at}"));
        }
        command.arg("-kernel").arg(spec.kernel).arg("-initrd").arg(spec.initrd);
        command.args(["-append", spec.cmdline]);
        let qemu = Running::start(&mut command, &folder.join("qemu.log"))?;
        Ok(Self { qemu, console, forwards, _tpm: swtpm })
    }

    /// Port on 127.0.0.1 that leads to this port of the host.
    pub fn port(&self, of_host: u16) -> Result<u16> {
        self.forwards
            .iter()
            .find(|(_, host)| *host == of_host)
            .map(|(here, _)| *here)
            .with_context(|| format!("port {of_host} of the lab host is not forwarded"))
    }

    /// Console output so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// File the console output goes to.
    pub fn console_file(&self) -> &Path {
        &self.console
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        process::tail(&self.console, 30)
    }

    /// An error with the end of the console if the machine has stopped.
    pub fn must_live(&mut self) -> Result<()> {
        if let Err(error) = self.qemu.must_live() {
            bail!("the lab host is off: {error}\nits console ends:\n{}", self.console_tail());
        }
        Ok(())
    }

    /// Waits until it powers itself off.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        self.qemu
            .wait(limit)
            .map(drop)
            .with_context(|| format!("the lab host's console ends:\n{}", self.console_tail()))
    }
}

/// `restrict=on`: nothing in the lab reaches any address but through the forwards named here.
fn network(forwards: &[(u16, u16)], verifier_port: Option<u16>) -> Result<String> {
    let mut text = "user,id=net,restrict=on".to_owned();
    for (here, host) in forwards {
        text.push_str(&format!(",hostfwd=tcp:127.0.0.1:{here}-:{host}"));
    }
    if let Some(port) = verifier_port {
        let forwarder = workspace::program("coffer-lab")?;
        text.push_str(&format!(
            ",guestfwd=tcp:{VERIFIER_ADDRESS}:443-cmd:{} forward {port}",
            forwarder.display()
        ));
    }
    Ok(text)
}

/// A free port here for each port of the host. All are held until all are known, so they differ.
fn free_ports(of_host: &[u16]) -> Result<Vec<(u16, u16)>> {
    let held: Vec<TcpListener> = of_host
        .iter()
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()
        .context("no free port on 127.0.0.1")?;
    held.iter()
        .zip(of_host)
        .map(|(listener, host)| Ok((listener.local_addr()?.port(), *host)))
        .collect()
}
