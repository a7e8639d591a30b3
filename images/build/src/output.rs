//! Writing an image so that its name never stands for half an image.
//!
//! ```text
//! .coffer-build-XXXX/image   filled, synced --rename--> OUTPUT      (swapped with the old one under `force`)
//! ```
//! The temporary directory is a sibling of the output, so that the rename stays in one file system; it goes
//! away whatever happens.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use coffer_formats::Digest;
use coffer_image::descriptor::{BlobDigest, BlobRef};
use coffer_image::layout::blob_name;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::BuildError;

/// An image being written.
#[derive(Debug)]
pub struct Output {
    scratch: TempDir,
    target: PathBuf,
    force: bool,
}

impl Output {
    /// Checks that `target` may be written and makes the temporary directory beside it.
    pub fn begin(target: &Path, force: bool) -> Result<Self, BuildError> {
        match fs::symlink_metadata(target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BuildError::input("output", target)(error)),
            Ok(_) if !force => return Err(BuildError::Exists(target.into())),
            Ok(meta) if meta.is_dir() && is_replaceable(target) => {}
            Ok(_) => return Err(BuildError::NotAnImage(target.into())),
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let scratch = tempfile::Builder::new().prefix(".coffer-build-").tempdir_in(parent);
        let output = Self {
            scratch: scratch.map_err(BuildError::write("make a directory beside the output"))?,
            target: target.into(),
            force,
        };
        fs::create_dir_all(output.image().join("blobs/sha256"))
            .map_err(BuildError::write("make the image layout"))?;
        Ok(output)
    }

    /// For temporary files of the build.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Writes a file of the layout.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
        fs::write(self.image().join(name), bytes).map_err(BuildError::write("write the image"))
    }

    /// Writes a blob.
    pub fn blob(&self, bytes: &[u8]) -> Result<BlobRef, BuildError> {
        let digest = BlobDigest(Digest::of(&[bytes]));
        self.file(&blob_name(digest), bytes)?;
        Ok(BlobRef { digest, size: bytes.len() as u64 })
    }

    /// Makes a finished file of [`Self::scratch`] a blob.
    pub fn adopt(&self, file: &Path, digest: Digest, size: u64) -> Result<BlobRef, BuildError> {
        let digest = BlobDigest(digest);
        let target = self.image().join(blob_name(digest));
        fs::rename(file, &target).map_err(BuildError::write("write the image"))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644))
            .map_err(BuildError::write("write the image"))?;
        Ok(BlobRef { digest, size })
    }

    /// Puts the image in its place.
    pub fn publish(self) -> Result<PathBuf, BuildError> {
        let image = self.image();
        sync(&image).map_err(BuildError::write("write the image to disk"))?;
        let fail = |errno: Errno| BuildError::write("put the image in its place")(errno.into());
        match renameat_with(CWD, &image, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // The old image ends up in the temporary directory and goes away with it.
            Err(Errno::EXIST) if self.force => {
                renameat_with(CWD, &image, CWD, &self.target, RenameFlags::EXCHANGE)
                    .map_err(fail)?;
            }
            Err(Errno::EXIST) => return Err(BuildError::Exists(self.target.clone())),
            Err(errno) => return Err(fail(errno)),
        }
        Ok(self.target.clone())
    }

    fn image(&self) -> PathBuf {
        self.scratch.path().join("image")
    }
}

/// An image layout or an empty directory: nothing else is deleted by `force`.
fn is_replaceable(target: &Path) -> bool {
    target.join("oci-layout").is_file()
        || fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none())
}

/// Everything on disk before the name says so.
fn sync(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}
