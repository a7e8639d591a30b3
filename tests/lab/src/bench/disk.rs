//! What disks cost: beside their cryptography alone, in this process; and in a lab host, how long a 1 GiB appliance takes to
//! its workload by how its disk is verified, and what PostgreSQL makes of an encrypted volume beside dm-crypt.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::Digest;
use coffer_image::verity::BLOCK;
use serde_json::{Value, json};

use super::api::{Until, WORKLOAD};
use super::{Budget, agent, ask, median};
use crate::appliance::{self, Image, copy_tree};
use crate::host::{LabConfig, LabHost};
use crate::host_tpm::HostTpm;
use crate::initrd::Extras;
use crate::workdir::Workdir;
use crate::{database, process, wait, workspace};

/// Verified as it is read, against not at all.
const OPTIMISTIC: Budget = Budget::AtMost(1.05);
/// An encrypted volume, each flush of which moves a counter of the TPM, against dm-crypt and dm-integrity, which anybody can
/// put back to an earlier state.
const DMCRYPT: Budget = Budget::AtLeast(0.8);
/// Beyond booting raw, and reading and hashing all of it, verifying ahead may take a tenth.
const AHEAD_SLACK: f64 = 1.1;
/// Launches of a raw and of an optimistic one in a round: one takes some seconds, of which a machine may take one more.
const PAIRS: usize = 6;
/// Bytes that nothing reads, which make the appliance as large as it is.
const BALLAST: u64 = 1 << 30;
/// VMs are given the disk behind the image store.
const GIVEN: &str = "/dev/vdb";
const MEMORY_MIB: u64 = 512;
/// Of the volumes that hold a database, and of the file system that holds the volumes.
const VOLUME: &str = "512M";
const VAULT: &str = "2G";
/// Beside the volumes, with room for tags beside the same bytes.
const CRYPT: &str = "/var/lib/coffer/vault/crypt.luks";
const CRYPT_BYTES: u64 = 640 << 20;
/// A cluster is made, loaded and asked on an emulated CPU in an emulated CPU.
const DATABASE: Duration = Duration::from_secs(900);
const NAME: &str = "bench";

/// Measures.
pub fn run(rounds: u32) -> Result<()> {
    print!("{}", coffer_disk::bench::run().context("the disk in memory fails")?);
    let database = databases()?;
    let boot = boot(rounds.max(1))?;
    boot.report();
    database.report();
    Ok(())
}

/// ms to the workload.
#[derive(Default)]
struct Boot {
    raw: Vec<f64>,
    optimistic: Vec<f64>,
    ahead: Vec<f64>,
    /// Reading and hashing the whole disk on the same host.
    hashing: Vec<f64>,
}

/// An open box each time, of one kernel, initrd and root file system; page cache dropped before each.
fn boot(rounds: u32) -> Result<Boot> {
    let workdir = Workdir::new()?;
    let images = workdir.folder("images")?;
    let root = workdir.path().join("rootfs");
    copy_tree(&workspace::rootfs("tools")?, &root)?;
    let mut random = File::open("/dev/urandom")?.take(BALLAST);
    io::copy(&mut random, &mut File::create(root.join("ballast"))?)?;
    let script = format!("/bin/busybox echo {WORKLOAD}; exec /bin/busybox sleep 600");
    let recipe = json!({
        "name": "large",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script] },
        "network": { "mode": "none" },
    });
    let image = appliance::build(&recipe, &root, &images.join("large"))?;
    let disk = workdir.path().join("root.raw");
    image.unverified(&images.join("raw"), &disk)?;
    std::fs::remove_dir_all(&root)?;

    let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
    let config = LabConfig {
        images: Some(images),
        raw_disks: vec![disk],
        publish: vec![agent::PORT],
        extras: Extras { qemu: true, ..Extras::default() },
        ..LabConfig::default()
    };
    let host = LabHost::boot(&workdir.path().join("host"), &tpm, &config)?;
    agent_of(&host)?;
    let request = |image: &str, more: Value| {
        let mut request =
            json!({ "image": image, "name": NAME, "box": "open", "memory_mib": MEMORY_MIB });
        if let (Some(all), Some(more)) = (request.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        request
    };
    let given = json!({ "disks": [{ "name": "root", "path": GIVEN }] });
    let (raw, optimistic) = (request("raw", given), request("large", json!({})));
    let ahead = request("large", json!({ "verify_ahead": true }));
    let mut boot = Boot::default();
    // Whoever is first loads the kernel for all.
    timed(&host, &optimistic)?;
    for round in 1..=rounds {
        for pair in 0..PAIRS {
            // Each as often first as the other.
            let first = (pair % 2 == 0).then(|| timed(&host, &raw)).transpose()?;
            boot.optimistic.push(timed(&host, &optimistic)?);
            boot.raw.push(first.map_or_else(|| timed(&host, &raw), Ok)?);
        }
        boot.ahead.push(timed(&host, &ahead)?);
        ask(&host, &agent::Ask::DropCaches)?;
        let hashed = ask(&host, &agent::Ask::Hash { path: GIVEN.into() })?;
        boot.hashing.push(hashed.ms.context("the hashing was not timed")?);
        println!("round {round}: {}", boot.said());
    }
    Ok(boot)
}

/// ms from request to workload, with nothing in the page cache and vTPMs ready.
fn timed(host: &LabHost, request: &Value) -> Result<f64> {
    wait::until("the vTPMs made ahead", Duration::from_secs(120), || {
        Ok((host.info()?["ready_vtpms"] == super::READY_VTPMS).then_some(()))
    })
    .with_context(|| format!("the lab host's console ends:\n{}", host.console_tail()))?;
    ask(host, &agent::Ask::DropCaches)?;
    let run = agent::Ask::Run { request: request.clone(), until: Until::Workload };
    let told = ask(host, &run)?;
    host.remove(NAME)?;
    told.ms.context("the launch was not timed")
}

impl Boot {
    /// Medians: raw, optimistic, ahead, reading and hashing.
    fn medians(&self) -> [f64; 4] {
        let all = [&self.raw, &self.optimistic, &self.ahead, &self.hashing];
        all.map(|times| median(times.iter().copied()))
    }

    fn said(&self) -> String {
        let [raw, optimistic, ahead, hashing] = self.medians();
        format!(
            "to the workload raw {raw:.0} ms, optimistic {optimistic:.0} ms ({} each), ahead {ahead:.0} ms; reading and \
             hashing all of it {hashing:.0} ms",
            self.raw.len()
        )
    }

    fn report(&self) {
        let [raw, optimistic, ahead, hashing] = self.medians();
        let slack = Budget::AtMost((raw + hashing) / raw * AHEAD_SLACK);
        println!("{}", OPTIMISTIC.figure("disk.boot_optimistic_ratio", optimistic / raw, "ratio"));
        println!("{}", slack.figure("disk.boot_ahead_ratio", ahead / raw, "ratio"));
    }
}

/// Transactions a second of pgbench.
struct Databases {
    raw: f64,
    encrypted: f64,
    crypt: f64,
}

/// PostgreSQL on a raw volume, on an encrypted one, and on dm-crypt over dm-integrity: each a file of one file system.
fn databases() -> Result<Databases> {
    let workdir = Workdir::new()?;
    let images = workdir.folder("images")?;
    let root = workdir.path().join("rootfs");
    database::bench_rootfs(&root)?;
    let layout = images.join("encrypted");
    let image = appliance::build(&database::bench_recipe(), &root, &layout)?;
    let raw = Image { layout: images.join("raw"), id: image.id.clone() };
    copy_tree(&image.layout, &raw.layout)?;
    raw.redescribed(|image| {
        image["box"] = "open".into();
        image["disks"][1] = json!({ "kind": "raw", "name": database::VOLUME });
    })?;
    let vault = workdir.path().join("vault.raw");
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    let made = process::run(mkfs.arg("-q").arg(&vault).arg(VAULT), Duration::from_secs(60))?;
    ensure!(made.ok, "mkfs.ext4 failed: {}", made.err);

    let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
    let config = LabConfig {
        images: Some(images),
        vault: Some(vault),
        publish: vec![agent::PORT],
        extras: Extras { qemu: true, crypt: true, ..Extras::default() },
        ..LabConfig::default()
    };
    let host = LabHost::boot(&workdir.path().join("host"), &tpm, &config)?;
    agent_of(&host)?;
    for kind in ["raw", "encrypted"] {
        let words = [kind, "--kind", kind, "--size", VOLUME, "--for", "open"];
        host.coffer()?.run(["volume", "create"], |c| c.args(words))?.must()?;
    }
    let opened = ask(&host, &agent::Ask::Crypt { file: CRYPT.into(), bytes: CRYPT_BYTES })?;
    let device = opened.words.context("dm-crypt has no device")?;
    let of = |what: &str, image: &str, disk: [&str; 2]| -> Result<f64> {
        let given = format!("{}={}", database::VOLUME, disk[1]);
        let tps = transactions(&host, image, &[disk[0], &given])?;
        println!("PostgreSQL on {what}: {tps:.2} transactions/s");
        Ok(tps)
    };
    Ok(Databases {
        encrypted: of("an encrypted volume", "encrypted", ["--volume", "encrypted"])?,
        raw: of("a raw volume", "raw", ["--volume", "raw"])?,
        crypt: of("dm-crypt over dm-integrity (AES-GCM)", "raw", ["--disk", &device])?,
    })
}

/// Median of what pgbench said in an open box.
fn transactions(host: &LabHost, image: &str, disk: &[&str]) -> Result<f64> {
    let launch = host.run(image, NAME, &[&["--open"], disk].concat())?;
    ensure!(launch.ok, "the database does not start: {}", launch.message);
    wait::until("the end of pgbench", DATABASE, || {
        let state = host.inspect(NAME)?["vm"]["state"].clone();
        Ok((state == "stopped" || state == "failed").then_some(()))
    })?;
    let log = host.logs(NAME)?;
    host.remove(NAME)?;
    let said = log.lines().filter_map(|line| line.trim().strip_prefix("tps = ")?.split(' ').next());
    let tps: Vec<f64> = said.filter_map(|number| number.parse().ok()).collect();
    ensure!(tps.len() == database::BENCH_ROUNDS, "pgbench did not finish:\n{log}");
    Ok(median(tps.into_iter()))
}

impl Databases {
    fn report(&self) {
        let Self { raw, encrypted, crypt } = self;
        println!(
            "of raw: encrypted {:.3}, dm-crypt over dm-integrity {:.3}",
            encrypted / raw,
            crypt / raw
        );
        println!("{}", DMCRYPT.figure("disk.dmcrypt_ratio", encrypted / crypt, "ratio"));
    }
}

/// The agent starts when the API is up, so it can be a moment later.
fn agent_of(host: &LabHost) -> Result<()> {
    wait::until("the benchmark's agent", Duration::from_secs(20), || {
        Ok(ask(host, &agent::Ask::DropCaches).ok())
    })
    .map(drop)
}

/// On the lab host: the loop that verifying ahead is held against.
pub fn read_and_hash(path: &Path) -> io::Result<Duration> {
    let started = Instant::now();
    let (mut file, mut piece) = (File::open(path)?, vec![0; 256 * BLOCK]);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(started.elapsed());
        }
        for block in piece.get(..read).unwrap_or_default().chunks(BLOCK) {
            std::hint::black_box(Digest::of(&[block]));
        }
    }
}

/// On the lab host: makes and opens a disk in a file; the device that is opened.
pub fn crypt(file: &str, bytes: u64) -> io::Result<String> {
    File::create_new(file)?.set_len(bytes)?;
    let format = ["luksFormat", "-q", "--type", "luks2", "--cipher", "aes-gcm-random"];
    let integrity = ["--integrity", "aead", "--key-size", "256", "--sector-size", "4096"];
    // What guards the key is not measured.
    let slot = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-"];
    cryptsetup(&[&format[..], &integrity, &slot, &[file]].concat())?;
    cryptsetup(&["open", "--key-file", "-", file, NAME])?;
    for entry in std::fs::read_dir("/sys/class/block")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("dm/name")).unwrap_or_default();
        if name.trim_end() == NAME {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Err(io::Error::other("cryptsetup opened nothing"))
}

fn cryptsetup(words: &[&str]) -> io::Result<()> {
    let mut command = Command::new("/usr/sbin/cryptsetup");
    // Nobody on a lab host answers for udev.
    command.args(words).env("DM_DISABLE_UDEV", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().ok_or_else(|| io::Error::other("no stdin"))?.write_all(&[7; 32])?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("cryptsetup: {}", said.trim())))
}
