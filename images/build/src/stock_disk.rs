//! A distribution's disk image, looked into without mounting it: which file system has kernel and initrd, and which is
//! the root.
//!
//! ```text
//!   no table: one file system /dev/vda      GPT or MBR: one in each partition, /dev/vda1, /dev/vda2, ...
//!   each with vmlinuz-VERSION and its initrd in /boot, or at its top where it is a boot partition
//! ```
//! Reads ext2, ext3 and ext4. The file is only read; what is wrong with it is an error that names it.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use ext4_view::{Ext4, Ext4Read};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;

use coffer_image::verity::BLOCK;

use crate::BuildError;

/// Bytes partition tables count in.
const SECTOR: u64 = 512;
/// Where a VM finds its first disk.
const DEVICE: &str = "/dev/vda";
/// How distributions name the initrd of `vmlinuz-VERSION`, as prefix and suffix of VERSION.
const INITRDS: [(&str, &str); 4] =
    [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", ""), ("initrd-", ".img")];

/// A disk image with the file systems in it that can be read.
pub struct StockDisk {
    path: PathBuf,
    systems: Vec<System>,
}

/// A file system and the device it is in the VM.
struct System {
    device: String,
    files: Ext4,
}

/// What the newest kernel of the disk is booted from.
#[derive(Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// Its initrd.
    pub initrd: Vec<u8>,
}

impl StockDisk {
    /// Opens the image and the file systems in it.
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        let file = File::open(path).map_err(BuildError::input("disk image", path))?;
        let size = file.metadata().map_err(BuildError::input("disk image", path))?.len();
        let refuse = |why| BuildError::Disk { path: path.into(), why };
        let mut head = [0; SECTOR as usize];
        file.read_exact_at(&mut head, 0).map_err(|_| refuse("is shorter than a sector"))?;
        if head.starts_with(b"QFI\xFB") {
            return Err(refuse("is in the format of QEMU (qcow2), not raw"));
        }
        if !size.is_multiple_of(BLOCK as u64) {
            return Err(refuse("is no whole number of 4096-byte blocks"));
        }
        let systems = places(&file, &head, size)
            .into_iter()
            .filter_map(|place| {
                let slice =
                    Slice { file: file.try_clone().ok()?, start: place.start, size: place.size };
                Some(System { device: place.device, files: Ext4::load(Box::new(slice)).ok()? })
            })
            .collect();
        Ok(Self { path: path.into(), systems })
    }

    /// The newest kernel that has an initrd beside it.
    pub fn boot_files(&self) -> Result<BootFiles, BuildError> {
        let pairs = self.systems.iter().flat_map(System::pairs);
        let newest = pairs.max_by(|a, b| by_version(&a.version, &b.version)).ok_or_else(|| {
            self.refuse(
                "holds no `vmlinuz-VERSION` with its initrd in a file system that can be read",
            )
        })?;
        let read = |path: &str| {
            newest.files.read(path).map_err(|error| {
                BuildError::input("disk image", &self.path)(io::Error::other(error.to_string()))
            })
        };
        Ok(BootFiles { kernel: read(&newest.kernel)?, initrd: read(&newest.initrd)? })
    }

    /// The device with the root file system: the one with an init.
    pub fn root(&self) -> Result<&str, BuildError> {
        let init = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
        let is_root =
            |system: &&System| init.iter().any(|path| system.files.symlink_metadata(*path).is_ok());
        let root = self.systems.iter().find(is_root);
        root.map(|system| system.device.as_str())
            .ok_or_else(|| self.refuse("holds no root file system that can be read"))
    }

    fn refuse(&self, why: &'static str) -> BuildError {
        BuildError::Disk { path: self.path.clone(), why }
    }
}

/// A kernel with its initrd.
struct Pair<'a> {
    files: &'a Ext4,
    version: String,
    kernel: String,
    initrd: String,
}

impl System {
    fn pairs(&self) -> Vec<Pair<'_>> {
        ["/boot", "/"].iter().flat_map(|folder| self.pairs_in(folder)).collect()
    }

    fn pairs_in(&self, folder: &str) -> Vec<Pair<'_>> {
        let Ok(entries) = self.files.read_dir(folder) else { return Vec::new() };
        let names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().as_str().ok()?.to_owned()))
            .collect();
        let path = |name: &str| format!("{}/{name}", folder.trim_end_matches('/'));
        let pair = |name: &String| {
            let version = name.strip_prefix("vmlinuz-")?;
            let mut initrds =
                INITRDS.iter().map(|(before, after)| format!("{before}{version}{after}"));
            let initrd = initrds.find(|initrd| names.contains(initrd))?;
            Some(Pair {
                files: &self.files,
                version: version.to_owned(),
                kernel: path(name),
                initrd: path(&initrd),
            })
        };
        names.iter().filter_map(pair).collect()
    }
}

/// Numbers as numbers, everything between them as text: 6.1.0-9 is older than 6.1.0-10.
fn by_version(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| {
        let mut parts: Vec<(u64, String)> = vec![(0, String::new())];
        for c in text.chars() {
            match (c.to_digit(10), parts.last_mut()) {
                (Some(digit), Some((number, between))) if between.is_empty() => {
                    *number = number.saturating_mul(10).saturating_add(digit.into());
                }
                (Some(digit), _) => parts.push((digit.into(), String::new())),
                (None, Some((_, between))) => between.push(c),
                (None, None) => {}
            }
        }
        parts
    };
    parts(a).cmp(&parts(b))
}

/// Where a file system may be.
struct Place {
    device: String,
    start: u64,
    size: u64,
}

fn places(file: &File, head: &[u8; SECTOR as usize], size: u64) -> Vec<Place> {
    let from_gpt = GptConfig::new().writable(false).open_from_device(file);
    let partitions: Vec<(u32, u64, u64)> = match &from_gpt {
        Ok(disk) => disk
            .partitions()
            .iter()
            .filter_map(|(number, partition)| {
                let start = partition.bytes_start(LogicalBlockSize::Lb512).ok()?;
                Some((*number, start, partition.bytes_len(LogicalBlockSize::Lb512).ok()?))
            })
            .collect(),
        Err(_) => from_mbr(head),
    };
    let whole = Place { device: DEVICE.into(), start: 0, size };
    let parts = partitions.into_iter().map(|(number, start, size)| Place {
        device: format!("{DEVICE}{number}"),
        start,
        size,
    });
    // A bare file system may have what looks like a table in its first sector, which it does not use.
    [whole].into_iter().chain(parts).collect()
}

/// The four primary partitions of a PC's boot sector: signature, then entries of 16 bytes with first sector and count.
fn from_mbr(head: &[u8; SECTOR as usize]) -> Vec<(u32, u64, u64)> {
    let number = |at: usize| {
        let bytes: Option<[u8; 4]> = head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| u64::from(u32::from_le_bytes(bytes)))
    };
    let entries = (1..).zip((446..510).step_by(16));
    let entries = entries.map(|(n, at)| (n, number(at + 8) * SECTOR, number(at + 12) * SECTOR));
    match head.ends_with(&[0x55, 0xAA]) {
        true => entries.filter(|(_, start, size)| *start > 0 && *size > 0).collect(),
        false => Vec::new(),
    }
}

/// A part of the file; reading beyond it fails.
struct Slice {
    file: File,
    start: u64,
    size: u64,
}

impl Ext4Read for Slice {
    fn read(
        &mut self,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        let end = start.checked_add(into.len() as u64).filter(|end| *end <= self.size);
        let at = end.and_then(|_| self.start.checked_add(start));
        let at = at.ok_or(io::ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
        Ok(self.file.read_exact_at(into, at)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_by_their_numbers() {
        let mut versions = ["6.1.0-10-cloud", "6.1.0-9-cloud", "5.15", "6.12.1", "6.1.0-10-amd64"];
        versions.sort_by(|a, b| by_version(a, b));
        let expected = ["5.15", "6.1.0-9-cloud", "6.1.0-10-amd64", "6.1.0-10-cloud", "6.12.1"];
        assert_eq!(versions, expected);
    }

    #[test]
    fn a_boot_sector_has_the_partitions_it_names() {
        let mut head = [0; SECTOR as usize];
        head[446 + 16 + 8..][..4].copy_from_slice(&2048u32.to_le_bytes());
        head[446 + 16 + 12..][..4].copy_from_slice(&100u32.to_le_bytes());
        assert_eq!(from_mbr(&head), [], "no signature");
        head[510..].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(from_mbr(&head), [(2, 2048 * SECTOR, 100 * SECTOR)]);
    }
}
