//! What an appliance keeps (SPEC 3.10): volumes, formatted once, mounted before the workload, unmounted after it.
//!
//! The monitor answers for what a volume holds; it is given at launch, so whether it is new is seen here. Only a
//! blank one is formatted: anything else is data, and data that cannot be mounted ends the appliance with a reason.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use coffer_image::appliance::{MKFS, Volume};
use coffer_pid1::children::{self, Ended};
use coffer_pid1::{mount_volume, unmount, wait_for_path};

use crate::Failure;
use crate::workload::{environment_of, mount_target};

/// A volume is blank if this much of its begin is zero: ext4 has its superblock there, which mkfs writes last, so
/// that a volume whose formatting was cut off is formatted again.
const BEGIN: u64 = 64 << 10;
/// How long a device may take to appear.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(5);
/// Tries to unmount, and the pause between them: killed programs take a moment to let go of their files.
const UNMOUNT_TRIES: u32 = 50;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(20);

/// Volumes that are mounted, in order. Shared with whoever ends the machine.
#[derive(Default)]
pub struct Volumes {
    mounted: Mutex<Vec<PathBuf>>,
}

impl Volumes {
    /// Mounts them all below the running root. What is blank is formatted first.
    pub fn mount(&self, volumes: &[Volume]) -> Result<(), Failure> {
        for volume in volumes {
            let fail = |reason: String| Failure::Volume { disk: volume.disk.clone(), reason };
            let target = mount_target("volume", Path::new(&volume.path))?;
            // Made by the image, if at all: the root is read-only.
            if !target.is_dir() {
                return Err(fail(format!("the image has no folder `{}`", volume.path)));
            }
            let device = Path::new(&volume.device);
            wait_for_path(device, DEVICE_TIMEOUT).map_err(|error| fail(error.to_string()))?;
            if prepare(device, Path::new(MKFS)).map_err(fail)? == Content::Blank {
                println!("coffer-init: volume `{}` was blank and is formatted", volume.disk);
            }
            // Held over the mount, so that who ends the machine meanwhile finds it.
            let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
            mount_volume(device, &target, &volume.fs).map_err(|error| fail(error.to_string()))?;
            mounted.push(target);
        }
        Ok(())
    }

    /// Unmounts them, the last first: everything written is on the volume, and its journal is empty. One that stays
    /// busy is written out when the machine is powered off.
    pub fn unmount(&self) {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(target) = mounted.pop() {
            if let Err(error) = unmount_patiently(&target) {
                eprintln!("coffer-init: {error}");
            }
        }
    }
}

fn unmount_patiently(target: &Path) -> Result<(), coffer_pid1::Error> {
    let mut last = unmount(target);
    for _ in 1..UNMOUNT_TRIES {
        if last.is_ok() {
            break;
        }
        std::thread::sleep(UNMOUNT_PAUSE);
        last = unmount(target);
    }
    last
}

/// What was on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing; now it has a file system.
    Blank,
    /// Something, which is as it was.
    Kept,
}

/// Formats the device with `mkfs` if it is blank.
pub fn prepare(device: &Path, mkfs: &Path) -> Result<Content, String> {
    let blank = is_blank(device).map_err(|error| format!("cannot read it: {error}"))?;
    if !blank {
        return Ok(Content::Kept);
    }
    if !mkfs.is_file() {
        return Err(format!("it is blank, and the image has no `{}`", mkfs.display()));
    }
    // Blocks as large as the volume's own, and no discard: there is nothing to discard.
    let options = ["-q", "-F", "-b", "4096", "-E", "nodiscard"];
    let argv = [mkfs].into_iter().chain(options.map(Path::new)).chain([device]);
    let argv: Vec<String> = argv.map(|part| part.display().to_string()).collect();
    match run(&argv).map_err(|error| error.to_string())? {
        Ended::Status(0) => Ok(Content::Blank),
        ended => Err(format!("`{}` ended with {ended}", mkfs.display())),
    }
}

/// Only ever true of a device that was read to the end of its begin.
fn is_blank(device: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    File::open(device)?.take(BEGIN).read_to_end(&mut begin)?;
    if begin.len() as u64 != BEGIN {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(begin.iter().all(|byte| *byte == 0))
}

/// Nothing else runs yet that would be reaped.
fn run(argv: &[String]) -> Result<Ended, coffer_pid1::Error> {
    let pid = children::spawn_session(argv, &environment_of(&[]))?;
    loop {
        match children::reap()? {
            Some(reaped) if reaped.pid == pid => return Ok(reaped.ended),
            Some(_) => {}
            // Its end was somebody else's to see; what it did not finish is not there.
            None => return Ok(Ended::Status(-1)),
        }
    }
}
