//! What machines boot from: initrds, EFI system partitions, unified kernel images.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use coffer_image_build::{HostInitrd, ModuleTree};

use super::boot_path::BootPath;
use super::inside::{MODULES, ORDERS, Orders};
use crate::initrd::stripped;
use crate::{probe, process, workspace};

/// Room beside the files of a file system, and the least there is: FAT32 begins at 33 MiB.
const SLACK_MIB: u64 = 36;

/// Writes the initrd: the recorder as PID 1, and its orders.
pub fn initrd(out: &Path, path: BootPath) -> Result<()> {
    let tree = ModuleTree::open(&workspace::kernel_modules()?)?;
    // Without UEFI there are no variables, and the module refuses to load.
    let needed: &[&str] = if path == BootPath::Seabios { &[] } else { &["efivarfs"] };
    let modules = tree.closure(needed)?;
    let orders = Orders {
        nonce: path.nonce().to_hex(),
        modules: modules.iter().map(|module| module.file_name.clone()).collect(),
    };
    let mut initrd = HostInitrd::new()
        .binary(stripped("coffer-lab", out)?, probe::PROGRAM)
        .symlink(probe::PROGRAM, "/init")
        .data(serde_json::to_vec(&orders)?, ORDERS, 0o644);
    for module in modules {
        initrd = initrd.data(module.bytes, format!("{MODULES}/{}", module.file_name), 0o644);
    }
    initrd.write(out).context("cannot make the recorder's initrd")?;
    Ok(())
}

/// Writes a FAT image that holds these files, without a partition table: firmware takes the disk for the partition.
pub fn esp(out: &Path, files: &[(PathBuf, &str)]) -> Result<()> {
    let sizes = files.iter().map(|(path, _)| Ok(std::fs::metadata(path)?.len()));
    let bytes: u64 = sizes.collect::<Result<Vec<_>>>()?.iter().sum();
    File::create(out)?.set_len(((bytes >> 20) + SLACK_MIB) << 20)?;
    let image = [OsStr::new("-i"), out.as_os_str()];
    mtools("mformat", [&image[..], &[OsStr::new("-F"), OsStr::new("::")]].concat())?;
    let mut made: Vec<String> = Vec::new();
    for (file, name) in files {
        for folder in
            folders(name).into_iter().filter(|folder| !made.contains(folder)).collect::<Vec<_>>()
        {
            let target = format!("::{folder}");
            mtools("mmd", [&image[..], &[OsStr::new(&target)]].concat())?;
            made.push(folder);
        }
        let target = format!("::{name}");
        mtools("mcopy", [&image[..], &[file.as_os_str(), OsStr::new(&target)]].concat())?;
    }
    Ok(())
}

/// Every folder above a file, the highest first.
fn folders(name: &str) -> Vec<String> {
    let parents = Path::new(name).ancestors().skip(1).filter(|path| path.parent().is_some());
    let mut all: Vec<String> = parents.map(|path| path.display().to_string()).collect();
    all.reverse();
    all
}

/// From the cache: nothing is installed for it.
fn mtools(name: &str, arguments: Vec<&OsStr>) -> Result<()> {
    let program = workspace::boot_loaders()?.join("usr/bin").join(name);
    process::must(&program.to_string_lossy(), arguments).map(drop)
}

/// A section of a unified kernel image.
pub struct Section {
    /// Its name, with the dot.
    pub name: &'static str,
    /// File that becomes its contents.
    pub file: PathBuf,
}

/// Puts sections above a stub's own, each at the start of a page; at another offset the stub finds nothing and hangs.
pub fn uki(out: &Path, stub: &Path, sections: &[Section]) -> Result<()> {
    let mut arguments: Vec<String> = Vec::new();
    let mut address = end_of(stub)?;
    for Section { name, file } in sections {
        address = address.next_multiple_of(PAGE);
        arguments.push(format!("--add-section={name}={}", file.display()));
        arguments.push(format!("--change-section-vma={name}={address:#x}"));
        address += std::fs::metadata(file)?.len();
    }
    arguments.extend([stub.display().to_string(), out.display().to_string()]);
    process::must("objcopy", arguments).map(drop)
}

/// The address behind the last section, as binutils count: without the image base, which is zero for stubs.
fn end_of(stub: &Path) -> Result<u64> {
    let listing = process::must("objdump", [OsStr::new("-h"), stub.as_os_str()])?;
    let hex = |word: Option<&&str>| u64::from_str_radix(word?, 16).ok();
    let section = |line: &str| {
        // Number, name, size, address.
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first()?.parse::<u32>().ok()?;
        Some(hex(words.get(2))? + hex(words.get(3))?)
    };
    listing.lines().filter_map(section).max().context("the stub has no sections")
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::folders;

    #[test]
    fn folders_come_from_the_top() {
        assert_eq!(folders("/EFI/BOOT/BOOTX64.EFI"), ["/EFI", "/EFI/BOOT"]);
        assert!(folders("/vmlinuz").is_empty());
    }
}
