//! The flags, as typed: what clap checks is only their shape.
//!
//! Each command family resolves its part into a checked plan before it does anything. Nothing here is
//! trusted, and nothing here touches the machine.

mod host;
mod image;
mod tpm;
mod verifier;
mod vm;
mod volume;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use host::*;
pub use image::*;
pub use tpm::*;
pub use verifier::*;
pub use vm::*;
pub use volume::*;

/// Sealed appliance VMs on any Linux machine with KVM and a TPM, and proof of what runs where.
#[derive(Debug, Parser)]
#[command(
    name = "coffer",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  coffer doctor
  coffer image build recipe.json --rootfs rootfs/ --kernel linux-image.deb -o site.image
  coffer run -d -p 8443:443 site.image

Exit codes:
  0  done
  1  failed or refused; `error:` says what is wrong, `hint:` what to try
  2  wrong usage"
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build, show and check appliance images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Enrol this host with a verifier and predict what it will measure
    #[command(subcommand)]
    Host(HostCommand),
    /// Start an image as a VM
    Run(RunArgs),
    /// List VMs
    Ps(PsArgs),
    /// Show what a VM printed
    Logs(LogsArgs),
    /// Speak with an open box over its serial port
    Console(ConsoleArgs),
    /// Stop a VM in order
    Stop(StopArgs),
    /// Let a VM stand still
    Pause(PauseArgs),
    /// Let a VM go on that stands still
    Resume(ResumeArgs),
    /// End a VM and launch it again, measured anew
    #[command(visible_alias = "restart")]
    Reset(ResetArgs),
    /// Forget a VM that has ended
    Rm(RmArgs),
    /// Show a VM and what was measured into its vTPM
    Inspect(InspectArgs),
    /// Show what happens to VMs, as it happens
    Events(EventsArgs),
    /// Show what VMs use
    Stats(StatsArgs),
    /// Keep data that outlives VMs
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Tend encrypted volumes: check, repair, rekey, grow, back up
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Set up, run and ask a verifier
    #[command(subcommand)]
    Verifier(VerifierCommand),
    /// Keep secrets at a verifier
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Judge TPM quotes with the files of tpm2-tools
    #[command(subcommand)]
    Quote(QuoteCommand),
    /// Show, replay and explain event logs of any machine
    #[command(subcommand)]
    Eventlog(EventLogCommand),
    /// Look into EK certificates and make credentials
    #[command(subcommand)]
    Ek(EkCommand),
    /// Show evidence and explain what it proves
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Print the management API's OpenAPI description
    Openapi(OpenapiArgs),
    /// Say whether this machine can run closed boxes, and what is missing
    Doctor(DoctorArgs),
    /// Run the corpus of forged and valid evidence against this build or another verifier
    Conformance(ConformanceArgs),
}

/// Where the monitor listens.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Monitor to talk to
    #[arg(
        long = "host",
        value_name = "unix:PATH|https://ADDR|http://ADDR",
        env = "COFFER_HOST",
        hide_env_values = true,
        default_value = "unix:/run/coffer/monitor.sock"
    )]
    pub endpoint: String,
    /// CA of an https:// monitor, PEM; the only one trusted
    #[arg(long, value_name = "FILE", env = "COFFER_TLS_CA", hide_env_values = true)]
    pub tls_ca: Option<PathBuf>,
    /// Certificate to show to it, PEM
    #[arg(long, value_name = "FILE", env = "COFFER_TLS_CERT", hide_env_values = true)]
    pub tls_cert: Option<PathBuf>,
    /// Key of that certificate, PEM
    #[arg(long, value_name = "FILE", env = "COFFER_TLS_KEY", hide_env_values = true)]
    pub tls_key: Option<PathBuf>,
}

/// Which verifier, and what makes it the right one.
#[derive(Debug, Args)]
pub struct VerifierArgs {
    /// Verifier to talk to
    #[arg(long = "verifier", value_name = "URL", env = "COFFER_VERIFIER", hide_env_values = true)]
    pub url: String,
    /// CA certificate of the verifier, PEM; the only one trusted
    #[arg(long, value_name = "FILE", env = "COFFER_CA", hide_env_values = true)]
    pub ca: PathBuf,
}

/// A verifier and the right to administer it.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The verifier
    #[command(flatten)]
    pub verifier: VerifierArgs,
    /// File with the admin token that `coffer verifier init` made
    #[arg(long, value_name = "FILE", env = "COFFER_ADMIN_TOKEN_FILE", hide_env_values = true)]
    pub admin_token_file: PathBuf,
}

/// `coffer doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer doctor
  coffer doctor --json

Exits 1 if a closed box cannot run here.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer conformance`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer conformance
  coffer conformance --surface quote --adapter tests/conformance/adapters/tpm2_checkquote

An adapter reads one case as JSON on standard input and answers `{\"verdict\":\"accept\"|\"reject\"|\"unsupported\"}`.
Exit code 0 only if every case that was judged ended as expected.")]
pub struct ConformanceArgs {
    /// Folder of the corpus; the installed one, or the source tree's, if absent
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Command line of another verifier's adapter
    #[arg(long, value_name = "COMMAND")]
    pub adapter: Option<String>,
    /// Only cases of these surfaces
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub surface: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
