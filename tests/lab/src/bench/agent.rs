//! On a lab host made for a benchmark: starts QEMU's microvm with the kernel and initrd of an image, or asks
//! the monitor for a VM, and says how long the guest took to reach its init. One clock for both sides.
//!
//! One connection, one launch: a line of JSON in, a line of JSON out. It drops the page cache first, for either side
//! of the comparison, so that every launch is the first of its image.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::api::{self, Until};
use super::{disk, vtpm, weigh};

/// Port of the agent on a lab host.
pub const PORT: u16 = 7072;
/// File that says a host is for benchmarks.
pub const MARKER: &str = "/etc/coffer/bench";
/// What coffer-init's first words begin with; without a monitor to report to, they are its refusal to go on.
const SIGN_OF_INIT: &[u8] = b"coffer-init:";
/// Longest a launch may take: ten times what it takes.
const LIMIT: Duration = Duration::from_secs(90);

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// Forget what was read from disks.
    DropCaches,
    /// Ask the monitor for a VM.
    Run {
        /// Body of the request.
        request: Value,
        /// How far it is timed.
        until: Until,
    },
    /// Time reading a file or a disk, each block of 4096 bytes hashed, and nothing else.
    Hash {
        /// Which, on the host.
        path: String,
    },
    /// Make an AES-GCM disk of LUKS2, dm-crypt over dm-integrity, in a new file, and open it.
    Crypt {
        /// Which, on the host.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// Weigh the processes of a name: JSON of `PID: KiB` in `words`.
    Weigh {
        /// Name of the program.
        process: String,
        /// Mappings of this size are the guest's memory, which does not count, MiB.
        guest_mib: u64,
    },
    /// Time TPM commands without a guest: JSON of a list of costs in `words`.
    TimeTpm {
        /// Rounds of each side.
        rounds: u32,
    },
    /// Start a microvm.
    Launch {
        /// Kernel file on the host.
        kernel: String,
        /// Initrd file on the host.
        initrd: String,
        /// Kernel command line.
        cmdline: String,
        /// Memory, MiB.
        memory_mib: u32,
    },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Milliseconds to the guest's init: from the start of the process, or from before the connection to the API.
    pub ms: Option<f64>,
    /// The microvm's words that ended the measurement: they show that it waited for nothing before it spoke.
    pub words: Option<String>,
    /// Why not.
    pub error: Option<String>,
}

/// Serves for as long as the host runs.
pub fn serve() {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("coffer-lab: the agent cannot listen: {error}"),
    };
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(|stream| answer(&stream)) {
            eprintln!("coffer-lab: the agent cannot answer: {error}");
        }
    }
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let done = serde_json::from_str(&line).map_err(io::Error::other).and_then(|ask| act(&ask));
    let told = match done {
        Ok(Some((ms, words))) => Told { ms: Some(ms), words: Some(words), error: None },
        Ok(None) => Told { ms: None, words: None, error: None },
        Err(error) => Told { ms: None, words: None, error: Some(error.to_string()) },
    };
    let mut out = stream;
    serde_json::to_writer(&mut out, &told)?;
    out.write_all(b"\n")
}

fn act(ask: &Ask) -> io::Result<Option<(f64, String)>> {
    match ask {
        Ask::DropCaches => std::fs::write("/proc/sys/vm/drop_caches", "3").map(|()| None),
        Ask::Run { request, until } => {
            let took = api::launch(request, *until, LIMIT)?;
            Ok(Some((took.as_secs_f64() * 1000.0, String::new())))
        }
        Ask::Hash { path } => {
            let took = disk::read_and_hash(Path::new(path))?;
            Ok(Some((took.as_secs_f64() * 1000.0, String::new())))
        }
        Ask::Crypt { file, bytes } => disk::crypt(file, *bytes).map(|opened| Some((0.0, opened))),
        Ask::Weigh { process, guest_mib } => {
            let weights = weigh::all(process, guest_mib << 10)?;
            Ok(Some((0.0, serde_json::to_string(&weights)?)))
        }
        Ask::TimeTpm { rounds } => {
            let folder = tempfile::tempdir()?;
            let costs = vtpm::without_a_guest(folder.path(), *rounds).map_err(io::Error::other)?;
            Ok(Some((0.0, serde_json::to_string(&costs)?)))
        }
        Ask::Launch { kernel, initrd, cmdline, memory_mib } => {
            let started = Instant::now();
            let mut qemu = microvm(kernel, initrd, cmdline, *memory_mib).spawn()?;
            let reached = wait_for_init(&mut qemu);
            let took = started.elapsed();
            let _ = qemu.kill();
            let _ = qemu.wait();
            reached.map(|words| Some((took.as_secs_f64() * 1000.0, words)))
        }
    }
}

/// As small as QEMU gets: no PCI, no devices but the serial port.
fn microvm(kernel: &str, initrd: &str, cmdline: &str, memory_mib: u32) -> Command {
    let mut command = Command::new("/usr/bin/qemu-system-x86_64");
    command
        .args([
            "-M",
            "microvm,accel=kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &memory_mib.to_string(),
        ])
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ])
        .args(["-kernel", kernel, "-initrd", initrd, "-append", cmdline])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

fn wait_for_init(qemu: &mut Child) -> io::Result<String> {
    let mut console = qemu.stdout.take().ok_or_else(|| io::Error::other("no console"))?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let read = console.read(&mut piece).unwrap_or(0);
            seen.extend_from_slice(piece.get(..read).unwrap_or_default());
            let found = whole_line_of_init(&seen);
            if found || read == 0 {
                // Nobody listens any more if the launch took too long.
                let _ =
                    sender.send(if found { Ok(last_words(&seen)) } else { Err(last_words(&seen)) });
                return;
            }
        }
    });
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(words)) => Ok(words),
        Ok(Err(words)) => Err(io::Error::other(format!("the guest ended without init: {words}"))),
        Err(_) => Err(io::Error::other("the guest did not reach its init")),
    }
}

/// True once a whole line of it has come, so that the line can be shown.
fn whole_line_of_init(seen: &[u8]) -> bool {
    let sign = seen.windows(SIGN_OF_INIT.len()).position(|w| w == SIGN_OF_INIT);
    sign.and_then(|at| seen.get(at..)).is_some_and(|line| line.contains(&b'\n'))
}

fn last_words(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console);
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}
