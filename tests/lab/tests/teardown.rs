//! A lab leaves nothing behind, however its process dies: no process that names its folder, and no folder.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use coffer_lab::{collapse, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A lab under test; killed with its owner, and its guard then ends what it started.
struct Lab {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
}

impl Lab {
    fn start(command: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_coffer-lab"))
            .arg(command)
            .env("TMPDIR", folder.path())
            .env_remove("COFFER_KEEP")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, folder }
    }

    fn wait_for(&mut self, said: &str) {
        assert!(self.lines.any(|line| line.unwrap().contains(said)), "it never said `{said}`");
    }

    /// Waits until a process with these words in its command line works in the lab's folder.
    fn wait_for_process(&self, words: &str) -> Pid {
        let (pid, _) = wait::until(words, Duration::from_secs(60), || {
            Ok(processes_below(self.folder.path())
                .into_iter()
                .find(|(_, line)| line.contains(words)))
        })
        .unwrap();
        pid
    }

    /// It dies, and soon nothing is left.
    fn dies(mut self, how: impl FnOnce(&mut Child)) {
        how(&mut self.child);
        assert!(!self.child.wait().unwrap().success());
        let clean = wait::until("the end of the lab's processes", Duration::from_secs(10), || {
            Ok(processes_below(self.folder.path()).is_empty().then_some(()))
        });
        let left = processes_below(self.folder.path());
        for (pid, _) in &left {
            // Gone meanwhile is as well.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        assert!(clean.is_ok(), "left: {left:?}");
        wait::until("an empty folder", Duration::from_secs(10), || {
            Ok(std::fs::read_dir(self.folder.path())?.next().is_none().then_some(()))
        })
        .unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes whose command line names the folder: QEMU, swtpm, `coffer`, and whatever else a lab runs.
fn processes_below(folder: &Path) -> Vec<(Pid, String)> {
    let folder = folder.to_string_lossy().into_owned();
    let found = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&words).replace('\0', " ");
        line.contains(&folder).then_some((Pid::from_raw(pid), line))
    });
    found.collect()
}

/// Lets a demo come as far as a running host, with all that goes with one.
fn running_host(command: &str, said: &str) -> Lab {
    let mut lab = Lab::start(command);
    lab.wait_for(said);
    for program in ["qemu-system-x86_64", "swtpm socket", "coffer verifier serve"] {
        lab.wait_for_process(program);
    }
    lab
}

fn signal(signal: Signal) -> impl FnOnce(&mut Child) {
    move |child| kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap()
}

#[test]
fn nothing_is_left_after_ctrl_c() {
    running_host("demo", "give the key to the verifier").dies(signal(Signal::SIGINT));
}

#[test]
fn nothing_is_left_after_sigkill() {
    running_host("demo", "give the key to the verifier").dies(signal(Signal::SIGKILL));
}

#[test]
fn nothing_is_left_after_a_panic() {
    running_host("collapse", collapse::UP).dies(|child| drop(child.stdin.take()));
}

#[test]
fn nothing_is_left_after_ctrl_c_during_an_image_build() {
    let lab = Lab::start("demo");
    let build = lab.wait_for_process("coffer image build");
    // A build that is stopped does not end by itself while the test looks.
    kill(build, Signal::SIGSTOP).unwrap();
    lab.dies(signal(Signal::SIGINT));
}
