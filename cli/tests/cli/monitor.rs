//! The VM commands against a scripted monitor, and against none.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::support::{Place, Refusal, succeeds};

/// Answers requests from a list of `("METHOD /path", answers)`: each answer once, the last one for ever.
pub struct Script {
    routes: Mutex<Vec<(&'static str, Vec<Answer>)>>,
    seen: Mutex<Vec<String>>,
}

#[derive(Clone)]
pub struct Answer(pub u16, pub String);

pub fn ok(body: impl Into<String>) -> Answer {
    Answer(200, body.into())
}

pub fn refusal(status: u16, code: &str, message: &str) -> Answer {
    Answer(status, format!(r#"{{"code":"{code}","message":"{message}","request_id":"r1"}}"#))
}

impl Script {
    /// Serves on `socket` until the test process ends.
    fn serve(socket: &Path, routes: Vec<(&'static str, Vec<Answer>)>) -> Arc<Self> {
        let listener = UnixListener::bind(socket).expect("bind");
        let script = Arc::new(Self { routes: Mutex::new(routes), seen: Mutex::default() });
        let served = Arc::clone(&script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                served.answer(stream);
            }
        });
        script
    }

    fn answer(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().expect("clone"));
        let mut request = String::new();
        reader.read_line(&mut request).expect("a request line");
        let mut length = 0;
        for line in reader.by_ref().lines().map(|l| l.expect("a header")) {
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("a body");
        let key = request.trim_end_matches(" HTTP/1.1\r\n").to_owned();
        let Answer(status, text) = self.next(&key);
        self.seen.lock().expect("seen").push(format!("{key} {}", String::from_utf8_lossy(&body)));
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len()
        );
        // The client may have gone: that is its business.
        let _ = (&stream).write_all([head, text].concat().as_bytes());
        // What it still sends is read: closing a socket with something in it takes the answer back.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    }

    fn next(&self, key: &str) -> Answer {
        let mut routes = self.routes.lock().expect("routes");
        let found = routes.iter_mut().find(|(route, _)| *route == key);
        let Some((_, answers)) = found else { return refusal(404, "not-found", "no such thing") };
        if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() }
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("seen").clone()
    }
}

const ID: &str = "000102030405060708090a0b0c0d0e0f";

fn vm(state: &str, reason: &str) -> String {
    let reason = match reason {
        "" => "null,\"detail\":null".to_owned(),
        reason => format!("\"{reason}\",\"detail\":\"it broke\""),
    };
    format!(
        r#"{{"id":"{ID}","name":"site","image_id":"{}","image":"site","box":"closed","state":"{state}",
        "reason":{reason},"vcpus":1,"memory_mib":192,"publish":[{{"host":8443,"guest":443}}],"created":0,
        "timings":[{{"step":"hash","at_ms":12.5}}]}}"#,
        "ab".repeat(32)
    )
}

const VM: &str = "GET /v1/vms/site";
const LOGS: &str = "GET /v1/vms/site/logs?follow=true";

/// A place with a monitor that follows a script.
pub fn scripted(routes: Vec<(&'static str, Vec<Answer>)>) -> (Place, Arc<Script>, String) {
    let place = Place::new();
    let socket = place.path("m.sock");
    let script = Script::serve(&socket, routes);
    let endpoint = format!("unix:{}", socket.display());
    (place, script, endpoint)
}

#[test]
fn a_console_that_is_refused_says_why_and_one_that_is_not_shows_what_was_printed() {
    const PRINTED: &str = "GET /v1/vms/site/logs?follow=true";
    const TYPED: &str = "POST /v1/vms/site/console";
    let long = format!("{}login: ", "x".repeat(5000));
    for (answer, says) in [
        (refusal(403, "closed-box", "`site` is a closed box"), Some("(closed-box)")),
        (refusal(409, "busy", "its console is in use"), Some("(busy)")),
        (Answer(204, String::new()), None),
    ] {
        let routes = vec![(PRINTED, vec![ok(long.clone())]), (TYPED, vec![answer])];
        let (place, script, endpoint) = scripted(routes);
        let mut coffer = place.coffer();
        let console = coffer.args(["console", "site", "--host", &endpoint]);
        let output = console.write_stdin("root\n").output().expect("run coffer");
        match says {
            Some(says) => Refusal::of(&output).says(1, says, ""),
            None => assert!(output.status.success(), "{output:?}"),
        }
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            shown.is_empty() || (shown.len() == 2048 && shown.ends_with("xlogin: ")),
            "{shown}"
        );
        assert!(script.seen().iter().any(|request| request.starts_with(TYPED)));
    }
}

#[test]
fn no_monitor_is_said_with_its_address() {
    let place = Place::new();
    let endpoint = format!("unix:{}", place.path("none.sock").display());
    for command in [
        &["ps"][..],
        &["logs", "x"],
        &["console", "x"],
        &["stop", "x"],
        &["rm", "x"],
        &["inspect", "x"],
        &["run", "x"],
        &["host", "info"],
    ] {
        let refusal = place.refused(&[command, &["--host", &endpoint]].concat());
        refusal.says(
            1,
            "none.sock` does not answer: there is no such socket",
            "start coffer-monitor",
        );
    }
}

#[test]
fn a_socket_nobody_listens_on_is_said() {
    let place = Place::new();
    drop(UnixListener::bind(place.path("old.sock")).expect("bind"));
    let refusal =
        place.refused(&["ps", "--host", &format!("unix:{}", place.path("old.sock").display())]);
    refusal.says(1, "connection refused", "start coffer-monitor");
    // Nobody listens on tcpmux.
    let refusal = place.refused(&["ps", "--host", "http://127.0.0.1:1"]);
    refusal.says(1, "connection refused", "port is forwarded");
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    for answer in [ok("[{]"), ok(r#"[{"id":"00"}]"#), ok("{}"), Answer(500, "boom".into())] {
        let (place, _, endpoint) = scripted(vec![("GET /v1/vms", vec![answer])]);
        place.refused(&["ps", "--host", &endpoint]).says(1, "makes no sense", "one version");
    }
}

#[test]
fn ps_lists_what_runs_and_with_all_what_ran() {
    let list = format!("[{},{}]", vm("running", ""), vm("failed", "disk-integrity"));
    let (place, _, endpoint) = scripted(vec![("GET /v1/vms", vec![ok(list)])]);
    let short = succeeds(place.coffer().args(["ps", "--host", &endpoint]));
    assert_eq!(short.lines().count(), 2, "{short}");
    assert!(
        short.starts_with("ID ") && short.contains("000102030405") && short.contains("8443->443"),
        "{short}"
    );
    let all = succeeds(place.coffer().args(["ps", "-a", "--host", &endpoint]));
    assert!(all.contains("failed (disk-integrity)"), "{all}");
    let json = succeeds(place.coffer().args(["ps", "-a", "--json"]).env("COFFER_HOST", &endpoint));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json[1]["reason"], "disk-integrity");
}

#[test]
fn run_detached_prints_the_id_once_the_workload_runs() {
    let (place, script, endpoint) = scripted(vec![
        ("POST /v1/vms", vec![Answer(201, vm("booting", ""))]),
        (VM, vec![ok(vm("started", "")), ok(vm("attested", "")), ok(vm("running", ""))]),
    ]);
    let out = succeeds(
        place
            .coffer()
            .args(["run", "-d", "-m", "1G", "-p", "8443:443", "stored", "--host", &endpoint]),
    );
    assert_eq!(out, format!("{ID}\n"));
    let asked = script.seen()[0].clone();
    for part in
        [r#""image":"stored""#, r#""memory_mib":1024"#, r#""box":"closed""#, r#""host":8443"#]
    {
        assert!(asked.contains(part), "{asked}");
    }
}

#[test]
fn run_detached_fails_with_the_reason() {
    let (place, _, endpoint) = scripted(vec![
        ("POST /v1/vms", vec![Answer(201, vm("booting", ""))]),
        (VM, vec![ok(vm("failed", "policy-denied"))]),
    ]);
    let refusal = place.refused(&["run", "-d", "stored", "--host", &endpoint]);
    refusal.says(1, "`site` failed: it broke (policy-denied)", "coffer verifier decisions");
}

#[test]
fn run_attached_shows_the_log_and_ends_as_the_vm_ends() {
    let routes = |end: String| {
        vec![
            ("POST /v1/vms", vec![Answer(201, vm("booting", ""))]),
            (LOGS, vec![ok("hello from inside\n")]),
            (VM, vec![ok(vm("running", "")), ok(end)]),
        ]
    };
    let (place, _, endpoint) = scripted(routes(vm("stopped", "")));
    let out = succeeds(place.coffer().args(["run", "stored", "--host", &endpoint]));
    assert_eq!(out, "hello from inside\n");

    let (place, _, endpoint) = scripted(routes(vm("failed", "guest-failed")));
    let output =
        place.coffer().args(["run", "stored", "--host", &endpoint]).output().expect("runs");
    assert_eq!(output.stdout, b"hello from inside\n");
    Refusal::of(&output).says(1, "`site` failed: it broke (guest-failed)", "coffer logs site");
}

#[test]
fn an_interrupt_stops_the_vm_in_order() {
    let stop = "POST /v1/vms/site/stop";
    let (place, script, endpoint) = scripted(vec![
        ("POST /v1/vms", vec![Answer(201, vm("running", ""))]),
        (LOGS, vec![ok("up\n")]),
        (VM, vec![ok(vm("running", ""))]),
        (stop, vec![ok(vm("stopped", ""))]),
    ]);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["run", "stored", "--host", &endpoint])
        .current_dir(place.path("."))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("coffer starts");
    let mut first = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the log");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
    while !script.seen().iter().any(|s| s.starts_with(stop)) {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    script.routes.lock().expect("routes").retain_mut(|(route, answers)| {
        if *route == VM {
            *answers = vec![ok(vm("stopped", ""))];
        }
        true
    });
    assert!(child.wait().expect("ends").success());
    let asked = script.seen().into_iter().find(|s| s.starts_with(stop)).expect("asked to stop");
    assert!(asked.contains(r#""grace_s":10"#), "{asked}");
}

#[test]
fn two_interrupts_leave_a_monitor_that_does_not_answer() {
    let place = Place::new();
    let listener =
        std::os::unix::net::UnixListener::bind(place.path("silent.sock")).expect("binds");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["run", "stored", "--host", "unix:silent.sock"])
        .current_dir(place.path("."))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("coffer starts");
    // Connected means that the signals are listened for.
    let _held = listener.accept().expect("connects");
    let pid = rustix::process::Pid::from_child(&child);
    for _ in 0..2 {
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let output = child.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("interrupted"), "{said}");
}

#[test]
fn a_launch_refused_names_what_to_try() {
    let cases = [
        ("kernel-digest", "coffer image verify"),
        ("shape-not-allowed", "coffer image inspect"),
        ("host-tpm-failed", "coffer doctor"),
        ("kvm-unusable", "coffer doctor"),
    ];
    for (code, hint) in cases {
        let (place, _, endpoint) =
            scripted(vec![("POST /v1/vms", vec![refusal(409, code, "not so")])]);
        let refused = place.refused(&["run", "-d", "stored", "--host", &endpoint]);
        refused.says(1, &format!("the monitor refused: not so ({code})"), hint);
    }
}

#[test]
fn the_monitors_hint_about_a_vtpm_reaches_the_user() {
    let body = r#"{"code":"vtpm-failed","message":"no space left","hint":"free space there","request_id":"r1"}"#;
    let (place, _, endpoint) = scripted(vec![("POST /v1/vms", vec![Answer(500, body.to_owned())])]);
    let refused = place.refused(&["run", "-d", "stored", "--host", &endpoint]);
    refused.says(1, "the monitor refused: no space left (vtpm-failed)", "free space there");
}

#[test]
fn rm_is_refused_while_it_runs_and_done_with_force() {
    let vm_route = "GET /v1/vms/site";
    let (place, _, endpoint) = scripted(vec![
        (vm_route, vec![ok(vm("running", ""))]),
        ("DELETE /v1/vms/site", vec![Answer(409, r#"{"code":"busy","message":"it runs","hint":"stop it first","request_id":"r"}"#.into()), Answer(204, String::new())]),
        ("POST /v1/vms/site/stop", vec![ok(vm("stopped", ""))]),
    ]);
    place.refused(&["rm", "site", "--host", &endpoint]).says(1, "it runs (busy)", "stop it first");
    assert_eq!(succeeds(place.coffer().args(["rm", "-f", "site", "--host", &endpoint])), "site\n");
}

#[test]
fn inspect_shows_measurements() {
    let digest = "cd".repeat(32);
    let measured = format!(
        r#"{{"events":[{{"pcr":17,"event":"EV_IPL","what":"launch","digest":"{digest}"}}],"launch_record":"a0","launch_digest":"{digest}"}}"#
    );
    let (place, _, endpoint) = scripted(vec![
        ("GET /v1/vms/site", vec![ok(vm("running", ""))]),
        ("GET /v1/vms/site/measurements", vec![ok(measured)]),
    ]);
    let out = succeeds(place.coffer().args(["inspect", "site", "--host", &endpoint]));
    assert!(out.contains("EV_IPL") && out.contains(&digest) && out.contains("hash 12 ms"), "{out}");
    let json = succeeds(place.coffer().args(["inspect", "--json", "site", "--host", &endpoint]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["measurements"]["events"][0]["pcr"], 17);
}

#[test]
fn an_image_path_that_is_not_there_is_said_before_anybody_is_asked() {
    let (place, script, endpoint) = scripted(vec![]);
    place.refused(&["run", "./gone.image", "--host", &endpoint]).says(
        1,
        "cannot open the image `./gone.image`: it does not exist",
        "check the path",
    );
    assert!(script.seen().is_empty());
}
