//! The root file system: from a folder or a tar to an erofs image that is the same for the same files.
//!
//! What is not carried over, because it depends on the machine or is useless in an appliance: times, owners
//! (everything belongs to root), extended attributes, device nodes, FIFOs and sockets, and the mode of the root
//! directory itself, which is an accident of where it was unpacked (it becomes 0755).

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use tempfile::TempDir;

use crate::{BuildError, tool};

/// Directories that coffer-init moves its mounts to.
const MOUNT_POINTS: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// A root file system as a folder.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
    unpacked: Option<TempDir>,
}

impl Root {
    /// Takes a folder as it is, unpacks a tar below `scratch`.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, BuildError> {
        let meta = fs::metadata(path).map_err(BuildError::input("root file system", path))?;
        if meta.is_dir() {
            return Ok(Self { folder: path.into(), unpacked: None });
        }
        let file = File::open(path).map_err(BuildError::input("root file system", path))?;
        if !meta.is_file() || !is_tar(&file) {
            return Err(BuildError::NotARoot(path.into()));
        }
        let temporary = tempfile::Builder::new().prefix("root-").tempdir_in(scratch);
        let unpacked = temporary.map_err(BuildError::write("make a temporary directory"))?;
        let folder = unpacked.path().to_owned();
        // Made first, so that a failure on the way cleans up as well.
        let root = Self { folder, unpacked: Some(unpacked) };
        unpack(file, path, &root.folder)?;
        Ok(root)
    }

    /// Checks that the directories and the programs are there, as the kernel would find them.
    pub fn check<'a>(
        &self,
        mut programs: impl Iterator<Item = &'a str>,
        mount_points: impl Iterator<Item = &'a str>,
    ) -> Result<(), BuildError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let root = rustix::fs::open(&self.folder, flags, Mode::empty())
            .map_err(|errno| BuildError::input("root file system", &self.folder)(errno.into()))?;
        for path in MOUNT_POINTS.into_iter().chain(mount_points) {
            if kind_in(&root, path).is_none_or(|mode| !FileType::from_raw_mode(mode).is_dir()) {
                return Err(BuildError::NoMountPoint(path.into()));
            }
        }
        let runs = |mode: u32| FileType::from_raw_mode(mode).is_file() && mode & 0o111 != 0;
        match programs.find(|path| kind_in(&root, path).is_none_or(|mode| !runs(mode))) {
            Some(program) => Err(BuildError::NoProgram(program.into())),
            None => Ok(()),
        }
    }

    /// Writes the erofs image.
    pub fn write_erofs(&self, out: &Path) -> Result<(), BuildError> {
        let mut command = tool::command("mkfs.erofs");
        // nosbcrc: the hash tree covers every byte, and the checksum would cover the mode set below.
        command.args(["--quiet", "-T0", "-x-1", "-Enosbcrc", "--all-root", "-U", UUID]);
        for path in special_files(&self.folder)? {
            let mut option = std::ffi::OsString::from("--exclude-path=");
            option.push(path);
            command.arg(option);
        }
        tool::run("mkfs.erofs", command.arg(out).arg(&self.folder))?;
        set_root_mode(out)
    }
}

impl Drop for Root {
    /// Makes directories without write permission removable, for builders that are not root.
    fn drop(&mut self) {
        if let Some(unpacked) = &self.unpacked {
            make_removable(unpacked.path());
        }
    }
}

fn make_removable(directory: &Path) {
    // Best effort: what cannot be removed is reported by nobody, as it is a temporary directory.
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        make_removable(&entry.path());
    }
}

/// The mode of what `path` leads to, with symbolic links resolved inside `root`.
fn kind_in(root: &OwnedFd, path: &str) -> Option<u32> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    fstat(&fd).ok().map(|stat| stat.st_mode)
}

/// POSIX and GNU archives have "ustar" at 257.
fn is_tar(file: &File) -> bool {
    let mut magic = [0_u8; 5];
    file.read_exact_at(&mut magic, 257).is_ok() && magic == *b"ustar"
}

/// Unpacks files, directories and links. Directories come last, so that none is read-only too early.
fn unpack(file: impl Read, path: &Path, folder: &Path) -> Result<(), BuildError> {
    let input = |error| BuildError::input("root file system", path)(error);
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(1 << 20, file));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(false);
    archive.set_preserve_ownerships(false);
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(input)? {
        let mut entry = entry.map_err(input)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            directories.push(entry);
        } else if !(kind.is_character_special() || kind.is_block_special() || kind.is_fifo()) {
            put(&mut entry, folder)?;
        }
    }
    directories.sort_by(|one, other| other.path_bytes().cmp(&one.path_bytes()));
    directories.iter_mut().try_for_each(|entry| put(entry, folder))
}

fn put<R: Read>(entry: &mut tar::Entry<'_, R>, folder: &Path) -> Result<(), BuildError> {
    // The tar crate answers false for paths with `..` and fails for links that lead out.
    match entry.unpack_in(folder).map_err(BuildError::write("unpack the root file system"))? {
        true => Ok(()),
        false => {
            Err(BuildError::Escapes(entry.path().map(|path| path.into_owned()).unwrap_or_default()))
        }
    }
}

/// Device nodes, FIFOs and sockets, relative to the root. `/dev` is a devtmpfs when the appliance runs.
fn special_files(root: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        let fail = |error| BuildError::input("root file system", &directory)(error);
        for entry in fs::read_dir(&directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let kind = entry.file_type().map_err(fail)?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if !kind.is_file() && !kind.is_symlink() {
                found.extend(entry.path().strip_prefix(root).map(Path::to_owned));
            }
        }
    }
    Ok(found)
}

/// The UUID says nothing, so that equal files make equal images.
const UUID: &str = "00000000-0000-0000-0000-000000000000";

/// Gives the root directory mode 0755: `struct erofs_super_block` at 1024 names its inode.
fn set_root_mode(image: &Path) -> Result<(), BuildError> {
    let fail = BuildError::write("finish the root file system");
    let patch = || -> io::Result<()> {
        let file = File::options().read(true).write(true).open(image)?;
        let mut superblock = [0_u8; 48];
        file.read_exact_at(&mut superblock, 1024)?;
        let [m0, m1, m2, m3, .., block_bits, _, n0, n1] =
            *superblock.first_chunk::<16>().ok_or(io::ErrorKind::InvalidData)?;
        let meta: [u8; 4] = superblock
            .get(40..44)
            .and_then(|b| b.try_into().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        if u32::from_le_bytes([m0, m1, m2, m3]) != EROFS_MAGIC || block_bits != 12 {
            return Err(io::Error::other("mkfs.erofs wrote another format than expected"));
        }
        let inode = (u64::from(u32::from_le_bytes(meta)) << 12)
            + 32 * u64::from(u16::from_le_bytes([n0, n1]));
        let mut mode = [0_u8; 2];
        file.read_exact_at(&mut mode, inode + 4)?;
        if u16::from_le_bytes(mode) & 0o170_000 != 0o040_000 {
            return Err(io::Error::other("mkfs.erofs wrote another format than expected"));
        }
        file.write_all_at(&0o040_755_u16.to_le_bytes(), inode + 4)
    };
    patch().map_err(fail)
}

const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
