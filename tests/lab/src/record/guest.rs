//! Records a Coffer guest: the recorder is the workload of an appliance on a lab host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use coffer_attestation::Digest;

use super::about::{About, Fact};
use super::boot_path::BootPath;
use super::recording::Recording;
use crate::appliance::{self, Image};
use crate::host::{LabConfig, LabHost};
use crate::host_tpm::HostTpm;
use crate::wait;

const PATH: BootPath = BootPath::CofferGuest;
/// Longest from the launch to the end of the workload.
const LIMIT: Duration = Duration::from_secs(60);

/// Boots a lab host, and the guest on it.
pub fn record(folder: &Path) -> Result<(Recording, About)> {
    let images = folder.join("images");
    std::fs::create_dir_all(&images)?;
    let image = appliance::of_this_program(
        NAME,
        &["record-inside", &PATH.nonce().to_hex()],
        folder,
        &images.join(NAME),
    )?;
    let tpm_folder = folder.join("tpm");
    std::fs::create_dir_all(&tpm_folder)?;
    let tpm = HostTpm::manufacture(&tpm_folder)?;
    let config = LabConfig { images: Some(images), ..LabConfig::default() };
    let host = LabHost::boot(&folder.join("host"), &tpm, &config)?;
    let launch = host.run(NAME, NAME, &[])?;
    ensure!(launch.ok, "the guest did not start: {}", launch.message);
    wait::until("the end of the guest", LIMIT, || {
        let vm = host.inspect(NAME)?;
        Ok((vm["vm"]["state"] == "stopped" || vm["vm"]["state"] == "failed").then_some(()))
    })?;
    let output = host.logs(NAME)?;
    let recording =
        Recording::find(&output).with_context(|| format!("the guest printed:\n{output}"))?;
    let inspected = host.inspect(NAME)?;
    let launch_digest = inspected["measurements"]["launch_digest"].as_str().unwrap_or_default();
    let about =
        About::new(PATH, &recording, &["qemu-system-x86", "swtpm"], facts(&image, launch_digest)?)?;
    Ok((recording, about))
}

/// What the monitor has to measure of this image (SPEC 3.6).
fn facts(image: &Image, launch_digest: &str) -> Result<Vec<Fact>> {
    let descriptor = image.descriptor()?;
    let digest = |hex: &str| Digest::from_hex(hex).context("a digest does not parse");
    Ok(vec![
        Fact::new(4, "kernel", descriptor.kernel.digest.0),
        Fact::new(9, "initrd", descriptor.initrd.digest.0),
        Fact::new(9, "command line", descriptor.cmdline.digest.0),
        Fact::new(11, "image descriptor", digest(&image.id)?),
        Fact::new(17, "launch record, as the monitor has it", digest(launch_digest)?),
    ])
}

const NAME: &str = "recorder";
