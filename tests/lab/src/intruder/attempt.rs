//! Single attempts, and what they are made on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use serde::{Deserialize, Serialize};

use super::hold;
use crate::probe::PROGRAM;

/// Longest that [`Attempt::Flip`] goes on.
const FLIP_LIMIT: Duration = Duration::from_secs(40);
/// Abstract name at which [`Attempt::NamedSockets`] listens while it looks.
pub const TWIN_SOCKET: &str = "coffer-lab-twin";
/// What is in the environment of a [`Subject::GuineaPig`].
pub const TWIN_VARIABLE: &str = "COFFER_LAB_TWIN=seen";

/// Something tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Attempt {
    /// One of [`super::LOOKS`] at a process, or [`super::HOLDS`] on it.
    On(Subject, String),
    /// Opens a file to read.
    Read(PathBuf),
    /// Opens a file to write, and writes nothing.
    Write(PathBuf),
    /// Lists a folder.
    List(PathBuf),
    /// Connects to a named socket.
    Connect(PathBuf),
    /// Connects to a port of a VM, or of the host, by vsock.
    Vsock(u32, u32),
    /// Listens on a TCP port of all addresses.
    Listen(u16),
    /// Names of all Unix sockets, its own [`TWIN_SOCKET`] among them.
    NamedSockets,
    /// TCP ports that somebody listens on.
    Ports,
    /// All processes, as JSON of [`Process`].
    Processes,
    /// Makes processes fault, all at once.
    Crash(Vec<u32>),
    /// Puts a text in a file that is there.
    Put(PathBuf, String),
    /// The text of a file.
    Text(PathBuf),
    /// Copies a folder.
    Copy(PathBuf, PathBuf),
    /// Copies one file beside another and renames it over that; what was there is kept with the ending `old`.
    Replace {
        /// What takes its place.
        with: PathBuf,
        /// Its place.
        to: PathBuf,
    },
    /// Turns every byte of a file to another, in place.
    Overwrite(PathBuf),
    /// Cuts a file to nothing, in place.
    Truncate(PathBuf),
    /// Flips a byte of a file back and forth, in place, until the path `until` is there; ends with it as it was.
    Flip {
        /// The file.
        file: PathBuf,
        /// Which byte.
        at: u64,
        /// Ends it.
        until: PathBuf,
    },
}

/// A process to try something on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Subject {
    /// One of the host's.
    Id(u32),
    /// One without any defence, under the intruder's own uid; made for the attempt.
    GuineaPig,
}

/// A process of the host, as root sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: u32,
    /// Its control group.
    pub group: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment when it started.
    pub environment: Vec<String>,
}

impl Attempt {
    pub(super) fn make(&self) -> io::Result<String> {
        let done = |()| String::new();
        match self {
            Self::On(Subject::Id(id), what) => hold::try_on(*id, what),
            Self::On(Subject::GuineaPig, what) => {
                let mut pig = GuineaPig::start()?;
                let outcome = hold::try_on(pig.0.id(), what)?;
                if what == hold::QUIT {
                    // Killed while it dumps its core, it leaves none.
                    pig.0.wait()?;
                }
                Ok(outcome)
            }
            Self::Read(path) => File::open(path).map(drop).map(done),
            Self::Write(path) => OpenOptions::new().write(true).open(path).map(drop).map(done),
            Self::List(path) => entries(path),
            Self::Connect(path) => UnixStream::connect(path).map(drop).map(done),
            Self::Vsock(cid, port) => vsock(*cid, *port).map(done),
            Self::Listen(port) => TcpListener::bind(("0.0.0.0", *port)).map(drop).map(done),
            Self::NamedSockets => named_sockets(),
            Self::Ports => ports(),
            Self::Processes => processes(),
            Self::Crash(ids) => hold::crash(ids).map(done),
            Self::Put(path, text) => fs::write(path, text).map(done),
            Self::Text(path) => fs::read_to_string(path),
            Self::Copy(from, to) => copy(from, to).map(done),
            Self::Replace { with, to } => {
                let (beside, old) = (to.with_extension("new"), to.with_extension("old"));
                fs::copy(with, &beside)?;
                if !old.exists() {
                    fs::hard_link(to, old)?;
                }
                fs::rename(beside, to).map(done)
            }
            Self::Overwrite(path) => overwrite(path).map(done),
            Self::Truncate(path) => OpenOptions::new().write(true).open(path)?.set_len(0).map(done),
            Self::Flip { file, at, until } => flip(file, *at, until),
        }
    }
}

/// A process like any other, with something in its environment; ends when dropped.
struct GuineaPig(Child);

impl GuineaPig {
    fn start() -> io::Result<Self> {
        let (name, value) = TWIN_VARIABLE.split_once('=').unwrap_or_default();
        let child = Command::new(PROGRAM)
            .arg("guinea-pig")
            .env(name, value)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut pig = Self(child);
        // It is itself, and no longer half of us, once it says so.
        pig.0.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut [0])?;
        Ok(pig)
    }
}

impl Drop for GuineaPig {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn entries(path: &Path) -> io::Result<String> {
    let names = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    Ok(names.join("\n"))
}

fn vsock(cid: u32, port: u32) -> io::Result<()> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(connect(socket.as_raw_fd(), &VsockAddr::new(cid, port))?)
}

fn named_sockets() -> io::Result<String> {
    let _own = UnixListener::bind_addr(&SocketAddr::from_abstract_name(TWIN_SOCKET)?)?;
    let table = fs::read_to_string("/proc/net/unix")?;
    let names = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7));
    Ok(names.collect::<Vec<_>>().join("\n"))
}

/// `local_address` is the second field, the state the fourth: 0A is TCP_LISTEN.
fn ports() -> io::Result<String> {
    let table = fs::read_to_string("/proc/net/tcp")? + &fs::read_to_string("/proc/net/tcp6")?;
    let mut ports: Vec<u16> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .filter_map(|fields| u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    Ok(ports.iter().map(u16::to_string).collect::<Vec<_>>().join("\n"))
}

fn processes() -> io::Result<String> {
    let ids = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // Those that end meanwhile are left out.
    let all: Vec<Process> = ids.filter_map(|id| process(id).ok()).collect();
    Ok(serde_json::to_string(&all)?)
}

fn process(id: u32) -> io::Result<Process> {
    let folder = PathBuf::from(format!("/proc/{id}"));
    let words = |name| {
        let bytes = fs::read(folder.join(name))?;
        let words = bytes.split(|b| *b == 0).filter(|word| !word.is_empty());
        io::Result::Ok(words.map(|w| String::from_utf8_lossy(w).into_owned()).collect::<Vec<_>>())
    };
    let status = fs::read_to_string(folder.join("status"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|v| v.split_whitespace().next()).unwrap_or_default().to_owned()
    };
    let group = fs::read_to_string(folder.join("cgroup"))?;
    Ok(Process {
        id,
        name: field("Name:"),
        uid: field("Uid:").parse().map_err(io::Error::other)?,
        group: group.trim().trim_start_matches("0::").to_owned(),
        arguments: words("cmdline")?,
        environment: words("environ")?,
    })
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

fn overwrite(path: &Path) -> io::Result<()> {
    let bytes: Vec<u8> = fs::read(path)?.iter().map(|byte| !byte).collect();
    OpenOptions::new().write(true).open(path)?.write_all(&bytes)
}

fn flip(file: &Path, at: u64, until: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    let (good, bad) = (byte, [byte[0] ^ 1]);
    let deadline = Instant::now() + FLIP_LIMIT;
    let mut flips = 0_u64;
    while !until.exists() && Instant::now() < deadline {
        // Longer bad than good: a launch that is accepted takes long, and one that is refused none.
        file.write_all_at(&bad, at)?;
        std::thread::sleep(Duration::from_micros(300));
        file.write_all_at(&good, at)?;
        std::thread::sleep(Duration::from_micros(100));
        flips += 1;
    }
    Ok(flips.to_string())
}
