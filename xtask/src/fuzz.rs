//! `cargo xtask fuzz`: every parser under libFuzzer, each target with a property of its own (fuzz/README.md).
//!
//! The instrumented build needs no nightly compiler: coverage is a stable pass of LLVM, and address
//! sanitising has nothing to find in crates that forbid unsafe code.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, command};

/// Executions of each target in a short run, which every test run has: seconds for all of them, minutes of building.
pub const SHORT_RUNS: u64 = 20_000;
/// Executions of each target in the long run.
const LONG_RUNS: u64 = 10_000_000;
/// A target with a planted defect.
const CANARY: &str = "canary";
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
    progress.step("Fuzz `canary`", |_| canary(workspace))?;
    let (mut findings, mut least) = (0, u64::MAX);
    for target in targets.iter().filter(|target| only.is_none_or(|name| name == *target)) {
        let found = progress.step(&format!("Fuzz `{target}`"), |_| {
            let start = Instant::now();
            let output = fuzz(workspace)
                .args(["run", target])
                .args(OPTIONS)
                .args(seeds(workspace, target))
                .arg("--")
                .arg(format!("-runs={runs}"))
                .arg(format!("-max_len={INPUT_MAX}"))
                .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=10"])
                .output()
                .context("cannot start `cargo fuzz`")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let seconds = start.elapsed().as_secs_f64();
            if output.status.success() {
                let done = executions(&said).context("libFuzzer did not say how much it did")?;
                ensure!(done >= runs, "it ended after {done} of {runs} executions:\n{said}");
                least = least.min(done);
                let speed = done as f64 / seconds.max(0.001);
                let coverage = coverage(&said).map_or_else(String::new, |c| format!(", {c} edges"));
                let line = format!("{done} executions, no finding, {speed:.0}/s{coverage}");
                return Ok((false, line));
            }
            eprintln!("{said}");
            ensure!(said.contains("SUMMARY: libFuzzer"), "`{target}` did not run");
            Ok((true, "FINDING; the input is in fuzz/artifacts".to_owned()))
        })?;
        findings += usize::from(found);
    }
    if findings > 0 {
        bail!("{findings} targets have findings");
    }
    // The bar is on every target.
    if only.is_some() {
        return Ok(());
    }
    let verdict = if least >= LONG_RUNS { "ok" } else { "short" };
    println!("figure fuzz.least_executions {least} executions budget >= {LONG_RUNS} {verdict}");
    Ok(())
}

/// A reader with a planted defect: a fuzzer that misses it finds nothing anywhere.
fn canary(workspace: &Workspace) -> Result<((), String)> {
    let output = fuzz(workspace)
        .args(["run", CANARY])
        .args(OPTIONS)
        .args(["--", "-runs=20000000", "-max_len=64", "-print_final_stats=1"])
        .output()
        .context("cannot start `cargo fuzz`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let found = !output.status.success() && said.contains("the planted defect");
    ensure!(found, "the planted defect was not found, so nothing else would be:\n{said}");
    // Found anew each time: neither what led there nor what it was is kept.
    for kept in ["corpus", "artifacts"] {
        let _ = std::fs::remove_dir_all(workspace.root().join("fuzz").join(kept).join(CANARY));
    }
    let after = executions(&said).map_or_else(String::new, |n| format!(" after {n} executions"));
    Ok(((), format!("its planted defect was found{after}")))
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
    names.retain(|name| name != CANARY);
    names.sort();
    Ok(names)
}

/// The folder libFuzzer keeps what it finds in, then folders of real inputs it only reads.
fn seeds(workspace: &Workspace, target: &str) -> Vec<std::path::PathBuf> {
    let root = workspace.root();
    let own = root.join("fuzz/corpus").join(target);
    let _ = std::fs::create_dir_all(&own);
    let mut folders = vec![own];
    let given = SEEDS.iter().filter(|(targets, ..)| targets.contains(&target));
    for (_, folder, prefix) in given {
        let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let matching = entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
        folders.extend(matching.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    folders
}

/// Which recorded inputs a target begins with: targets, a folder, and how names of folders in it begin.
const SEEDS: [(&[&str], &str, &str); 6] = [
    (&["event_log", "ima", "cel"], ORIGINALS, "eventlog-"),
    (&["evidence"], ORIGINALS, "evidence-"),
    (&["attest", "signature", "public", "quote", "pcr_selection"], ORIGINALS, "quote-"),
    (&["certificate", "chain", "crl", "public"], ORIGINALS, "endorsement-"),
    (&["descriptor"], ORIGINALS, "encoding-"),
    (&["appraise", "evidence"], "attestation/verification/tests/vectors/evidence", "lab-"),
];

const ORIGINALS: &str = "tests/conformance/corpus/originals";

fn executions(said: &str) -> Option<u64> {
    let line =
        said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

/// Edges reached, from the last line that says so.
fn coverage(said: &str) -> Option<u64> {
    let after = said.rsplit_once(" cov: ")?.1;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{coverage, executions};

    #[test]
    fn reads_what_libfuzzer_says() {
        let said = "#2\tINITED cov: 19 ft: 20\n#9\tDONE   cov: 21 ft: 25 corp: 3/9b\n\
                    stat::number_of_executed_units: 9\n";
        assert_eq!((executions(said), coverage(said)), (Some(9), Some(21)));
        assert_eq!((executions("nothing"), coverage("nothing")), (None, None));
    }
}
