//! virtio-blk: what was asked for and is there reaches the buffer and nothing else does; the storage is what it was.
#![no_main]

use coffer_fuzz::bus::{BlockPeer, Guest, Program, with_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let kind = program.byte();
        let mut peer = BlockPeer::new(kind & 1 == 1);
        let mut guest = Guest::alone(peer.device(), &peer, memory);
        guest.run(&mut peer, &mut program, memory);
        peer.finish();
    });
});
