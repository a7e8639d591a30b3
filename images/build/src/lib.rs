//! Builds appliance images and host initrds, and checks finished images (SPEC section 3).
//!
//! Runs on the author's machine, for the author: it trusts its inputs to be what the author wants, but writes
//! only images that every reader accepts, and the same bytes for the same inputs on any machine. Images given
//! to [`inspect`] and [`verify`] are hostile.
//!
//! Who signs an image, signs it here (SPEC 3.9).
//!
//! Disk images of distributions are read here without a tool: GPT and ext4 in Rust.
//!
//! Outside tools: `mkfs.erofs` (erofs-utils) for the root file system, `dpkg-deb` for kernel packages, `xz` for
//! compressed modules, `gzip`, `xz` or `zstd` for kernels that are packed that way, `ldd` for host initrds.
#![forbid(unsafe_code)]

mod archive;
mod build;
mod cmdline;
mod disk;
mod elf;
mod error;
mod host;
mod import;
mod inspect;
mod kernel;
mod modules;
mod output;
mod recipe;
mod rootfs;
mod sign;
mod stock_disk;
mod store;
mod tool;
mod verify;
mod vmlinux;

pub use archive::{Archive, ArchiveError, SealedArchive};
pub use build::{BuildPlan, BuiltImage, Step, build};
pub use error::BuildError;
pub use host::{HostError, HostInitrd, SealedHost};
pub use import::{ImportPlan, import};
pub use inspect::{Inspection, inspect};
pub use kernel::{Kernel, KernelSource};
pub use modules::{Module, ModuleTree};
pub use recipe::{Recipe, VolumeRequest};
pub use sign::{ImageKey, SignError, Signed};
pub use store::{AnyStore, TarStore, open_image};
pub use verify::{Verified, VerifyError, verify};
