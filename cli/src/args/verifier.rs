//! `coffer verifier` and `coffer secret`: the service, and what its operator does.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{AdminArgs, VerifierArgs};

/// `coffer verifier`.
#[derive(Debug, Subcommand)]
pub enum VerifierCommand {
    /// Make the keys, certificates, admin token and database of a new verifier
    Init(VerifierInitArgs),
    /// Run the verifier
    Serve(VerifierServeArgs),
    /// Print what an image author pins
    Pin(VerifierPinArgs),
    /// Make a one-time token to enrol a host
    Token(VerifierTokenArgs),
    /// Sign leave to take a volume to another host, or to seal a host's vault to its next build
    Permit(VerifierPermitArgs),
    /// Make the key of a fleet, and let hosts join it
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Accept a host build, as `coffer host reference` predicted it
    TrustHost(TrustHostArgs),
    /// List enrolled hosts
    Hosts(AdminListArgs),
    /// List decisions, or show one with every measured event
    Decisions(DecisionsArgs),
}

/// `coffer verifier init`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier init --dir /var/lib/coffer-verifier --name 192.0.2.7 --name verifier.example
  coffer verifier init --dir verifier --url https://192.0.2.7:8443 --name 192.0.2.7

Guests resolve no names: an appliance can pin only a verifier whose URL has an IPv4 address.
Put the certificates of the TPM makers you trust into the folder's ek-roots/ before you serve.")]
pub struct VerifierInitArgs {
    /// Folder to make
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// DNS name or address its certificate is for; may be repeated
    #[arg(long = "name", value_name = "DNS|IP", required = true)]
    pub names: Vec<String>,
    /// URL guests reach it at; https://NAME of the first name if absent
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
}

/// `coffer verifier serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier serve --dir /var/lib/coffer-verifier --listen 0.0.0.0:443
  coffer verifier serve --dir verifier --listen 127.0.0.1:8443 --policy default --policy site.cedar

The policies named replace the default one. The bound address goes to standard output, logs to standard error (COFFER_LOG sets their detail).")]
pub struct VerifierServeArgs {
    /// Folder that `coffer verifier init` made
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    pub listen: std::net::SocketAddr,
    /// Cedar policy file, or the name of a shipped policy; may be repeated [default: default]
    #[arg(long = "policy", value_name = "FILE|NAME")]
    pub policies: Vec<String>,
}

/// `coffer verifier pin`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier pin --verifier https://verifier.example --ca ca.pem > pin.json")]
pub struct VerifierPinArgs {
    /// The verifier
    #[command(flatten)]
    pub verifier: VerifierArgs,
}

/// `coffer verifier token`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier token rack7")]
pub struct VerifierTokenArgs {
    /// Name of the host it will enrol
    pub host: String,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `coffer verifier permit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier permit --volume 5f1c... --from here.json --to there.json --out db.permit
  coffer verifier permit --volume 5f1c... --from 04a1... --to 04b2... --expires-in 2d -o permit
  coffer eventlog replay --json upgraded.bin > upgraded.json
  coffer verifier permit --vault here.json --to upgraded.json --out rack7.permit

`coffer disk info` on the host prints the volume's id, `coffer host transport-key --json` its key,
`coffer host vault --json` its vault. The log is that of one good boot of the upgraded build on the
same firmware. Only volumes made with this verifier's key, and hosts configured with it, take its
word, and only for keys that enrolled hosts showed: an appliance on each has got a secret here
in the last seven days. A permit is good once, and stands in the log of decisions.")]
pub struct VerifierPermitArgs {
    /// Id of the volume
    #[arg(long, value_name = "ID", requires = "from", required_unless_present = "vault")]
    pub volume: Option<String>,
    /// The vault, as `coffer host vault --json` prints it, that the upgraded host is to open
    #[arg(long, value_name = "FILE", conflicts_with = "volume")]
    pub vault: Option<PathBuf>,
    /// Transport key of the host that has the volume
    #[arg(long, value_name = "HEX|FILE", conflicts_with = "vault")]
    pub from: Option<String>,
    /// Transport key of the host that it goes to; with --vault, registers of the upgraded host
    #[arg(long, value_name = "HEX|FILE")]
    pub to: String,
    /// How long it is good, such as 30m, 1h or 2d; 30 days at most
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub expires_in: String,
    /// Take your word for whose keys these are: by default an enrolled host has to have shown them in
    /// evidence that the verifier gave a secret for
    #[arg(long, conflicts_with = "vault")]
    pub dangerously_unattested: bool,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `coffer verifier fleet`.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Make the key of a new fleet
    Create(FleetCreateArgs),
    /// Sign leave for a host to join, with the fleet's key in it
    Grant(FleetGrantArgs),
}

/// `coffer verifier fleet create`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier fleet create --key racks.fleet

The fleet's id goes to standard output. The file is yours alone, and as secret as all that is sealed
for the fleet: keep it off the hosts. Without it no other host joins.")]
pub struct FleetCreateArgs {
    /// File to make
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
}

/// `coffer verifier fleet grant`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer host vault --json > here.json
  coffer verifier fleet grant --key racks.fleet --vault here.json --out rack7.grant
  coffer host join --grant rack7.grant

Only that host's vault opens the key in it; the verifier never has it. The vault has to be one that
an enrolled host showed: an appliance on it has got a secret here in the last seven days. The grant
stands in the log of decisions. A host stays in the fleet that it joined.")]
pub struct FleetGrantArgs {
    /// The fleet's key
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The host's vault, as `coffer host vault --json` prints it
    #[arg(long, value_name = "FILE")]
    pub vault: PathBuf,
    /// How long it is good, such as 30m, 1h or 2d; 30 days at most
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub expires_in: String,
    /// Take your word for whose keys these are: by default an enrolled host has to have shown them in
    /// evidence that the verifier gave a secret for
    #[arg(long)]
    pub dangerously_unattested: bool,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `coffer verifier trust-host`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier trust-host rack-2026.json")]
pub struct TrustHostArgs {
    /// Reference value that `coffer host reference` printed
    pub file: PathBuf,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// `coffer verifier hosts`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier hosts
  coffer verifier hosts --json")]
pub struct AdminListArgs {
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer verifier decisions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer verifier decisions
  coffer verifier decisions 12
  coffer verifier decisions --json 12")]
pub struct DecisionsArgs {
    /// Decision to show in full
    pub id: Option<String>,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer secret`.
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Give the verifier a secret, or a new version of one
    Put(SecretPutArgs),
}

/// `coffer secret put`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer secret put site/tls-key --from-file key.pem --image 9f86d081884c7d65...
  pass show db | coffer secret put db/password --from-file - --image 9f86d081884c7d65...

Nothing prints a secret back; only a VM that a policy permits ever gets it.")]
pub struct SecretPutArgs {
    /// Resource id
    pub id: String,
    /// File with the secret; - reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub from_file: PathBuf,
    /// Image that may have it; may be repeated
    #[arg(long = "image", value_name = "IMAGE_ID", required = true)]
    pub images: Vec<String>,
    /// The verifier
    #[command(flatten)]
    pub admin: AdminArgs,
}
