//! What is done with VMs, from `coffer run` to `coffer rm`.

use clap::Args;

use super::MonitorArgs;

/// `coffer run`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  coffer run site.image
  coffer run -d --name site -p 8443:443 --cpus 2 --memory 512M --restart on-failure:3 site.image
  coffer run -d --open --name debian --disk /var/lib/coffer/disks/debian.raw debian.image
  coffer run --rm --open site.image
  coffer run -d --name db --volume data=db --vtpm db-tpm db.image
  coffer run -d --net tap=tap0 --net-limit 100mbit site.image

Without -d, what the VM prints is shown until it ends, and Ctrl-C stops it in order (twice: at once).
With -d, the instance id is printed once the workload runs; of a box whose root disk brings its own
init, once it boots. Raw disks lie below the folder that the monitor's --disks names; `coffer volume` makes
volumes, each for the images that it names.
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
    /// Give it a volume; NAME is the disk's name in the image, `data` if absent
    #[arg(long = "volume", value_name = "[NAME=]VOLUME")]
    pub volumes: Vec<String>,
    /// Keep the state of its vTPM in this volume, of kind vtpm; a fresh vTPM if absent
    #[arg(long, value_name = "VOLUME")]
    pub vtpm: Option<String>,
    /// Verify all of its integrity disks before the first instruction, and not only what is read when it is read
    #[arg(long)]
    pub verify_ahead: bool,
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
