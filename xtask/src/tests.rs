//! `cargo xtask test`: format, lints, every test of the workspace; one line sums them up; then a short run of every
//! fuzz target.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;
use crate::workspace::Workspace;
use crate::{build, check, fuzz, setup};

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
    let counts = progress.own_output("Tests", || {
        let mut cargo = build::cargo(workspace);
        cargo.args(["test", "--release", "--workspace", "--locked", "--no-fail-fast"]);
        if !lab {
            cargo.args(["--exclude", "coffer-lab"]);
        }
        cargo.env("COFFER_WORKSPACE", workspace.root());
        if let Some(filter) = filter {
            cargo.args(["--", filter]);
        }
        let counts = counted(&mut cargo)?;
        Ok((counts, format!("{} passed, {} failed", counts.passed, counts.failed)))
    })?;
    println!("{} passed, {} failed, {} ignored", counts.passed, counts.failed, counts.ignored);
    if counts.failed > 0 || !counts.success {
        bail!("tests failed");
    }
    // Whoever asks for one test does not ask for this.
    if filter.is_none() {
        fuzz::run(workspace, progress, no_install, fuzz::SHORT_RUNS, None)?;
    }
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    success: bool,
}

/// Runs `cargo test`, passes its output through and adds up its `test result:` lines.
fn counted(cargo: &mut Command) -> Result<Counts> {
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `cargo test`")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result:") {
            counts.passed += number_before(result, "passed");
            counts.failed += number_before(result, "failed");
            counts.ignored += number_before(result, "ignored");
        }
    }
    counts.success = child.wait()?.success();
    Ok(counts)
}

fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ';']).filter(|w| !w.is_empty()).collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            [number, found] if *found == word => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod test {
    use super::number_before;

    #[test]
    fn adds_up_what_cargo_prints() {
        let line =
            " ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(number_before(line, "passed"), 12);
        assert_eq!(number_before(line, "failed"), 3);
        assert_eq!(number_before(line, "ignored"), 1);
    }
}
