//! `coffer-lab`: the demo, the benchmarks, and the small programs a lab needs beside it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coffer_lab::record::{self, BootPath};
use coffer_lab::{bench, collapse, demo, forward, guard, intruder, probe, recording, second};

#[derive(Parser)]
#[command(name = "coffer-lab", version, about = "Coffer's lab: usually started by `cargo xtask`")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell the whole story, then every refusal
    Demo,
    /// Measure
    Bench {
        /// Which figure
        name: String,
        /// Rounds of each side
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Boot a host, let an appliance attest, and keep the evidence its verifier accepted
    RecordEvidence {
        /// Folder for `evidence.cmw` and `case.json`
        folder: PathBuf,
    },
    /// Record event logs and quotes of several ways to boot
    RecordBoots {
        /// Folder that gets a folder for each
        into: PathBuf,
        /// Which ones; all, if none is named
        #[arg(value_enum)]
        paths: Vec<BootPath>,
    },
    /// Print a recording of this machine; runs in a guest
    #[command(hide = true)]
    RecordInside {
        /// Qualifying data of the quote, in hexadecimal
        nonce: String,
    },
    /// Time TPM commands and exits; runs in a guest
    #[command(hide = true)]
    TimeTpm,
    /// End what a lab left behind; reads its orders from standard input
    #[command(hide = true)]
    Guard,
    /// Boot a host, and panic once standard input ends
    #[command(hide = true)]
    Collapse,
    /// Join standard input and output to a port on 127.0.0.1
    #[command(hide = true)]
    Forward {
        /// Port
        port: u16,
    },
    /// Show every file of a lab host; runs on the host
    #[command(hide = true)]
    Probe,
    /// Become a second monitor; runs on the host
    #[command(hide = true)]
    SecondMonitor {
        /// Flags of `coffer-monitor serve` more
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Make the attempts read from standard input; runs on the host
    #[command(hide = true)]
    Intrude,
    /// Wait to be looked at, until standard input ends
    #[command(hide = true)]
    GuineaPig,
    /// Note a core that the kernel sends; runs on the host
    #[command(hide = true)]
    CatchCore {
        /// Whose
        process: u32,
    },
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        if Path::new(record::inside::ORDERS).exists() {
            record::inside::as_init();
        }
        probe::become_monitor();
    }
    let done = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Bench { name, rounds } => bench::run(&name, rounds),
        Command::RecordEvidence { folder } => recording::record(&folder),
        Command::RecordBoots { into, paths } => record::run(&into, &paths),
        Command::RecordInside { nonce } => record::inside::as_workload(&nonce),
        Command::TimeTpm => bench::vtpm_guest::run(),
        Command::Guard => {
            guard::run_on_stdin();
            Ok(())
        }
        Command::Collapse => collapse::run(),
        Command::Forward { port } => forward::run(port),
        Command::Probe => probe::serve(),
        Command::SecondMonitor { flags } => second::become_second(&flags),
        Command::Intrude => intruder::intrude(),
        Command::GuineaPig => {
            println!("here");
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).map_err(Into::into)
        }
        Command::CatchCore { process } => intruder::catch_core(process),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
