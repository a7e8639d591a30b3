//! A lab host that runs: booted, its API reached, everything about it bounded in time.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::coffer::Coffer;
use crate::host_tpm::HostTpm;
use crate::initrd::{self, API_PORT, Extras};
use crate::intruder::{self, Attempt, Outcome};
use crate::machine::{Machine, MachineSpec};
use crate::needle::Needle;
use crate::{crash, probe, process, rival, wait, workspace};

/// Longest from power to the API's first answer: four times what an idle machine takes.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Memory of a lab host, MiB: half a dozen appliances and the monitor, with room.
const MEMORY_MIB: u32 = 3072;
/// Kernel command line. `quiet` keeps the console to what the monitor says.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet";

/// What a lab host gets.
#[derive(Default)]
pub struct LabConfig {
    /// Folder with image layouts, the host's image store.
    pub images: Option<PathBuf>,
    /// Disk images that open boxes may have, each copied: `/dev/vdb` and on where there is an image store.
    pub raw_disks: Vec<PathBuf>,
    /// The disk with the file system for its vault, which is used as it is: what is done to it between two boots is what who
    /// owns the storage does. Without it the host keeps nothing.
    pub vault: Option<PathBuf>,
    /// Ports of the host to reach from here, beside the API.
    pub publish: Vec<u16>,
    /// Port on 127.0.0.1 of the verifier.
    pub verifier_port: Option<u16>,
    /// What its initrd holds beyond the ordinary.
    pub extras: Extras,
    /// Memory, MiB, if not the ordinary.
    pub memory_mib: Option<u32>,
}

/// A lab host.
pub struct LabHost {
    machine: Machine,
    folder: PathBuf,
    initrd: PathBuf,
    profile: &'static str,
    memory_mib: u32,
    /// From power to the API's first answer.
    pub boot_time: Duration,
}

impl LabHost {
    /// Builds its initrd and image store in `folder`, boots it with this TPM, and waits for its API.
    pub fn boot(folder: &Path, tpm: &HostTpm, config: &LabConfig) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make `{}`", folder.display()))?;
        let initrd = folder.join("host.initrd");
        let mut disks = Vec::new();
        if let Some(images) = &config.images {
            let store = folder.join("store.erofs");
            make_store(images, &store)?;
            disks.push(store);
        }
        let mut raw_disks = copies(&config.raw_disks, folder)?;
        let mut extras = config.extras.clone();
        if let Some(vault) = &config.vault {
            let letters = 'a'..='z';
            let letter = letters.into_iter().nth(disks.len() + raw_disks.len());
            extras.vault_disk = letter.map(|letter| format!("/dev/vd{letter}"));
            raw_disks.push(vault.clone());
        }
        // One from the boot before, if there was one.
        let _ = std::fs::remove_file(&initrd);
        initrd::write(&initrd, &extras)?;
        let ports: Vec<u16> = [API_PORT, probe::PORT, crash::PORT, intruder::PORT, rival::PORT]
            .iter()
            .chain(&config.publish)
            .copied()
            .collect();
        let memory_mib = config.memory_mib.unwrap_or(MEMORY_MIB);
        let started = Instant::now();
        let machine = Machine::power_on(
            folder,
            tpm,
            &MachineSpec {
                kernel: &workspace::kernel()?,
                initrd: &initrd,
                cmdline: CMDLINE,
                disks: &disks,
                raw_disks: &raw_disks,
                ports: &ports,
                verifier_port: config.verifier_port,
                memory_mib,
            },
        )?;
        let (folder, boot_time) = (folder.to_path_buf(), Duration::ZERO);
        let profile = if extras.dangerously_software_vault { "developer" } else { "sealed" };
        let mut host = Self { machine, folder, initrd, profile, memory_mib, boot_time };
        host.wait_for_api()?;
        host.boot_time = started.elapsed();
        Ok(host)
    }

    fn wait_for_api(&mut self) -> Result<()> {
        let port = self.machine.port(API_PORT)?;
        let machine = &mut self.machine;
        wait::until("the lab host's API", BOOT_LIMIT, || {
            machine.must_live()?;
            Ok(answers(port).then_some(()))
        })
        .with_context(|| format!("the lab host's console ends:\n{}", self.machine.console_tail()))
    }

    /// The management API's address.
    pub fn api(&self) -> Result<String> {
        Ok(format!("http://127.0.0.1:{}", self.machine.port(API_PORT)?))
    }

    /// A `coffer` that talks to this host's monitor.
    pub fn coffer(&self) -> Result<Coffer> {
        Ok(Coffer::plain().env("COFFER_HOST", self.api()?))
    }

    /// Port on 127.0.0.1 that leads to this port of the host.
    pub fn port(&self, of_host: u16) -> Result<u16> {
        self.machine.port(of_host)
    }

    /// Its event log, as its firmware and kernel wrote it.
    pub fn event_log(&self, into: &Path) -> Result<()> {
        let url = format!("{}/v1/host/event-log", self.api()?);
        let said = process::run(
            Command::new("curl").args(["-sSf", "--max-time", "20", "-o"]).arg(into).arg(&url),
            Duration::from_secs(30),
        )?;
        ensure!(said.ok, "the host's event log cannot be read: {}", said.err);
        Ok(())
    }

    /// Predicts what this host measures: kernel, initrd and command line from the files, the firmware's
    /// registers from a log of one boot of it.
    pub fn predict(&self, name: &str, firmware_log: &Path, into: &Path) -> Result<()> {
        Coffer::plain()
            .run(["host", "reference", "--profile", self.profile, "--name", name], |c| {
                c.arg("--kernel").arg(workspace::kernel().unwrap_or_default());
                c.arg("--initrd").arg(&self.initrd).args(["--cmdline", CMDLINE]);
                c.args(["--qemu-memory", &format!("{}M", self.memory_mib)]);
                c.arg("--event-log").arg(firmware_log).arg("-o").arg(into)
            })?
            .must()
            .map(drop)
    }

    /// Starts an image detached; true once its workload runs.
    pub fn run(&self, image: &str, name: &str, more: &[&str]) -> Result<Launch> {
        let answer =
            self.coffer()?.run(["run", "-d", "--name", name], |c| c.args(more).arg(image))?;
        let inspected = self.inspect(name);
        Ok(Launch { ok: answer.said.ok, message: answer.said.err, vm: inspected.ok() })
    }

    /// What the monitor says of the host.
    pub fn info(&self) -> Result<serde_json::Value> {
        self.coffer()?.run(["host", "info", "--json"], |c| c)?.json()
    }

    /// What the monitor knows of a VM.
    pub fn inspect(&self, name: &str) -> Result<serde_json::Value> {
        self.coffer()?.run(["inspect", "--json", name], |c| c)?.json()
    }

    /// How often a VM's guest was refused what, from the monitor's metrics.
    pub fn refusals(&self, name: &str) -> Result<BTreeMap<String, u64>> {
        let url = format!("{}/metrics", self.api()?);
        let said = process::run(
            Command::new("curl").args(["-sSf", "--max-time", "20"]).arg(&url),
            Duration::from_secs(30),
        )?;
        ensure!(said.ok, "the metrics cannot be read: {}", said.err);
        let of_vm = format!("name=\"{name}\",refusal=\"");
        let lines = said.out.lines().filter_map(|line| line.split_once(&of_vm));
        lines
            .map(|(_, line)| {
                let (refusal, count) = line.split_once("\"} ").context("a line without a count")?;
                Ok((refusal.to_owned(), count.parse()?))
            })
            .collect()
    }

    /// What a VM printed.
    pub fn logs(&self, name: &str) -> Result<String> {
        self.coffer()?.run(["logs", name], |c| c)?.must()
    }

    /// Stops and forgets a VM.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.coffer()?.run(["rm", "--force", name], |c| c)?.must().map(drop)
    }

    /// What the kernel says of the threads of every process of this name.
    pub fn threads(&self, process: &str) -> Result<Vec<BTreeMap<String, String>>> {
        probe::threads(self.machine.port(probe::PORT)?, process)
    }

    /// A second monitor on a copy of its vault, which stands where the host's does.
    pub fn rival(&self, root: rival::Root) -> Result<rival::Rival> {
        rival::Rival::start(self.machine.port(rival::PORT)?, root)
    }

    /// Has a process of the host's, under this uid, try things; what came of each.
    pub fn intrude(&self, uid: u32, attempts: &[Attempt]) -> Result<Vec<Outcome>> {
        intruder::send(self.machine.port(intruder::PORT)?, uid, attempts)
    }

    /// Searches every file of the host.
    pub fn search(&self, needles: &[&Needle]) -> Result<probe::Found> {
        probe::search(self.machine.port(probe::PORT)?, needles)
    }

    /// Has it power itself off, in order, and waits for that.
    pub fn power_off(mut self) -> Result<()> {
        let url = format!("{}/v1/host/power-off", self.api()?);
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "--max-time", "60", "-X", "POST"]).arg(&url);
        let said = process::run(&mut curl, Duration::from_secs(70))?;
        ensure!(said.ok, "the host does not power off: {}", said.err);
        self.machine.wait_off(Duration::from_secs(60))
    }

    /// Everything on this machine that belongs to the host: disks, console, TPM chip aside.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The machine under it.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// The last lines of its console.
    pub fn console_tail(&self) -> String {
        self.machine.console_tail()
    }
}

/// Copies of disk images, as sparse as they are.
fn copies(disks: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>> {
    let copy = |(at, disk): (usize, &PathBuf)| {
        let copy = folder.join(format!("raw{at}.raw"));
        let mut cp = Command::new("cp");
        cp.arg("--sparse=always").arg(disk).arg(&copy);
        let said = process::run(&mut cp, Duration::from_secs(60))?;
        ensure!(said.ok, "cp failed: {}", said.err);
        Ok(copy)
    };
    disks.iter().enumerate().map(copy).collect()
}

/// True if a server answers. QEMU accepts connections long before its guest has a network, and is slow to try
/// again for them: so each try is a short one of its own.
fn answers(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"GET /v1/host HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut start = [0; 5];
        stream.read_exact(&mut start)?;
        Ok(&start == b"HTTP/")
    };
    ask().unwrap_or(false)
}

/// How a launch went.
#[derive(Debug)]
pub struct Launch {
    /// True if the workload runs.
    pub ok: bool,
    /// What `coffer run` said.
    pub message: String,
    /// What the monitor knows, if there is a VM.
    pub vm: Option<serde_json::Value>,
}

impl Launch {
    /// Reason code, from the monitor's record or else from the refusal itself.
    pub fn reason(&self) -> String {
        let recorded = self.vm.as_ref().and_then(|v| v["vm"]["reason"].as_str());
        match recorded {
            Some(reason) => reason.to_owned(),
            None if self.ok => "running".to_owned(),
            None => code_in(&self.message),
        }
    }

    /// The monitor's one clause about it.
    pub fn detail(&self) -> String {
        let recorded = self.vm.as_ref().and_then(|v| v["vm"]["detail"].as_str());
        recorded.unwrap_or_default().to_owned()
    }

    /// Milliseconds from the request to the end of a step.
    pub fn timing(&self, step: &str) -> Option<f64> {
        let timings = self.vm.as_ref()?["vm"]["timings"].as_array()?;
        timings.iter().find(|t| t["step"] == step)?["at_ms"].as_f64()
    }
}

/// The reject code named in a message of `coffer`.
fn code_in(message: &str) -> String {
    message
        .split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
        .find(|word| coffer_attestation::Reject::from_code(word).is_some())
        .unwrap_or("no code")
        .to_owned()
}

/// Packs image layouts into a file system image: read-only, as a host's store disk would be.
fn make_store(images: &Path, store: &Path) -> Result<()> {
    let said = process::run(
        Command::new("mkfs.erofs").args(["-T0", "--all-root"]).arg(store).arg(images),
        Duration::from_secs(60),
    )?;
    ensure!(said.ok, "mkfs.erofs failed: {}", said.err);
    Ok(())
}
