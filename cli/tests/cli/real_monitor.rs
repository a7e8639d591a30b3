//! A real `coffer-monitor` on this machine, with a software TPM as its host's or with none.
//!
//! Needs the monitor built in the same tree, as `cargo xtask test` builds it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffer_attestation::Digest;
use coffer_attestation::event_log::{EventType, LogBuilder, SEPARATOR};
use coffer_attestation::tpm::{command, response};

use crate::image::{built, workspace};
use crate::support::Place;

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A monitor in a folder of its own.
pub struct Monitor {
    pub folder: Place,
    _monitor: Running,
}

/// Makes a `/dev` of the few devices every program needs, then becomes the program named.
const BARE_DEV: &str = r#"
mount -t tmpfs none "$0" || exit
for name in null zero random urandom; do
    : > "$0/$name" && mount --bind "/dev/$name" "$0/$name" || exit
done
mount --rbind "$0" /dev && exec "$@""#;

impl Monitor {
    pub fn start(more: &[&str]) -> Self {
        let folder = Place::new();
        let serve = Self::serve(&folder, more);
        Self::up(folder, serve)
    }

    /// With a vault whose root is in software.
    pub fn start_with_vault() -> Self {
        let folder = Place::new();
        let vault = folder.path("vault");
        let vault = vault.to_str().expect("UTF-8");
        let serve = Self::serve(&folder, &["--vault", vault, "--dangerously-software-vault"]);
        Self::up(folder, serve)
    }

    /// The same, of a host that takes leave of the verifier with this release key.
    pub fn start_with_vault_under(verifier: &str) -> Self {
        let folder = Place::new();
        let vault = folder.path("vault");
        let vault = vault.to_str().expect("UTF-8");
        let vault = ["--vault", vault, "--dangerously-software-vault"];
        let serve = Self::serve(&folder, &[&vault[..], &["--vault-verifier", verifier]].concat());
        Self::up(folder, serve)
    }

    /// On a machine that has neither KVM nor a TPM, whatever this one has.
    pub fn start_on_bare_dev() -> Self {
        let folder = Place::new();
        std::fs::create_dir(folder.path("dev")).expect("create");
        let serve = Self::serve(&folder, &[]);
        let mut apart = Command::new("unshare");
        apart
            .args(["--map-root-user", "--mount", "sh", "-c", BARE_DEV])
            .arg(folder.path("dev"))
            .arg(serve.get_program())
            .args(serve.get_args());
        Self::up(folder, apart)
    }

    fn serve(folder: &Place, more: &[&str]) -> Command {
        let program =
            workspace("target/release/coffer-monitor", "`cargo build --release -p coffer-monitor`");
        let path = |name: &str| folder.path(name);
        std::fs::create_dir(path("images")).expect("create");
        let mut serve = Command::new(program);
        serve
            .arg("serve")
            .args([
                "--socket".into(),
                path("api.sock"),
                "--state".into(),
                path("state"),
                "--images".into(),
                path("images"),
            ])
            .args(["--vmm", "/bin/false"])
            .args(more);
        serve
    }

    fn up(folder: Place, mut serve: Command) -> Self {
        let child =
            serve.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the monitor starts");
        let monitor = Running(child);
        until(|| UnixStream::connect(folder.path("api.sock")).ok());
        Self { folder, _monitor: monitor }
    }

    /// What one says that does not start, and leaves behind nothing but its image store.
    pub fn fails(more: &[&str]) -> String {
        let folder = Place::new();
        let output = Self::serve(&folder, more).stdin(Stdio::null()).output().expect("it starts");
        assert!(!output.status.success());
        let left = std::fs::read_dir(folder.path(".")).expect("a folder").count();
        assert_eq!(left, 1);
        String::from_utf8(output.stderr).expect("UTF-8")
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        let socket = self.folder.path("api.sock");
        let mut stream = UnixStream::connect(socket).expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("receive");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.folder.path("api.sock").display())
    }
}

/// A software TPM with an EK certificate, started as firmware would leave it.
pub struct SoftwareTpm {
    folder: Place,
    port: u16,
    _swtpm: Running,
}

impl SoftwareTpm {
    pub fn start() -> Self {
        let folder = Place::new();
        manufacture(&folder);
        let port = two_ports();
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .args(["--tpmstate", &format!("dir={}", folder.path(".").display())])
            .stderr(Stdio::null())
            .spawn()
            .expect("swtpm starts");
        let swtpm = Running(child);
        folder.write("log", boot(port));
        Self { folder, port, _swtpm: swtpm }
    }

    /// A monitor whose host has this TPM.
    pub fn monitor(&self) -> Monitor {
        let (tcti, log) =
            (format!("swtpm:host=127.0.0.1,port={}", self.port), self.folder.path("log"));
        Monitor::start(&["--tcti", &tcti, "--host-event-log", log.to_str().expect("UTF-8")])
    }

    /// Certificates of whoever signed its EK certificate.
    pub fn roots(&self) -> [PathBuf; 2] {
        ["ca/swtpm-localca-rootca-cert.pem", "ca/issuer.pem"].map(|name| self.folder.path(name))
    }
}

fn manufacture(folder: &Place) {
    let d = folder.path("");
    let d = d.display();
    folder.write("ca/localca.conf", format!(
        "statedir = {d}/ca\nsigningkey = {d}/ca/key.pem\nissuercert = {d}/ca/issuer.pem\ncertserial = {d}/ca/serial\n"
    ));
    folder.write(
        "ca/options",
        "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n",
    );
    let setup = folder.write("ca/setup.conf", format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {d}/ca/localca.conf\n\
         create_certs_tool_options = {d}/ca/options\nactive_pcr_banks = sha256\n"
    ));
    let made = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(folder.path("."))
        .arg("--config")
        .arg(setup)
        .output()
        .expect("swtpm_setup starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
}

/// A port with the next one free too: the TPM library expects the control channel there.
fn two_ports() -> u16 {
    let pair = || {
        let first = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = first.local_addr().ok()?.port();
        TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
    };
    (0..100).find_map(|_| pair()).expect("two free ports")
}

/// Extends the separators and returns the log that says so.
fn boot(port: u16) -> Vec<u8> {
    let mut stream = until(|| TcpStream::connect(("127.0.0.1", port)).ok());
    let separator = Digest::of(&[SEPARATOR]);
    let log = (0..8).fold(LogBuilder::new(), |log, pcr| {
        stream.write_all(&command::pcr_extend(pcr, &[separator.into()])).expect("send");
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).expect("receive");
        response::ok(&answer[..n]).expect("extended");
        log.event(pcr, EventType::SEPARATOR, separator, SEPARATOR)
    });
    log.finish()
}

fn until<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(it) = ready() {
            return it;
        }
        assert!(Instant::now() < deadline, "it does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn host_info_and_an_empty_list() {
    let monitor = Monitor::start(&[]);
    let ask = |args: &[&str]| {
        crate::support::succeeds(
            Place::new().coffer().args(args).args(["--host", &monitor.endpoint()]),
        )
    };
    assert!(ask(&["host", "info"]).contains("developer"));
    assert_eq!(ask(&["ps", "-a", "--json"]), "[]\n");
    assert!(ask(&["ps"]).starts_with("ID "));
}

#[test]
fn unusable_kvm_is_said_and_nothing_stays() {
    let monitor = Monitor::start_on_bare_dev();
    let before = monitor.folder.snapshot();
    let (image, endpoint) = (built().0.path("out.image"), monitor.endpoint());
    for more in [&[][..], &["-d"], &["--open"]] {
        let args = [&["run", image.to_str().expect("UTF-8"), "--host", &endpoint], more].concat();
        Place::new().refused(&args).says(1, "(kvm-unusable)", "coffer doctor");
    }
    assert!(monitor.folder.snapshot() == before, "a refused launch left something behind");
}

#[test]
fn a_launch_that_is_wrong_is_refused_before_kvm_is_needed() {
    let monitor = Monitor::start(&[]);
    let image = built().0.path("out.image");
    let image = image.to_str().expect("UTF-8");
    let refused = |args: &[&str]| {
        Place::new().refused(&[&["run", "--host", &monitor.endpoint()], args].concat())
    };
    refused(&["absent"]).says(1, "(image-not-found)", "image store");
    refused(&["-m", "64M", image]).says(
        1,
        "64 MiB of memory are not within 192 to 4096, which the image allows (shape-not-allowed)",
        "coffer image inspect",
    );
    let taken = TcpListener::bind("0.0.0.0:0").expect("bind");
    let port = format!("{}:443", taken.local_addr().expect("an address").port());
    refused(&["-p", &port, image]).says(1, "", "");
    for command in ["logs", "stop", "rm", "inspect"] {
        let refusal = Place::new().refused(&[command, "absent", "--host", &monitor.endpoint()]);
        refusal.says(1, "no VM `absent` (not-found)", "coffer ps");
    }
}
