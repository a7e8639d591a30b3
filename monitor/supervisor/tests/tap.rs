//! Real tap devices, each test in a network of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use coffer_monitor::tap::open;
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Runs `act` on a thread with a network that only it, and what it starts, is in.
fn alone(act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            act();
        });
        inside.join().unwrap();
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until the device is gone: what another test starts has its descriptor too, until it is a program of its own.
fn is_gone(name: &str) {
    let gone = || !ip("link show").contains(name);
    let tries = (0..500).map(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
    assert!(gone() || tries.into_iter().any(|()| gone()), "{name} is still there");
}

/// The rights of an ordinary user, for this thread.
fn give_up_rights() {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).unwrap();
}

#[test]
fn makes_a_tap_that_is_up_and_ends_with_its_descriptor() {
    alone(|| {
        let tap = open("coffer0").unwrap();
        let link = ip("-d link show coffer0");
        assert!(link.contains("UP") && link.contains("tun type tap pi off vnet_hdr off"), "{link}");
        drop(tap);
        is_gone("coffer0");
    });
}

#[test]
fn takes_one_that_is_there_as_it_is_and_leaves_it() {
    alone(|| {
        ip("tuntap add dev tap7 mode tap");
        let tap = open("tap7").unwrap();
        assert!(ip("link show tap7").contains("state DOWN"));
        drop(tap);
        assert!(ip("link show").contains("tap7"));
    });
}

#[test]
fn says_what_keeps_it_from_a_tap() {
    let refused = |name: &str, why: &str| {
        let said = open(name).unwrap_err().to_string();
        assert_eq!(said, format!("the tap device `{name}` {why}"));
    };
    alone(|| {
        let first = open("coffer0").unwrap();
        refused("coffer0", "is in use");
        refused("lo", "is no tap device with one queue");
        ip("tuntap add dev tun7 mode tun");
        refused("tun7", "is no tap device with one queue");
        ip("tuntap add dev tap7 mode tap user 4711");
        drop(first);
        is_gone("coffer0");
        give_up_rights();
        refused("tap7", "is another user's");
        refused("coffer0", "is not there, and the monitor may not make it");
    });
}

#[test]
fn a_name_is_one_interface_and_no_pattern() {
    alone(|| {
        for good in ["a", "coffer-net_1.x", "abcdefghijklmno"] {
            open(good).unwrap();
        }
        for bad in ["", ".", "..", "tap%d", "a/b", "a b", "abcdefghijklmnop", "tap\0", "a:1"] {
            assert!(open(bad).is_err(), "{bad}");
        }
        assert_eq!(ip("-o link show").lines().count(), 1, "something was made");
    });
}
