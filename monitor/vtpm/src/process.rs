//! The swtpm process: spawned with its control socket as standard input, ended with its owner.
//!
//! No path leads to it: the control channel is a socket pair, the data channel another, its state a fresh
//! directory of mode 0700 that is removed with it. `--terminate` makes swtpm end when the data channel is
//! closed, so it also ends when the VM process does, or when the monitor is killed: nobody else holds it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::VtpmError;
use crate::control::Control;
use crate::stages::Initialised;

/// How to start a swtpm.
#[derive(Debug, Clone)]
pub struct SwtpmConfig {
    /// The `swtpm` program.
    pub program: PathBuf,
    /// Directory for its state; absolute, must not exist yet.
    pub state: PathBuf,
}

/// A running swtpm whose TPM is not initialised.
pub struct Swtpm {
    pub(crate) process: Process,
    pub(crate) control: Control,
}

impl Swtpm {
    /// Starts one.
    pub fn spawn(config: &SwtpmConfig) -> Result<Self, VtpmError> {
        let state = StateDir::create(&config.state)?;
        let spawn_failed =
            |source| VtpmError::Spawn { program: config.program.display().to_string(), source };
        let (ours, theirs) = UnixStream::pair().map_err(spawn_failed)?;
        let child = Command::new(&config.program)
            .args([
                "socket",
                "--tpm2",
                "--terminate",
                "--ctrl",
                "type=unixio,clientfd=0",
                "--tpmstate",
            ])
            .arg(format!("dir={},mode=0600", config.state.display()))
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(spawn_failed)?;
        let process = Process { child, _state: state };
        let control = Control::new(ours).map_err(spawn_failed)?;
        Ok(Self { process, control })
    }

    /// Process id, for the monitor's record of what it started.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Checks the program, connects the data channel, leaves SHA-256 as the only bank, and starts the TPM.
    pub fn initialise(self) -> Result<Initialised, VtpmError> {
        Initialised::new(self)
    }
}

/// The version line of a swtpm program.
pub fn version(program: &Path) -> io::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The line goes into the host claims, whose size is limited.
    Ok(text.lines().next().unwrap_or_default().chars().take(64).collect())
}

/// The child and what lives as long as it does. Dropping it kills the process, then removes its state.
pub(crate) struct Process {
    child: Child,
    _state: StateDir,
}

impl Process {
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct StateDir(PathBuf);

impl StateDir {
    fn create(path: &Path) -> Result<Self, VtpmError> {
        // `create` without `recursive` refuses a directory that exists: state is never taken over.
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|source| VtpmError::State { path: path.display().to_string(), source })?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Seeds are in here. A directory that cannot be removed is found at the monitor's next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}
