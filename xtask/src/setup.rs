//! Set-up in order: packages, kernel, root file systems, build. Each part is reused when it is there.

use anyhow::Result;

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, debs, packages};

/// Everything demo, tests and benchmarks need.
pub fn everything(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    machine(workspace, progress, no_install)?;
    build::everything(workspace, progress)
}

/// Packages and downloads, without the build.
pub fn machine(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    packages::ensure(progress, no_install)?;
    packages::ensure_indexes(progress, no_install)?;
    debs::kernel(workspace, progress)?;
    debs::TREES.iter().try_for_each(|tree| debs::tree(workspace, progress, tree))
}

/// Packages and the build, for what boots no lab host.
pub fn programs(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    packages::ensure(progress, no_install)?;
    build::everything(workspace, progress)
}
