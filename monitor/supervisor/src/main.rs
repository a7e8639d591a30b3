//! `coffer-monitor`: serves the management API, is PID 1 of a sealed host, or keeps the host's TPM.
#![forbid(unsafe_code)]

use std::{os::fd::AsFd, os::unix::net::UnixStream, process::ExitCode};

use clap::{Parser, Subcommand};
use coffer_host_tpm::{HostTpmError, Tcti, keeper};
use coffer_monitor::config::{ConfigError, ServeArgs};
use coffer_monitor::serve::ServeError;
use coffer_monitor::{init, serve};

#[derive(Parser)]
#[command(name = "coffer-monitor", version, about = "Launches and attests sealed VMs on this host")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the management API.
    Serve(Box<ServeArgs>),
    /// Be PID 1 of a sealed host, as its /etc/coffer/host.json says.
    Init,
    /// Keep the host's TPM; started by `serve` with a socket as standard input.
    #[command(hide = true)]
    HostTpm {
        #[arg(long)]
        tcti: Tcti,
    },
}

fn main() -> ExitCode {
    // The kernel starts PID 1 as `/init` and hands it words of its command line: none of them is for us.
    let command = if std::process::id() == 1 { Command::Init } else { Arguments::parse().command };
    let result = match command {
        Command::Serve(args) => {
            args.resolve().map_err(anyhow::Error::from).and_then(|config| Ok(serve::run(config)?))
        }
        Command::Init => init::run(),
        Command::HostTpm { tcti } => keep_host_tpm(&tcti),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coffer-monitor: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn keep_host_tpm(tcti: &Tcti) -> anyhow::Result<()> {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    Ok(keeper::serve(&stream, tcti)?)
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error
        .downcast_ref::<ServeError>()
        .map(ServeError::hint)
        .or_else(|| error.downcast_ref::<ConfigError>().map(ConfigError::hint))
        .or_else(|| error.downcast_ref::<HostTpmError>().map(HostTpmError::hint))
}
