//! Building an image: the steps in order (SPEC 3.1 to 3.5).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffer_formats::Digest;
use coffer_image::appliance::{
    APPLIANCE_PATH, Appliance, MKFS, Network, ROOT_FS, VOLUME_FS, Volume,
};
use coffer_image::descriptor::{
    ARTIFACT_TYPE, BlobRef, CMDLINE_MEDIA_TYPE, DESCRIPTOR_MEDIA_TYPE, DISK_MEDIA_TYPE, Descriptor,
    Disk, INITRD_MEDIA_TYPE, KERNEL_MEDIA_TYPE, image_id,
};
use coffer_image::layout::{
    Content, INDEX_MEDIA_TYPE, Index, LAYOUT_VERSION, LayoutFile, MANIFEST_MEDIA_TYPE, Manifest,
};
use coffer_image::rules;
use coffer_image::verity::Salt;
use serde::Serialize;

use crate::cmdline::command_line;
use crate::disk;
use crate::output::Output;
use crate::rootfs::Root;
use crate::{Archive, BuildError, Kernel, KernelSource, Module, Recipe, VolumeRequest, elf};

/// What to build from what.
#[derive(Debug, Clone)]
pub struct BuildPlan {
    /// Root file system: a folder or an uncompressed tar.
    pub rootfs: PathBuf,
    /// Kernel and modules.
    pub kernel: KernelSource,
    /// The static coffer-init.
    pub init: PathBuf,
    /// The author's decisions.
    pub recipe: Recipe,
    /// The OCI image layout folder to write.
    pub output: PathBuf,
    /// Replace an image that is there.
    pub force: bool,
    /// Set by the caller (say, on Ctrl-C) to stop at the next step.
    pub cancelled: Option<Arc<AtomicBool>>,
}

/// What a build is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reading or unpacking the kernel.
    Kernel,
    /// Reading or unpacking the root file system.
    Unpack,
    /// Writing the erofs image.
    RootFileSystem,
    /// Building the dm-verity tree.
    Verity,
    /// Writing the initrd.
    Initrd,
    /// Writing descriptor and manifest, and putting all in place.
    Finish,
}

impl Step {
    /// All steps in order.
    pub const ALL: [Self; 6] = [
        Self::Kernel,
        Self::Unpack,
        Self::RootFileSystem,
        Self::Verity,
        Self::Initrd,
        Self::Finish,
    ];
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unpack => "read the root file system",
            Self::Kernel => "read the kernel",
            Self::RootFileSystem => "write the erofs image",
            Self::Verity => "hash the disk",
            Self::Initrd => "write the initrd",
            Self::Finish => "write descriptor and manifest",
        })
    }
}

/// A finished image.
#[derive(Debug, Clone, Serialize)]
pub struct BuiltImage {
    /// The OCI image layout.
    pub path: PathBuf,
    /// SHA-256 of the descriptor.
    pub image_id: Digest,
    /// dm-verity root hash of the root file system, if it is sealed.
    pub root_hash: Option<Digest>,
    /// The descriptor.
    pub descriptor: Descriptor,
}

impl fmt::Display for BuiltImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "image      {}", self.path.display())?;
        write!(f, "image id   sha256:{}", self.image_id)?;
        self.root_hash.iter().try_for_each(|hash| write!(f, "\nroot hash  {hash}"))
    }
}

/// Builds an image. On an error nothing is left behind and an image that was there is as it was.
pub fn build(plan: &BuildPlan, progress: &mut dyn FnMut(Step)) -> Result<BuiltImage, BuildError> {
    let cancelled = || plan.cancelled.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
    let mut step = |step| match cancelled() {
        true => Err(BuildError::Cancelled),
        false => {
            progress(step);
            Ok(())
        }
    };
    // Ctrl-C in a terminal also ends the tools we run; that is no failure of theirs.
    assemble(plan, &mut step)
        .map_err(|error| if cancelled() { BuildError::Cancelled } else { error })
}

fn assemble(
    plan: &BuildPlan,
    step: &mut dyn FnMut(Step) -> Result<(), BuildError>,
) -> Result<BuiltImage, BuildError> {
    // What can be refused without reading a large file is refused first.
    let cmdline = command_line(&plan.recipe.cmdline)?;
    appliance(&plan.recipe, &[]).check()?;
    let init = read_init(&plan.init)?;
    outside(&plan.rootfs, &plan.output)?;
    let output = Output::begin(&plan.output, plan.force)?;

    step(Step::Kernel)?;
    let kernel = Kernel::open(&plan.kernel, output.scratch())?;
    let modules = kernel.modules.closure(&module_names(&plan.recipe))?;
    let kernel = output.blob(&kernel.read(output.scratch())?)?;

    step(Step::Unpack)?;
    let root = Root::open(&plan.rootfs, output.scratch())?;
    let program = plan.recipe.workload.argv.first().map(String::as_str).unwrap_or_default();
    let volumes = &plan.recipe.volumes;
    let mount_points = plan.recipe.workload.tmpfs.iter().chain(volumes.iter().map(|v| &v.path));
    // A blank volume is formatted inside, by what the root file system brings.
    let mkfs = (!volumes.is_empty()).then_some(MKFS);
    root.check([program].into_iter().chain(mkfs), mount_points.map(String::as_str))?;

    step(Step::RootFileSystem)?;
    let file = output.scratch().join("root.erofs");
    root.write_erofs(&file)?;
    drop(root);

    step(Step::Verity)?;
    let disk = seal_root(&file, &output)?;

    step(Step::Initrd)?;
    let initrd = output.blob(&initrd(init, &plan.recipe, modules)?)?;
    let cmdline = output.blob(&cmdline)?;

    step(Step::Finish)?;
    let descriptor = descriptor(&plan.recipe, kernel, initrd, cmdline, disk);
    finish(descriptor, output)
}

/// An image inside its own root file system would be packed into itself.
fn outside(rootfs: &Path, output: &Path) -> Result<(), BuildError> {
    let parent = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (rootfs.canonicalize(), parent.canonicalize()) {
        (Ok(rootfs), Ok(parent)) if rootfs.is_dir() && parent.starts_with(&rootfs) => {
            Err(BuildError::Inside { output: output.into(), rootfs })
        }
        // What does not exist is refused by whoever opens it.
        _ => Ok(()),
    }
}

fn read_init(path: &Path) -> Result<Vec<u8>, BuildError> {
    let bytes = fs::read(path).map_err(BuildError::input("coffer-init", path))?;
    elf::check_static_program(&bytes)
        .map_err(|why| BuildError::BadInit { path: path.into(), why })?;
    Ok(bytes)
}

/// What an appliance's devices and root file system need. vsock comes first: the guest says that it started
/// as soon as it can speak.
fn module_names(recipe: &Recipe) -> Vec<&str> {
    let network = match recipe.network {
        Network::None => None,
        Network::Nat { .. } => Some("virtio_net"),
    };
    let needed = ["virtio_mmio", "vmw_vsock_virtio_transport", "virtio_blk", "erofs"];
    let volumes = (!recipe.volumes.is_empty()).then_some(VOLUME_FS);
    needed
        .into_iter()
        .chain(network)
        .chain(volumes)
        .chain(recipe.modules.iter().map(String::as_str))
        .collect()
}

fn seal_root(file: &Path, output: &Output) -> Result<Disk, BuildError> {
    let fail = BuildError::write("hash the disk");
    let options = File::options().read(true).write(true).open(file);
    // No salt: one only makes equal blocks of different images look different, and nothing here is secret.
    let salt = Salt::default();
    let sealed = options.and_then(|file| disk::seal(&file, &salt)).map_err(fail)?;
    let blob = output.adopt(file, sealed.digest, sealed.geometry.blob_size())?;
    Ok(Disk::Integrity {
        name: "root".into(),
        blob,
        data_size: sealed.geometry.data_size(),
        root_hash: sealed.root_hash,
        salt: salt.to_hex(),
    })
}

/// The initrd of SPEC 3.3.
fn initrd(init: Vec<u8>, recipe: &Recipe, modules: Vec<Module>) -> Result<Vec<u8>, BuildError> {
    let mut archive = Archive::new();
    for (path, mode) in
        [("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("root", 0o755)]
    {
        archive.directory(path, mode)?;
    }
    // The kernel starts PID 1 without file descriptors if there is no console, and std then needs this
    // before devtmpfs is mounted.
    archive.device("dev/null", 0o666, (1, 3))?;
    archive.bytes("init", 0o755, init)?;
    let appliance = appliance(recipe, &modules);
    appliance.check()?;
    archive.bytes(APPLIANCE_PATH, 0o644, to_json(&appliance)?)?;
    archive.directory("coffer/modules", 0o755)?;
    for module in modules {
        archive.bytes(&format!("coffer/modules/{}", module.file_name), 0o644, module.bytes)?;
    }
    let mut bytes = Vec::new();
    archive.write(&mut bytes)?;
    Ok(bytes)
}

fn appliance(recipe: &Recipe, modules: &[Module]) -> Appliance {
    Appliance {
        version: 1,
        modules: modules.iter().map(|module| module.file_name.clone()).collect(),
        root_fs: ROOT_FS.into(),
        network: recipe.network.clone(),
        verifier: recipe.verifier.clone(),
        secrets: recipe.secrets.clone(),
        volumes: recipe.volumes.iter().zip(1..).map(volume).collect(),
        workload: recipe.workload.clone(),
    }
}

/// The root is disk 0; volumes come behind it in their order.
fn volume((request, disk): (&VolumeRequest, usize)) -> Volume {
    Volume {
        disk: request.name.clone(),
        device: rules::device(disk),
        path: request.path.clone(),
        fs: VOLUME_FS.into(),
    }
}

fn descriptor(
    recipe: &Recipe,
    kernel: BlobRef,
    initrd: BlobRef,
    cmdline: BlobRef,
    root: Disk,
) -> Descriptor {
    let volumes = recipe.volumes.iter().map(|v| Disk::Encrypted { name: v.name.clone() });
    Descriptor {
        version: 1,
        name: recipe.name.clone(),
        box_kind: recipe.box_kind,
        svn: recipe.svn,
        architecture: "x86_64".into(),
        kernel,
        initrd,
        cmdline,
        disks: [root].into_iter().chain(volumes).collect(),
        shape: recipe.shape.clone(),
        console: recipe.console,
        vtpm: recipe.vtpm,
        network: recipe.network.clone(),
        verifier: recipe.verifier.clone(),
        secrets: recipe.secrets.clone(),
        not_after: recipe.not_after,
    }
}

/// Writes descriptor and manifest around the blobs that are there, and puts the image in its place.
pub fn finish(descriptor: Descriptor, output: Output) -> Result<BuiltImage, BuildError> {
    descriptor.check()?;
    let bytes = to_json(&descriptor)?;
    // Read it back as everyone else will: an image that its own reader refuses must not be written.
    Descriptor::parse(&bytes).map_err(|error| BuildError::Recipe(error.to_string()))?;
    let config = output.blob(&bytes)?;
    let content = |media_type: &str, blob: &BlobRef| Content {
        media_type: media_type.into(),
        digest: blob.digest,
        size: blob.size,
        artifact_type: None,
        annotations: BTreeMap::new(),
    };
    let boot = [
        content(KERNEL_MEDIA_TYPE, &descriptor.kernel),
        content(INITRD_MEDIA_TYPE, &descriptor.initrd),
        content(CMDLINE_MEDIA_TYPE, &descriptor.cmdline),
    ];
    let disks = descriptor.disks.iter().filter_map(Disk::blob);
    let disks = disks.map(|blob| content(DISK_MEDIA_TYPE, blob));
    let manifest = output.blob(&to_json(&Manifest {
        schema_version: 2,
        media_type: MANIFEST_MEDIA_TYPE.into(),
        artifact_type: ARTIFACT_TYPE.into(),
        config: content(DESCRIPTOR_MEDIA_TYPE, &config),
        layers: boot.into_iter().chain(disks).collect(),
    })?)?;
    let entry = Content {
        artifact_type: Some(ARTIFACT_TYPE.into()),
        ..content(MANIFEST_MEDIA_TYPE, &manifest)
    };
    let index =
        Index { schema_version: 2, media_type: INDEX_MEDIA_TYPE.into(), manifests: vec![entry] };
    output.file("index.json", &to_json(&index)?)?;
    output.file(
        "oci-layout",
        &to_json(&LayoutFile { image_layout_version: LAYOUT_VERSION.into() })?,
    )?;
    let root_hash = match descriptor.disks.first() {
        Some(Disk::Integrity { root_hash, .. }) => Some(*root_hash),
        _ => None,
    };
    Ok(BuiltImage { path: output.publish()?, image_id: image_id(&bytes), root_hash, descriptor })
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(value).map_err(|error| BuildError::write("write JSON")(error.into()))
}
