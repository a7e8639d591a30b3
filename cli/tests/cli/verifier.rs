//! The verifier's commands against a real verifier over real TLS, and against everything that is not one.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::support::{Place, Refusal, succeeds};

/// `coffer verifier serve` on a port of its own; ended with the test.
pub struct Served {
    pub place: Place,
    child: Child,
    port: u16,
}

impl Served {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// With something done to the data folder `v` before it is served.
    pub fn start_with(prepare: impl FnOnce(&Place)) -> Self {
        let place = Place::new();
        init(&place, "v");
        prepare(&place);
        let (child, port) = serve(&place, "v");
        Self { place, child, port }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// A command as the operator.
    pub fn admin(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = self.place.coffer();
        command
            .args(args)
            .env("COFFER_VERIFIER", self.url())
            .env("COFFER_CA", self.place.path("v/ca.pem"));
        command.env("COFFER_ADMIN_TOKEN_FILE", self.place.path("v/admin-token"));
        command
    }

    #[track_caller]
    pub fn refused(&self, command: &mut assert_cmd::Command) -> Refusal {
        let output = command.output().expect("coffer starts");
        assert!(output.stdout.is_empty(), "{output:?}");
        Refusal::of(&output)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn init(place: &Place, dir: &str) {
    let out =
        succeeds(place.coffer().args(["verifier", "init", "--dir", dir, "--name", "localhost"]));
    assert!(out.contains("https://localhost\n") && out.contains("admin-token"), "{out}");
}

fn serve(place: &Place, dir: &str) -> (Child, u16) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_coffer"))
        .args(["verifier", "serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(place.path(dir))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("coffer starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("an address");
    let port = line.trim().strip_prefix("127.0.0.1:").and_then(|p| p.parse().ok()).expect("a port");
    (child, port)
}

const IMAGE: &str = "abababababababababababababababababababababababababababababababab";

#[test]
fn an_operator_keeps_secrets_and_sees_decisions() {
    let served = Served::start();
    served.place.write("key.pem", "very secret words");
    let put = ["secret", "put", "site/tls-key", "--from-file", "key.pem", "--image", IMAGE];
    assert_eq!(succeeds(&mut served.admin(&put)), "site/tls-key version 1\n");
    let stdin = [
        "secret",
        "put",
        "site/tls-key",
        "--from-file",
        "-",
        "--image",
        &format!("sha256:{IMAGE}"),
    ];
    assert_eq!(succeeds(served.admin(&stdin).write_stdin("others")), "site/tls-key version 2\n");

    let list = succeeds(&mut served.admin(&["verifier", "decisions"]));
    assert!(
        list.starts_with("ID ") && list.contains("admin") && list.contains("allowed"),
        "{list}"
    );
    let json = succeeds(&mut served.admin(&["verifier", "decisions", "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let id = json["decisions"][0]["id"].as_str().expect("an id").to_owned();
    let one = succeeds(&mut served.admin(&["verifier", "decisions", &id]));
    assert!(one.contains(&id) && one.contains("site/tls-key"), "{one}");
    for text in [list, one, json.to_string()] {
        assert!(!text.contains("very secret words"), "{text}");
    }
}

#[test]
fn a_secret_has_a_limit_and_both_sides_know_it() {
    const MAX: usize = coffer_verifier::api::SECRET_MAX;
    let served = Served::start();
    let put = ["secret", "put", "a/b", "--from-file", "key", "--image", IMAGE];
    served.place.write("key", vec![b'k'; MAX]);
    assert_eq!(succeeds(&mut served.admin(&put)), "a/b version 1\n");
    served.place.write("key", vec![b'k'; MAX + 1]);
    let refusal = served.refused(&mut served.admin(&put));
    refusal.says(1, "`key` is not a secret: it has more than 24 KiB", "encrypted disks");
    served.place.write("key", "");
    served.refused(&mut served.admin(&put)).says(1, "it is empty", "check what writes it");
    served.place.write("key", "k");
    assert_eq!(succeeds(&mut served.admin(&put)), "a/b version 2\n");
}

#[test]
fn an_operator_makes_tokens_and_trusts_hosts() {
    let served = Served::start();
    let token = succeeds(&mut served.admin(&["verifier", "token", "rack7"]));
    assert!(token.trim().len() >= 32, "{token}");
    let place = crate::host::reference_inputs();
    let reference = succeeds(place.coffer().args(crate::host::REFERENCE_ARGS));
    served.place.write("ref.json", reference);
    assert_eq!(succeeds(&mut served.admin(&["verifier", "trust-host", "ref.json"])), "rack\n");
    let hosts = succeeds(&mut served.admin(&["verifier", "hosts"]));
    assert!(hosts.starts_with("NAME ") && hosts.lines().count() == 1, "{hosts}");
    served.place.write("ref.json", "{}");
    let refusal = served.refused(&mut served.admin(&["verifier", "trust-host", "ref.json"]));
    refusal.says(1, "`ref.json` is not a host reference value", "coffer host reference");
}

#[test]
fn an_author_gets_what_to_pin() {
    let served = Served::start();
    let pin = succeeds(&mut served.admin(&["verifier", "pin"]));
    let pin: serde_json::Value = serde_json::from_str(&pin).expect("JSON");
    assert_eq!(pin["url"], "https://localhost");
    assert_eq!(pin["ca"], std::fs::read_to_string(served.place.path("v/ca.pem")).expect("the CA"));
    assert_eq!(pin["release_key"].as_str().expect("a key").len(), 130);
}

#[test]
fn refuses_a_certificate_of_another_ca_or_name() {
    let served = Served::start();
    init(&served.place, "other");
    let wrong_ca = served.place.path("other/ca.pem");
    let refusal = served.refused(served.admin(&["verifier", "pin"]).env("COFFER_CA", &wrong_ca));
    refusal.says(1, "it is not issued by the CA given", "--ca");
    let url = format!("https://127.0.0.1:{}", served.port);
    let refusal = served.refused(served.admin(&["verifier", "hosts"]).env("COFFER_VERIFIER", url));
    refusal.says(1, "it is for another name", "coffer verifier init --name");
    // The secret goes nowhere under a wrong certificate.
    served.place.write("key", "secret");
    let put = ["secret", "put", "a/b", "--from-file", "key", "--image", IMAGE];
    served.refused(served.admin(&put).env("COFFER_CA", &wrong_ca)).says(
        1,
        "not issued by the CA",
        "--ca",
    );
    let list = succeeds(&mut served.admin(&["verifier", "decisions"]));
    assert!(!list.contains("a/b"), "{list}");
}

#[test]
fn refuses_files_that_are_no_ca_and_no_token() {
    let served = Served::start();
    let refused = |name: &str, file: &str| {
        served.refused(served.admin(&["verifier", "hosts"]).env(name, served.place.path(file)))
    };
    refused("COFFER_CA", "v/tls.key").says(1, "is not a CA certificate", "ca.pem");
    refused("COFFER_CA", "v/verifier.json").says(1, "is not a CA certificate", "ca.pem");
    refused("COFFER_CA", "gone").says(1, "it does not exist", "check the path");
    refused("COFFER_ADMIN_TOKEN_FILE", "gone").says(1, "it does not exist", "check the path");
    refused("COFFER_ADMIN_TOKEN_FILE", "v/ca.pem").says(
        1,
        "is not an admin token",
        "coffer verifier init",
    );
    served.place.write("wrong", "0".repeat(64));
    refused("COFFER_ADMIN_TOKEN_FILE", "wrong").says(1, "the verifier refused", "admin token");
}

#[test]
fn a_verifier_that_is_down_is_said() {
    let place = Place::new();
    init(&place, "v");
    place.write("key", "secret");
    // Nobody listens on tcpmux.
    let admin = [
        "--verifier",
        "https://localhost:1",
        "--ca",
        "v/ca.pem",
        "--admin-token-file",
        "v/admin-token",
    ];
    for command in [
        &["verifier", "hosts"][..],
        &["secret", "put", "a/b", "--from-file", "key", "--image", IMAGE],
    ] {
        place.refused(&[command, &admin].concat()).says(
            1,
            "does not answer: connection refused",
            "coffer verifier serve",
        );
    }
}

#[test]
fn something_that_is_no_tls_server_is_said() {
    let place = Place::new();
    init(&place, "v");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    place.refused(&["verifier", "pin", "--verifier", &url, "--ca", "v/ca.pem"]).says(
        1,
        "does not answer",
        "",
    );
}

#[test]
fn serve_refuses_a_port_in_use_and_a_folder_that_is_none() {
    let place = Place::new();
    init(&place, "v");
    let holder = TcpListener::bind("127.0.0.1:0").expect("bind");
    let listen = holder.local_addr().expect("an address").to_string();
    place.refused(&["verifier", "serve", "--dir", "v", "--listen", &listen]).says(
        1,
        &format!("`{listen}` is in use"),
        "--listen",
    );
    drop(holder);
    place.refused(&["verifier", "serve", "--dir", "gone", "--listen", "127.0.0.1:0"]).says(
        1,
        "`gone` is not a verifier's data folder",
        "coffer verifier init",
    );
    place
        .refused(&[
            "verifier",
            "serve",
            "--dir",
            "v",
            "--listen",
            "127.0.0.1:0",
            "--policy",
            "gone.cedar",
        ])
        .says(1, "`gone.cedar`", "name a file");
}

#[test]
fn init_overwrites_nothing() {
    let place = Place::new();
    init(&place, "v");
    place.refused(&["verifier", "init", "--dir", "v", "--name", "localhost"]).says(
        1,
        "`v` is not empty",
        "another folder",
    );
    place.refused(&["verifier", "init", "--dir", "w", "--name", "not a name"]).says(
        1,
        "",
        "verifier.example",
    );
}

#[test]
fn serve_ends_in_order_and_keeps_what_it_was_given() {
    let mut served = Served::start();
    served.place.write("key", "secret");
    let put = ["secret", "put", "a/b", "--from-file", "key", "--image", IMAGE];
    succeeds(&mut served.admin(&put));
    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    assert!(served.child.wait().expect("ends").success());
    (served.child, served.port) = serve(&served.place, "v");
    assert_eq!(succeeds(&mut served.admin(&put)), "a/b version 2\n");
}
