//! virtio-rng: random bytes in the buffer and nowhere else, 64 KiB at most.
#![no_main]

use coffer_fuzz::bus::{Guest, Program, RngPeer, with_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let mut peer = RngPeer;
        let mut guest = Guest::alone(peer.device(), &peer, memory);
        guest.run(&mut peer, &mut program, memory);
    });
});
