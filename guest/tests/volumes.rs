//! What happens to a device that is blank, and to one that is not. One test function: formatting reaps, and would
//! take any child of this process.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coffer_image::appliance::Volume;
use coffer_init::volumes::{Content, Volumes, prepare};

const MKFS: &str = "/sbin/mkfs.ext4";
const SIZE: u64 = 16 << 20;

fn device(directory: &Path, name: &str, size: u64) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

#[test]
fn a_blank_device_is_formatted_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    a_blank_one_is_formatted_once(directory.path());
    whatever_is_not_blank_is_kept(directory.path());
    what_cannot_be_formatted_is_named(directory.path());
}

fn a_blank_one_is_formatted_once(directory: &Path) {
    let path = device(directory, "blank", SIZE);
    assert_eq!(prepare(&path, Path::new(MKFS)), Ok(Content::Blank));
    let mut magic = [0; 2];
    File::open(&path).unwrap().read_exact_at(&mut magic, 1024 + 0x38).unwrap();
    assert_eq!(magic, [0x53, 0xEF]);
    assert!(
        Command::new("/sbin/e2fsck").args(["-fn"]).arg(&path).output().unwrap().status.success()
    );
    let before = fs::read(&path).unwrap();
    assert_eq!(prepare(&path, Path::new(MKFS)), Ok(Content::Kept));
    assert!(fs::read(&path).unwrap() == before);
}

/// One byte anywhere in the begin is somebody's data. What lies behind it alone is formatting that was cut off.
fn whatever_is_not_blank_is_kept(directory: &Path) {
    for offset in [0, 511, 1024, 4096, 65535] {
        let path = device(directory, "used", SIZE);
        File::options().write(true).open(&path).unwrap().write_all_at(&[1], offset).unwrap();
        let before = fs::read(&path).unwrap();
        assert_eq!(prepare(&path, Path::new(MKFS)), Ok(Content::Kept), "{offset}");
        assert!(fs::read(&path).unwrap() == before, "{offset}");
    }
    let path = device(directory, "cut", SIZE);
    File::options().write(true).open(&path).unwrap().write_all_at(&[1; 4096], 65536).unwrap();
    assert_eq!(prepare(&path, Path::new(MKFS)), Ok(Content::Blank));
}

fn what_cannot_be_formatted_is_named(directory: &Path) {
    let gone = prepare(&directory.join("gone"), Path::new(MKFS)).unwrap_err();
    assert!(gone.starts_with("cannot read it: No such file"), "{gone}");
    let short = prepare(&device(directory, "short", 65535), Path::new(MKFS)).unwrap_err();
    assert!(short.starts_with("cannot read it"), "{short}");
    let path = device(directory, "blank", SIZE);
    let missing = prepare(&path, Path::new("/nowhere/mkfs.ext4")).unwrap_err();
    assert_eq!(missing, "it is blank, and the image has no `/nowhere/mkfs.ext4`");
    let failing = directory.join("mkfs");
    fs::write(&failing, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&failing, fs::Permissions::from_mode(0o755)).unwrap();
    let failed = prepare(&path, &failing).unwrap_err();
    assert_eq!(failed, format!("`{}` ended with exit status 3", failing.display()));
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
}

/// What is mounted at a place, with its options.
fn mounted(target: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == target.to_str())?;
    line.split(' ').nth(3).map(str::to_owned)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs root and a loop device; by itself, for it reaps"]
fn a_volume_keeps_what_was_written_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("data");
    let file = device(directory.path(), "volume", SIZE);
    let looped = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
    let volume = Volume {
        disk: "data".into(),
        device: looped.clone(),
        path: target.display().to_string(),
        fs: "ext4".into(),
    };
    let list = [volume];
    let volumes = Volumes::default();
    let failure = volumes.mount(&list).unwrap_err();
    assert_eq!(failure.code(), "volume-failed");
    assert!(failure.to_string().contains("has no folder"), "{failure}");
    fs::create_dir(&target).unwrap();

    volumes.mount(&list).unwrap();
    let options = mounted(&target).unwrap();
    for option in ["rw", "nosuid", "nodev"] {
        assert!(options.split(',').any(|have| have == option), "{options}");
    }
    fs::write(target.join("kept"), "kept").unwrap();
    // A program that was killed lets go a little later.
    let held = File::open(target.join("kept")).unwrap();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        drop(held);
    });
    volumes.unmount();
    assert_eq!(mounted(&target), None);
    holder.join().unwrap();
    run("e2fsck", &["-fn", &looped]);

    volumes.mount(&list).unwrap();
    assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "kept");
    volumes.unmount();
    // Data that is no file system is a reason to end, and stays.
    File::options().write(true).open(&looped).unwrap().write_all_at(&[7; 4096], 0).unwrap();
    let failure = volumes.mount(&list).unwrap_err();
    assert_eq!(failure.code(), "volume-failed");
    assert_eq!(mounted(&target), None);
    run("losetup", &["-d", &looped]);
    assert!(fs::read(&file).unwrap().starts_with(&[7; 4096]));
}
