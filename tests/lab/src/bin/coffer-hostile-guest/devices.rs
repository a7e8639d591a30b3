//! What each kind of virtio device can be asked that it must not do.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::noise::Noise;
use crate::raw::{PAGE, Page};
use crate::report;
use crate::virtio::{Descriptor, Device, NEXT, RING, Ring, WRITE};

/// A sound request takes this long at most on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(5);
/// Frames of the flood, and packets of the vsock flood.
const FLOOD: usize = 500;
/// Bytes of a virtio-net header.
const NET_HEADER: usize = 12;

/// Sends one chain of parts through a running device and waits for it.
struct Sender {
    device: Device,
    ring: Ring,
    sent: u16,
}

impl Sender {
    fn start(device: Device, ring: Ring) -> Result<Self> {
        device.start(ring)?;
        Ok(Self { device, ring, sent: 0 })
    }

    fn offer(&mut self, parts: &[(u64, u32, u16)]) {
        for (at, (address, length, flags)) in parts.iter().enumerate() {
            let more = if at + 1 < parts.len() { NEXT } else { 0 };
            let next = (at + 1) as u16;
            let (address, length, flags) = (*address, *length, *flags | more);
            self.ring.describe(at, Descriptor { address, length, flags, next });
        }
        self.ring.offer(&[0; RING as usize], self.sent.wrapping_add(1));
        self.sent = self.sent.wrapping_add(1);
        self.device.kick(self.device.queues().0);
    }

    /// True if the device returned it.
    fn send(&mut self, parts: &[(u64, u32, u16)]) -> bool {
        self.offer(parts);
        self.ring.wait(self.sent, PATIENCE)
    }
}

/// Requests a disk must refuse; then one it must serve.
pub fn block(device: Device, ring: Ring, data: Page) -> Result<()> {
    const STATUS_AT: u64 = 3072;
    let mut sender = Sender::start(device, ring)?;
    let mut request = |kind: u32, sector: u64, length: u32, flags: u16| -> Result<u8> {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        data.write(0, &header);
        data.write(STATUS_AT as usize, &[0xEE]);
        let status = (data.address + STATUS_AT, 1, WRITE);
        let body = (data.address + 512, length, flags);
        let parts: &[_] = &[(data.address, 16, 0), body, status];
        ensure!(sender.send(parts), "the disk does not answer");
        Ok(data.read(STATUS_AT as usize, 1).first().copied().unwrap_or(0xEE))
    };
    const IN: u32 = 0;
    const OUT: u32 = 1;
    let mut tries = 0;
    for (kind, sector, length, flags) in [
        (IN, u64::MAX, 512, WRITE),
        (IN, u64::MAX / 512, 512, WRITE),
        (IN, 1 << 40, 512, WRITE),
        (IN, 0, 511, WRITE),
        (IN, 0, 0, WRITE),
        (OUT, 0, 512, 0),
        (OUT, 1 << 50, 512, 0),
        (11, 0, 512, 0),
        (13, 0, 512, 0),
        (0xFFFF_FFFF, 0, 512, WRITE),
        (8, 0, 19, WRITE),
    ] {
        let status = request(kind, sector, length, flags)?;
        ensure!(status != 0, "the disk did what it must not: type {kind}, sector {sector}");
        tries += 1;
    }
    report("block", "requests", tries);
    let status = request(IN, 0, 512, WRITE)?;
    ensure!(status == 0, "the disk serves no more: status {status}");
    println!("ALIVE block");
    Ok(())
}

/// Entropy in pieces too large; then some.
pub fn rng(device: Device, ring: Ring, data: Page) -> Result<()> {
    let mut sender = Sender::start(device, ring)?;
    let large: Vec<_> = (0..RING).map(|_| (data.address, PAGE as u32, WRITE)).collect();
    for _ in 0..50 {
        ensure!(sender.send(&large), "no entropy");
    }
    report("rng", "floods", 50);
    data.fill(0);
    ensure!(sender.send(&[(data.address, 64, WRITE)]), "no entropy");
    ensure!(data.read(0, 64).iter().any(|byte| *byte != 0), "zeros for entropy");
    println!("ALIVE rng");
    Ok(())
}

/// Frames that are none, or another's; and many.
pub fn net(device: Device, ring: Ring, data: Page, mac: [u8; 6]) -> Result<()> {
    let mut sender = Sender::start(device, ring)?;
    let mut send = |frame: &[u8]| -> Result<()> {
        let packet = [&[0; NET_HEADER][..], frame].concat();
        data.write(0, &packet);
        let length = packet.len().min(PAGE) as u32;
        ensure!(sender.send(&[(data.address, length, 0)]), "the network does not take frames");
        Ok(())
    };
    let frames = spoofs(mac);
    for frame in &frames {
        send(frame)?;
    }
    report("net", "spoofs", frames.len());
    let mut noise = Noise::new(99);
    for length in [0, 1, 13, 14, 33, 60, 1514, 3000] {
        let frame: Vec<u8> = (0..length).map(|_| noise.any() as u8).collect();
        send(&frame)?;
    }
    report("net", "noise", 8);
    // To the host itself, and to where frames may go.
    let flood = [udp(mac, GUEST, [127, 0, 0, 1]), udp(mac, GUEST, VERIFIER)];
    flood.iter().cycle().take(FLOOD).try_for_each(|frame| send(frame))?;
    report("net", "flood", FLOOD);
    // More than any frame can be, in as many pieces as the ring has.
    let huge: Vec<_> = (0..RING).map(|_| (data.address, 1 << 16, 0)).collect();
    sender.send(&huge);
    sender.send(&[(data.address, 5, 0)]);
    report("net", "sizes", 2);
    println!("ALIVE net");
    Ok(())
}

const GUEST: [u8; 4] = [192, 168, 76, 2];
const GATEWAY: [u8; 4] = [192, 168, 76, 1];
const VERIFIER: [u8; 4] = [10, 0, 2, 100];

/// Other senders, the host as receiver, other protocols.
fn spoofs(mac: [u8; 6]) -> Vec<Vec<u8>> {
    let other = [2, 0xBA, 0xD0, 0, 0, 1];
    let ethernet = |from: [u8; 6], kind: u16, body: &[u8]| {
        [&[0xFF; 6][..], &from, &kind.to_be_bytes(), body].concat()
    };
    let arp = |from: [u8; 6], ip: [u8; 4]| {
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        ethernet(from, 0x0806, &[&head[..], &from, &ip, &[0xFF; 6], &GATEWAY].concat())
    };
    let mut frames = vec![
        udp(other, GUEST, VERIFIER),
        arp(mac, GATEWAY),
        arp(other, GUEST),
        ethernet(mac, 0x86DD, &[0x60; 64]),
        ethernet(mac, 0x8100, &[0; 64]),
        ethernet(mac, 0x88A8, &[0; 64]),
        ethernet(mac, 0x88CC, &[0; 64]),
        ethernet(mac, 0x0800, &[0x4F; 20]),
    ];
    for from in [GATEWAY, [10, 0, 2, 15], [127, 0, 0, 1], [0; 4], [255; 4]] {
        frames.push(udp(mac, from, VERIFIER));
    }
    for to in
        [[127, 0, 0, 1], [10, 0, 2, 15], [169, 254, 169, 254], [224, 0, 0, 1], [0; 4], [255; 4]]
    {
        frames.push(udp(mac, GUEST, to));
    }
    frames
}

/// A small datagram to the discard port, without checksum.
fn udp(mac: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend([from, to].concat());
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |word, byte| (word << 8) | u32::from(*byte)))
        .sum();
    let sum = !((sum & 0xFFFF) + (sum >> 16)) as u16;
    drop(packet.splice(10..12, sum.to_be_bytes()));
    packet.extend([0x30, 0x39, 0, 9, 0, 16, 0, 0]);
    packet.extend(b"hostile!");
    [&[0x52, 0x55, 10, 0, 2, 2][..], &mac, &[8, 0], &packet].concat()
}

/// Packets from others, to anybody, of any kind, without end.
pub fn vsock(device: Device, ring: Ring, data: Page, cid: u64) -> Result<()> {
    let mut line = Line { sender: Sender::start(device, ring)?, data };
    let sound = Packet { from: cid, to: 2, port: 49405, kind: 1, op: 1, ..Packet::default() };
    let strangers = [0, 1, 2, cid + 1, u64::from(u32::MAX), u64::MAX, cid | (1 << 32)];
    strangers.into_iter().try_for_each(|from| line.send(&Packet { from, ..sound }, 0))?;
    report("vsock", "sources", strangers.len());
    let mut packets = Vec::new();
    for to in [0, 1, 3, 4, u64::from(u32::MAX), u64::MAX, 2 | (1 << 32)] {
        packets.extend((0..=8).map(|op| Packet { to, op, ..sound }));
    }
    let ports = (0..2048).step_by(37).chain([49404, 49406, u32::MAX]);
    packets.extend(ports.map(|port| Packet { port, ..sound }));
    let kinds = [(0, 1), (2, 1), (0xFFFF, 1), (1, 0xFFFF), (1, 0)];
    packets.extend(kinds.map(|(kind, op)| Packet { kind, op, ..sound }));
    packets.iter().try_for_each(|packet| line.send(packet, 0))?;
    report("vsock", "addresses", packets.len());
    let lengths = [1, 65, 65536, u32::MAX];
    let lies = lengths.map(|length| Packet { op: 5, length, ..sound });
    lies.iter().try_for_each(|packet| line.send(packet, 0))?;
    report("vsock", "lengths", lies.len());
    // A connection as it should be, and then more than its credit, unasked answers, and the end twice.
    line.sender = Sender::start(device, ring)?;
    let ours = Packet { source_port: 77, ..sound };
    line.send(&ours, 0)?;
    for _ in 0..40 {
        line.send(&Packet { op: 5, length: 4000, ..ours }, 4000)?;
    }
    let ends = [2, 1, 4, 4, 3, 3, 5, 6, 7];
    ends.into_iter().try_for_each(|op| line.send(&Packet { op, ..ours }, 0))?;
    report("vsock", "credit", 41 + ends.len());
    for source_port in 0..FLOOD as u32 {
        line.send(&Packet { source_port, ..sound }, 0)?;
    }
    report("vsock", "flood", FLOOD);
    Ok(())
}

/// The transmit queue of a vsock device that has no other.
struct Line {
    sender: Sender,
    data: Page,
}

impl Line {
    /// Sends a packet with so many bytes of payload. The device is started anew now and then: it holds so many answers
    /// for a guest that takes none, and no packet beyond that.
    fn send(&mut self, packet: &Packet, payload: u32) -> Result<()> {
        const ANSWERS_HELD: u16 = 60;
        if self.sender.sent >= ANSWERS_HELD {
            self.sender = Sender::start(self.sender.device, self.sender.ring)?;
        }
        self.data.write(0, &packet.bytes());
        let (header, body) = ((self.data.address, 44, 0), (self.data.address + 64, payload, 0));
        let parts = [header, body];
        let parts = if payload == 0 { &parts[..1] } else { &parts[..] };
        ensure!(self.sender.send(parts), "vsock takes no packet");
        Ok(())
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Default)]
struct Packet {
    from: u64,
    to: u64,
    source_port: u32,
    port: u32,
    length: u32,
    kind: u16,
    op: u16,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend([self.from.to_le_bytes(), self.to.to_le_bytes()].concat());
        bytes.extend([self.source_port, self.port, self.length].map(u32::to_le_bytes).concat());
        bytes.extend([self.kind, self.op].map(u16::to_le_bytes).concat());
        // Flags of a shutdown, a buffer of any size, and nothing taken from it.
        bytes.extend([3, u32::MAX, 0].map(u32::to_le_bytes).concat());
        bytes
    }
}
