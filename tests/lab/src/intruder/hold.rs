//! Looks at another process, and holds on it: everything that Linux decides by who owns that process, and by whether it
//! may be dumped.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::sys::ptrace;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, pidfd_getfd, pidfd_open, prlimit,
    setpriority_process,
};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

/// Ways to see what a process has.
pub const LOOKS: [&str; 14] = [
    "mem",
    "maps",
    "environ",
    "auxv",
    "fd",
    "fdinfo",
    "map_files",
    "root",
    "cwd",
    "exe",
    "ns/mnt",
    "read its memory",
    "take its descriptor",
    "trace it",
];

/// Ends a process with a core.
pub const QUIT: &str = "send SIGQUIT";
/// Ways to change how it fares.
pub const HOLDS: [&str; 12] = [
    "stop it",
    "send SIGUSR1",
    QUIT,
    "send SIGSEGV",
    "send SIGKILL",
    "freeze it by its control group",
    "limit it",
    "lift its limit of cores",
    "choose its CPUs",
    "slow it",
    "oom_score_adj",
    "coredump_filter",
];

/// Tries one of them; what was seen.
pub fn try_on(id: u32, what: &str) -> io::Result<String> {
    let folder = PathBuf::from(format!("/proc/{id}"));
    let file = folder.join(what);
    let done = |()| String::new();
    match what {
        "mem" => memory(&folder).map(hex::encode),
        "maps" | "environ" | "auxv" => some(fs::read(file)?),
        "fd" | "fdinfo" | "map_files" | "root" => some(names(&file)?),
        "cwd" | "exe" | "ns/mnt" => {
            fs::read_link(file).map(|path| path.to_string_lossy().into_owned())
        }
        "read its memory" => read(id, &folder),
        "take its descriptor" => {
            let process = pidfd_open(raw(id)?, PidfdFlags::empty())?;
            Ok(pidfd_getfd(process, 0, PidfdGetfdFlags::empty()).map(drop).map(done)?)
        }
        // Ends with the tracer.
        "trace it" => Ok(ptrace::seize(pid(id), ptrace::Options::empty()).map(done)?),
        "stop it" => signal(id, 19).map(done),
        "send SIGUSR1" => signal(id, 10).map(done),
        QUIT => signal(id, 3).map(done),
        "send SIGSEGV" => signal(id, 11).map(done),
        "send SIGKILL" => signal(id, 9).map(done),
        "freeze it by its control group" => freeze(&folder).map(done),
        "limit it" => limit(id, Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) }),
        "lift its limit of cores" => {
            let most =
                prlimit(Some(raw(id)?), Resource::Core, Rlimit { current: None, maximum: None });
            most.map(|_| String::new()).map_err(Into::into)
        }
        "choose its CPUs" => {
            let cpus = sched_getaffinity(Some(raw(id)?))?;
            Ok(sched_setaffinity(Some(raw(id)?), &cpus).map(done)?)
        }
        "slow it" => Ok(setpriority_process(Some(raw(id)?), 19).map(done)?),
        "oom_score_adj" => fs::write(file, "1000").map(done),
        "coredump_filter" => fs::write(file, "0x7f").map(done),
        _ => Err(io::Error::other(format!("no attempt is called `{what}`"))),
    }
}

/// Sends a signal.
fn signal(id: u32, number: i32) -> io::Result<()> {
    let signal = nix::sys::signal::Signal::try_from(number)?;
    Ok(nix::sys::signal::kill(pid(id), signal)?)
}

/// Makes processes fault at the next instruction they run: all of their code becomes HLT, which is not for programs. A
/// signal from outside would not do: it ends no process that is the first of its namespace. They go on together, so that
/// none is ended because another is gone.
pub fn crash(ids: &[u32]) -> io::Result<()> {
    ids.iter().try_for_each(|id| signal(*id, 19))?;
    ids.iter().try_for_each(|id| spoil(*id))?;
    ids.iter().try_for_each(|id| signal(*id, 18))
}

fn spoil(id: u32) -> io::Result<()> {
    let folder = PathBuf::from(format!("/proc/{id}"));
    let memory = fs::OpenOptions::new().write(true).open(folder.join("mem"))?;
    let maps = fs::read_to_string(folder.join("maps"))?;
    for line in maps.lines().filter(|line| line.contains(" r-xp ") && line.contains('/')) {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let (from, to) = range.ok_or(io::ErrorKind::InvalidData)?;
        let at = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        let (from, to) = (at(from)?, at(to)?);
        let length = usize::try_from(to - from).map_err(io::Error::other)?;
        memory.write_all_at(&vec![0xf4; length], from)?;
    }
    Ok(())
}

fn limit(id: u32, resource: Resource, to: Rlimit) -> io::Result<String> {
    Ok(prlimit(Some(raw(id)?), resource, to).map(|_| String::new())?)
}

fn freeze(folder: &Path) -> io::Result<()> {
    let group = fs::read_to_string(folder.join("cgroup"))?;
    let group = group.trim().trim_start_matches("0::/");
    let file = Path::new("/sys/fs/cgroup").join(group).join("cgroup.freeze");
    fs::OpenOptions::new().write(true).open(file).map(drop)
}

fn memory(folder: &Path) -> io::Result<[u8; 8]> {
    let memory = fs::File::open(folder.join("mem"))?;
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, somewhere(folder).unwrap_or_default())?;
    Ok(bytes)
}

fn read(id: u32, folder: &Path) -> io::Result<String> {
    let mut bytes = [0; 8];
    // Whether it may is decided before the address is looked at.
    let base = usize::try_from(somewhere(folder).unwrap_or(1 << 22)).map_err(io::Error::other)?;
    let there = RemoteIoVec { base, len: bytes.len() };
    process_vm_readv(pid(id), &mut [io::IoSliceMut::new(&mut bytes)], &[there])?;
    Ok(hex::encode(bytes))
}

/// An address where something is.
fn somewhere(folder: &Path) -> Option<u64> {
    let maps = fs::read_to_string(folder.join("maps")).ok()?;
    u64::from_str_radix(maps.split_once('-')?.0, 16).ok()
}

fn names(folder: &Path) -> io::Result<Vec<u8>> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let names = entries.iter().map(|e| e.file_name().to_string_lossy().into_owned());
    Ok(names.collect::<Vec<_>>().join(" ").into_bytes())
}

/// A file of a process that may not be looked at can be opened and be empty.
fn some(bytes: Vec<u8>) -> io::Result<String> {
    if bytes.is_empty() {
        return Err(io::Error::other("it shows nothing"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn raw(id: u32) -> io::Result<rustix::process::Pid> {
    let id = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw);
    id.ok_or_else(|| io::Error::other("no process has this number"))
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or_default())
}
