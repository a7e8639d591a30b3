//! Why an image is not built.

use std::io;
use std::path::PathBuf;

use coffer_image::rules::Invalid;

use crate::archive::ArchiveError;

/// Why an image is not built. Nothing was written and nothing that existed was touched.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The recipe is not the JSON expected.
    #[error("the recipe is malformed: {0}")]
    Recipe(String),
    /// The recipe asks for what an image may not have.
    #[error("the image would break a rule: {0}")]
    Invalid(#[from] Invalid),
    /// The command line of the recipe would change what is started first.
    #[error("the recipe's command line holds `{0}`, but only coffer-init may be started first")]
    ReservedParameter(String),
    /// An input is not there or cannot be read.
    #[error("cannot read {what} `{path}`: {source}")]
    Input {
        /// What it is.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The root file system is neither a folder nor a tar.
    #[error("the root file system `{0}` is neither a folder nor an uncompressed tar")]
    NotARoot(PathBuf),
    /// The archive would put a file outside the folder it is unpacked to.
    #[error("the archive holds the path `{0}`, which leads out of it")]
    Escapes(PathBuf),
    /// The root file system lacks a directory that something is mounted on.
    #[error("the root file system has no directory `{0}`")]
    NoMountPoint(String),
    /// The root file system lacks the workload's program.
    #[error("the root file system has no program `{0}`")]
    NoProgram(String),
    /// The kernel package or folder lacks something.
    #[error("`{path}` holds {why}")]
    KernelPackage {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel file is no bzImage.
    #[error("`{0}` is not a Linux bzImage")]
    NotAKernel(PathBuf),
    /// The kernel cannot be unpacked.
    #[error("the kernel cannot be unpacked: {0}")]
    Packed(String),
    /// A kernel module is needed but neither there nor built in.
    #[error("the kernel has no module `{0}`")]
    NoModule(String),
    /// A kernel module cannot be read.
    #[error("the kernel module `{path}` is malformed: {why}")]
    BadModule {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// coffer-init is not a static program for x86_64.
    #[error("`{path}` cannot be the first program: it is {why}")]
    BadInit {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A tool is not installed.
    #[error("`{tool}` is not installed")]
    NoTool {
        /// Its name.
        tool: &'static str,
    },
    /// A tool failed.
    #[error("`{tool}` failed: {message}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// The last line it wrote.
        message: String,
    },
    /// The output is there already.
    #[error("`{0}` exists already")]
    Exists(PathBuf),
    /// The output is there, and it is no image: `force` replaces images only.
    #[error("`{0}` exists and is not an image")]
    NotAnImage(PathBuf),
    /// The initrd cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Writing failed.
    #[error("cannot {doing}: {source}")]
    Write {
        /// What was done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The output lies in the folder that is to be packed.
    #[error("the output `{output}` lies inside the root file system `{rootfs}`")]
    Inside {
        /// The output.
        output: PathBuf,
        /// The root file system.
        rootfs: PathBuf,
    },
    /// The disk image is not one that can be imported.
    #[error("the disk image `{path}` {why}")]
    Disk {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The caller asked to stop.
    #[error("the build was cancelled")]
    Cancelled,
}

impl BuildError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Recipe(_) | Self::Invalid(_) => {
                "correct the recipe or the flag; the fields are those of SPEC 3.2 and 3.3"
            }
            Self::ReservedParameter(_) => {
                "remove the parameter; name the program under `workload` instead"
            }
            Self::Input { .. } => "check the path and its permissions",
            Self::NotARoot(_) => {
                "give a folder, or unpack a compressed archive with gunzip, unxz or unzstd first"
            }
            Self::Escapes(_) => "use an archive made with `tar -C ROOT -cf FILE .`",
            Self::NoMountPoint(_) => {
                "create the directory in the root file system; it is read-only when it runs"
            }
            Self::NoProgram(program) if program == coffer_image::appliance::MKFS => {
                "install the package e2fsprogs in the root file system: it formats a blank volume"
            }
            Self::NoProgram(_) => {
                "install the program in the root file system or correct `workload.argv`"
            }
            Self::KernelPackage { .. } => {
                "give one linux-image-*-cloud-amd64 package, as .deb or unpacked"
            }
            Self::Packed(_) => {
                "use a kernel for x86_64 that is packed with gzip, xz, lz4 or zstd, as distributions do"
            }
            Self::NotAKernel(_) => "give the vmlinuz of a kernel for x86_64",
            Self::NoModule(_) => {
                "use a linux-image-*-cloud-amd64 package; it has all modules an appliance needs"
            }
            Self::BadModule { .. } => "unpack the kernel package again",
            Self::BadInit { .. } => {
                "build coffer-init for the target x86_64-unknown-linux-musl or with static linking"
            }
            Self::NoTool { tool: "mkfs.erofs" } => "install the package erofs-utils",
            Self::NoTool { tool: "xz" } => "install the package xz-utils",
            Self::NoTool { .. } => "install the package dpkg",
            Self::Tool { .. } => "check free space and the permissions of all input files",
            Self::Exists(_) => "choose another output or replace it with --force",
            Self::NotAnImage(_) => "choose another output; --force replaces images only",
            Self::Archive(_) => "check the inputs of the initrd",
            Self::Write { source, .. } if is_full(source) => {
                "the disk is full: free some space or choose another output"
            }
            Self::Write { .. } => "check the output directory and its permissions",
            Self::Inside { .. } => "choose an output outside the root file system",
            Self::Disk { why, .. } if why.contains("qcow2") => {
                "convert it with `qemu-img convert -O raw`"
            }
            Self::Disk { why, .. } if why.contains("block") || why.contains("sector") => {
                "give a whole raw disk image; `truncate -s %4096` makes one longer"
            }
            Self::Disk { .. } => {
                "name what it boots from with --kernel, --initrd and --cmdline 'root=/dev/vda1 ...'"
            }
            Self::Cancelled => "nothing was written; run it again",
        }
    }

    pub(crate) fn write(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { doing, source }
    }

    pub(crate) fn input(
        what: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Input { what, path: path.into(), source }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
