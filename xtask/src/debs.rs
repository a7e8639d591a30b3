//! Debian packages unpacked into a folder of the cache, installed nowhere.
//!
//! apt resolves the whole closure against an empty status file, so the result does not depend on what this
//! machine has installed; it also checks each package against its signed index. `dpkg-deb -x` unpacks them,
//! and no maintainer script runs. `coffer-packages` in the folder names what went in, with digests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::progress::{Progress, Step};
use crate::workspace::Workspace;

/// A folder of the cache and the packages it is made of.
pub struct Tree {
    /// Folder name below `.coffer/cache/rootfs`.
    pub name: &'static str,
    /// Packages, without their dependencies.
    pub packages: &'static [&'static str],
}

/// Root file systems of the appliances that demo and tests run.
pub const TREES: &[Tree] = &[
    Tree { name: "nginx", packages: &["nginx-light"] },
    // setpriv, the shell and tools of its workload, and its locale; e2fsprogs formats the volume.
    Tree {
        name: "database",
        packages: &["postgresql-15", "e2fsprogs", "util-linux", "coreutils", "dash", "libc-bin"],
    },
    Tree { name: "tools", packages: &["tpm2-tools", "libtss2-tcti-device0", "busybox-static"] },
];

/// Boot loaders that are recorded, signed where Debian signs them, and what writes FAT images for them to start from.
const BOOT_LOADERS: [&str; 4] =
    ["shim-signed", "grub-efi-amd64-signed", "systemd-boot-efi", "mtools"];

/// A kernel package in a folder of the cache: `.coffer/cache/NAME/{boot,lib}`.
pub struct Kernel {
    /// Folder name.
    name: &'static str,
    /// Meta package that names the newest.
    meta: &'static str,
}

/// The kernel of lab hosts and guests, and another for guests that differ.
pub const KERNELS: &[Kernel] = &[
    Kernel { name: "kernel", meta: "linux-image-cloud-amd64" },
    Kernel { name: "other-kernel", meta: "linux-image-6.12-cloud-amd64" },
];

/// Fetches and unpacks a kernel package.
pub fn kernel(workspace: &Workspace, progress: &mut Progress, kernel: &Kernel) -> Result<()> {
    let target = workspace.cache().join(kernel.name);
    progress.step(&format!("Kernel package `{}`", kernel.name), |step| {
        if let Some(found) = stamp(&target) {
            return Ok(((), format!("{} (cached)", found.trim())));
        }
        let depends = command::output(Command::new("apt-cache").args(["depends", kernel.meta]))?;
        let package = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with("linux-image-"))
            .context("apt knows no cloud kernel; try: apt-get update")?
            .to_owned();
        let fresh = Staging::new(&target)?;
        download_alone(step, &fresh, &[&package])?;
        fresh.finish(&format!("{package}\n"))?;
        Ok(((), package))
    })
}

/// Fetches and unpacks the boot loaders: `.coffer/cache/boot-loaders`. What they depend on, to be installed on a machine,
/// is of no use here.
pub fn boot_loaders(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    let target = workspace.cache().join("boot-loaders");
    progress.step("Boot loaders", |step| {
        if let Some(found) = stamp(&target) {
            return Ok(((), format!("{} packages (cached)", found.lines().count())));
        }
        let fresh = Staging::new(&target)?;
        let listing = download_alone(step, &fresh, &BOOT_LOADERS)?;
        trim(fresh.path())?;
        fresh.finish(&listing)?;
        Ok(((), format!("{} packages", BOOT_LOADERS.len())))
    })
}

/// Fetches and unpacks packages without their dependencies; the listing has their digests.
fn download_alone(step: &Step, fresh: &Staging, packages: &[&str]) -> Result<String> {
    let archives = fresh.beside("debs")?;
    command::quiet(
        step,
        Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .args(packages)
            .current_dir(&archives),
    )?;
    unpack(step, &archives, fresh.path())
}

/// Unpacks every package of a folder, lists them with their digests, and removes the folder.
fn unpack(step: &Step, archives: &Path, into: &Path) -> Result<String> {
    let debs = debs_in(archives)?;
    if debs.is_empty() {
        bail!("apt downloaded nothing");
    }
    for deb in &debs {
        command::quiet(step, Command::new("dpkg-deb").arg("-x").arg(deb).arg(into))?;
    }
    let listing = command::output(
        Command::new("sha256sum")
            .args(debs.iter().filter_map(|deb| deb.file_name()))
            .current_dir(archives),
    )?;
    std::fs::remove_dir_all(archives)?;
    Ok(listing)
}

/// Fetches and unpacks one tree with all its dependencies.
pub fn tree(workspace: &Workspace, progress: &mut Progress, tree: &Tree) -> Result<()> {
    let target = workspace.cache().join("rootfs").join(tree.name);
    progress.step(&format!("Root file system `{}`", tree.name), |step| {
        if let Some(found) = stamp(&target) {
            return Ok(((), format!("{} packages (cached)", found.lines().count())));
        }
        let fresh = Staging::new(&target)?;
        let archives = fresh.beside("debs")?;
        download_closure(step, &archives, tree.packages)?;
        let listing = unpack(step, &archives, fresh.path())?;
        trim(fresh.path())?;
        frame(fresh.path())?;
        fresh.finish(&listing)?;
        Ok(((), format!("{} packages", listing.lines().count())))
    })
}

fn download_closure(step: &Step, archives: &Path, packages: &[&str]) -> Result<()> {
    let status = archives.join("status");
    std::fs::write(&status, "")?;
    std::fs::create_dir_all(archives.join("partial"))?;
    command::quiet(
        step,
        Command::new("apt-get")
            .args(["-q", "-y", "--no-install-recommends", "--download-only"])
            .arg("-o")
            .arg(format!("Dir::State::status={}", status.display()))
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", archives.display()))
            .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
            .arg("install")
            .args(packages),
    )?;
    Ok(())
}

/// Documentation and translations are of no use to an appliance.
fn trim(root: &Path) -> Result<()> {
    for path in
        ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug"]
    {
        let path = root.join(path);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Mount points: the file system is read-only when it runs. `base-files` would bring them, and much else.
fn frame(root: &Path) -> Result<()> {
    for path in ["dev", "proc", "sys", "run", "tmp"] {
        std::fs::create_dir_all(root.join(path))?;
    }
    Ok(())
}

fn debs_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut debs: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    debs.retain(|path| path.extension().is_some_and(|e| e == "deb"));
    debs.sort();
    Ok(debs)
}

/// Folders of the cache that are not complete, each with what belongs there.
pub fn missing(cache: &Path) -> Vec<(&'static str, PathBuf)> {
    let trees = TREES.iter().map(|tree| (tree.name, cache.join("rootfs").join(tree.name)));
    let kernels = KERNELS.iter().map(|kernel| (kernel.name, cache.join(kernel.name)));
    let all = kernels.chain(trees);
    all.filter(|(_, folder)| stamp(folder).is_none()).collect()
}

/// What a folder of the cache holds, if it is complete.
pub fn stamp(target: &Path) -> Option<String> {
    std::fs::read_to_string(target.join(STAMP)).ok()
}

/// File that says a folder of the cache is complete, and what it holds.
const STAMP: &str = "coffer-packages";

/// A folder made beside its final place and moved there when complete: a broken download leaves nothing behind, or, if
/// we were killed during it, nothing that the next one does not remove.
pub struct Staging {
    target: PathBuf,
    parent: PathBuf,
    folder: PathBuf,
}

impl Staging {
    /// Beside `target`.
    pub fn new(target: &Path) -> Result<Self> {
        let parent = target.parent().context("the cache folder has no parent")?.to_path_buf();
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        sweep(&parent)?;
        let folder = parent.join(format!(".{name}.{}", std::process::id()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make `{}`", folder.display()))?;
        Ok(Self { target: target.to_path_buf(), parent, folder })
    }

    /// Where to put things.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// A folder for what is not kept; one named `debs` goes away whatever happens.
    pub fn beside(&self, name: &str) -> Result<PathBuf> {
        let path = self.parent.join(format!(".{name}.{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Puts it in its place, complete.
    pub fn finish(self, listing: &str) -> Result<()> {
        if listing.is_empty() {
            bail!("apt downloaded nothing");
        }
        std::fs::write(self.folder.join(STAMP), listing)?;
        if self.target.exists() {
            std::fs::remove_dir_all(&self.target)?;
        }
        std::fs::rename(&self.folder, &self.target)?;
        Ok(())
    }
}

/// Removes what downloads of processes that are gone left in a folder: `.NAME.PID`.
fn sweep(parent: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix('.').and_then(|n| n.rsplit_once('.')?.1.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let path = entry.path();
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Gone already after `finish`; after a failure this is all there is to remove.
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_dir_all(self.parent.join(format!(".debs.{}", std::process::id())));
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_killed_download_is_removed_by_the_next_and_a_running_one_is_not() {
        let cache = std::env::temp_dir().join(format!("xtask-sweep-{}", std::process::id()));
        // No process has the largest number: the kernel's limit is 2^22.
        let dead = [".kernel.4194999", ".debs.4194999"];
        // Our parent runs.
        let kept = [format!(".nginx.{}", std::os::unix::process::parent_id()), "kernel".into()];
        for name in dead.iter().map(|n| (*n).to_owned()).chain(kept.clone()) {
            std::fs::create_dir_all(cache.join(name).join("partial")).expect("create");
        }
        drop(Staging::new(&cache.join("kernel")).expect("staged"));
        for name in dead {
            assert!(!cache.join(name).exists(), "{name} is left");
        }
        for name in kept {
            assert!(cache.join(&name).exists(), "{name} is gone");
        }
        std::fs::remove_dir_all(&cache).expect("remove");
    }

    #[test]
    fn a_folder_of_the_cache_without_its_stamp_is_missing() {
        let cache = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        std::fs::create_dir_all(cache.join("rootfs/nginx")).expect("create");
        std::fs::create_dir_all(cache.join("kernel")).expect("create");
        std::fs::write(cache.join("kernel").join(STAMP), "a kernel\n").expect("write");
        let names: Vec<_> = missing(&cache).into_iter().map(|(name, _)| name).collect();
        std::fs::remove_dir_all(&cache).expect("remove");
        assert_eq!(names, ["other-kernel", "nginx", "database", "tools"]);
    }
}
