//! What a TPM command costs a guest: straight over swtpm's data channel, through the TPM device, and in a guest.
//!
//! Straight and through the device, in turns, on one swtpm that was measured into as a launch is. The device is the VM
//! process' own; it is driven over its registers and its page of memory as Linux does it, in this process: so what is
//! compared leaves out exits. Those are counted, and what one costs is measured in a guest on a lab host, beside the
//! same commands in the guest and, on the same emulated CPU, without it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use coffer_attestation::Digest;
use coffer_attestation::event_log::vm_launch_log;
use coffer_attestation::tpm::command::{self, Hierarchy};
use coffer_attestation::tpm::pcr::{VM_BANKS, VM_SELECTION};
use coffer_attestation::tpm::{response, template};
use coffer_vtpm::{Swtpm, SwtpmConfig, Vtpm, Walls};
use serde::{Deserialize, Serialize};

use self::linux_crb::LinuxCrb;
use super::vtpm_guest::InGuest;
use super::{Budget, agent, ask, median};
use crate::appliance;
use crate::host::{LabConfig, LabHost};
use crate::host_tpm::HostTpm;
use crate::initrd::Extras;
use crate::workdir::Workdir;
use crate::{story, wait};

// The driver that the device's own tests use, so that there is one of it.
#[path = "../../../../monitor/vmm/tests/linux_crb/mod.rs"]
mod linux_crb;

/// Through the device, against straight to swtpm.
const CRB: Budget = Budget::AtMost(1.2);
/// Commands of each kind and side in a round.
const COMMANDS: usize = 100;
/// Longest a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// PCR 16: of no launch.
const DEBUG_PCR: u8 = 16;

/// Measures.
pub fn run(rounds: u32) -> Result<()> {
    let workdir = Workdir::new()?;
    let costs = without_a_guest(workdir.path(), rounds)?;
    report("this machine, in one process", &costs);
    in_a_guest()?;
    let worst = costs.iter().map(Cost::ratio).fold(0.0, f64::max);
    println!("{}", CRB.figure("vtpm.crb_ratio", worst, "ratio"));
    Ok(())
}

/// The same commands on a lab host, without a guest and in one.
fn in_a_guest() -> Result<()> {
    let workdir = Workdir::new()?;
    let images = workdir.folder("images")?;
    let folder = workdir.folder("image")?;
    appliance::of_this_program(NAME, &["time-tpm"], &folder, &images.join(NAME))?;
    let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
    let config = LabConfig {
        images: Some(images),
        publish: vec![agent::PORT],
        extras: Extras { qemu: true, ..Extras::default() },
        ..LabConfig::default()
    };
    let host = LabHost::boot(&workdir.path().join("host"), &tpm, &config)?;
    let launch = host.run(NAME, NAME, &[])?;
    ensure!(launch.ok, "the guest did not start: {}", launch.message);
    wait::until("the end of the guest", Duration::from_secs(120), || {
        let state = host.inspect(NAME)?["vm"]["state"].clone();
        Ok((state == "stopped" || state == "failed").then_some(()))
    })?;
    let output = host.logs(NAME)?;
    let guest = InGuest::find(&output).with_context(|| format!("the guest printed:\n{output}"))?;
    let told = ask(&host, &agent::Ask::TimeTpm { rounds: 1 })?;
    let costs: Vec<Cost> = serde_json::from_str(&told.words.context("no times")?)?;
    report("a lab host's emulated CPU, in one process", &costs);

    let mut table =
        story::table(&["in a guest on it", "us", "accesses", "their exits, us", "share"]);
    for (cost, (name, took)) in costs.iter().zip(&guest.commands) {
        ensure!(cost.name == *name, "`{name}` stands beside `{}`", cost.name);
        let exits = cost.accesses * guest.exit;
        table.add_row([
            name.clone(),
            format!("{took:.0}"),
            format!("{:.0}", cost.accesses),
            format!("{exits:.0}"),
            format!("{:.2}", exits / took),
        ]);
    }
    println!("{table}\n\none exit, by a port of the VM process: {:.1} us, median\n", guest.exit);
    Ok(())
}

const NAME: &str = "tpm-timer";

/// What one kind of command costs either way, medians in microseconds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The TPM's name of the command.
    name: String,
    /// Over swtpm's data channel.
    straight: f64,
    /// Through the device.
    device: f64,
    /// Register accesses of one command, the most common number.
    accesses: f64,
}

impl Cost {
    fn ratio(&self) -> f64 {
        self.device / self.straight
    }
}

/// Both sides in this process, in turns; swtpm's state goes into the folder.
pub fn without_a_guest(folder: &Path, rounds: u32) -> Result<Vec<Cost>> {
    let mut tpm = Tpm::make(folder)?;
    let commands = commands(|command| tpm.straight(command))?;
    let mut samples = vec![Samples::default(); commands.len()];
    for _ in 0..rounds.max(1) {
        for ((_, command), samples) in commands.iter().zip(&mut samples) {
            for _ in 0..COMMANDS {
                samples.straight.push(timed(|| tpm.straight(command))?);
                let before = tpm.driver.accesses;
                samples.device.push(timed(|| tpm.through_device(command))?);
                samples.accesses.push(f64::from(tpm.driver.accesses - before));
            }
        }
    }
    let cost = |((name, _), samples): (&(&str, Vec<u8>), Samples)| Cost {
        name: (*name).to_owned(),
        straight: median(samples.straight.into_iter()),
        device: median(samples.device.into_iter()),
        accesses: median(samples.accesses.into_iter()),
    };
    Ok(commands.iter().zip(samples).map(cost).collect())
}

#[derive(Clone, Default)]
struct Samples {
    straight: Vec<f64>,
    device: Vec<f64>,
    accesses: Vec<f64>,
}

/// Microseconds of a command that succeeds.
pub fn timed(mut send: impl FnMut() -> Result<Vec<u8>>) -> Result<f64> {
    let started = Instant::now();
    let answer = send()?;
    let took = started.elapsed();
    response::ok(&answer)?;
    Ok(took.as_secs_f64() * 1e6)
}

/// The commands of the figure. The quote's key is of the template that every vTPM's attestation key is of.
pub fn commands(
    mut send: impl FnMut(&[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let made = send(&command::create_primary(Hierarchy::Endorsement, &template::vm_ak()))?;
    let (key, _) = response::create_primary(&made)?;
    let digests = VM_BANKS.map(|bank| bank.digest(&[b"an event"]));
    Ok(vec![
        ("GetRandom", command::get_random(32)),
        ("PCR_Extend", command::pcr_extend(DEBUG_PCR, &digests)),
        ("Quote", command::quote(key, &[7; 32], VM_SELECTION)),
    ])
}

/// A vTPM as a guest gets it, with both ways to it.
struct Tpm {
    channel: UnixStream,
    driver: LinuxCrb,
    /// swtpm ends with it.
    _vtpm: Vtpm,
}

impl Tpm {
    fn make(folder: &Path) -> Result<Self> {
        let config = SwtpmConfig {
            restored: None,
            program: "/usr/bin/swtpm".into(),
            state: folder.join("vtpm"),
            walls: Walls::DangerouslyNone,
        };
        let keyed = Swtpm::spawn(&config)?.initialise()?.make_keys()?;
        let d = Digest::ZERO;
        let events = vm_launch_log("bench", &d, &d, &d, &d, b"launch record").events;
        let measured = keyed.certify(&[0x30; 600])?.measure(&events, b"launch record")?;
        let (vtpm, channel) = measured.seal()?;
        let straight = UnixStream::from(channel.try_clone()?);
        Ok(Self { channel: straight, driver: LinuxCrb::new(channel, LIMIT)?, _vtpm: vtpm })
    }

    /// As whoever holds the channel would: one write, header, rest.
    fn straight(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        self.channel.write_all(command)?;
        let mut answer = vec![0; 10];
        self.channel.read_exact(&mut answer)?;
        let size = answer.get(2..6).and_then(|s| s.try_into().ok()).map_or(0, u32::from_be_bytes);
        ensure!((10..=4096).contains(&size), "swtpm answers with {size} bytes");
        answer.resize(size as usize, 0);
        self.channel.read_exact(answer.get_mut(10..).unwrap_or_default())?;
        Ok(answer)
    }

    fn through_device(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        match self.driver.transmit(command, LIMIT) {
            Ok(answer) => Ok(answer),
            Err(failed) => bail!("the device failed: {failed:?}"),
        }
    }
}

fn report(whose: &str, costs: &[Cost]) {
    let mut table = story::table(&[
        whose,
        "straight to swtpm, us",
        "through the device, us",
        "ratio",
        "register accesses",
    ]);
    for cost in costs {
        table.add_row([
            cost.name.clone(),
            format!("{:.0}", cost.straight),
            format!("{:.0}", cost.device),
            format!("{:.3}", cost.ratio()),
            format!("{:.0}", cost.accesses),
        ]);
    }
    println!("{table}\n");
}
