//! The processes of a VM on a real host, behind every wall there is (SPEC 6.3.1, 6.3.2); `monitor/vmm/tests/jail.rs` and
//! `companion.rs` show that each of them bites.

use std::collections::{BTreeMap, BTreeSet};

use crate::world::enter;

type Thread = BTreeMap<String, String>;

/// Namespaces that are a VM's own. Clocks and users stay the host's.
const OWN: [&str; 6] = ["ns/mnt", "ns/net", "ns/ipc", "ns/uts", "ns/cgroup", "ns/pid"];

/// Each wall that the kernel shows, and whether it stands around a thread.
fn walls(thread: &Thread) -> [(&'static str, bool); 6] {
    let is = |field: &str, value: &str| thread[field] == value;
    let uid: Vec<u32> = thread["Uid"].split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    [
        ("a uid of its own", uid.iter().all(|uid| (0x7000_0000..0x7fff_0000).contains(uid))),
        ("no group of the host's", is("Groups", "")),
        ("no capability", is("CapPrm", "0000000000000000") && is("CapEff", "0000000000000000")),
        ("no new privileges", is("NoNewPrivs", "1")),
        ("a list of system calls", is("Seccomp", "2")),
        ("a group of its own", thread["cgroup"].starts_with("/vms/")),
    ]
}

fn values<'a>(threads: &'a [Thread], field: &str) -> BTreeSet<&'a str> {
    threads.iter().map(|thread| thread[field].as_str()).collect()
}

#[test]
fn every_thread_of_a_vm_is_behind_every_wall_and_the_monitor_is_not() {
    let world = enter();
    let of = |process| world.host.threads(process).unwrap();
    let (vmm, swtpm, passt, monitor) =
        (of("coffer-vmm"), of("swtpm"), of("passt.avx2"), of("coffer-monitor"));
    let names = values(&vmm, "Name");
    for name in ["coffer-vmm", "vcpu0", "tpm"] {
        assert!(names.contains(name), "{names:?}");
    }
    let groups = values(&vmm, "cgroup");
    // Those made ahead are in no VM yet.
    let used: Vec<Thread> =
        swtpm.iter().filter(|t| groups.contains(t["cgroup"].as_str())).cloned().collect();
    assert_eq!((groups.len(), values(&used, "Tgid").len()), (1, 1));
    assert_eq!(values(&passt, "cgroup"), groups);
    for thread in vmm.iter().chain(&used).chain(&passt) {
        for (wall, stands) in walls(thread) {
            assert!(stands, "{}: {wall}: {thread:?}", thread["Name"]);
        }
    }
    // One vCPU and 192 MiB, and what serves them (SPEC 6.3.2).
    let memory = (192 << 20) + (192 << 20) / 256 + (128 << 20);
    let limits = [
        ("memory.max", memory.to_string()),
        ("memory.oom.group", "1".to_owned()),
        ("pids.max", "33".to_owned()),
        ("cpu.max", "200000 100000".to_owned()),
    ];
    for (limit, value) in &limits {
        assert_eq!(vmm[0][*limit], *value, "{limit}");
        assert_ne!(monitor[0][*limit], *value, "{limit}");
    }
    assert!(["0", "none"].contains(&vmm[0]["memory.swap.max"].as_str()));
    // Images lie on a disk there.
    let disk = &vmm[0]["io.max"];
    assert!(disk.ends_with(":0 rbps=536870912 wbps=536870912 riops=20000 wiops=20000"), "{disk}");
    assert!(["", "none"].contains(&monitor[0]["io.max"].as_str()));
    let made_ahead = swtpm.iter().filter(|t| !groups.contains(t["cgroup"].as_str()));
    for (wall, stands) in made_ahead.flat_map(walls) {
        assert!(stands || wall == "a group of its own", "{wall}");
    }
    // No two of them share a uid or, but for the network backend, which needs the host's network, a namespace.
    let uids: Vec<BTreeSet<&str>> = [&vmm, &swtpm, &passt].map(|of| values(of, "Uid")).into();
    assert_eq!(uids[0].len() + uids[2].len(), 2);
    assert_eq!(uids[1].len(), values(&swtpm, "Tgid").len());
    assert!(
        uids[0].is_disjoint(&uids[1])
            && uids[1].is_disjoint(&uids[2])
            && uids[0].is_disjoint(&uids[2])
    );
    for namespace in OWN {
        let all = [&vmm, &used, &monitor].map(|of| values(of, namespace));
        assert!(all.iter().all(|of| of.len() == 1), "{namespace}: {all:?}");
        assert_eq!(all.iter().flatten().collect::<BTreeSet<_>>().len(), 3, "{namespace}: {all:?}");
    }
    // Each is the first of its own processes, the network backend too.
    let first = |thread: &Thread| thread["NSpid"].split_whitespace().count() == 2;
    assert!(vmm.iter().chain(&used).chain(&passt).all(first) && !monitor.iter().any(first));
    assert!(values(&passt, "ns/pid").is_disjoint(&values(&monitor, "ns/pid")));
    // The same look at a process that has no jail sees none.
    let open = walls(&monitor[0]);
    assert!(open.iter().all(|(wall, stands)| !stands || *wall == "no group of the host's"));
}
