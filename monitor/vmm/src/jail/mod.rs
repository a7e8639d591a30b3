//! The walls around the VM process (SPEC 6.3.1): whoever breaks out of the guest into it finds nothing there.
//!
//! ```text
//!   leave()        before the spec: limits, namespaces of its own, an empty root
//!   own_cores()    where cores have several threads: no neighbour on them
//!   drop_rights()  before anything of the guest is read: its own uid, no new privileges, Landlock without a path
//!   confine()      each thread, before the guest's first instruction: the system calls of its work and no other
//! ```
//! The same stand around swtpm, but for its libraries and its state ([`companion`]).
//! Everything the process needs has come to it as descriptors by then. Each wall is there or the VM does not start;
//! none trusts another to hold. A system call that is not on its thread's list ends the process, and the VM with it.

pub mod companion;
mod rights;
mod root;
mod syscalls;

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CoreSchedulingScope;
use thiserror::Error;

pub use syscalls::{Role, confine};

/// A wall that cannot be put up.
#[derive(Debug, Error)]
pub enum JailError {
    /// The operating system refused.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] std::io::Error),
    /// The kernel has no Landlock, or it is not among the active security modules.
    #[error("this kernel does not enforce Landlock: {0}")]
    Landlock(String),
    /// The filter of system calls is refused.
    #[error("cannot limit system calls: {0}")]
    Seccomp(String),
    /// The supervisor gave a uid that is root's, or nobody's in particular.
    #[error("uid {0} is none for a VM")]
    Uid(u32),
}

/// uids VMs run under, one for each: above the last that systemd gives to containers (0x6fffffff), below those that
/// some programs take for negative.
pub const UIDS: std::ops::Range<u32> = 0x7000_0000..0x7fff_0000;

/// Leaves everything that has a name: files, networks, processes, other VMs' queues.
pub fn leave() -> Result<(), JailError> {
    forbid_cores()?;
    root::leave_namespaces()?;
    root::enter_nothing()
}

/// A core would hold guest memory or seeds, and a lock of its own on memory is not the process's to take. No core fits
/// into one byte, and that is what a kernel that pipes cores to a program takes
/// for none; of 0 it knows nothing there (`fs/coredump.c`).
fn forbid_cores() -> Result<(), JailError> {
    for (resource, most) in [(Resource::Core, 1), (Resource::Memlock, 0)] {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(system("set a limit"))?;
    }
    Ok(())
}

/// Takes the uid, no new privileges, and Landlock without a path.
pub fn drop_rights(uid: u32) -> Result<(), JailError> {
    rights::take_uid(uid)?;
    rights::reach_only(&[], &[])
}

/// Asks the kernel to run nothing beside a thread of this process on its core but another of this process (core
/// scheduling): a neighbour there could tell secrets from the time things take.
pub fn own_cores() -> Result<(), JailError> {
    let process = (rustix::process::getpid(), CoreSchedulingScope::ThreadGroup);
    rustix::thread::create_core_scheduling_cookie(process.0, process.1).map_err(system(
        "have cores to itself: turn SMT off, or use a kernel with CONFIG_SCHED_CORE",
    ))
}

fn system<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> JailError {
    move |error| JailError::System(what, error.into())
}
