//! Appliances of one image know each other by what their monitor certifies, and know no other: Terra's Trusted Quake
//! (SPEC 6.9). One image has one address, so the test connects them: it is the network between them, which is anybody's.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use coffer_lab::{appliance, wait, workspace};
use serde_json::{Value, json};

use crate::world::{World, enter};

/// Ports of the host at which the server and the client of each of three appliances are published.
pub const PORTS: [u16; 6] = [4451, 4452, 4453, 4454, 4455, 4456];
/// As `coffer-lab-peer` has them.
const SERVES: u16 = 4431;
const CALLS: u16 = 4432;
const LIMIT: Duration = Duration::from_secs(60);

/// Two images whose files differ in one byte.
pub fn images(folder: &Path, images: &Path) -> Result<()> {
    let recipe = recipe();
    for (name, skin) in [("peer", "green"), ("peer-changed", "greed")] {
        let root = folder.join(name);
        appliance::copy_tree(&workspace::rootfs("tools")?, &root)?;
        std::fs::copy(
            workspace::program("coffer-lab-peer")?,
            root.join("usr/bin/coffer-lab-peer"),
        )?;
        std::fs::write(root.join("usr/share/skin"), skin)?;
        appliance::build(&recipe, &root, &images.join(name))?;
    }
    Ok(())
}

fn recipe() -> Value {
    json!({
        "name": "peer",
        "workload": { "argv": ["/usr/bin/coffer-lab-peer"] },
        "network": {
            "mode": "nat", "address": "192.168.76.2", "prefix": 24, "gateway": "192.168.76.1",
            "egress": [{ "cidr": "192.168.76.1/32", "protocol": "udp" }], "listen": [SERVES, CALLS],
        },
    })
}

/// Starts one; the instance it says it is.
fn start(world: &World, image: &str, name: &str, ports: [u16; 2], more: &[&str]) -> String {
    let publish = [format!("{}:{SERVES}", ports[0]), format!("{}:{CALLS}", ports[1])];
    let flags = [&["-p", &publish[0], "-p", &publish[1]], more].concat();
    let launch = world.host.run(image, name, &flags).unwrap();
    assert!(launch.ok, "{launch:?}");
    wait::until("both listeners", LIMIT, || {
        let lines = said(world, name)?;
        Ok((lines.iter().filter(|line| line.starts_with("listens")).count() == 2).then_some(()))
    })
    .unwrap();
    let lines = said(world, name).unwrap();
    lines.iter().find_map(|line| line.strip_prefix("instance ")).unwrap().to_owned()
}

fn said(world: &World, name: &str) -> Result<Vec<String>> {
    let log = world.host.logs(name)?.replace('\r', "");
    Ok(log.lines().filter_map(|line| line.strip_prefix("PEER ")).map(str::to_owned).collect())
}

/// Connects the client of one appliance to the server of another; what each then says last.
fn meet(world: &World, server: (&str, u16), client: (&str, u16)) -> (String, String) {
    let prefix = [format!("{SERVES} "), format!("{CALLS} ")];
    let outcomes = |name: &str, prefix: &str| -> Result<Vec<String>> {
        let lines = said(world, name)?.into_iter();
        Ok(lines.filter_map(|line| line.strip_prefix(prefix).map(str::to_owned)).collect())
    };
    let before = [(server.0, &prefix[0]), (client.0, &prefix[1])]
        .map(|(name, prefix)| outcomes(name, prefix).unwrap().len());
    let connect = |port| TcpStream::connect(("127.0.0.1", world.host.port(port).unwrap())).unwrap();
    let (serving, calling) = (connect(server.1), connect(client.1));
    // Whom nobody sends anything, the network backend leaves half open; and the client waits to be called.
    (&calling).write_all(b".").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| relay(&serving, &calling));
        scope.spawn(|| relay(&calling, &serving));
    });
    let [served, called] = [(server.0, &prefix[0], before[0]), (client.0, &prefix[1], before[1])]
        .map(|(name, prefix, before)| {
            wait::until("the outcome", LIMIT, || Ok(outcomes(name, prefix)?.get(before).cloned()))
                .unwrap()
        });
    (served, called)
}

/// Carries what one sends to the other, until it has no more.
fn relay(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn two_appliances_of_one_image_shake_hands_and_one_with_another_byte_is_refused() {
    let world = enter();
    let [s1, c1, s2, c2, s3, c3] = PORTS;
    let one = start(&world, "peer", "one", [s1, c1], &[]);
    let two = start(&world, "peer", "two", [s2, c2], &[]);
    start(&world, "peer-changed", "third", [s3, c3], &[]);

    let (served, called) = meet(&world, ("one", s1), ("two", c2));
    assert_eq!((served, called), (format!("ok {two}"), format!("ok {one}")));

    // Each refuses the other; who connects judges first.
    let (_, called) = meet(&world, ("third", s3), ("one", c1));
    assert_eq!(called, "peer-other-image");
    let (served, called) = meet(&world, ("one", s1), ("third", c3));
    assert_eq!(called, "peer-other-image");
    assert!(!served.starts_with("ok"), "{served}");

    // The same image in an open box is another thing too; to the open box its peer is what it says.
    world.host.remove("third").unwrap();
    start(&world, "peer", "open", [s3, c3], &["--open"]);
    let (_, called) = meet(&world, ("open", s3), ("two", c2));
    assert_eq!(called, "peer-not-closed");
    let (served, _) = meet(&world, ("two", s2), ("open", c3));
    assert_eq!(served, "peer-not-closed");
    for name in ["one", "two", "open"] {
        world.host.remove(name).unwrap();
    }
}
