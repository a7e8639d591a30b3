//! `cargo xtask fuzz`: every parser under libFuzzer, each target with a property of its own (fuzz/README.md).
//!
//! The instrumented build needs no nightly compiler: coverage is a stable pass of LLVM, and address
//! sanitising has nothing to find in crates that forbid unsafe code.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, command};

/// Executions of each target in a short run: seconds for all of them, minutes of building.
pub const SHORT_RUNS: u64 = 200_000;
/// Most bytes of an input: evidence may have 1 MiB, and what is interesting about it fits in less.
const INPUT_MAX: &str = "16384";

/// Runs `runs` executions of each target, or of the one named. Corpora of earlier runs are gone on with.
pub fn run(
    workspace: &Workspace,
    progress: &mut Progress,
    no_install: bool,
    runs: u64,
    only: Option<&str>,
) -> Result<()> {
    tool(workspace, progress, no_install)?;
    let targets = targets(workspace)?;
    if let Some(name) = only.filter(|name| !targets.iter().any(|target| target == name)) {
        bail!("there is no target `{name}`; there are {}", targets.join(", "));
    }
    progress.step("Build the fuzz targets", |step| {
        command::quiet(step, fuzz(workspace).args(["build"]).args(OPTIONS))?;
        Ok(((), format!("{} targets", targets.len())))
    })?;
    let mut findings = 0;
    for target in targets.iter().filter(|target| only.is_none_or(|name| name == *target)) {
        let found = progress.step(&format!("Fuzz `{target}`"), |_| {
            let start = Instant::now();
            let output = fuzz(workspace)
                .args(["run", target])
                .args(OPTIONS)
                .args(seeds(workspace, target))
                .arg("--")
                .arg(format!("-runs={runs}"))
                .args([format!("-max_len={INPUT_MAX}").as_str(), "-verbosity=0"])
                .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=10"])
                .output()
                .context("cannot start `cargo fuzz`")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let seconds = start.elapsed().as_secs_f64();
            if output.status.success() {
                let done = executions(&said).unwrap_or(runs);
                let speed = done as f64 / seconds.max(0.001);
                return Ok((false, format!("{done} executions, no finding, {speed:.0}/s")));
            }
            eprintln!("{said}");
            Ok((true, "FINDING; the input is in fuzz/artifacts".to_owned()))
        })?;
        findings += usize::from(found);
    }
    if findings > 0 { bail!("{findings} targets have findings") } else { Ok(()) }
}

/// A release build without a sanitizer: those need a nightly compiler.
const OPTIONS: [&str; 3] = ["--release", "--sanitizer", "none"];

fn fuzz(workspace: &Workspace) -> Command {
    let mut cargo = build::cargo(workspace);
    cargo.arg("fuzz");
    cargo
}

fn tool(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    let there = fuzz(workspace).arg("--version").output().is_ok_and(|o| o.status.success());
    match (there, no_install) {
        (true, _) => Ok(()),
        (false, true) => {
            bail!("cargo-fuzz is not installed; try: cargo install cargo-fuzz --locked")
        }
        (false, false) => progress.step("cargo-fuzz", |step| {
            let mut install = build::cargo(workspace);
            command::quiet(step, install.args(["install", "cargo-fuzz", "--locked"]))?;
            Ok(((), "installed".to_owned()))
        }),
    }
}

fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).context("cannot list the fuzz targets")? {
        let path = entry?.path();
        if let Some(stem) = path.file_stem().filter(|_| path.extension().is_some_and(|e| e == "rs"))
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The folder libFuzzer keeps what it finds in, then folders of real inputs it only reads.
fn seeds(workspace: &Workspace, target: &str) -> Vec<std::path::PathBuf> {
    let root = workspace.root();
    let own = root.join("fuzz/corpus").join(target);
    let _ = std::fs::create_dir_all(&own);
    let given = root.join("fuzz/seeds").join(target);
    [own].into_iter().chain(given.is_dir().then_some(given)).collect()
}

fn executions(said: &str) -> Option<u64> {
    let line =
        said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}
