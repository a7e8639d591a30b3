//! The workload's way to its monitor: the local API and `coffer-guest`, over a monitor that is a double (SPEC 6.9.5).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use coffer_exchange::Nonce;
use coffer_exchange::evidence::Evidence;
use coffer_exchange::runtime::RuntimeData;
use coffer_init::api::{self, Api};
use coffer_init::attest;
use support::monitor::{Manner, Monitor};
use support::vtpm::Swtpm;

/// An agent that serves its API.
struct Agent {
    directory: tempfile::TempDir,
    _monitor: Monitor,
}

impl Agent {
    fn start(manner: Manner) -> Self {
        let (directory, monitor) = (tempfile::tempdir().unwrap(), Monitor::start(manner));
        let listener = api::listen(&directory.path().join("socket"), "/nowhere".as_ref()).unwrap();
        let evidence = |channel: &_, nonce, runtime_data| {
            let swtpm = Swtpm::start();
            attest::evidence(channel, &mut swtpm.virtual_tpm(), nonce, runtime_data)
        };
        let api = Api::new(monitor.channel(), Box::new(evidence));
        std::thread::spawn(move || api.serve(&listener));
        Self { directory, _monitor: monitor }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Status, head and body of the answer to these bytes.
    fn send(&self, request: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // What is refused early is not read to its end.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let at = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..at].to_vec()).unwrap();
        (head[9..12].parse().unwrap(), head, answer[at + 4..].to_vec())
    }

    fn call(&self, method: &str, target: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let head = format!("{method} {target} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat())
    }

    #[track_caller]
    fn refuses(&self, method: &str, target: &str, body: &[u8], expected: (u16, &str)) {
        let (status, _, body) = self.call(method, target, body);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, body["code"].as_str().unwrap()), expected, "{method} {target}");
    }

    fn guest(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_coffer-init"))
            .arg0("/run/coffer/bin/coffer-guest")
            .arg("--socket")
            .arg(self.socket())
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Commands that read nothing may be gone by now.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.guest(arguments, input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], status: i32, expected: &str) {
        let output = self.guest(arguments, b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn each_call_reaches_the_monitor_and_its_answer_the_workload() {
    let agent = Agent::start(Manner::Honest);
    let (status, _, body) = agent.call("GET", "/v1/id", b"");
    let id: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!((id["box"].as_str(), id["svn"].as_u64()), (Some("closed"), Some(3)));
    assert_eq!(id["image_id"], "01".repeat(32));
    assert!(id["ca"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));

    let key = format!(r#"{{"public_key":"{}"}}"#, "04".repeat(65));
    let (status, head, chain) = agent.call("POST", "/v1/endorse", key.as_bytes());
    assert!(status == 200 && head.contains("application/pem-certificate-chain"));
    assert_eq!(String::from_utf8(chain).unwrap().matches("BEGIN CERTIFICATE").count(), 2);

    let (status, _, blob) =
        agent.call("POST", "/v1/seal?to=signer%3Aab%2Csvn%3D2&fleet=true", b"x y");
    assert_eq!((status, blob.as_slice()), (200, &b"signer:ab,svn=2 true x y"[..]));
    let (status, head, data) = agent.call("POST", "/v1/unseal", &blob);
    assert_eq!((status, data.as_slice()), (200, &b"x y"[..]));
    let by = format!(r#"Coffer-Sealed-By: {{"box":"closed","image_id":"{}","#, "01".repeat(32));
    assert!(head.contains(&by), "{head}");
    let (_, _, blob) = agent.call("POST", "/v1/seal?to=this", b"z");
    assert_eq!(blob, format!("image:{} false z", "01".repeat(32)).into_bytes());

    assert_eq!(agent.call("GET", "/v1/counters/a?of=this", b"").2, br#"{"value":41}"#);
    assert_eq!(agent.call("POST", "/v1/counters/a?of=this", b"").2, br#"{"value":42}"#);
    assert_eq!(agent.call("GET", "/v1/counters/a?of=open", b"").2, br#"{"value":7}"#);
}

#[test]
fn evidence_answers_the_challenge_it_was_asked_for() {
    let agent = Agent::start(Manner::Honest);
    let body =
        format!(r#"{{"nonce":"{}","audience":"https://a","user_data":"0102"}}"#, "05".repeat(32));
    let (status, head, evidence) = agent.call("POST", "/v1/evidence", body.as_bytes());
    assert!(status == 200 && head.contains("application/cmw+cbor"), "{head}");
    let evidence = Evidence::from_cmw(&evidence).unwrap();
    let runtime = RuntimeData::decode(&evidence.runtime_data).unwrap();
    assert_eq!(evidence.nonce, Nonce([5; 32]));
    assert_eq!((runtime.audience.as_str(), runtime.user_data), ("https://a", Some(vec![1, 2])));
    let long = format!(r#"{{"nonce":"{}","user_data":"{}"}}"#, "05".repeat(32), "00".repeat(1025));
    agent.refuses("POST", "/v1/evidence", long.as_bytes(), (413, "limit-exceeded"));
}

#[test]
fn refusals_have_the_code_of_whoever_refuses() {
    let honest = Agent::start(Manner::Honest);
    honest.refuses("GET", "/v1/nothing", b"", (404, "not-found"));
    honest.refuses("PUT", "/v1/id", b"", (404, "not-found"));
    honest.refuses("POST", "/v1/endorse", br#"{"public_key":"04"}"#, (400, "bad-key"));
    honest.refuses("POST", "/v1/endorse", b"{}", (400, "bad-request"));
    honest.refuses("POST", "/v1/seal", b"", (400, "bad-request"));
    honest.refuses("POST", "/v1/seal?to=open&to=open", b"", (400, "bad-request"));
    honest.refuses("POST", "/v1/seal?to=open&flee=true", b"", (400, "bad-request"));
    honest.refuses("GET", "/v1/counters/a", b"", (400, "bad-request"));
    honest.refuses("GET", "/v1/counters/a?off=open", b"", (400, "bad-request"));
    honest.refuses("GET", "/v1/counters/a?of=open&of=open", b"", (400, "bad-request"));
    honest.refuses("POST", "/v1/unseal", &vec![0; 70_000], (413, "too-large"));
    for junk in ["GET /v1/id HTTP/1.0\r\n\r\n", "GET /v1/id x HTTP/1.1\r\n\r\n", "\r\n\r\n"] {
        assert_eq!(honest.send(junk.as_bytes()).0, 400, "{junk:?}");
    }
    let cases = [
        ("not-owner: the policy names another guest", (403, "not-owner")),
        ("no-vault: this host keeps no sealed store", (503, "no-vault")),
        ("no idea", (503, "monitor-refused")),
    ];
    for (line, expected) in cases {
        Agent::start(Manner::Refuses(line)).refuses("POST", "/v1/unseal", b"", expected);
    }
    // The largest that may be sealed passes.
    assert_eq!(honest.call("POST", "/v1/seal?to=open", &vec![b'x'; 64 << 10]).0, 200);
}

#[test]
fn the_socket_is_roots_unless_the_image_has_the_group() {
    let directory = tempfile::tempdir().unwrap();
    let mode = |groups: &str| {
        let (path, file) = (directory.path().join("socket"), directory.path().join("group"));
        let _ = std::fs::remove_file(&path);
        std::fs::write(&file, groups).unwrap();
        let _listener = api::listen(&path, &file).unwrap();
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("root:x:0:\n"), 0o600);
    let own = nix::unistd::getgid();
    assert_eq!(mode(&format!("coffer:x:{own}:\n")), 0o660);
}

#[test]
fn sixteen_callers_that_say_nothing_keep_the_next_out_until_they_leave() {
    let agent = Agent::start(Manner::Honest);
    let idle: Vec<_> = (0..16).map(|_| UnixStream::connect(agent.socket()).unwrap()).collect();
    let mut beyond = UnixStream::connect(agent.socket()).unwrap();
    beyond.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(beyond.read(&mut [0]).unwrap(), 0, "it is hung up on");
    drop(idle);
    let served = || {
        let mut stream = UnixStream::connect(agent.socket()).unwrap();
        let _ = stream.write_all(b"GET /v1/id HTTP/1.1\r\n\r\n");
        stream.read(&mut [0]).is_ok_and(|read| read == 1)
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while !served() {
        assert!(Instant::now() < deadline, "their places are not free again");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_tool_in_the_guest_speaks_the_api() {
    let agent = Agent::start(Manner::Honest);
    let id = String::from_utf8(agent.ok(&["id"], b"")).unwrap();
    assert!(id.contains(&format!("image       {}\n", "01".repeat(32))), "{id}");
    let json: serde_json::Value =
        serde_json::from_slice(&agent.ok(&["id", "--json"], b"")).unwrap();
    assert_eq!(json["instance_id"], "03".repeat(16));

    let file = |name: &str| agent.directory.path().join(name).display().to_string();
    let (key, out) = (file("key.pem"), file("chain.pem"));
    agent.ok(&["endorse", "--key", &key, "--out", &out], b"");
    let made = std::fs::read(&key).unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    agent.ok(&["endorse", "--key", &key, "--out", &out], b"");
    assert_eq!(std::fs::read(&key).unwrap(), made, "the key is kept");
    agent.fails(&["endorse", "--key", &out, "--out", &out], 1, "is no P-256 key");

    let blob = agent.ok(&["seal", "--to", "open"], b"a secret");
    let unsealed = agent.guest(&["unseal"], &blob);
    assert_eq!(unsealed.stdout, b"a secret");
    assert!(String::from_utf8_lossy(&unsealed.stderr).starts_with(r#"sealed by {"box":"closed""#));
    assert_eq!(agent.ok(&["counter", "a", "--of", "this"], b""), b"41\n");
    assert_eq!(agent.ok(&["counter", "a", "--of", "this", "--advance"], b""), b"42\n");
    assert_eq!(agent.ok(&["counter", "a", "--of", "open"], b""), b"7\n");
    // The double's certificates are none.
    agent.fails(&["check-peer", &out], 1, "peer-forged: the certificate is not one of a monitor");
    agent.fails(&["check-peer", &key], 1, "is not a certificate and its CA's in PEM");
}

#[test]
fn the_tool_refuses_what_it_does_not_understand() {
    let agent = Agent::start(Manner::Honest);
    agent.fails(&[], 2, "COMMAND is missing");
    agent.fails(&["ids"], 2, "there is no command `ids`");
    agent.fails(&["id", "--jsn"], 2, "`--jsn` is not understood");
    agent.fails(&["seal"], 2, "`--to` is missing");
    agent.fails(&["seal", "--to", "a&b"], 2, "`--to` is no policy");
    agent.fails(&["counter", "a"], 2, "`--of` is missing");
    agent.fails(&["counter", "../id", "--of", "this"], 2, "`../id` is no name");
    agent.fails(&["counter", "a", "--of", "a&b"], 2, "`--of` is no policy");
    agent.fails(&["check-peer", "x", "--host", "00"], 2, "`--host` is not HAK");
    agent.fails(&["evidence", "--nonce", "00"], 2, "`--nonce` is not 32 bytes");
    let refusing = Agent::start(Manner::Refuses("no-vault: this host keeps no sealed store"));
    refusing.fails(
        &["counter", "a", "--of", "open"],
        1,
        "no-vault: this host keeps no sealed store",
    );
    let nobody = Command::new(env!("CARGO_BIN_EXE_coffer-init"))
        .arg0("coffer-guest")
        .args(["--socket", "/nowhere", "id"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("hint: be root"));
}
