//! A monitor under test, a host TPM for it, and images to give it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coffer_attestation::event_log::{EventType, LogBuilder, SEPARATOR};
use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use coffer_formats::tpm::{command, response};
use coffer_image::appliance::Network;
use coffer_image::descriptor::{
    ARTIFACT_TYPE, BlobDigest, BlobRef, ConsoleMode, DESCRIPTOR_MEDIA_TYPE, Descriptor, Disk,
    Range, Shape,
};
use coffer_image::layout::{
    Content, INDEX_MEDIA_TYPE, Index, LayoutFile, MANIFEST_MEDIA_TYPE, Manifest,
};
use coffer_image::reach::Reach;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub const MONITOR: &str = env!("CARGO_BIN_EXE_coffer-monitor");

/// Makes a `/dev` of the few devices every program needs, then becomes the program named.
const BARE_DEV: &str = r#"
mount -t tmpfs none "$0" || exit
for name in null zero random urandom; do
    : > "$0/$name" && mount --bind "/dev/$name" "$0/$name" || exit
done
mount --rbind "$0" /dev && exec "$@""#;

/// A `coffer-monitor serve` in a folder of its own.
pub struct Monitor {
    pub dir: Rc<tempfile::TempDir>,
    child: Child,
}

impl Monitor {
    pub fn start(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = serve(dir.path(), more).spawn().unwrap();
        Self::up(dir.into(), child)
    }

    /// In a folder that holds something already.
    pub fn start_in(dir: tempfile::TempDir) -> Self {
        let child = serve(dir.path(), &[]).spawn().unwrap();
        Self::up(dir.into(), child)
    }

    /// As by a crash: it has no time for a word.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The next one in the same folder.
    pub fn killed_and_started_again(mut self) -> Self {
        self.kill();
        let child = serve(self.dir.path(), &[]).spawn().unwrap();
        Self::up(Rc::clone(&self.dir), child)
    }

    /// On a machine that has neither KVM nor a TPM, whatever this one has.
    pub fn start_on_bare_dev() -> Self {
        Self::start_on_bare_dev_with(&[])
    }

    pub fn start_on_bare_dev_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path().join("dev");
        fs::create_dir(&dev).unwrap();
        let serve = serve(dir.path(), more);
        let child = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", BARE_DEV])
            .arg(dev)
            .arg(serve.get_program())
            .args(serve.get_args())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self::up(dir.into(), child)
    }

    pub fn up(dir: Rc<tempfile::TempDir>, child: Child) -> Self {
        let mut monitor = Self { dir, child };
        monitor.wait_until_up();
        monitor
    }

    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_up(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.dir.path().join("api.sock")).is_err() {
            assert!(Instant::now() < deadline, "the monitor does not come up");
            assert!(self.child.try_wait().unwrap().is_none(), "the monitor ended");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Status and body.
    pub fn call(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        self.send(method, path, body.as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = UnixStream::connect(self.dir.path().join("api.sock")).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        // At once: a refusal may come, and the connection end, before all of a request is read.
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(!head.contains("chunked"));
        (status, answer[end + 4..].to_vec())
    }

    pub fn json<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> T {
        let (status, body) = self.call(method, path, body);
        assert!(status < 300, "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// Status and code of an error.
    pub fn refusal(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.refusal_of(method, path, body.as_bytes())
    }

    pub fn refusal_of(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let (status, body) = self.send(method, path, body);
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, body["code"].as_str().unwrap_or("no error").to_owned())
    }

    /// Ends it in order; true if it exits with 0.
    pub fn end(mut self) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that serves in `dir`. The VM process is a program that ends at once: no test here gets so far.
pub fn serve(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(MONITOR);
    let images = dir.join("images");
    let _ = fs::create_dir(&images);
    command
        .arg("serve")
        .arg("--socket")
        .arg(dir.join("api.sock"))
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--images")
        .arg(images)
        .arg("--disks")
        .arg(dir.join("disks"))
        .args(["--vmm", "/bin/false"])
        .args(more)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// An image layout with a kernel, initrd and disk that are big enough to be files.
pub struct TestImage {
    pub path: PathBuf,
    pub descriptor: Descriptor,
}

impl TestImage {
    pub fn write(path: &Path, box_kind: BoxKind) -> Self {
        Self::write_with(path, box_kind, |_| {})
    }

    /// The same with a descriptor that `change` has changed.
    pub fn write_with(
        path: &Path,
        box_kind: BoxKind,
        change: impl FnOnce(&mut Descriptor),
    ) -> Self {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        let blob = |bytes: &[u8]| put(path, bytes);
        let disk = coffer_image::verity::Geometry::new(8192).unwrap().blob_size();
        let mut descriptor = Descriptor {
            version: 1,
            name: "test".into(),
            box_kind,
            svn: 1,
            architecture: "x86_64".into(),
            kernel: blob(&[b'k'; 300_000]),
            initrd: blob(&[b'i'; 200_000]),
            cmdline: blob(b"console=ttyS0 quiet"),
            disks: vec![Disk::Integrity {
                name: "root".into(),
                blob: blob(&vec![0; disk as usize]),
                data_size: 8192,
                root_hash: Digest([7; 32]),
                salt: String::new(),
            }],
            shape: Shape {
                vcpus: Range { min: 1, max: 4 },
                memory_mib: Range { min: 256, max: 1024 },
            },
            console: ConsoleMode::Output,
            vtpm: Default::default(),
            network: Network::Nat {
                address: [192, 168, 76, 2].into(),
                prefix: 24,
                gateway: [192, 168, 76, 1].into(),
                reach: Reach::default(),
            },
            verifier: None,
            secrets: Vec::new(),
            not_after: None,
        };
        change(&mut descriptor);
        descriptor.check().unwrap();
        let content = |media_type: &str, blob: BlobRef| Content {
            media_type: media_type.into(),
            digest: blob.digest,
            size: blob.size,
            artifact_type: None,
            annotations: Default::default(),
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_MEDIA_TYPE.into(),
            artifact_type: ARTIFACT_TYPE.into(),
            config: content(DESCRIPTOR_MEDIA_TYPE, blob(&serde_json::to_vec(&descriptor).unwrap())),
            layers: Vec::new(),
        };
        let index = Index {
            schema_version: 2,
            media_type: INDEX_MEDIA_TYPE.into(),
            manifests: vec![content(
                MANIFEST_MEDIA_TYPE,
                blob(&serde_json::to_vec(&manifest).unwrap()),
            )],
        };
        let marker = LayoutFile { image_layout_version: "1.0.0".into() };
        fs::write(path.join("oci-layout"), serde_json::to_vec(&marker).unwrap()).unwrap();
        fs::write(path.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        Self { path: path.to_owned(), descriptor }
    }

    pub fn blob(&self, blob: &BlobRef) -> PathBuf {
        self.path.join("blobs/sha256").join(blob.digest.0.to_hex())
    }

    /// Flips one bit of a blob, in place.
    pub fn flip(&self, blob: &BlobRef) {
        let path = self.blob(blob);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

fn put(layout: &Path, bytes: &[u8]) -> BlobRef {
    let digest = Digest::of(&[bytes]);
    fs::write(layout.join("blobs/sha256").join(digest.to_hex()), bytes).unwrap();
    BlobRef { digest: BlobDigest(digest), size: bytes.len() as u64 }
}

/// A software TPM over TCP, made by swtpm_setup with an EK certificate, its PCRs as a firmware would leave them.
pub struct TestTpm {
    pub dir: tempfile::TempDir,
    pub tcti: String,
    pub event_log: PathBuf,
    child: Child,
}

impl TestTpm {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        manufacture(dir.path());
        let port = two_ports();
        let child = Command::new("/usr/bin/swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .args(["--tpmstate", &format!("dir={}", dir.path().display())])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let event_log = dir.path().join("log");
        boot(port, &event_log);
        Self { tcti: format!("swtpm:host=127.0.0.1,port={port}"), event_log, dir, child }
    }

    pub fn flags(&self) -> [&str; 4] {
        ["--tcti", &self.tcti, "--host-event-log", self.event_log.to_str().unwrap()]
    }
}

impl TestTpm {
    /// It answers nothing until [`TestTpm::resume`].
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for TestTpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manufacture(dir: &Path) {
    let d = dir.display();
    fs::write(dir.join("localca.conf"), format!("statedir = {d}/ca\nsigningkey = {d}/ca/key.pem\nissuercert = {d}/ca/issuer.pem\ncertserial = {d}/ca/serial\n")).unwrap();
    fs::write(
        dir.join("localca.options"),
        "--platform-manufacturer Test\n--platform-version 1\n--platform-model Test\n",
    )
    .unwrap();
    fs::write(dir.join("setup.conf"), format!("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {d}/localca.conf\ncreate_certs_tool_options = {d}/localca.options\nactive_pcr_banks = sha256\n")).unwrap();
    fs::create_dir(dir.join("ca")).unwrap();
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--overwrite", "--pcr-banks", "sha256"])
        .arg("--tpmstate")
        .arg(dir)
        .arg("--config")
        .arg(dir.join("setup.conf"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A port P of 127.0.0.1 with P+1 free too: the TPM library expects the control channel there.
fn two_ports() -> u16 {
    (0..100)
        .find_map(|_| {
            let first = TcpListener::bind("127.0.0.1:0").ok()?;
            let port = first.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
        })
        .unwrap()
}

/// Extends the separators and writes the log that says so.
fn boot(port: u16, log: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) => assert!(Instant::now() < deadline),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut builder = LogBuilder::new();
    let separator = Digest::of(&[SEPARATOR]);
    for pcr in 0..8 {
        stream.write_all(&command::pcr_extend(pcr, &[separator.into()])).unwrap();
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).unwrap();
        response::ok(&answer[..n]).unwrap();
        builder = builder.event(pcr, EventType::SEPARATOR, separator, SEPARATOR);
    }
    fs::write(log, builder.finish()).unwrap();
}
