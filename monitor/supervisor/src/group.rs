//! The control group of one VM (SPEC 6.3.2): its VM process, vTPM and network backend share limits that no other VM
//! feels, and end together, whatever one of them was turned into.
//!
//! The unified hierarchy (cgroup v2) with the controllers for memory, processes and CPU has to be there and ours to
//! divide, and the one for I/O too where images lie on a disk; where it is not, no VM starts. Files are named below the
//! group the monitor found itself in, by names that it made up.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, os::unix::fs::MetadataExt as _, thread};

use rustix::fs::{major, minor};

/// Where the hierarchy is mounted.
const MOUNTED: &str = "/sys/fs/cgroup";
/// Where the monitor goes: a group that is divided may hold no process itself.
const OWN: &str = "monitor";
/// Groups of VMs are below this one.
const VMS: &str = "vms";
/// What limits them.
const CONTROLLERS: &str = "+memory +pids +cpu";
/// And where there is a disk to protect.
const DISK_CONTROLLER: &str = "+io";
/// Most that a VM may have of that disk, each way and each second: what one SATA SSD gives, so that a guest that does
/// nothing but read leaves something of anything better. Among those below it, disks are shared in equal parts.
const DISK_MAX: &str = "rbps=536870912 wbps=536870912 riops=20000 wiops=20000";
/// Memory beside the guest's: VM process, vTPM, network backend, and blocks of disks on their way.
const OVERHEAD_MIB: u64 = 128;
/// Part of the guest's memory that page tables may take: two of them, of 8 bytes for each 4 KiB.
const PAGE_TABLES: u64 = 256;
/// Threads beside vCPUs: those of the VM process, swtpm and the network backend are fewer than ten.
const THREADS: u32 = 32;
/// How long the kernel may take to end all of them.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Why there are no groups, or none for this VM.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0} `{1}`: {2}")]
pub struct GroupError(&'static str, PathBuf, String);

fn failed(doing: &'static str, path: &Path, why: impl ToString) -> GroupError {
    GroupError(doing, path.to_owned(), why.to_string())
}

/// The part of the hierarchy that is ours.
#[derive(Debug)]
pub struct Groups {
    vms: PathBuf,
    /// Number of the disk that images lie on.
    disk: Option<String>,
}

/// A VM's group. Dropped, it ends whatever is in it.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Groups {
    /// Takes the group we are in, and ends what a monitor that died left running there.
    pub fn open(images: &Path) -> Result<Self, GroupError> {
        let own = Path::new("/proc/self/cgroup");
        let text = fs::read_to_string(own).map_err(|e| failed("cannot read", own, e))?;
        let ours = text.lines().find_map(|line| line.strip_prefix("0::/")).map(Path::new);
        let ours = ours.ok_or_else(|| failed("no unified hierarchy in", own, "cgroup v1"))?;
        let ours = divided(ours);
        let base = Path::new(MOUNTED).join(ours);
        if ours != Path::new("") {
            let leaf = base.join(OWN);
            make(&leaf)?;
            write(&leaf, "cgroup.procs", &std::process::id().to_string())?;
        }
        Self::below(&base, disk_below(images))
    }

    fn below(base: &Path, disk: Option<String>) -> Result<Self, GroupError> {
        let vms = base.join(VMS);
        make(&vms)?;
        for divided in [base, &vms] {
            write(divided, "cgroup.subtree_control", CONTROLLERS)?;
            if disk.is_some() {
                write(divided, "cgroup.subtree_control", DISK_CONTROLLER)?;
            }
        }
        let left = fs::read_dir(&vms).map_err(|e| failed("cannot read", &vms, e))?;
        for group in left.filter_map(Result::ok).filter(|e| e.path().is_dir()) {
            tracing::warn!(group = ?group.file_name(), "ending what a monitor that died left");
            drop(Group(group.path()));
        }
        Ok(Self { vms, disk })
    }

    /// A group for one VM.
    pub fn create(&self, name: &str, vcpus: u8, memory_mib: u32) -> Result<Group, GroupError> {
        let path = self.vms.join(name);
        fs::create_dir(&path).map_err(|e| failed("cannot make", &path, e))?;
        let group = Group(path);
        let guest = u64::from(memory_mib) << 20;
        let memory = guest + guest / PAGE_TABLES + (OVERHEAD_MIB << 20);
        group.set("memory.max", &memory.to_string())?;
        group.set("memory.oom.group", "1")?;
        // A kernel that cannot swap has no such file.
        if group.0.join("memory.swap.max").exists() {
            group.set("memory.swap.max", "0")?;
        }
        group.set("pids.max", &(THREADS + u32::from(vcpus)).to_string())?;
        // One CPU for each vCPU, and one for what serves them.
        group.set("cpu.max", &format!("{} 100000", (u32::from(vcpus) + 1) * 100_000))?;
        if let Some(disk) = &self.disk {
            group.set("io.max", &format!("{disk} {DISK_MAX}"))?;
        }
        Ok(group)
    }

    /// A number that the kernel tells of a VM's group: in the line of `file` that begins with `key`.
    pub fn figure(&self, name: &str, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.vms.join(name).join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    }
}

/// The disk that a folder lies on, by its number; none if it lies in memory, or not on one disk.
fn disk_below(folder: &Path) -> Option<String> {
    let device = fs::metadata(folder).ok()?.dev();
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let device = fs::canonicalize(device).ok()?;
    // Limits are a whole disk's.
    let disk = if device.join("partition").exists() { device.parent()? } else { &device };
    fs::read_to_string(disk.join("dev")).ok().map(|number| number.trim().to_owned())
}

/// The group to divide: our own, or the one above where an earlier run of the monitor went.
fn divided(ours: &Path) -> &Path {
    match ours.parent() {
        Some(parent) if ours.file_name().is_some_and(|name| name == OWN) => parent,
        _ => ours,
    }
}

impl Group {
    /// Takes a process in; what it starts later is in it too.
    pub fn add(&self, pid: u32) -> Result<(), GroupError> {
        self.set("cgroup.procs", &pid.to_string())
    }

    /// A new group at `path` that limits nothing; for tests of what ends with a VM, where no controller can be had.
    pub fn dangerous_without_limits(path: &Path) -> Result<Self, GroupError> {
        fs::create_dir(path).map_err(|e| failed("cannot make", path, e))?;
        Ok(Self(path.to_owned()))
    }

    fn set(&self, file: &str, value: &str) -> Result<(), GroupError> {
        write(&self.0, file, value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = write(&self.0, "cgroup.kill", "1");
        // It can be removed once nothing is in it.
        let deadline = Instant::now() + END_PATIENCE;
        while let Err(error) = fs::remove_dir(&self.0) {
            if error.kind() == io::ErrorKind::NotFound {
                return;
            }
            if Instant::now() > deadline {
                tracing::error!(group = %self.0.display(), %error, "a group does not end");
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn make(path: &Path) -> Result<(), GroupError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("cannot make", path, e)),
        _ => Ok(()),
    }
}

fn write(group: &Path, file: &str, value: &str) -> Result<(), GroupError> {
    let path = group.join(file);
    fs::write(&path, value).map_err(|e| failed("cannot write", &path, e))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A group in a unified hierarchy of this machine, be it without controllers.
    fn group(name: &str) -> Group {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounted =
            mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
                [_, path, "cgroup2", ..] => Some(path.to_owned()),
                _ => None,
            });
        let name = format!("coffer-test-{}-{name}", std::process::id());
        let path = Path::new(&mounted.expect("no cgroup2 is mounted")).join(name);
        Group::dangerous_without_limits(&path).unwrap()
    }

    /// A shell with a child of its own, and their number while they are in the group.
    fn family(group: &Group) -> (Child, usize) {
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "read go; sleep 60 & wait"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        group.add(shell.id()).unwrap();
        shell.stdin.take().unwrap().write_all(b"\n").unwrap();
        wait_for(group, 2);
        (shell, 2)
    }

    #[track_caller]
    fn wait_for(group: &Group, count: usize) {
        let members = || fs::read_to_string(group.0.join("cgroup.procs")).unwrap().lines().count();
        let deadline = Instant::now() + Duration::from_secs(10);
        while members() != count {
            assert!(Instant::now() < deadline, "{} are in the group", members());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_member_started_ends_with_the_group() {
        let group = group("ends");
        let (mut shell, count) = family(&group);
        // Its parent's end alone leaves the child.
        shell.kill().unwrap();
        shell.wait().unwrap();
        wait_for(&group, count - 1);
        let path = group.0.clone();
        drop(group);
        assert!(!path.exists());
    }

    #[test]
    fn a_monitor_that_was_started_again_divides_the_same_group() {
        let of = |ours| divided(Path::new(ours)).to_str().unwrap();
        assert_eq!(of(""), "");
        assert_eq!(of("system.slice/coffer.service"), "system.slice/coffer.service");
        assert_eq!(of("system.slice/coffer.service/monitor"), "system.slice/coffer.service");
        assert_eq!(of("coffer-monitor"), "coffer-monitor");
    }

    #[test]
    fn a_folder_is_on_the_disk_it_is_on() {
        assert_eq!(disk_below(Path::new("/dev/shm")), None, "in memory");
        assert_eq!(disk_below(Path::new("/nowhere")), None);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // Beside the lines of what is mounted here, so that it cannot agree with itself.
        for mount in mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()) {
            let [_, _, number, _, place, ..] = mount[..] else { continue };
            let number = Path::new("/sys/dev/block").join(number);
            let (Some(disk), true) = (disk_below(Path::new(place)), number.exists()) else {
                continue;
            };
            let own = fs::read_to_string(number.join("dev")).unwrap();
            let whole = fs::read_to_string(number.join("../dev")).unwrap_or_default();
            assert!([own.trim(), whole.trim()].contains(&disk.as_str()), "{place}: {disk}");
            assert!(!Path::new("/sys/dev/block").join(&disk).join("partition").exists());
        }
    }

    /// What the kernel makes of each is tests/lab's to see; that each is asked for shows in a folder that is no hierarchy.
    #[test]
    fn a_group_is_given_every_limit_before_anything_is_in_it() {
        let limits = |disk: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let groups = Groups::below(folder.path(), disk.map(str::to_owned)).unwrap();
            let group = groups.create("vm", 2, 512).unwrap();
            let path = group.0.clone();
            // It has files here, and so does not end as groups do.
            std::mem::forget(group);
            let text = |file: &Path| fs::read_to_string(file).unwrap_or_default();
            let divided = text(&folder.path().join("vms/cgroup.subtree_control"));
            let files = ["memory.max", "memory.oom.group", "pids.max", "cpu.max", "io.max"];
            (divided, files.map(|file| text(&path.join(file))))
        };
        let memory = ((512 << 20) + (2 << 20) + (128 << 20)).to_string();
        let all = |io: &str| [&memory, "1", "34", "300000 100000", io].map(str::to_owned);
        let io = "8:0 rbps=536870912 wbps=536870912 riops=20000 wiops=20000";
        // Each controller is a write of its own, and a file shows the last.
        assert_eq!(limits(Some("8:0")), ("+io".to_owned(), all(io)));
        assert_eq!(limits(None), ("+memory +pids +cpu".to_owned(), all("")));
    }

    #[test]
    fn a_hierarchy_without_the_controllers_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent");
        assert!(Groups::below(&absent, None).unwrap_err().to_string().contains("cannot make"));
        // A group to which nobody has given controllers to divide.
        let bare = group("bare");
        let error = Groups::below(&bare.0, None).unwrap_err().to_string();
        fs::remove_dir(bare.0.join(VMS)).unwrap();
        assert!(error.contains("cgroup.subtree_control"), "{error}");
    }
}
