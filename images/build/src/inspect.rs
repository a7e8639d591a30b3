//! What an image says of itself. Cheap: the descriptor is checked, disks and kernel are not read.

use std::fmt;
use std::path::{Path, PathBuf};

use coffer_formats::Digest;
use coffer_image::appliance::{Appliance, Network};
use coffer_image::descriptor::{ConsoleMode, Descriptor, Disk};
use coffer_image::layout::LayoutError;
use coffer_image::reach::Reach;
use serde::Serialize;

use crate::open_image;
use crate::verify::{check_blob, read_appliance};

/// An image's own words.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of the descriptor.
    pub image_id: Digest,
    /// SHA-256 of the key that signed it; absent if nobody did.
    pub signer: Option<Digest>,
    /// The descriptor.
    pub descriptor: Descriptor,
    /// The kernel command line; absent if its blob is damaged.
    pub cmdline: Option<String>,
    /// What coffer-init does; absent if the initrd is damaged.
    pub appliance: Option<Appliance>,
}

/// Reads what an image says of itself.
pub fn inspect(path: &Path) -> Result<Inspection, LayoutError> {
    let layout = open_image(path)?;
    let descriptor = layout.descriptor().clone();
    let cmdline = layout.open_blob("command line", &descriptor.cmdline)?;
    let initrd = layout.open_blob("initrd", &descriptor.initrd)?;
    let cmdline = check_blob("command line", &descriptor.cmdline, &cmdline).and_then(|()| {
        cmdline
            .read_all()
            .map_err(|source| LayoutError::Read { what: "command line".into(), source })
    });
    let whole = check_blob("initrd", &descriptor.initrd, &initrd).is_ok();
    Ok(Inspection {
        path: path.into(),
        image_id: layout.image_id(),
        signer: layout.signer()?.map(|signer| signer.digest()),
        cmdline: cmdline.ok().and_then(|bytes| String::from_utf8(bytes).ok()),
        appliance: whole.then(|| read_appliance(&initrd).ok()).flatten(),
        descriptor,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = &self.descriptor;
        let damaged = "(damaged; see `coffer image verify`)";
        writeln!(f, "image id   sha256:{}", self.image_id)?;
        if let Some(signer) = self.signer {
            writeln!(f, "signer     {signer}")?;
        }
        writeln!(
            f,
            "name       {}, svn {}, {} box, {}",
            of.name,
            of.svn,
            of.box_kind.as_str(),
            of.architecture
        )?;
        writeln!(f, "kernel     {} ({} bytes)", of.kernel.digest, of.kernel.size)?;
        writeln!(f, "initrd     {} ({} bytes)", of.initrd.digest, of.initrd.size)?;
        writeln!(f, "cmdline    {}", self.cmdline.as_deref().unwrap_or(damaged))?;
        for disk in &of.disks {
            match disk {
                Disk::Integrity { name, data_size, root_hash, .. } => writeln!(
                    f,
                    "disk       {name}: integrity, {data_size} bytes, root hash {root_hash}"
                ),
                Disk::Raw { name } => writeln!(f, "disk       {name}: raw, given with --disk"),
                Disk::Encrypted { name } => {
                    writeln!(f, "disk       {name}: encrypted, given with --volume")
                }
            }?;
        }
        let (cpu, memory) = (of.shape.vcpus, of.shape.memory_mib);
        writeln!(
            f,
            "shape      {} to {} vCPUs, {} to {} MiB",
            cpu.min, cpu.max, memory.min, memory.max
        )?;
        match &of.network {
            Network::None => writeln!(f, "network    none")?,
            Network::Nat { address, prefix, gateway, reach } => {
                writeln!(f, "network    NAT, {address}/{prefix} by {gateway}")?;
                write_reach(f, reach)?;
            }
        }
        let console = match of.console {
            ConsoleMode::Output => "output only",
            ConsoleMode::None => "none",
        };
        writeln!(f, "console    {console}")?;
        if !of.vtpm.is_fresh() {
            writeln!(f, "vtpm       persistent")?;
        }
        writeln!(
            f,
            "verifier   {}",
            of.verifier.as_ref().map_or("none", |verifier| &verifier.url)
        )?;
        for secret in &of.secrets {
            writeln!(f, "secret     {} as {} ({})", secret.id, secret.file, secret.mode)?;
        }
        if let Some(end) = of.not_after {
            writeln!(f, "not after  {end} (Unix seconds)")?;
        }
        for volume in self.appliance.iter().flat_map(|appliance| &appliance.volumes) {
            writeln!(f, "volume     {} at {} ({})", volume.disk, volume.path, volume.fs)?;
        }
        let workload = match of.has_agent() {
            true => self.appliance.as_ref().map(|appliance| appliance.workload.argv.join(" ")),
            false => Some("what the root disk starts".into()),
        };
        write!(f, "workload   {}", workload.as_deref().unwrap_or(damaged))
    }
}

fn write_reach(f: &mut fmt::Formatter<'_>, reach: &Reach) -> fmt::Result {
    if let Some(rules) = &reach.egress {
        let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
        let rules = if rules.is_empty() { "nothing".into() } else { rules.join(", ") };
        writeln!(f, "egress     {rules}; the verifier")?;
    }
    if let Some(ports) = &reach.listen {
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let ports = if ports.is_empty() { "no port".into() } else { ports.join(", ") };
        writeln!(f, "listens    {ports}")?;
    }
    if reach.until_attested {
        writeln!(f, "closed     until attested, but for the verifier")?;
    }
    Ok(())
}
