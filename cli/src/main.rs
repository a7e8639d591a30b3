//! `coffer`: one command line over images, hosts, VMs, verifiers and secrets.
//!
//! It is a client of the monitor and the verifier and trusts neither with more than SPEC section 2 does;
//! as a courier (`host enroll`) it is itself trusted with nothing. It refuses what it cannot check by
//! its flags before anything is done. Every failure is two lines: what is wrong, what to try.
#![forbid(unsafe_code)]

mod args;
mod backup;
mod conformance;
mod console;
mod disk;
mod doctor;
mod ek;
mod error;
mod eventlog;
mod evidence;
mod files;
mod fleet;
mod host;
mod image;
mod key_file;
mod monitor_client;
mod monitor_tls;
mod network;
mod output;
mod owner;
mod permit;
mod point;
mod quote;
mod secret;
mod serve;
mod size;
mod tpm2_files;
mod usage;
mod userspace_log;
mod verifier;
mod verifier_client;
mod vm;
mod volume;
mod watch;
mod when;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use error::Error;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage::report(&e),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::note(e.two_lines());
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Image(command) => image::run(command),
        Command::Host(command) => host::run(command),
        Command::Run(args) => vm::run(args),
        Command::Ps(args) => vm::ps(args),
        Command::Logs(args) => vm::logs(args),
        Command::Console(args) => console::run(args),
        Command::Stop(args) => vm::stop(args),
        Command::Pause(args) => vm::pause(args),
        Command::Resume(args) => vm::resume(args),
        Command::Reset(args) => vm::reset(args),
        Command::Rm(args) => vm::rm(args),
        Command::Inspect(args) => vm::inspect(args),
        Command::Events(args) => watch::events(args),
        Command::Stats(args) => watch::stats(args),
        Command::Openapi(_) => output::text(coffer_monitor_wire::api::OPENAPI),
        Command::Volume(command) => volume::run(command),
        Command::Disk(command) => disk::run(command),
        Command::Verifier(command) => verifier::run(command),
        Command::Secret(command) => secret::run(command),
        Command::Quote(command) => quote::run(command),
        Command::Eventlog(command) => eventlog::run(command),
        Command::Ek(command) => ek::run(command),
        Command::Evidence(command) => evidence::run(command),
        Command::Doctor(args) => doctor::run(args),
        Command::Conformance(args) => conformance::run(args),
    }
}
