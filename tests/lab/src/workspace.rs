//! Where the lab finds what `cargo xtask setup` made.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// Top folder of the checkout.
pub fn root() -> PathBuf {
    std::env::var_os("COFFER_WORKSPACE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")), PathBuf::from)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A program of the release build.
pub fn program(name: &str) -> Result<PathBuf> {
    existing(target().join("release").join(name))
}

/// The static `coffer-init`.
pub fn static_init() -> Result<PathBuf> {
    existing(target().join("x86_64-unknown-linux-gnu/guest/coffer-init"))
}

/// The unpacked Debian kernel package.
pub fn kernel_package() -> Result<PathBuf> {
    existing(root().join(".coffer/cache/kernel"))
}

/// Another one: Debian's next, for guests that differ.
pub fn other_kernel_package() -> Result<PathBuf> {
    existing(root().join(".coffer/cache/other-kernel"))
}

/// The kernel of lab host and guests.
pub fn kernel() -> Result<PathBuf> {
    only_entry(kernel_package()?.join("boot"), "vmlinuz-")
}

/// Its modules: `lib/modules/VERSION`.
pub fn kernel_modules() -> Result<PathBuf> {
    only_entry(kernel_package()?.join("lib/modules"), "")
}

/// Debian's boot loaders and what makes media for them, unpacked.
pub fn boot_loaders() -> Result<PathBuf> {
    let folder = root().join(".coffer/cache/boot-loaders");
    ensure!(folder.exists(), "`{}` is missing; run `cargo xtask record boots`", folder.display());
    Ok(folder)
}

/// The stock Debian disk: one partition, root's password is `coffer`.
pub fn stock_disk() -> Result<PathBuf> {
    existing(root().join(".coffer/cache/stock-disk/disk.raw"))
}

/// A root file system made of Debian packages.
pub fn rootfs(name: &str) -> Result<PathBuf> {
    existing(root().join(".coffer/cache/rootfs").join(name))
}

fn only_entry(folder: PathBuf, prefix: &str) -> Result<PathBuf> {
    std::fs::read_dir(&folder)
        .with_context(|| format!("cannot read `{}`", folder.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .max()
        .with_context(|| format!("nothing in `{}`; run `cargo xtask setup`", folder.display()))
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "`{}` is missing; run `cargo xtask setup`", path.display());
    path.canonicalize().with_context(|| format!("cannot resolve `{}`", path.display()))
}
