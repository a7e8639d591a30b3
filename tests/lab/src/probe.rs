//! The lab's own eye on the host: every byte in every file of it, so that a search can prove an absence.
//!
//! Only lab hosts have it: it is in their initrd, so it is measured, and a reference value made for a lab host is no
//! reference value for any other. The lab's PID 1 is this program; it starts the probe and becomes the monitor.
//!
//! One connection, one dump: `u32 length | name | u64 length | bytes` for each file, big-endian; a name of length
//! zero ends them. Then what is missing: `u64` number of things that vanished while they were looked at, and
//! `u32 length | name and error` for each that was there and could not be read, ended by a length of zero; a search
//! with any of these fails. Files are those of every mount namespace, and those that exist only as open descriptors (sealed
//! memory files, deleted files), and what the kernel says of every thread. Not read otherwise: `/proc` and `/sys`, which hold no files, the image store, which is
//! searched as the disk image it came as, and the memory of processes: a guest's memory is on its host in clear
//! (SPEC 2.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, MemfdFlags, Mode, memfd_create, mkdirat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::bench::agent;
use crate::crash;
use crate::initrd;
use crate::intruder;
use crate::needle::Needle;
use crate::rival;

/// Port of the probe on a lab host.
pub const PORT: u16 = 7071;
/// Where this program is on a lab host.
pub const PROGRAM: &str = "/usr/bin/coffer-lab";
/// The monitor on a lab host.
pub const MONITOR: &str = "/usr/bin/coffer-monitor";
/// Name of the decoy's memory file.
const DECOY_MEMORY: &str = "coffer-decoy";
/// Where the decoy was before it was deleted.
const DECOY_DELETED: &str = "/run/coffer-decoy-deleted";
/// Largest file taken; nothing on a lab host comes near it.
const FILE_MAX: u64 = 1 << 30;
/// Longest silence between two pieces of a dump.
const SILENCE: Duration = Duration::from_secs(20);

/// PID 1 of a lab host: starts the probe, then is the monitor.
pub fn become_monitor() -> ! {
    // Standard streams are inherited: there is no /dev yet to open others from.
    if let Err(error) = Command::new(PROGRAM).arg("probe").spawn() {
        eprintln!("coffer-lab: cannot start the probe: {error}");
    }
    let error = Command::new(MONITOR).arg("init").exec();
    eprintln!("coffer-lab: cannot become the monitor: {error}");
    // The kernel panics when PID 1 ends, and the machine goes off (`panic=-1`, `-no-reboot`).
    std::process::exit(1)
}

/// Serves dumps for as long as the host runs.
pub fn serve() -> Result<()> {
    wait_for_monitor();
    let beneath = File::open("/").context("cannot open the root beneath")?;
    enter_host().context("cannot enter the host's mount namespace")?;
    lend_programs(&beneath).context("cannot lend programs to the root beneath")?;
    if Path::new(agent::MARKER).exists() {
        std::thread::spawn(agent::serve);
    }
    std::thread::spawn(crash::serve);
    std::thread::spawn(intruder::serve);
    std::thread::spawn(rival::serve);
    // Held for as long as this process runs: a search must find it in both.
    let _planted = plant().context("cannot plant the decoy")?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("cannot listen")?;
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(|stream| dump(&stream)) {
            eprintln!("coffer-lab: the dump failed: {error}");
        }
    }
    Ok(())
}

/// The decoy in two files that no folder names: a memory file, and one that was deleted while open.
fn plant() -> Result<Option<[File; 2]>> {
    let decoy = match std::fs::read(initrd::DECOY) {
        Ok(decoy) => decoy,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut memory = File::from(memfd_create(DECOY_MEMORY, MemfdFlags::CLOEXEC)?);
    memory.write_all(&decoy)?;
    let mut deleted = File::create_new(DECOY_DELETED)?;
    std::fs::remove_file(DECOY_DELETED)?;
    deleted.write_all(&decoy)?;
    Ok(Some([memory, deleted]))
}

/// Until the monitor's API answers, PID 1 is still moving the root file system.
fn wait_for_monitor() {
    while TcpStream::connect((initrd::ADDRESS, initrd::API_PORT)).is_err() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// PID 1 has left the initramfs that its first children and the kernel's programs start in, and `/proc` went with it.
/// Entering a mount namespace anew, even one's own, starts at its topmost root.
pub fn enter_host() -> io::Result<()> {
    let init = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)?;
    Ok(())
}

/// The initramfs is empty, and the kernel looks there for a program that takes cores: as on a host with a root file
/// system of its own, it is to find one.
fn lend_programs(beneath: &File) -> io::Result<()> {
    for name in ["usr", "lib", "lib64"] {
        let path = Path::new("/").join(name);
        if let Ok(target) = std::fs::read_link(&path) {
            symlinkat(target, beneath, name)?;
            continue;
        }
        if !path.exists() {
            continue;
        }
        mkdirat(beneath, name, Mode::from_raw_mode(0o755))?;
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &path, tree)?;
        move_mount(tree, "", beneath, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

fn dump(stream: &TcpStream) -> io::Result<()> {
    let mut out = Dump::new(BufWriter::with_capacity(1 << 18, stream));
    let mut namespaces = BTreeSet::new();
    for process in processes()? {
        let link = process.join("ns/mnt");
        let Some(namespace) = out.taken(&link, std::fs::read_link(&link)) else { continue };
        if !namespaces.contains(&namespace) {
            out.tree(&process.join("root"), true)?;
            // A process that ended meanwhile took its view along: another one has to show the namespace again.
            if std::fs::read_link(&link).is_ok() {
                namespaces.insert(namespace);
            }
        }
        out.descriptors(&process.join("fd"))?;
        out.group(&process.join("cgroup"))?;
        out.namespaces(&process.join("ns"))?;
        out.threads(&process.join("task"))?;
    }
    out.end()
}

fn processes() -> io::Result<Vec<PathBuf>> {
    let mut all: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        all.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    all.sort_unstable();
    Ok(all.into_iter().map(|id| Path::new("/proc").join(id.to_string())).collect())
}

/// True if there is nothing to read any more: the file was removed, or the process has ended.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Files of a control group that limit it.
pub const LIMITS: [&str; 6] =
    ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "io.max"];

struct Dump<W: Write> {
    out: W,
    /// Device and inode of what went out already.
    seen: BTreeSet<(u64, u64)>,
    /// Number of things that were gone when they were to be read.
    vanished: u64,
    /// What was there and could not be read, with the error.
    unreadable: Vec<String>,
}

impl<W: Write> Dump<W> {
    fn new(out: W) -> Self {
        Self { out, seen: BTreeSet::new(), vanished: 0, unreadable: Vec::new() }
    }

    /// What was read; a failure is noted, for the search to judge.
    fn taken<T>(&mut self, path: &Path, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(value) => return Some(value),
            Err(error) if gone(&error) => self.vanished += 1,
            Err(error) => self.unreadable.push(format!("{}: {error}", path.display())),
        }
        None
    }

    /// The entries of a folder.
    fn entries(&mut self, folder: &Path) -> Vec<DirEntry> {
        let all = std::fs::read_dir(folder).and_then(Iterator::collect);
        self.taken(folder, all).unwrap_or_default()
    }

    fn tree(&mut self, folder: &Path, top: bool) -> io::Result<()> {
        let folder = if top { folder.join(".") } else { folder.to_path_buf() };
        for entry in self.entries(&folder) {
            let (path, name) = (entry.path(), entry.file_name());
            let Some(metadata) = self.taken(&path, std::fs::symlink_metadata(&path)) else {
                continue;
            };
            if metadata.is_dir() {
                let skipped = top && (name == "proc" || name == "sys");
                let store = path.ends_with("var/lib/coffer/images");
                if !skipped && !store {
                    self.tree(&path, false)?;
                }
            } else if metadata.is_file() && self.seen.insert((metadata.dev(), metadata.ino())) {
                self.file(&path, &path.to_string_lossy())?;
            }
        }
        Ok(())
    }

    fn descriptors(&mut self, folder: &Path) -> io::Result<()> {
        for entry in self.entries(folder) {
            let path = entry.path();
            let Some(target) = self.taken(&path, std::fs::read_link(&path)) else { continue };
            let target = target.to_string_lossy();
            if !target.ends_with("(deleted)") {
                continue;
            }
            let Some(metadata) = self.taken(&path, std::fs::metadata(&path)) else { continue };
            if metadata.is_file() && self.seen.insert((metadata.dev(), metadata.ino())) {
                self.file(&path, &format!("{} -> {target}", path.display()))?;
            }
        }
        Ok(())
    }

    /// What the kernel says of every thread of a process.
    fn threads(&mut self, folder: &Path) -> io::Result<()> {
        for thread in self.entries(folder) {
            let status = thread.path().join("status");
            self.file(&status, &status.to_string_lossy())?;
        }
        Ok(())
    }

    /// The control group of a process, and what limits it.
    fn group(&mut self, path: &Path) -> io::Result<()> {
        let Some(text) = self.taken(path, std::fs::read_to_string(path)) else { return Ok(()) };
        let name = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let mut lines = format!("cgroup:\t/{name}\n");
        for limit in LIMITS {
            // The topmost group has none, and a kernel that cannot swap has none for that.
            let file = Path::new("/sys/fs/cgroup").join(name).join(limit);
            let value = std::fs::read_to_string(file).unwrap_or_else(|_| "none".to_owned());
            lines.push_str(&format!("{limit}:\t{}\n", value.trim()));
        }
        self.bytes(&path.to_string_lossy(), lines.as_bytes())
    }

    /// What a process is in, one to a line.
    fn namespaces(&mut self, folder: &Path) -> io::Result<()> {
        let mut lines = String::new();
        for link in self.entries(folder) {
            if let Some(target) = self.taken(&link.path(), std::fs::read_link(link.path())) {
                lines.push_str(&format!("{}:\t{}\n", link.path().display(), target.display()));
            }
        }
        self.bytes(&folder.to_string_lossy(), lines.as_bytes())
    }

    fn file(&mut self, path: &Path, name: &str) -> io::Result<()> {
        let Some(bytes) = self.taken(path, std::fs::read(path)) else { return Ok(()) };
        self.bytes(name, &bytes)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.text(name)?;
        self.out.write_all(&(bytes.len() as u64).to_be_bytes())?;
        self.out.write_all(bytes)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(text.as_bytes())
    }

    fn end(&mut self) -> io::Result<()> {
        self.text("")?;
        self.out.write_all(&self.vanished.to_be_bytes())?;
        for name in std::mem::take(&mut self.unreadable) {
            self.text(&name)?;
        }
        self.text("")?;
        self.out.flush()
    }
}

/// What a search of the whole host found.
#[derive(Debug, Default)]
pub struct Found {
    /// For each needle, the files that hold it, with the form found.
    pub hits: Vec<Vec<String>>,
    /// Files searched.
    pub files: usize,
    /// Bytes searched.
    pub bytes: u64,
    /// Files, folders and processes that ended while they were looked at.
    pub vanished: u64,
}

/// The places of the decoy that are not among these hits.
pub fn decoys_missed(hits: &[String]) -> Vec<String> {
    let places = [
        format!("{} (", initrd::DECOY),
        format!("/memfd:{DECOY_MEMORY} (deleted) ("),
        format!("{DECOY_DELETED} (deleted) ("),
    ];
    places.into_iter().filter(|place| !hits.iter().any(|hit| hit.contains(place))).collect()
}

/// Reads a dump from the probe behind a port on 127.0.0.1, and searches every file for every needle.
pub fn search(port: u16, needles: &[&Needle]) -> Result<Found> {
    let stream = TcpStream::connect(("127.0.0.1", port)).context("the probe does not answer")?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut input = BufReader::with_capacity(1 << 18, stream);
    let mut found = Found { hits: vec![Vec::new(); needles.len()], ..Found::default() };
    while let Some((name, bytes)) = next_file(&mut input).context("the dump broke off")? {
        found.files += 1;
        found.bytes += bytes.len() as u64;
        for (needle, hits) in needles.iter().zip(&mut found.hits) {
            if let Some(form) = needle.in_bytes(&bytes) {
                hits.push(format!("{name} ({form})"));
            }
        }
    }
    ensure!(found.files > 0, "the probe showed no file");
    let (vanished, unreadable) = missing(&mut input).context("the dump broke off")?;
    ensure!(
        unreadable.is_empty(),
        "{} things on the host could not be read, so nothing is proven:\n{}",
        unreadable.len(),
        unreadable.join("\n")
    );
    found.vanished = vanished;
    Ok(found)
}

/// What the kernel says of the threads of every process of this name, by field of `/proc/ID/status`; `cgroup` is the
/// group of the process, with its [`LIMITS`], `ns/NAME` a namespace of it.
pub fn threads(port: u16, process: &str) -> Result<Vec<BTreeMap<String, String>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).context("the probe does not answer")?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut input = BufReader::with_capacity(1 << 18, stream);
    let (mut all, mut groups) = (Vec::new(), BTreeSet::new());
    let mut of_process = BTreeMap::new();
    while let Some((name, bytes)) = next_file(&mut input).context("the dump broke off")? {
        let text = String::from_utf8_lossy(&bytes);
        if name.starts_with("/proc/") && name.ends_with("/cgroup") {
            let fields = text.lines().filter_map(|line| line.split_once(":\t"));
            of_process = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        }
        if name.starts_with("/proc/") && name.ends_with("/ns") {
            let links = text.lines().filter_map(|line| line.split_once(":\t"));
            let short = |link: &str| link.rsplit('/').next().map(|name| format!("ns/{name}"));
            of_process.extend(links.filter_map(|(link, to)| Some((short(link)?, to.to_owned()))));
        }
        if !(name.starts_with("/proc/") && name.ends_with("/status") && name.contains("/task/")) {
            continue;
        }
        let fields = text.lines().filter_map(|line| line.split_once(":\t"));
        let thread = fields.map(|(field, value)| (field.to_owned(), value.trim().to_owned()));
        let thread: BTreeMap<String, String> = thread.chain(of_process.clone()).collect();
        // The first thread has the process's name; others may be called like other programs.
        let first = thread.get("Pid") == thread.get("Tgid");
        if first && thread.get("Name").is_some_and(|name| name == process) {
            groups.extend(thread.get("Tgid").cloned());
        }
        all.push(thread);
    }
    all.retain(|thread| thread.get("Tgid").is_some_and(|group| groups.contains(group)));
    Ok(all)
}

/// The end of a dump: how much vanished, and what could not be read.
fn missing(input: &mut impl Read) -> Result<(u64, Vec<String>)> {
    let vanished = length(input)?;
    let mut unreadable = Vec::new();
    while let Some(name) = text(input)? {
        unreadable.push(name);
    }
    Ok((vanished, unreadable))
}

fn next_file(input: &mut impl Read) -> Result<Option<(String, Vec<u8>)>> {
    let Some(name) = text(input)? else { return Ok(None) };
    let size = length(input)?;
    if size > FILE_MAX {
        bail!("`{name}` is too large");
    }
    let mut bytes = Vec::new();
    input.take(size).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == size, "the dump is cut short");
    Ok(Some((name, bytes)))
}

fn text(input: &mut impl Read) -> Result<Option<String>> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length == 0 {
        return Ok(None);
    }
    ensure!(length < 1 << 16, "a name is too long");
    let mut text = vec![0; length as usize];
    input.read_exact(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn length(input: &mut impl Read) -> Result<u64> {
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    Ok(u64::from_be_bytes(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_holds_every_file_once_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::write(folder.path().join("sub/one"), b"1").unwrap();
        std::fs::hard_link(folder.path().join("sub/one"), folder.path().join("two")).unwrap();
        let mut dump = Dump::new(Vec::new());
        dump.tree(folder.path(), true).unwrap();
        dump.end().unwrap();
        let mut input = dump.out.as_slice();
        let (_, bytes) = next_file(&mut input).unwrap().unwrap();
        assert_eq!(bytes, b"1");
        assert!(next_file(&mut input).unwrap().is_none());
        assert_eq!(missing(&mut input).unwrap(), (0, Vec::new()));
    }

    #[test]
    fn a_dump_names_what_was_there_and_could_not_be_read() {
        let mut dump = Dump::new(Vec::new());
        // Address zero of no process is mapped: not even root can read it.
        dump.file(Path::new("/proc/self/mem"), "memory").unwrap();
        dump.file(Path::new("/nowhere/at/all"), "nothing").unwrap();
        dump.end().unwrap();
        let mut input = dump.out.as_slice();
        assert!(next_file(&mut input).unwrap().is_none());
        let (vanished, unreadable) = missing(&mut input).unwrap();
        assert_eq!(vanished, 1);
        assert!(matches!(unreadable.as_slice(), [one] if one.starts_with("/proc/self/mem: ")));
    }

    #[test]
    fn a_dump_holds_files_that_exist_only_as_descriptors() {
        let mut memory = File::from(memfd_create("twin", MemfdFlags::CLOEXEC).unwrap());
        memory.write_all(b"in memory").unwrap();
        let mut dump = Dump::new(Vec::new());
        dump.descriptors(Path::new("/proc/self/fd")).unwrap();
        dump.end().unwrap();
        let (mut input, mut found) = (dump.out.as_slice(), false);
        while let Some((name, bytes)) = next_file(&mut input).unwrap() {
            found |= name.ends_with("/memfd:twin (deleted)") && bytes == b"in memory";
        }
        assert!(found);
    }

    #[test]
    fn every_place_of_the_decoy_has_to_be_hit() {
        let hits = [
            "/proc/1/root/./etc/coffer/decoy.pem (a line of the PEM file)".to_owned(),
            "/proc/9/fd/7 -> /run/coffer-decoy-deleted (deleted) (a line of the PEM file)".into(),
        ];
        assert_eq!(decoys_missed(&hits), ["/memfd:coffer-decoy (deleted) ("]);
    }

    #[test]
    fn a_dump_that_breaks_off_is_an_error() {
        let mut cut: &[u8] = &[0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 5, b'x'];
        assert!(next_file(&mut cut).is_err());
    }
}
