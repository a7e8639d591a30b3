//! What a VM process that was taken over can still do, wall by wall (SPEC 6.3.1): each attempt succeeds in the open,
//! and fails behind the wall that is there for it.
//!
//! Needs root, as the monitor does.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::fs::File;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};

use coffer_vmm::jail::{self, Role, UIDS};
use rustix::fs::{Mode, OFlags, openat};

/// How far into the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Open,
    Left,
    Righted,
    Confined,
}

/// Depths of the whole process; the last wall is around each thread.
const DEPTHS: [Depth; 3] = [Depth::Open, Depth::Left, Depth::Righted];

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Did,
    Refused,
    Killed,
}

use Depth::{Confined, Left, Righted};

/// The attempts, and the first depth at which each is refused. A confined process is ended for each of them.
const ATTEMPTS: [(&str, Depth); 11] = [
    ("open a file by its path", Left),
    ("write a file", Left),
    ("connect to an address", Left),
    ("connect to an abstract socket", Left),
    ("open a file below a directory left open", Righted),
    ("signal another process", Righted),
    ("become root again", Righted),
    ("make a socket", Confined),
    ("make a thread", Confined),
    ("start a program", Left),
    ("have code in memory", Confined),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, attempt, depth, place] = arguments.as_slice()
        && flag == "--attempt"
    {
        return try_it(attempt, depth.parse().unwrap(), place);
    }
    for (attempt, refused_from) in ATTEMPTS {
        for depth in DEPTHS {
            let expected = if depth < refused_from { Outcome::Did } else { Outcome::Refused };
            assert_eq!(run(attempt, depth, "devices"), expected, "{attempt}, {depth:?}");
        }
        for role in ["vcpu", "tpm", "devices"] {
            assert_eq!(run(attempt, Confined, role), Outcome::Killed, "{attempt}, {role}");
        }
        println!("ok: {attempt}");
    }
    assert_eq!(run("do its work", Confined, "devices"), Outcome::Did);
    assert_eq!(run("take a uid of the host's", Depth::Open, "devices"), Outcome::Refused);
    println!("ok: do its work");
    println!("test result: ok. {} passed; 0 failed; 0 ignored", ATTEMPTS.len() + 1);
    ExitCode::SUCCESS
}

/// One attempt in a process of its own, with a directory of the host's for standard input.
fn run(attempt: &str, depth: Depth, role: &str) -> Outcome {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("coffer-jail-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let place = format!("{} {name} {} {role}", tcp.local_addr().unwrap(), std::process::id());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--attempt", attempt, &(depth as u8).to_string(), &place])
        .stdin(File::open("/").unwrap())
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => Outcome::Did,
        (Some(REFUSED), _) => Outcome::Refused,
        (None, Some(libc::SIGSYS)) => Outcome::Killed,
        other => panic!("{attempt}, {depth:?}: {other:?} {output:?}"),
    }
}

const REFUSED: i32 = 3;

/// In the process of an attempt.
fn try_it(attempt: &str, depth: u8, place: &str) -> ExitCode {
    if depth >= Left as u8 {
        jail::leave().unwrap();
    }
    if depth >= Righted as u8 {
        jail::drop_rights(UIDS.start).unwrap();
    }
    let place: Vec<&str> = place.split(' ').collect();
    let role = match place[3] {
        "vcpu" => Role::Vcpu,
        "tpm" => Role::Tpm,
        _ => Role::Devices,
    };
    if depth >= Confined as u8 {
        jail::confine(role).unwrap();
    }
    let done = match attempt {
        "open a file by its path" => File::open("/etc/passwd").is_ok(),
        "write a file" => {
            let path = format!("/tmp/coffer-jail-{}", std::process::id());
            std::fs::write(&path, b"x").is_ok() && std::fs::remove_file(&path).is_ok()
        }
        "connect to an address" => TcpStream::connect(place[0]).is_ok(),
        "connect to an abstract socket" => {
            let address = SocketAddr::from_abstract_name(place[1]).unwrap();
            UnixStream::connect_addr(&address).is_ok()
        }
        "open a file below a directory left open" => {
            let stdin = std::io::stdin();
            openat(stdin.as_fd(), "etc/passwd", OFlags::RDONLY, Mode::empty()).is_ok()
        }
        "signal another process" => {
            let other = nix::unistd::Pid::from_raw(place[2].parse().unwrap());
            nix::sys::signal::kill(other, None).is_ok()
        }
        "become root again" => nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok(),
        "make a socket" => UdpSocket::bind("0.0.0.0:0").is_ok(),
        "make a thread" => std::thread::spawn(|| true).join().unwrap(),
        "start a program" => Command::new("/bin/true").status().is_ok(),
        "have code in memory" => code_in_memory(),
        "do its work" => work(),
        "take a uid of the host's" => jail::drop_rights(1000).is_ok(),
        other => panic!("no attempt is called `{other}`"),
    };
    if done { ExitCode::SUCCESS } else { ExitCode::from(REFUSED as u8) }
}

#[expect(unsafe_code, reason = "asks for a mapping, which nobody uses")]
fn code_in_memory() -> bool {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    // SAFETY: the kernel chooses a place where nothing is.
    let mapped = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::EXEC,
            MapFlags::PRIVATE,
        )
    };
    mapped.is_ok()
}

/// Streams and memory, as the device thread has them.
fn work() -> bool {
    use std::io::{Read as _, Write as _};
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.write_all(b"frame").unwrap();
    let mut frame = [0; 5];
    ours.read_exact(&mut frame).unwrap();
    let memory = vec![1u8; 64 << 20];
    frame == *b"frame" && memory.iter().all(|byte| *byte == 1)
}
