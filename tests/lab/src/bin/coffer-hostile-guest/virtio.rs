//! A virtio-mmio driver that does as it is told, right or wrong (virtio 1.2 sections 2.7, 4.2).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::raw::{Page, Window};

/// First window, and their distance; the monitor's layout, as ACPI tells it.
const BASE: u64 = 0xD000_0000;
const WINDOWS: u64 = 8;
const MAGIC: u64 = u32::from_le_bytes(*b"virt") as u64;

pub const NET: u64 = 1;
pub const BLOCK: u64 = 2;
pub const RNG: u64 = 4;
pub const VSOCK: u64 = 19;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const SELECT: usize = 0x30;
pub const SIZE: usize = 0x38;
pub const READY: usize = 0x44;
pub const NOTIFY: usize = 0x50;
pub const STATUS: usize = 0x70;
pub const TABLE: usize = 0x80;
pub const AVAIL: usize = 0x90;
pub const USED: usize = 0xA0;
pub const CONFIG: usize = 0x100;
const FEATURES: usize = 0x20;
const FEATURES_SELECT: usize = 0x24;

/// The size rings have here.
pub const RING: u16 = 16;

/// A device, by its registers.
#[derive(Clone, Copy)]
pub struct Device {
    pub registers: Window,
    pub kind: u64,
}

/// A descriptor.
#[derive(Clone, Copy, Default)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let parts: [&[u8]; 4] = [
            &self.address.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.next.to_le_bytes(),
        ];
        bytes.iter_mut().zip(parts.concat()).for_each(|(slot, byte)| *slot = byte);
        bytes
    }
}

/// A queue's three parts, each in a page of its own.
#[derive(Clone, Copy)]
pub struct Ring {
    pub table: Page,
    pub avail: Page,
    pub used: Page,
}

impl Ring {
    pub fn new() -> Result<Self> {
        Ok(Self { table: Page::new()?, avail: Page::new()?, used: Page::new()? })
    }

    pub fn clear(self) {
        [self.table, self.avail, self.used].into_iter().for_each(|page| page.fill(0));
    }

    pub fn describe(self, at: usize, descriptor: Descriptor) {
        self.table.write(at * 16, &descriptor.bytes());
    }

    /// Offers these heads and claims to be at `index`.
    pub fn offer(self, heads: &[u16], index: u16) {
        for (at, head) in heads.iter().enumerate() {
            self.avail.write(4 + at % usize::from(RING) * 2, &head.to_le_bytes());
        }
        self.avail.write(2, &index.to_le_bytes());
    }

    /// How far the device is.
    pub fn used_index(self) -> u16 {
        match self.used.read(2, 2)[..] {
            [low, high] => u16::from_le_bytes([low, high]),
            _ => 0,
        }
    }

    /// Waits until the device has returned `index` chains; false if it does not.
    pub fn wait(self, index: u16, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.used_index() != index {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

impl Device {
    /// All there are.
    pub fn all() -> Result<Vec<Self>> {
        let mut devices = Vec::new();
        for at in 0..WINDOWS {
            let registers = Window::open(BASE + at * 0x1000)?;
            let kind = registers.read(0x08, 4);
            if registers.read(0, 4) == MAGIC && kind != 0 {
                devices.push(Self { registers, kind });
            }
        }
        ensure!(!devices.is_empty(), "no virtio device answers");
        Ok(devices)
    }

    pub fn name(self) -> &'static str {
        match self.kind {
            NET => "net",
            BLOCK => "block",
            RNG => "rng",
            VSOCK => "vsock",
            _ => "other",
        }
    }

    /// The queue requests go through, and how many queues there are.
    pub fn queues(self) -> (usize, usize) {
        match self.kind {
            NET => (1, 2),
            VSOCK => (1, 3),
            _ => (0, 1),
        }
    }

    pub fn set(self, register: usize, value: u64) {
        self.registers.write(register, 4, value);
    }

    pub fn get(self, register: usize) -> u64 {
        self.registers.read(register, 4)
    }

    pub fn kick(self, queue: usize) {
        self.set(NOTIFY, queue as u64);
    }

    /// Up to the point where queues are described.
    pub fn agree(self) {
        self.set(STATUS, 0);
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        self.set(FEATURES_SELECT, 1);
        self.set(FEATURES, 1);
        self.set(FEATURES_SELECT, 0);
        self.set(FEATURES, 0);
        self.set(STATUS, 11);
    }

    /// Asks for features nobody offered.
    pub fn agree_to_everything(self) {
        self.set(STATUS, 0);
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        for half in [0, 1, 2] {
            self.set(FEATURES_SELECT, half);
            self.set(FEATURES, u64::MAX);
        }
        self.set(STATUS, 11);
    }

    pub fn describe(self, queue: usize, size: u64, table: u64, avail: u64, used: u64) {
        self.set(SELECT, queue as u64);
        self.set(SIZE, size);
        for (register, address) in [(TABLE, table), (AVAIL, avail), (USED, used)] {
            self.set(register, address & 0xFFFF_FFFF);
            self.set(register + 4, address >> 32);
        }
        self.set(READY, 1);
    }

    /// Resets it and has it run with this ring as the one for requests; the others are left out.
    pub fn start(self, ring: Ring) -> Result<()> {
        ring.clear();
        self.agree();
        let (queue, _) = self.queues();
        let Ring { table, avail, used } = ring;
        self.describe(queue, RING.into(), table.address, avail.address, used.address);
        self.set(STATUS, 15);
        ensure!(self.get(STATUS) == 15, "the {} does not start", self.name());
        Ok(())
    }
}
