//! The process around the VM: spec in, events out, end at a word or at silence.
//!
//! ```text
//!   receive VmSpec -> build -> Running -> (Channel)* -> Ended -> exit
//! ```
//! Whatever goes wrong after the spec arrived is told as `Ended { Failed }` before the process exits. A supervisor that
//! goes away takes its VMs with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, bail};
use coffer_monitor_wire::{Command, EndReason, Event, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::DumpableBehavior;

use crate::jail;
use crate::plan::VmPlan;
use crate::stop::Stop;
use crate::virtio::{block::DiskRefused, net::Gate};
use crate::vm::Vm;

/// The supervisor's end of our standard input.
#[derive(Clone)]
pub struct Control {
    socket: Arc<OwnedFd>,
    /// Opens at a word from the supervisor.
    pub network: Gate,
}

/// Runs the process; an error is one line for standard error.
pub fn run() -> anyhow::Result<()> {
    let started = Instant::now();
    end_at_the_first_panic();
    // Guest memory is in this process: no debugger may attach and no core may be written.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot become undumpable")?;
    // Before the spec comes, while the supervisor still measures.
    jail::leave()?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let control = Control::new(socket.context("no control socket on standard input")?);
    let Some((spec, fds)) = control.receive_spec()? else { return Ok(()) };
    let reason = launch(&control, spec, fds, started);
    let failed = |error: anyhow::Error| {
        let broken = error.downcast_ref().and_then(DiskRefused::broken);
        broken.unwrap_or_else(|| EndReason::Failed { detail: format!("{error:#}") })
    };
    finish(&control, reason.unwrap_or_else(failed))
}

/// A VM that lost one of its threads is no VM: whichever panics, the process ends.
fn end_at_the_first_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn launch(
    control: &Control,
    spec: VmSpec,
    fds: Vec<OwnedFd>,
    started: Instant,
) -> anyhow::Result<EndReason> {
    if spec.smt {
        jail::own_cores()?;
    }
    jail::drop_rights(spec.uid)?;
    let plan = VmPlan::new(spec, fds)?;
    let stop = Stop::new()?;
    let vm = Vm::build(plan, control, &stop)?;
    let setup_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    control.send(&Event::Running { setup_us }, &[])?;
    vm.run(control, &stop)
}

fn finish(control: &Control, reason: EndReason) -> anyhow::Result<()> {
    // A supervisor that is gone cannot be told, and has no wish to be.
    let told = control.send(&Event::Ended { reason: reason.clone() }, &[]);
    if let EndReason::Failed { detail } = reason {
        bail!(detail);
    }
    match told {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

impl Control {
    /// Takes over the control socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket: Arc::new(socket), network: Gate::default() }
    }

    /// Waits for the spec; `None` if the supervisor went away first. Afterwards the socket no longer blocks.
    fn receive_spec(&self) -> anyhow::Result<Option<(VmSpec, Vec<OwnedFd>)>> {
        let message = coffer_monitor_wire::receive(&*self.socket)
            .context("cannot read the vm spec from standard input")?;
        rustix::io::ioctl_fionbio(&*self.socket, true)
            .context("cannot unblock the control socket")?;
        Ok(message)
    }

    /// Sends an event; waits a little if the supervisor is slow to read.
    pub fn send(&self, event: &Event, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
        match self.try_send(event, fds) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*self.socket, PollFlags::OUT)], Some(&PATIENCE))?;
                self.try_send(event, fds)
            }
            other => other,
        }
    }

    /// Sends an event, or fails at once with `WouldBlock`.
    pub fn try_send(&self, event: &Event, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        coffer_monitor_wire::send(self.socket.as_fd(), event, fds)
    }

    /// What the supervisor wants, if that is for others to do: `None` while there is nothing to read.
    pub fn orders(&self) -> Option<Command> {
        match coffer_monitor_wire::receive::<Command>(&*self.socket) {
            Ok(Some((Command::OpenNetwork, _))) => {
                self.network.store(true, Ordering::Release);
                None
            }
            Ok(Some((order, _))) => Some(order),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            // Gone, or speaking gibberish: either way nobody answers for this VM any more.
            Ok(None) | Err(_) => Some(Command::Kill),
        }
    }

    /// Waits for an order, and for nothing else.
    pub fn next_order(&self) -> Command {
        loop {
            if let Some(order) = self.orders() {
                return order;
            }
            // Whatever interrupts the wait, the look above tells what came.
            let _ = poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], None);
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
