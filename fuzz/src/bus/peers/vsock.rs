//! The monitor's side of the guest's streams.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::vsock::{ChannelSink, Vsock};

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, Turn, WRITE};
use super::slot;

const GUEST: u64 = 77;
const HOST: u64 = 2;
const PORT: u32 = 49405;
const CONNECTIONS_MAX: usize = 16;
const HEADER: usize = 44;
const PAYLOAD_MAX: usize = 64 << 10;
/// Operations (virtio 1.2, 5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// virtio-vsock: streams to the one port there is, at most 16 at a time; each passes bytes on as they were sent, both ways,
/// and to the guest never more than it said it can take; what the guest gets is addressed to it. After a restore it is told
/// once that its streams are cut, and they are.
pub struct VsockPeer {
    opened: Arc<Mutex<Opened>>,
    streams: Vec<Stream>,
    /// Ports of responses the guest has seen, in order: those of the streams, but for what a reset swept away.
    answered: usize,
    /// By the guest's port.
    ports: BTreeMap<u32, Port>,
    requests: usize,
    known: bool,
    /// Streams were cut, and the guest does not know yet.
    cut: bool,
}

#[derive(Default)]
struct Opened {
    new: VecDeque<UnixStream>,
    refuses: bool,
}

struct Sink(Arc<Mutex<Opened>>);

impl ChannelSink for Sink {
    fn open(&mut self, port: u32, stream: UnixStream) -> std::io::Result<()> {
        assert_eq!(port, PORT, "no other is served");
        let mut opened = self.0.lock().unwrap();
        if opened.refuses {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        stream.set_nonblocking(true)?;
        opened.new.push_back(stream);
        Ok(())
    }
}

/// The monitor's end of a stream.
struct Stream {
    end: Option<UnixStream>,
    /// Bytes sent to the guest, and how many of them it got.
    sent: usize,
    got: usize,
    /// Bytes that came, until it is known from which port.
    came: Vec<u8>,
    port: Option<u32>,
}

/// A port of the guest.
#[derive(Default)]
struct Port {
    /// Which stream it is of.
    stream: Option<usize>,
    /// All it ever sent.
    sent: Vec<u8>,
    /// The most it ever said it has room for, if it never said it took any.
    room: u32,
    took: bool,
}

/// Byte `n` of what the monitor sends on stream `stream`.
fn pattern(stream: usize, n: usize) -> u8 {
    (stream * 59 + n * 7 + (n >> 8)) as u8
}

impl Default for VsockPeer {
    fn default() -> Self {
        Self {
            opened: Arc::default(),
            streams: Vec::new(),
            answered: 0,
            ports: BTreeMap::new(),
            requests: 0,
            known: true,
            cut: false,
        }
    }
}

impl VsockPeer {
    /// The device.
    pub fn device(&self) -> Box<dyn VirtioDevice> {
        let sink = Box::new(Sink(self.opened.clone()));
        Box::new(Vsock::new(GUEST as u32, sink).expect("a device"))
    }

    /// The last look at everything.
    pub fn finish(&mut self) {
        self.listen();
        let open = |stream: &&mut Stream| {
            let Some(mut end) = stream.end.as_ref() else { return false };
            let read = end.read(&mut [0; 1]);
            matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let open = self.streams.iter_mut().filter(open).count();
        assert!(open <= CONNECTIONS_MAX, "{open} connections are open");
    }

    /// Takes what came on every stream.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        for stream in &mut self.streams {
            while let Some(end) = &mut stream.end
                && let Ok(n @ 1..) = end.read(&mut buffer)
            {
                stream.came.extend_from_slice(&buffer[..n]);
            }
            let sent = match stream.port.and_then(|port| self.ports.get(&port)) {
                Some(port) if self.known => &port.sent,
                _ => continue,
            };
            let came = &stream.came;
            let found = came.is_empty() || sent.windows(came.len()).any(|part| part == came);
            assert!(found, "the guest sent nothing like what came");
        }
    }

    /// What the guest sends.
    fn outgoing(&mut self, packet: &[u8]) {
        let Some((header, payload)) = Header::read(packet) else { return };
        let ours = header.to == (HOST, PORT) && header.kind == 1;
        if header.from.0 != GUEST || header.len > PAYLOAD_MAX || payload.len() < header.len {
            return;
        }
        let port = self.ports.entry(header.from.1).or_default();
        self.requests += usize::from(header.op == REQUEST && ours);
        port.room = port.room.max(header.room);
        port.took |= header.took != 0;
        if header.op == DATA && ours {
            port.sent.extend_from_slice(&payload[..header.len]);
        }
    }

    /// What the guest gets.
    fn incoming(&mut self, packet: &[u8]) {
        let (header, payload) = Header::read(packet).expect("a whole packet");
        assert_eq!(header.to.0, GUEST, "a packet for somebody else");
        assert_eq!(payload.len(), header.len, "a length that is none");
        assert!(payload.is_empty() || header.op == DATA, "bytes in a packet that carries none");
        if header.from != (HOST, PORT) || header.kind != 1 {
            return assert_eq!(header.op, RESET, "only refusals have another sender");
        }
        let port = self.ports.entry(header.to.1).or_default();
        match header.op {
            RESPONSE => {
                let stream = &mut self.streams[self.answered];
                self.answered += 1;
                stream.port = Some(header.to.1);
                port.stream = Some(self.answered - 1);
            }
            DATA => {
                let number = port.stream.expect("a connection that was answered");
                let stream = &mut self.streams[number];
                for byte in payload {
                    assert_eq!(*byte, pattern(number, stream.got), "not what was sent");
                    stream.got += 1;
                }
                assert!(stream.got <= stream.sent, "more than was sent");
                assert!(port.took || stream.got <= port.room as usize, "more than there is room");
            }
            RESET => port.stream = None,
            SHUTDOWN | CREDIT_UPDATE => {}
            other => panic!("operation {other}"),
        }
    }
}

/// What this looks at in `struct virtio_vsock_hdr`.
struct Header {
    from: (u64, u32),
    to: (u64, u32),
    len: usize,
    kind: u16,
    op: u16,
    room: u32,
    took: u32,
}

impl Header {
    fn read(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = packet.split_at_checked(HEADER)?;
        let number = |at: usize, len: usize| {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(&header[at..at + len]);
            u64::from_le_bytes(bytes)
        };
        let this = Self {
            from: (number(0, 8), number(16, 4) as u32),
            to: (number(8, 8), number(20, 4) as u32),
            len: number(24, 4) as usize,
            kind: number(28, 2) as u16,
            op: number(30, 2) as u16,
            room: number(36, 4) as u32,
            took: number(40, 4) as u32,
        };
        Some((this, payload))
    }
}

impl Peer for VsockPeer {
    fn nature(&self) -> Nature {
        let config = GUEST.to_le_bytes().to_vec();
        Nature { kind: 19, features: 0, queues: &[128, 128, 16], config }
    }

    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory) {
        let how = program.byte();
        if how & 3 == 0 {
            // Room for packets.
            let len = program.one_of(&[4096, 44, 45, 43, 0, 108, 1024, 300]);
            let at = 0x800 + u64::from(program.byte()) * 0x20;
            for n in 0..=u64::from(how >> 6) {
                guest.put_chain(0, &[(at + n * 0x200, len, WRITE)], Link::Sound, memory);
            }
            return;
        }
        let at = slot(program);
        let port = 1000 + u32::from(how >> 2 & 0x1F);
        let op = program.one_of(&[REQUEST, DATA, DATA, SHUTDOWN, RESET, CREDIT_UPDATE, 7, 2, 0, 9]);
        let near = program.byte();
        let to = if near & 0xF8 == 0xF8 { HOST + u64::from(near & 1) } else { HOST };
        let from = if near & 0xF8 == 0xF0 { GUEST + 1 } else { GUEST };
        let to_port = if near & 0xF8 == 0xE8 { PORT + 1 } else { PORT };
        let kind = if near & 0xF8 == 0xE0 { 2u16 } else { 1 };
        let len = if op == DATA { usize::from(program.byte()) << (near & 3) } else { 0 };
        let flags = if op == SHUTDOWN { u32::from(program.byte() & 3) } else { 0 };
        let room = program.one_of(&[1 << 20, 0, 10, 300, u32::MAX]);
        let took = if near & 4 != 0 { program.value() } else { 0 };
        let packet = |port: u32| {
            let mut packet = [from.to_le_bytes(), to.to_le_bytes()].concat();
            for word in [port, to_port, len as u32, u32::from(kind) | u32::from(op) << 16] {
                packet.extend(word.to_le_bytes());
            }
            for word in [flags, room, took] {
                packet.extend(word.to_le_bytes());
            }
            packet
        };
        if op == REQUEST {
            // Many at once, as only so many are granted.
            for n in 0..=5 * (near & 3) {
                let at = at + u64::from(n) * 0x40;
                memory.put(at, &packet(port + u32::from(n)));
                guest.put_chain(1, &[(at, HEADER as u32, 0)], Link::Sound, memory);
            }
            return;
        }
        memory.put(at, &packet(port));
        let data = 0x800 + u64::from(program.byte()) * 0x20;
        let chain = [(at, HEADER as u32, 0), (data, len as u32, 0)];
        guest.put_chain(1, &chain, Link::Sound, memory);
    }

    fn event(&mut self, how: u8, program: &mut Program<'_>) {
        let which = usize::from(program.byte());
        if how & 7 == 7 {
            self.opened.lock().unwrap().refuses = how & 8 != 0;
        }
        let count = self.streams.len();
        if count == 0 {
            return;
        }
        let number = which % count;
        let stream = &mut self.streams[number];
        let Some(end) = &mut stream.end else { return };
        match how & 7 {
            0..=2 => {
                let len = usize::from(program.byte()) << (2 * (how & 3));
                let bytes: Vec<u8> = (0..len).map(|n| pattern(number, stream.sent + n)).collect();
                stream.sent += end.write(&bytes).unwrap_or(0);
            }
            3 => drop(end.shutdown(Shutdown::Write)),
            4 => drop(end.shutdown(Shutdown::Read)),
            5 => stream.end = None,
            _ => {}
        }
    }

    fn completed(&mut self, done: &Completed<'_>, expected: &mut [u8]) {
        let Chain { readable, writable, .. } = done.chain;
        match done.queue {
            0 => {
                let packet = writable.read(done.after, done.used as usize);
                writable.write(expected, 0, &packet);
                if writable.astray || writable.len < HEADER {
                    assert_eq!(done.used, 0, "there is no room for a packet");
                } else if done.overwritten {
                    self.known = false;
                } else if done.used > 0 && self.known {
                    self.take_new();
                    self.incoming(&packet);
                }
            }
            1 => {
                assert_eq!(done.used, 0, "nothing is written into what is sent");
                if !readable.astray {
                    self.outgoing(&readable.read(done.before, HEADER + PAYLOAD_MAX));
                }
            }
            _ => {
                assert!(std::mem::take(&mut self.cut), "an event, and there is none");
                let fits = !writable.astray && writable.len >= 4;
                assert_eq!(done.used, if fits { 4 } else { 0 });
                if fits {
                    // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
                    writable.write(expected, 0, &[0; 4]);
                }
            }
        }
    }

    fn turn_over(&mut self, turn: &Turn) {
        self.known &= turn.known || !turn.live;
        self.take_new();
        self.listen();
        assert!(!self.known || self.streams.len() <= self.requests, "a stream nobody asked for");
    }

    fn may_rest(&self, waiting: &[usize]) -> bool {
        // Packets may wait for answers to be taken.
        (waiting[1] == 0 || waiting[0] == 0) && (!self.cut || waiting[2] == 0)
    }

    fn renew(&mut self, running: bool) -> Box<dyn VirtioDevice> {
        self.reset();
        self.cut = running;
        self.device()
    }

    fn reset(&mut self) {
        self.cut = false;
        self.take_new();
        self.answered = self.streams.len();
        self.ports.values_mut().for_each(|port| port.stream = None);
    }
}

impl VsockPeer {
    fn take_new(&mut self) {
        for end in self.opened.lock().unwrap().new.drain(..) {
            self.streams.push(Stream {
                end: Some(end),
                sent: 0,
                got: 0,
                came: Vec::new(),
                port: None,
            });
        }
    }
}
