//! The lab's own eye on the host: every byte in every file of it, so that a search can prove an absence.
//!
//! Only lab hosts have it: it is in their initrd, so it is measured, and a reference value made for a lab host is no
//! reference value for any other. The lab's PID 1 is this program; it starts the probe and becomes the monitor.
//!
//! One connection, one dump: `u32 length | name | u64 length | bytes` for each file, big-endian; a name of length
//! zero ends it. Files are those of every mount namespace, and those that exist only as open descriptors (sealed
//! memory files, deleted files). Not read: `/proc` and `/sys`, which hold no files, the image store, which is
//! searched as the disk image it came as, and the memory of processes: a guest's memory is on its host in clear
//! (SPEC 2.3).

use std::collections::BTreeSet;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::bench::agent;
use crate::initrd;
use crate::needle::Needle;

/// Port of the probe on a lab host.
pub const PORT: u16 = 7071;
/// Where this program is on a lab host.
pub const PROGRAM: &str = "/usr/bin/coffer-lab";
/// The monitor on a lab host.
pub const MONITOR: &str = "/usr/bin/coffer-monitor";
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
    enter_host().context("cannot enter the host's mount namespace")?;
    if Path::new(agent::MARKER).exists() {
        std::thread::spawn(agent::serve);
    }
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("cannot listen")?;
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(|stream| dump(&stream)) {
            eprintln!("coffer-lab: the dump failed: {error}");
        }
    }
    Ok(())
}

/// Until the monitor's API answers, PID 1 is still moving the root file system.
fn wait_for_monitor() {
    while TcpStream::connect((initrd::ADDRESS, initrd::API_PORT)).is_err() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// PID 1 has left the initramfs this process was started in, and `/proc` went with it. Entering a mount namespace
/// anew, even one's own, starts at its topmost root.
fn enter_host() -> io::Result<()> {
    let init = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::MOUNT)?;
    Ok(())
}

fn dump(stream: &TcpStream) -> io::Result<()> {
    let mut out = Dump { out: BufWriter::with_capacity(1 << 18, stream), seen: BTreeSet::new() };
    let mut namespaces = BTreeSet::new();
    for process in processes() {
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else { continue };
        if namespaces.insert(namespace) {
            out.tree(&process.join("root"), true)?;
        }
        out.descriptors(&process.join("fd"))?;
    }
    out.end()
}

fn processes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut all: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all.into_iter().map(|id| Path::new("/proc").join(id.to_string())).collect()
}

struct Dump<W: Write> {
    out: W,
    /// Device and inode of what went out already.
    seen: BTreeSet<(u64, u64)>,
}

impl<W: Write> Dump<W> {
    fn tree(&mut self, folder: &Path, top: bool) -> io::Result<()> {
        // A file or folder that vanishes meanwhile is none.
        let Ok(entries) =
            std::fs::read_dir(if top { folder.join(".") } else { folder.to_path_buf() })
        else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                let skipped = top && (name == "proc" || name == "sys");
                let store = path.ends_with("var/lib/coffer/images");
                if !skipped && !store {
                    self.tree(&path, false)?;
                }
            } else if metadata.is_file() && self.seen.insert((metadata.dev(), metadata.ino())) {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn descriptors(&mut self, folder: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(target) = std::fs::read_link(&path) else { continue };
            let nameless = target.to_string_lossy().ends_with("(deleted)");
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            if nameless && metadata.is_file() && self.seen.insert((metadata.dev(), metadata.ino()))
            {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<()> {
        let Ok(bytes) = std::fs::read(path) else { return Ok(()) };
        let name = path.to_string_lossy();
        let length = u32::try_from(name.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&(bytes.len() as u64).to_be_bytes())?;
        self.out.write_all(&bytes)
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&0u32.to_be_bytes())?;
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
    Ok(found)
}

fn next_file(input: &mut impl Read) -> Result<Option<(String, Vec<u8>)>> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length == 0 {
        return Ok(None);
    }
    ensure!(length < 1 << 16, "a file name is too long");
    let mut name = vec![0; length as usize];
    input.read_exact(&mut name)?;
    let mut size = [0; 8];
    input.read_exact(&mut size)?;
    let size = u64::from_be_bytes(size);
    if size > FILE_MAX {
        bail!("`{}` is too large", String::from_utf8_lossy(&name));
    }
    let mut bytes = Vec::new();
    input.take(size).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == size, "the dump is cut short");
    Ok(Some((String::from_utf8_lossy(&name).into_owned(), bytes)))
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
        let mut dump = Dump { out: Vec::new(), seen: BTreeSet::new() };
        dump.tree(folder.path(), true).unwrap();
        dump.end().unwrap();
        let mut input = dump.out.as_slice();
        let (_, bytes) = next_file(&mut input).unwrap().unwrap();
        assert_eq!(bytes, b"1");
        assert!(next_file(&mut input).unwrap().is_none());
    }

    #[test]
    fn a_dump_that_breaks_off_is_an_error() {
        let mut cut: &[u8] = &[0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 0, 5, b'x'];
        assert!(next_file(&mut cut).is_err());
    }
}
