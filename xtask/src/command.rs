//! Running other programs: quietly with the last line shown, or with their output passed through.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context as _, Result, bail};

use crate::progress::Step;

/// Lines of output shown when a program fails.
const TAIL: usize = 40;

/// Runs a program, shows its latest line in the step, and its last lines if it fails.
pub fn quiet(step: &Step, command: &mut Command) -> Result<Vec<String>> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let (sender, receiver) = mpsc::channel();
    let pipes: [Option<Box<dyn std::io::Read + Send>>; 2] = [
        child.stdout.take().map(|p| Box::new(p) as _),
        child.stderr.take().map(|p| Box::new(p) as _),
    ];
    for pipe in pipes.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let mut tail = VecDeque::new();
    for line in receiver {
        step.note(&line);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{name}`"))?;
    if !status.success() {
        for line in &tail {
            eprintln!("      {line}");
        }
        bail!("`{name}` failed ({status})");
    }
    Ok(tail.into())
}

/// Runs a program, shows the latest line of its standard error in the step and the last ones if it fails; its standard
/// output.
pub fn quiet_output(step: &Step, command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let output = std::thread::spawn(move || out.map(std::io::read_to_string).transpose());
    let mut tail = VecDeque::new();
    for line in BufReader::new(err.context("no standard error")?).lines().map_while(Result::ok) {
        step.note(&line);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{name}`"))?;
    if !status.success() {
        tail.iter().for_each(|line| eprintln!("      {line}"));
        bail!("`{name}` failed ({status})");
    }
    let read = output.join().ok().context("the reader of its output panicked")?;
    read.with_context(|| format!("cannot read what `{name}` prints"))?.context("no standard output")
}

/// Runs a program with its output passed through to ours.
pub fn loud(command: &mut Command) -> Result<()> {
    let name = name_of(command);
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// Standard output of a program that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = name_of(command);
    let got =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{name}`"))?;
    if !got.status.success() {
        bail!("`{name}` failed ({}): {}", got.status, String::from_utf8_lossy(&got.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&got.stdout).into_owned())
}

fn name_of(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args().take(2) {
        name.push(' ');
        name.push_str(&argument.to_string_lossy());
    }
    name
}
