//! Reading an OCI image layout that holds one appliance (SPEC 3.1).
//!
//! Index and manifest carry no trust: they only lead to the descriptor, and every other blob is opened by the
//! digest that the descriptor names. Names never come from the image: the paths opened are `oci-layout`,
//! `index.json` and `blobs/sha256/<64 hex digits>`, beneath the layout and through no symbolic link.
//! Contents of blobs are not hashed here: whoever loads them hashes the very bytes it loads.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coffer_formats::Digest;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::blob::Blob;
use crate::descriptor::{
    ARTIFACT_TYPE, BlobDigest, BlobRef, DESCRIPTOR_MAX, DESCRIPTOR_MEDIA_TYPE, Descriptor,
    DescriptorError, image_id,
};
use crate::signature::{self, SignatureError, Signer};

/// Most bytes of `oci-layout`, `index.json` and the manifest each.
const JSON_MAX: u64 = 256 << 10;

/// Why a path is not an appliance that can be opened.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Nothing there, or not to be opened.
    #[error("cannot open `{path}`: {source}")]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No `oci-layout` file of version 1.0.0.
    #[error("`{0}` is not an OCI image layout")]
    NotALayout(PathBuf),
    /// An OCI image layout, but of something else.
    #[error("the image layout holds no coffer appliance: {0}")]
    Foreign(&'static str),
    /// Index or manifest is no JSON of the expected form.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// `index.json` or `manifest`.
        what: &'static str,
        /// What the parser says.
        why: String,
    },
    /// A blob is not there: the copy is incomplete.
    #[error("the image is incomplete: {what} (`{name}`) is missing")]
    Missing {
        /// What the blob is.
        what: String,
        /// Its path in the layout.
        name: String,
    },
    /// A blob is no plain file, or is reached through a symbolic link.
    #[error("{what} (`{name}`) is not a plain file inside the image layout")]
    NotPlain {
        /// What the blob is.
        what: String,
        /// Its path in the layout.
        name: String,
    },
    /// A blob has another size: truncated or replaced.
    #[error("{what} has {found} bytes, expected {expected}")]
    Size {
        /// What the blob is.
        what: String,
        /// Size that was promised.
        expected: u64,
        /// Size found.
        found: u64,
    },
    /// A blob is larger than any of its kind may be.
    #[error("{what} has {found} bytes, more than the {limit} allowed")]
    TooLarge {
        /// What the blob is.
        what: String,
        /// Size found.
        found: u64,
        /// Limit.
        limit: u64,
    },
    /// A blob has another digest.
    #[error("{what} has digest sha256:{found}, expected sha256:{expected}")]
    Digest {
        /// What the blob is.
        what: String,
        /// Digest that was promised.
        expected: Digest,
        /// Digest found.
        found: Digest,
    },
    /// Reading failed.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was read.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The descriptor breaks its rules.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// It is signed, and the signature does not count.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl LayoutError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Open { .. } => "give the folder or tar that `coffer image build` wrote",
            Self::NotALayout(_) => {
                "give the folder or tar that `coffer image build` wrote; other images are converted with it"
            }
            Self::Foreign(_) => {
                "container images must first be made into an appliance with `coffer image build`"
            }
            Self::Malformed { .. } | Self::NotPlain { .. } | Self::TooLarge { .. } => {
                "the image was damaged or made by something else; fetch or build it again"
            }
            Self::Missing { .. } | Self::Size { .. } => {
                "the copy is incomplete; fetch or build the image again"
            }
            Self::Digest { .. } => {
                "the image was changed after it was built; fetch or build it again"
            }
            Self::Read { .. } => "check the disk the image lies on",
            Self::Descriptor(error) => error.hint(),
            Self::Signature(error) => error.hint(),
        }
    }
}

/// Where the files of a layout are.
pub trait Store {
    /// Opens the file `name`: `oci-layout`, `index.json` or `blobs/sha256/<hex>`; `what` names it in errors.
    ///
    /// `Missing` if there is none, `NotPlain` if it is something else than a file of this layout.
    fn open(&self, what: &str, name: &str) -> Result<Blob, LayoutError>;
    /// What the user called it.
    fn path(&self) -> &Path;
}

/// A layout in a folder.
#[derive(Debug)]
pub struct Folder {
    directory: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder itself; it may be reached through symbolic links, what is in it may not.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(directory) => Ok(Self { directory, path: path.into() }),
            Err(Errno::NOTDIR) => Err(LayoutError::NotALayout(path.into())),
            Err(errno) => Err(LayoutError::Open { path: path.into(), source: errno.into() }),
        }
    }
}

impl Store for Folder {
    fn open(&self, what: &str, name: &str) -> Result<Blob, LayoutError> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // NONBLOCK: opening a FIFO that somebody planted must not wait for a writer.
        let flags =
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let not_plain = || LayoutError::NotPlain { what: what.into(), name: name.into() };
        let fail = |errno: Errno| LayoutError::Read { what: what.into(), source: errno.into() };
        let fd = match openat2(&self.directory, name, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                return Err(LayoutError::Missing { what: what.into(), name: name.into() });
            }
            Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NXIO) => return Err(not_plain()),
            Err(errno) => return Err(fail(errno)),
        };
        let stat = fstat(&fd).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(not_plain());
        }
        Ok(Blob::new(fd.into(), 0, stat.st_size.try_into().unwrap_or(0)))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// An OCI content descriptor, as far as it matters here; other fields are allowed and ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Media type.
    pub media_type: String,
    /// Digest.
    pub digest: BlobDigest,
    /// Size.
    pub size: u64,
    /// artifactType, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations; of an index, ours are those of SPEC 3.9.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// `oci-layout`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayoutFile {
    /// `1.0.0`.
    pub image_layout_version: String,
}

/// `index.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// [`INDEX_MEDIA_TYPE`].
    #[serde(default)]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Content>,
}

/// The manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// [`MANIFEST_MEDIA_TYPE`].
    #[serde(default)]
    pub media_type: String,
    /// Ours.
    #[serde(default)]
    pub artifact_type: String,
    /// The descriptor.
    pub config: Content,
    /// Kernel, initrd, command line and disks.
    pub layers: Vec<Content>,
}

/// Media type of `index.json`.
pub const INDEX_MEDIA_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The one version of OCI image layouts.
pub const LAYOUT_VERSION: &str = "1.0.0";

/// An opened image: the descriptor is read and checked, blobs can be opened.
#[derive(Debug)]
pub struct Layout<S = Folder> {
    store: S,
    annotations: BTreeMap<String, String>,
    manifest: Manifest,
    descriptor: Descriptor,
    descriptor_bytes: Vec<u8>,
    image_id: Digest,
}

/// All blobs of an image, open. Sizes match the descriptor; contents are not hashed yet.
#[derive(Debug)]
pub struct ImageFiles {
    /// ELF file.
    pub kernel: Blob,
    /// Initrd.
    pub initrd: Blob,
    /// Kernel command line.
    pub cmdline: Blob,
    /// Those disks that have a blob, in the descriptor's order.
    pub disks: Vec<Blob>,
}

impl Layout<Folder> {
    /// Opens a layout in a folder.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Self::from_store(Folder::open(path)?)
    }
}

impl<S: Store> Layout<S> {
    /// Opens a layout in any store.
    pub fn from_store(store: S) -> Result<Self, LayoutError> {
        let not_a_layout = || LayoutError::NotALayout(store.path().into());
        let marker = match store.open("oci-layout", "oci-layout") {
            Err(LayoutError::Missing { .. }) => return Err(not_a_layout()),
            other => read_json::<LayoutFile>("oci-layout", &other?).map_err(|_| not_a_layout())?,
        };
        if marker.image_layout_version != LAYOUT_VERSION {
            return Err(not_a_layout());
        }
        let index: Index = read_json("index.json", &store.open("index.json", "index.json")?)?;
        let (annotations, manifest) = read_manifest(&store, index)?;
        let descriptor_bytes =
            read_content(&store, "descriptor", &manifest.config, DESCRIPTOR_MAX as u64)?;
        let descriptor = Descriptor::parse(&descriptor_bytes)?;
        let image_id = image_id(&descriptor_bytes);
        Ok(Self { store, annotations, manifest, descriptor, descriptor_bytes, image_id })
    }

    /// SHA-256 of the descriptor bytes.
    pub fn image_id(&self) -> Digest {
        self.image_id
    }

    /// The descriptor, checked.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The descriptor bytes as stored.
    pub fn descriptor_bytes(&self) -> &[u8] {
        &self.descriptor_bytes
    }

    /// The manifest; carries no trust.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Who signed it; `None` if nobody did. A signature that does not verify is an error.
    pub fn signer(&self) -> Result<Option<Signer>, SignatureError> {
        signature::verify(&self.annotations, &self.image_id)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// Opens a blob and compares its size; `what` names it in errors.
    pub fn open_blob(&self, what: &str, blob: &BlobRef) -> Result<Blob, LayoutError> {
        open_sized(&self.store, what, blob.digest, blob.size)
    }

    /// Opens all blobs.
    pub fn open_files(&self) -> Result<ImageFiles, LayoutError> {
        let of = &self.descriptor;
        let disk = |disk: &crate::descriptor::Disk| {
            let open = |blob| self.open_blob(&format!("disk `{}`", disk.name()), blob);
            disk.blob().map(open)
        };
        Ok(ImageFiles {
            kernel: self.open_blob("kernel", &of.kernel)?,
            initrd: self.open_blob("initrd", &of.initrd)?,
            cmdline: self.open_blob("command line", &of.cmdline)?,
            disks: of.disks.iter().filter_map(disk).collect::<Result<_, _>>()?,
        })
    }
}

/// The manifest, and the annotations of its entry.
fn read_manifest(
    store: &impl Store,
    index: Index,
) -> Result<(BTreeMap<String, String>, Manifest), LayoutError> {
    let Ok([entry]) = <[Content; 1]>::try_from(index.manifests) else {
        return Err(LayoutError::Foreign("its index does not name exactly one manifest"));
    };
    if entry.media_type != MANIFEST_MEDIA_TYPE {
        return Err(LayoutError::Foreign("its index names no image manifest"));
    }
    let bytes = read_content(store, "manifest", &entry, JSON_MAX)?;
    let manifest: Manifest = parse_json("manifest", &bytes)?;
    if manifest.artifact_type != ARTIFACT_TYPE {
        return Err(LayoutError::Foreign("its manifest has another artifactType"));
    }
    if manifest.config.media_type != DESCRIPTOR_MEDIA_TYPE {
        return Err(LayoutError::Foreign("its config is not a descriptor"));
    }
    Ok((entry.annotations, manifest))
}

fn read_content(
    store: &impl Store,
    what: &str,
    content: &Content,
    limit: u64,
) -> Result<Vec<u8>, LayoutError> {
    if content.size > limit {
        return Err(LayoutError::TooLarge { what: what.into(), found: content.size, limit });
    }
    let blob = open_sized(store, what, content.digest, content.size)?;
    let bytes =
        blob.read_all().map_err(|source| LayoutError::Read { what: what.into(), source })?;
    let (expected, found) = (content.digest.0, Digest::of(&[&bytes]));
    if found != expected {
        return Err(LayoutError::Digest { what: what.into(), expected, found });
    }
    Ok(bytes)
}

fn open_sized(
    store: &impl Store,
    what: &str,
    digest: BlobDigest,
    size: u64,
) -> Result<Blob, LayoutError> {
    let blob = store.open(what, &blob_name(digest))?;
    if blob.size() != size {
        return Err(LayoutError::Size { what: what.into(), expected: size, found: blob.size() });
    }
    Ok(blob)
}

/// The path of a blob in a layout.
pub fn blob_name(digest: BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.0)
}

fn read_json<T: for<'de> Deserialize<'de>>(
    what: &'static str,
    blob: &Blob,
) -> Result<T, LayoutError> {
    if blob.size() > JSON_MAX {
        return Err(LayoutError::TooLarge {
            what: what.into(),
            found: blob.size(),
            limit: JSON_MAX,
        });
    }
    let bytes =
        blob.read_all().map_err(|source| LayoutError::Read { what: what.into(), source })?;
    parse_json(what, &bytes)
}

fn parse_json<T: for<'de> Deserialize<'de>>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes)
        .map_err(|error| LayoutError::Malformed { what, why: error.to_string() })
}
