//! All devices on one bus: each register reads as the specification says after whatever was written to any of them, at any
//! width and across borders; a device that runs uses the queues it was started with, and no other memory.
#![no_main]

use std::sync::Arc;

use coffer_fuzz::bus::{
    BlockPeer, Guest, Kind, NetPeer, Peer, Program, RngPeer, STEPS_MAX, VsockPeer, with_memory,
};
use coffer_machine::Bus;
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::layout;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    with_memory(|memory| {
        let mut program = Program::new(data);
        let (mut block, mut net) = (BlockPeer::new(Kind::Plain), NetPeer::new(0));
        let (mut vsock, mut rng) = (VsockPeer::default(), RngPeer);
        let devices = [block.device(), net.device(), vsock.device(), rng.device()];
        let peers: [&mut dyn Peer; 4] = [&mut block, &mut net, &mut vsock, &mut rng];
        let mut bus = DeviceBus::default();
        let mut guests = Vec::new();
        for ((device, peer), window) in devices.into_iter().zip(&peers).zip(0..) {
            let guest = Guest::new(device, &**peer, window, memory);
            guest.map(&mut bus);
            guests.push(guest);
        }
        let bus = Arc::new(bus);
        guests.iter_mut().for_each(|guest| guest.join(bus.clone()));
        let mut which = 0;
        for _ in 0..STEPS_MAX {
            let Some((what, how)) = program.step() else { break };
            match what {
                // The steps a single device's program has little of: another device, and the places between them.
                13 => which = usize::from(how & 3),
                14 => {
                    let mut said = [0; 8];
                    let border = u64::from(how & 7) * layout::VIRTIO_WINDOW;
                    let address = layout::VIRTIO_BASE + border - 1 - u64::from(program.byte() % 7);
                    bus.memory_read(address, &mut said);
                    assert_eq!(said, [0xFF; 8], "nobody is across a border");
                    bus.memory_write(address, &[0xFF; 8]);
                }
                15 => (0..0x100u16).step_by(4).for_each(|offset| guests[which].read(offset, 4)),
                _ if !guests[which].over => {
                    guests[which].step(what, how, peers[which], &mut program, memory);
                }
                _ => {}
            }
        }
    });
});
