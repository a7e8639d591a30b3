//! A guest with one virtio device: its driver, which may follow the rules or not, and what has to hold whatever it does.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use coffer_machine::{Bus, Doorbell};
use coffer_monitor_wire::EndReason;
use coffer_vmm::devices::bus::DeviceBus;
use coffer_vmm::devices::lifecycle::{Lifecycle, Paused};
use coffer_vmm::layout;
use coffer_vmm::refusals::Refusals;
use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::mmio::{Signal, Slot, VirtioMmio};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::memory::{
    Chain, DESCRIPTORS_MAX, HIGH, INDIRECT, LOW, Looked, Memory, NEXT, TOTAL, WRITE, half_at,
    place, word_at,
};
use super::transport::{INTERRUPT_STATUS, Nature, Transport};
use super::{Place, Program, WIDTHS};

/// What is at the other side of a device, and knows what the device should have done.
pub trait Peer {
    /// What the device says of itself.
    fn nature(&self) -> Nature;

    /// A request as a driver would make it.
    fn request(&mut self, program: &mut Program<'_>, guest: &mut Guest, memory: &mut Memory);

    /// Something happens on the other side.
    fn event(&mut self, _how: u8, _program: &mut Program<'_>) {}

    /// The device returned a chain, with so many bytes written. Puts into `expected` what it has to have written, and
    /// may look into `after` for what nobody can know before.
    fn completed(&mut self, chain: &Completed<'_>, expected: &mut [u8]);

    /// A turn is over, of which completions were told if `turn.known`.
    fn turn_over(&mut self, _turn: &Turn) {}

    /// The device ended the VM before it completed any of these chains of its first queue.
    fn ended(&mut self, reason: &EndReason, _waiting: &[Chain], _image: &[u8]) {
        panic!("this device ends no vm: {reason:?}");
    }

    /// The device rests with so many chains waiting in each queue, of which it was told. True if it may.
    fn may_rest(&self, _waiting: &[usize]) -> bool {
        true
    }

    /// The driver reset the device, or gave up on it.
    fn reset(&mut self) {}

    /// The device is gone, and this one goes on in its place, from the state of one that was running or not.
    fn renew(&mut self, running: bool) -> Box<dyn VirtioDevice>;
}

/// A chain that came back.
pub struct Completed<'a> {
    /// From which queue.
    pub queue: usize,
    /// The chain.
    pub chain: &'a Chain,
    /// Bytes the device says it wrote.
    pub used: u32,
    /// Memory before the turn.
    pub before: &'a [u8],
    /// Memory after it.
    pub after: &'a [u8],
    /// True if another chain, or this one, names the same memory to be written: what is there after the turn is
    /// not all that was written.
    pub overwritten: bool,
}

/// One call of the device.
pub struct Turn {
    /// Why.
    pub signal: Signal,
    /// False if the guest let buffers and rings overlap, or lied in its rings, so that nobody can say what it asked for.
    pub known: bool,
    /// True if the device was running.
    pub live: bool,
}

/// How the descriptors of a chain are linked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// As they should be.
    Sound,
    /// The last leads to the first.
    Circle,
    /// The last leads out of the table.
    Out,
    /// In an indirect table.
    Indirect,
}

/// The guest's view of one device.
pub struct Guest {
    bus: Arc<DeviceBus>,
    base: u64,
    device: Arc<VirtioMmio>,
    place: Arc<Place<VirtioMmio>>,
    line: Doorbell,
    registers: Transport,
    rings: Vec<Ring>,
    /// The VM ended, or the program asked for more than an execution is to do.
    pub over: bool,
    /// Turns of which nobody could say what they should do.
    blind: usize,
    /// Which memory the device is asked with.
    map: Vec<u8>,
    /// False while nothing happened that the device loop could hear of.
    stirred: bool,
}

/// A queue of a running device.
struct Ring {
    table: u64,
    avail: u64,
    used: u64,
    size: u16,
    /// False if the driver left it out.
    there: bool,
    /// Where the device is in `avail` and `used`.
    taken: u16,
    given: u16,
    /// Where the driver is in the table and in `avail`.
    next_descriptor: u16,
    next_avail: u16,
    /// What it had offered when the device was last told to look.
    told: u16,
    /// False once nobody can say where the device is.
    known: bool,
}

/// A turn of the device with more bytes in its buffers is not begun.
const BYTES_MAX: usize = 2 << 20;
const ASKED: u8 = 1;
/// To compare with as a whole: each comparison of a byte would be noted as coverage.
static ZEROS: [u8; TOTAL] = [0; TOTAL];
/// Turns that may be long, since nobody knows what they do.
const BLIND_MAX: usize = 6;
/// Turns of the device loop until all is quiet. A turn serves 256 chains or frames, and programs are shorter.
const TURNS_MAX: usize = 64;

impl Guest {
    /// Plugs a device in at window `window`; it goes onto the bus with [`Guest::join`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        peer: &dyn Peer,
        window: u64,
        memory: &Memory,
    ) -> Self {
        let nature = peer.nature();
        let (device, line) = plug(device, &nature, memory);
        device.start();
        let place = Place::new(device.clone());
        let base = layout::VIRTIO_BASE + window * layout::VIRTIO_WINDOW;
        let registers = Transport::new(nature);
        let bus = Arc::default();
        Self {
            bus,
            base,
            device,
            place,
            line,
            registers,
            rings: Vec::new(),
            over: false,
            blind: 0,
            map: vec![0; TOTAL],
            stirred: true,
        }
    }

    /// Maps the device, for [`Guest::join`] when all are.
    pub fn map(&self, bus: &mut DeviceBus) {
        bus.map_memory(self.base, layout::VIRTIO_WINDOW, self.place.clone());
    }

    /// Reaches the device over this bus.
    pub fn join(&mut self, bus: Arc<DeviceBus>) {
        self.bus = bus;
    }

    /// The same on a bus of its own.
    pub fn alone(device: Box<dyn VirtioDevice>, peer: &dyn Peer, memory: &Memory) -> Self {
        let mut guest = Self::new(device, peer, 0, memory);
        let mut bus = DeviceBus::default();
        guest.map(&mut bus);
        guest.join(Arc::new(bus));
        guest
    }

    /// Runs a program to its end.
    pub fn run(&mut self, peer: &mut dyn Peer, program: &mut Program<'_>, memory: &mut Memory) {
        for _ in 0..super::STEPS_MAX {
            match program.step() {
                Some((what, how)) if !self.over => self.step(what, how, peer, program, memory),
                _ => break,
            }
        }
    }

    /// One step of a program.
    pub fn step(
        &mut self,
        what: u8,
        how: u8,
        peer: &mut dyn Peer,
        program: &mut Program<'_>,
        memory: &mut Memory,
    ) {
        let queue = usize::from(how & 3);
        // Reading and writing memory is nothing the device loop hears of.
        self.stirred |= !matches!(what, 1 | 2 | 5 | 7 | 11 | 12);
        match what {
            0 => self.set_up(how, program.byte(), peer, memory),
            1 | 2 => self.chain(queue, how & 4 != 0, program, memory),
            3 => self.kick(queue),
            4 => {
                let register = REGISTERS[usize::from(how)];
                self.write32(register, program.value(), peer);
            }
            5 => self.read(program.half() & 0x1FFF, WIDTHS[usize::from(how & 7)]),
            6 => {
                let offset = program.half() & 0xFFF;
                let bytes = program.word().to_le_bytes();
                let bytes = [bytes, bytes].concat();
                self.write(offset, &bytes[..WIDTHS[usize::from(how & 7)]], peer);
            }
            7 => {
                let at = program.half();
                let at = if at & 0x8000 != 0 { HIGH + u64::from(at & 0x1FFF) } else { at.into() };
                memory.put(at, program.bytes(usize::from(how) + 1));
            }
            8 | 9 => peer.event(how, program),
            10 => self.lifecycle(how, peer, memory),
            11 => self.again(queue, program, memory),
            12 => self.claim(queue, program, memory),
            // The device loop would not: nothing happened.
            13 => {
                let signal = if how & 4 == 0 { Signal::Backend } else { Signal::Kick(queue) };
                self.turn(signal, peer, memory);
            }
            _ => {
                peer.request(program, self, memory);
                if how & 8 == 0 {
                    (0..self.device.kicks().len()).for_each(|queue| self.kick(queue));
                }
            }
        }
        if how & 8 == 0 || what == 3 {
            self.settle(peer, memory);
        }
    }

    /// Sets the device up as a driver would, with rings in one of several places.
    fn set_up(&mut self, how: u8, shape: u8, peer: &mut dyn Peer, memory: &mut Memory) {
        let event_idx = u32::from(how & 4 == 0) << 29;
        for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, event_idx)] {
            self.write32(register, value, peer);
        }
        for (register, value) in [(0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write32(register, value, peer);
        }
        for queue in 0..self.device.kicks().len() as u64 {
            let (size, table, avail, used) = placement(how & 3, queue);
            let size = (u32::from(size) >> (shape & 3)).min(self.most(queue));
            self.write32(0x30, queue as u32, peer);
            self.write32(0x38, size, peer);
            for (register, address) in [(0x80, table), (0x90, avail), (0xA0, used)] {
                self.write32(register, address as u32, peer);
                self.write32(register + 4, (address >> 32) as u32, peer);
            }
            // A driver begins with empty rings; this one does not always.
            if shape & 8 == 0 {
                memory.put(avail, &[0; 4]);
                memory.put(used, &[0; 4]);
            }
            let left_out = shape >> 4 == 1 << queue;
            self.write32(0x44, u32::from(!left_out), peer);
        }
        // One more word on the last queue, or none yet of being ready.
        if shape >= 0xE0 {
            let register = REGISTERS[8 + usize::from(how) % 6];
            self.write32(register, EDGES[usize::from(shape & 15)] as u32, peer);
        }
        if shape >> 4 != 0xD {
            self.write32(0x70, 15, peer);
        }
    }

    fn most(&self, queue: u64) -> u32 {
        self.registers.queues[queue as usize].size.into()
    }

    /// Reads any width anywhere: what the registers say is what they should.
    pub fn read(&mut self, offset: u16, width: usize) {
        let (offset, end) = (u64::from(offset), u64::from(offset) + width as u64);
        let (mut said, mut expected) = ([0xAA; 8], [0; 8]);
        self.bus.memory_read(self.base + offset, &mut said[..width]);
        let beyond = end > layout::VIRTIO_WINDOW;
        if !beyond && self.registers.read(offset, &mut expected[..width]).is_some() {
            assert_eq!(said[..width], expected[..width], "register {offset:#x}, {width} bytes");
        }
        if beyond && offset < layout::VIRTIO_WINDOW {
            assert_eq!(said[..width], [0xFF; 8][..width], "nobody is across a border");
        }
    }

    /// Writes anything anywhere.
    pub fn write(&mut self, offset: u16, data: &[u8], peer: &mut dyn Peer) {
        self.bus.memory_write(self.base + u64::from(offset), data);
        let end = u64::from(offset) + data.len() as u64;
        if end <= 0x100 && u64::from(offset).is_multiple_of(4) {
            self.written(offset.into(), data, peer);
        }
    }

    fn write32(&mut self, offset: u64, value: u32, peer: &mut dyn Peer) {
        self.bus.memory_write(self.base + offset, &value.to_le_bytes());
        self.written(offset, &value.to_le_bytes(), peer);
    }

    fn written(&mut self, offset: u64, data: &[u8], peer: &mut dyn Peer) {
        let was_active = self.registers.active;
        let stopped = self.registers.write(offset, data);
        if offset == 0x70 {
            self.read(0x70, 4);
        }
        if stopped {
            peer.reset();
        }
        if !self.registers.active {
            self.rings.clear();
        } else if !was_active {
            self.rings = self.registers.queues.iter().map(Ring::fresh).collect();
        }
    }

    /// A chain of the fuzzer's descriptors.
    fn chain(&mut self, queue: usize, tell: bool, program: &mut Program<'_>, memory: &mut Memory) {
        let shape = program.byte();
        let link = [Link::Sound, Link::Indirect, Link::Circle, Link::Out, Link::Sound]
            [usize::from(shape >> 5) % 5];
        let mut descriptors = Vec::new();
        for _ in 0..1 + (shape & 7) {
            let (address, len) = (address(program), len(program));
            let how = program.byte();
            let write = if how & 7 > 2 { WRITE } else { 0 };
            let flags = if how & 0x38 == 0x38 { write | INDIRECT } else { write };
            // The same buffer many times over makes a request as large as any.
            let times = if how >= 0xE0 { 1 + usize::from(how & 0x1F) * 4 } else { 1 };
            descriptors.extend(std::iter::repeat_n((address, len, flags), times));
        }
        self.put_chain(queue, &descriptors, link, memory);
        if tell {
            self.kick(queue);
        }
    }

    /// Puts descriptors into the table and their first into the ring.
    pub fn put_chain(
        &mut self,
        queue: usize,
        descriptors: &[(u64, u32, u16)],
        link: Link,
        memory: &mut Memory,
    ) {
        let Some(ring) = self.rings.get_mut(queue).filter(|ring| ring.there) else { return };
        let (first, last) = (ring.next_descriptor, descriptors.len().saturating_sub(1));
        let indirect = link == Link::Indirect;
        let table = if indirect { HIGH + 0x1C00 } else { ring.table };
        for (n, (address, len, flags)) in descriptors.iter().enumerate() {
            let size = if indirect { 64 } else { ring.size };
            let at = |n: usize| (first * u16::from(!indirect)).wrapping_add(n as u16) % size;
            let (next, more) = match link {
                Link::Circle if n == last => (at(0), NEXT),
                Link::Out if n == last => (ring.size, NEXT),
                _ if n == last => (0, 0),
                _ => (at(n + 1), NEXT),
            };
            memory.put(
                table + u64::from(at(n)) * 16,
                &descriptor(*address, *len, flags | more, next),
            );
        }
        let count = if indirect { 1 } else { descriptors.len() as u16 };
        if indirect {
            let len = 16 * descriptors.len().min(64) as u32;
            let one = descriptor(table, len, INDIRECT, 0);
            memory.put(ring.table + u64::from(first) * 16, &one);
        }
        ring.next_descriptor = first.wrapping_add(count) % ring.size;
        ring.offer(first, memory);
    }

    /// Offers heads as they are: the last once more, or one that is no descriptor.
    fn again(&mut self, queue: usize, program: &mut Program<'_>, memory: &mut Memory) {
        let how = program.byte();
        let Some(ring) = self.rings.get_mut(queue).filter(|ring| ring.there) else { return };
        let times = ring.size.min(1 << (how & 15).min(8));
        let head = match how >> 4 {
            15 => ring.size,
            14 => u16::MAX,
            back => ring.next_descriptor.wrapping_sub(1 + u16::from(back)) % ring.size,
        };
        (0..times).for_each(|_| ring.offer(head, memory));
    }

    /// Claims that there is more, or less, in a ring than is.
    fn claim(&mut self, queue: usize, program: &mut Program<'_>, memory: &mut Memory) {
        let claimed = program.half();
        let Some(ring) = self.rings.get_mut(queue).filter(|ring| ring.there) else { return };
        memory.put(ring.avail + 2, &ring.next_avail.wrapping_add(claimed).to_le_bytes());
    }

    /// Rings the doorbell of a queue, as KVM does for a write to the notify register.
    pub fn kick(&mut self, queue: usize) {
        self.stirred = true;
        if let Some(bell) = self.device.kicks().get(queue) {
            bell.ring();
        }
    }

    /// Stops and goes on: after a reset of the machine, as another device, or just so.
    fn lifecycle(&mut self, how: u8, peer: &mut dyn Peer, memory: &Memory) {
        self.device.pause();
        match how & 3 {
            0 => {}
            2 => self.replace(peer, memory),
            _ => {
                self.reset();
                peer.reset();
            }
        }
        self.device.start();
    }

    /// The device is saved and dropped, and another goes on from its state.
    fn replace(&mut self, peer: &mut dyn Peer, memory: &Memory) {
        let status = self.interrupt_status();
        let state = Paused::new(&*self.device).save();
        let device = peer.renew(self.registers.running());
        let (device, line) = plug(device, &peer.nature(), memory);
        let paused = Paused::new(&*device);
        paused.restore(&state).expect("what was saved");
        assert!(paused.save() == state, "what was saved is what was restored");
        self.place.put(device.clone());
        (self.device, self.line) = (device, line);
        assert_eq!(self.interrupt_status(), status, "reasons of interrupts");
        self.read(0x70, 4);
    }

    fn interrupt_status(&self) -> [u8; 4] {
        let mut status = [0; 4];
        self.bus.memory_read(self.base + INTERRUPT_STATUS, &mut status);
        status
    }

    /// The machine resets the device.
    pub fn reset(&mut self) {
        self.device.reset();
        self.registers.write(0x70, &[0; 4]);
        self.rings.clear();
        self.over = false;
    }

    /// Does what the device loop does, until nobody wants anything.
    pub fn settle(&mut self, peer: &mut dyn Peer, memory: &mut Memory) {
        if !std::mem::take(&mut self.stirred) {
            return;
        }
        for _ in 0..TURNS_MAX {
            let mut quiet = true;
            for queue in 0..self.device.kicks().len() {
                if self.device.kicks()[queue].clear() && !self.over {
                    quiet = false;
                    self.turn(Signal::Kick(queue), peer, memory);
                }
            }
            if !self.over && self.backend_calls() {
                quiet = false;
                self.turn(Signal::Backend, peer, memory);
            }
            if self.over {
                return;
            }
            if quiet {
                return self.rest(peer, memory);
            }
        }
        panic!("the device wants more and more turns and gets nothing done");
    }

    fn backend_calls(&self) -> bool {
        let ready = |fd: std::os::fd::BorrowedFd<'_>| {
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0)
        };
        self.device.with_backend(|fd| ready(fd.as_fd())).unwrap_or(false)
    }

    /// All is quiet: nothing of which the device was told is left lying.
    fn rest(&self, peer: &dyn Peer, memory: &Memory) {
        let told =
            |ring: &Ring| !ring.there || (ring.known && ring.told == ring.offered(&memory.image));
        if self.registers.running() && self.rings.iter().all(told) {
            let waiting = self.rings.iter().map(|ring| ring.waiting(&memory.image).len());
            let waiting: Vec<usize> = waiting.collect();
            assert!(peer.may_rest(&waiting), "the device rests, and {waiting:?} chains wait");
        }
    }

    /// One call of the device, and whether all it did was what it was asked for.
    fn turn(&mut self, signal: Signal, peer: &mut dyn Peer, memory: &mut Memory) {
        let live = self.registers.running();
        let waiting: Vec<Vec<Chain>> =
            self.rings.iter().map(|ring| ring.waiting(&memory.image)).collect();
        let chains = || waiting.iter().flatten();
        let bytes: usize =
            chains().map(|chain| chain.readable.held() + chain.writable.held()).sum();
        if bytes > BYTES_MAX || chains().any(|chain| chain.descriptors > DESCRIPTORS_MAX) {
            self.over = true;
            return;
        }
        // Heads that are no descriptors are taken and never come back: nobody can say when.
        // Nor if the guest writes into the device's ring.
        for ring in self.rings.iter_mut().filter(|ring| ring.there) {
            ring.known &=
                ring.sane(&memory.image) && half_at(&memory.image, ring.used + 2) == ring.given;
        }
        let known = !self.tangled(chains()) && self.rings.iter().all(|ring| ring.known);
        if live && !known {
            self.blind += 1;
            self.over = self.blind > BLIND_MAX;
        }
        if let Signal::Kick(queue) = signal
            && let Some(ring) = self.rings.get_mut(queue)
        {
            ring.told = ring.offered(&memory.image);
        }
        let result = self.device.serve(signal);
        let Looked { before, after, expected } = memory.look();
        if !live {
            assert!(result.is_ok() && before == after, "a device that does not run does nothing");
            return peer.turn_over(&Turn { signal, known, live });
        }
        let mut completions = 0;
        if known {
            expected.copy_from_slice(before);
            let overwritten = overlap(chains().flat_map(|chain| &chain.writable.places));
            // What the guest sent was there before what it got: transmit queues come after receive queues.
            let rings = self.rings.iter_mut().enumerate().rev();
            for (queue, ring) in rings.filter(|(_, ring)| ring.there) {
                let chains = &waiting[queue];
                let count = half_at(after, ring.used + 2).wrapping_sub(ring.given);
                assert!(usize::from(count) <= chains.len(), "more came back than was there");
                for chain in &chains[..count.into()] {
                    let entry = ring.used + 4 + u64::from(ring.given % ring.size) * 8;
                    assert_eq!(word_at(after, entry), u32::from(chain.head), "which came back");
                    let used = word_at(after, entry + 4);
                    assert!(
                        used as usize <= chain.writable.len,
                        "more written than there was room"
                    );
                    let done = Completed { queue, chain, used, before, after, overwritten };
                    peer.completed(&done, expected);
                    ring.given = ring.given.wrapping_add(1);
                    ring.taken = ring.taken.wrapping_add(1);
                    copy(after, expected, entry, 8);
                }
                ring.expect(after, expected, self.registers.event_idx());
                completions += count;
            }
            if expected != after {
                let wrong = expected.iter().zip(after).position(|(wanted, is)| wanted != is);
                panic!("memory is not as it should be, at {wrong:?}, in a turn for {signal:?}");
            }
        } else {
            self.rings.iter_mut().for_each(|ring| ring.known = false);
        }
        if let Err(reason) = result {
            let first = waiting.first().map_or(&[][..], |chains| {
                chains.get(usize::from(completions)..).unwrap_or_default()
            });
            if known {
                peer.ended(&reason, first, before);
            }
            self.over = true;
            // What was completed before is not told any more.
            completions = 0;
        }
        peer.turn_over(&Turn { signal, known, live });
        self.interrupted(completions > 0 && !self.registers.event_idx());
    }

    /// A driver without event indices is told of every completion.
    fn interrupted(&mut self, expected: bool) {
        let rang = self.line.clear();
        if expected {
            let told = rang && self.interrupt_status()[0] & 1 != 0;
            assert!(told, "completions, and nobody was told");
        }
    }

    /// True if what the device writes may change what it is asked for.
    fn tangled<'a>(&mut self, chains: impl Iterator<Item = &'a Chain> + Clone) -> bool {
        self.map.fill(0);
        let rings = || self.rings.iter().filter(|ring| ring.there);
        for range in rings().flat_map(Ring::asks) {
            self.map[range].fill(ASKED);
        }
        for range in chains.clone().flat_map(|c| c.readable.places.iter().chain(&c.tables)) {
            self.map[range.clone()].fill(ASKED);
        }
        for range in rings().map(Ring::answers) {
            if self.map[range.clone()] != ZEROS[range.clone()] {
                return true;
            }
            self.map[range].fill(ASKED);
        }
        chains
            .flat_map(|chain| &chain.writable.places)
            .any(|range| self.map[range.clone()] != ZEROS[range.clone()])
    }
}

/// A device in a slot of its own, and its interrupt line.
fn plug(
    device: Box<dyn VirtioDevice>,
    nature: &Nature,
    memory: &Memory,
) -> (Arc<VirtioMmio>, Doorbell) {
    let bell = || Doorbell::new().expect("an eventfd");
    let line = bell();
    let slot = Slot {
        memory: memory.ram(),
        line: line.try_clone().expect("a descriptor"),
        kicks: nature.queues.iter().map(|_| bell()).collect(),
        refusals: Refusals::default(),
    };
    (Arc::new(VirtioMmio::new(device, slot).expect("a device")), line)
}

impl Ring {
    fn fresh(described: &super::transport::Described) -> Self {
        Self {
            table: described.table,
            avail: described.avail,
            used: described.used,
            size: described.size,
            there: described.ready,
            taken: 0,
            given: 0,
            next_descriptor: 0,
            next_avail: 0,
            told: 0,
            // A ring at address zero is taken for none at all.
            known: described.avail != 0 || !described.ready,
        }
    }

    /// Chains ever offered.
    fn offered(&self, image: &[u8]) -> u16 {
        half_at(image, self.avail + 2)
    }

    /// True if all heads in the ring are descriptors.
    fn sane(&self, image: &[u8]) -> bool {
        let ahead = self.offered(image).wrapping_sub(self.taken);
        !self.there
            || ahead > self.size
            || (0..ahead).all(|n| self.head(image, self.taken.wrapping_add(n)) < self.size)
    }

    /// Chains in the ring that the device has not taken.
    fn waiting(&self, image: &[u8]) -> Vec<Chain> {
        if !self.there || !self.known {
            return Vec::new();
        }
        let ahead = self.offered(image).wrapping_sub(self.taken);
        if ahead > self.size {
            return Vec::new();
        }
        (0..ahead)
            .map(|n| self.head(image, self.taken.wrapping_add(n)))
            .map(|head| Chain::follow(image, self.table, self.size, head))
            .collect()
    }

    fn head(&self, image: &[u8], index: u16) -> u16 {
        half_at(image, self.avail + 4 + u64::from(index % self.size) * 2)
    }

    /// The driver puts a head into the ring.
    fn offer(&mut self, head: u16, memory: &mut Memory) {
        let slot = self.avail + 4 + u64::from(self.next_avail % self.size) * 2;
        memory.put(slot, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        memory.put(self.avail + 2, &self.next_avail.to_le_bytes());
    }

    /// What of its own ring the device may have changed beside entries: index, flags, and what it wants to hear of.
    fn expect(&self, after: &[u8], expected: &mut [u8], event_idx: bool) {
        copy(after, expected, self.used + 2, 2);
        match event_idx {
            true => copy(after, expected, self.used + 4 + 8 * u64::from(self.size), 2),
            false => copy(after, expected, self.used, 2),
        }
    }

    fn asks(&self) -> [Range<usize>; 2] {
        let size = u64::from(self.size);
        [(self.table, 16 * size), (self.avail, 6 + 2 * size)]
            .map(|(address, len)| place(address, len).unwrap_or_default())
    }

    fn answers(&self) -> Range<usize> {
        place(self.used, 6 + 8 * u64::from(self.size)).unwrap_or_default()
    }
}

/// Size, table, and rings of a queue, in one of four places: close together, in high memory, large, and each at an end
/// of memory or across a border of mappings.
fn placement(which: u8, queue: u64) -> (u16, u64, u64, u64) {
    let small = |base: u64| {
        let base = base + queue * 0x200;
        (16, base, base + 0x100, base + 0x140)
    };
    match (which, queue) {
        (1, _) => small(HIGH),
        (2, _) => (256, 0x800 * queue, 0x1800 + queue * 0x220, 0x2000 + queue * 0x820),
        (3, 0) => (16, LOW - 0x100, LOW / 2 - 0x10, HIGH + 0x1F78),
        _ => small(0),
    }
}

/// Where a buffer is: mostly in a slot, else at an edge.
fn address(program: &mut Program<'_>) -> u64 {
    match program.byte() {
        low @ 0..0x60 => 0x800 + u64::from(low) * 0x80,
        high @ 0x60..0xC0 => HIGH + 0x600 + u64::from(high - 0x60) * 0x40,
        edge @ 0xC0..0xE0 => EDGES[usize::from(edge) % EDGES.len()] - u64::from(edge & 0x10 != 0),
        _ => u64::from(program.half()) | u64::from(program.byte() & 1) << 32,
    }
}

fn len(program: &mut Program<'_>) -> u32 {
    match program.byte() {
        small @ 0..0x40 => small.into(),
        some @ 0x40..0xC0 => (u32::from(some) - 0x3F) * 64,
        edge @ 0xC0..0xE0 => {
            let edges = [1526, 0x10000, 0x8000_0000, u32::MAX, 0xFFFF, 12, 44, 513];
            edges[usize::from(edge) % edges.len()]
        }
        _ => program.half().into(),
    }
}

/// Ends of memory, borders of mappings, rings, and places where nothing is.
const EDGES: [u64; 16] = [
    1,
    LOW / 2,
    LOW,
    LOW - 1,
    HIGH,
    HIGH + 0x1000,
    HIGH + 0x2000,
    u64::MAX,
    0x100,
    0x140,
    layout::VIRTIO_BASE,
    layout::TPM,
    u64::MAX - 15,
    1 << 63,
    LOW - 512,
    LOW / 2 - 256,
];

/// Registers a driver writes.
const REGISTERS: [u64; 16] = [
    0x70, 0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x64, 0x80, 0x84, 0x90, 0x94, 0xA0, 0xA4, 0x70, 0x100,
];

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

fn copy(from: &[u8], to: &mut [u8], address: u64, len: u64) {
    if let Some(at) = place(address, len) {
        to[at.clone()].copy_from_slice(&from[at]);
    }
}

fn meet(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

fn overlap<'a>(ranges: impl Iterator<Item = &'a Range<usize>>) -> bool {
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.windows(2).any(|pair| meet(pair[0], pair[1]))
}
