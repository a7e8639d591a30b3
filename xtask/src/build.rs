//! The build: the workspace, and `coffer-init` once more as a static program.

use std::process::Command;

use anyhow::Result;

use crate::command;
use crate::progress::Progress;
use crate::workspace::{GUEST_TARGET, Workspace};

/// Builds everything that demo, tests and benchmarks run.
pub fn everything(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    progress.step("Build the workspace", |step| {
        command::quiet(
            step,
            cargo(workspace).args(["build", "--release", "--workspace", "--locked"]),
        )?;
        Ok(((), String::new()))
    })?;
    progress.step("Build coffer-init, static", |step| {
        // A static program needs no loader and no libraries in the initrd it is PID 1 of.
        command::quiet(
            step,
            cargo(workspace)
                .args([
                    "build",
                    "--release",
                    "--locked",
                    "-p",
                    "coffer-init",
                    "--target",
                    GUEST_TARGET,
                ])
                .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        )?;
        Ok(((), String::new()))
    })
}

/// Cargo, in the checkout.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace.root());
    // The outer cargo's idea of which package runs must not reach the inner one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_")
            || name == "CARGO_MANIFEST_DIR"
            || name == "CARGO_MANIFEST_PATH"
        {
            cargo.env_remove(name.as_ref());
        }
    }
    cargo
}
