//! The swtpm process: spawned with its control socket as standard input, ended with its owner.
//!
//! No path leads to it: the control channel is a socket pair, the data channel another, its state a fresh
//! directory of mode 0700 that is removed with it. `--terminate` makes swtpm end when the data channel is
//! closed, so it also ends when the VM process does, or when the monitor is killed: nobody else holds it.
//!
//! Where its state does not fit on the disk, swtpm's answers say "failure" and no more; why stands on its
//! standard error, and the last of that goes into the error.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};

use zeroize::Zeroizing;

use crate::VtpmError;
use crate::control::Control;

/// How to start a swtpm.
#[derive(Debug, Clone)]
pub struct SwtpmConfig {
    /// The `swtpm` program.
    pub program: PathBuf,
    /// Directory for its state; absolute, must not exist yet.
    pub state: PathBuf,
    /// The state it is to have, authentic and the newest there is; a fresh one if none.
    pub restored: Option<Zeroizing<Vec<u8>>>,
    /// What stands around it.
    pub walls: Walls,
}

/// What stands between a swtpm that a guest took over and the host.
#[derive(Debug, Clone)]
pub enum Walls {
    /// It is started by way of this program's `confine`, which gives it a uid and a root directory of its own.
    Around {
        /// The `coffer-vmm` program.
        confiner: PathBuf,
        /// Its uid.
        uid: u32,
        /// Starts it where it sees no other process.
        spawn: fn(&mut Command) -> io::Result<Child>,
    },
    /// None: for tests of swtpm alone.
    DangerouslyNone,
}

impl SwtpmConfig {
    /// The command, and what its state directory is called where it runs.
    fn command(&self) -> (Command, &Path) {
        match &self.walls {
            Walls::Around { confiner, uid, .. } => {
                let mut command = Command::new(confiner);
                command.arg("confine").arg(uid.to_string()).arg(&self.state).arg(&self.program);
                (command, Path::new("/state"))
            }
            Walls::DangerouslyNone => (Command::new(&self.program), &self.state),
        }
    }

    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        match &self.walls {
            Walls::Around { spawn, .. } => spawn(command),
            Walls::DangerouslyNone => command.spawn(),
        }
    }
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
        if let Some(restored) = &config.restored {
            state.put(restored, &config.walls)?;
        }
        let spawn_failed = |e| VtpmError::Spawn(config.program.clone(), e);
        let (ours, theirs) = UnixStream::pair().map_err(spawn_failed)?;
        let (mut command, folder) = config.command();
        command
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--ctrl", "type=unixio,clientfd=0", "--tpmstate"])
            .arg(format!("dir={},mode=0600", folder.display()))
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = config.spawn(&mut command).map_err(spawn_failed)?;
        let errors = child.stderr.take();
        let restored = config.restored.is_some();
        let mut process = Process { child, errors: None, restored, state };
        process.errors = errors.map(follow).transpose().map_err(spawn_failed)?;
        let control = Control::new(ours).map_err(spawn_failed)?;
        Ok(Self { process, control })
    }

    /// Process id, for the monitor's record of what it started.
    pub fn pid(&self) -> u32 {
        self.process.pid()
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
    /// Ends with the child and gives the last it said.
    errors: Option<JoinHandle<Vec<u8>>>,
    /// It had a life before this one.
    pub(crate) restored: bool,
    state: StateDir,
}

/// The state and the copy of it that swtpm writes before each change fit into this many bytes.
const STATE_ROOM: u64 = 64 << 10;
/// Bytes kept of swtpm's standard error: its volume may be in a guest's hands.
const ERRORS_MAX: usize = 2048;
/// Characters of a line that end up in an error.
const LINE_MAX: usize = 256;

impl Process {
    /// Adds to a failure why swtpm failed. Ends it: what it said is whole only then.
    pub(crate) fn explain(&mut self, error: VtpmError) -> VtpmError {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let errors = self.errors.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let step = match reason(&String::from_utf8_lossy(&errors)) {
            Some(said) => VtpmError::Said(Box::new(error), said),
            None => error,
        };
        match self.state.free() {
            Some(free) if free < STATE_ROOM => {
                VtpmError::NoSpace(Box::new(step), self.state.0.clone())
            }
            _ => step,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

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

/// Reads a standard error to its end and keeps the last bytes.
fn follow(mut stream: impl Read + Send + 'static) -> io::Result<JoinHandle<Vec<u8>>> {
    thread::Builder::new().name("swtpm".into()).spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            kept.extend_from_slice(buffer.get(..n).unwrap_or_default());
            kept.drain(..kept.len().saturating_sub(ERRORS_MAX));
        }
        kept
    })
}

/// The first line that is swtpm's own, or else libtpms': the ones after it tell what came of it.
fn reason(errors: &str) -> Option<String> {
    let from = |who: &str| errors.lines().find_map(|line| line.strip_prefix(who));
    let line = from("swtpm: ").or_else(|| from("libtpms/tpm2: "))?.trim();
    let printable = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    Some(line.chars().take(LINE_MAX).map(printable).collect())
}

struct StateDir(PathBuf);

/// What swtpm calls the file of its state.
pub const STATE_FILE: &str = "tpm2-00.permall";

impl StateDir {
    /// Gives swtpm a state to start from.
    fn put(&self, restored: &[u8], walls: &Walls) -> Result<(), VtpmError> {
        let path = self.0.join(STATE_FILE);
        let put = fs::write(&path, restored).and_then(|()| match walls {
            Walls::Around { uid, .. } => chown(&path, Some(*uid), Some(*uid)),
            Walls::DangerouslyNone => Ok(()),
        });
        put.map_err(|e| VtpmError::State(path, e))
    }

    /// Bytes left where it lies.
    fn free(&self) -> Option<u64> {
        let space = rustix::fs::statvfs(&self.0).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn create(path: &Path) -> Result<Self, VtpmError> {
        // `create` without `recursive` refuses a directory that exists: state is never taken over.
        DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|e| VtpmError::State(path.to_owned(), e))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Seeds are in here. A directory that cannot be removed is found at the monitor's next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}
