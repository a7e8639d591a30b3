//! `cargo xtask`: everything a developer runs, set-up included.
//!
//! ```text
//! demo  = setup + the story, in the lab        test  = setup + format, lints, every test
//! bench = setup + one measurement              check = what a reviewer's machine would say, no lab
//! setup = Debian packages, guest kernel, root file systems, build
//! record = setup + boot loaders + recordings that tests judge
//! ```
//! Trusts apt's signed indexes for what it downloads. Writes below `target/` and `.coffer/` of the checkout
//! and, unless `--no-install` is given, installs Debian packages; nothing else on the machine changes.
#![forbid(unsafe_code)]

mod build;
mod check;
mod command;
mod debs;
mod fuzz;
mod openapi;
mod packages;
mod progress;
mod room;
mod run;
mod setup;
mod stock_disk;
mod tests;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::progress::Progress;
use crate::workspace::Workspace;

/// Set up, build, test, show and measure Coffer.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, disable_help_subcommand = true)]
struct Cli {
    /// Install nothing: check what is there, name what is missing, and stop if something is
    #[arg(long, global = true)]
    no_install: bool,
    /// What to do
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Tell the whole story with a real appliance, then every refusal
    Demo,
    /// Format, lints and every test, the lab's included
    Test {
        /// Leave out what boots a lab host
        #[arg(long)]
        no_lab: bool,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Format, lints, dependency rules and the house's own small lints
    Check,
    /// Measure; prints one `figure` line per number
    Bench {
        /// Which one
        #[arg(default_value = "launch", value_parser = ["launch", "batch", "density", "disk", "vtpm", "verify", "corpus"])]
        name: String,
        /// Rounds of each side
        #[arg(long, default_value_t = 5)]
        rounds: u32,
    },
    /// Every parser under libFuzzer; stops at the first finding of a target
    Fuzz {
        /// Only this target
        target: Option<String>,
        /// Executions of each target; the documented long run is 10000000
        #[arg(long, default_value_t = fuzz::SHORT_RUNS)]
        runs: u64,
    },
    /// Record anew what tests judge
    Record {
        /// What
        #[command(subcommand)]
        what: Recorded,
    },
    /// Write the management API's description, monitor/wire/openapi.json, anew from the sources
    Openapi,
    /// Packages, guest kernel, root file systems and build; nothing is run
    Setup,
}

#[derive(Debug, Subcommand)]
enum Recorded {
    /// Event logs and quotes of several ways to boot, in the lab
    Boots {
        /// Which ones; all, if none is named
        paths: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let workspace = Workspace::find()?;
    let mut progress = Progress::new();
    let done = match &cli.task {
        Task::Setup => setup::everything(&workspace, &mut progress, cli.no_install),
        Task::Demo => run::demo(&workspace, &mut progress, cli.no_install),
        Task::Bench { name, rounds } => {
            run::bench(&workspace, &mut progress, cli.no_install, name, *rounds)
        }
        Task::Record { what: Recorded::Boots { paths } } => {
            run::record_boots(&workspace, &mut progress, cli.no_install, paths)
        }
        Task::Test { no_lab, filter } => {
            tests::all(&workspace, &mut progress, cli.no_install, !no_lab, filter.as_deref())
        }
        Task::Fuzz { target, runs } => {
            fuzz::run(&workspace, &mut progress, cli.no_install, *runs, target.as_deref())
        }
        Task::Openapi => openapi::write(&workspace),
        Task::Check => check::all(&workspace, &mut progress, cli.no_install),
    };
    progress.summary(done.is_ok());
    done
}
