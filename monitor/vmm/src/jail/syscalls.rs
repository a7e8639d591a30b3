//! The system calls of each thread (seccomp, allow-lists). Whatever is not listed ends the process.
//!
//! None of them opens, executes, connects, traces or makes a process or a thread.

use std::collections::BTreeMap;

use libc as c;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::JailError;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs a vCPU, and the registers of devices.
    Vcpu,
    /// Carries commands to swtpm.
    Tpm,
    /// The main thread: rings of virtio devices, the control socket, the end.
    Devices,
}

/// Every thread: memory, locks, the clock, words on standard streams, bells of eventfds, and dying in order.
const COMMON: &[c::c_long] = &[
    c::SYS_brk,
    c::SYS_clock_gettime,
    c::SYS_clock_nanosleep,
    c::SYS_close,
    c::SYS_exit,
    c::SYS_exit_group,
    c::SYS_futex,
    c::SYS_getpid,
    c::SYS_getrandom,
    c::SYS_gettid,
    c::SYS_madvise,
    c::SYS_mremap,
    c::SYS_munmap,
    c::SYS_nanosleep,
    c::SYS_read,
    c::SYS_restart_syscall,
    c::SYS_rt_sigaction,
    c::SYS_rt_sigprocmask,
    c::SYS_rt_sigreturn,
    c::SYS_sched_yield,
    c::SYS_sigaltstack,
    c::SYS_write,
    c::SYS_writev,
];

/// A vCPU's thread also starts and resets devices, as their status registers are written: what they wait for, and
/// the end of streams. And it sends the TPM a command, and waits a moment for the answer.
const VCPU: &[c::c_long] =
    &[c::SYS_epoll_ctl, c::SYS_poll, c::SYS_ppoll, c::SYS_recvfrom, c::SYS_sendto, c::SYS_shutdown];

/// The TPM's thread speaks with one socket.
const TPM: &[c::c_long] = &[c::SYS_poll, c::SYS_ppoll, c::SYS_recvfrom, c::SYS_sendto];

/// The device thread also moves blocks, frames and streams between descriptors that it has, makes pairs of
/// sockets for the guest's connections, and sends one end of each to the supervisor.
const DEVICES: &[c::c_long] = &[
    c::SYS_dup,
    c::SYS_epoll_ctl,
    c::SYS_epoll_pwait,
    c::SYS_epoll_wait,
    c::SYS_fdatasync,
    c::SYS_fstat,
    c::SYS_fsync,
    c::SYS_lseek,
    c::SYS_poll,
    c::SYS_ppoll,
    c::SYS_pread64,
    c::SYS_preadv,
    c::SYS_preadv2,
    c::SYS_pwrite64,
    c::SYS_pwritev,
    c::SYS_pwritev2,
    c::SYS_readv,
    c::SYS_recvfrom,
    c::SYS_recvmsg,
    c::SYS_sendmsg,
    c::SYS_sendto,
    c::SYS_shutdown,
    c::SYS_statx,
];

/// `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// `_IO(KVMIO, 0xad)`: a vCPU that was paused tells the guest's clock.
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;

/// Limits the calling thread for good.
pub fn confine(role: Role) -> Result<(), JailError> {
    let refused = |error: &dyn std::fmt::Display| JailError::Seccomp(error.to_string());
    let filter = filter(role).map_err(|error| refused(&error))?;
    seccompiler::apply_filter(&filter).map_err(|error| refused(&error))
}

fn filter(role: Role) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    let is = |index, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    // Any of these values, in that argument.
    let any = |index, values: &[u64]| {
        let rules = values.iter().map(|value| SeccompRule::new(vec![is(index, *value)?]));
        rules.collect::<Result<Vec<_>, _>>()
    };
    let own = match role {
        Role::Vcpu => {
            rules.insert(c::SYS_ioctl, any(1, &[KVM_RUN, KVM_KVMCLOCK_CTRL])?);
            VCPU
        }
        Role::Tpm => TPM,
        Role::Devices => {
            rules.insert(c::SYS_ioctl, any(1, &[c::FIONBIO])?);
            let stream = (c::SOCK_STREAM | c::SOCK_CLOEXEC) as u64;
            let pair = SeccompRule::new(vec![is(0, c::AF_UNIX as u64)?, is(1, stream)?])?;
            rules.insert(c::SYS_socketpair, vec![pair]);
            let commands = [c::F_GETFD, c::F_GETFL, c::F_SETFL, c::F_DUPFD_CLOEXEC];
            rules.insert(c::SYS_fcntl, any(1, &commands.map(|command| command as u64))?);
            DEVICES
        }
    };
    for call in COMMON.iter().chain(own) {
        rules.entry(*call).or_default();
    }
    // Signals for threads of this process alone: vCPUs are called out of the guest by one.
    rules.insert(c::SYS_tgkill, any(0, &[u64::from(std::process::id())])?);
    // No page becomes code.
    let protections = [c::PROT_NONE, c::PROT_READ, c::PROT_READ | c::PROT_WRITE];
    let data = any(2, &protections.map(|protection| protection as u64))?;
    rules.insert(c::SYS_mprotect, data.clone());
    rules.insert(c::SYS_mmap, data);
    let end = SeccompAction::KillProcess;
    SeccompFilter::new(rules, end, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
