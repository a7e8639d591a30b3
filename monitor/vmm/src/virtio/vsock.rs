//! virtio-vsock (virtio 1.2 section 5.10): the guest's one way to its monitor (SPEC 6.1).
//!
//! Only this: the guest opens a stream from its own CID to host CID 2, port [`PORT`]. For each, a socket pair is
//! made, the supervisor gets one end as `Event::Channel`, and bytes are relayed with the protocol's credit.
//! What it refuses, with RST: any other address, port or type, more than [`CONNECTIONS_MAX`] connections, and a
//! guest that sends more than its credit. Packets that lie about their source are dropped.
//! Streams end with the device: after a restore the guest is told with an event, and on streams it goes on with, RST.

mod connection;
mod packet;

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use coffer_formats::channel::PORT;
use coffer_monitor_wire::{EndReason, Event, Refusal};
use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;

use crate::process::Control;
use crate::virtio::device::{BUDGET, Chain, Pace, Queues, VirtioDevice, write_both};
use crate::virtio::watch::Watch;
use connection::{Connection, Next};
use packet::{HEADER_SIZE, Header, Op};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const HOST_CID: u64 = 2;
/// The agent needs two (evidence, stop); the rest is headroom. Each may hold [`connection::CREDIT`] bytes here.
const CONNECTIONS_MAX: usize = 16;
/// Answers the guest has not made room for. Its packets wait in its own queue beyond that.
const REPLIES_MAX: usize = 64;
/// Largest payload of one packet either way.
const PAYLOAD_MAX: usize = 64 << 10;

/// Where a new connection's host end goes.
pub trait ChannelSink: Send {
    /// Hands over the host end of a connection to `port`. An error refuses the connection.
    fn open(&mut self, port: u32, stream: UnixStream) -> std::io::Result<()>;
}

impl ChannelSink for Control {
    fn open(&mut self, port: u32, stream: UnixStream) -> std::io::Result<()> {
        self.try_send(&Event::Channel { port }, &[stream.as_fd()])
    }
}

/// The device.
pub struct Vsock {
    guest_cid: u64,
    sink: Box<dyn ChannelSink>,
    watch: Watch,
    /// By the guest's port.
    connections: BTreeMap<u32, Connection>,
    /// Packets for the guest that carry no payload.
    replies: VecDeque<Header>,
    /// There is something for the guest, and it has made no room for it.
    starved: bool,
    /// The guest does not know yet that its streams are gone.
    cut: bool,
}

impl Vsock {
    /// A device for the guest with this CID.
    pub fn new(guest_cid: u32, sink: Box<dyn ChannelSink>) -> std::io::Result<Self> {
        Ok(Self {
            guest_cid: guest_cid.into(),
            sink,
            watch: Watch::new()?,
            connections: BTreeMap::new(),
            replies: VecDeque::new(),
            starved: false,
            cut: false,
        })
    }

    /// Takes packets from the guest, then gives it what there is for it.
    fn pump(&mut self, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.tell_of_cut(io);
        self.connections.values_mut().for_each(Connection::forward);
        let sent = self.take_packets(io)?;
        let full = self.replies.len() >= REPLIES_MAX;
        let received = self.give_packets(io);
        io.notify(RECEIVE);
        self.update_interest();
        // Packets that waited for room among the replies, which there is now.
        let again = full && self.replies.len() < REPLIES_MAX;
        let more = again || [sent, received].contains(&Pace::More);
        Ok(if more { Pace::More } else { Pace::Idle })
    }

    /// Tells the guest that its streams are gone, once it has room for an event (section 5.10.6.7).
    fn tell_of_cut(&mut self, io: &mut Queues<'_>) {
        const TRANSPORT_RESET: [u8; 4] = [0; 4];
        if self.cut
            && let Some(chain) = io.pop_or_rearm(EVENT)
        {
            let head = chain.head_index();
            let event = chain.writer(io.memory);
            let told = event.map_or(0, |mut event| write_both(&mut event, &TRANSPORT_RESET, &[]));
            io.complete(EVENT, head, told);
            io.notify(EVENT);
            self.cut = false;
        }
    }

    fn take_packets(&mut self, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        let refusals = io.refusals;
        // Every packet may cause one reply: no room for it, no packet. The guest kicks when it has made room.
        let room = |vsock: &Self| vsock.replies.len() < REPLIES_MAX;
        io.drain(TRANSMIT, self, room, |vsock, chain, memory| {
            let refused = match read_packet(chain, memory) {
                Some((header, payload)) => vsock.handle(&header, &payload),
                None => Some(Refusal::Chain),
            };
            if let Some(refusal) = refused {
                refusals.count(refusal);
            }
            Ok(0)
        })
    }

    /// Serves a packet, or says what it is refused for.
    fn handle(&mut self, header: &Header, payload: &[u8]) -> Option<Refusal> {
        if header.src_cid != self.guest_cid {
            return Some(Refusal::VsockSource);
        }
        let ours = header.dst_cid == HOST_CID && header.dst_port == PORT && header.is_stream();
        let known = ours && self.connections.contains_key(&header.src_port);
        match (header.op(), known) {
            (Some(Op::Reset), _) => {
                self.forget(header.src_port, ours);
                None
            }
            (Some(Op::Request), false) if ours => self.open(header),
            (Some(op), true) => self.relay(op, header, payload),
            // A guest that is told RST takes the connection for gone, and so must we.
            (None, true) => self.follow(header.src_port, Next::Refuse),
            _ => self.refuse(header),
        }
    }

    fn open(&mut self, request: &Header) -> Option<Refusal> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return self.refuse(request);
        }
        match self.connect(request) {
            Ok(connection) => {
                self.replies.push_back(connection.header(Op::Response));
                self.connections.insert(request.src_port, connection);
                None
            }
            Err(_) => self.refuse(request),
        }
    }

    fn connect(&mut self, request: &Header) -> std::io::Result<Connection> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.sink.open(request.dst_port, theirs)?;
        Ok(Connection::new(request, ours))
    }

    fn relay(&mut self, op: Op, header: &Header, payload: &[u8]) -> Option<Refusal> {
        let connection = self.connections.get_mut(&header.src_port)?;
        connection.update_credit(header);
        let next = match op {
            Op::Data => connection.accept(payload),
            Op::Shutdown => connection.guest_shutdown(header.flags),
            Op::CreditRequest => Next::Reply(Op::CreditUpdate),
            Op::CreditUpdate => Next::Nothing,
            // A second request on an open connection, or an answer to a question never asked.
            Op::Request | Op::Response | Op::Reset => Next::Refuse,
        };
        self.follow(header.src_port, next)
    }

    fn follow(&mut self, port: u32, next: Next) -> Option<Refusal> {
        let connection = self.connections.get(&port)?;
        match next {
            Next::Nothing => {}
            Next::Reply(op) => self.replies.push_back(connection.header(op)),
            Next::Close | Next::Refuse => {
                self.replies.push_back(connection.header(Op::Reset));
                self.forget(port, true);
            }
        }
        (next == Next::Refuse).then_some(Refusal::VsockPacket)
    }

    fn refuse(&mut self, header: &Header) -> Option<Refusal> {
        self.replies.push_back(header.reply(Op::Reset));
        Some(Refusal::VsockPacket)
    }

    fn forget(&mut self, port: u32, ours: bool) {
        if ours && let Some(connection) = self.connections.remove(&port) {
            self.watch.want(connection.stream(), EventFlags::empty());
        }
    }

    fn give_packets(&mut self, io: &mut Queues<'_>) -> Pace {
        self.starved = false;
        for _ in 0..BUDGET {
            let Some(port) = self.port_with_news() else { return Pace::Idle };
            let Some(chain) = io.pop_or_rearm(RECEIVE) else {
                self.starved = true;
                return Pace::Idle;
            };
            let head = chain.head_index();
            let written = self.fill(port, chain, io.memory);
            io.complete(RECEIVE, head, written);
        }
        Pace::More
    }

    /// Whose turn it is: a reply first (`None` inside), else a connection with bytes, credit updates or an end to tell.
    fn port_with_news(&mut self) -> Option<Option<u32>> {
        if !self.replies.is_empty() {
            return Some(None);
        }
        self.connections
            .iter_mut()
            .find_map(|(port, connection)| connection.has_news().then_some(Some(*port)))
    }

    /// Writes one packet into a receive chain.
    fn fill(&mut self, port: Option<u32>, chain: Chain<'_>, memory: &GuestMemoryMmap) -> u32 {
        let Ok(mut writer) = chain.writer(memory) else { return 0 };
        let Some(room) = writer.available_bytes().checked_sub(HEADER_SIZE) else { return 0 };
        let (header, payload) = match port {
            None => (self.replies.pop_front(), Vec::new()),
            Some(port) => self.news(port, room.min(PAYLOAD_MAX)),
        };
        let Some(header) = header else { return 0 };
        write_both(&mut writer, &header.encode(), &payload)
    }

    fn news(&mut self, port: u32, room: usize) -> (Option<Header>, Vec<u8>) {
        let Some(connection) = self.connections.get_mut(&port) else { return (None, Vec::new()) };
        let (op, payload) = connection.take_news(room);
        let header = Header { len: payload.len() as u32, ..connection.header(op) };
        if op == Op::Reset {
            self.forget(port, true);
        }
        (Some(header), payload)
    }

    fn update_interest(&self) {
        for connection in self.connections.values() {
            let mut interest = connection.interest();
            // The guest kicks when it has made room; until then nobody is heard.
            interest.set(EventFlags::IN, interest.contains(EventFlags::IN) && !self.starved);
            self.watch.want(connection.stream(), interest);
        }
    }
}

/// Header and payload of a transmit chain, copied out of guest memory once.
fn read_packet(chain: Chain<'_>, memory: &GuestMemoryMmap) -> Option<(Header, Vec<u8>)> {
    let mut reader = chain.reader(memory).ok()?;
    let mut header = [0; HEADER_SIZE];
    reader.read_exact(&mut header).ok()?;
    let header = Header::decode(&header);
    let len = header.len as usize;
    if len > PAYLOAD_MAX || len > reader.available_bytes() {
        return None;
    }
    let mut payload = vec![0; len];
    reader.read_exact(&mut payload).ok()?;
    Some((header, payload))
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    /// Receive, transmit, event.
    fn queue_sizes(&self) -> &'static [u16] {
        &[128, 128, 16]
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn kicked(&mut self, _queue: usize, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.pump(io)
    }

    fn backend(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn backend_ready(&mut self, io: &mut Queues<'_>) -> Result<Pace, EndReason> {
        self.pump(io)
    }

    /// No stream outlives its device: what is at its other end has gone on, or is on another host.
    fn resume(&mut self, _features: u64) {
        self.cut = true;
    }

    fn reset(&mut self) {
        let ports: Vec<u32> = self.connections.keys().copied().collect();
        ports.into_iter().for_each(|port| self.forget(port, true));
        self.replies.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests;
