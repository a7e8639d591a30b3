//! Frames in pieces, backends that stall and rings that lie.

use super::*;
use coffer_image::reach::Reach;
use coffer_monitor_wire::NetBackend;
use coffer_monitor_wire::api::NetLimit;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::virtio::device::Interrupt;

const WRITE: u16 = 2;
const AT: u64 = 0x1_0000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn spec() -> NetSpec {
    NetSpec {
        mac: [2; 6],
        address: [192, 168, 76, 2].into(),
        backend: NetBackend::Passt,
        deny: vec![[192, 0, 2, 2].into()],
        reach: Reach::default(),
        verifier: None,
        dhcp: false,
        limit: NetLimit::default(),
    }
}

fn net() -> (Net, UnixStream) {
    with_spec(spec(), Gate::default())
}

fn with_spec(spec: NetSpec, gate: Gate) -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Net::new(spec, ours.into(), gate).unwrap(), theirs)
}

/// Runs `act` over a receive and a transmit queue, one of which holds `chains`.
fn with_queue(
    memory: &GuestMemoryMmap,
    index: usize,
    chains: &[(u64, u32, u16)],
    act: impl FnOnce(&mut Queues<'_>),
) -> BTreeMap<Refusal, u64> {
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
    refusals.sums()
}

#[test]
fn a_frame_from_the_guest_reaches_passt_with_its_length() {
    let (mut net, mut passt) = net();
    let memory = memory();
    assert!(transmit(&mut net, &memory, &packet([192, 0, 2, 1])).is_empty());
    let mut seen = [0; 38];
    passt.read_exact(&mut seen).unwrap();
    assert_eq!(seen[..4], [0, 0, 0, 34]);
    assert_eq!(seen[4..], packet([192, 0, 2, 1]));
}

#[test]
fn a_frame_to_the_host_never_reaches_passt() {
    let (mut net, mut passt) = net();
    let memory = memory();
    for to in [[127, 0, 0, 1], [0, 0, 0, 0], [192, 0, 2, 2]] {
        let refused = transmit(&mut net, &memory, &packet(to));
        assert_eq!(refused, BTreeMap::from([(Refusal::FrameHost, 1)]));
    }
    let nothing = passt.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn every_cause_of_a_loss_is_counted_for_itself() {
    let (mut net, mut passt) = net();
    let memory = memory();
    let good = packet([192, 0, 2, 1]);
    let with = |offset: usize, byte: u8| {
        let mut frame = good.clone();
        frame[offset] = byte;
        frame
    };
    let refused = [
        (with(6, 0), Refusal::FrameMac),
        (with(29, 3), Refusal::FrameAddress),
        (with(12, 0x86), Refusal::FrameProtocol),
        (with(14, 0x46), Refusal::FrameMalformed),
        (with(13, 6), Refusal::FrameArp),
    ];
    for (frame, refusal) in refused {
        assert_eq!(transmit(&mut net, &memory, &frame), BTreeMap::from([(refusal, 1)]));
    }
    assert!(passt.read(&mut [0; 1]).is_err());
    transmit(&mut net, &memory, &good);
    assert_eq!(passt.read(&mut [0; 64]).unwrap(), 38);
}

#[test]
fn a_closed_interface_opens_both_ways_at_a_word() {
    let gate = Gate::default();
    let mut closed = spec();
    closed.reach.until_attested = true;
    let (mut net, mut passt) = with_spec(closed, gate.clone());
    let memory = memory();
    let (outward, mut inward) = (packet([192, 0, 2, 1]), packet([192, 168, 76, 2]));
    inward[26..30].copy_from_slice(&[192, 0, 2, 1]);
    let mut try_both = || {
        let kept_in = transmit(&mut net, &memory, &outward);
        passt.write_all(&[&[0, 0, 0, 34], &inward[..]].concat()).unwrap();
        let buffer = GuestAddress(AT + 0x4000);
        let kept_out = with_queue(&memory, RECEIVE, &[(buffer.0, 2048, WRITE)], |io| {
            net.backend_ready(io).unwrap();
        });
        let there = memory.read_obj::<u64>(buffer.unchecked_add(HEADER as u64)).unwrap() != 0;
        let closed =
            |refused: BTreeMap<Refusal, u64>| refused == [(Refusal::FrameClosed, 1)].into();
        ((passt.read(&mut [0; 64]).is_ok(), closed(kept_in)), (there, closed(kept_out)))
    };
    assert_eq!(try_both(), ((false, true), (false, true)));
    gate.store(true, Ordering::Release);
    assert_eq!(try_both(), ((true, false), (true, false)));
}

#[test]
fn what_is_beyond_the_limit_is_lost_in_its_own_direction() {
    let mut narrow = spec();
    // One frame, and the next when its bytes are paid for.
    narrow.limit.bytes_per_s = 1.try_into().unwrap();
    let (mut net, mut passt) = with_spec(narrow, Gate::default());
    let memory = memory();
    let beyond = BTreeMap::from([(Refusal::FrameLimit, 1)]);
    assert!(transmit(&mut net, &memory, &packet([192, 0, 2, 1])).is_empty());
    assert_eq!(transmit(&mut net, &memory, &packet([192, 0, 2, 1])), beyond);
    assert_eq!(passt.read(&mut [0; 256]).unwrap(), 38);
    passt.write_all(b"\0\0\0\x05frame\0\0\0\x05again").unwrap();
    let buffers = [(AT, 2048, WRITE), (AT + 2048, 2048, WRITE)];
    let refused = with_queue(&memory, RECEIVE, &buffers, |io| {
        net.backend_ready(io).unwrap();
    });
    assert_eq!(refused, beyond);
    assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(AT + 12)).unwrap(), *b"frame");
}

/// An Ethernet frame with an IPv4 packet and nothing in it.
fn packet(to: [u8; 4]) -> Vec<u8> {
    let fixed = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 192, 168, 76, 2];
    [&[2; 12][..], &[8, 0], &fixed, &to].concat()
}

/// Sends a frame; what was refused of it.
fn transmit(net: &mut Net, memory: &GuestMemoryMmap, frame: &[u8]) -> BTreeMap<Refusal, u64> {
    memory.write_slice(&[&[0; HEADER], frame].concat(), GuestAddress(AT)).unwrap();
    with_queue(memory, TRANSMIT, &[(AT, (HEADER + frame.len()) as u32, 0)], |io| {
        net.kicked(TRANSMIT, io).unwrap();
    })
}

/// A device on a real tap, whose other side is the kernel as 192.168.76.1, in a network of this thread's own.
fn on_a_tap() -> Net {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    coffer_machine::attach_tap(tun.as_fd(), "coffer0").unwrap();
    for command in ["addr add 192.168.76.1/24 dev coffer0", "link set coffer0 up"] {
        let status = std::process::Command::new("ip").args(command.split(' ')).status().unwrap();
        assert!(status.success(), "ip {command}");
    }
    Net::new(NetSpec { backend: NetBackend::Tap, ..spec() }, tun.into(), Gate::default()).unwrap()
}

/// The frames that reach the guest within a moment.
fn received(net: &mut Net, memory: &GuestMemoryMmap) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..10 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        memory.write_slice(&[0; 256], GuestAddress(AT)).unwrap();
        with_queue(memory, RECEIVE, &[(AT, 2048, WRITE)], |io| {
            net.backend_ready(io).unwrap();
        });
        let mut frame = vec![0; 42];
        memory.read_slice(&mut frame, GuestAddress(AT + HEADER as u64)).unwrap();
        if frame.iter().any(|byte| *byte != 0) {
            frames.push(frame);
        }
    }
    frames
}

#[test]
fn a_tap_carries_frames_both_ways_and_no_spoofed_ones() {
    std::thread::spawn(|| {
        let (mut net, memory) = (on_a_tap(), memory());
        let ask = |mac: u8, address: u8| {
            let head = [&[0xff; 6][..], &[mac; 6], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[mac; 6]];
            let from_to = [192, 168, 76, address, 0, 0, 0, 0, 0, 0, 192, 168, 76, 1];
            [head.concat(), from_to.to_vec()].concat()
        };
        let mut answers = |mac: u8, address: u8| {
            let refused = transmit(&mut net, &memory, &ask(mac, address));
            let answer = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
            let received = received(&mut net, &memory);
            let answered = received.iter().any(|f| f[12..22] == answer && f[..6] == [mac; 6]);
            (answered, refused.keys().next().copied())
        };
        assert_eq!(answers(4, 2), (false, Some(Refusal::FrameMac)));
        assert_eq!(answers(2, 3), (false, Some(Refusal::FrameArp)));
        assert_eq!(answers(2, 2), (true, None));
    })
    .join()
    .unwrap();
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
    net.activate(0);
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
    net.activate(0);
    (0..1000).for_each(|_| net.backend.send(&packet([192, 0, 2, 1])));
    (0..1000).for_each(|_| net.backend.send(&[7; 1500]));
    net.reset();
    // Room again, and nobody to use it.
    while passt.read(&mut [0; 4096]).is_ok() {}
    assert!(!calls(&net));
    net.activate(0);
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
