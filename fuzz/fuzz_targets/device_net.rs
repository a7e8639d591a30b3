//! virtio-net: frames that may leave do, whole and in order, and none else; frames that arrive reach the guest the same way.
#![no_main]

use coffer_fuzz::bus::{Guest, NetPeer, Program, with_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let kind = program.byte();
        let mut peer = NetPeer::new(kind);
        let mut guest = Guest::alone(peer.device(), &peer, memory);
        guest.run(&mut peer, &mut program, memory);
    });
});
