//! The plug of a lab host's disk, pulled while the host runs: the kernel takes the driver from the disk as it does when the
//! disk is gone, and whoever had it open has nothing behind it from then on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::host::LabHost;
use crate::intruder::{Attempt, Outcome};

/// The driver of a lab host's disks.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// Where a disk is plugged in.
pub struct Plug<'a> {
    host: &'a LabHost,
    device: String,
}

impl<'a> Plug<'a> {
    /// Of the disk that has this name now, such as `vdb`.
    pub fn of(host: &'a LabHost, disk: &str) -> Result<Self> {
        let disks = format!("{DRIVER}/DEVICE/block");
        for device in list(host, Path::new(DRIVER))?.lines().filter(|it| it.starts_with("virtio")) {
            let block = PathBuf::from(disks.replace("DEVICE", device));
            if list(host, &block)?.lines().any(|it| it == disk) {
                return Ok(Self { host, device: device.to_owned() });
            }
        }
        bail!("the host has no disk `{disk}`")
    }

    /// Takes the disk away.
    pub fn pull(&self) -> Result<()> {
        self.tell("unbind")
    }

    /// Gives it back; its name is another while somebody has the one before open.
    pub fn put_back(&self) -> Result<()> {
        self.tell("bind")
    }

    fn tell(&self, word: &str) -> Result<()> {
        let told = Attempt::Put(Path::new(DRIVER).join(word), self.device.clone());
        done(self.host, told).map(drop)
    }
}

fn list(host: &LabHost, folder: &Path) -> Result<String> {
    done(host, Attempt::List(folder.to_path_buf()))
}

fn done(host: &LabHost, attempt: Attempt) -> Result<String> {
    match host.intrude(0, std::slice::from_ref(&attempt))?.pop().context("an outcome")? {
        Outcome::Done(seen) => Ok(seen),
        other => bail!("{attempt:?}: {other:?}"),
    }
}
