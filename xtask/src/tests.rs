//! `cargo xtask test`: format, lints, every test of the workspace; one line sums them up; then a short run of every
//! fuzz target.

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, check, fuzz, room, setup};

mod counts;
mod lanes;
mod program;

/// Runs all of it.
pub fn all(
    workspace: &Workspace,
    progress: &mut Progress,
    no_install: bool,
    lab: bool,
    filter: Option<&str>,
) -> Result<()> {
    let tests = if lab { setup::Tests::All } else { setup::Tests::WithoutLab };
    setup::machine(workspace, progress, no_install, tests)?;
    check::all(workspace, progress, no_install)?;
    build::everything(workspace, progress)?;
    let programs = progress.step("Build the tests", |step| {
        let programs = program::build(workspace, step, lab)?;
        let outcome = format!("{} programs", programs.len());
        Ok((programs, outcome))
    })?;
    if lab {
        room::for_tests(progress)?;
    }
    let counts = progress.own_output("Tests", || {
        let counts = lanes::run(workspace, programs, lab, filter)?;
        let outcome = format!("{} passed, {} failed", counts.passed, counts.failed);
        Ok((counts, outcome))
    })?;
    println!("{} passed, {} failed, {} ignored", counts.passed, counts.failed, counts.ignored);
    if !counts.broken.is_empty() {
        bail!("tests failed in {}", counts.broken.join(", "));
    }
    // Whoever asks for one test does not ask for this.
    if filter.is_none() {
        fuzz::run(workspace, progress, no_install, fuzz::SHORT_RUNS, None)?;
    }
    Ok(())
}
