//! virtio-vsock: streams to one port, within their credit, of bytes as they were sent.
#![no_main]

use coffer_fuzz::bus::{Guest, Program, VsockPeer, with_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let mut peer = VsockPeer::default();
        let mut guest = Guest::alone(peer.device(), &peer, memory);
        guest.run(&mut peer, &mut program, memory);
        peer.finish();
    });
});
