//! `cargo xtask check`: format, lints, dependency rules, and the house's own small lints.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, command};

/// Trusted lines: monitor and attestation as used there, without tests. TrustVisor had 5.3 k, Firecracker has about 100 k; what one
/// person can review in a week or two lies here.
const TRUSTED_MAX: usize = 12_000;
/// Folders whose code is trusted on a host. Of `attestation/` a host links the formats; what judges them runs
/// at the verifier.
const TRUSTED: [&str; 2] = ["monitor", "attestation/formats"];
/// What a host trusts as well and is not in that figure: stores and services beside the monitor.
const BESIDE: [&str; 2] = ["disks", "services"];
/// Top folders that hold code of ours.
const CODE: [&str; 11] = [
    "attestation",
    "cli",
    "disks",
    "guest",
    "images",
    "monitor",
    "policies",
    "services",
    "tests",
    "verifier",
    "xtask",
];

/// Everything; needs no lab, and the network only to install cargo-deny.
pub fn all(workspace: &Workspace, progress: &mut Progress, no_install: bool) -> Result<()> {
    if no_install && !deny_is_there() {
        bail!("cargo-deny is not installed; try: {INSTALL_DENY}");
    }
    format(workspace, progress)?;
    house(workspace, progress)?;
    clippy(workspace, progress)?;
    dependencies(workspace, progress)
}

/// True if the dependency rules can be checked.
pub fn deny_is_there() -> bool {
    Command::new("cargo-deny").arg("--version").output().is_ok_and(|o| o.status.success())
}

/// How it gets there.
pub const INSTALL_DENY: &str = "cargo install cargo-deny --locked --version 0.20.2";

/// `cargo fmt --check`.
fn format(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    progress.step("Format", |step| {
        command::quiet(step, build::cargo(workspace).args(["fmt", "--all", "--check"]))?;
        Ok(((), String::new()))
    })
}

/// Clippy with every warning an error.
fn clippy(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    progress.step("Clippy", |step| {
        command::quiet(
            step,
            build::cargo(workspace).args([
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ]),
        )?;
        Ok(((), String::new()))
    })
}

fn dependencies(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    progress.step("Dependency rules", |step| {
        if !deny_is_there() {
            let words = INSTALL_DENY.split(' ').skip(1);
            command::quiet(step, build::cargo(workspace).args(words))?;
        }
        command::quiet(
            step,
            build::cargo(workspace).args([
                "deny",
                "--offline",
                "check",
                "bans",
                "licenses",
                "sources",
            ]),
        )?;
        Ok(((), "bans, licenses, sources".to_owned()))
    })
}

/// Module heads, notes on unsafe blocks, no machine paths, the size of what is trusted.
fn house(workspace: &Workspace, progress: &mut Progress) -> Result<()> {
    progress.step("House lints", |_| {
        let mut files = Vec::new();
        for folder in CODE {
            rust_files(&workspace.root().join(folder), &mut files)?;
        }
        let mut findings = Vec::new();
        let (mut trusted, mut beside) = (0, [0; BESIDE.len()]);
        for file in &files {
            let text = std::fs::read_to_string(file)?;
            let name = file.strip_prefix(workspace.root()).unwrap_or(file);
            findings.extend(findings_in(name, &text));
            let lines = if in_tests(name) { 0 } else { code_lines(&text) };
            if TRUSTED.iter().any(|folder| name.starts_with(folder)) {
                trusted += lines;
            }
            for (folder, sum) in BESIDE.iter().zip(&mut beside) {
                *sum += if name.starts_with(folder) { lines } else { 0 };
            }
        }
        let verdict = if trusted > TRUSTED_MAX { "short" } else { "ok" };
        println!("figure lines.trusted {trusted} lines budget <= {TRUSTED_MAX} {verdict}");
        let apart = BESIDE.iter().zip(beside).map(|(folder, sum)| format!("{folder}/ {sum}"));
        let apart = apart.collect::<Vec<_>>().join(", ");
        println!("      a host also trusts, not in that figure: {apart} lines");
        if trusted > TRUSTED_MAX {
            findings.push(format!("{trusted} trusted lines are more than {TRUSTED_MAX}"));
        }
        for finding in &findings {
            eprintln!("      {finding}");
        }
        if !findings.is_empty() {
            bail!("{} findings", findings.len());
        }
        Ok(((), format!("{} files, {trusted} trusted lines (<= {TRUSTED_MAX})", files.len())))
    })
}

fn findings_in(name: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let shown = name.display();
    if !text.starts_with("//!") {
        findings.push(format!("{shown}: no module head (`//!`) in the first line"));
    }
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let number = at + 1;
        let code = line.split("//").next().unwrap_or_default();
        // Our own examples of what to look for must not look like it.
        let machine_paths = [concat!("/ho", "me/"), concat!("/wo", "rk/"), concat!("/ro", "ot/")];
        if machine_paths.iter().any(|path| starts_path(line, path)) {
            findings.push(format!("{shown}:{number}: a path of one machine"));
        }
        if code.contains(concat!("unsafe", " {")) && !has_safety_note(&lines, at) {
            findings
                .push(format!("{shown}:{number}: unsafe block without a `SAFETY:` note above it"));
        }
    }
    findings
}

/// True if `start` stands in the line as the beginning of a path, not further down in one.
fn starts_path(line: &str, start: &str) -> bool {
    let before = |at: usize| line.get(..at).and_then(|head| head.chars().next_back());
    line.match_indices(start)
        .any(|(at, _)| !before(at).is_some_and(|c| c.is_alphanumeric() || c == '.' || c == '}'))
}

/// The note stands in the comment block right above, or above the statement the block is part of.
fn has_safety_note(lines: &[&str], at: usize) -> bool {
    lines
        .get(at.saturating_sub(8)..=at)
        .unwrap_or_default()
        .iter()
        .any(|line| line.contains("SAFETY:"))
}

/// True for what no host runs: tests, and the doubles and tools that tests start.
fn in_tests(name: &Path) -> bool {
    let apart = |part: &std::ffi::OsStr| part == "tests" || part == "examples";
    name.components().any(|part| apart(part.as_os_str())) || name.ends_with("tests.rs")
}

/// Lines of code up to the first test module, without blank and comment lines.
fn code_lines(text: &str) -> usize {
    text.lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    into.sort();
    Ok(())
}
