//! Set-up in order: packages, kernel, root file systems, build. Each part is reused when it is there.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, check, debs, packages, stock_disk};

/// Everything demo, tests and benchmarks need.
pub fn everything(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    machine(workspace, progress, no_install, Tests::None)?;
    build::everything(workspace, progress)
}

/// Which tests set-up is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    /// It is for something else.
    None,
    /// Those that boot no lab host.
    WithoutLab,
    /// All.
    All,
}

/// Packages and downloads, without the build; for tests also what the checks and they alone need. `no_install` fetches
/// nothing: it names all that is missing at once.
pub fn machine(
    workspace: &Workspace,
    progress: &mut Progress,
    no_install: bool,
    tests: Tests,
) -> Result<()> {
    if no_install {
        let mut missing = debs::missing(&workspace.cache());
        missing.extend(stock_disk::missing(&workspace.cache()).filter(|_| tests == Tests::All));
        return nothing_missing(progress, &missing, tests != Tests::None);
    }
    packages::ensure(progress)?;
    packages::ensure_indexes(progress)?;
    debs::KERNELS.iter().try_for_each(|kernel| debs::kernel(workspace, progress, kernel))?;
    debs::TREES.iter().try_for_each(|tree| debs::tree(workspace, progress, tree))?;
    match tests {
        Tests::All => stock_disk::make(workspace, progress),
        Tests::None | Tests::WithoutLab => Ok(()),
    }
}

/// Packages and the build, for what boots no lab host.
pub fn programs(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    if no_install {
        nothing_missing(progress, &[], false)?;
    } else {
        packages::ensure(progress)?;
    }
    build::everything(workspace, progress)
}

fn nothing_missing(progress: &mut Progress, cached: &[(&str, PathBuf)], lints: bool) -> Result<()> {
    progress.step("Nothing is missing", |_| {
        let packages = packages::missing()?;
        let deny = lints && !check::deny_is_there();
        for (name, why) in &packages {
            eprintln!("      missing    {name:<22} {why}");
        }
        for (name, path) in cached {
            eprintln!("      missing    {name:<22} in `{}`", path.display());
        }
        if deny {
            eprintln!("      missing    {:<22} dependency rules", "cargo-deny");
        }
        let mut tries = Vec::new();
        if !packages.is_empty() {
            let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
            tries.push(format!("apt-get install {}", names.join(" ")));
        }
        if deny {
            tries.push(check::INSTALL_DENY.to_owned());
        }
        if !cached.is_empty() {
            tries.push("cargo xtask setup, which downloads".to_owned());
        }
        if !tries.is_empty() {
            bail!("something is missing; try: {}", tries.join("; "));
        }
        Ok(((), "packages and downloads are there".to_owned()))
    })
}
