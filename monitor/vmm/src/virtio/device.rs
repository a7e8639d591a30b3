//! What a virtio device is to the transport.

use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use coffer_machine::Doorbell;
use coffer_monitor_wire::{EndReason, Refusal};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT, Writer};
use vm_memory::GuestMemoryMmap;

use crate::refusals::Refusals;

/// Chains one device serves for one event before others get their turn.
pub const BUDGET: usize = 256;

/// A popped descriptor chain.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A device behind a virtio transport. The transport calls it with its lock held, from the device loop
/// except for `activate`, `reset` and `read_config`, which come from vCPU threads.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2 section 5).
    fn kind(&self) -> u32;

    /// Features offered beside VERSION_1 and EVENT_IDX, which the transport adds.
    fn features(&self) -> u64 {
        0
    }

    /// Size of each queue.
    fn queue_sizes(&self) -> &'static [u16];

    /// All of the device configuration.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Device configuration from `offset` on; bytes beyond its end stay zero.
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.iter_mut().zip(self.config().iter().skip(offset)).for_each(|(to, byte)| *to = *byte);
    }

    /// The driver is ready, and took these features; queues are live from now until `reset`.
    fn activate(&mut self, _features: u64) {}

    /// Takes the place of a device that was saved while its queues were live. Nothing else of it is left: a device that
    /// had more to tell its driver tells it what was lost.
    fn resume(&mut self, features: u64) {
        self.activate(features);
    }

    /// The guest kicked `queue`. `Err` ends the VM.
    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason>;

    /// A descriptor that becomes readable when the backend has something; polled from the start, so it must
    /// stay silent until `activate` and whenever the device cannot take more.
    fn backend(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The backend descriptor is readable.
    fn backend_ready(&mut self, _io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        Ok(Pace::Idle)
    }

    /// Forgets everything the guest did; nothing may touch guest memory afterwards until `activate`.
    fn reset(&mut self);
}

/// Whether a device stopped for lack of work or of budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing left to do.
    Idle,
    /// Budget used up: call again after the others.
    More,
}

/// The live queues of a device.
pub struct Queues<'a> {
    /// Queues; one the driver left out is `None`.
    pub queues: &'a mut [Option<Queue>],
    /// Guest memory.
    pub memory: &'a GuestMemoryMmap,
    /// Where completions are told.
    pub interrupt: &'a Interrupt,
    /// Where refusals are counted.
    pub refusals: &'a Refusals,
}

impl<'a> Queues<'a> {
    /// Takes the next chain of `queue`, if there is one.
    pub fn pop(&mut self, queue: usize) -> Option<Chain<'a>> {
        let queue = self.queues.get_mut(queue)?.as_mut()?;
        let Ok(mut chains) = queue.iter(self.memory) else {
            self.refusals.count(Refusal::Ring);
            return None;
        };
        let chain = chains.next()?;
        // Only counted: a device takes a chain for what can be read of it, and it may change any time.
        if chain.clone().last().is_none_or(|last| last.has_next()) {
            self.refusals.count(Refusal::Chain);
        }
        Some(chain)
    }

    /// Takes the next chain of `queue`; if there is none, asks for kicks and looks again, as one may have come meanwhile.
    /// None is then none, whatever the ring claims.
    pub fn pop_or_rearm(&mut self, queue: usize) -> Option<Chain<'a>> {
        self.pop(queue).or_else(|| self.rearm(queue).then(|| self.pop(queue)).flatten())
    }

    /// Returns a chain to the driver with `written` bytes in it.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) {
        if let Some(Some(queue)) = self.queues.get_mut(queue) {
            // Fails only if the ring left guest memory, which activation ruled out.
            let _ = queue.add_used(self.memory, head, written);
        }
    }

    /// Tells the driver about completions, if it wants to know.
    pub fn notify(&mut self, queue: usize) {
        if let Some(Some(queue)) = self.queues.get_mut(queue)
            && queue.needs_notification(self.memory).unwrap_or(true)
        {
            self.interrupt.raise(Interrupt::USED_BUFFER);
        }
    }

    /// Asks for kicks on `queue` again; true if chains came meanwhile.
    pub fn rearm(&mut self, queue: usize) -> bool {
        match self.queues.get_mut(queue) {
            Some(Some(queue)) => queue.enable_notification(self.memory).unwrap_or(false),
            _ => false,
        }
    }

    /// Serves chains of `queue` until there are none, `device` is not `ready` or the budget is used up, and tells the
    /// driver. `serve` returns the bytes written into the chain.
    pub fn drain<T>(
        &mut self,
        queue: usize,
        device: &mut T,
        ready: impl Fn(&T) -> bool,
        serve: impl Fn(&mut T, Chain<'a>, &GuestMemoryMmap) -> Result<u32, EndReason>,
    ) -> Result<Pace, EndReason> {
        let mut left = BUDGET;
        loop {
            let before = left;
            while left > 0
                && ready(device)
                && let Some(chain) = self.pop(queue)
            {
                let head = chain.head_index();
                let written = serve(device, chain, self.memory)?;
                self.complete(queue, head, written);
                left -= 1;
            }
            self.notify(queue);
            // A driver that claims chains it does not have makes `rearm` true without progress: that ends the turn.
            match self.rearm(queue) {
                true if left == 0 => return Ok(Pace::More),
                true if left < before && ready(device) => {}
                _ => return Ok(Pace::Idle),
            }
        }
    }
}

/// Writes both parts, and tells how much that is; nothing where there is no room for all.
pub fn write_both(writer: &mut Writer<'_>, first: &[u8], second: &[u8]) -> u32 {
    let len = first.len() + second.len();
    let fits = writer.available_bytes() >= len;
    let written = fits && writer.write_all(first).and_then(|()| writer.write_all(second)).is_ok();
    if written { len as u32 } else { 0 }
}

/// The interrupt of one device: why, and the line.
pub struct Interrupt {
    status: AtomicU32,
    line: Doorbell,
}

impl Interrupt {
    /// The driver has buffers to collect.
    pub const USED_BUFFER: u32 = 1;
    /// The device's state changed.
    pub const CONFIG: u32 = 2;

    /// An interrupt that rings `line`.
    pub fn new(line: Doorbell) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    /// True if there are no reasons but these.
    pub fn possible(reasons: u32) -> bool {
        reasons & !(Self::USED_BUFFER | Self::CONFIG) == 0
    }

    /// Reasons not yet acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, seen: u32) {
        self.status.fetch_and(!seen, Ordering::SeqCst);
    }

    /// Raises reasons, if there are any.
    pub fn raise(&self, reasons: u32) {
        self.status.fetch_or(reasons, Ordering::SeqCst);
        if reasons != 0 {
            self.line.ring();
        }
    }
}
