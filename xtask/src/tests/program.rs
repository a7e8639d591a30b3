//! Test programs: built by one cargo call, then run as they are.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::counts::Counts;
use crate::progress::Step;
use crate::workspace::Workspace;
use crate::{build, command};

/// The package whose tests boot hosts.
const LAB: &str = "tests/lab";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Name of the target.
    name: String,
    /// The program.
    path: PathBuf,
    /// Folder of its package, in which it runs.
    folder: PathBuf,
}

/// Builds those of the whole workspace, or of all but the lab.
pub fn build(workspace: &Workspace, step: &Step, lab: bool) -> Result<Vec<Program>> {
    let mut cargo = build::cargo(workspace);
    cargo.args(test_command(lab)).args(["--no-run", "--message-format=json-render-diagnostics"]);
    let said = command::quiet_output(step, &mut cargo)?;
    let programs: Vec<Program> = said.lines().filter_map(program).collect();
    if programs.is_empty() {
        bail!("cargo built no test programs");
    }
    Ok(programs)
}

fn test_command(lab: bool) -> Vec<&'static str> {
    let mut words = vec!["test", "--release", "--workspace", "--locked"];
    if !lab {
        words.extend(["--exclude", "coffer-lab"]);
    }
    words
}

/// The test program that a message of cargo's tells of, if it tells of one.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    let of = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
    let test = message.pointer("/profile/test")? == true;
    let folder = Path::new(of("/manifest_path")?).parent()?.to_path_buf();
    let (name, path) = (of("/target/name")?.to_owned(), of("/executable")?.into());
    test.then_some(Program { name, path, folder })
}

impl Program {
    /// True of those that boot hosts, and of the lab's unit tests.
    pub fn is_of_lab(&self) -> bool {
        self.folder.ends_with(LAB)
    }

    /// True of the one that takes longest by far.
    pub fn is_lab(&self) -> bool {
        self.is_of_lab() && self.name == "lab"
    }

    /// Runs it; its lines are passed through and added up.
    pub fn run(&self, workspace: &Workspace, filter: Option<&str>) -> Result<Counts> {
        println!("     Running {} ({})", self.name, self.folder.display());
        // What boots hosts has limits by the clock, and goes first.
        let mut test = Command::new("nice");
        test.args(["-n", if self.is_of_lab() { "0" } else { "5" }]).arg(&self.path);
        test.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        test.env("COFFER_WORKSPACE", workspace.root()).args(filter);
        counted(&self.name, &mut test)
    }
}

/// Tests in documentation, which only rustdoc runs.
pub fn documentation(workspace: &Workspace, lab: bool, filter: Option<&str>) -> Result<Counts> {
    let mut cargo = build::cargo(workspace);
    cargo.args(test_command(lab)).args(["--no-fail-fast", "--doc"]);
    if let Some(filter) = filter {
        cargo.args(["--", filter]);
    }
    counted("documentation", &mut cargo)
}

fn counted(name: &str, test: &mut Command) -> Result<Counts> {
    let started = test.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("cannot start `{name}`"))?;
    let output = child.stdout.take().context("a test has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.line(&line);
    }
    if !child.wait()?.success() {
        println!("error: `{name}` did not end well");
        counts.broken.push(name.to_owned());
    }
    Ok(counts)
}

#[cfg(test)]
mod test {
    use std::path::Path;
    use std::process::Command;

    use super::{counted, program};

    #[test]
    fn a_test_program_is_told_from_others() {
        let message = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/a/tests/lab/Cargo.toml","target":{{"name":"lab"}},"profile":{{"test":{test}}},"executable":"/b/lab-1"}}"#
            )
        };
        let lab = program(&message(true)).expect("a test program");
        assert!(lab.is_lab() && lab.path == Path::new("/b/lab-1"));
        assert_eq!(program(&message(false)), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn one_that_dies_without_a_word_is_broken() {
        let silent = |script: &str| counted("it", Command::new("sh").args(["-c", script]));
        assert_eq!(silent("exit 1").expect("counts").broken, ["it"]);
        assert!(silent("exit 0").expect("counts").broken.is_empty());
    }
}
