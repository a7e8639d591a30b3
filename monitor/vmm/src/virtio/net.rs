//! virtio-net (virtio 1.2 section 5.1): one queue pair, no offloads, over passt or a tap device.
//!
//! What it trusts: nothing. Frames are bytes to both sides; the backend's framing is checked, the guest's descriptors too.
//! What it refuses: frames larger than its limit, and waiting. A backend that does not take frames loses them,
//! as a full wire would, and so does one that is offered more than the interface may carry (`limit`); what may not pass
//! (`filter`) is lost too. A backend that breaks its framing is cut off and the guest's link is dead.

mod backend;
mod filter;
mod limit;
mod packet;

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use coffer_monitor_wire::{EndReason, NetSpec, Refusal};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;
use vm_memory::GuestMemoryMmap;

use crate::refusals::Refusals;
use crate::virtio::device::{BUDGET, Chain, Pace, Queues, VirtioDevice, write_both};
use backend::Backend;
use filter::Filter;
pub use filter::Gate;
use limit::Limit;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// `struct virtio_net_hdr_v1`; all zero but `num_buffers` on receive, as no offload is offered.
const HEADER: usize = 12;
/// Of a frame for the guest: no offloads, and one buffer.
const RECEIVED: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Largest frame: what fits an IPv4 datagram, an Ethernet header and a VLAN tag.
const FRAME_MAX: usize = 65_535 + 18;

/// A network interface.
pub struct Net {
    mac: [u8; 6],
    backend: Backend,
    filter: Filter,
    sent: Limit,
    received: Limit,
    /// A frame the guest had no buffer for yet.
    waiting: Option<Vec<u8>>,
}

impl Net {
    /// An interface over the descriptor of its backend.
    pub fn new(spec: NetSpec, descriptor: OwnedFd, gate: Gate) -> std::io::Result<Self> {
        Ok(Self {
            mac: spec.mac,
            backend: Backend::new(spec.backend, descriptor)?,
            sent: Limit::new(spec.limit),
            received: Limit::new(spec.limit),
            filter: Filter::new(spec, gate),
            waiting: None,
        })
    }

    fn transmit(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap, refusals: &Refusals) -> u32 {
        let frame = frame_of(chain, memory).ok_or(Refusal::Chain);
        let verdict = frame.and_then(|frame| {
            self.filter.leaves(&frame)?;
            self.sent.takes(frame.len(), Instant::now())?;
            self.backend.send(&frame);
            Ok(())
        });
        verdict.unwrap_or_else(|refusal| refusals.count(refusal));
        0
    }

    fn receive(&mut self, io: &mut Queues<'_>) -> Pace {
        for _ in 0..BUDGET {
            let frame = match self.waiting.take() {
                Some(frame) => frame,
                None => match self.backend.receive() {
                    Some(frame) => {
                        let (allowed, now) = (self.filter.enters(&frame), Instant::now());
                        let verdict = allowed.and_then(|()| self.received.takes(frame.len(), now));
                        if let Err(refusal) = verdict {
                            io.refusals.count(refusal);
                            continue;
                        }
                        frame
                    }
                    None => {
                        io.notify(RECEIVE);
                        self.backend.listen(true);
                        return Pace::Idle;
                    }
                },
            };
            let Some(chain) = io.pop_or_rearm(RECEIVE) else {
                self.waiting = Some(frame);
                io.notify(RECEIVE);
                // The guest kicks when it has buffers again; until then the backend stays unheard.
                self.backend.listen(false);
                return Pace::Idle;
            };
            let head = chain.head_index();
            // A frame the buffer is too small for is dropped.
            let written = chain.writer(io.memory);
            let written =
                written.map_or(0, |mut buffer| write_both(&mut buffer, &RECEIVED, &frame));
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

    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn activate(&mut self, _features: u64) {
        self.backend.listen(true);
    }

    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        match queue {
            TRANSMIT => {
                let refusals = io.refusals;
                io.drain(
                    queue,
                    self,
                    |_| true,
                    |net, chain, memory| Ok(net.transmit(chain, memory, refusals)),
                )
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
