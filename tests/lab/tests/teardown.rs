//! A lab leaves nothing behind, however its process dies.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use coffer_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts the demo, lets it come as far as a running host, ends it by `signal`, and looks for remains.
fn check(signal: Signal) {
    let base = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_coffer-lab"))
        .arg("demo")
        .env("TMPDIR", base.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("give the key to the verifier")));
    let qemu = wait::until("the host", Duration::from_secs(30), || Ok(process_below(base.path())))
        .unwrap();

    kill(Pid::from_raw(demo.id().cast_signed()), signal).unwrap();
    assert!(!demo.wait().unwrap().success());
    wait::until("the end of the host", Duration::from_secs(10), || {
        Ok((!Path::new("/proc").join(&qemu).exists()).then_some(()))
    })
    .unwrap();
    wait::until("an empty folder", Duration::from_secs(10), || {
        Ok(std::fs::read_dir(base.path())?.next().is_none().then_some(()))
    })
    .unwrap();
    assert_eq!(process_below(base.path()), None, "a process of the lab is left");
}

/// The number of a QEMU whose command line names this folder.
fn process_below(folder: &Path) -> Option<PathBuf> {
    let folder = folder.to_string_lossy().into_owned();
    let found = std::fs::read_dir("/proc").unwrap().flatten().find(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        words.starts_with("qemu-system") && words.contains(&folder)
    })?;
    Some(found.file_name().into())
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    check(Signal::SIGINT);
}

#[test]
fn nothing_is_left_after_sigkill() {
    check(Signal::SIGKILL);
}
