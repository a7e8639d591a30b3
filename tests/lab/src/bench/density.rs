//! How many closed boxes one lab host of 8 GiB holds at once, each with its secret, and what one weighs.
//!
//! Every box is the demo's web site: it runs only if the verifier was shown evidence of it and released its key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Budget, agent, ask, median};
use crate::host::{LabConfig, LabHost};
use crate::initrd::Extras;
use crate::scene::{HOST_NAME, Scene};
use crate::wait;

/// Boxes at once.
const BOXES: Budget = Budget::AtLeast(24.0);
/// As many are launched.
const LAUNCHED: u32 = 24;
/// MiB of a VM process beside guest memory.
const VMM: Budget = Budget::AtMost(5.0);
/// The same with its swtpm.
const WITH_VTPM: Budget = Budget::AtMost(8.0);
/// Memory of the host, MiB.
const HOST_MIB: u32 = 8192;
/// Memory of a box, MiB: the least its image allows.
const BOX_MIB: u64 = 192;

/// Measures.
pub fn run() -> Result<()> {
    let scene = Scene::prepare()?.build_images()?;
    scene.put_secret()?;
    let host = scene.boot_host_with(
        "host",
        LabConfig {
            publish: vec![agent::PORT],
            extras: Extras { qemu: true, ..Extras::default() },
            memory_mib: Some(HOST_MIB),
            ..LabConfig::default()
        },
    )?;
    scene.trust(&host, HOST_NAME)?;
    scene.enrol(&host, HOST_NAME)?;
    wait::until("the benchmark's agent", Duration::from_secs(20), || {
        Ok(ask(&host, &agent::Ask::DropCaches).ok())
    })?;
    let alone = launch(&host, 0, &[])?;
    println!("box 1 runs with its secret after {alone:.1} s, on a host of {HOST_MIB} MiB");
    let one = weigh(&host)?;
    let mut running = 1;
    for n in 1..LAUNCHED {
        let took = launch(&host, n, &[])?;
        println!("box {} runs with its secret after {took:.1} s", n + 1);
        running += 1;
    }
    let all = weigh(&host)?;
    let states = host.coffer()?.run(["ps", "--json"], |c| c)?.json()?;
    let live = states.as_array().context("a list of VMs")?.iter();
    let live = live.filter(|vm| vm["state"] == "running").count();
    ensure!(live == running, "{live} of {running} still run");
    let releases = scene.verifier.decisions()?;
    let released =
        releases.iter().filter(|d| d["kind"] == "release" && d["allowed"] == true).count();
    ensure!(released >= running, "the verifier released to {released} of {running}");
    println!("{running} run at once; the verifier released {released} secrets to them");
    let show = |weight: &Weight, count: &str| {
        println!(
            "{count}: VM process {:.2} MiB, with its swtpm {:.2} MiB (PSS)",
            weight.vmm, weight.with_vtpm
        );
    };
    show(&one, "one box");
    show(&all, "each of all, median");
    // A page that several share counts less for each: alone a box weighs most.
    println!("{}", VMM.figure("memory.vmm_mib", one.vmm.max(all.vmm), "MiB"));
    println!(
        "{}",
        WITH_VTPM.figure("memory.vm_with_vtpm_mib", one.with_vtpm.max(all.with_vtpm), "MiB")
    );
    println!("{}", BOXES.figure("density.closed_boxes", running as f64, "boxes"));
    Ok(())
}

/// Seconds until its workload runs.
fn launch(host: &LabHost, n: u32, more: &[&str]) -> Result<f64> {
    let start = Instant::now();
    let launch = host.run("site", &format!("box-{n}"), more)?;
    ensure!(launch.ok, "box {} does not run: {} {}", n + 1, launch.reason(), launch.message);
    Ok(start.elapsed().as_secs_f64())
}

/// MiB.
struct Weight {
    vmm: f64,
    with_vtpm: f64,
}

fn weigh(host: &LabHost) -> Result<Weight> {
    let of = |process: &str| -> Result<f64> {
        let question = agent::Ask::Weigh { process: process.to_owned(), guest_mib: BOX_MIB };
        let told = ask(host, &question)?.words.context("nothing was weighed")?;
        let weights: BTreeMap<u32, u64> = serde_json::from_str(&told)?;
        ensure!(!weights.is_empty(), "there is no `{process}`");
        Ok(median(weights.values().map(|kib| *kib as f64 / 1024.0)))
    };
    let vmm = of("coffer-vmm")?;
    Ok(Weight { vmm, with_vtpm: vmm + of("swtpm")? })
}
