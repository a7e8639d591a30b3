//! A guest that means harm harms itself alone (SPEC 2, 6.2, 6.3, 6.6, 6.8): what it does is in
//! `src/bin/coffer-hostile-guest`. Beside it a polite guest serves, and is the twin of every counter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use coffer_attestation::Digest;
use coffer_lab::visitor::Visitor;
use coffer_lab::{appliance, workspace};
use serde_json::{Value, json};

use crate::world::{World, enter};

/// Longest it may take; it takes a quarter of that.
const LIMIT: Duration = Duration::from_secs(240);
/// What the monitor may grow by while a guest floods it: the console's ring, a few channels, no more.
const GROWTH_KIB: u64 = 24 << 10;
/// What Linux does without meaning harm: it looks for devices of old PCs, and for IPv6 routers.
const POLITE: [&str; 2] = ["unmapped-port", "frame"];
/// As often at most.
const POLITE_MAX: u64 = 50;
/// Every kind of refusal it asks for, by the beginning of the name.
const KINDS: [&str; 15] = [
    "unmapped-port",
    "unmapped-memory",
    "register-access",
    "config-write",
    "status",
    "queue-frozen",
    "queue-shape",
    "ring",
    "chain",
    "block-request",
    "frame",
    "vsock-source",
    "vsock-packet",
    "tpm-command",
    "tpm-control",
];
/// What it does to every virtio device.
const TRANSPORT: [&str; 8] = [
    "status",
    "queue shapes",
    "late queues",
    "rings",
    "chains",
    "races",
    "registers",
    "configuration",
];
/// What else it does.
const ATTEMPTS: [(&str, &[&str]); 8] = [
    ("serial", &["flood", "registers"]),
    ("ports", &["accesses"]),
    ("addresses", &["accesses"]),
    ("tpm", &["frames", "register 17", "control", "races", "registers"]),
    ("block", &["requests"]),
    ("net", &["spoofs", "noise", "flood", "sizes"]),
    ("vsock", &["sources", "addresses", "lengths", "credit", "flood"]),
    ("rng", &["floods"]),
];

/// Debian's tools and the program.
pub fn rootfs(into: &Path) -> Result<()> {
    appliance::copy_tree(&workspace::rootfs("tools")?, into)?;
    let program = workspace::program("coffer-hostile-guest")?;
    std::fs::copy(program, into.join("usr/bin/coffer-hostile-guest"))
        .context("cannot copy the hostile guest")
        .map(drop)
}

pub fn recipe() -> Value {
    json!({
        "name": "hostile",
        "workload": { "argv": ["/usr/bin/coffer-hostile-guest"] },
        "cmdline": ["iomem=relaxed"],
    })
}

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Bystanders {
    monitor: BTreeSet<String>,
    site: Value,
    /// VM processes and vTPMs in groups of VMs.
    processes: BTreeSet<String>,
}

fn bystanders(world: &World) -> Result<(Bystanders, u64)> {
    let ids = |of: &[BTreeMap<String, String>]| of.iter().map(|t| t["Tgid"].clone()).collect();
    let monitor = world.host.threads("coffer-monitor")?;
    let mut processes = BTreeSet::new();
    for name in ["coffer-vmm", "swtpm", "passt.avx2"] {
        let of_vms = world.host.threads(name)?;
        let of_vms = of_vms.into_iter().filter(|thread| thread["cgroup"].starts_with("/vms/"));
        processes.extend(of_vms.map(|thread| format!("{name} {}", thread["Tgid"])));
    }
    let kib = monitor[0]["VmRSS"].trim_end_matches(" kB").parse()?;
    let site = world.host.inspect("site")?["vm"].clone();
    Ok((Bystanders { monitor: ids(&monitor), site, processes }, kib))
}

#[test]
fn a_guest_that_means_harm_harms_itself_alone() {
    let world = enter();
    let (before, kib_before) = bystanders(&world).unwrap();
    let visitor = Visitor::start(world.site_target().unwrap());
    let launch = world.host.run("hostile", "hostile", &["--vcpus", "2"]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log_within("hostile", "HOSTILE end", LIMIT);
    let visits = visitor.stop().unwrap();
    let vm = world.host.inspect("hostile").unwrap();
    let refused = world.host.refusals("hostile").unwrap();
    let (after, kib_after) = bystanders(&world).unwrap();

    // It did all it came for, and each device of its own served it to the end.
    let said: Vec<&str> = log.lines().filter(|line| !line.starts_with('~')).collect();
    let tried = |device: &str, kind: &str| {
        let start = format!("ATTEMPT {device} {kind}: ");
        said.iter().any(|line| line.starts_with(&start))
    };
    for device in ["block", "net", "vsock", "rng"] {
        TRANSPORT.iter().for_each(|kind| assert!(tried(device, kind), "{device} {kind}\n{log}"));
    }
    for (device, kinds) in ATTEMPTS {
        kinds.iter().for_each(|kind| assert!(tried(device, kind), "{device} {kind}\n{log}"));
    }
    for device in ["tpm", "block", "net", "rng"] {
        assert!(said.contains(&format!("ALIVE {device}").as_str()), "{device}\n{log}");
    }
    assert!(!log.contains("HOSTILE broke off"), "{log}");
    assert_eq!((&vm["vm"]["state"], &vm["vm"]["reason"]), (&json!("stopped"), &Value::Null));

    // Its PCR 17 is the launch digest's, then as before.
    let launch_digest = vm["measurements"]["launch_digest"].as_str().unwrap();
    let expected = Digest::of(&[&[0; 32], &hex::decode(launch_digest).unwrap()]).to_string();
    for when in ["before", "after"] {
        assert!(said.contains(&format!("PCR17 {when} {expected}").as_str()), "{when}\n{log}");
    }

    // Every kind was counted, and for the polite guest none.
    println!("refused: {refused:?}");
    for kind in KINDS {
        let count: u64 =
            refused.iter().filter(|(name, _)| name.starts_with(kind)).map(|(_, count)| count).sum();
        let least = if POLITE.contains(&kind) { POLITE_MAX } else { 0 };
        assert!(count > least, "{kind} was not counted: {refused:?}");
    }
    let polite = world.host.refusals("site").unwrap();
    for (kind, count) in &polite {
        let known = POLITE.iter().any(|known| kind.starts_with(known));
        assert!(known && *count <= POLITE_MAX, "{polite:?}");
    }

    // Nobody else noticed.
    assert_eq!(after, before);
    assert!(kib_after < kib_before + GROWTH_KIB, "{kib_before} KiB became {kib_after}");
    assert!(visits.failures.is_empty(), "{:?}", visits.failures);
    assert!(visits.taken.len() >= 10, "{} answers", visits.taken.len());
    let (median, p99) = (visits.percentile(50), visits.percentile(99));
    println!("beside it {} answers, median {median:?}, p99 {p99:?}", visits.taken.len());
    world.host.remove("hostile").unwrap();
}
