//! The build: the workspace, and `coffer-init` once more as a static program.

use std::path::PathBuf;
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
        let mut build = cargo(workspace);
        build.args(["build", "--profile", "guest", "--locked", "-p", "coffer-init"]);
        build.args(["--target", GUEST_TARGET]).env("RUSTFLAGS", guest_flags(workspace));
        command::quiet(step, &mut build)?;
        Ok(((), String::new()))
    })
}

/// A static program needs no loader and no libraries in the initrd it is PID 1 of. Its bytes are part of
/// every image ID, so the folders of this machine must not be part of its bytes.
fn guest_flags(workspace: &Workspace) -> String {
    let root = workspace.root().display();
    let mut flags = format!("-C target-feature=+crt-static --remap-path-prefix={root}=/coffer");
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    if let Some(cargo_home) = cargo_home.or_else(home) {
        flags += &format!(" --remap-path-prefix={}=/cargo", cargo_home.display());
    }
    flags
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
