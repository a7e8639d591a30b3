//! The virtio-mmio transport, version 2 (virtio 1.2 section 4.2.2).
//!
//! ```text
//!   Configuring { what the driver says about its queues }  --DRIVER_OK, all sound-->  Active { queues }
//!        ^------------------------------ status 0 -------------------------------------'
//! ```
//! The registers that describe queues write to `Configuring` only. Once active there is no such thing to write to:
//! a driver that changes a queue under a running device changes nothing (the class of CVE-2026-5747).

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coffer_machine::{Doorbell, GuestRam};
use coffer_monitor_wire::{EndReason, Refusal};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::devices::bus::Registers;
use crate::devices::lifecycle::{Lifecycle, Quiet, State, StateRefused};
use crate::refusals::Refusals;
use crate::virtio::device::{Interrupt, Pace, Queues, VirtioDevice};
use crate::virtio::status::{self, Step};

/// Offset of the register a driver kicks queues with; KVM answers it.
pub const QUEUE_NOTIFY: u64 = 0x50;
const CONFIG: u64 = 0x100;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"COFR");

/// Where a device is plugged in.
pub struct Slot {
    /// Guest memory.
    pub memory: GuestRam,
    /// Its interrupt line.
    pub line: Doorbell,
    /// One doorbell for each queue, rung by the guest.
    pub kicks: Vec<Doorbell>,
    /// Where refusals are counted.
    pub refusals: Refusals,
}

/// A device with its transport.
pub struct VirtioMmio {
    memory: GuestRam,
    interrupt: Interrupt,
    kicks: Vec<Doorbell>,
    refusals: Refusals,
    inner: Mutex<Inner>,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: QueueState,
    /// False until the machine starts the device and while it is paused.
    serving: bool,
}

enum QueueState {
    Configuring(Vec<Queue>),
    Active(Vec<Option<Queue>>),
}

/// What the device loop saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Doorbell of a queue.
    Kick(usize),
    /// The backend descriptor.
    Backend,
}

impl VirtioMmio {
    /// Plugs a device in.
    pub fn new(device: Box<dyn VirtioDevice>, slot: Slot) -> anyhow::Result<Self> {
        let queues = QueueState::Configuring(fresh_queues(&*device)?);
        let inner = Inner {
            device,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            serving: false,
        };
        let Slot { memory, line, kicks, refusals } = slot;
        let (interrupt, inner) = (Interrupt::new(line), Mutex::new(inner));
        Ok(Self { memory, interrupt, kicks, refusals, inner })
    }

    /// Doorbells in queue order.
    pub fn kicks(&self) -> &[Doorbell] {
        &self.kicks
    }

    /// Calls `register` with the backend descriptor, if the device has one.
    pub fn with_backend<T>(
        &self,
        register: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> T,
    ) -> Option<T> {
        self.lock().device.backend().map(|fd| register(fd.as_fd()))
    }

    /// Serves one signal. `Err` ends the VM.
    pub fn serve(&self, signal: Signal) -> Result<(), EndReason> {
        if let Signal::Kick(queue) = signal {
            self.kicks.get(queue).map(Doorbell::clear);
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        let QueueState::Active(queues) = &mut inner.queues else { return Ok(()) };
        if !inner.serving || inner.status != status::RUNNING {
            return Ok(());
        }
        let (memory, interrupt) = (self.memory.view(), &self.interrupt);
        let mut io = Queues { queues, memory, interrupt, refusals: &self.refusals };
        let pace = match signal {
            Signal::Kick(queue) => inner.device.kicked(queue, &mut io)?,
            Signal::Backend => inner.device.backend_ready(&mut io)?,
        };
        // Ring our own bells: the rest is served after the other devices had their turn. The backend does not call
        // for what was read from it already.
        if pace == Pace::More {
            self.kicks.iter().for_each(Doorbell::ring);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        // The interrupt handler's registers come first and take no lock: a vCPU never waits for a disk here.
        if offset == 0x60 {
            return self.interrupt.status();
        }
        let inner = self.lock();
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => inner.device.kind(),
            0x0C => VENDOR,
            0x10 => half(inner.offered(), inner.device_features_select),
            0x34 => inner.selected_size(),
            0x44 => u32::from(inner.selected_ready()),
            0x70 => inner.status,
            // Shared memory regions: length all ones means there is none.
            0xB0..=0xBC => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        if offset == 0x64 {
            return self.interrupt.acknowledge(value);
        }
        let mut inner = self.lock();
        match offset {
            0x14 => inner.device_features_select = value,
            0x20 => inner.choose_features(value),
            0x24 => inner.driver_features_select = value,
            0x30 => inner.queue_select = value,
            0x70 => self.write_status(&mut inner, value),
            _ => inner
                .describe_queue(offset, value)
                .unwrap_or_else(|refusal| self.refusals.count(refusal)),
        }
    }

    fn write_status(&self, inner: &mut Inner, wanted: u32) {
        match status::step(inner.status, wanted) {
            Step::Reset => self.reset_inner(inner),
            Step::GiveUp => {
                // Nothing serves it from here on: its backend must not call either.
                inner.device.reset();
                inner.status |= status::FAILED;
            }
            Step::Advance(next) => inner.status = next,
            Step::Agree(next) if inner.features_acceptable() => inner.status = next,
            Step::Activate(next) if inner.freeze(self.memory.view()) => {
                inner.device.activate(inner.driver_features);
                inner.status = next;
            }
            Step::Activate(_) => {
                self.refusals.count(Refusal::QueueShape);
                inner.status |= status::NEEDS_RESET;
                self.interrupt.raise(Interrupt::CONFIG);
            }
            Step::Agree(_) | Step::Refused => self.refusals.count(Refusal::Status),
        }
    }

    fn reset_inner(&self, inner: &mut Inner) {
        inner.device.reset();
        inner.status = 0;
        inner.driver_features = 0;
        inner.queue_select = 0;
        // Queue sizes are constants of the device and were accepted when it was plugged in.
        inner.queues = QueueState::Configuring(fresh_queues(&*inner.device).unwrap_or_default());
        self.interrupt.acknowledge(u32::MAX);
    }
}

impl Inner {
    fn offered(&self) -> u64 {
        self.device.features() | (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn choose_features(&mut self, value: u32) {
        if self.status != status::DRIVEN {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = (self.driver_features & !0xFFFF_FFFF) | value,
            1 => self.driver_features = (self.driver_features & 0xFFFF_FFFF) | (value << 32),
            _ => {}
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn selected_size(&self) -> u32 {
        self.device.queue_sizes().get(self.queue_select as usize).copied().map_or(0, u32::from)
    }

    fn selected_ready(&self) -> bool {
        let at = self.queue_select as usize;
        let queue = match &self.queues {
            QueueState::Configuring(queues) => queues.get(at),
            QueueState::Active(queues) => queues.get(at).and_then(Option::as_ref),
        };
        queue.is_some_and(Queue::ready)
    }

    fn describe_queue(&mut self, offset: u64, value: u32) -> Result<(), Refusal> {
        if !matches!(offset, 0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xA0 | 0xA4) {
            return Err(Refusal::RegisterAccess);
        }
        let queues = match &mut self.queues {
            QueueState::Configuring(queues) if self.status == status::AGREED => queues,
            _ => return Err(Refusal::QueueFrozen),
        };
        let queue = queues.get_mut(self.queue_select as usize).ok_or(Refusal::QueueShape)?;
        match offset {
            0x38 => {
                let size = u16::try_from(value).unwrap_or(0);
                queue.try_set_size(size).map_err(|_| Refusal::QueueShape)?;
            }
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xA0 => queue.set_used_ring_address(Some(value), None),
            _ => queue.set_used_ring_address(None, Some(value)),
        }
        Ok(())
    }

    /// Freezes the queues, if every one that is ready lies in guest memory.
    fn freeze(&mut self, memory: &GuestMemoryMmap) -> bool {
        let QueueState::Configuring(queues) = &mut self.queues else { return false };
        if queues.iter().any(|queue| queue.ready() && !queue.is_valid(memory)) {
            return false;
        }
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let live = std::mem::take(queues).into_iter().map(|mut queue| {
            queue.set_event_idx(event_idx);
            queue.ready().then_some(queue)
        });
        self.queues = QueueState::Active(live.collect());
        true
    }
}

fn fresh_queues(device: &dyn VirtioDevice) -> Result<Vec<Queue>, virtio_queue::Error> {
    device.queue_sizes().iter().map(|size| Queue::new(*size)).collect()
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl Registers for VirtioMmio {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset.checked_sub(CONFIG) {
            Some(at) => self.lock().device.read_config(at as usize, data),
            // Registers are 32 bits wide and nothing else (section 4.2.2.2).
            None => match <&mut [u8; 4]>::try_from(data) {
                Ok(data) if offset.is_multiple_of(4) => {
                    *data = self.read_register(offset).to_le_bytes();
                }
                _ => self.refusals.count(Refusal::RegisterAccess),
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            // No device here has configuration the driver may write.
            _ if offset >= CONFIG => self.refusals.count(Refusal::ConfigWrite),
            Ok(data) if offset.is_multiple_of(4) => {
                self.write_register(offset, u32::from_le_bytes(data));
            }
            _ => self.refusals.count(Refusal::RegisterAccess),
        }
    }
}

impl Lifecycle for VirtioMmio {
    fn start(&self) {
        self.lock().serving = true;
        // Kicks that came while paused were cleared unserved.
        self.kicks.iter().for_each(Doorbell::ring);
    }

    fn pause(&self) {
        self.lock().serving = false;
    }

    fn reset(&self) {
        self.reset_inner(&mut self.lock());
    }

    fn save(&self, _: Quiet) -> Vec<u8> {
        self.lock().saved(self.interrupt.status()).encode()
    }

    fn restore(&self, _: Quiet, state: &[u8]) -> Result<(), StateRefused> {
        let saved = Saved::decode(state)?;
        let mut inner = self.lock();
        self.reset_inner(&mut inner);
        if let Err(refused) = inner.take_over(&saved, self.memory.view()) {
            self.reset_inner(&mut inner);
            return Err(refused);
        }
        // The driver may not have heard what was rung last.
        self.interrupt.raise(saved.interrupt);
        Ok(())
    }
}

/// The transport, and where the device is in its queues. No device behind it keeps more.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    kind: u32,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt: u32,
    /// None for one that the driver of a running device left out.
    queues: Vec<Option<SavedQueue>>,
}

impl State for Saved {
    const FORMAT: &'static str = "virtio-mmio/1";
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SavedQueue(#[serde(with = "QueueFields")] virtio_queue::QueueState);

/// What there is to write down: the rest is the device's, or follows from the features.
#[derive(Serialize, Deserialize)]
#[serde(remote = "virtio_queue::QueueState", deny_unknown_fields)]
struct QueueFields {
    #[serde(skip)]
    max_size: u16,
    #[serde(skip)]
    event_idx_enabled: bool,
    ready: bool,
    size: u16,
    next_avail: u16,
    next_used: u16,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl SavedQueue {
    fn of(queue: &Queue) -> Self {
        Self(queue.state())
    }

    /// The queue, if it can be one of a device that offers `max_size`. Where it lies is looked at when it is frozen.
    fn queue(&self, max_size: u16, live: bool) -> Option<Queue> {
        let state = virtio_queue::QueueState { max_size, ..self.0 };
        let begun = (state.next_avail, state.next_used) != (0, 0);
        if live { state.ready } else { !begun }.then(|| state.try_into().ok())?
    }
}

impl Inner {
    fn saved(&self, interrupt: u32) -> Saved {
        let queues = match &self.queues {
            QueueState::Configuring(all) => all.iter().map(SavedQueue::of).map(Some).collect(),
            QueueState::Active(live) => {
                live.iter().map(|it| it.as_ref().map(SavedQueue::of)).collect()
            }
        };
        Saved {
            kind: self.device.kind(),
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt,
            queues,
        }
    }

    /// Takes what a driver can have written, and freezes live queues as they were frozen then.
    fn take_over(&mut self, saved: &Saved, memory: &GuestMemoryMmap) -> Result<(), StateRefused> {
        let live = status::activated(saved.status);
        let sizes = self.device.queue_sizes();
        self.driver_features = saved.driver_features;
        let agreed = saved.status & status::FEATURES_OK != 0;
        let queues = saved.queues.iter().zip(sizes).map(|(saved, size)| match saved {
            Some(saved) => saved.queue(*size, live),
            None => Queue::new(*size).ok().filter(|_| live),
        });
        let queues: Option<Vec<Queue>> = queues.collect();
        let checks = [
            ("kind", saved.kind == self.device.kind()),
            ("status", status::reachable(saved.status)),
            ("driver_features", !agreed || self.features_acceptable()),
            ("interrupt", Interrupt::possible(saved.interrupt)),
            ("queues", saved.queues.len() == sizes.len()),
            ("queue", queues.is_some()),
        ];
        self.queues = QueueState::Configuring(queues.unwrap_or_default());
        let frozen = ("place of a queue", !live || self.freeze(memory));
        if let Some((what, _)) = checks.into_iter().chain([frozen]).find(|(_, holds)| !holds) {
            return Err(StateRefused::Impossible(what));
        }
        self.status = saved.status;
        self.device_features_select = saved.device_features_select;
        self.driver_features_select = saved.driver_features_select;
        self.queue_select = saved.queue_select;
        if self.status == status::RUNNING {
            self.device.resume(self.driver_features);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
