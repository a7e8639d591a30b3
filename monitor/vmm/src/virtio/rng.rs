//! virtio-rng (virtio 1.2 section 5.4): the kernel's random bytes for the guest.
//!
//! What it refuses: filling more than 64 KiB for one request, however large the buffer offered.

use coffer_monitor_wire::{EndReason, Refusal};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io::Write;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::virtio::device::{Pace, Queues, VirtioDevice};

const REQUEST_MAX: usize = 64 << 10;

/// The device; it has no state.
pub struct Rng;

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn kicked(&mut self, queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        let refusals = io.refusals;
        io.drain(
            queue,
            self,
            |_| true,
            |_, chain, memory| {
                let Ok(mut writer) = chain.writer(memory) else {
                    refusals.count(Refusal::Chain);
                    return Ok(0);
                };
                let mut bytes = vec![0; writer.available_bytes().min(REQUEST_MAX)];
                let filled = getrandom(&mut bytes, GetRandomFlags::empty()).unwrap_or(0);
                let written = writer.write(bytes.get(..filled).unwrap_or_default()).unwrap_or(0);
                Ok(u32::try_from(written).unwrap_or(0))
            },
        )
    }

    fn reset(&mut self) {}
}
