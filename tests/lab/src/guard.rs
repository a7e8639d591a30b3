//! The guard: ends and removes what a lab leaves behind when its process dies, by whatever death.
//!
//! A child process reads words from a pipe: what runs, which folders are ours. End of file means its parent is
//! gone (a panic, Ctrl-C, SIGKILL) or done. Then it kills the process groups it knows and removes the folders.
//! It runs in a process group of its own, so that Ctrl-C reaches its parent and not itself.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::workspace;

static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();

/// Starts the guard of this process, once. The pipe stays open until the process is gone.
fn pipe() -> Result<&'static Mutex<ChildStdin>> {
    if let Some(pipe) = PIPE.get() {
        return Ok(pipe);
    }
    let mut child = Command::new(workspace::program("coffer-lab")?)
        .arg("guard")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start the lab's guard")?;
    let stdin = child.stdin.take().context("the lab's guard has no input")?;
    // A race makes two guards; the loser sees end of file at once and knows nothing to end.
    Ok(PIPE.get_or_init(|| Mutex::new(stdin)))
}

fn tell(word: &str) -> Result<()> {
    let mut pipe = pipe()?.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(pipe, "{word}").context("the lab's guard is gone")
}

/// A process group that must not outlive us.
pub fn watch(group: u32) -> Result<()> {
    tell(&format!("watch {group}"))
}

/// That group has ended and its number may be another's.
pub fn forget(group: u32) {
    // A guard that is gone has nothing to forget.
    let _ = tell(&format!("forget {group}"));
}

/// A folder that must not outlive us.
pub fn own(folder: &Path) -> Result<()> {
    tell(&format!("own {}", folder.display()))
}

/// Leave that folder: it is gone, or somebody wants to look at it.
pub fn leave(folder: &Path) {
    // As in `forget`.
    let _ = tell(&format!("leave {}", folder.display()));
}

/// The guard itself: `coffer-lab guard`.
pub fn run(input: impl std::io::BufRead) {
    let mut groups = BTreeSet::new();
    let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
    for line in input.lines().map_while(std::io::Result::ok) {
        match line.split_once(' ') {
            Some(("watch", group)) => groups.extend(group.parse::<i32>()),
            Some(("forget", group)) => {
                if let Ok(group) = group.parse() {
                    groups.remove(&group);
                }
            }
            Some(("own", folder)) => drop(folders.insert(folder.into())),
            Some(("leave", folder)) => drop(folders.remove(Path::new(folder))),
            _ => {}
        }
    }
    for group in groups.iter().filter(|g| **g > 1) {
        let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
    for folder in folders {
        remove_patiently(&folder);
    }
}

/// Something killed a moment ago may still write into the folder.
fn remove_patiently(folder: &Path) {
    for _ in 0..20 {
        if std::fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Reads words from standard input.
pub fn run_on_stdin() {
    run(std::io::stdin().lock());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_folders_it_owns_and_leaves_those_it_was_told_to_leave() {
        let base = tempfile::tempdir().unwrap();
        let (gone, kept) = (base.path().join("gone"), base.path().join("kept"));
        std::fs::create_dir(&gone).unwrap();
        std::fs::create_dir(&kept).unwrap();
        let words = format!("own {0}\nown {1}\nleave {1}\n", gone.display(), kept.display());
        run(std::io::Cursor::new(words));
        assert!(!gone.exists());
        assert!(kept.exists());
    }

    #[test]
    fn ends_a_process_group_it_watches() {
        let mut child = Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        run(std::io::Cursor::new(format!("watch {}\n", child.id())));
        assert!(!child.wait().unwrap().success());
    }
}
