//! The kernel: from a Debian package, unpacked or not, or from named files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{BuildError, ModuleTree, tool, vmlinux};

/// Where a kernel and its modules come from.
#[derive(Debug, Clone)]
pub enum KernelSource {
    /// A Debian `linux-image` package: a `.deb` file or a folder it was unpacked to.
    Package(PathBuf),
    /// Files by name.
    Files {
        /// bzImage.
        vmlinuz: PathBuf,
        /// Folder like `lib/modules/VERSION`.
        modules: PathBuf,
    },
}

/// An opened kernel.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its modules.
    pub modules: ModuleTree,
    /// Holds the unpacked package, if it was unpacked here.
    _unpacked: Option<TempDir>,
}

impl Kernel {
    /// Unpacks what is packed and finds the files; `scratch` is where a package is unpacked to.
    pub fn open(source: &KernelSource, scratch: &Path) -> Result<Self, BuildError> {
        match source {
            KernelSource::Files { vmlinuz, modules } => Ok(Self {
                vmlinuz: vmlinuz.clone(),
                modules: ModuleTree::open(modules)?,
                _unpacked: None,
            }),
            KernelSource::Package(path) if path.is_dir() => Self::in_folder(path, path, None),
            KernelSource::Package(path) => {
                // dpkg-deb would report a missing file only in words.
                fs::metadata(path).map_err(BuildError::input("kernel package", path))?;
                let unpacked = tempfile::Builder::new()
                    .prefix(".coffer-kernel-")
                    .tempdir_in(scratch)
                    .map_err(BuildError::write("make a temporary directory"))?;
                tool::run(
                    "dpkg-deb",
                    tool::command("dpkg-deb").arg("-x").arg(path).arg(unpacked.path()),
                )?;
                let folder = unpacked.path().to_owned();
                Self::in_folder(&folder, path, Some(unpacked))
            }
        }
    }

    /// The kernel, unpacked.
    pub fn read(&self, scratch: &Path) -> Result<Vec<u8>, BuildError> {
        let bytes = fs::read(&self.vmlinuz).map_err(BuildError::input("kernel", &self.vmlinuz))?;
        if !is_bzimage(&bytes) {
            return Err(BuildError::NotAKernel(self.vmlinuz.clone()));
        }
        vmlinux::unpack(&bytes, scratch)
    }

    fn in_folder(
        folder: &Path,
        named: &Path,
        unpacked: Option<TempDir>,
    ) -> Result<Self, BuildError> {
        let refuse = |why| BuildError::KernelPackage { path: named.into(), why };
        let vmlinuz = only(&folder.join("boot"), "vmlinuz-")
            .ok_or_else(|| refuse("not exactly one `boot/vmlinuz-*`"))?;
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|below| only(&folder.join(below), ""))
            .ok_or_else(|| refuse("not exactly one version in `lib/modules`"))?;
        Ok(Self { vmlinuz, modules: ModuleTree::open(&modules)?, _unpacked: unpacked })
    }
}

/// The only entry of `directory` whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut found =
        fs::read_dir(directory).ok()?.filter_map(Result::ok).map(|entry| entry.path()).filter(
            |path| {
                path.file_name()
                    .and_then(|name| name.to_str())
                    .is_some_and(|name| name.starts_with(prefix))
            },
        );
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// "HdrS" at 0x202: the Linux/x86 boot protocol, documented in the kernel's Documentation/arch/x86/boot.rst.
fn is_bzimage(bytes: &[u8]) -> bool {
    bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// True for the first bytes of an unpacked kernel.
pub(crate) fn is_kernel(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7FELF\x02\x01")
}
