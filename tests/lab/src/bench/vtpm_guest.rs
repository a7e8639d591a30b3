//! The workload of a guest on a lab host: what the kernel's driver takes for each TPM command, and what an exit costs.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::median;
use super::vtpm::{commands, timed};

/// The device without the kernel's resource manager, which would add commands of its own.
const TPM: &str = "/dev/tpm0";
/// The kernel reads the modem status of the one serial port there is, by one `in`, whenever this is read, and puts some
/// lines together: so what is taken for an exit is at most that much too long.
const PORTS: &str = "/proc/tty/driver/serial";
/// Line before what it tells.
const MARK: &str = "COFFER TPM TIMES ";
const COMMANDS: usize = 50;
const ACCESSES: usize = 500;
const ANSWER_MAX: usize = 4096;

/// Medians, microseconds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InGuest {
    /// Commands by name.
    pub commands: Vec<(String, f64)>,
    /// One register access: out of the guest, into the VM process, and back.
    pub exit: f64,
}

impl InGuest {
    /// Finds it among whatever else a guest printed.
    pub fn find(output: &str) -> Result<Self> {
        let line = output.lines().find_map(|line| line.trim_end().strip_prefix(MARK));
        serde_json::from_str(line.context("it told nothing")?)
            .context("what it told does not parse")
    }
}

/// Measures, and prints it.
pub fn run() -> Result<()> {
    let mut tpm = OpenOptions::new().read(true).write(true).open(TPM)?;
    let commands = commands(|command| send(&mut tpm, command))?;
    let mut times = Vec::new();
    for (name, command) in &commands {
        let samples = (0..COMMANDS).map(|_| timed(|| send(&mut tpm, command)));
        times.push(((*name).to_owned(), median(samples.collect::<Result<Vec<_>>>()?.into_iter())));
    }
    let access = || -> Result<f64> {
        let started = std::time::Instant::now();
        let said = std::fs::read_to_string(PORTS).with_context(|| format!("`{PORTS}`"))?;
        let took = started.elapsed();
        let known = said.lines().filter(|line| line.contains("uart:16550A")).count();
        ensure!(known == 1, "the guest has {known} serial ports:\n{said}");
        Ok(took.as_secs_f64() * 1e6)
    };
    let accesses = (0..ACCESSES).map(|_| access()).collect::<Result<Vec<_>>>()?;
    let told = InGuest { commands: times, exit: median(accesses.into_iter()) };
    println!("{MARK}{}", serde_json::to_string(&told)?);
    Ok(())
}

/// The driver takes a whole command and gives a whole answer.
fn send(tpm: &mut File, command: &[u8]) -> Result<Vec<u8>> {
    tpm.write_all(command)?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = tpm.read(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}
