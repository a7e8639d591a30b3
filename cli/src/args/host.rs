//! `coffer host`: enrolment and reference values of this host, and its vault.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use coffer_attestation::appraisal::HostProfile;

use super::{MonitorArgs, VerifierArgs};

/// `coffer host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Make this host's TPM known to a verifier
    Enroll(EnrollArgs),
    /// Predict, without booting, what a host will measure
    Reference(ReferenceArgs),
    /// Show the host behind the monitor
    Info(HostInfoArgs),
    /// Print the key that backups of volumes for this host are sealed to
    TransportKey(HostTransportKeyArgs),
    /// Show the vault: its id, and what its key is sealed to
    Vault(HostVaultArgs),
    /// Seal the vault also to the host as an upgrade will make it
    Reseal(HostResealArgs),
    /// Let the host join a fleet, whose hosts open what is sealed for it
    Join(HostJoinArgs),
}

/// `coffer host enroll`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host enroll --name rack7 --verifier https://verifier.example:8443 --ca ca.pem --token 6b1f...
  coffer host enroll --name rack7 --verifier https://verifier.example:8443 --ca ca.pem --admin-token-file admin-token

The command only carries messages between the monitor and the verifier; it cannot enrol another TPM than the host's.")]
pub struct EnrollArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Name the host shall have at the verifier
    #[arg(long)]
    pub name: String,
    /// The verifier
    #[command(flatten)]
    pub verifier: VerifierArgs,
    /// File with the admin token; a one-time token is made with it
    #[arg(
        long,
        value_name = "FILE",
        env = "COFFER_ADMIN_TOKEN_FILE",
        hide_env_values = true,
        required_unless_present = "token"
    )]
    pub admin_token_file: Option<PathBuf>,
    /// One-time token that the verifier's operator gave out (`coffer verifier token`)
    #[arg(long, env = "COFFER_ENROLL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer host reference`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host reference --name rack-2026 --kernel vmlinuz --initrd host.cpio --cmdline 'quiet' \\
      --event-log golden.bin --profile sealed -o rack-2026.json
  coffer verifier trust-host rack-2026.json

Kernel, initrd and command line are predicted from the files; only the firmware's PCRs come from the golden log.
A host that claims another profile or monitor svn than its reference value states is refused.")]
pub struct ReferenceArgs {
    /// Name of the reference value
    #[arg(long)]
    pub name: String,
    /// Kernel file the firmware starts (an EFI application)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initrd file
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,
    /// Kernel command line, exactly as the firmware passes it on
    #[arg(long, value_name = "STR")]
    pub cmdline: String,
    /// Event log of one good boot of this firmware
    #[arg(long, value_name = "FILE")]
    pub event_log: PathBuf,
    /// Memory of a host that is a VM started by QEMU's -kernel: QEMU changes the kernel it loads
    #[arg(long, value_name = "SIZE")]
    pub qemu_memory: Option<String>,
    /// Security version
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub svn: u32,
    /// What the build is; state `sealed` only of a host whose initrd holds the monitor, without shell or login
    #[arg(long, value_enum)]
    pub profile: Profile,
    /// Security version of the monitor in the build; unless given, that of the monitor this program came with
    #[arg(long, value_name = "N", default_value_t = coffer_attestation::claims::MONITOR_SVN)]
    pub monitor_svn: u32,
    /// Where the JSON goes; standard output if absent
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What a host build is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Profile {
    /// The initrd holds the monitor, and no shell or login
    Sealed,
    /// Any Linux
    Developer,
}

impl From<Profile> for HostProfile {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Sealed => Self::Sealed,
            Profile::Developer => Self::Developer,
        }
    }
}

/// `coffer host info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host info
  coffer host info --json --host http://10.0.0.7:7070")]
pub struct HostInfoArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer host transport-key`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host transport-key
  coffer host transport-key --json > there.json

`coffer verifier permit` takes the key, or the file with the JSON.")]
pub struct HostTransportKeyArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer host vault`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host vault
  coffer host vault --json > here.json

`coffer verifier permit` takes the file with the JSON.")]
pub struct HostVaultArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer host reseal`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host vault --json > here.json
  coffer verifier permit --vault here.json --to upgraded.json --out rack7.permit
  coffer host reseal --permit rack7.permit

The permit is the verifier's that the host's configuration names. As it boots now the host opens its
vault still, until the upgraded one did.")]
pub struct HostResealArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Leave of the verifier, as `coffer verifier permit --vault` wrote it
    #[arg(long, value_name = "FILE")]
    pub permit: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer host join`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier fleet grant --key racks.fleet --vault here.json --out rack7.grant
  coffer host join --grant rack7.grant

The grant is the verifier's that the host's configuration names. A host stays in the fleet that it joined.")]
pub struct HostJoinArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Leave of the verifier, as `coffer verifier fleet grant` wrote it
    #[arg(long, value_name = "FILE")]
    pub grant: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
