//! Frames in pieces, backends that stall and rings that lie.

use super::*;
use coffer_monitor_wire::NetBackend;
use proptest::prelude::*;
use std::os::unix::net::UnixStream;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::device::Interrupt;

const WRITE: u16 = 2;
const AT: u64 = 0x1_0000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn net() -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (
        Net::new(
            NetSpec {
                mac: [2, 0, 0, 0, 0, 1],
                backend: NetBackend::Passt,
                deny: vec![[192, 0, 2, 2].into()],
            },
            ours.into(),
        )
        .unwrap(),
        theirs,
    )
}

/// Runs `act` over a receive and a transmit queue, one of which holds `chains`.
fn with_queue(
    memory: &GuestMemoryMmap,
    index: usize,
    chains: &[(u64, u32, u16)],
    act: impl FnOnce(&mut Queues<'_>),
) {
    let mock = MockSplitQueue::new(memory, 16);
    let chains: Vec<RawDescriptor> = chains
        .iter()
        .map(|(a, l, f)| RawDescriptor::from(Descriptor::new(*a, *l, *f, 0)))
        .collect();
    mock.add_desc_chains(&chains, 0).unwrap();
    let interrupt = Interrupt::new(coffer_machine::Doorbell::new().unwrap());
    let refusals = Refusals::default();
    let mut queues: Vec<Option<Queue>> = vec![None, None];
    queues[index] = Some(mock.create_queue().unwrap());
    act(&mut Queues { queues: &mut queues, memory, interrupt: &interrupt, refusals: &refusals });
}

#[test]
fn a_frame_from_the_guest_reaches_passt_with_its_length() {
    let (mut net, mut passt) = net();
    let memory = memory();
    transmit(&mut net, &memory, &packet([192, 0, 2, 1]));
    let mut seen = [0; 38];
    passt.read_exact(&mut seen).unwrap();
    assert_eq!(seen[..4], [0, 0, 0, 34]);
    assert_eq!(seen[4..], packet([192, 0, 2, 1]));
    assert_eq!(net.dropped(), 0);
}

#[test]
fn a_frame_to_the_host_never_reaches_passt() {
    let (mut net, mut passt) = net();
    let memory = memory();
    for to in [[127, 0, 0, 1], [0, 0, 0, 0], [192, 0, 2, 2]] {
        transmit(&mut net, &memory, &packet(to));
    }
    let nothing = passt.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(net.dropped(), 3);
}

/// An Ethernet frame with an IPv4 packet and nothing in it.
fn packet(to: [u8; 4]) -> Vec<u8> {
    let fixed = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 168, 76, 2];
    [&[2; 12][..], &[8, 0], &fixed, &to].concat()
}

fn transmit(net: &mut Net, memory: &GuestMemoryMmap, frame: &[u8]) {
    memory.write_slice(&[&[0; HEADER], frame].concat(), GuestAddress(AT)).unwrap();
    with_queue(memory, TRANSMIT, &[(AT, (HEADER + frame.len()) as u32, 0)], |io| {
        net.kicked(TRANSMIT, io).unwrap();
    });
}

#[test]
fn a_frame_from_passt_reaches_the_guest_behind_a_header() {
    let (mut net, mut passt) = net();
    passt.write_all(b"\0\0\0\x05frame").unwrap();
    let memory = memory();
    with_queue(&memory, RECEIVE, &[(AT, 2048, WRITE)], |io| {
        net.backend_ready(io).unwrap();
        assert_eq!(io.interrupt.status(), 1);
    });
    let mut seen = [0; 17];
    memory.read_slice(&mut seen, GuestAddress(AT)).unwrap();
    assert_eq!(&seen, b"\0\0\0\0\0\0\0\0\0\0\x01\0frame");
}

#[test]
fn a_frame_waits_for_a_buffer_and_one_too_large_is_dropped() {
    let (mut net, mut passt) = net();
    passt.write_all(b"\0\0\0\x05frame").unwrap();
    let memory = memory();
    with_queue(&memory, RECEIVE, &[], |io| {
        net.backend_ready(io).unwrap();
    });
    assert_eq!(net.waiting.as_deref(), Some(&b"frame"[..]));
    with_queue(&memory, RECEIVE, &[(AT, 16, WRITE)], |io| {
        net.kicked(RECEIVE, io).unwrap();
    });
    assert_eq!(net.waiting, None);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(AT)).unwrap(), 0);
}

/// Whether the device loop would be woken.
fn calls(net: &Net) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let backend = net.backend().unwrap();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&backend, PollFlags::IN)], Some(&now)).unwrap() > 0
}

#[test]
fn a_ring_that_claims_buffers_it_does_not_have_leaves_the_backend_unheard() {
    let (mut net, mut passt) = net();
    net.activate();
    passt.write_all(b"\0\0\0\x05frame").unwrap();
    let memory = memory();
    with_queue(&memory, RECEIVE, &[], |io| {
        let ring = io.queues[RECEIVE].as_ref().unwrap().avail_ring();
        memory.write_obj(0x7000u16, GuestAddress(ring + 2)).unwrap();
        net.backend_ready(io).unwrap();
    });
    passt.write_all(b"\0\0\0\x05again").unwrap();
    assert!(!calls(&net));
}

#[test]
fn a_reset_device_wants_no_room_for_what_it_still_holds() {
    let (mut net, mut passt) = net();
    net.activate();
    (0..1000).for_each(|_| net.backend.send(&packet([192, 0, 2, 1])));
    (0..1000).for_each(|_| net.backend.send(&[7; 1500]));
    net.reset();
    // Room again, and nobody to use it.
    while passt.read(&mut [0; 4096]).is_ok() {}
    assert!(!calls(&net));
    net.activate();
    assert!(calls(&net), "the rest of a frame goes out before the next driver's");
}

proptest! {
    #[test]
    fn any_descriptor_is_served_without_panic(
        queue in 0usize..3,
        chains in proptest::collection::vec((any::<u64>(), any::<u32>(), (0u16..4).prop_map(|f| f & 2)), 0..8),
        near in proptest::collection::vec((0u64..0x11_0000, 0u32..0x3000, (0u16..4).prop_map(|f| f & 2)), 0..8),
    ) {
        let (mut net, mut passt) = net();
        passt.write_all(b"\0\0\0\x05frame").unwrap();
        let memory = memory();
        let chains = [chains, near].concat();
        with_queue(&memory, queue.min(1), &chains[..chains.len().min(15)], |io| {
            net.kicked(queue, io).unwrap();
        });
    }
}
