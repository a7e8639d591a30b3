//! `cargo xtask fuzz`: every parser under libFuzzer, each target with a property of its own (fuzz/README.md).
//!
//! The instrumented build needs no nightly compiler: coverage is a stable pass of LLVM, and address
//! sanitising has nothing to find in crates that forbid unsafe code. What is built once is run as it is:
//! `cargo fuzz run` would build again whenever a source is edited during a run of hours.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, command};

mod outcome;
mod seeds;

use outcome::{Done, Outcome};

/// Executions of each target in a short run, which every test run has: seconds for most of them, minutes of building.
pub const SHORT_RUNS: u64 = 20_000;
/// Executions of each target in the long run.
const LONG_RUNS: u64 = 10_000_000;
/// A target with a planted defect.
const CANARY: &str = "canary";
/// Executions in which the planted defect has to be found: it takes 20,000 to 300,000, and half a minute at most.
const CANARY_RUNS: u64 = 20_000_000;

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
        let folder = target_folder(workspace);
        let mut build = fuzz(workspace);
        build.args(["build", "--release", "--sanitizer", "none"]);
        build.args(["--target", &triple(), "--target-dir"]).arg(folder);
        command::quiet(step, &mut build)?;
        Ok(((), format!("{} targets", targets.len())))
    })?;
    progress.step("Seeds of the fuzz targets", |_| {
        let count = seeds::gather(workspace)?;
        Ok(((), format!("{count} recorded inputs")))
    })?;
    progress.step("Fuzz `canary`", |_| canary(workspace))?;
    let (mut findings, mut least) = (0, u64::MAX);
    for target in targets.iter().filter(|target| only.is_none_or(|name| name == *target)) {
        let done = progress.step(&format!("Fuzz `{target}`"), |_| one(workspace, target, runs))?;
        match done {
            Some(done) => least = least.min(done.executions),
            None => findings += 1,
        }
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

/// Runs one target; none is a finding. One that dies otherwise, or does less than asked, is an error.
fn one(workspace: &Workspace, target: &str, runs: u64) -> Result<(Option<Done>, String)> {
    let corpus = workspace.root().join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).context("cannot make the folder of the corpus")?;
    let mut folders = vec![corpus];
    folders.extend(Some(seeds::folder(workspace, target)).filter(|folder| folder.is_dir()));
    let start = Instant::now();
    let (outcome, said) = execute(workspace, target, runs, &folders)?;
    match outcome {
        Outcome::Done(done) => {
            let Done { executions, edges } = done;
            let speed = executions as f64 / start.elapsed().as_secs_f64().max(0.001);
            let line = format!("{executions} executions, no finding, {speed:.0}/s, {edges} edges");
            Ok((Some(done), line))
        }
        Outcome::Finding => {
            eprintln!("{said}");
            Ok((None, "FINDING; the input is in fuzz/artifacts".to_owned()))
        }
    }
}

/// A reader with a planted defect: a fuzzer that misses it finds nothing anywhere.
fn canary(workspace: &Workspace) -> Result<((), String)> {
    let (outcome, said) = execute(workspace, CANARY, CANARY_RUNS, &[])?;
    let found = matches!(outcome, Outcome::Finding) && said.contains("the planted defect");
    ensure!(found, "the planted defect was not found, so nothing else would be:\n{said}");
    // Found anew each time: what it was is not kept.
    let _ = std::fs::remove_dir_all(artifacts(workspace, CANARY));
    let after = outcome::executions(&said).map_or_else(String::new, |n| format!(" after {n}"));
    Ok(((), format!("its planted defect was found{after}")))
}

/// Runs a built target over folders of inputs, of which the first takes what is new.
fn execute(
    workspace: &Workspace,
    target: &str,
    runs: u64,
    folders: &[PathBuf],
) -> Result<(Outcome, String)> {
    let artifacts = artifacts(workspace, target);
    std::fs::create_dir_all(&artifacts).context("cannot make the folder of findings")?;
    let binary = target_folder(workspace).join(triple()).join("release").join(target);
    let output = Command::new(&binary)
        .args(folders)
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-runs={runs}"))
        .arg(format!("-max_len={}", longest(target)))
        // By the clock of a machine that others may use: half a minute is a hang there too.
        .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=30"])
        .output()
        .with_context(|| format!("cannot start `{}`", binary.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let outcome = outcome::read(output.status.success(), &said, runs)
        .with_context(|| format!("`{target}` ({}):\n{said}", output.status))?;
    Ok((outcome, said))
}

/// Most bytes of an input. Short inputs run faster, and what is beyond a limit is one case, not many: a
/// structure of a TPM has its largest size and some; a target that edits takes eight edits of four bytes.
fn longest(target: &str) -> u32 {
    match target {
        "appraise" | "backup" | "canary" | "enrolment" | "fleet_key" | "key_file" | "quote"
        | "sealed_data" | "sealed_key" | "vault_records" | "verity" | "volume" => 64,
        "ecdsa_p256" | "superblock" | "tpm_bus" => 96,
        // Programs of 24 steps, of which most take four bytes.
        device if device.starts_with("device_") => 96,
        "pcr_selection" | "volume_record" => 128,
        "permit" => 256,
        // 40 messages of nine bytes.
        "counters" => 384,
        "attest" => 512,
        "signature" => 640,
        "event_bodies" | "peer" | "response" | "statements" => 1024,
        // A public area has 1024 at most, and a proof 32 digests.
        "credential" | "inclusion" | "public" => 1200,
        // Recorded certificates, lists and JSON have 300 to 1100.
        "appliance" | "authenticode" | "certificate" | "chain" | "crl" | "descriptor"
        | "evidence" | "ima" | "known_vm" | "layout" | "messages" | "vault_requests" => 2048,
        "explain" => 2100,
        // Recorded logs have 1 to 5 KiB, but for one.
        "event_log" => 6144,
        _ => 4096,
    }
}

fn artifacts(workspace: &Workspace, target: &str) -> PathBuf {
    workspace.root().join("fuzz/artifacts").join(target)
}

fn target_folder(workspace: &Workspace) -> PathBuf {
    workspace.root().join("fuzz/target")
}

fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

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
