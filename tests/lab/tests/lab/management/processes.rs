//! A process on the host without privilege, and the processes of a VM (SPEC 6.3.1).

use std::time::Duration;

use coffer_lab::intruder::attempt::TWIN_VARIABLE;
use coffer_lab::intruder::{Attempt, CORE_PATTERN, CORES, HOLDS, LOOKS, Outcome, QUIT, Subject};
use coffer_lab::wait;

use super::{ROOT, STRANGER, all_processes, attempt, done, processes_of, site_is_well};
use crate::world::enter;

fn on(subject: &Subject, what: &[&str]) -> Vec<Attempt> {
    what.iter().map(|what| Attempt::On(subject.clone(), (*what).to_owned())).collect()
}

#[test]
fn nobody_without_privilege_sees_into_a_process_of_a_vm_or_has_a_hold_on_it() {
    let world = enter();
    let host = &world.host;
    let every: Vec<&str> = LOOKS.iter().chain(&HOLDS).copied().collect();
    let refused = |uid, process: u32, what: &[&str]| {
        for (what, outcome) in
            what.iter().zip(host.intrude(uid, &on(&Subject::Id(process), what)).unwrap())
        {
            assert_eq!(outcome, Outcome::Denied, "{what}, by uid {uid}, process {process}");
        }
    };
    let of_site = processes_of(host, "site");
    for process in &of_site {
        refused(STRANGER, process.id, &every);
    }
    let monitor: Vec<_> =
        all_processes(host).into_iter().filter(|p| p.name == "coffer-monitor").collect();
    // PID 1, the service and the keeper of the TPM.
    assert_eq!(monitor.len(), 3, "{monitor:?}");
    for process in &monitor {
        let no_group = |what: &&str| *what != "freeze it by its control group";
        let what: Vec<&str> = every.iter().copied().filter(no_group).collect();
        refused(STRANGER, process.id, &what);
    }
    // Not even under the uid it has itself: what holds guest memory or frames is not dumpable.
    let [vmm, swtpm, passt] = &of_site;
    for process in [vmm, passt] {
        refused(process.uid, process.id, &LOOKS);
    }
    // The same on a process without a wall.
    let twin: Vec<&str> =
        every.into_iter().filter(|what| *what != "freeze it by its control group").collect();
    let outcomes = host.intrude(STRANGER, &on(&Subject::GuineaPig, &twin)).unwrap();
    for (what, outcome) in twin.iter().zip(&outcomes) {
        assert!(matches!(outcome, Outcome::Done(_)), "{what}: {outcome:?}");
    }
    let environment = twin.iter().position(|what| *what == "environ").unwrap();
    assert!(matches!(&outcomes[environment], Outcome::Done(seen) if seen.contains(TWIN_VARIABLE)));
    let freeze = Attempt::On(Subject::Id(swtpm.id), "freeze it by its control group".into());
    assert!(matches!(attempt(host, ROOT, freeze), Outcome::Done(_)));
    site_is_well(&world);
}

#[test]
fn no_process_of_a_vm_has_anything_of_the_monitors_environment() {
    let world = enter();
    for process in processes_of(&world.host, "site") {
        assert_eq!(process.environment, Vec::<String>::new(), "{}", process.name);
    }
    let of = |word: &str| {
        let all = all_processes(&world.host);
        let found = all.into_iter().find(|p| p.arguments.get(1).is_some_and(|a| a == word));
        found.unwrap_or_else(|| panic!("no `coffer-monitor {word}`"))
    };
    assert_eq!(of("host-tpm").environment, ["TSS2_LOG=all+none"]);
    assert_eq!(of("serve").environment, ["PATH=/usr/bin:/bin"]);
}

#[test]
fn a_process_of_a_vm_that_crashes_leaves_no_core() {
    let world = enter();
    let host = &world.host;
    let launch = host.run("watcher", "crash", &[]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let victims = processes_of(host, "crash");
    let setting = "/proc/sys/kernel/core_pattern";
    let pattern = done(host, Attempt::Text(setting.into()));
    // A program that gets them asks no limit of a core's size.
    done(host, Attempt::Put(setting.into(), CORE_PATTERN.into()));
    let pig = Attempt::On(Subject::GuineaPig, QUIT.into());
    assert!(matches!(attempt(host, STRANGER, pig), Outcome::Done(_)));
    let cores = || match attempt(host, ROOT, Attempt::Text(CORES.into())) {
        Outcome::Done(cores) => cores,
        _ => String::new(),
    };
    let limit = Duration::from_secs(10);
    wait::until("the twin's core", limit, || Ok((!cores().is_empty()).then_some(()))).unwrap();
    let of_twin = cores();
    let [vmm, swtpm, passt] = &victims;
    done(host, Attempt::Crash(vec![swtpm.id, passt.id, vmm.id]));
    wait::until("the end of the VM", limit, || {
        Ok((host.inspect("crash")?["vm"]["state"] == "failed").then_some(()))
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let after = cores();
    done(host, Attempt::Put(setting.into(), pattern.trim().into()));
    host.remove("crash").unwrap();
    let left: Vec<u32> = all_processes(host).iter().map(|process| process.id).collect();
    assert!(victims.iter().all(|victim| !left.contains(&victim.id)), "{victims:?}");
    assert_eq!(after, of_twin, "vmm {}, swtpm {}, passt {}", vmm.id, swtpm.id, passt.id);
}
