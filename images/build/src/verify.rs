//! Checking a finished image against itself: every digest, the hash tree over the data, and that what is
//! measured with the initrd says what the descriptor says (SPEC 3.1 to 3.5).
//!
//! The image is hostile. A good verdict says that the image is whole and consistent, not that it is harmless:
//! what it may do is for whoever trusts its image ID to judge.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::Path;

use coffer_formats::Digest;
use coffer_image::appliance::{APPLIANCE_MAX, APPLIANCE_PATH, Appliance, ApplianceError};
use coffer_image::blob::{Blob, ReadAt as _};
use coffer_image::descriptor::{BlobRef, Descriptor, Disk};
use coffer_image::layout::{ImageFiles, Layout, LayoutError, Store};
use coffer_image::rules::{Invalid, check_cmdline, device};
use coffer_image::verity::{
    BLOCK, Geometry, Salt, Superblock, SuperblockError, VerityError, VerityReader,
};
use serde::Serialize;

use crate::archive::TRAILER;
use crate::kernel::is_kernel;
use crate::open_image;

/// Most entries of an initrd.
const ENTRIES_MAX: usize = 4096;

/// A whole and consistent image.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// SHA-256 of the descriptor.
    pub image_id: Digest,
    /// Name in the descriptor.
    pub name: String,
    /// What was checked, in order, in words.
    pub checks: Vec<String>,
    /// Bytes hashed.
    pub bytes: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            writeln!(f, "ok  {check}")?;
        }
        write!(f, "image id  sha256:{}", self.image_id)
    }
}

/// What is wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Layout, descriptor, or a blob's presence, size or digest.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A layer of the manifest is not in the descriptor, or the other way round: a registry would carry the
    /// wrong blobs.
    #[error("the manifest's layers are not the blobs of the descriptor")]
    Layers,
    /// The kernel is not unpacked, or none.
    #[error("the kernel is no ELF file")]
    Kernel,
    /// The command line breaks a rule.
    #[error("command line: {0}")]
    Cmdline(Invalid),
    /// The superblock of a disk is not the one its descriptor asks for.
    #[error("disk `{disk}`: {source}")]
    Superblock {
        /// Name of the disk.
        disk: String,
        /// What is wrong.
        source: SuperblockError,
    },
    /// The superblock of a disk has another size or salt than the descriptor.
    #[error("disk `{0}`: superblock and descriptor differ")]
    SuperblockDiffers(String),
    /// The data of a disk does not match its root hash.
    #[error("disk `{disk}`: {source}")]
    Verity {
        /// Name of the disk.
        disk: String,
        /// What is wrong.
        source: VerityError,
    },
    /// The initrd is not the archive of SPEC 3.3.
    #[error("the initrd is malformed: {0}")]
    Initrd(String),
    /// `appliance.json` is refused.
    #[error("initrd: {0}")]
    Appliance(#[from] ApplianceError),
    /// The initrd says something else than the descriptor.
    #[error("initrd and descriptor differ in `{0}`")]
    Differs(&'static str),
}

impl VerifyError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Layout(error) => error.hint(),
            _ => "do not use this image; build it again with `coffer image build`",
        }
    }
}

/// Checks an image in a folder or tar.
pub fn verify(path: &Path) -> Result<Verified, VerifyError> {
    let layout = open_image(path)?;
    let descriptor = layout.descriptor();
    let files = layout.open_files()?;
    let mut log = Log::default();
    log.add(layout.descriptor_bytes().len() as u64, "descriptor obeys its rules".into());
    check_layers(&layout)?;
    if let Some(signer) = layout.signer().map_err(LayoutError::from)? {
        log.add(0, format!("signed by {}", signer.digest()));
    }
    check_boot(descriptor, &files, &mut log)?;
    let sealed = descriptor.disks.iter().filter(|disk| disk.blob().is_some());
    for (disk, blob) in sealed.zip(&files.disks) {
        check_disk(disk, blob, &mut log)?;
    }
    if descriptor.has_agent() {
        let appliance = read_appliance(&files.initrd)?;
        check_agreement(descriptor, &appliance)?;
        log.add(0, format!("initrd and descriptor agree; {} modules", appliance.modules.len()));
    } else {
        log.add(0, "the root disk is brought when it is run: nothing is promised of it".into());
    }
    Ok(Verified {
        image_id: layout.image_id(),
        name: descriptor.name.clone(),
        checks: log.checks,
        bytes: log.bytes,
    })
}

#[derive(Default)]
struct Log {
    checks: Vec<String>,
    bytes: u64,
}

impl Log {
    fn add(&mut self, bytes: u64, check: String) {
        self.bytes += bytes;
        self.checks.push(check);
    }
}

fn check_layers<S: Store>(layout: &Layout<S>) -> Result<(), VerifyError> {
    let of = layout.descriptor();
    let disks = of.disks.iter().filter_map(Disk::blob);
    let wanted = [&of.kernel, &of.initrd, &of.cmdline].into_iter().chain(disks);
    let wanted = wanted.map(|blob| (blob.digest.0, blob.size));
    let found = layout.manifest().layers.iter().map(|layer| (layer.digest.0, layer.size));
    match wanted.eq(found) {
        true => Ok(()),
        false => Err(VerifyError::Layers),
    }
}

fn check_boot(
    descriptor: &Descriptor,
    files: &ImageFiles,
    log: &mut Log,
) -> Result<(), VerifyError> {
    check_digest("kernel", &descriptor.kernel, &files.kernel, log)?;
    let mut header = vec![0; 0x206];
    let read = files.kernel.read_exact_at(&mut header, 0);
    if read.is_err() || !is_kernel(&header) {
        return Err(VerifyError::Kernel);
    }
    check_digest("initrd", &descriptor.initrd, &files.initrd, log)?;
    check_digest("command line", &descriptor.cmdline, &files.cmdline, log)?;
    let cmdline = files.cmdline.read_all().map_err(read_error("command line"))?;
    check_cmdline(&cmdline).map_err(VerifyError::Cmdline)
}

/// Compares the digest of a blob's bytes with the one that names it.
pub(crate) fn check_blob(what: &str, named: &BlobRef, blob: &Blob) -> Result<(), LayoutError> {
    let found = blob.digest().map_err(|source| LayoutError::Read { what: what.into(), source })?;
    match found == named.digest.0 {
        true => Ok(()),
        false => Err(LayoutError::Digest { what: what.into(), expected: named.digest.0, found }),
    }
}

fn check_digest(
    what: &str,
    named: &BlobRef,
    blob: &Blob,
    log: &mut Log,
) -> Result<(), VerifyError> {
    check_blob(what, named, blob)?;
    log.add(named.size, format!("{what} has its digest ({} bytes)", named.size));
    Ok(())
}

fn check_disk(disk: &Disk, blob: &Blob, log: &mut Log) -> Result<(), VerifyError> {
    let Disk::Integrity { name, blob: named, data_size, root_hash, salt } = disk else {
        return Ok(());
    };
    check_digest(&format!("disk `{name}`"), named, blob, log)?;
    let salt = Salt::from_hex(salt).ok_or_else(|| VerifyError::SuperblockDiffers(name.clone()))?;
    let geometry =
        Geometry::new(*data_size).map_err(|_| VerifyError::SuperblockDiffers(name.clone()))?;
    let mut block = [0; BLOCK];
    blob.read_exact_at(&mut block, geometry.data_size())
        .map_err(read_error("verity superblock"))?;
    let superblock = Superblock::decode(&block)
        .map_err(|source| VerifyError::Superblock { disk: name.clone(), source })?;
    if superblock.data_blocks != geometry.data_blocks() || superblock.salt != salt {
        return Err(VerifyError::SuperblockDiffers(name.clone()));
    }
    let mut reader = VerityReader::new(blob, *data_size, *root_hash, &salt)
        .map_err(|_| VerifyError::SuperblockDiffers(name.clone()))?;
    reader.verify_all().map_err(|source| VerifyError::Verity { disk: name.clone(), source })?;
    log.add(
        named.size,
        format!("disk `{name}` matches its root hash ({} blocks)", geometry.data_blocks()),
    );
    Ok(())
}

fn read_error(what: &str) -> impl FnOnce(io::Error) -> VerifyError {
    let what = what.to_owned();
    move |source| LayoutError::Read { what, source }.into()
}

/// Reads the initrd as the kernel will, and refuses whatever could make the kernel see something else:
/// links, names written differently, names used twice, a second archive after the first.
pub(crate) fn read_appliance(initrd: &Blob) -> Result<Appliance, VerifyError> {
    let malformed = |why: String| VerifyError::Initrd(why);
    let mut rest: Box<dyn Read + '_> = Box::new(BufReader::with_capacity(1 << 18, initrd.reader()));
    let mut names = BTreeSet::new();
    let mut appliance = None;
    let mut starts_init = false;
    loop {
        let mut reader =
            cpio::NewcReader::new(rest).map_err(|error| malformed(error.to_string()))?;
        let entry = reader.entry().clone();
        if entry.is_trailer() {
            rest = reader.finish().map_err(|error| malformed(error.to_string()))?;
            break;
        }
        check_entry(&entry).map_err(malformed)?;
        if entry.name() == APPLIANCE_PATH {
            appliance = Some(read_limited(&mut reader, &entry)?);
        }
        starts_init |= entry.name() == "init" && entry.mode() & 0o170_111 == 0o100_111;
        if !names.insert(entry.name().to_owned()) || names.len() > ENTRIES_MAX {
            return Err(malformed(format!(
                "`{}` is there twice, or there are too many files",
                entry.name()
            )));
        }
        rest = reader.finish().map_err(|error| malformed(error.to_string()))?;
    }
    if !is_zero(rest) {
        return Err(malformed("something follows the archive".into()));
    }
    if !starts_init {
        return Err(malformed("there is no program `/init`".into()));
    }
    let bytes = appliance.ok_or_else(|| malformed(format!("there is no `/{APPLIANCE_PATH}`")))?;
    let appliance = Appliance::parse(&bytes)?;
    let missing =
        appliance.modules.iter().find(|name| !names.contains(&format!("coffer/modules/{name}")));
    match missing {
        Some(name) => Err(malformed(format!("the module `{name}` is missing"))),
        None => Ok(appliance),
    }
}

/// True if nothing but padding follows.
fn is_zero(mut rest: impl Read) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match rest.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) if buffer.iter().take(count).all(|byte| *byte == 0) => {}
            _ => return false,
        }
    }
}

fn check_entry(entry: &cpio::newc::Entry) -> Result<(), String> {
    let name = entry.name();
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !name.split('/').all(plain) || name == TRAILER {
        return Err(format!("`{name}` is no plain path"));
    }
    match entry.mode() & 0o170_000 {
        0o100_000 | 0o040_000 => Ok(()),
        // The one device the builder puts there.
        0o020_000 if name == "dev/null" && (entry.rdev_major(), entry.rdev_minor()) == (1, 3) => {
            Ok(())
        }
        _ => Err(format!("`{name}` is neither a file nor a directory")),
    }
}

fn read_limited(reader: &mut impl Read, entry: &cpio::newc::Entry) -> Result<Vec<u8>, VerifyError> {
    if entry.file_size() as usize > APPLIANCE_MAX {
        return Err(ApplianceError::TooLong.into());
    }
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|error| VerifyError::Initrd(error.to_string()))?;
    Ok(bytes)
}

/// Each encrypted disk is mounted, from the device that its place among the disks gives it, and nothing else is.
fn volumes_agree(descriptor: &Descriptor, appliance: &Appliance) -> bool {
    let disks = descriptor.disks.iter().enumerate();
    let given = disks.filter(|(_, disk)| matches!(disk, Disk::Encrypted { .. }));
    let given = given.map(|(n, disk)| (disk.name().to_owned(), device(n)));
    let mounted = appliance.volumes.iter().map(|v| (v.disk.clone(), v.device.clone()));
    given.eq(mounted)
}

fn check_agreement(descriptor: &Descriptor, appliance: &Appliance) -> Result<(), VerifyError> {
    let differs = [
        (descriptor.network != appliance.network, "network"),
        (descriptor.verifier != appliance.verifier, "verifier"),
        (descriptor.secrets != appliance.secrets, "secrets"),
        (!volumes_agree(descriptor, appliance), "volumes"),
    ];
    match differs.into_iter().find(|(differs, _)| *differs) {
        Some((_, what)) => Err(VerifyError::Differs(what)),
        None => Ok(()),
    }
}
