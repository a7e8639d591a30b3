//! VMs that stand still, begin anew, and outlive their monitor's records, on real KVM (SPEC 6.4.2 to 6.4.4).

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coffer_lab::host::Launch;
use coffer_lab::{crash, wait};
use serde_json::Value;

use crate::world::{World, enter};

fn ask(world: &World, words: &[&str]) -> String {
    world.host.coffer().unwrap().run([], |c| c.args(words)).unwrap().must().unwrap()
}

pub fn stats(world: &World, name: &str) -> Value {
    let text = ask(world, &["stats", "--json", name]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

fn state(world: &World, name: &str) -> Value {
    world.host.inspect(name).unwrap()["vm"].clone()
}

/// CPU time of a VM over two seconds of this machine's clock.
fn cpu(world: &World, name: &str) -> u64 {
    let used = || stats(world, name)["cpu_us"].as_u64().unwrap();
    let before = used();
    std::thread::sleep(Duration::from_secs(2));
    used() - before
}

#[test]
fn a_paused_vm_stands_still_goes_on_and_stops_in_order() {
    let world = enter();
    let launch = world.host.run("site", "cycle", &[]).unwrap();
    assert!(launch.ok, "{launch:?}");
    // The same request finds the VM it made; another one finds the name taken.
    let same = world.host.run("site", "cycle", &[]).unwrap();
    assert!(same.ok, "{same:?}");
    let id = |launch: &Launch| launch.vm.as_ref().unwrap()["vm"]["id"].clone();
    assert_eq!(id(&launch), id(&same));
    let other = world.host.run("site", "cycle", &["-m", "256M"]).unwrap();
    assert!(!other.ok && other.message.contains("name-taken"), "{other:?}");
    let running = stats(&world, "cycle");
    assert_eq!(running["state"], "running");
    assert!(running["memory_bytes"].as_u64().unwrap() > 16 << 20, "{running}");
    assert!(running["tasks"].as_u64().unwrap() >= 4, "{running}");
    // A guest that waits still ticks; the twin of the silence below.
    let awake = cpu(&world, "cycle");
    for _ in 0..2 {
        ask(&world, &["pause", "cycle"]);
        assert_eq!(state(&world, "cycle")["state"], "paused");
        let asleep = cpu(&world, "cycle");
        assert!(asleep * 4 < awake, "{asleep} of {awake} microseconds");
        ask(&world, &["resume", "cycle"]);
        assert_eq!(state(&world, "cycle")["state"], "running");
    }
    // No watchdog barked, and the guest still hears: it is not the end of its grace that ends it.
    ask(&world, &["pause", "cycle"]);
    let asked = Instant::now();
    ask(&world, &["stop", "-t", "40", "cycle"]);
    assert!(asked.elapsed() < Duration::from_secs(30));
    let stopped = state(&world, "cycle");
    assert_eq!((&stopped["state"], &stopped["reason"]), (&Value::from("stopped"), &Value::Null));
    let log = world.host.logs("cycle").unwrap();
    assert!(!log.contains("lockup") && !log.contains("rcu_sched"), "{log}");
    world.host.remove("cycle").unwrap();
}

#[test]
fn a_paused_vm_can_be_killed_and_launched_anew_and_is_measured_again() {
    let world = enter();
    let launch = world.host.run("site", "anew", &[]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let before = world.host.inspect("anew").unwrap();
    ask(&world, &["pause", "anew"]);
    ask(&world, &["reset", "anew"]);
    let after = wait::until("the workload", Duration::from_secs(60), || {
        let vm = world.host.inspect("anew")?;
        Ok((vm["vm"]["state"] == "running").then_some(vm))
    })
    .unwrap();
    assert_ne!(before["vm"]["id"], after["vm"]["id"]);
    assert_eq!(before["vm"]["image_id"], after["vm"]["image_id"]);
    // The same kernel, initrd and command line; another launch record. It got its key again, so its verifier agrees.
    let digest = |vm: &Value| vm["measurements"]["launch_digest"].clone();
    assert_ne!(digest(&before), digest(&after));
    let of = |vm: &Value, pcr: u64| -> Vec<Value> {
        let events = vm["measurements"]["events"].as_array().unwrap();
        events.iter().filter(|e| e["pcr"] == pcr).map(|e| e["digest"].clone()).collect()
    };
    assert_eq!((of(&before, 4), of(&before, 9)), (of(&after, 4), of(&after, 9)));
    assert_ne!(of(&before, 17), of(&after, 17));
    assert_eq!((&after["vm"]["restarts"], &after["vm"]["name"]), (&Value::from(0), &"anew".into()));
    ask(&world, &["pause", "anew"]);
    ask(&world, &["stop", "-t", "0", "anew"]);
    assert_eq!(state(&world, "anew")["state"], "stopped");
    world.host.remove("anew").unwrap();
}

#[test]
fn a_failure_is_tried_again_as_often_as_asked_and_a_broken_promise_never() {
    let world = enter();
    let failing = world.host.run("verifier-away", "retry", &["--restart", "on-failure:1"]).unwrap();
    assert!(!failing.ok);
    let vm = state(&world, "retry");
    assert_eq!((&vm["state"], &vm["restarts"]), (&Value::from("failed"), &Value::from(1)), "{vm}");
    assert_eq!(vm["last_reason"], "guest-failed");
    world.host.remove("retry").unwrap();
    let broken = world.host.run("forged-rootfs", "broken", &["--restart", "always"]).unwrap();
    assert!(!broken.ok);
    let vm = state(&world, "broken");
    assert_eq!(vm["reason"], "disk-integrity");
    assert_eq!((&vm["state"], &vm["restarts"]), (&Value::from("failed"), &Value::from(0)), "{vm}");
    world.host.remove("broken").unwrap();
}

#[test]
fn a_monitor_killed_at_any_moment_of_a_launch_leaves_nothing_and_forgets_nothing() {
    let world = enter();
    let stream = TcpStream::connect(("127.0.0.1", world.host.port(crash::PORT).unwrap())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(150))).unwrap();
    let lines: Vec<Value> = BufReader::new(stream)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert_eq!(lines.last().unwrap()["done"], true, "{lines:#?}");
    let lives: Vec<&Value> = lines.iter().filter(|line| line["processes"].is_u64()).collect();
    assert!(lives.len() >= 7, "{lines:#?}");
    // Some were killed before there was anything, some while processes ran, some once the VM did.
    assert!(lives.iter().any(|life| life["known"].as_array().unwrap().is_empty()), "{lives:#?}");
    assert!(lives.iter().any(|life| life["processes"].as_u64().unwrap() > 0), "{lives:#?}");
    assert!(lives.iter().any(|life| life["answered"] == true), "{lives:#?}");
    let unasked = |life: &&Value| life["known"][0]["reason"] == "monitor-ended";
    assert!(lives.iter().any(unasked), "{lives:#?}");
    let again = lines.iter().find(|line| line["after"].is_object()).unwrap();
    assert_ne!(again["before"]["id"], again["after"]["id"]);
    assert_eq!(again["after"]["last_reason"], "monitor-ended");
    // The host's own monitor and its VM saw nothing of it.
    assert_eq!(state(&world, "site")["state"], "running");
    world.scene.fetch(&world.host).unwrap();
}
