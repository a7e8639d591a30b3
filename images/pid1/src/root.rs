//! Leaving the initramfs: to a tmpfs copy of itself, or to another file system.
//!
//! ```text
//! initramfs --move_root_to_tmpfs--> the same tree on a tmpfs (sealed host: child namespaces can pivot_root)
//! initramfs --switch_root---------> another mounted tree       (appliance: the verified root disk)
//! ```
//! The kernel's first root file system can be neither unmounted nor pivoted away from, so the new root is
//! moved on top of it and entered with chroot, and the files of the old one are deleted to free their memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::mount_move;
use rustix::process::{chdir, chroot};

use crate::Error;
use crate::mounts::{make_directory, mount_tmpfs};

/// statfs(2) f_type of tmpfs (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// statfs(2) f_type of ramfs (linux/magic.h).
const RAMFS_MAGIC: u64 = 0x8584_58f6;
/// Mounts that go along into a new root.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// Copies the top-level entries `keep` of the running root to a tmpfs at `new_root` (made if missing),
/// moves `/dev`, `/proc`, `/sys` and `/run` there, deletes the rest of the old root and enters the new one.
///
/// Files are deleted as they are copied, so that memory is never held twice. Other file systems mounted
/// below the kept entries are not copied and stay behind: mount them afterwards.
pub fn move_root_to_tmpfs(new_root: &Path, keep: &[&str]) -> Result<(), Error> {
    let old = old_root()?;
    mount_tmpfs(new_root, 0o755)?;
    for name in keep {
        let from = Path::new("/").join(name);
        if fs::symlink_metadata(&from).is_ok() {
            move_tree(&from, &new_root.join(name), old)?;
        }
    }
    for name in MOVED {
        make_directory(&new_root.join(name), 0o755)?;
    }
    enter(new_root, old)
}

/// Makes the tree mounted at `new_root` the root and deletes the initramfs.
///
/// `/dev`, `/proc`, `/sys` and `/run` are moved along; the new root must have these directories.
pub fn switch_root(new_root: &Path) -> Result<(), Error> {
    enter(new_root, old_root()?)
}

/// The device of the running root, if it is one that lives in memory and may be deleted.
///
/// Anything else is somebody's disk, and this code was called by mistake.
fn old_root() -> Result<u64, Error> {
    let root = Path::new("/");
    let statistics = rustix::fs::statfs(root).map_err(Error::root("read the old root", root))?;
    // libc types the constants and the field differently from one architecture to the next.
    if statistics.f_type as u64 != TMPFS_MAGIC && statistics.f_type as u64 != RAMFS_MAGIC {
        return Err(Error::root("find an old root in memory", root)(Errno::INVAL));
    }
    device_of(root)
}

fn enter(new_root: &Path, old: u64) -> Result<(), Error> {
    if device_of(new_root)? == old {
        // Deleting "the old root" would delete the new one.
        return Err(Error::root("find a mounted file system", new_root)(Errno::INVAL));
    }
    for name in MOVED {
        let from = Path::new("/").join(name);
        if is_mount_below(&from, old) {
            let target = new_root.join(name);
            mount_move(&from, &target).map_err(Error::mount(&target))?;
        }
    }
    delete_tree(Path::new("/"), old)?;
    chdir(new_root).map_err(Error::root("enter", new_root))?;
    mount_move(".", "/").map_err(Error::root("move the mount", new_root))?;
    chroot(".").map_err(Error::root("change the root", new_root))?;
    chdir("/").map_err(Error::root("enter", new_root))
}

/// True if `path` is a directory of another file system than the root's.
fn is_mount_below(path: &Path, old: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir() && meta.dev() != old)
}

fn device_of(path: &Path) -> Result<u64, Error> {
    fs::symlink_metadata(path).map(|meta| meta.dev()).map_err(Error::file("read", path))
}

/// Moves a tree of plain files, directories and symbolic links to another file system.
fn move_tree(from: &Path, to: &Path, device: u64) -> Result<(), Error> {
    let meta = fs::symlink_metadata(from).map_err(Error::file("read", from))?;
    if meta.dev() != device {
        return Ok(());
    }
    if meta.is_symlink() {
        let target = fs::read_link(from).map_err(Error::file("read", from))?;
        std::os::unix::fs::symlink(target, to).map_err(Error::file("create", to))?;
        return fs::remove_file(from).map_err(Error::file("remove", from));
    }
    if meta.is_file() {
        fs::copy(from, to).map_err(Error::file("copy", from))?;
        return fs::remove_file(from).map_err(Error::file("remove", from));
    }
    if meta.is_dir() {
        make_directory(to, 0o755)?;
        fs::set_permissions(to, meta.permissions()).map_err(Error::file("create", to))?;
        for entry in entries(from)? {
            let name = entry.file_name().unwrap_or_default();
            move_tree(&entry, &to.join(name), device)?;
        }
    }
    // Device nodes and sockets are not copied: /dev is devtmpfs.
    Ok(())
}

/// Deletes everything below `directory` that is on the old root, and nothing on any other file system.
///
/// What cannot be deleted stays: it only costs memory, and mount points cannot be.
fn delete_tree(directory: &Path, device: u64) -> Result<(), Error> {
    for path in entries(directory)? {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            delete_tree(&path, device)?;
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    fs::read_dir(directory)
        .and_then(|list| list.map(|entry| entry.map(|entry| entry.path())).collect())
        .map_err(Error::file("read", directory))
}
