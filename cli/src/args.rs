//! The flags, as typed: what clap checks is only their shape.
//!
//! Each command family resolves its part into a checked plan before it does anything. Nothing here is
//! trusted, and nothing here touches the machine.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use coffer_attestation::appraisal::HostProfile;

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

/// `coffer image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Seal a root file system and a kernel into an image
    Build(ImageBuildArgs),
    /// Make an open box of a distribution's disk, with its own kernel and initrd
    Import(ImageImportArgs),
    /// Show what an image holds and promises
    Inspect(ImagePathArgs),
    /// Check every digest of an image, and that its copies agree
    Verify(ImagePathArgs),
}

/// `coffer image build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image build recipe.json --rootfs rootfs/ --kernel linux-image-6.1.0-cloud-amd64.deb -o site.image
  coffer image build recipe.json --rootfs rootfs.tar --kernel vmlinuz --modules lib/modules/6.1.0 -o site.image --force

The same inputs give the same image ID on any machine. The image ID goes to standard output.")]
pub struct ImageBuildArgs {
    /// JSON file that says what the appliance runs, may ask for and may be given
    pub recipe: PathBuf,
    /// Root file system
    #[arg(long, value_name = "DIR|TAR")]
    pub rootfs: PathBuf,
    /// Kernel: an unpacked kernel package, the package itself, or the kernel file
    #[arg(long, value_name = "DIR|DEB|VMLINUZ")]
    pub kernel: PathBuf,
    /// Kernel modules, `lib/modules/VERSION`, where --kernel does not bring them
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// Static `coffer-init`; looked for beside this program if absent
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,
    /// Where the image goes, an OCI layout
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace an image that is there
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer image import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image import debian-12-nocloud-amd64.raw -o debian.image
  coffer image import xfs.raw --kernel vmlinuz --initrd initrd.img \\
      --cmdline 'root=/dev/vda2 rw console=ttyS0' -o other.image
  coffer run -d --open --name debian --disk debian-12-nocloud-amd64.raw debian.image
  coffer console debian

Kernel, initrd and command line are sealed into the image and measured when it runs; the disk is no
part of it, and nothing is promised of it. The image runs as an open box only. The newest kernel in
an ext2, ext3 or ext4 file system of the disk is taken. Its network address is 192.168.76.2/24, by
192.168.76.1, and set inside: nobody there answers DHCP.")]
pub struct ImageImportArgs {
    /// Raw disk image; only read
    pub disk: PathBuf,
    /// Kernel (bzImage), if not the newest on the disk
    #[arg(long, value_name = "FILE", requires = "initrd")]
    pub kernel: Option<PathBuf>,
    /// Its initrd
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Whole kernel command line, if not the ordinary one with the disk's root
    #[arg(long, value_name = "STR")]
    pub cmdline: Option<String>,
    /// Name of the image; made of the disk's if absent
    #[arg(long)]
    pub name: Option<String>,
    /// Where the image goes, an OCI layout
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Replace an image that is there
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer image inspect` and `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer image inspect site.image
  coffer image verify --json site.image")]
pub struct ImagePathArgs {
    /// Image, an OCI layout
    pub path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
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

/// `coffer host`.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Make this host's TPM known to a verifier
    Enroll(EnrollArgs),
    /// Predict, without booting, what a host will measure
    Reference(ReferenceArgs),
    /// Show the host behind the monitor
    Info(HostInfoArgs),
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

/// `coffer run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer run site.image
  coffer run -d --name site -p 8443:443 --cpus 2 --memory 512M --restart on-failure:3 site.image
  coffer run -d --open --name debian --disk /var/lib/coffer/disks/debian.raw debian.image
  coffer run --rm --open site.image
  coffer run -d --net tap=tap0 --net-limit 100mbit site.image

Without -d, what the VM prints is shown until it ends, and Ctrl-C stops it in order (twice: at once).
With -d, the instance id is printed once the workload runs; of a box whose root disk brings its own
init, once it boots. Raw disks lie below the folder that the monitor's --disks names.
A VM is launched again from what it was launched from, measured anew; never after `coffer stop`,
and never after a promise of its image was broken. An open box that reboots is launched again too.
The same command with the same --name finds the VM that it started, as long as that lives.")]
pub struct RunArgs {
    /// Image: a path on the host, or a name in its image store
    pub image: String,
    /// Name of the VM; chosen from the image's name if absent
    #[arg(long)]
    pub name: Option<String>,
    /// Run it as an open box, for development: no secret meant for closed boxes will come
    #[arg(long)]
    pub open: bool,
    /// Give an open box a raw disk to read and write; NAME is `root` if absent
    #[arg(long = "disk", value_name = "[NAME=]FILE", requires = "open")]
    pub disks: Vec<String>,
    /// Number of vCPUs; the least the image allows if absent
    #[arg(long, visible_alias = "cpus", value_name = "N")]
    pub vcpus: Option<u8>,
    /// Memory, such as 512M or 2G; the least the image allows if absent
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Publish a TCP port of the VM on the host
    #[arg(short, long, value_name = "HOST:GUEST")]
    pub publish: Vec<String>,
    /// Its network: passt, or a tap device of the host, made if it is not there
    #[arg(long, value_name = "passt|tap=NAME", default_value = "passt")]
    pub net: String,
    /// Most it sends and most it receives, such as 100mbit or 100mbit,20000frames; more is lost [default: 10gbit,250000frames]
    #[arg(long, value_name = "RATE")]
    pub net_limit: Option<String>,
    /// Launch it again when it ends: `no`, `on-failure[:MOST]` or `always[:MOST]`
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// Forget it once it has ended
    #[arg(long, conflicts_with = "detach")]
    pub rm: bool,
    /// Return once the workload runs
    #[arg(short, long)]
    pub detach: bool,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer ps`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer ps
  coffer ps -a --json")]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub all: bool,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer logs site
  coffer logs -f site")]
pub struct LogsArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// Go on until the VM ends
    #[arg(short, long)]
    pub follow: bool,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer console`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer console debian
  printf 'root\\nsecret\\nuname -a\\npoweroff\\n' | coffer console debian

On a terminal every key goes to the guest but Ctrl-], which leaves. Piped, standard input is typed
as it comes, and what the VM prints is shown until it ends. One caller at a time types; any number
reads beside it with `coffer logs -f`. A closed box refuses.")]
pub struct ConsoleArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer stop`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer stop site
  coffer stop -t 0 site

A box whose root disk brings its own init hears nothing of this and is killed when the time is over:
power it off from inside, or lose what it has not written.")]
pub struct StopArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// Seconds to wait before it is killed; 0 kills at once
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 10)]
    pub time: u32,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer pause`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer pause site

Its clock goes on: after `coffer resume` it finds that time has passed. `coffer stop` lets it go
on first, to stop in order.")]
pub struct PauseArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer resume`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer resume site")]
pub struct ResumeArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer reset`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer reset site
  coffer reset -t 10 site

It keeps its name and its ports, and gets a new vTPM and a new instance id, which is printed.
One that had ended is launched too. What it had in memory is gone.")]
pub struct ResetArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// Seconds to wait for it to stop in order; 0 ends it at once
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = 0)]
    pub time: u32,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer events
  coffer events --json | jq 'select(.event == \"failed\")'

With --json, one object a line: time_ms, id, name, event, detail.")]
pub struct EventsArgs {
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer stats`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer stats
  coffer stats --json site")]
pub struct StatsArgs {
    /// Names, instance ids or starts of them; all that run if absent
    pub vms: Vec<String>,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer openapi`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer openapi > coffer-monitor.json

The monitor serves the same at /v1/openapi.json.")]
pub struct OpenapiArgs {}

/// `coffer rm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer rm site
  coffer rm --force site")]
pub struct RmArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// Kill it first if it runs
    #[arg(short, long)]
    pub force: bool,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
}

/// `coffer inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer inspect site
  coffer inspect --json site")]
pub struct InspectArgs {
    /// Name, instance id or the start of one
    pub vm: String,
    /// The monitor
    #[command(flatten)]
    pub monitor: MonitorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

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

/// `coffer quote`.
#[derive(Debug, Subcommand)]
pub enum QuoteCommand {
    /// Check a quote: signature, structure, nonce, registers, event log
    Verify(QuoteVerifyArgs),
}

/// `coffer quote verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpm2_quote -c ak.ctx -l sha256:0,4,7 -q 8a1f... -m quote.msg -s quote.sig -o pcrs.bin
  coffer quote verify --attest quote.msg --signature quote.sig --key ak.pub --parent ek.pub \\
      --nonce 8a1f... --pcrs pcrs.bin
  coffer quote verify --attest quote.msg --signature quote.sig --key ak.pem --nonce 8a1f... --json

Exits 0 if everything asked for holds, 1 if the quote is refused; what was not checked is said.")]
pub struct QuoteVerifyArgs {
    /// TPMS_ATTEST, as `tpm2_quote -m` writes it
    #[arg(long, value_name = "FILE")]
    pub attest: PathBuf,
    /// Signature, as `tpm2_quote -s` writes it, with or without `-f plain`
    #[arg(long, value_name = "FILE")]
    pub signature: PathBuf,
    /// Attestation key: public area or PEM
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Nonce in hex, as `tpm2_quote -q` took it
    #[arg(long, value_name = "HEX")]
    pub nonce: String,
    /// Register values, as `tpm2_quote -o` writes them, with or without `-F values`
    #[arg(long, value_name = "FILE")]
    pub pcrs: Option<PathBuf>,
    /// Event log that has to replay to the registers
    #[arg(long, value_name = "FILE", requires = "pcrs")]
    pub event_log: Option<PathBuf>,
    /// Public area of the EK that the key is a child of, as tpm2_createak has it
    #[arg(long, value_name = "FILE", conflicts_with = "primary")]
    pub parent: Option<PathBuf>,
    /// Hierarchy that the key is a primary of, as Coffer has it
    #[arg(long, value_name = "HIERARCHY")]
    pub primary: Option<PrimaryOf>,
    /// Scheme to pin for a PEM key, such as rsapss-sha256
    #[arg(long, value_name = "SCHEME")]
    pub scheme: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A hierarchy of a TPM.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrimaryOf {
    /// TPM_RH_ENDORSEMENT
    Endorsement,
    /// TPM_RH_OWNER
    Owner,
    /// TPM_RH_PLATFORM
    Platform,
}

/// `coffer eventlog`.
#[derive(Debug, Subcommand)]
pub enum EventLogCommand {
    /// List the events, and say which data the digests answer for
    Show(EventLogFileArgs),
    /// Compute the registers that the log replays to
    Replay(EventLogFileArgs),
    /// Say what was booted, and hold the log against register values
    Explain(EventLogExplainArgs),
}

/// `coffer eventlog show` and `replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer eventlog show /sys/kernel/security/tpm0/binary_bios_measurements
  coffer eventlog show /run/log/systemd/tpm2-measure.log
  coffer eventlog replay --bank sha1 log.bin --json
  coffer eventlog replay /sys/kernel/security/ima/binary_runtime_measurements")]
pub struct EventLogFileArgs {
    /// Event log, as Linux exports it; `show` and `replay` also read systemd's log (CEL in JSON) and IMA's list
    pub file: PathBuf,
    /// Bank: sha1, sha256, sha384 or sha512
    #[arg(long)]
    pub bank: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer eventlog explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer eventlog explain /sys/kernel/security/tpm0/binary_bios_measurements
  coffer eventlog explain log.bin --pcr 4=3cbfcae7... --pcr 7=65caf8dd...

Exits 1 if a value or a reference was given and the verdict is a refusal.")]
pub struct EventLogExplainArgs {
    /// The log
    #[command(flatten)]
    pub log: EventLogFileArgs,
    /// Value a register has, from a quote or from `tpm2_pcrread`; may be repeated
    #[arg(long = "pcr", value_name = "PCR=HEX")]
    pub expected: Vec<String>,
    /// Reference value of a host build to hold it against; may be repeated
    #[arg(long = "reference", value_name = "FILE")]
    pub references: Vec<PathBuf>,
}

/// `coffer ek`.
#[derive(Debug, Subcommand)]
pub enum EkCommand {
    /// Show what an EK certificate says
    Inspect(EkInspectArgs),
    /// Make a credential that only the TPM with this EK and this key opens
    MakeCredential(MakeCredentialArgs),
}

/// `coffer ek inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  tpm2_nvread 0x1c0000a -C o -o ek.der
  coffer ek inspect ek.der")]
pub struct EkInspectArgs {
    /// Certificate, DER or PEM
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer ek make-credential`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer ek make-credential --ek ek.pub --name ak.name --secret secret.bin -o credential.blob
  tpm2_activatecredential -c ak.ctx -C ek.ctx -i credential.blob -o secret.out -P session:session.ctx")]
pub struct MakeCredentialArgs {
    /// Public area of the EK
    #[arg(long, value_name = "FILE")]
    pub ek: PathBuf,
    /// Name of the key: hex, or the file that `tpm2_createak -n` wrote
    #[arg(long, value_name = "HEX|FILE")]
    pub name: String,
    /// File with the secret: at most as long as a digest of the EK's nameAlg
    #[arg(long, value_name = "FILE")]
    pub secret: PathBuf,
    /// Credential to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer evidence`.
#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Show what evidence says of itself
    Show(EvidenceShowArgs),
    /// Appraise evidence against a host key and reference values, row by row
    Explain(EvidenceExplainArgs),
}

/// `coffer evidence show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer evidence show evidence.cmw")]
pub struct EvidenceShowArgs {
    /// Evidence, as a guest sends it
    pub file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coffer evidence explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer evidence explain evidence.cmw --host-key hak.pub --audience https://192.0.2.7:8443 \\
      --reference rack-2026.json

Exits 1 if the evidence is refused.")]
pub struct EvidenceExplainArgs {
    /// Evidence, as a guest sends it
    pub file: PathBuf,
    /// Public area of the enrolled host's attestation key
    #[arg(long, value_name = "FILE")]
    pub host_key: PathBuf,
    /// URL of the verifier it is meant for
    #[arg(long, value_name = "URL")]
    pub audience: String,
    /// Reference value of a host build; may be repeated
    #[arg(long = "reference", value_name = "FILE")]
    pub references: Vec<PathBuf>,
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
