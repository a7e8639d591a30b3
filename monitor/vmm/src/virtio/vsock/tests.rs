//! Packets no driver would send, and the credit that holds them back.

use super::*;
use proptest::prelude::*;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::refusals::Refusals;
use crate::virtio::device::Interrupt;

const GUEST: u64 = 77;
const WRITE: u16 = 2;

/// Keeps host ends.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<UnixStream>>>);

impl ChannelSink for Kept {
    fn open(&mut self, port: u32, stream: UnixStream) -> std::io::Result<()> {
        assert_eq!(port, PORT);
        self.0.lock().unwrap().push(stream);
        Ok(())
    }
}

fn device() -> (Vsock, Kept) {
    let kept = Kept::default();
    (Vsock::new(GUEST as u32, Box::new(kept.clone())).unwrap(), kept)
}

fn packet(op: Op) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: 1000,
        dst_port: PORT,
        len: 0,
        kind: 1,
        op: op as u16,
        flags: 0,
        buf_alloc: 1 << 20,
        fwd_cnt: 0,
    }
}

/// What the device would tell the guest next, without payload.
fn next_reply(vsock: &mut Vsock) -> Option<Header> {
    vsock.replies.pop_front()
}

#[test]
fn a_connection_opens_and_relays_both_ways() {
    let (mut vsock, kept) = device();
    vsock.handle(&packet(Op::Request), b"");
    let response = next_reply(&mut vsock).unwrap();
    assert_eq!(response.op(), Some(Op::Response));
    assert_eq!(
        (response.src_cid, response.dst_cid, response.src_port, response.dst_port),
        (HOST_CID, GUEST, PORT, 1000)
    );
    assert_eq!(response.buf_alloc, connection::CREDIT);

    vsock.handle(&Header { len: 5, ..packet(Op::Data) }, b"hello");
    let mut host = kept.0.lock().unwrap().pop().unwrap();
    let mut seen = [0; 5];
    host.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");

    host.write_all(b"world").unwrap();
    assert_eq!(vsock.port_with_news(), Some(Some(1000)));
    let (header, payload) = vsock.news(1000, 64);
    assert_eq!((header.unwrap().op(), payload.as_slice()), (Some(Op::Data), &b"world"[..]));
    assert_eq!(header.unwrap().fwd_cnt, 5);
}

#[test]
fn everything_but_the_one_service_is_reset() {
    let near_misses = [
        Header { dst_port: PORT + 1, ..packet(Op::Request) },
        Header { dst_cid: 1, ..packet(Op::Request) },
        Header { dst_cid: GUEST, ..packet(Op::Request) },
        Header { kind: 2, ..packet(Op::Request) },
        Header { op: 0, ..packet(Op::Request) },
        Header { op: 99, ..packet(Op::Request) },
        packet(Op::Data),
        packet(Op::Response),
        packet(Op::Shutdown),
        packet(Op::CreditRequest),
    ];
    for near_miss in near_misses {
        let (mut vsock, kept) = device();
        vsock.handle(&near_miss, b"");
        assert_eq!(next_reply(&mut vsock), Some(near_miss.reply(Op::Reset)), "{near_miss:?}");
        assert!(kept.0.lock().unwrap().is_empty() && vsock.connections.is_empty());
    }
}

#[test]
fn a_false_source_is_dropped_and_a_reset_is_never_answered() {
    let (mut vsock, _) = device();
    vsock.handle(&Header { src_cid: GUEST + 1, ..packet(Op::Request) }, b"");
    vsock.handle(&packet(Op::Reset), b"");
    assert_eq!(next_reply(&mut vsock), None);
}

#[test]
fn an_operation_that_is_none_ends_the_connection() {
    let (mut vsock, _) = device();
    vsock.handle(&packet(Op::Request), b"");
    next_reply(&mut vsock).unwrap();
    vsock.handle(&Header { op: 9, ..packet(Op::Data) }, b"");
    assert_eq!(next_reply(&mut vsock).unwrap().op(), Some(Op::Reset));
    assert!(vsock.connections.is_empty());
}

#[test]
fn connections_are_limited() {
    let (mut vsock, _) = device();
    for port in 0..=CONNECTIONS_MAX as u32 {
        vsock.handle(&Header { src_port: port, ..packet(Op::Request) }, b"");
    }
    assert_eq!(vsock.connections.len(), CONNECTIONS_MAX);
    assert_eq!(vsock.replies.back().unwrap().op(), Some(Op::Reset));
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let (mut vsock, kept) = device();
    vsock.handle(&packet(Op::Request), b"");
    next_reply(&mut vsock);
    let chunk = vec![0; PAYLOAD_MAX];
    // The host end is not read: socket buffers fill, then the credit, then it is over.
    for _ in 0..1000 {
        vsock.handle(&Header { len: chunk.len() as u32, ..packet(Op::Data) }, &chunk);
    }
    assert!(vsock.connections.is_empty());
    assert_eq!(next_reply(&mut vsock).unwrap().op(), Some(Op::Reset));
    drop(kept);
}

#[test]
fn nothing_is_sent_beyond_the_guests_buffer() {
    let (mut vsock, kept) = device();
    vsock.handle(&Header { buf_alloc: 3, ..packet(Op::Request) }, b"");
    next_reply(&mut vsock);
    kept.0.lock().unwrap()[0].write_all(b"abcdef").unwrap();
    assert_eq!(vsock.news(1000, 64).1, b"abc");
    assert_eq!(vsock.port_with_news(), None);
    vsock.handle(&Header { buf_alloc: 3, fwd_cnt: 3, ..packet(Op::CreditUpdate) }, b"");
    assert_eq!(vsock.news(1000, 64).1, b"def");
}

#[test]
fn the_hosts_end_is_told_and_the_guests_end_closes() {
    let (mut vsock, kept) = device();
    vsock.handle(&packet(Op::Request), b"");
    next_reply(&mut vsock);
    kept.0.lock().unwrap().clear();
    assert_eq!(vsock.port_with_news(), Some(Some(1000)));
    assert_eq!(vsock.news(1000, 64).0.unwrap().op(), Some(Op::Shutdown));
    vsock.handle(&Header { flags: 3, ..packet(Op::Shutdown) }, b"");
    assert_eq!(next_reply(&mut vsock).unwrap().op(), Some(Op::Reset));
    assert!(vsock.connections.is_empty());
}

#[test]
fn replies_wait_for_room_and_the_guest_waits_for_them() {
    let (mut vsock, _) = device();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let bogus = Header { dst_port: 1, ..packet(Op::Request) }.encode();
    memory.write_slice(&bogus, GuestAddress(0x1_0000)).unwrap();
    let chains: Vec<_> =
        (0..127).map(|_| RawDescriptor::from(Descriptor::new(0x1_0000, 44, 0, 0))).collect();
    let mock = MockSplitQueue::new(&memory, 128);
    mock.add_desc_chains(&chains, 0).unwrap();
    let interrupt = Interrupt::new(coffer_machine::Doorbell::new().unwrap());
    let refusals = Refusals::default();
    let mut queues: Vec<Option<Queue>> = vec![None, Some(mock.create_queue().unwrap()), None];
    let mut io =
        Queues { queues: &mut queues, memory: &memory, interrupt: &interrupt, refusals: &refusals };
    vsock.kicked(TRANSMIT, &mut io).unwrap();
    assert_eq!(vsock.replies.len(), REPLIES_MAX);
}

/// Whether the device loop would be woken.
fn calls(vsock: &Vsock) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&vsock.watch, PollFlags::IN)], Some(&now)).unwrap() > 0
}

/// Runs `act` over a receive queue with so many chains and a transmit queue with so many bogus packets.
fn with_queues(received: usize, sent: usize, act: impl FnOnce(&mut Queues<'_>)) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let bogus = Header { dst_port: 1, ..packet(Op::Request) }.encode();
    memory.write_slice(&bogus, GuestAddress(0x8_0000)).unwrap();
    let queue = |at: u64, count: usize, flags: u16| {
        let chain = RawDescriptor::from(Descriptor::new(0x8_0000 + at, 44, flags, 0));
        let mock = MockSplitQueue::create(&memory, GuestAddress(at), 128);
        if count > 0 {
            mock.add_desc_chains(&vec![chain; count], 0).unwrap();
        }
        Some(mock.create_queue().unwrap())
    };
    let interrupt = Interrupt::new(coffer_machine::Doorbell::new().unwrap());
    let refusals = Refusals::default();
    let mut queues = vec![queue(0x1_0000, received, WRITE), queue(0, sent, 0), None];
    act(&mut Queues {
        queues: &mut queues,
        memory: &memory,
        interrupt: &interrupt,
        refusals: &refusals,
    });
}

#[test]
fn a_guest_without_room_is_not_called_for() {
    let (mut vsock, kept) = device();
    vsock.handle(&packet(Op::Request), b"");
    next_reply(&mut vsock).unwrap();
    kept.0.lock().unwrap()[0].write_all(b"news").unwrap();
    with_queues(0, 0, |io| {
        vsock.backend_ready(io).unwrap();
        assert!(!calls(&vsock));
    });
    with_queues(1, 0, |io| {
        // Room for a header only: credit is told, and nobody is called for the rest.
        vsock.kicked(RECEIVE, io).unwrap();
        assert!(!calls(&vsock));
    });
}

#[test]
fn held_bytes_go_on_while_the_guest_takes_no_replies() {
    let (mut vsock, kept) = device();
    vsock.handle(&packet(Op::Request), b"");
    let full = vec![7; connection::CREDIT as usize];
    while vsock.connections.values().next().unwrap().interest() != EventFlags::OUT | EventFlags::IN
    {
        vsock.handle(&Header { len: connection::CREDIT, ..packet(Op::Data) }, &full);
        assert_eq!(vsock.connections.len(), 1);
    }
    let mut host = kept.0.lock().unwrap().pop().unwrap();
    let mut read = 0;
    for _ in 0..1000 {
        let mut some = vec![0; 1 << 20];
        host.set_nonblocking(true).unwrap();
        read += host.read(&mut some).unwrap_or(0);
        with_queues(0, 0, |io| assert_eq!(vsock.backend_ready(io), Ok(Pace::Idle)));
    }
    assert!(read > 0 && read.is_multiple_of(full.len()), "{read}");
    assert!(!calls(&vsock) && vsock.replies.len() == 1);
}

#[test]
fn packets_that_waited_for_room_are_served_once_there_is_some() {
    let (mut vsock, _) = device();
    with_queues(REPLIES_MAX, REPLIES_MAX + 9, |io| {
        assert_eq!(vsock.kicked(RECEIVE, io).unwrap(), Pace::More);
        assert_eq!(vsock.kicked(RECEIVE, io).unwrap(), Pace::Idle);
        assert_eq!(io.queues[TRANSMIT].as_ref().unwrap().next_avail(), REPLIES_MAX as u16 + 9);
    });
}

#[test]
fn what_is_refused_has_its_name() {
    let (mut vsock, _) = device();
    let mut handle = |header: Header, payload: &[u8]| vsock.handle(&header, payload);
    let sound = packet(Op::Request);
    assert_eq!(handle(sound, b""), None);
    assert_eq!(handle(packet(Op::Data), b"x"), None);
    assert_eq!(
        handle(packet(Op::Data), &[0; connection::CREDIT as usize + 1]),
        Some(Refusal::VsockPacket)
    );
    assert_eq!(handle(Header { src_cid: 9, ..sound }, b""), Some(Refusal::VsockSource));
    for stranger in [
        Header { dst_cid: 3, ..sound },
        Header { dst_port: PORT + 1, ..sound },
        Header { kind: 2, ..sound },
        Header { op: 9, ..sound },
    ] {
        assert_eq!(handle(stranger, b""), Some(Refusal::VsockPacket), "{stranger:?}");
    }
    assert_eq!(handle(sound, b""), None);
    assert_eq!(handle(packet(Op::Response), b""), Some(Refusal::VsockPacket));
    assert_eq!(handle(packet(Op::Reset), b""), None);
}

proptest! {
    #[test]
    fn any_packets_leave_the_device_within_its_limits(
        packets in proptest::collection::vec(
            (any::<u16>(), 0u16..9, 0u32..20, any::<u32>(), any::<u32>(), any::<u32>(), 0usize..300, any::<bool>()),
            0..100,
        ),
        room in 0usize..100,
    ) {
        let (mut vsock, _kept) = device();
        for (odd, op, src_port, flags, buf_alloc, fwd_cnt, len, stream) in packets {
            let kind = if stream { 1 } else { odd };
            let header = Header { op, src_port, flags, buf_alloc, fwd_cnt, kind, len: len as u32, ..packet(Op::Data) };
            vsock.handle(&header, &vec![7; len]);
            if let Some(Some(port)) = vsock.port_with_news() {
                let (header, payload) = vsock.news(port, room);
                prop_assert!(payload.len() <= room && header.is_none_or(|h| h.len as usize == payload.len()));
            }
            vsock.replies.pop_front();
            vsock.update_interest();
            prop_assert!(vsock.connections.len() <= CONNECTIONS_MAX && vsock.replies.len() <= REPLIES_MAX);
        }
    }

    #[test]
    fn any_chain_is_read_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 60),
        chain in proptest::collection::vec((0u64..0x11_0000, 0u32..0x2000, (0u16..4).prop_map(|f| f & WRITE)), 1..6),
    ) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(&bytes, GuestAddress(0x1_0000)).unwrap();
        let chain: Vec<_> = chain.into_iter().map(|(a, l, f)| RawDescriptor::from(Descriptor::new(a, l, f, 0))).collect();
        let mock = MockSplitQueue::new(&memory, 16);
        let chain = mock.build_desc_chain(&chain).unwrap();
        if let Some((header, payload)) = read_packet(chain.clone(), &memory) {
            prop_assert_eq!(header.len as usize, payload.len());
        }
        let (mut vsock, _) = device();
        vsock.refuse(&packet(Op::Data));
        vsock.fill(None, chain, &memory);
    }
}
