//! Many different guests on one host, and one of them in trouble after the other: it crashes, hangs, ends in a triple
//! fault, eats its memory, fills its disk. The others answer every request meanwhile (SPEC 6.3.2, 6.5).

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coffer_lab::appliance::{self, SITE_PORT};
use coffer_lab::visitor::{Target, Visitor};
use coffer_lab::{wait, workspace};
use serde_json::{Value, json};

use crate::world::{World, enter};

/// Ports of the host: a second site, a box with another kernel, an open box, the box in trouble.
pub const PORTS: [u16; 4] = [SECOND, OTHER_KERNEL, OPEN, TROUBLED];
const SECOND: u16 = 8444;
const OTHER_KERNEL: u16 = 8445;
const OPEN: u16 = 8446;
const TROUBLED: u16 = 8447;
/// Port the plain boxes serve at, and the troubled one listens at.
const PLAIN: u16 = 80;
/// What their page says.
const PLAIN_PAGE: &str = "A box among others.";
/// Longest a troubled box may take to end by itself.
const END: Duration = Duration::from_secs(60);
/// How long one that hangs is watched, and how long it gets to stop in order.
const WATCHED: Duration = Duration::from_secs(3);

/// The network backend sends to a guest only once it knows it: a box that would wait for others says something first.
const SPEAK: &str = "$b ping -c 1 -W 1 192.168.76.1 > /dev/null";

/// A box that serves a page over plain HTTP.
pub fn plain_recipe() -> Value {
    let script = format!(
        "b=/bin/busybox; {SPEAK}; $b mkdir /tmp/www; echo '{PLAIN_PAGE}' > /tmp/www/index.html
$b uname -r; exec $b httpd -f -p {PLAIN} -h /tmp/www"
    );
    json!({
        "name": "plain",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script], "tmpfs": ["/tmp"] },
    })
}

/// A box that waits to be told what trouble to be in. `reboot=t` has Linux reset by a triple fault.
pub fn trouble_recipe() -> Value {
    let script = format!(
        "b=/bin/busybox; {SPEAK}; word=$($b nc -l -p {PLAIN} | $b head -n 1); echo \"TROUBLE $word\"; $b sleep 1
case $word in
crash) echo c > /proc/sysrq-trigger;;
triple-fault) echo b > /proc/sysrq-trigger;;
halt) $b halt -f;;
hang) exec /usr/bin/coffer-hostile-guest hang;;
memory) exec /usr/bin/coffer-hostile-guest memory;;
disk) $b dd if=/dev/zero of=/tmp/full bs=1048576; exit 1;;
esac"
    );
    json!({
        "name": "trouble",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script], "tmpfs": ["/tmp"] },
        "cmdline": ["reboot=t"],
    })
}

/// The images of this test; `rootfs` has the tools and the hostile guest's program.
pub fn images(rootfs: &Path, store: &Path) -> Result<()> {
    appliance::build(&plain_recipe(), rootfs, &store.join("plain"))?;
    let other = workspace::other_kernel_package()?;
    appliance::build_on(&other, &plain_recipe(), rootfs, &store.join("other-kernel"))?;
    appliance::build(&trouble_recipe(), rootfs, &store.join("trouble")).map(drop)
}

/// How a troubled box ends.
enum End {
    /// By itself: state, reason, and a part of the detail.
    Itself(&'static str, &'static str, &'static str),
    /// Not at all: it runs until it is stopped.
    Hangs,
}

const TROUBLES: [(&str, End); 6] = [
    ("crash", End::Itself("failed", "guest-failed", "reset itself")),
    ("triple-fault", End::Itself("failed", "guest-failed", "reset itself")),
    ("halt", End::Hangs),
    ("hang", End::Hangs),
    ("memory", End::Itself("failed", "guest-failed", "workload-failed")),
    ("disk", End::Itself("failed", "guest-failed", "workload-failed")),
];

#[test]
fn the_others_serve_whatever_happens_to_one() {
    let world = enter();
    let publish = |port: u16, to: u16| format!("{port}:{to}");
    let boxes = [
        ("site", "second", publish(SECOND, SITE_PORT), None),
        ("other-kernel", "other-kernel", publish(OTHER_KERNEL, PLAIN), None),
        ("plain", "open", publish(OPEN, PLAIN), Some("--open")),
    ];
    for (image, name, port, more) in &boxes {
        let more: Vec<&str> = ["-p", port.as_str()].into_iter().chain(*more).collect();
        let launch = world.host.run(image, name, &more).unwrap();
        assert!(launch.ok, "{name}: {launch:?}");
    }
    let targets = targets(&world).unwrap();
    for target in &targets {
        wait::until("the first answer", Duration::from_secs(30), || Ok(target.ask().ok())).unwrap();
    }
    // Whoever answers has said which kernel it has.
    let kernels = ["other-kernel", "open"].map(|name| {
        let log = world.host.logs(name).unwrap();
        log.lines().rev().find(|line| line.starts_with("6.")).unwrap_or_default().to_owned()
    });
    println!("kernels: {kernels:?}");
    assert!(
        kernels[0] != kernels[1] && kernels.iter().all(|k| k.contains("-cloud-")),
        "{kernels:?}"
    );
    let visitors: Vec<Visitor> = targets.into_iter().map(Visitor::start).collect();
    for (trouble, end) in &TROUBLES {
        let start = Instant::now();
        in_trouble(&world, trouble, end).unwrap_or_else(|error| panic!("{trouble}: {error:#}"));
        println!("{trouble}: {:.1} s", start.elapsed().as_secs_f64());
    }
    for visitor in visitors {
        let visits = visitor.stop().unwrap();
        assert!(visits.failures.is_empty(), "{}: {:?}", visits.name, visits.failures);
        assert!(visits.taken.len() >= 20, "{}: {} answers", visits.name, visits.taken.len());
        println!(
            "{}: {} answers, median {:?}, p99 {:?}",
            visits.name,
            visits.taken.len(),
            visits.percentile(50),
            visits.percentile(99)
        );
    }
    for (_, name, ..) in &boxes {
        assert_eq!(world.host.inspect(name).unwrap()["vm"]["state"], "running", "{name}");
        world.host.remove(name).unwrap();
    }
    assert_eq!(world.host.inspect("site").unwrap()["vm"]["state"], "running");
}

fn targets(world: &World) -> Result<Vec<Target>> {
    let site = world.site_target()?;
    let plain = |name: &str, port| -> Result<Target> {
        let (name, page) = (name.to_owned(), PLAIN_PAGE.to_owned());
        Ok(Target { name, port: world.host.port(port)?, page, certificate: None })
    };
    let second = Target { name: "second".into(), port: world.host.port(SECOND)?, ..site.clone() };
    Ok(vec![site, second, plain("other-kernel", OTHER_KERNEL)?, plain("open", OPEN)?])
}

/// Launches a box, tells it its trouble, and sees how it ends.
fn in_trouble(world: &World, trouble: &str, end: &End) -> Result<()> {
    let port = format!("{TROUBLED}:{PLAIN}");
    let launch = world.host.run("trouble", "troubled", &["-p", &port])?;
    ensure!(launch.ok, "it does not run: {launch:?}");
    tell(world, trouble)?;
    let state =
        |world: &World| Ok::<_, anyhow::Error>(world.host.inspect("troubled")?["vm"].clone());
    match end {
        End::Itself(expected, reason, detail) => {
            let vm = wait::until("its end", END, || {
                let vm = state(world)?;
                Ok((vm["state"] != "running").then_some(vm))
            })?;
            let said = vm["detail"].as_str().unwrap_or_default();
            let named =
                vm["state"] == *expected && vm["reason"] == *reason && said.contains(detail);
            ensure!(named, "it ended otherwise: {vm}");
        }
        End::Hangs => {
            std::thread::sleep(WATCHED);
            let vm = state(world)?;
            ensure!(vm["state"] == "running", "it does not hang: {vm}");
            world.host.coffer()?.run(["stop", "-t", "2", "troubled"], |c| c)?.must()?;
            let vm = state(world)?;
            ensure!(vm["state"] == "stopped", "it was not stopped: {vm}");
        }
    }
    world.host.remove("troubled")
}

/// Sends the word until the box has heard it: what listens may not be there yet when its workload is said to run.
fn tell(world: &World, word: &str) -> Result<()> {
    let port = world.host.port(TROUBLED)?;
    let heard = format!("TROUBLE {word}");
    wait::until("the box to hear of its trouble", Duration::from_secs(20), || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        // A refusal shows only later; the box says what it heard.
        let _ = writeln!(stream, "{word}");
        std::thread::sleep(Duration::from_millis(500));
        drop(stream);
        Ok(world.host.logs("troubled")?.contains(&heard).then_some(()))
    })
}
