//! The state directory: one monitor each, one folder per VM, nothing left from a monitor that died.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coffer_formats::InstanceId;
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or read.
    #[error("state directory `{0}`: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// Another monitor has it.
    #[error("another monitor uses the state directory `{0}`")]
    InUse(PathBuf),
    /// Who may write in it could have processes killed, and take the place of vTPMs.
    #[error("others than the monitor can change `{0}`, on the way to the state directory")]
    NotOurs(PathBuf),
}

/// A state directory of ours alone, for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    vms: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Takes the directory, ends what a dead monitor left running in it, and removes what it left.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |e| StateError::Io(path.to_owned(), e);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = &path.canonicalize().map_err(failed)?;
        for folder in path.ancestors() {
            let of = folder.metadata().map_err(failed)?;
            let ours = [0, rustix::process::geteuid().as_raw()].contains(&of.uid());
            // Nobody takes another's name in a sticky folder, as /tmp is.
            let sticky = folder != path && of.mode() & 0o1000 != 0;
            if !ours || (of.mode() & 0o022 != 0 && !sticky) {
                return Err(StateError::NotOurs(folder.to_owned()));
            }
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StateError::InUse(path.to_owned()))?;
        let vms = path.join("vms");
        clear(&vms).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&vms).map_err(failed)?;
        Ok(Self { vms, _lock: lock })
    }

    /// A folder for one VM.
    pub fn create_vm(&self, id: &InstanceId) -> Result<VmDir, StateError> {
        let path = self.vms.join(id.to_hex());
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| StateError::Io(path.clone(), e))?;
        Ok(VmDir(path))
    }
}

/// A VM's folder; removed when dropped.
#[derive(Debug)]
pub struct VmDir(PathBuf);

impl VmDir {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Notes a child, so that a later monitor can end it if this one dies.
    pub fn note_child(&self, pid: u32) -> io::Result<()> {
        let start = start_time(pid).unwrap_or(0);
        let mut file =
            OpenOptions::new().create(true).append(true).mode(0o600).open(self.0.join(CHILDREN))?;
        writeln!(file, "{pid} {start}")
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        // What cannot be removed now is removed at the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CHILDREN: &str = "children";

/// Ends and removes what is below `vms`.
fn clear(vms: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(vms) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let children = fs::read_to_string(entry?.path().join(CHILDREN)).unwrap_or_default();
        for line in children.lines() {
            if let Some((pid, start)) = parse_child(line) {
                end_leftover(pid, start);
            }
        }
    }
    fs::remove_dir_all(vms)
}

fn parse_child(line: &str) -> Option<(u32, u64)> {
    let (pid, start) = line.split_once(' ')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Kills a process if it is still the one noted. The pidfd is opened first: from then on it names one
/// process for good, and the start time tells whether that is the one meant.
fn end_leftover(pid: u32, start: u64) {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(process) = pidfd_open(raw, PidfdFlags::empty()) else { return };
    if start != 0 && start_time(pid) == Some(start) {
        tracing::warn!(pid, "ending a process of a monitor that died");
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}

/// Start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)), counted after the name,
/// which may hold spaces and parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Owned;
    use std::process::Command;

    const ID: InstanceId = InstanceId([7; 16]);

    #[test]
    fn refuses_a_second_monitor() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(StateError::InUse(_))));
        drop(first);
        // A child that another test starts at this moment holds the lock until it is a program of its own.
        let free = (0..100).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            StateDir::open(dir.path()).is_ok()
        });
        assert!(free);
    }

    #[test]
    fn ends_and_removes_what_a_dead_monitor_left() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let vm = state.create_vm(&ID).unwrap();
        let mut left = Owned::spawn(Command::new("/bin/sleep").arg("60")).unwrap();
        vm.note_child(left.id()).unwrap();
        let mut other = Owned::spawn(Command::new("/bin/sleep").arg("60")).unwrap();
        // The same pid with another start time: some other process by now.
        fs::write(vm.path().join("children2"), "").unwrap();
        writeln!(
            OpenOptions::new().append(true).open(vm.path().join(CHILDREN)).unwrap(),
            "{} {}",
            other.id(),
            start_time(other.id()).unwrap() + 1
        )
        .unwrap();
        let path = vm.path().to_owned();
        std::mem::forget(vm);
        drop(state);
        let _state = StateDir::open(dir.path()).unwrap();
        assert!(!path.exists());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(left.has_ended());
        assert!(!other.has_ended());
    }
}
