//! A hostile management role, as far as no VM is needed (SPEC 1.7, 2.2): what it sends, the images it names, the folder
//! the monitor works in, the environment it starts it with. Each attempt has its twin, which is not refused.
//! `tests/lab/tests/lab/management` has the rest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coffer_formats::launch::BoxKind;
use coffer_monitor_wire::api::VmInfo;
use common::{Monitor, TestImage, TestTpm, serve};
use serde_json::{Value, json};

/// A uid that owns nothing.
const STRANGER: u32 = 4242;

/// On a machine without KVM: what is asked for and is in order gets as far as that.
fn setup() -> (Monitor, TestImage) {
    let monitor = Monitor::start_on_bare_dev();
    let image = TestImage::write(&monitor.images().join("test"), BoxKind::Closed);
    (monitor, image)
}

fn launch(monitor: &Monitor, request: &Value) -> (u16, String) {
    monitor.refusal("POST", "/v1/vms", &request.to_string())
}

const IN_ORDER: (u16, &str) = (503, "kvm-unusable");

#[track_caller]
fn check(monitor: &Monitor, request: &Value, expected: (u16, &str)) {
    let (status, code) = launch(monitor, request);
    assert_eq!((status, code.as_str()), expected, "{request}");
    assert!(monitor.json::<Vec<VmInfo>>("GET", "/v1/vms", "").is_empty());
}

/// What other programs that run VMs let their caller say.
const FIELDS: [&str; 39] = [
    "kernel",
    "initrd",
    "cmdline",
    "append",
    "descriptor",
    "image_id",
    "root_hash",
    "salt",
    "svn",
    "nics",
    "mac",
    "bridge",
    "instance_id",
    "id",
    "incarnation",
    "tpm_state",
    "seed",
    "ek",
    "vak_name",
    "debug",
    "gdb",
    "monitor",
    "core",
    "dump",
    "env",
    "environment",
    "LD_PRELOAD",
    "uid",
    "user",
    "stdin",
    "serial",
    "cid",
    "measurements",
    "launch_digest",
    "state",
    "secrets",
    "profile",
    "fds",
    "privileged",
];

#[test]
fn nothing_but_what_is_on_the_list_can_be_said_of_a_vm() {
    let (monitor, _) = setup();
    let request = json!({ "image": "test", "box": "closed" });
    for field in FIELDS {
        for value in [json!("x"), json!(1), json!(true), json!({}), json!(null)] {
            let mut more = request.clone();
            more[field] = value;
            check(&monitor, &more, (400, "bad-request"));
        }
    }
    let mut more = request.clone();
    more["publish"] = json!([{ "host": 1, "guest": 1, "address": "10.0.0.1" }]);
    check(&monitor, &more, (400, "bad-request"));
    // Said twice, so that whoever looks at one of the two sees something else than the monitor.
    let twice = r#"{"image":"test","box":"open","box":"closed"}"#;
    assert_eq!(monitor.refusal("POST", "/v1/vms", twice).0, 400);
    check(&monitor, &request, IN_ORDER);
}

#[test]
fn a_name_leads_to_nothing_but_an_image() {
    let (monitor, image) = setup();
    let store = monitor.images();
    fs::create_dir(monitor.dir.path().join("outside")).unwrap();
    for name in [
        "../images/test",
        "test/../test",
        "./test",
        ".",
        "..",
        "",
        "test/",
        "test\u{0}",
        "te\nst",
        "%74est",
        "test/blobs",
        "../outside",
        "file:///test",
        "test;id",
        "$(id)",
        "-",
        "--help",
    ] {
        check(&monitor, &json!({ "image": name, "box": "closed" }), (404, "image-not-found"));
    }
    for (path, expected) in [
        ("/", (422, "bad-descriptor")),
        ("/etc", (422, "bad-descriptor")),
        ("/etc/shadow", (422, "bad-descriptor")),
        ("/proc/self/mem", (422, "bad-descriptor")),
        ("/dev/random", (422, "bad-descriptor")),
        ("/nowhere", (404, "image-not-found")),
    ] {
        check(&monitor, &json!({ "image": path, "box": "closed" }), expected);
    }
    for name in ["../x", "A", "a b", "a\n", "a\u{1b}[2J", "", "..", "a/b", &"a".repeat(64)] {
        let request = json!({ "image": "test", "box": "closed", "name": name });
        check(&monitor, &request, (400, "bad-request"));
    }
    // The folder may be reached by a link, as the store may be moved; what it holds is measured either way.
    symlink(&image.path, store.join("link")).unwrap();
    for name in ["test", "link", image.path.to_str().unwrap()] {
        check(&monitor, &json!({ "image": name, "box": "closed", "name": "a-1" }), IN_ORDER);
    }
}

#[test]
fn a_file_of_an_image_that_is_none_is_neither_followed_nor_waited_for() {
    let (monitor, image) = setup();
    let request = json!({ "image": "test", "box": "closed" });
    let Some(coffer_image::descriptor::Disk::Integrity { blob, .. }) =
        image.descriptor.disks.first()
    else {
        panic!("no disk")
    };
    let mut files: Vec<_> =
        [&image.descriptor.kernel, &image.descriptor.initrd, &image.descriptor.cmdline, blob]
            .map(|blob| image.blob(blob))
            .into();
    files.extend(["index.json", "oci-layout"].map(|name| image.path.join(name)));
    let aside = monitor.dir.path().join("aside");
    for file in files {
        check(&monitor, &request, IN_ORDER);
        fs::rename(&file, &aside).unwrap();
        let started = Instant::now();
        for other in ["link", "pipe", "device", "folder", "socket"] {
            let mut socket = None;
            match other {
                "link" => symlink(&aside, &file).unwrap(),
                "folder" => fs::create_dir(&file).unwrap(),
                "socket" => {
                    // A path may be longer than the name of a socket.
                    let short = monitor.dir.path().join("s");
                    socket = Some(std::os::unix::net::UnixListener::bind(&short).unwrap());
                    fs::rename(short, &file).unwrap();
                }
                kind => {
                    let kind: &[&str] = if kind == "pipe" { &["p"] } else { &["c", "1", "5"] };
                    assert!(
                        Command::new("mknod").arg(&file).args(kind).status().unwrap().success()
                    );
                }
            }
            let (status, code) = launch(&monitor, &request);
            assert_eq!((status, code.as_str()), (422, "bad-descriptor"), "{other}: {file:?}");
            drop(socket);
            match other {
                "folder" => fs::remove_dir(&file).unwrap(),
                _ => fs::remove_file(&file).unwrap(),
            }
        }
        assert!(started.elapsed() < Duration::from_secs(10));
        fs::rename(&aside, &file).unwrap();
    }
    check(&monitor, &request, IN_ORDER);
}

/// Rewrites and replaces while the monitor looks: it finds the image in order, or names what it found.
#[test]
fn an_image_that_changes_during_a_launch_is_refused_or_in_order() {
    let (monitor, image) = setup();
    let kernel = image.blob(&image.descriptor.kernel);
    let whole = fs::read(&kernel).unwrap();
    let request = json!({ "image": "test", "box": "closed" });
    let beside = monitor.dir.path().join("beside");
    let put = |bytes: &[u8]| {
        fs::write(&beside, bytes).unwrap();
        fs::rename(&beside, &kernel).unwrap();
    };
    let byte = |byte: &[u8]| {
        let file = File::options().write(true).open(&kernel).unwrap();
        file.write_all_at(byte, 299_999).unwrap();
    };
    let more = [&whole[..], b"more"].concat();
    // Each by itself: a kernel of another size is refused before it is hashed.
    let one_byte: [&(dyn Fn() + Sync); 2] = [&|| byte(b"x"), &|| byte(b"k")];
    let other_size: [&(dyn Fn() + Sync); 2] = [&|| put(&more), &|| put(&whole)];
    for changes in [one_byte, other_size] {
        let enough = AtomicBool::new(false);
        let answers = thread::scope(|scope| {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    for change in changes {
                        change();
                        thread::sleep(Duration::from_micros(700));
                    }
                }
            });
            let answers: BTreeSet<(u16, String)> =
                (0..150).map(|_| launch(&monitor, &request)).collect();
            enough.store(true, Ordering::Relaxed);
            answers
        });
        let expected = [(422, "kernel-digest".to_owned()), (IN_ORDER.0, IN_ORDER.1.to_owned())];
        assert_eq!(answers, BTreeSet::from(expected));
    }
}

/// A line as the log of a monitor has it, made up.
const FORGED: &str = "2026-01-01T00:00:00.000000Z  INFO coffer_monitor::vm: ended forged";

#[test]
fn nothing_a_caller_sends_makes_a_line_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let child = serve(dir.path(), &[]).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let monitor = Monitor::up(dir.into(), child);
    let image = TestImage::write(&monitor.images().join("test"), BoxKind::Closed);
    let hostile = format!("x\n{FORGED}\r\u{1b}[2J\u{9b}2J\u{202e}");
    for request in [
        json!({ "image": hostile, "box": "closed" }),
        json!({ "image": format!("/{hostile}"), "box": "closed" }),
        json!({ "image": "test", "box": hostile }),
        json!({ "image": "test", "box": "closed", hostile.as_str(): 1 }),
        json!({ "image": "test", "box": "closed", "name": hostile }),
    ] {
        assert!(launch(&monitor, &request).0 >= 400);
    }
    let cmdline = format!("a\n{FORGED}");
    fs::write(image.blob(&image.descriptor.cmdline), cmdline).unwrap();
    launch(&monitor, &json!({ "image": "test", "box": "closed" }));
    monitor.refusal("GET", "/v1/vms/x%0A2026-01-01T00:00:00.000000Z%20%20INFO%20forged", "");
    let said = fs::read_to_string(&log).unwrap();
    // What was sent is in the log, in lines of the monitor's own.
    assert!(said.contains("forged") && said.lines().count() >= 7, "{said}");
    for line in said.lines() {
        assert!(!line.starts_with("2026-01-01"), "a forged line: {line}");
        let level = line.split_whitespace().nth(1);
        assert!(["INFO", "WARN"].map(Some).contains(&level), "a line of whose? {line}");
        assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{line:?}");
    }
}

/// Whoever can write in the state folder decides what the next monitor ends and where vTPMs lie.
#[test]
fn a_state_folder_that_others_can_write_in_is_refused() {
    let victim = Command::new("sleep").arg("60").spawn().unwrap();
    let victim = Victim(victim);
    let stat = fs::read_to_string(format!("/proc/{}/stat", victim.0.id())).unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap();
    let line = format!("{} {start}\n", victim.0.id());
    let try_with = |spoil: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir_all(state.join("vms/planted")).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
        fs::write(state.join("vms/planted/children"), &line).unwrap();
        spoil(dir.path());
        let mut child = serve(dir.path(), &[]).stderr(Stdio::piped()).spawn().unwrap();
        let up = (0..500).any(|_| {
            thread::sleep(Duration::from_millis(10));
            child.try_wait().unwrap().is_some()
                || UnixStream::connect(dir.path().join("api.sock")).is_ok()
        });
        assert!(up);
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let spoilt: [&dyn Fn(&Path); 4] = [
        &|dir| chown(dir.join("state"), Some(STRANGER), None).unwrap(),
        &|dir| mode(&dir.join("state"), 0o777),
        &|dir| chown(dir, Some(STRANGER), None).unwrap(),
        &|dir| mode(dir, 0o777),
    ];
    for spoil in spoilt {
        let said = try_with(spoil);
        assert!(said.contains("others than the monitor can change"), "{said}");
        assert!(said.contains("hint: name a directory"), "{said}");
        assert!(victim.lives());
    }
    // In a folder of its own a monitor ends what is noted there.
    assert!(!try_with(&|_| {}).contains("others"));
    assert!(!victim.lives());
}

struct Victim(std::process::Child);

impl Victim {
    /// It is ours to reap: ended, it is a zombie.
    fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z')
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn children_have_nothing_of_the_environment_of_the_monitor() {
    let tpm = TestTpm::start();
    let dir = tempfile::tempdir().unwrap();
    let hostile = [
        ("LD_PRELOAD", "/nowhere/hostile.so"),
        ("LD_LIBRARY_PATH", "/nowhere"),
        ("LD_AUDIT", "/nowhere/audit.so"),
        ("GCONV_PATH", "/nowhere"),
        ("OPENSSL_CONF", "/nowhere/openssl.cnf"),
        ("XDG_CONFIG_HOME", "/nowhere"),
        ("TPM2_PKCS11_STORE", "/nowhere"),
        ("RUST_LOG", "debug"),
    ];
    let child = serve(dir.path(), &tpm.flags()).envs(hostile).spawn().unwrap();
    let monitor = Monitor::up(dir.into(), child);
    let environment = |pid: u32| fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let own = environment(monitor.pid());
    assert!(hostile.iter().all(|(name, _)| own.contains(name)), "{own}");
    let children: Vec<u32> = fs::read_dir(format!("/proc/{}/task", monitor.pid()))
        .unwrap()
        .flat_map(|thread| {
            let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
            children.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        })
        .collect();
    assert!(!children.is_empty());
    for child in children {
        let seen = environment(child);
        assert!(["", "TSS2_LOG=all+none\0"].contains(&seen.as_str()), "{seen}");
    }
}

#[test]
fn a_request_without_end_is_cut_off_and_the_next_is_answered() {
    let (monitor, _) = setup();
    let socket = monitor.dir.path().join("api.sock");
    let send = |head: &str, piece: &[u8], pieces: usize| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // It may be cut off while we still send.
        let _ = (0..pieces).try_for_each(|_| stream.write_all(piece));
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).map(|()| String::from_utf8_lossy(&answer).into_owned())
    };
    let chunked = "POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"8000\r\n".as_slice(), &[b' '; 0x8000], b"\r\n"].concat();
    assert_eq!(send(chunked, &chunk, 1000).unwrap(), "HTTP/1.1 413");
    let long =
        format!("POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    assert_eq!(send(&long, &[b' '; 0x8000], 1000).unwrap(), "HTTP/1.1 413");
    let head = "GET /v1/vms HTTP/1.1\r\nHost: x\r\n";
    assert_eq!(
        send(head, &[b"a: ".as_slice(), &[b'x'; 1000], b"\r\n"].concat(), 5000).unwrap(),
        "HTTP/1.1 431"
    );
    // One that fits is read to its end.
    let padded = format!(r#"{{"image":"test","box":"closed"{}}}"#, " ".repeat(60 << 10));
    assert_eq!(monitor.refusal("POST", "/v1/vms", &padded), (IN_ORDER.0, IN_ORDER.1.to_owned()));
    let deep = "[".repeat(60 << 10);
    assert_eq!(monitor.refusal("POST", "/v1/vms", &deep), (400, "bad-request".into()));
}

/// Descriptors that the monitor may have in the test of connections.
const FILES: u64 = 256;

/// More connections than a process may have files, each with a request that never ends.
#[test]
fn connections_that_are_only_held_take_nothing_from_launches() {
    let (monitor, _) = setup();
    let socket = monitor.dir.path().join("api.sock");
    let mut early = UnixStream::connect(&socket).unwrap();
    let body = json!({ "image": "test", "box": "closed" }).to_string();
    let mut ask = || {
        write!(
            early,
            "POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = vec![0; 4096];
        let n = early.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    assert!(ask().contains(IN_ORDER.1));
    let process = rustix::process::Pid::from_raw(monitor.pid() as i32);
    let few = rustix::process::Rlimit { current: Some(FILES), maximum: Some(FILES) };
    rustix::process::prlimit(process, rustix::process::Resource::Nofile, few).unwrap();
    let mut held = Vec::new();
    for _ in 0..2 * FILES {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\n");
        held.push(stream);
    }
    thread::sleep(Duration::from_millis(500));
    let answer = ask();
    assert!(answer.contains(IN_ORDER.1), "{answer}");
    drop(held);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(monitor.call("GET", "/v1/vms", "").0, 200);
}
