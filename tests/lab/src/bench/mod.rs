//! Benchmarks in the lab. Each prints one line per figure: `figure NAME VALUE UNIT budget <=|>= VALUE ok|short`.
//!
//! Absolute times drift with the machine, so figures are ratios of two things measured in one run, and the one that
//! is not (`verify.per_s_core`) stands beside one that is.

pub mod agent;
mod api;
mod batch;
mod density;
mod disk;
pub mod verify;
mod vtpm;
pub mod vtpm_guest;
mod weigh;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::appliance::{self, Image};
use crate::host::{LabConfig, LabHost, Launch};
use crate::host_tpm::HostTpm;
use crate::initrd::Extras;
use crate::story;
use crate::wait;
use crate::workdir::Workdir;
use crate::workspace;

/// Launch request to guest init, of an image that was launched before, against QEMU's microvm.
const LAUNCH_BUDGET: Budget = Budget::AtMost(0.35);
/// The same, first launch of the image.
const COLD_LAUNCH_BUDGET: Budget = Budget::AtMost(0.55);
/// vTPMs the monitor makes ahead. No clock runs before they are ready, for either side.
const READY_VTPMS: u64 = 2;
/// Memory of both guests, MiB.
const MEMORY_MIB: u32 = 256;
/// Steps of a launch in order, as the monitor names them.
const STEPS: [&str; 6] = ["hash", "vtpm", "measure", "spawn", "run", "init"];

/// Runs one.
pub fn run(name: &str, rounds: u32) -> Result<()> {
    match name {
        "launch" => launch(rounds.max(1)),
        "batch" => batch::run(rounds),
        "density" => density::run(),
        "vtpm" => vtpm::run(rounds),
        "disk" => disk::run(rounds),
        _ => bail!("there is no benchmark `{name}`"),
    }
}

/// What either clock covers, for whoever reads the figure.
fn say_clocks() {
    println!(
        "clocks, both of the agent on the lab host, none of the monitor's:\n\
         \x20 coffer: from before the connection to the management API, `POST /v1/vms` included, until the API first\n\
         \x20   shows that the guest's init runs; asked every {} ms, so it is late by up to that and one answer.\n\
         \x20   Not covered: the start of the `coffer` program and the way from it to the host.\n\
         \x20 QEMU microvm: from before the start of the process until its init's first line is read from its console.\n\
         first launch: each round has a copy of the image of its own, and the page cache is dropped for either side;\n\
         later launch: of the same copy, nothing is dropped for either side.\n\
         Either starts only when the monitor has its {READY_VTPMS} vTPMs ready, so that making them burdens neither.",
        api::PAUSE.as_millis()
    );
}

/// A launch request and QEMU's microvm in turns, both with KVM in one lab host, same kernel, initrd and command line.
fn launch(rounds: u32) -> Result<()> {
    let workdir = Workdir::new()?;
    let images = workdir.folder("images")?;
    let recipe = serde_json::json!({
        "name": "launch",
        "workload": { "argv": ["/bin/busybox", "sleep", "600"] },
        "network": { "mode": "none" },
    });
    let mut image = None;
    for round in 0..rounds {
        let layout = images.join(image_name(round));
        image = Some(appliance::build(&recipe, &workspace::rootfs("tools")?, &layout)?);
    }
    let image = image.context("no round, no image")?;
    let tpm = HostTpm::manufacture(&workdir.folder("tpm")?)?;
    let host = LabHost::boot(
        &workdir.path().join("host"),
        &tpm,
        &LabConfig {
            images: Some(images),
            publish: vec![agent::PORT],
            extras: Extras { qemu: true, ..Extras::default() },
            ..LabConfig::default()
        },
    )?;
    // The agent starts when the API is up, so it can be a moment later.
    wait::until("the benchmark's agent", Duration::from_secs(20), || {
        Ok(ask(&host, &agent::Ask::DropCaches).ok())
    })?;
    say_clocks();
    println!("lab host up after {:.1} s; {rounds} rounds, in turns", host.boot_time.as_secs_f64());
    let measured =
        (0..rounds).map(|round| one_round(&host, &image, round)).collect::<Result<Vec<_>>>();
    if measured.is_err() {
        workdir.keep();
    }
    report(&measured?);
    Ok(())
}

struct Round {
    first: Pair,
    later: Pair,
}

/// One launch of either side, ms.
struct Pair {
    steps: Vec<f64>,
    coffer: f64,
    qemu: f64,
}

fn image_name(round: u32) -> String {
    format!("launch-{round}")
}

fn one_round(host: &LabHost, image: &Image, round: u32) -> Result<Round> {
    let first = pair(host, image, round, true)?;
    let later = pair(host, image, round, false)?;
    let show = |pair: &Pair| {
        format!("coffer {:.2} s, QEMU microvm {:.2} s", pair.coffer / 1e3, pair.qemu / 1e3)
    };
    println!("round {}: first {}; later {}", round + 1, show(&first), show(&later));
    Ok(Round { first, later })
}

fn pair(host: &LabHost, image: &Image, round: u32, first: bool) -> Result<Pair> {
    let ready = || -> Result<()> {
        wait::until("the vTPMs made ahead", Duration::from_secs(120), || {
            Ok((host.info()?["ready_vtpms"] == READY_VTPMS).then_some(()))
        })?;
        if first {
            ask(host, &agent::Ask::DropCaches)?;
        }
        Ok(())
    };
    ready()?;
    let name = format!("round-{round}-{}", if first { "first" } else { "later" });
    let request = serde_json::json!({
        "image": image_name(round), "name": name, "box": "closed", "memory_mib": MEMORY_MIB,
    });
    let run = agent::Ask::Run { request, until: api::Until::Init };
    let told = ask(host, &run)
        .with_context(|| format!("the lab host's console ends:\n{}", host.console_tail()))?;
    let coffer = told.ms.context("the launch was not timed")?;
    let launch = Launch { ok: true, message: String::new(), vm: Some(host.inspect(&name)?) };
    host.remove(&name)?;
    let steps: Option<Vec<f64>> = STEPS.iter().map(|step| launch.timing(step)).collect();
    let steps = steps.context("the monitor left out a step of the launch")?;
    let inside = launch.timing("init").context("the guest did not report")?;
    ensure!(
        inside <= coffer,
        "the monitor's clock says {inside} ms, longer than the {coffer} ms around it"
    );

    ready()?;
    let told = ask(host, &peer(image)?)?;
    let qemu = told.ms.context("the microvm was not timed")?;
    // Init fails at once for want of a vsock device. Another failure may have waited, and QEMU would pay for it.
    let words = told.words.unwrap_or_default();
    ensure!(words.contains("No such device"), "the microvm's init did not end as meant: {words}");
    Ok(Pair { steps, coffer, qemu })
}

/// The image's own blobs, where the host has them.
fn peer(image: &Image) -> Result<agent::Ask> {
    let descriptor = image.descriptor()?;
    let store =
        Path::new("/var/lib/coffer/images").join(image.layout.file_name().unwrap_or_default());
    let blob = |digest: &coffer_attestation::Digest| {
        store.join("blobs/sha256").join(digest.to_string()).display().to_string()
    };
    let cmdline = std::fs::read_to_string(
        image.layout.join("blobs/sha256").join(descriptor.cmdline.digest.0.to_string()),
    )?;
    Ok(agent::Ask::Launch {
        kernel: blob(&descriptor.kernel.digest.0),
        initrd: blob(&descriptor.initrd.digest.0),
        cmdline,
        memory_mib: MEMORY_MIB,
    })
}

fn ask(host: &LabHost, ask: &agent::Ask) -> Result<agent::Told> {
    let mut stream = TcpStream::connect(("127.0.0.1", host.port(agent::PORT)?))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    serde_json::to_writer(&mut stream, ask)?;
    stream.write_all(b"\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("the agent did not answer")?;
    let told: agent::Told =
        serde_json::from_str(&line).context("the agent's answer makes no sense")?;
    match &told.error {
        Some(error) => bail!("the launch failed: {error}"),
        None => Ok(told),
    }
}

fn report(rounds: &[Round]) {
    let mut table = story::table(&[
        "step of coffer's launch",
        "first launch, median ms since the request, by the monitor's clock",
        "later launch",
    ]);
    for (at, step) in STEPS.iter().enumerate() {
        let times = |of: fn(&Round) -> &Pair| {
            median(rounds.iter().filter_map(|round| of(round).steps.get(at).copied()))
        };
        let (first, later) = (times(|r| &r.first), times(|r| &r.later));
        table.add_row([(*step).to_owned(), format!("{first:.0}"), format!("{later:.0}")]);
    }
    println!("\n{table}\n");
    let first = ratio("first", rounds.iter().map(|round| &round.first));
    let later = ratio("later", rounds.iter().map(|round| &round.later));
    println!("{}", COLD_LAUNCH_BUDGET.figure("launch.cold_ratio_qemu_microvm", first, "ratio"));
    println!("{}", LAUNCH_BUDGET.figure("launch.ratio_qemu_microvm", later, "ratio"));
}

/// Median against median, said with what it is made of.
fn ratio<'a>(which: &str, pairs: impl Iterator<Item = &'a Pair> + Clone) -> f64 {
    let coffer = median(pairs.clone().map(|pair| pair.coffer));
    let qemu = median(pairs.clone().map(|pair| pair.qemu));
    let single = pairs.map(|pair| pair.coffer / pair.qemu);
    let (least, most) = single.fold((f64::MAX, f64::MIN), |(l, m), r| (l.min(r), m.max(r)));
    println!(
        "{which} launch: median coffer {coffer:.0} ms, QEMU microvm {qemu:.0} ms, to the guest's init; single rounds \
         {least:.3} to {most:.3}"
    );
    coffer / qemu
}

/// What a figure has to keep.
#[derive(Clone, Copy)]
enum Budget {
    AtMost(f64),
    AtLeast(f64),
}

impl Budget {
    /// The line of one figure.
    fn figure(self, name: &str, value: f64, unit: &str) -> String {
        let (sign, budget, kept) = match self {
            Self::AtMost(budget) => ("<=", budget, value <= budget),
            Self::AtLeast(budget) => (">=", budget, value >= budget),
        };
        let verdict = if kept { "ok" } else { "short" };
        format!("figure {name} {value:.3} {unit} budget {sign} {budget:.2} {verdict}")
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.len() % 2, values.get(middle), values.get(middle.wrapping_sub(1))) {
        (1, Some(value), _) => *value,
        (_, Some(above), Some(below)) => f64::midpoint(*above, *below),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, median};

    #[test]
    fn median_of_odd_and_even_counts() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_figure_says_whether_it_keeps_its_budget() {
        let most = |value| Budget::AtMost(0.6).figure("a.b", value, "ratio");
        assert_eq!(most(0.5), "figure a.b 0.500 ratio budget <= 0.60 ok");
        assert_eq!(most(0.7), "figure a.b 0.700 ratio budget <= 0.60 short");
        let least = |value| Budget::AtLeast(2000.0).figure("c", value, "x/s");
        assert_eq!(least(2000.0), "figure c 2000.000 x/s budget >= 2000.00 ok");
        assert_eq!(least(1999.0), "figure c 1999.000 x/s budget >= 2000.00 short");
    }
}
