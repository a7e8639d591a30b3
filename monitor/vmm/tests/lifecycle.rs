//! Devices that are saved half way through their guest's work and go on as others (SPEC 6.2.1), over the same memory:
//! what the guest had asked for is done, once, and what is lost is what SPEC says.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use coffer_disk::{MemoryStore, Raw};
use coffer_machine::{Doorbell, GuestRam, RamRange};
use coffer_monitor_wire::{NetBackend, NetSpec};
use coffer_vmm::devices::bus::Registers as _;
use coffer_vmm::devices::lifecycle::{Lifecycle as _, Paused, StateRefused};
use coffer_vmm::virtio::block::Block;
use coffer_vmm::virtio::device::VirtioDevice;
use coffer_vmm::virtio::mmio::{Signal, Slot, VirtioMmio};
use coffer_vmm::virtio::net::{Gate, Net};
use coffer_vmm::virtio::rng::Rng;
use coffer_vmm::virtio::vsock::{ChannelSink, Vsock};
use vm_memory::{Bytes as _, GuestAddress};

const SIZE: u64 = 16;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// A guest's driver of one device, which knows nothing of what happens to it.
struct Driver {
    memory: GuestRam,
    device: VirtioMmio,
    line: Doorbell,
    /// Of each queue: chains offered, and chains seen to come back.
    queues: Vec<(u16, u16)>,
}

impl Driver {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = GuestRam::allocate(&[RamRange { start: 0, size: 1 << 20 }]).unwrap();
        let count = device.queue_sizes().len();
        let (device, line) = plug(device, &memory);
        device.start();
        let mut driver = Self { memory, device, line, queues: vec![(0, 0); count] };
        driver.set_up();
        driver
    }

    fn set_up(&mut self) {
        for (register, value) in [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(register, value);
        }
        for queue in 0..self.queues.len() {
            let base = table(queue) as u32;
            self.write(0x30, queue as u32);
            self.write(0x38, SIZE as u32);
            for (register, value) in [(0x80, base), (0x90, base + 0x400), (0xA0, base + 0x800)] {
                self.write(register, value);
                self.write(register + 4, 0);
            }
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Offers a chain of buffers, and says nothing of it.
    fn offer(&mut self, queue: usize, chain: &[(u64, u32, u16)]) {
        let (offered, _) = &mut self.queues[queue];
        let first = u64::from(*offered) * 4 % SIZE;
        for ((address, len, flags), at) in chain.iter().zip(first..) {
            let last = at + 1 == first + chain.len() as u64;
            let flags = if last { *flags } else { flags | NEXT };
            let bytes = [
                &address.to_le_bytes()[..],
                &len.to_le_bytes(),
                &flags.to_le_bytes(),
                &((at + 1) as u16).to_le_bytes(),
            ];
            self.memory
                .view()
                .write_slice(&bytes.concat(), GuestAddress(table(queue) + at * 16))
                .unwrap();
        }
        let ring = table(queue) + 0x400;
        let slot = ring + 4 + u64::from(*offered) % SIZE * 2;
        *offered += 1;
        self.memory.view().write_obj(first as u16, GuestAddress(slot)).unwrap();
        self.memory.view().write_obj(*offered, GuestAddress(ring + 2)).unwrap();
    }

    /// Does what the device loop does, until nothing is left to do.
    fn serve(&self) {
        for _ in 0..8 {
            for queue in 0..self.queues.len() {
                if self.device.kicks()[queue].clear() {
                    self.device.serve(Signal::Kick(queue)).unwrap();
                }
            }
            self.device.serve(Signal::Backend).unwrap();
        }
    }

    fn kick(&self, queue: usize) {
        self.device.kicks()[queue].ring();
        self.serve();
    }

    /// The bytes written into the next chain that came back, if one did.
    fn came_back(&mut self, queue: usize) -> Option<u32> {
        let ring = table(queue) + 0x800;
        let (_, seen) = &mut self.queues[queue];
        let given: u16 = self.memory.view().read_obj(GuestAddress(ring + 2)).unwrap();
        (given != *seen).then(|| {
            let entry = ring + 4 + u64::from(*seen) % SIZE * 8;
            *seen += 1;
            self.memory.view().read_obj(GuestAddress(entry + 4)).unwrap()
        })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.view().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// The device is saved and gone, and this one goes on in its place.
    fn replace(&mut self, device: Box<dyn VirtioDevice>) {
        let registers = |device: &VirtioMmio| -> Vec<u8> {
            let mut bytes = vec![0; 0x200];
            bytes.chunks_mut(4).zip((0..).step_by(4)).for_each(|(data, at)| device.read(at, data));
            bytes
        };
        let before = registers(&self.device);
        let state = Paused::new(&self.device).save();
        let (device, line) = plug(device, &self.memory);
        let paused = Paused::new(&device);
        paused.restore(&state).unwrap();
        assert_eq!(paused.save(), state, "the same state");
        paused.start();
        assert_eq!(registers(&device), before, "the same registers");
        (self.device, self.line) = (device, line);
    }
}

fn table(queue: usize) -> u64 {
    0x1000 * (1 + queue as u64)
}

fn plug(device: Box<dyn VirtioDevice>, memory: &GuestRam) -> (VirtioMmio, Doorbell) {
    let line = Doorbell::new().unwrap();
    let slot = Slot {
        memory: memory.clone(),
        line: line.try_clone().unwrap(),
        kicks: device.queue_sizes().iter().map(|_| Doorbell::new().unwrap()).collect(),
        refusals: coffer_vmm::refusals::Refusals::default(),
    };
    (VirtioMmio::new(device, slot).unwrap(), line)
}

/// Block `n` is filled with `n`.
fn disk() -> Box<dyn VirtioDevice> {
    let content = (0..64).flat_map(|number| [number; 4096]).collect();
    Box::new(Block::over(0, Box::new(Raw::new(MemoryStore(content)).unwrap())))
}

fn ask_for_block(driver: &mut Driver, number: u64) -> u64 {
    let at = 0x1_0000 + number * 0x2000;
    driver.put(at, &[[0; 8], (number * 8).to_le_bytes()].concat());
    driver.put(at + 16, &[0xEE]);
    driver.offer(0, &[(at, 16, 0), (at + 0x1000, 4096, WRITE), (at + 16, 1, WRITE)]);
    at
}

#[test]
fn a_disk_serves_each_request_once_whichever_device_it_was_made_to() {
    let mut driver = Driver::new(disk());
    for round in 0..12 {
        let number = round * 2;
        let served = ask_for_block(&mut driver, number);
        driver.kick(0);
        // Offered, and even told, but not served.
        let unserved = ask_for_block(&mut driver, number + 1);
        driver.device.kicks()[0].ring();
        driver.replace(disk());
        driver.serve();
        for (at, number) in [(served, number), (unserved, number + 1)] {
            assert_eq!(driver.came_back(0), Some(4097));
            assert_eq!(driver.get(at + 16, 1), [0]);
            assert!(driver.get(at + 0x1000, 4096).iter().all(|byte| *byte == number as u8));
        }
        assert_eq!(driver.came_back(0), None, "once");
    }
}

#[test]
fn an_interrupt_that_was_not_heard_is_rung_again() {
    let mut driver = Driver::new(disk());
    ask_for_block(&mut driver, 3);
    driver.kick(0);
    assert!(driver.line.clear() && driver.read(0x60) == 1);
    driver.replace(disk());
    assert!(driver.line.clear() && driver.read(0x60) == 1);
    // One that was is not.
    driver.write(0x64, 1);
    driver.replace(disk());
    assert!(!driver.line.clear() && driver.read(0x60) == 0);
}

#[test]
fn randomness_goes_on() {
    let mut driver = Driver::new(Box::new(Rng));
    for _ in 0..3 {
        driver.offer(0, &[(0x1_0000, 32, WRITE)]);
        driver.put(0x1_0000, &[0; 32]);
        driver.replace(Box::new(Rng));
        driver.serve();
        assert_eq!(driver.came_back(0), Some(32));
        assert_ne!(driver.get(0x1_0000, 32), [0; 32]);
    }
}

fn nic() -> (Box<dyn VirtioDevice>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let spec = NetSpec {
        mac: [2, 0, 0, 0, 0, 1],
        address: [192, 168, 76, 2].into(),
        backend: NetBackend::Passt,
        deny: Vec::new(),
        reach: Default::default(),
        verifier: None,
        dhcp: false,
        limit: Default::default(),
    };
    (Box::new(Net::new(spec, ours.into(), Gate::default()).unwrap()), theirs)
}

/// An ARP frame with a mark.
fn frame(mark: u8) -> Vec<u8> {
    [
        &[0xFF; 6][..],
        &[2, 0, 0, 0, 0, 1],
        &[8, 6],
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &[2, 0, 0, 0, 0, 1],
        &[192, 168, 76, 2],
        &[mark; 10],
    ]
    .concat()
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

#[test]
fn a_nic_goes_on_with_another_backend_and_what_was_on_its_way_is_lost() {
    let (device, mut passt) = nic();
    let mut driver = Driver::new(device);
    let send = |driver: &mut Driver, mark: u8| {
        driver.put(0x1_0000, &[&[0; 12], &frame(mark)[..]].concat());
        driver.offer(1, &[(0x1_0000, 12 + frame(mark).len() as u32, 0)]);
    };
    send(&mut driver, 1);
    driver.kick(1);
    let mut seen = vec![0; prefixed(&frame(1)).len()];
    passt.read_exact(&mut seen).unwrap();
    assert_eq!(seen, prefixed(&frame(1)));
    // One that the guest has no buffer for, and half of another.
    passt.write_all(&prefixed(b"held")).unwrap();
    passt.write_all(&[0, 0, 0, 5, b'h']).unwrap();
    driver.serve();
    send(&mut driver, 2);
    let (device, mut passt) = nic();
    driver.replace(device);
    driver.serve();
    passt.read_exact(&mut seen).unwrap();
    assert_eq!(seen, prefixed(&frame(2)), "not sent before, so now");
    driver.offer(0, &[(0x2_0000, 2048, WRITE)]);
    passt.write_all(&prefixed(b"whole")).unwrap();
    driver.kick(0);
    assert_eq!(driver.came_back(0), Some(17));
    assert_eq!(driver.get(0x2_0000 + 12, 5), b"whole");
    assert_eq!(driver.came_back(0), None);
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<UnixStream>>>);

impl ChannelSink for Kept {
    fn open(&mut self, _: u32, stream: UnixStream) -> std::io::Result<()> {
        stream.set_nonblocking(true)?;
        self.0.lock().unwrap().push(stream);
        Ok(())
    }
}

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const DATA: u16 = 5;

/// A packet of the guest's from a port of its own.
fn packet(port: u32, op: u16, payload: &[u8]) -> Vec<u8> {
    let words = [port, 49405, payload.len() as u32, 1 | u32::from(op) << 16, 0, 1 << 16, 0];
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [&77u64.to_le_bytes()[..], &2u64.to_le_bytes(), &words, payload].concat()
}

fn send(driver: &mut Driver, port: u32, op: u16, payload: &[u8]) {
    driver.put(0x1_0000, &packet(port, op, payload));
    driver.offer(1, &[(0x1_0000, 44 + payload.len() as u32, 0)]);
    driver.kick(1);
}

/// Port and operation of the next packet the guest got.
fn received(driver: &mut Driver, at: u64) -> Option<(u32, u16)> {
    driver.came_back(0)?;
    let packet = driver.get(at, 44);
    Some((u32::from_le_bytes(packet[20..24].try_into().unwrap()), u16::from(packet[30])))
}

#[test]
fn the_guest_is_told_that_its_streams_are_cut_and_opens_others() {
    let kept = Kept::default();
    let device =
        || -> Box<dyn VirtioDevice> { Box::new(Vsock::new(77, Box::new(kept.clone())).unwrap()) };
    let mut driver = Driver::new(device());
    let room: Vec<u64> = (0..4).map(|n| 0x2_0000 + n * 0x1000).collect();
    room.iter().for_each(|at| driver.offer(0, &[(*at, 1024, WRITE)]));
    driver.put(0x4_0000, &[0xEE; 8]);
    driver.offer(2, &[(0x4_0000, 8, WRITE)]);
    send(&mut driver, 1000, REQUEST, b"");
    assert_eq!(received(&mut driver, room[0]), Some((1000, RESPONSE)));
    send(&mut driver, 1000, DATA, b"half a mess");
    let mut host = kept.0.lock().unwrap().pop().unwrap();
    let mut seen = [0; 11];
    host.read_exact(&mut seen).unwrap();
    assert_eq!(driver.came_back(2), None, "nothing to tell yet");

    driver.replace(device());
    driver.serve();
    assert_eq!(host.read(&mut seen).unwrap(), 0, "the monitor's end is at its end");
    assert_eq!((driver.came_back(2), driver.get(0x4_0000, 5)), (Some(4), vec![0, 0, 0, 0, 0xEE]));
    // A guest that has not heard: RST. One that has: as before.
    send(&mut driver, 1000, DATA, b"age");
    assert_eq!(received(&mut driver, room[1]), Some((1000, RESET)));
    send(&mut driver, 1001, REQUEST, b"");
    assert_eq!(received(&mut driver, room[2]), Some((1001, RESPONSE)));
    send(&mut driver, 1001, DATA, b"a message");
    let mut host = kept.0.lock().unwrap().pop().unwrap();
    host.read_exact(&mut seen[..9]).unwrap();
    assert_eq!(&seen[..9], b"a message");
    driver.offer(2, &[(0x4_0000, 8, WRITE)]);
    driver.kick(2);
    assert_eq!(driver.came_back(2), None, "told once");
}

#[test]
fn a_guest_without_room_for_the_event_is_told_when_it_has_some() {
    let device = || -> Box<dyn VirtioDevice> {
        Box::new(Vsock::new(77, Box::new(Kept::default())).unwrap())
    };
    let mut driver = Driver::new(device());
    driver.replace(device());
    driver.serve();
    // Saved again meanwhile.
    driver.replace(device());
    driver.offer(2, &[(0x4_0000, 4, WRITE)]);
    driver.kick(2);
    assert_eq!(driver.came_back(2), Some(4));
}

#[test]
fn a_driver_that_is_setting_up_goes_on_setting_up() {
    let mut driver = Driver::new(disk());
    for steps in 0..=24 {
        driver.write(0x70, 0);
        driver.put(table(0), &[0; 0x1000]);
        driver.queues[0] = (0, 0);
        let base = table(0) as u32;
        let set_up = [
            (0x70, 1),
            (0x70, 3),
            (0x24, 1),
            (0x20, 1),
            (0x24, 0),
            (0x20, 0x200),
            (0x70, 11),
            (0x30, 0),
            (0x38, 16),
            (0x80, base),
            (0x84, 0),
            (0x90, base + 0x400),
            (0x94, 0),
            (0xA0, base + 0x800),
            (0xA4, 0),
            (0x44, 1),
            (0x70, 15),
        ];
        for (n, (register, value)) in set_up.into_iter().enumerate() {
            if n == steps {
                driver.replace(disk());
            }
            driver.write(register, value);
        }
        assert_eq!(driver.read(0x70), 15, "saved before step {steps}");
        ask_for_block(&mut driver, 1);
        driver.kick(0);
        assert_eq!(driver.came_back(0), Some(4097));
    }
}

#[test]
fn one_kind_of_device_does_not_take_the_state_of_another() {
    let driver = Driver::new(disk());
    let state = Paused::new(&driver.device).save();
    let (rng, _) = plug(Box::new(Rng), &driver.memory);
    assert_eq!(Paused::new(&rng).restore(&state), Err(StateRefused::Impossible("kind")));
}
