//! The walls around a program that serves one VM and is not ours (SPEC 6.3.1): swtpm parses what a guest sends it.
//!
//! ```text
//! coffer-vmm confine UID STATE PROGRAM [ARGUMENT...]
//! ```
//! Becomes PROGRAM in namespaces of its own, under UID, without any privilege, with a root directory that has the
//! system's libraries, read-only, and the folder STATE as `/state`. Nothing else has a name there: no `/proc`, no
//! device, no other VM's folder, no network.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use nix::unistd::{Gid, Uid, chown};
use rustix::fs::{Mode, mkdirat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
    mount_remount, move_mount, open_tree,
};

use super::{JailError, UIDS, forbid_cores, rights, root, system};

/// The word that asks for this.
pub const WORD: &str = "confine";
/// Where programs and libraries are.
const SYSTEM: [&str; 4] = ["usr", "lib", "lib64", "bin"];
const STATE: &str = "state";

/// Becomes the program that the arguments name; comes back only with an error.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let [uid, state, program, rest @ ..] = arguments else {
        bail!("usage: coffer-vmm {WORD} UID STATE PROGRAM [ARGUMENT...]");
    };
    let uid = uid.parse().ok().filter(|uid| UIDS.contains(uid)).context("UID is none for a VM")?;
    forbid_cores()?;
    root::leave_namespaces()?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    chown(Path::new(state), Some(user), Some(group)).context("cannot give the state its owner")?;
    enter_system(Path::new(state))?;
    rights::take_uid(uid)?;
    rights::reach_only(&["/"], &["/state"])?;
    Err(Command::new(program).args(rest).exec()).context("cannot start the program")
}

/// Makes a root directory of the system's folders and the state, and enters it.
fn enter_system(state: &Path) -> Result<(), JailError> {
    let failed = "make a root directory for the program";
    // What is mounted from here on is seen by nobody else.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(system(failed))?;
    let kept = SYSTEM.iter().map(|name| Ok((*name, Kept::open(name)?)));
    let kept: Vec<(&str, Kept)> =
        kept.collect::<rustix::io::Result<_>>().map_err(system(failed))?;
    let enter = || -> rustix::io::Result<()> {
        let own = clone_of(state)?;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "0755")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        // It needs a place; the state's is free, for the state has got another.
        place(&root, rustix::fs::CWD, state)?;
        for (name, kept) in &kept {
            match kept {
                Kept::Folder(tree) => place_in(&root, name, tree)?,
                Kept::Link(target) => symlinkat(target.as_path(), &root, *name)?,
                Kept::Absent => {}
            }
        }
        place_in(&root, STATE, &own)?;
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")?;
        let fixed = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
        for (name, _) in kept.iter().filter(|(_, kept)| matches!(kept, Kept::Folder(_))) {
            mount_remount(*name, fixed | MountFlags::RDONLY, "")?;
        }
        mount_remount(STATE, fixed | MountFlags::NOEXEC, "")?;
        mount_remount("/", fixed | MountFlags::RDONLY, "")
    };
    enter().map_err(system(failed))
}

/// A folder of the system, as it is there.
enum Kept {
    Folder(OwnedFd),
    /// Where `/usr` is merged.
    Link(std::path::PathBuf),
    Absent,
}

impl Kept {
    fn open(name: &str) -> rustix::io::Result<Self> {
        let path = Path::new("/").join(name);
        match std::fs::read_link(&path) {
            Ok(target) => Ok(Self::Link(target)),
            Err(_) if path.is_dir() => clone_of(&path).map(Self::Folder),
            Err(_) => Ok(Self::Absent),
        }
    }
}

fn clone_of(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, path, flags)
}

fn place_in(root: &OwnedFd, name: &str, tree: &OwnedFd) -> rustix::io::Result<()> {
    mkdirat(root, name, Mode::from_raw_mode(0o755))?;
    place(tree, root, Path::new(name))
}

fn place(tree: &OwnedFd, within: impl AsFd, path: &Path) -> rustix::io::Result<()> {
    move_mount(tree, "", within, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
