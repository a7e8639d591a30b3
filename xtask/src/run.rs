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
    if name == "launch" {
        setup::everything(workspace, progress, no_install)?;
    } else {
        // No lab host boots: programs, but no kernel and no root file systems.
        setup::programs(workspace, progress, no_install)?;
    }
    let mut bench = match name {
        // It counts its allocations, so it is a program of its own.
        "verify" => program(workspace, "coffer-bench-verify"),
        _ => lab(workspace),
    };
    if name != "verify" {
        bench.args(["bench", name]);
    }
    bench.args(["--rounds", &rounds.to_string()]);
    progress.own_output(&format!("Bench `{name}`"), || {
        command::loud(&mut bench)?;
        Ok(((), String::new()))
    })
}

fn lab(workspace: &Workspace) -> Command {
    program(workspace, "coffer-lab")
}

fn program(workspace: &Workspace, name: &str) -> Command {
    let mut program = Command::new(workspace.program(name));
    program.env("COFFER_WORKSPACE", workspace.root());
    program
}
