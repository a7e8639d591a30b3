//! virtio-blk: what was asked for and is there reaches the buffer and nothing else does; the storage is what it was, and a
//! raw disk's what was written.
#![no_main]

use coffer_fuzz::bus::{BlockPeer, Guest, Kind, Program, with_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let kind = [Kind::Plain, Kind::Integrity, Kind::Raw][usize::from(program.byte()) % 3];
        let mut peer = BlockPeer::new(kind);
        let mut guest = Guest::alone(peer.device(), &peer, memory);
        guest.run(&mut peer, &mut program, memory);
        peer.finish();
    });
});
