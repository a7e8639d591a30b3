//! The programs of `tests/lab`, started after set-up.

use std::process::Command;

use anyhow::Result;

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{command, debs, setup};

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
    if matches!(name, "launch" | "density" | "vtpm") {
        setup::everything(workspace, progress, no_install)?;
    } else {
        // No lab host boots: programs, but no kernel and no root file systems.
        setup::programs(workspace, progress, no_install)?;
    }
    let rounds = rounds.to_string();
    let mut bench = match name {
        // It counts its allocations, so it is a program of its own.
        "verify" => program(workspace, "coffer-bench-verify"),
        // Nothing in it depends on time.
        "corpus" => program(workspace, "coffer"),
        _ => lab(workspace),
    };
    match name {
        "verify" => bench.args(["--rounds", &rounds]),
        "corpus" => bench.arg("conformance"),
        _ => bench.args(["bench", name, "--rounds", &rounds]),
    };
    progress.own_output(&format!("Bench `{name}`"), || {
        command::loud(&mut bench)?;
        Ok(((), String::new()))
    })
}

/// The recordings of boots that tests judge.
pub fn record_boots(
    workspace: &Workspace,
    progress: &mut Progress,
    no_install: bool,
    paths: &[String],
) -> Result<()> {
    setup::everything(workspace, progress, no_install)?;
    debs::boot_loaders(workspace, progress)?;
    let into = workspace.root().join(BOOT_RECORDINGS);
    progress.own_output("Record boots", || {
        command::loud(lab(workspace).arg("record-boots").arg(&into).args(paths))?;
        Ok(((), String::new()))
    })
}

/// Where tests find them.
const BOOT_RECORDINGS: &str = "attestation/verification/tests/vectors/eventlogs";

fn lab(workspace: &Workspace) -> Command {
    program(workspace, "coffer-lab")
}

fn program(workspace: &Workspace, name: &str) -> Command {
    let mut program = Command::new(workspace.program(name));
    program.env("COFFER_WORKSPACE", workspace.root());
    program
}
