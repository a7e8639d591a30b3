//! The kernel's own file systems, and the few others an early user space mounts.

use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount};

use crate::Error;

/// Whether the caller wants control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// Mount the unified hierarchy.
    Mount,
    /// Leave it alone: an appliance has nobody to share with, and each mount costs launch time.
    Skip,
}

/// Mounts `/proc`, `/sys`, `/dev`, `/run` and `/sys/kernel/security`, each with the strictest flags it can bear.
///
/// What is mounted already (devtmpfs under some kernels) is left as it is. securityfs is needed for the
/// firmware event log; a kernel without it is refused.
pub fn mount_base(cgroups: Cgroups) -> Result<(), Error> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_kernel("proc", Path::new("/proc"), plain, None)?;
    mount_kernel("sysfs", Path::new("/sys"), plain, None)?;
    let devices = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_kernel("devtmpfs", Path::new("/dev"), devices, Some(c"mode=0755"))?;
    let scratch = MountFlags::NOSUID | MountFlags::NODEV;
    mount_kernel("tmpfs", Path::new("/run"), scratch, Some(c"mode=0755"))?;
    mount_kernel("securityfs", Path::new("/sys/kernel/security"), plain, None)?;
    match cgroups {
        Cgroups::Mount => mount_cgroups(),
        Cgroups::Skip => Ok(()),
    }
}

/// Mounts the unified control group hierarchy at `/sys/fs/cgroup`.
pub fn mount_cgroups() -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_kernel("cgroup2", Path::new("/sys/fs/cgroup"), flags, None)
}

/// Completes `/dev` for programs: `/dev/pts`, `/dev/shm`, and the links to a process's own descriptors,
/// by which many log to standard output (`/dev/stdout`).
pub fn mount_device_directories() -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let pts = Some(c"mode=0620,ptmxmode=0666");
    mount_kernel("devpts", Path::new("/dev/pts"), flags, pts)?;
    let shared = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_kernel("tmpfs", Path::new("/dev/shm"), shared, Some(c"mode=1777"))?;
    let links = [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")];
    links.iter().try_for_each(|(name, tail)| {
        let link = Path::new("/dev").join(name);
        match std::os::unix::fs::symlink(format!("/proc/self/fd{tail}"), &link) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            result => result.map_err(Error::file("create", &link)),
        }
    })
}

/// Mounts a block device read-only, without set-user-ID programs and device nodes.
pub fn mount_read_only(device: &Path, target: &Path, kind: &str) -> Result<(), Error> {
    mount_device(device, target, kind, MountFlags::empty())
}

/// The same for a device nothing is run from: without programs at all.
pub fn mount_data_read_only(device: &Path, target: &Path, kind: &str) -> Result<(), Error> {
    mount_device(device, target, kind, MountFlags::NOEXEC)
}

/// Mounts a block device for reading and writing, without set-user-ID programs and device nodes. After an error of the
/// device nothing more is written.
pub fn mount_volume(device: &Path, target: &Path, kind: &str) -> Result<(), Error> {
    mount_to_write(device, target, kind, MountFlags::empty())
}

/// The same for a device whose owner nobody trusts: no symbolic link on it is followed.
pub fn mount_untrusted_volume(device: &Path, target: &Path, kind: &str) -> Result<(), Error> {
    mount_to_write(device, target, kind, MountFlags::NOSYMFOLLOW | MountFlags::NOEXEC)
}

fn mount_to_write(device: &Path, target: &Path, kind: &str, more: MountFlags) -> Result<(), Error> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | more;
    mount(device, target, kind, flags, c"errors=remount-ro").map_err(Error::mount(target))
}

/// Unmounts what is not in use, and writes it out.
pub fn unmount(target: &Path) -> Result<(), Error> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)
        .map_err(|source| Error::Unmount { target: target.into(), source })
}

fn mount_device(device: &Path, target: &Path, kind: &str, more: MountFlags) -> Result<(), Error> {
    make_directory(target, 0o755)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | more;
    mount(device, target, kind, flags, None).map_err(Error::mount(target))
}

/// Mounts an empty tmpfs; the directory is made if it is missing. At most half of memory, the kernel's default.
pub fn mount_tmpfs(target: &Path, mode: u32) -> Result<(), Error> {
    make_directory(target, mode)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = CString::new(format!("mode={mode:04o}")).expect("digits hold no NUL");
    mount("tmpfs", target, "tmpfs", flags, options.as_c_str()).map_err(Error::mount(target))
}

/// Makes a file appear at another place too, read-only; it stays there when it is deleted where it was.
pub fn bind_file(file: &Path, target: &Path) -> Result<(), Error> {
    if let Some(parent) = target.parent() {
        make_directory(parent, 0o755)?;
    }
    std::fs::File::create_new(target).map_err(Error::file("create", target))?;
    mount_bind(file, target).map_err(Error::mount(target))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(target, flags, "").map_err(Error::mount(target))
}

/// Mounts and takes "already mounted there" (EBUSY) for success.
fn mount_kernel(
    kind: &str,
    target: &Path,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), Error> {
    make_directory(target, 0o755)?;
    match mount(kind, target, kind, flags, options) {
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(source) => Err(Error::Mount { target: target.into(), source }),
    }
}

/// Makes a directory and its parents; what exists stays as it is.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::file("create", path))
}
