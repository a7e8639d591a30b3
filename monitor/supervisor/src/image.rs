//! Finding an image on this host and opening what it names. Contents are hashed when they are loaded.

use std::path::{Path, PathBuf};

use coffer_formats::{Digest, Reject};
use coffer_image::layout::{ImageFiles, Layout, LayoutError};

use crate::launch_error::LaunchError;

/// An image with its files open.
pub struct Image {
    /// Descriptor and image ID.
    pub layout: Layout,
    /// Kernel, initrd, command line, disks.
    pub files: ImageFiles,
    /// SHA-256 of the point of the key that signed it, if one did.
    pub signer: Option<Digest>,
}

impl Image {
    /// Opens `name`: an absolute path, or a name below `store`.
    pub fn open(store: &Path, name: &str) -> Result<Self, LaunchError> {
        let path = locate(store, name)?;
        let layout = Layout::open(&path).map_err(refusal)?;
        let files = layout.open_files().map_err(refusal)?;
        let signer = layout.signer().map_err(|error| {
            LaunchError::Refused(Reject::BadDescriptor, error.to_string(), error.hint())
        })?;
        Ok(Self { signer: signer.map(|signer| signer.digest()), layout, files })
    }
}

fn locate(store: &Path, name: &str) -> Result<PathBuf, LaunchError> {
    if name.starts_with('/') {
        return Ok(name.into());
    }
    // One plain component: a name can neither climb out of the store nor hide.
    let plain =
        !name.is_empty() && !name.starts_with('.') && !name.contains('/') && !name.contains('\0');
    let path = store.join(name);
    if plain && path.exists() { Ok(path) } else { Err(LaunchError::ImageNotFound(name.to_owned())) }
}

/// What a layout's fault means to a launch.
fn refusal(error: LayoutError) -> LaunchError {
    let reject = match &error {
        LayoutError::Open { path, .. } => {
            return LaunchError::ImageNotFound(path.display().to_string());
        }
        LayoutError::Missing { .. } | LayoutError::Read { .. } => Reject::BlobMissing,
        LayoutError::Size { what, .. } => of_part(what).unwrap_or(Reject::BlobMissing),
        _ => Reject::BadDescriptor,
    };
    LaunchError::Refused(reject, error.to_string(), error.hint())
}

fn of_part(what: &str) -> Option<Reject> {
    match what {
        "kernel" => Some(Reject::KernelDigest),
        "initrd" => Some(Reject::InitrdDigest),
        "command line" => Some(Reject::CmdlineDigest),
        _ => None,
    }
}
