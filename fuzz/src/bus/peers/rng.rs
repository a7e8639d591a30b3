//! Nobody: the kernel's random bytes.

use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::rng::Rng;

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, WRITE};

/// virtio-rng: bytes that nobody knows before, in the buffer and nowhere else, at most 64 KiB.
#[derive(Default)]
pub struct RngPeer;

impl RngPeer {
    /// The device.
    pub fn device(&self) -> Box<dyn VirtioDevice> {
        Box::new(Rng)
    }
}

impl Peer for RngPeer {
    fn nature(&self) -> Nature {
        Nature { kind: 4, features: 0, queues: &[64], config: Vec::new() }
    }

    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory) {
        let at = 0x800 + u64::from(program.half() & 0x1FFF);
        guest.put_chain(0, &[(at, program.half().into(), WRITE)], Link::Sound, memory);
    }

    fn completed(&mut self, done: &Completed<'_>, expected: &mut [u8]) {
        let Chain { writable, .. } = done.chain;
        let wanted = if writable.astray { 0 } else { writable.len.min(64 << 10) };
        let used = done.used as usize;
        // A signal may cut getrandom short beyond 256 bytes (getrandom(2)).
        assert!(used == wanted || (256..wanted).contains(&used), "{used} bytes, not {wanted}");
        let bytes = writable.read(done.after, used);
        // A buffer may name one byte many times; of 16 others all are zero once in 2^128.
        let zero = bytes.iter().all(|byte| *byte == 0);
        assert!(!zero || writable.distinct(used) < 16, "nothing was written");
        writable.write(expected, 0, &bytes);
    }

    fn may_rest(&self, waiting: &[usize]) -> bool {
        waiting[0] == 0
    }

    fn renew(&mut self, _: bool) -> Box<dyn VirtioDevice> {
        self.device()
    }
}
