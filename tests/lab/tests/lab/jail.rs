//! The VM process on a real host, behind every wall of its jail (SPEC 6.3.1); `monitor/vmm/tests/jail.rs` shows that
//! each of them bites.

use std::collections::BTreeMap;

use crate::world::enter;

/// Each wall that the kernel shows, and whether it stands around a thread.
fn walls(thread: &BTreeMap<String, String>) -> [(&'static str, bool); 5] {
    let is = |field: &str, value: &str| thread[field] == value;
    let uid: Vec<u32> = thread["Uid"].split_whitespace().map(|uid| uid.parse().unwrap()).collect();
    [
        ("a uid of its own", uid.iter().all(|uid| (0x7000_0000..0x7fff_0000).contains(uid))),
        ("no group of the host's", is("Groups", "")),
        ("no capability", is("CapPrm", "0000000000000000") && is("CapEff", "0000000000000000")),
        ("no new privileges", is("NoNewPrivs", "1")),
        ("a list of system calls", is("Seccomp", "2")),
    ]
}

#[test]
fn every_thread_of_a_vm_is_behind_every_wall_and_the_monitor_is_not() {
    let world = enter();
    let threads = world.host.threads("coffer-vmm").unwrap();
    let names: Vec<&str> = threads.iter().map(|thread| thread["Name"].as_str()).collect();
    for name in ["coffer-vmm", "vcpu0", "tpm"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for thread in &threads {
        for (wall, stands) in walls(thread) {
            assert!(stands, "{}: {wall}: {thread:?}", thread["Name"]);
        }
    }
    // The same look at a process that has no jail sees none.
    let monitor = world.host.threads("coffer-monitor").unwrap();
    assert!(!monitor.is_empty());
    assert!(
        walls(&monitor[0])
            .iter()
            .all(|(wall, stands)| !stands || *wall == "no group of the host's")
    );
}
