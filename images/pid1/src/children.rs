//! Children of PID 1: starting one in its own session, and reaping every orphan of the machine.

use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Error;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It returned this status.
    Status(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Ended {
    /// True for status 0.
    pub fn is_success(self) -> bool {
        self == Self::Status(0)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A child that was reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Its process id.
    pub pid: i32,
    /// How it ended.
    pub ended: Ended,
}

/// Starts a program in a session of its own, with default signals, the given environment and no other,
/// and the caller's standard streams. Every other descriptor must be close-on-exec, as std's are.
///
/// posix_spawn rather than `Command`, because `setsid` in a `Command` child would need unsafe code.
pub fn spawn_session(argv: &[String], env: &[String]) -> Result<i32, Error> {
    let program = argv.first().map(String::as_str).unwrap_or_default();
    let fail = |source: io::Error| Error::Child { step: "start", program: program.into(), source };
    if !Path::new(program).is_absolute() {
        return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute")));
    }
    let argv = c_strings(argv).map_err(fail)?;
    let env = c_strings(env).map_err(fail)?;
    let spawn = || -> nix::Result<Pid> {
        let mut attributes = PosixSpawnAttr::init()?;
        // Rust ignores SIGPIPE in its own process; a workload must not inherit that.
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
                | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
                | PosixSpawnFlags::from_bits_retain(nix::libc::POSIX_SPAWN_SETSID.into()),
        )?;
        posix_spawn(program, &PosixSpawnFileActions::init()?, &attributes, &argv, &env)
    };
    spawn().map(Pid::as_raw).map_err(|errno| fail(errno.into()))
}

/// Blocks until some child ends. `None` if there is none left.
pub fn reap() -> Result<Option<Reaped>, Error> {
    reap_with(None)
}

/// Reaps one child that has ended already, without blocking. `None` if there is none.
pub fn try_reap() -> Result<Option<Reaped>, Error> {
    reap_with(Some(WaitPidFlag::WNOHANG))
}

/// Sends a signal to every process of the session leader's group; one that is gone is no error.
pub fn signal_group(leader: i32, signal: Signal) -> Result<(), Error> {
    signal_pid(Pid::from_raw(-leader), signal)
}

/// Sends a signal to every process but PID 1. Only for PID 1 on its way out.
pub fn signal_all(signal: Signal) -> Result<(), Error> {
    signal_pid(Pid::from_raw(-1), signal)
}

fn signal_pid(pid: Pid, signal: Signal) -> Result<(), Error> {
    match kill(pid, signal) {
        Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
        Err(errno) => {
            Err(Error::Child { step: "signal", program: pid.to_string(), source: errno.into() })
        }
    }
}

fn reap_with(flags: Option<WaitPidFlag>) -> Result<Option<Reaped>, Error> {
    loop {
        match waitpid(None, flags) {
            Ok(WaitStatus::Exited(pid, status)) => {
                return Ok(Some(Reaped { pid: pid.as_raw(), ended: Ended::Status(status) }));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Ok(Some(Reaped { pid: pid.as_raw(), ended: Ended::Signal(signal as i32) }));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(None),
            // A signal 32 or 33 (used inside libc) or above has no name in nix: the child is reaped, and gone.
            Ok(_) | Err(nix::Error::EINTR | nix::Error::EINVAL) => {}
            Err(errno) => {
                let program = "any child".into();
                return Err(Error::Child { step: "wait for", program, source: errno.into() });
            }
        }
    }
}

fn c_strings(strings: &[String]) -> io::Result<Vec<CString>> {
    strings.iter().map(|text| CString::new(text.as_bytes()).map_err(io::Error::from)).collect()
}
