//! The VM process and its companions, from the spec to the end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io::Read, os::unix::net::UnixStream, path::Path, sync::Arc, thread, time::Duration};

use coffer_formats::channel;
use coffer_monitor_wire::{self as wire, EndReason, Event, VmSpec};
use coffer_vault::Hold;
use coffer_vtpm::Vtpm;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process::{Owned, Tail};
use crate::vtpm_keeper::KeeperThread;
use crate::{
    channel::Channels, disk_failure::DiskFailure, group::Group, launch_error::LaunchError,
    state::VmDir, vm::Vm,
};

/// How long a VM process may take to exit after it said how it ended.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long the last words of a VM process that has ended may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long it may take to obey before it is killed.
const OBEY_PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take to stand still: a command of its vTPM is waited for.
const PAUSE_PATIENCE: Duration = Duration::from_secs(15);
/// How long the kernel may take to end a killed one that holds gigabytes.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A VM process that waits for its spec.
pub struct VmProcess {
    process: Owned,
    /// The power over it.
    pub control: Control,
    errors: Tail,
}

/// What lives exactly as long as a VM; dropped in this order.
pub struct Companions {
    /// Network backend.
    pub passt: Option<Owned>,
    /// vTPM.
    pub vtpm: Vtpm,
    /// State.
    pub directory: VmDir,
    /// The group of all processes of this VM.
    pub group: Group,
    /// Keeps the state of a vTPM that lasts.
    pub keeper: Option<KeeperThread>,
    /// Volumes.
    pub holds: Vec<Hold>,
}

/// The supervisor's power over a VM process: a word to it, and a signal it cannot refuse.
#[derive(Clone)]
pub struct Control(Arc<Reins>);

struct Reins {
    socket: OwnedFd,
    /// Names this process for good, whatever its number is used for later.
    pidfd: OwnedFd,
    /// True once it got the signal: then it ends without a word, and that is no failure of its own.
    killed: AtomicBool,
}

impl Control {
    /// Tells it that the guest has attested.
    pub fn open_network(&self) {
        // A VM process that is gone needs no telling.
        let _ = wire::send(self.0.socket.as_fd(), &wire::Command::OpenNetwork, &[]);
    }

    /// Has it stand still, or go on. True if it does; false if it ended or does not obey.
    pub fn pause(&self, vm: &Vm, paused: bool) -> bool {
        let word = if paused { wire::Command::Pause } else { wire::Command::Resume };
        vm.wait_for_pause(paused, Duration::ZERO)
            || wire::send(self.0.socket.as_fd(), &word, &[]).is_ok()
                && vm.wait_for_pause(paused, PAUSE_PATIENCE)
    }

    /// Tells it to end, and kills it if it does not. True once nothing of the VM is left.
    pub fn end(&self, vm: &Vm) -> bool {
        // A VM process that is gone needs no telling.
        let _ = wire::send(self.0.socket.as_fd(), &wire::Command::Kill, &[]);
        if vm.wait_for_end(OBEY_PATIENCE) {
            return true;
        }
        self.0.killed.store(true, Ordering::Release);
        // Gone means that its end is being noted.
        let _ = pidfd_send_signal(&self.0.pidfd, Signal::KILL);
        vm.wait_for_end(KILL_PATIENCE)
    }
}

impl VmProcess {
    /// Starts one. It has descriptors of nothing but its control socket.
    pub fn spawn(program: &Path) -> Result<Self, LaunchError> {
        let failed = |e: std::io::Error| LaunchError::Vmm(e.to_string());
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| failed(e.into()))?;
        let mut command = Command::new(program);
        command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Owned::spawn(&mut command).map_err(failed)?;
        let pidfd = pidfd_open(Pid::from_child(process.child()), PidfdFlags::empty())
            .map_err(|e| failed(e.into()))?;
        let errors = process.child().stderr.take().map(|pipe| Tail::follow(pipe, |_| {}));
        let errors = errors.transpose().map_err(failed)?.unwrap_or_default();
        let control = Control(Arc::new(Reins { socket, pidfd, killed: false.into() }));
        Ok(Self { process, control, errors })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Hands over the spec and everything it names, and supervises until the end on a thread of its own.
    pub fn start(
        mut self,
        vm: &Arc<Vm>,
        spec: &VmSpec,
        fds: &[BorrowedFd<'_>],
        mut companions: Companions,
        channels: Channels,
    ) -> Result<(), LaunchError> {
        let failed = LaunchError::system("starting the VM");
        if let Some(output) = self.process.child().stdout.take() {
            pump_console(vm, output).map_err(LaunchError::system("reading the console"))?;
        }
        if let Err(e) = wire::send(self.control.0.socket.as_fd(), spec, fds) {
            let reason = self.errors.last_line().unwrap_or_else(|| e.to_string());
            return Err(LaunchError::Vmm(reason));
        }
        if let Some(passt) = &mut companions.passt {
            watch_network(vm, &self.control, passt)
                .map_err(LaunchError::system("watching the network backend"))?;
        }
        let vm = Arc::clone(vm);
        let run = move || self.run(&vm, companions, &channels);
        thread::Builder::new().name("vm".into()).spawn(run).map(drop).map_err(failed)
    }

    fn run(self, vm: &Arc<Vm>, companions: Companions, channels: &Channels) {
        let reason = self.follow(vm, channels, &companions.holds);
        let status = self.process.end_within(EXIT_PATIENCE);
        let killed = self.control.0.killed.load(Ordering::Acquire).then_some(EndReason::Killed);
        let reason = reason.or(killed).unwrap_or_else(|| {
            let status =
                status.map_or_else(|| "without a word".to_owned(), |s| format!("with {s}"));
            let said = self.errors.last_line_within(LAST_WORDS);
            let said = said.map(|line| format!(": {line}")).unwrap_or_default();
            EndReason::Failed { detail: format!("the VM process ended {status}{said}") }
        });
        // First nothing is left, then it is said.
        drop(companions);
        vm.end(&reason);
    }

    /// Follows the events; how it ended, if the VM process could still say so.
    fn follow(&self, vm: &Arc<Vm>, channels: &Channels, holds: &[Hold]) -> Option<EndReason> {
        loop {
            match wire::receive::<Event>(self.control.0.socket.as_fd()) {
                Ok(Some((Event::Running { setup_us }, _))) => {
                    tracing::debug!(setup_us, "vCPUs run");
                    vm.running();
                }
                Ok(Some((Event::Channel { port }, fds))) => open_channel(vm, channels, port, fds),
                Ok(Some((Event::Refused { counts }, _))) => vm.refused(counts),
                Ok(Some((Event::DiskFailed { disk, code, mut detail, hint }, _))) => {
                    // The VM process knows that its counter failed; who keeps it knows why.
                    let keeper = holds.iter().find(|hold| vm.is_volume(disk, hold.name()));
                    let why = keeper.filter(|_| code == "anchor-failed");
                    if let Some(why) = why.and_then(Hold::counter_failure) {
                        detail = format!("{detail}: {why}");
                    }
                    vm.disk_failed(disk, DiskFailure { code, detail, hint });
                }
                Ok(Some((Event::Paused, _))) => vm.is_paused(true),
                Ok(Some((Event::Resumed, _))) => vm.is_paused(false),
                Ok(Some((Event::Ended { reason }, _))) => return Some(reason),
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(%error, "the VM process does not speak its protocol");
                    return None;
                }
            }
        }
    }
}

fn open_channel(vm: &Arc<Vm>, channels: &Channels, port: u32, fds: Vec<OwnedFd>) {
    match fds.into_iter().next() {
        Some(stream) if port == channel::PORT => channels.serve(vm, UnixStream::from(stream)),
        // Nothing else is served; closing the stream tells the guest.
        _ => tracing::debug!(port, "guest connected to a port nobody serves"),
    }
}

/// A network backend that dies takes its VM along: half a machine is none.
fn watch_network(vm: &Arc<Vm>, control: &Control, passt: &mut Owned) -> std::io::Result<()> {
    let Some(pipe) = passt.child().stderr.take() else { return Ok(()) };
    let (vm, control) = (Arc::clone(vm), control.clone());
    let at_end = move |tail: &Tail| {
        if !vm.has_ended() {
            let said = tail.last_line();
            vm.note_network_failure(said.unwrap_or_else(|| "it ended without a word".into()));
            control.end(&vm);
        }
    };
    Tail::follow(pipe, at_end).map(drop)
}

fn pump_console(vm: &Arc<Vm>, mut output: impl Read + Send + 'static) -> std::io::Result<()> {
    let console = Arc::clone(&vm.console);
    thread::Builder::new().name("console".into()).spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            console.push(buffer.get(..n).unwrap_or_default());
        }
    })?;
    Ok(())
}
