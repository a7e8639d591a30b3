//! A network backend: passt's end of a stream, or the other side of a tap device.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::Ordering;

use coffer_image::reach::Reach;
use coffer_monitor_wire::api::NetLimit;
use coffer_monitor_wire::{NetBackend, NetSpec};
use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::mmio::Signal;
use coffer_vmm::virtio::net::{Gate, Net};
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::super::{Chain, Completed, Guest, Link, Memory, Nature, Peer, Program, Turn, WRITE};
use super::slot;

const MAC: [u8; 6] = [2, 0xC0, 0xFF, 0xEE, 0, 1];
/// The guest's own address.
const GUEST: [u8; 4] = [192, 168, 76, 2];
/// The host's own address (RFC 5737).
const DENIED: [u8; 4] = [192, 0, 2, 2];
/// Where the verifier is.
const VERIFIER: ([u8; 4], u16) = ([198, 51, 100, 7], 8443);
/// What the descriptor of half of the guests lets out, beside answers from port 80.
const EGRESS: &str = r#"[{"cidr":"192.0.2.0/30","protocol":"tcp","ports":{"min":443,"max":444}},
                         {"cidr":"198.51.100.0/24","protocol":"udp"}]"#;
const HEADER: usize = 12;
const FRAME_MAX: usize = 65_535 + 18;

/// What the frames travel on.
enum Cable {
    Passt(UnixStream),
    Tap(UnixDatagram),
    Gone,
}

/// What the interface is told of its guest.
#[derive(Clone, Copy)]
struct Rules {
    listed: bool,
    /// True if it waits for the guest to attest, which it does not.
    closed: bool,
    dhcp: bool,
}

/// virtio-net: out go whole frames the guest sent, in order, that may leave (SPEC 6.6), and nothing else; in come frames
/// the backend sent that may enter, in order, whole or not at all, behind a header that says nothing.
pub struct NetPeer {
    how: u8,
    rules: Rules,
    gate: Gate,
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
    /// Frames looked at in this turn; after 256 the device does not look at another.
    looked: usize,
    /// True if what was sent is no stream of frames.
    broken: bool,
    reads: bool,
}

impl NetPeer {
    /// A backend, of which the lowest bits say how it is.
    pub fn new(how: u8) -> Self {
        let gate = Gate::default();
        if how & 32 != 0 {
            gate.store(true, Ordering::Release);
        }
        let rules = Rules { listed: how & 8 != 0, closed: how & 48 == 16, dhcp: how & 64 != 0 };
        let (cable, spec, descriptor) = cable(how);
        Self {
            how,
            rules,
            gate,
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
            looked: 0,
            broken: false,
            reads: how & 4 == 0,
        }
    }

    /// The device.
    pub fn device(&mut self) -> Box<dyn VirtioDevice> {
        let (spec, descriptor) = (self.theirs.take(), self.descriptor.take());
        let spec = spec.expect("once");
        Box::new(Net::new(spec, descriptor.expect("once"), self.gate.clone()).expect("a device"))
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

    /// Forgets the frames that the device looked at and did not let in.
    fn skip(&mut self) {
        while self.looked < 256 && self.incoming.front().is_some_and(|f| !self.rules.may_enter(f)) {
            self.incoming.pop_front();
            self.looked += 1;
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
        assert!(
            self.rules.may_leave(frame),
            "this must not leave: {:02x?}",
            &frame[..frame.len().min(40)]
        );
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
    let spec = |backend| NetSpec {
        mac: MAC,
        address: GUEST.into(),
        backend,
        deny: vec![DENIED.into()],
        reach: Reach {
            egress: (how & 8 != 0).then(|| serde_json::from_str(EGRESS).expect("rules")),
            listen: Some(vec![80]),
            until_attested: how & 16 != 0,
        },
        verifier: Some(SocketAddrV4::new(VERIFIER.0.into(), VERIFIER.1)),
        dhcp: how & 64 != 0,
        // More than any program here sends.
        limit: NetLimit::default(),
    };
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

/// SPEC 6.6, from its words.
impl Rules {
    /// In the guest's name, as ARP or IPv4 without options; not to 0/8, 127/8, 169.254/16, 224/4, 240/4, nor to the host;
    /// and where the descriptor says, once it attested. Always to the verifier.
    fn may_leave(self, frame: &[u8]) -> bool {
        let Some((head, body)) = frame.split_at_checked(14) else { return false };
        if head[6..12] != MAC {
            return false;
        }
        if head[12..] == [8, 6] {
            let asks = body.starts_with(&[0, 1, 8, 0, 6, 4, 0, 1]);
            let answers = body.starts_with(&[0, 1, 8, 0, 6, 4, 0, 2]);
            return body.len() >= 28
                && (asks || answers)
                && body[8..14] == MAC
                && body[14..18] == GUEST;
        }
        if head[12..] != [8, 0] || !is_packet(body) {
            return false;
        }
        let (from, to) = (&body[12..16], &body[16..20]);
        let ports = ports(body);
        if self.dhcp && from == [0; 4] && to == [255; 4] && ports == Some((17, 68, 67)) {
            return !self.closed;
        }
        let here = matches!(to, [0 | 127 | 224..=255, ..] | [169, 254, ..]) || to == DENIED;
        if from != GUEST || here {
            return false;
        }
        let verifier =
            to == VERIFIER.0 && ports.is_some_and(|(p, _, to)| (p, to) == (6, VERIFIER.1));
        let listed = match (body[9], ports) {
            (17, _) if to.starts_with(&[198, 51, 100]) => true,
            (6, Some((_, _, 443 | 444))) if matches!(to, [192, 0, 2, 0..4]) => true,
            // SYN without ACK opens a connection, everything else answers.
            (6, Some((_, 80, _))) => body[33] & 0x12 != 2,
            _ => false,
        };
        verifier || !self.closed && (listed || !self.listed)
    }

    /// Anything, once it attested; before that ARP, and what the verifier says.
    fn may_enter(self, frame: &[u8]) -> bool {
        let Some((head, body)) = frame.split_at_checked(14) else { return !self.closed };
        let verifiers = || {
            body[12..16] == VERIFIER.0
                && ports(body).is_some_and(|(p, from, _)| (p, from) == (6, VERIFIER.1))
        };
        !self.closed
            || head[12..] == [8, 6]
            || head[12..] == [8, 0] && is_packet(body) && verifiers()
    }
}

/// A header of five words that fits its frame.
fn is_packet(body: &[u8]) -> bool {
    body.len() >= 20
        && body[0] == 0x45
        && (20..=body.len()).contains(&(usize::from(body[2]) << 8 | usize::from(body[3])))
}

/// Protocol and ports of a packet that is no fragment and has the whole header of TCP or UDP.
fn ports(body: &[u8]) -> Option<(u8, u16, u16)> {
    let total = usize::from(body[2]) << 8 | usize::from(body[3]);
    let header = match body[9] {
        6 => 20,
        17 => 8,
        _ => return None,
    };
    let fragment = body[6] & 0x3F != 0 || body[7] != 0;
    let port = |at: usize| u16::from(body[at]) << 8 | u16::from(body[at + 1]);
    (!fragment && total >= 20 + header).then(|| (body[9], port(20), port(22)))
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
        let from = program.one_of(&[GUEST, GUEST, GUEST, GUEST, GUEST, [192, 168, 76, 3], [0; 4]]);
        let to = program.one_of(&[
            Ipv4Addr::new(192, 0, 2, 1),
            DENIED.into(),
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            VERIFIER.0.into(),
        ]);
        let kind = program.one_of(&[[8, 0], [8, 0], [8, 0], [8, 6], [0x86, 0xDD], [0x81, 0]]);
        let extra = usize::from(program.byte() & 0x7F);
        let mut frame = [&[0xFF; 6][..], &MAC, &kind].concat();
        if kind == [8, 6] {
            frame.extend([0, 1, 8, 0, 6, 4, 0, 1 + (how >> 7)]);
            frame.extend([&MAC[..], &from, &[0; 6], &to.octets()].concat());
        } else {
            let protocol = program.one_of(&[6, 6, 17, 1]);
            let ports = [68u16, 67, 80, 443, 444, VERIFIER.1];
            let (near, far) = (program.one_of(&ports), program.one_of(&ports));
            frame.extend([0x45, 0, 0, 20 + extra as u8, 0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend([&from[..], &to.octets()].concat());
            frame.extend([near.to_be_bytes(), far.to_be_bytes()].concat());
            frame.extend([0; 9]);
            frame.push(program.byte());
        }
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
                let mut frame = vec![program.byte(); len.min(1600)];
                if how & 8 != 0 && frame.len() >= 54 {
                    // As the verifier sends.
                    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
                    frame[26..30].copy_from_slice(&VERIFIER.0);
                    frame[34..36].copy_from_slice(&VERIFIER.1.to_be_bytes());
                }
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
                if self.rules.may_leave(&frame) {
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
        self.skip();
        self.looked += 1;
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
            self.skip();
            self.waiting = !self.incoming.is_empty() && self.looked < 256;
        }
        self.looked = 0;
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
