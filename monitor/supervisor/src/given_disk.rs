//! Disks that are given at a launch (SPEC 3.8, 11.15): raw ones of open boxes, opened here, once, and never by path again; and
//! volumes.
//!
//! What it refuses: a closed box; whatever does not lie below the folder for disks, or is reached from there by a link
//! or through a mount (so nothing of `/proc` or `/sys`); what is neither a file nor a block device; and a disk that a
//! VM has, or the host.

use std::io::{self, Seek, SeekFrom};
use std::os::{fd::OwnedFd, unix::fs::FileTypeExt};
use std::{fs::File, path::Path};

use coffer_formats::launch::{BoxKind, LaunchDisk};
use coffer_image::verity::BLOCK;
use coffer_monitor_wire::DiskSpec;
use coffer_monitor_wire::api::{CreateVm, RawDiskRequest};
use rustix::fs::{FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;

use crate::launch_error::LaunchError;

/// A disk, open and locked for as long as any descriptor of it lives.
#[derive(Debug)]
pub struct GivenDisk {
    /// As it is launched.
    pub launched: LaunchDisk,
    /// As the VM process has it.
    pub spec: DiskSpec,
    /// The disk.
    pub file: File,
    /// An encrypted one's end of the stream with its keeper.
    pub anchor: Option<OwnedFd>,
}

impl GivenDisk {
    /// One without a root hash.
    pub fn new(name: &str, kind: &str, size: u64, spec: DiskSpec, file: File) -> Self {
        let (name, kind) = (name.into(), kind.into());
        let launched = LaunchDisk { name, kind, root_hash: None, size, volume: None };
        Self { launched, spec, file, anchor: None }
    }
}

/// Opens what `request` names below `folder`.
pub fn open_all(folder: &Path, request: &CreateVm) -> Result<Vec<GivenDisk>, LaunchError> {
    if request.box_kind == BoxKind::Closed && !request.disks.is_empty() {
        let why = "a closed box has no disks but its image's".into();
        return Err(LaunchError::Disk("closed-box", 403, why));
    }
    request.disks.iter().map(|disk| open(folder, disk)).collect()
}

fn open(folder: &Path, request: &RawDiskRequest) -> Result<GivenDisk, LaunchError> {
    let refused = |code, status, why: String| {
        LaunchError::Disk(code, status, format!("disk `{}` {why}", request.path))
    };
    let unusable = |error: io::Error| refused("disk-unusable", 422, error.to_string());
    let in_use = || refused("disk-in-use", 409, "is in use".into());
    let below = open_below(folder, Path::new(&request.path), OFlags::RDWR);
    let mut file = below.map_err(|errno| match errno {
        Errno::BUSY => in_use(),
        Errno::XDEV | Errno::LOOP => {
            refused("disk-unusable", 422, format!("does not lie in `{}` itself", folder.display()))
        }
        errno => unusable(errno.into()),
    })?;
    let kind = file.metadata().map_err(unusable)?.file_type();
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| in_use())?;
    let size = file.seek(SeekFrom::End(0)).unwrap_or(0);
    if !(kind.is_file() || kind.is_block_device()) || size == 0 || size % BLOCK as u64 != 0 {
        let why = "is no file or block device of whole 4096-byte blocks";
        return Err(refused("disk-unusable", 422, why.into()));
    }
    Ok(GivenDisk::new(&request.name, "raw", size, DiskSpec::Raw { size }, file))
}

/// The folder itself may be reached through links. EXCL: of a block device, what is mounted or has an owner is busy.
/// NONBLOCK: opening a FIFO that somebody put there must not wait.
pub fn open_below(folder: &Path, path: &Path, access: OFlags) -> Result<File, Errno> {
    let below = path.strip_prefix(folder).unwrap_or(path);
    let folder = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::CLOEXEC | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY;
    openat2(folder, below, access | flags, Mode::empty(), resolve).map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_monitor_wire::api::{NetLimit, Restart};
    use rustix::fs::CWD;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn request(box_kind: BoxKind, path: &str) -> CreateVm {
        let disk = RawDiskRequest { name: "root".into(), path: path.into() };
        let image = "image".into();
        CreateVm {
            image,
            name: None,
            box_kind,
            vcpus: None,
            memory_mib: None,
            publish: vec![],
            disks: vec![disk],
            volumes: vec![],
            vtpm: None,
            verify_ahead: false,
            tap: None,
            network_limit: NetLimit::default(),
            restart: Restart::default(),
        }
    }

    /// Code and message of the refusal.
    fn refused(folder: &Path, path: &str) -> (String, String) {
        let error = open_all(folder, &request(BoxKind::Open, path)).unwrap_err();
        (error.code().0.to_owned(), error.to_string())
    }

    #[test]
    fn opens_a_file_by_name_or_by_path_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.raw"), [7; 4096]).unwrap();
        let whole = dir.path().join("a.raw");
        let first = open_all(dir.path(), &request(BoxKind::Open, "a.raw")).unwrap();
        assert_eq!((first[0].launched.name.as_str(), first[0].launched.size), ("root", 4096));
        assert_eq!(refused(dir.path(), "a.raw").0, "disk-in-use");
        // As the VM process holds it: the lock stays with the descriptor, whoever has it.
        let held = first[0].file.try_clone().unwrap();
        drop(first);
        assert_eq!(refused(dir.path(), whole.to_str().unwrap()).0, "disk-in-use");
        drop(held);
        open_all(dir.path(), &request(BoxKind::Open, whole.to_str().unwrap())).unwrap();
    }

    #[test]
    fn a_closed_box_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.raw"), [7; 4096]).unwrap();
        let error = open_all(dir.path(), &request(BoxKind::Closed, "a.raw")).unwrap_err();
        assert_eq!(error.code(), ("closed-box", 403));
    }

    #[test]
    fn nothing_outside_the_folder_and_nothing_but_files_and_disks() {
        let dir = tempfile::tempdir().unwrap();
        let disks = dir.path().join("disks");
        fs::create_dir(&disks).unwrap();
        fs::create_dir(disks.join("sub")).unwrap();
        fs::write(dir.path().join("outside.raw"), [7; 4096]).unwrap();
        fs::write(disks.join("ragged.raw"), [7; 4096 + 512]).unwrap();
        fs::write(disks.join("empty.raw"), []).unwrap();
        symlink("../outside.raw", disks.join("link.raw")).unwrap();
        rustix::fs::mknodat(CWD, disks.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
            .unwrap();
        let outside = dir.path().join("outside.raw");
        for (path, why) in [
            ("../outside.raw", "does not lie in"),
            (outside.to_str().unwrap(), "does not lie in"),
            ("link.raw", "does not lie in"),
            ("absent.raw", "No such file"),
            ("sub", "directory"),
            ("fifo", "is no file or block device"),
            ("ragged.raw", "is no file or block device"),
            ("empty.raw", "is no file or block device"),
        ] {
            let (code, message) = refused(&disks, path);
            assert_eq!(code, "disk-unusable", "{path}");
            assert!(message.contains(why), "{path}: {message}");
        }
        // Where the folder is all there is, what other file systems make up stays out all the same.
        let (_, message) = refused(Path::new("/"), "/proc/kcore");
        assert!(message.contains("does not lie in"), "{message}");
    }
}
