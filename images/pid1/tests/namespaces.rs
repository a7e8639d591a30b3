//! PID 1 functions for real, inside fresh user, mount, network and PID namespaces.
//!
//! Each claim is an ignored test that runs as "root" in a throw-away namespace; one ordinary test beside
//! it starts this same binary there with `unshare` and expects it to pass.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use coffer_pid1::children::{self, Ended};
use coffer_pid1::{
    bind_file, mount_data_read_only, mount_read_only, mount_tmpfs, move_root_to_tmpfs, network,
    switch_root,
};

#[track_caller]
fn passes_in_a_namespace(name: &str) {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("unshare is in util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}\n{errors}");
}

macro_rules! in_a_namespace {
    ($( $claim:ident => $inner:ident ),* $(,)?) => { $(
        #[test]
        fn $claim() {
            passes_in_a_namespace(stringify!($inner));
        }
    )* };
}

in_a_namespace! {
    a_static_address_gives_a_default_route => inner_network,
    an_unknown_interface_is_named => inner_unknown_interface,
    a_moved_root_can_be_pivoted_from => inner_move_root,
    switch_root_enters_the_new_tree_and_empties_the_old => inner_switch_root,
    nothing_runs_from_a_data_mount => inner_data_mount,
    a_root_that_is_a_disk_is_never_deleted => inner_disk_root,
    a_session_leader_gets_default_signals_and_is_reaped => inner_children,
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_data_mount() {
    let dir = Path::new("/mnt");
    mount_tmpfs(dir, 0o755).unwrap();
    let flags = |path: &Path| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|l| l.split(' ').nth(1) == path.to_str()).unwrap();
        line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    let has = |path: &Path, flag: &str| flags(path).iter().any(|have| have == flag);
    let (data, root) = (dir.join("data"), dir.join("root"));
    mount_data_read_only(Path::new("none"), &data, "tmpfs").unwrap();
    mount_read_only(Path::new("none"), &root, "tmpfs").unwrap();
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(has(&data, flag) && has(&root, flag), "{flag}");
    }
    assert!(has(&data, "noexec") && !has(&root, "noexec"));
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_network() {
    let made =
        Command::new("ip").args(["link", "add", "eth0", "type", "veth", "peer", "far"]).status();
    assert!(made.unwrap().success());
    // The far end is up, or the route would have no carrier.
    assert!(Command::new("ip").args(["link", "set", "far", "up"]).status().unwrap().success());
    let (address, gateway) = (Ipv4Addr::new(192, 168, 76, 2), Ipv4Addr::new(192, 168, 76, 1));
    network::up("eth0", address, 24, gateway).unwrap();
    // A second time finds everything in place.
    network::up("eth0", address, 24, gateway).unwrap();
    let shown = Command::new("ip").args(["-4", "route"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("default via 192.168.76.1 dev eth0"), "{shown}");
    assert!(shown.contains("192.168.76.0/24 dev eth0"), "{shown}");
    // Loopback works.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_unknown_interface() {
    let gateway = Ipv4Addr::new(10, 0, 0, 1);
    let error = network::up("eth9", Ipv4Addr::new(10, 0, 0, 2), 24, gateway).unwrap_err();
    assert!(error.to_string().starts_with("cannot find the interface on `eth9`"), "{error}");
    let error = network::only_interface().unwrap_err();
    assert!(error.to_string().contains("no network interface"), "{error}");
}

/// Stands in for an initramfs: a tmpfs with a few files, entered with chroot.
fn enter_initramfs() {
    let root = Path::new("/tmp");
    mount_tmpfs(root, 0o755).unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/monitor"), b"program").unwrap();
    fs::set_permissions(root.join("bin/monitor"), fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::symlink("bin/monitor", root.join("init")).unwrap();
    fs::create_dir_all(root.join("lib/modules")).unwrap();
    fs::write(root.join("lib/modules/kvm.ko"), b"module").unwrap();
    fs::create_dir(root.join("proc")).unwrap();
    rustix::process::chroot(root).unwrap();
    rustix::process::chdir("/").unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("proc", "/proc", "proc", flags, None).unwrap();
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_move_root() {
    enter_initramfs();
    // Device numbers tell the two tmpfs apart.
    let held = fs::File::open("/").unwrap();
    move_root_to_tmpfs(Path::new("/newroot"), &["bin", "init", "etc"]).unwrap();
    assert_eq!(fs::read("/init").unwrap(), b"program");
    assert_eq!(fs::metadata("/bin/monitor").unwrap().permissions().mode() & 0o777, 0o751);
    assert!(!Path::new("/lib").exists());
    assert!(Path::new("/proc/self/status").exists());
    // Nothing of the old tree is left but directories that were mount points.
    let left: Vec<_> = rustix::fs::Dir::read_from(&held)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    assert!(left.iter().all(|name| name == "newroot" || name == "proc"), "{left:?}");
    // What the whole exercise is for.
    mount_tmpfs(Path::new("/jail"), 0o755).unwrap();
    fs::write("/jail/inside", b"").unwrap();
    fs::create_dir("/jail/old").unwrap();
    rustix::process::pivot_root("/jail", "/jail/old").unwrap();
    assert!(Path::new("/inside").exists());
    assert!(Path::new("/old/init").exists());
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_switch_root() {
    enter_initramfs();
    let held = fs::File::open("/").unwrap();
    // The new root lacks /proc: refused before anything is deleted.
    mount_tmpfs(Path::new("/newroot"), 0o755).unwrap();
    let error = switch_root(Path::new("/newroot")).unwrap_err();
    assert!(error.to_string().starts_with("cannot mount `/newroot/proc`"), "{error}");
    assert!(Path::new("/bin/monitor").exists());
    // A directory that is no mount would be deleted with the old root: refused.
    fs::create_dir("/plain").unwrap();
    assert!(switch_root(Path::new("/plain")).is_err());
    assert!(Path::new("/bin/monitor").exists());

    for name in ["proc", "etc", "run"] {
        fs::create_dir(Path::new("/newroot").join(name)).unwrap();
    }
    mount_tmpfs(Path::new("/run"), 0o755).unwrap();
    let (monitor, tool) = (fs::read("/bin/monitor").unwrap(), Path::new("/run/coffer/bin/tool"));
    bind_file(Path::new("/bin/monitor"), tool).unwrap();
    assert!(bind_file(Path::new("/bin/monitor"), tool).is_err(), "what is there is not covered");
    switch_root(Path::new("/newroot")).unwrap();
    // Deleted where it was, and read-only where it is.
    assert_eq!(fs::read(tool).unwrap(), monitor);
    assert!(fs::write(tool, b"x").is_err());
    assert!(Path::new("/etc").exists() && Path::new("/proc/self/status").exists());
    assert!(!Path::new("/bin").exists());
    let left = rustix::fs::Dir::read_from(&held).unwrap().count();
    assert!(left <= 4, "{left} entries are left in the old root");
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_disk_root() {
    // An overlay stands in for the disk: a root that is no memory file system, whatever this machine runs from.
    let base = Path::new("/mnt");
    mount_tmpfs(base, 0o755).unwrap();
    for name in ["lower", "upper", "work", "root"] {
        fs::create_dir(base.join(name)).unwrap();
    }
    let flags = rustix::mount::MountFlags::empty();
    let layers = c"lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
    rustix::mount::mount("none", "/mnt/root", "overlay", flags, layers).unwrap();
    rustix::process::chroot("/mnt/root").unwrap();
    rustix::process::chdir("/").unwrap();
    fs::write("/kept", b"").unwrap();
    fs::create_dir("/new").unwrap();
    mount_tmpfs(Path::new("/new"), 0o755).unwrap();
    for name in ["proc", "sys", "dev", "run"] {
        fs::create_dir(Path::new("/new").join(name)).unwrap();
    }
    let error = switch_root(Path::new("/new")).unwrap_err();
    assert!(error.to_string().contains("find an old root in memory"), "{error}");
    assert!(Path::new("/kept").exists() && Path::new("/new/run").exists());
}

#[test]
#[ignore = "runs inside a namespace"]
fn inner_children() {
    let strings = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let script =
        "[ \"$(cut -d' ' -f6 /proc/$$/stat)\" = $$ ] && [ \"$ONLY\" = yes ] && kill -PIPE $$";
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("proc", "/proc", "proc", flags, None).unwrap();
    let env = strings(&["ONLY=yes", "PATH=/usr/bin:/bin"]);
    let pid = children::spawn_session(&strings(&["/bin/sh", "-c", script]), &env).unwrap();
    let reaped = children::reap().unwrap().unwrap();
    assert_eq!((reaped.pid, reaped.ended), (pid, Ended::Signal(13)));

    let pid = children::spawn_session(&strings(&["/bin/sh", "-c", "exec sleep 60"]), &env).unwrap();
    assert_eq!(children::try_reap().unwrap(), None);
    children::signal_group(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(children::reap().unwrap().unwrap().ended, Ended::Signal(15));
    children::signal_group(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(children::reap().unwrap(), None);

    let error = children::spawn_session(&strings(&["sh"]), &[]).unwrap_err();
    assert_eq!(error.to_string(), "cannot start `sh`: the path is not absolute");
    let error = children::spawn_session(&strings(&["/nowhere"]), &[]).unwrap_err();
    assert!(error.to_string().starts_with("cannot start `/nowhere`: No such file"), "{error}");
}
