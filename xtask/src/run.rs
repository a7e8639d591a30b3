//! The programs of `tests/lab`, started after set-up.

use std::process::Command;

use anyhow::Result;

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{command, setup};

/// The story and its refusals.
pub fn demo(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    setup::everything(workspace, progress, no_install)?;
    progress.own_output("Demo", || {
        command::loud(lab(workspace).arg("demo"))?;
        Ok(((), String::new()))
    })
}

/// One measurement.
pub fn bench(
    workspace: &Workspace,
    progress: &mut Progress,
    no_install: bool,
    name: &str,
    rounds: u32,
) -> Result<()> {
    setup::everything(workspace, progress, no_install)?;
    progress.own_output(&format!("Bench `{name}`"), || {
        command::loud(lab(workspace).args(["bench", name, "--rounds", &rounds.to_string()]))?;
        Ok(((), String::new()))
    })
}

fn lab(workspace: &Workspace) -> Command {
    let mut lab = Command::new(workspace.program("coffer-lab"));
    lab.env("COFFER_WORKSPACE", workspace.root());
    lab
}
