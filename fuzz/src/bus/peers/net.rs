//! A network backend: passt's end of a stream, or the other side of a tap device.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use coffer_monitor_wire::{NetBackend, NetSpec};
use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::mmio::Signal;
use coffer_vmm::virtio::net::Net;
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, Turn, WRITE};
use super::slot;

const MAC: [u8; 6] = [2, 0xC0, 0xFF, 0xEE, 0, 1];
/// The host's own address (RFC 5737).
const DENIED: [u8; 4] = [192, 0, 2, 2];
const HEADER: usize = 12;
const FRAME_MAX: usize = 65_535 + 18;

/// What the frames travel on.
enum Cable {
    Passt(UnixStream),
    Tap(UnixDatagram),
    Gone,
}

/// virtio-net: out go whole frames the guest sent, in order, that may leave (SPEC 6.6), and nothing else; in come frames
/// the backend sent, in order, whole or not at all, behind a header that says nothing.
pub struct NetPeer {
    how: u8,
    cable: Cable,
    /// The device's end, until it is plugged in.
    theirs: Option<NetSpec>,
    descriptor: Option<OwnedFd>,
    /// Frames that should arrive here, in order.
    outgoing: VecDeque<Vec<u8>>,
    /// True while every frame has to: the backend always read, and the link is whole.
    lossless: bool,
    /// False once it is not known what the guest sent.
    knows_outgoing: bool,
    knows_incoming: bool,
    /// What came out that is no whole frame yet.
    partial: Vec<u8>,
    /// Frames sent towards the guest, and what of the stream is none yet.
    incoming: VecDeque<Vec<u8>>,
    stream: Vec<u8>,
    /// True if the device holds the first of them.
    waiting: bool,
    /// Frames delivered in this turn; after 256 the device does not look for another.
    delivered: usize,
    /// True if what was sent is no stream of frames.
    broken: bool,
    reads: bool,
}

impl NetPeer {
    /// A backend, of which the lowest bits say how it is.
    pub fn new(how: u8) -> Self {
        let (cable, spec, descriptor) = cable(how);
        Self {
            how,
            cable,
            theirs: Some(spec),
            descriptor: Some(descriptor),
            outgoing: VecDeque::new(),
            lossless: how & 7 == 0,
            knows_outgoing: true,
            knows_incoming: true,
            partial: Vec::new(),
            incoming: VecDeque::new(),
            stream: Vec::new(),
            waiting: false,
            delivered: 0,
            broken: false,
            reads: how & 4 == 0,
        }
    }

    /// The device.
    pub fn device(&mut self) -> Box<dyn VirtioDevice> {
        let (spec, descriptor) = (self.theirs.take(), self.descriptor.take());
        let spec = spec.expect("once");
        Box::new(Net::new(spec, descriptor.expect("once")).expect("a device"))
    }

    /// Sends bytes, and notes which frames they make.
    fn send(&mut self, bytes: &[u8]) {
        match &mut self.cable {
            Cable::Passt(stream) => {
                let sent = stream.write(bytes).unwrap_or(0);
                self.stream.extend_from_slice(&bytes[..sent]);
                while let Some((prefix, rest)) = self.stream.split_first_chunk::<4>() {
                    let len = u32::from_be_bytes(*prefix) as usize;
                    self.broken |= !(1..=FRAME_MAX).contains(&len);
                    if self.broken || rest.len() < len {
                        break;
                    }
                    self.incoming.push_back(rest[..len].to_vec());
                    self.stream.drain(..4 + len);
                }
            }
            Cable::Tap(socket) => {
                if socket.send(bytes).is_ok() {
                    self.broken |= bytes.is_empty();
                    if !self.broken {
                        self.incoming.push_back(bytes.to_vec());
                    }
                }
            }
            Cable::Gone => {}
        }
    }

    fn receive(&mut self) {
        let mut buffer = vec![0; 4096];
        loop {
            match &mut self.cable {
                Cable::Passt(stream) => match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => self.partial.extend_from_slice(&buffer[..n]),
                    _ => return self.frames(),
                },
                Cable::Tap(socket) => {
                    buffer.resize(FRAME_MAX + 1, 0);
                    match socket.recv(&mut buffer) {
                        Ok(n) => {
                            let frame = buffer[..n].to_vec();
                            self.arrived(&frame);
                        }
                        Err(_) => return,
                    }
                }
                Cable::Gone => return,
            }
        }
    }

    fn frames(&mut self) {
        while let Some((prefix, rest)) = self.partial.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            assert!((1..=FRAME_MAX).contains(&len), "a frame of {len} bytes");
            if rest.len() < len {
                return;
            }
            let frame = rest[..len].to_vec();
            self.partial.drain(..4 + len);
            self.arrived(&frame);
        }
    }

    fn arrived(&mut self, frame: &[u8]) {
        assert!(may_leave(frame), "this must not leave: {:02x?}", &frame[..frame.len().min(40)]);
        if self.knows_outgoing {
            loop {
                let next = self.outgoing.pop_front().expect("the guest sent no such frame");
                if next == frame {
                    break;
                }
                assert!(!self.lossless, "a frame was lost");
            }
        }
    }
}

/// A cable that is as the lowest bits of `how` say, and its other end.
fn cable(how: u8) -> (Cable, NetSpec, OwnedFd) {
    let spec = |backend| NetSpec { mac: MAC, backend, deny: vec![DENIED.into()] };
    if how & 1 == 0 {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        if how & 2 != 0 {
            // The smallest there is: frames leave in pieces.
            set_socket_send_buffer_size(&theirs, 1).expect("a socket");
        }
        ours.set_nonblocking(true).expect("a socket");
        (Cable::Passt(ours), spec(NetBackend::Passt), theirs.into())
    } else {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        ours.set_nonblocking(true).expect("a socket");
        (Cable::Tap(ours), spec(NetBackend::Tap), theirs.into())
    }
}

/// SPEC 6.6, from its words: ARP or IPv4; not to 0/8, 127/8, 169.254/16, 224/4, 240/4, nor to the host; and a header
/// that fits its frame.
fn may_leave(frame: &[u8]) -> bool {
    match frame {
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 6, ..] => true,
        [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, packet @ ..] if packet.len() >= 20 => {
            let (words, total) =
                (packet[0] & 15, usize::from(packet[2]) << 8 | usize::from(packet[3]));
            let to = [packet[16], packet[17], packet[18], packet[19]];
            let here = matches!(to, [0 | 127 | 224..=255, ..] | [169, 254, ..]) || to == DENIED;
            packet[0] >> 4 == 4
                && words >= 5
                && total >= usize::from(words) * 4
                && total <= packet.len()
                && !here
        }
        _ => false,
    }
}

impl Peer for NetPeer {
    fn nature(&self) -> Nature {
        Nature { kind: 1, features: 1 << 5, queues: &[256, 256], config: MAC.to_vec() }
    }

    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory) {
        let how = program.byte();
        if how & 1 == 0 {
            // Room for frames.
            let len = if how & 0x40 == 0 { 1526 } else { u32::from(program.half() & 0x1FFF) };
            let at = 0x800 + u64::from(program.byte()) * 0x20;
            return guest.put_chain(0, &[(at, len, WRITE)], Link::Sound, memory);
        }
        let at = slot(program);
        let to = program.one_of(&[
            Ipv4Addr::new(192, 0, 2, 1),
            DENIED.into(),
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(198, 51, 100, 7),
        ]);
        let kind = program.one_of(&[[8, 0], [8, 0], [8, 6], [0x86, 0xDD], [0x81, 0]]);
        let extra = usize::from(program.byte() & 0x7F);
        let mut frame = [&[0xFF; 6][..], &MAC, &kind, &[0x45, 0, 0, 20 + extra as u8]].concat();
        frame.extend([0; 12]);
        frame.extend(to.octets());
        frame.resize(14 + 20 + extra, how);
        if how & 2 != 0 {
            // Another byte somewhere.
            let at = usize::from(program.byte()) % frame.len();
            frame[at] = program.byte();
        }
        if how & 4 != 0 {
            frame.truncate(program.byte().into());
        }
        memory.put(at, &[&[0; HEADER], &frame[..]].concat());
        let len = (HEADER + frame.len()) as u32;
        let cut = if how & 8 != 0 { len.min(program.byte().into()) } else { 0 };
        let chain = [(at, cut, 0), (at + u64::from(cut), len - cut, 0)];
        guest.put_chain(1, &chain, Link::Sound, memory);
    }

    fn event(&mut self, how: u8, program: &mut Program<'_>) {
        match how & 7 {
            0..=2 => {
                let len = usize::from(program.byte()) << (how & 3);
                let frame = vec![program.byte(); len.min(1600)];
                let prefix = (frame.len() as u32).to_be_bytes();
                let tap = matches!(self.cable, Cable::Tap(_));
                let bytes = if tap { frame } else { [&prefix[..], &frame].concat() };
                self.send(&bytes);
            }
            3 => self.send(program.bytes(24)),
            // Many small frames at once.
            4 => {
                let many = [0, 0, 0, 1, 7].repeat(usize::from(program.byte()) * 2);
                self.send(&many);
            }
            // A tap device does not hang up like a pair of sockets.
            5 if matches!(self.cable, Cable::Passt(_)) => {
                self.receive();
                (self.cable, self.lossless) = (Cable::Gone, false);
            }
            _ => {
                self.reads = how & 8 != 0;
                self.lossless = false;
            }
        }
    }

    fn completed(&mut self, done: &Completed<'_>, expected: &mut [u8]) {
        let Chain { readable, writable, .. } = done.chain;
        if done.queue == 1 {
            assert_eq!(done.used, 0, "nothing is written into what is sent");
            let len = readable.len.saturating_sub(HEADER);
            if !readable.astray && (1..=FRAME_MAX).contains(&len) {
                let frame = readable.read(done.before, readable.len).split_off(HEADER);
                if may_leave(&frame) {
                    self.outgoing.push_back(frame);
                }
            }
            return;
        }
        if !self.knows_incoming {
            let bytes = writable.read(done.after, done.used as usize);
            return writable.write(expected, 0, &bytes);
        }
        self.waiting = false;
        self.delivered += 1;
        let frame = self.incoming.pop_front().expect("a frame that nobody sent");
        let fits = !writable.astray && writable.len >= HEADER + frame.len();
        assert_eq!(done.used as usize, if fits { HEADER + frame.len() } else { 0 });
        if fits {
            // One buffer, and no more to say.
            writable.write(expected, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            writable.write(expected, HEADER, &frame);
        }
    }

    fn turn_over(&mut self, turn: &Turn) {
        if turn.live && !turn.known {
            (self.knows_outgoing, self.knows_incoming) = (false, false);
        }
        if turn.live && turn.signal != Signal::Kick(1) {
            // One that found no buffer is held.
            self.waiting = !self.incoming.is_empty() && self.delivered < 256;
        }
        self.delivered = 0;
        if self.reads {
            self.receive();
        }
    }

    fn may_rest(&self, waiting: &[usize]) -> bool {
        let gone = self.broken || matches!(self.cable, Cable::Gone);
        let delivered = waiting[0] == 0 || self.incoming.is_empty() || gone || !self.knows_incoming;
        let arrived = !self.lossless || gone || !self.reads || self.outgoing.is_empty();
        assert!(arrived || !self.knows_outgoing, "a frame is still on its way");
        waiting[1] == 0 && delivered
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.incoming.pop_front();
        }
    }

    /// Another cable. What was on its way on the old one is lost, both ways.
    fn renew(&mut self, _: bool) -> Box<dyn VirtioDevice> {
        self.receive();
        let (cable, spec, descriptor) = cable(self.how);
        (self.cable, self.theirs, self.descriptor) = (cable, Some(spec), Some(descriptor));
        self.outgoing.clear();
        self.incoming.clear();
        self.partial.clear();
        self.stream.clear();
        (self.waiting, self.broken) = (false, false);
        self.device()
    }
}
