//! virtio-net (virtio 1.2 section 5.1): one queue pair, no offloads, over passt or a tap device.
//!
//! What it trusts: nothing. Frames are bytes to both sides; the backend's framing is checked, the guest's descriptors too.
//! What it refuses: frames larger than its limit, and waiting. A backend that does not take frames loses them,
//! as a full wire would, and what may not leave the guest (`egress`) is lost too; a backend that breaks its framing is cut off and the guest's link is dead.

mod backend;
mod egress;

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coffer_monitor_wire::{EndReason, NetSpec, Refusal};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use vm_memory::GuestMemoryMmap;

use crate::refusals::Refusals;
use crate::virtio::device::{BUDGET, Chain, Pace, Queues, VirtioDevice};
use backend::{Backend, Received};
use egress::Egress;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr_v1`; all zero but `num_buffers` on receive, as no offload is offered.
const HEADER: usize = 12;
const NUM_BUFFERS_OFFSET: usize = 10;
/// Largest frame: what fits an IPv4 datagram, an Ethernet header and a VLAN tag.
const FRAME_MAX: usize = 65_535 + 18;

/// A network interface.
pub struct Net {
    mac: [u8; 6],
    backend: Backend,
    egress: Egress,
    /// A frame the guest had no buffer for yet.
    waiting: Option<Vec<u8>>,
}

impl Net {
    /// An interface over the descriptor of its backend.
    pub fn new(spec: NetSpec, descriptor: OwnedFd) -> std::io::Result<Self> {
        let backend = Backend::new(spec.backend, descriptor)?;
        Ok(Self { mac: spec.mac, backend, egress: Egress::new(spec.deny), waiting: None })
    }

    /// Frames of the guest that were not let out.
    pub fn dropped(&self) -> u64 {
        self.egress.dropped()
    }

    fn transmit(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap, refusals: &Refusals) -> u32 {
        match frame_of(chain, memory) {
            Some(frame) if self.egress.passes(&frame) => self.backend.send(&frame),
            Some(_) => refusals.count(Refusal::Frame),
            None => refusals.count(Refusal::Chain),
        }
        0
    }

    fn receive(&mut self, io: &mut Queues<'_>) -> Pace {
        for _ in 0..BUDGET {
            let frame =
                match self.waiting.take().map_or_else(|| self.backend.receive(), Received::Frame) {
                    Received::Frame(frame) => frame,
                    Received::Nothing => {
                        io.notify(RECEIVE);
                        self.backend.listen(true);
                        return Pace::Idle;
                    }
                };
            let Some(chain) = io.pop_or_rearm(RECEIVE) else {
                self.waiting = Some(frame);
                io.notify(RECEIVE);
                // The guest kicks when it has buffers again; until then the backend stays unheard.
                self.backend.listen(false);
                return Pace::Idle;
            };
            let head = chain.head_index();
            let written = deliver(chain, io.memory, &frame);
            io.complete(RECEIVE, head, written);
        }
        io.notify(RECEIVE);
        Pace::More
    }
}

/// The frame behind the header of a transmit chain.
fn frame_of(chain: Chain<'_>, memory: &GuestMemoryMmap) -> Option<Vec<u8>> {
    let mut reader = chain.reader(memory).ok()?;
    reader.read_exact(&mut [0; HEADER]).ok()?;
    let len = Some(reader.available_bytes()).filter(|len| (1..=FRAME_MAX).contains(len))?;
    let mut frame = vec![0; len];
    reader.read_exact(&mut frame).ok()?;
    Some(frame)
}

/// Writes header and frame; a frame the buffer is too small for is dropped.
fn deliver(chain: Chain<'_>, memory: &GuestMemoryMmap, frame: &[u8]) -> u32 {
    let mut header = [0; HEADER];
    header
        .iter_mut()
        .skip(NUM_BUFFERS_OFFSET)
        .zip(1u16.to_le_bytes())
        .for_each(|(slot, byte)| *slot = byte);
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    if writer.available_bytes() < HEADER + frame.len() {
        return 0;
    }
    match writer.write_all(&header).and_then(|()| writer.write_all(frame)) {
        Ok(()) => (HEADER + frame.len()) as u32,
        Err(_) => 0,
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.iter_mut().zip(self.mac.iter().skip(offset)).for_each(|(slot, byte)| *slot = *byte);
    }

    fn activate(&mut self) {
        self.backend.listen(true);
    }

    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        match queue {
            TRANSMIT => {
                let refusals = io.refusals;
                io.drain(TRANSMIT, |chain, memory| Ok(self.transmit(chain, memory, refusals)))
            }
            _ => Ok(self.receive(io)),
        }
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.backend.as_fd())
    }

    fn backend_ready(&mut self, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.backend.flush();
        Ok(self.receive(io))
    }

    fn reset(&mut self) {
        self.backend.hush();
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests;
