//! Images of distributions' disks: what is found in them, what is not, and what the image says.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use coffer_formats::launch::BoxKind;
use coffer_image::descriptor::Disk;
use coffer_image_build::{BuildError, ImportPlan, import, inspect, verify};
use tempfile::TempDir;

use crate::fixture::{bzimage, vmlinux};

const MIB: u64 = 1 << 20;

/// A folder with a distribution's tree in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for folder in ["root/boot", "root/usr/lib/systemd", "boot", "out"] {
            fs::create_dir_all(place.path(folder)).unwrap();
        }
        symlink("usr/lib", place.path("root/lib")).unwrap();
        fs::write(place.path("root/usr/lib/systemd/systemd"), "init").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A kernel and initrd of that version; the initrd tells which.
    fn kernel(&self, folder: &str, version: &str, initrd: &str) {
        let folder = self.path(folder);
        fs::write(folder.join(format!("vmlinuz-{version}")), bzimage(&vmlinux())).unwrap();
        fs::write(folder.join(initrd), format!("initrd of {version}")).unwrap();
    }

    /// A disk with a file system of each folder: a bare one, or in a partition each.
    fn disk(&self, table: Option<&str>, folders: &[&str]) -> PathBuf {
        let disk = self.path("Stock Disk.raw");
        let size = MIB * (2 + 8 * folders.len() as u64);
        File::create(&disk).unwrap().set_len(size).unwrap();
        if let Some(label) = table {
            let parts: Vec<_> =
                (0..folders.len()).map(|n| format!("start={}MiB, size=8MiB", 1 + 8 * n)).collect();
            let script = format!("label: {label}\n{}\n", parts.join("\n"));
            fs::write(self.path("table"), script).unwrap();
            let table = File::open(self.path("table")).unwrap();
            let status =
                Command::new("/usr/sbin/sfdisk").arg("-q").arg(&disk).stdin(table).status();
            assert!(status.unwrap().success());
        }
        for (n, folder) in folders.iter().enumerate() {
            let start = if table.is_some() { MIB * (1 + 8 * n as u64) } else { 0 };
            let made = Command::new("/usr/sbin/mkfs.ext4")
                .args(["-q", "-F", "-E", &format!("offset={start}"), "-d"])
                .arg(self.path(folder))
                .arg(&disk)
                .arg("8M")
                .status();
            assert!(made.unwrap().success());
        }
        disk
    }

    fn plan(&self, disk: &Path) -> ImportPlan {
        ImportPlan {
            disk: disk.into(),
            boot: None,
            cmdline: None,
            name: None,
            output: self.path("out/image"),
            force: true,
        }
    }

    /// The command line and initrd of the image that comes of it.
    fn imports(&self, plan: &ImportPlan) -> (String, String) {
        let image = import(plan).unwrap();
        assert_eq!(verify(&image.path).unwrap().image_id, image.image_id);
        let inspected = inspect(&image.path).unwrap();
        let initrd = image.path.join(format!("blobs/sha256/{}", image.descriptor.initrd.digest.0));
        (inspected.cmdline.unwrap(), fs::read_to_string(initrd).unwrap())
    }

    fn refuses(&self, plan: &ImportPlan) -> BuildError {
        let error = import(plan).unwrap_err();
        assert_eq!(fs::read_dir(self.path("out")).unwrap().count(), 0, "something was left");
        error
    }
}

#[test]
fn the_newest_kernel_of_a_bare_file_system_is_sealed_and_the_disk_is_not() {
    let place = Place::new();
    place.kernel("root/boot", "6.1.0-9-cloud", "initrd.img-6.1.0-9-cloud");
    place.kernel("root/boot", "6.1.0-10-cloud", "initrd.img-6.1.0-10-cloud");
    let disk = place.disk(None, &["root"]);
    let before = fs::read(&disk).unwrap();
    let (cmdline, initrd) = place.imports(&place.plan(&disk));
    assert!(cmdline.starts_with("root=/dev/vda rw console=ttyS0 "), "{cmdline}");
    assert_eq!(initrd, "initrd of 6.1.0-10-cloud");
    assert!(fs::read(&disk).unwrap() == before, "the disk was written to");

    let image = inspect(&place.path("out/image")).unwrap();
    assert_eq!(image.descriptor.box_kind, BoxKind::Open);
    assert_eq!(image.descriptor.name, "stock-disk");
    assert_eq!(image.descriptor.disks, [Disk::Raw { name: "root".into() }]);
    let said = image.to_string();
    assert!(said.contains("disk       root: raw, given with --disk"), "{said}");
    let kernel = image.path.join(format!("blobs/sha256/{}", image.descriptor.kernel.digest.0));
    assert!(fs::read(kernel).unwrap().starts_with(b"\x7FELF"), "the kernel is unpacked");
}

#[test]
fn partitions_are_found_in_both_kinds_of_table_and_boot_may_be_one() {
    let place = Place::new();
    place.kernel("boot", "6.12.1", "initramfs-6.12.1.img");
    for table in ["gpt", "dos"] {
        let disk = place.disk(Some(table), &["boot", "root"]);
        let (cmdline, initrd) = place.imports(&place.plan(&disk));
        assert!(cmdline.starts_with("root=/dev/vda2 "), "{table}: {cmdline}");
        assert_eq!(initrd, "initrd of 6.12.1", "{table}");
    }
}

#[test]
fn what_is_named_by_hand_is_taken_instead() {
    let place = Place::new();
    let disk = place.path("xfs.raw");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    fs::write(place.path("vmlinuz"), bzimage(&vmlinux())).unwrap();
    fs::write(place.path("initrd"), "by hand").unwrap();
    let plan = ImportPlan {
        boot: Some((place.path("vmlinuz"), place.path("initrd"))),
        cmdline: Some("root=/dev/vda3 console=ttyS0".into()),
        name: Some("other".into()),
        ..place.plan(&disk)
    };
    let (cmdline, initrd) = place.imports(&plan);
    assert_eq!((cmdline.as_str(), initrd.as_str()), ("root=/dev/vda3 console=ttyS0", "by hand"));
    fs::remove_dir_all(place.path("out/image")).unwrap();
    // Without the command line the disk would have to say where its root is, and it cannot be read.
    let error = place.refuses(&ImportPlan { cmdline: None, ..plan.clone() });
    assert!(error.to_string().contains("no root file system"), "{error}");
    assert!(error.hint().contains("--cmdline"));
    let error = place.refuses(&ImportPlan { cmdline: Some("a\nb".into()), ..plan.clone() });
    assert!(error.to_string().contains("printable ASCII"), "{error}");
    let error = place.refuses(&ImportPlan { name: Some("A b".into()), ..plan });
    assert!(error.to_string().contains("`name`"), "{error}");
}

#[test]
fn refuses_disks_that_cannot_boot_and_says_what_is_missing() {
    let place = Place::new();
    let why = |disk: &Path| place.refuses(&place.plan(disk)).to_string();
    assert!(why(&place.path("absent")).contains("cannot read disk image"));
    // A kernel without its initrd, and an initrd of another kernel.
    let disk = place.disk(None, &["root"]);
    assert!(why(&disk).contains("holds no `vmlinuz-VERSION` with its initrd"));
    place.kernel("root/boot", "6.1.0", "initrd.img-6.1.1");
    let disk = place.disk(Some("gpt"), &["root"]);
    assert!(why(&disk).contains("holds no `vmlinuz-VERSION` with its initrd"));
    // A kernel that is none.
    fs::write(place.path("root/boot/initrd.img-6.1.0"), "initrd").unwrap();
    fs::write(place.path("root/boot/vmlinuz-6.1.0"), "none").unwrap();
    let disk = place.disk(None, &["root"]);
    assert!(why(&disk).contains("cannot be unpacked"));
    // Formats of other kinds.
    let other = place.path("other");
    fs::write(&other, [b"QFI\xFB".as_slice(), &[0; 1020]].concat()).unwrap();
    assert!(place.refuses(&place.plan(&other)).hint().contains("qemu-img convert"));
    fs::write(&other, [0; 1000]).unwrap();
    assert!(why(&other).contains("4096-byte blocks"));
    fs::write(&other, [0; 100]).unwrap();
    assert!(why(&other).contains("shorter than a sector"));
}

#[test]
fn a_damaged_disk_is_an_error_and_no_panic() {
    let place = Place::new();
    place.kernel("root/boot", "6.1.0", "initrd.img-6.1.0");
    let disk = place.disk(Some("gpt"), &["root"]);
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let (mut refused, mut accepted) = (0, 0);
    // The table, the superblock, group descriptors and inodes, a byte at a time.
    for at in (0..2048).step_by(61).chain((MIB..MIB + 400_000).step_by(2_003)) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0xFF], at).unwrap();
        match import(&place.plan(&disk)) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        file.write_all_at(&byte, at).unwrap();
    }
    assert!(refused > 0 && accepted > 0, "{refused} {accepted}");
}
