//! Namespaces of its own, and a root directory with nothing in it.

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::{JailError, system};

/// Own mounts, network (not even loopback is up), System V and POSIX queues, host name and control groups. A process
/// cannot move to other process numbers and still make threads: the supervisor starts it in some of its own.
pub fn leave_namespaces() -> Result<(), JailError> {
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(own).map_err(system("leave the host's namespaces; the monitor has to be root"))
}

/// Makes an empty, read-only file system, which no path leads to, and has it for root and working directory.
pub fn enter_nothing() -> Result<(), JailError> {
    let nothing = || -> rustix::io::Result<()> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // One inode: the root itself.
        fsconfig_set_string(&context, "nr_inodes", "1")?;
        fsconfig_set_string(&context, "mode", "0555")?;
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    nothing().map_err(system("enter an empty root directory"))
}
