//! Records boots: what firmware and loaders log, beside what the TPM quotes of it.
//!
//! Each way to boot that is here ([`BootPath`]) is taken once, for real, and leaves a folder that needs no TPM to be judged:
//!
//! ```text
//! log.bin     the event log, as Linux exports it        quote.msg  TPMS_ATTEST
//! pcrs.json   every bank's registers, as read           quote.sig  TPMT_SIGNATURE
//! about.json  what booted, and how that is known        ak.pub     TPMT_PUBLIC
//! ```
//! No recording is committed yet. A recording is made of Debian's own packages, so a later
//! run records later versions; nonces are the paths' own names, since nothing here is kept from replay. The keys and the
//! TPM are gone when a recording is made.

mod about;
mod boot;
mod boot_path;
mod guest;
pub mod inside;
mod media;
mod recording;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::story::Story;
use crate::workdir::Workdir;

pub use boot_path::BootPath;

/// Records the paths named, or all of them, each in a folder of its name below `into`.
pub fn run(into: &Path, paths: &[BootPath]) -> Result<()> {
    let paths = if paths.is_empty() { BootPath::ALL } else { paths };
    let mut story = Story::begin();
    let workdir = Workdir::new()?;
    for path in paths {
        let folder = workdir.folder(path.name())?;
        let recorded = story.step(path.title(), || record(&folder, *path));
        if recorded.is_err() {
            workdir.keep();
        }
        let (recording, about) = recorded?;
        let target = into.join(path.name());
        recording.write(&target, &about)?;
        story.say(&format!("            {}: {}", target.display(), recording.summary()));
    }
    Ok(())
}

fn record(folder: &Path, path: BootPath) -> Result<(recording::Recording, about::About)> {
    match path {
        BootPath::CofferGuest => guest::record(folder),
        _ => boot::record(folder, path),
    }
    .with_context(|| format!("`{}` is not recorded", path.name()))
}
