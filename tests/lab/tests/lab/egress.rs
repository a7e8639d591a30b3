//! A guest reaches what its image says it may, in its own name, and not its host: whoever reaches the management API may
//! run VMs (SPEC 1.7, 6.6).
//!
//! passt takes frames of any source and answers them, so what a spoofing guest hears is what the filter let out.

use coffer_lab::initrd::{ADDRESS, API_PORT};
use coffer_lab::{machine, probe};
use serde_json::{Value, json};

use crate::lifecycle::stats;
use crate::world::{World, enter};

/// The guest's gateway, which some backends map to the host.
const GATEWAY: &str = "192.168.76.1";
/// Tries to connect, and says how that ended; `-e` starts a program only on a connection. Each trial stands for itself:
/// `up` gives the interface its own address and route anew.
const TOOLS: &str = "\
b=/bin/busybox
say() { if \"$@\" >/dev/null 2>&1; then echo \"TRY $what passed\"; else echo \"TRY $what refused\"; fi; }
try() { what=\"$1:$2\"; say $b nc -w 2 $1 $2 -e $b true; }
as() { $b ip route replace $V/32 via $G src $1; what=\"as $1\"; say $b nc -w 2 $V 443 -e $b true; }
asks() { what=\"arp as $1\"; say $b arping -c 1 -w 2 -s $1 -I eth0 $G; }
up() { $b ip link set eth0 up; $b ip route replace default via $G; }
named() { $b ip link set eth0 down; $b ip link set eth0 address $1; up; what=\"named $2\"; say $b nc -w 2 $V 443 -e $b true; }
";

/// A root guest that tries every address, and every name that is not its own, with the twin after each.
pub fn recipe() -> Value {
    let targets: Vec<String> =
        targets().iter().map(|(address, port, _)| format!("try {address} {port}")).collect();
    let script = format!(
        "V={}; G={GATEWAY}\n{TOOLS}
{}
$b ip addr add 192.168.76.9/24 dev eth0
as 192.168.76.9; as 192.168.76.2
asks 192.168.76.9; asks 192.168.76.2
own=$($b cat /sys/class/net/eth0/address)
named 02:de:ad:be:ef:01 another; named $own itself
what=dhcp; say $b udhcpc -n -q -f -t 2 -T 2 -i eth0 -s $b
echo BEGIN end",
        machine::VERIFIER_ADDRESS,
        targets.join("\n"),
    );
    json!({
        "name": "egress",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script] },
    })
}

/// Each address with what must come of it. The verifier comes first and last: the network was there all the while.
fn targets() -> [(&'static str, u16, &'static str); 6] {
    [
        (machine::VERIFIER_ADDRESS, 443, "passed"),
        (ADDRESS, API_PORT, "refused"),
        (ADDRESS, probe::PORT, "refused"),
        (GATEWAY, API_PORT, "refused"),
        ("127.0.0.1", API_PORT, "refused"),
        (machine::VERIFIER_ADDRESS, 443, "passed"),
    ]
}

/// An image that may send UDP to where the verifier is, and nothing else, and listens on one port.
pub fn fenced_recipe() -> Value {
    let script = format!(
        "V={}; G={GATEWAY}\n{TOOLS}\ntry $V 443\nasks 192.168.76.2\necho BEGIN end",
        machine::VERIFIER_ADDRESS
    );
    json!({
        "name": "fenced",
        "network": {
            "mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": GATEWAY,
            "egress": [{ "cidr": format!("{}/32", machine::VERIFIER_ADDRESS), "protocol": "udp" }],
            "listen": [8080],
        },
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script] },
    })
}

/// What a guest of this image found out, and what the host counted.
fn tried(world: &World, image: &str, more: &[&str]) -> (Vec<String>, Value) {
    let launch = world.host.run(image, "egress", more).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log("egress", "BEGIN end");
    let counted = stats(world, "egress")["refusals"].clone();
    world.host.remove("egress").unwrap();
    let tried = log.lines().filter_map(|line| line.strip_prefix("TRY ")).map(str::to_owned);
    (tried.collect(), counted)
}

#[test]
fn a_guest_speaks_in_its_own_name_and_reaches_no_port_of_its_host() {
    let world = enter();
    let mut expected: Vec<String> = targets()
        .iter()
        .map(|(address, port, outcome)| format!("{address}:{port} {outcome}"))
        .collect();
    expected.extend([
        "as 192.168.76.9 refused".to_owned(),
        "as 192.168.76.2 passed".to_owned(),
        "arp as 192.168.76.9 refused".to_owned(),
        "arp as 192.168.76.2 passed".to_owned(),
        "named another refused".to_owned(),
        "named itself passed".to_owned(),
        "dhcp refused".to_owned(),
    ]);
    let (said, counted) = tried(&world, "egress", &[]);
    assert_eq!(said, expected, "{counted}");
    for cause in ["frame-host", "frame-address", "frame-arp", "frame-mac"] {
        assert!(counted[cause].as_u64() > Some(0), "{cause}: {counted}");
    }
    assert!(counted["frame-egress"].is_null() && counted["frame-closed"].is_null(), "{counted}");
    // An open box differs in one thing: it may ask for its address.
    expected.pop();
    expected.push("dhcp passed".to_owned());
    let (said, counted) = tried(&world, "egress", &["--open"]);
    assert_eq!(said, expected, "{counted}");
}

#[test]
fn an_image_that_lists_where_it_sends_sends_nowhere_else() {
    let world = enter();
    let expected =
        [format!("{}:443 refused", machine::VERIFIER_ADDRESS), "arp as 192.168.76.2 passed".into()];
    let (said, counted) = tried(&world, "fenced", &["-p", "8444:8080"]);
    assert_eq!(said, expected, "{counted}");
    assert!(counted["frame-egress"].as_u64() > Some(0), "{counted}");
    assert_eq!(world.outcome("fenced", "unlisted", &["-p", "8444:8081"]), "shape-not-allowed");
}

/// The site's image lists nothing to send to, listens on its port, and is closed until it attested: that it has its
/// secret and serves its page shows that the verifier is within reach before, and answers are after.
#[test]
fn the_site_is_one_of_those() {
    let world = enter();
    let network = serde_json::to_value(world.scene.site.descriptor().unwrap().network).unwrap();
    assert_eq!((&network["egress"], &network["listen"]), (&json!([]), &json!([443])));
    assert_eq!(network["until_attested"], true);
    assert!(world.site.ok && world.site.timing("attested").is_some(), "{:?}", world.site);
}

#[test]
fn a_vm_on_a_tap_device_is_launched_as_one() {
    let world = enter();
    let launch = world.host.run("fenced", "tapped", &["--net", "tap=coffer0"]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log("tapped", "BEGIN end");
    let measured = world.host.inspect("tapped").unwrap();
    world.host.remove("tapped").unwrap();
    // Nobody is at the other end.
    assert!(log.contains("TRY arp as 192.168.76.2 refused"), "{log}");
    let record = hex::decode(measured["measurements"]["launch_record"].as_str().unwrap()).unwrap();
    assert!(record.windows(4).any(|part| part == b"\x63tap"), "{record:02x?}");
    let refused = world.launch("fenced", "both", &["--net", "tap=coffer0", "-p", "8444:8080"]);
    assert!(refused.message.contains("publishes no ports"), "{refused:?}");
    let refused = world.launch("fenced", "loop", &["--net", "tap=lo"]);
    assert!(refused.message.contains("`lo` is no tap device"), "{refused:?}");
}
