//! What the registers of virtio-mmio should say, written from the specification (virtio 1.2, 4.2.2) and what SPEC
//! and `monitor/vmm` promise beyond it: one way forward, and queues that nobody changes under a running device.

use super::memory::place;

/// What a device says of itself.
#[derive(Debug, Clone)]
pub struct Nature {
    /// Type.
    pub kind: u32,
    /// Its own features.
    pub features: u64,
    /// Sizes of its queues.
    pub queues: &'static [u16],
    /// Its configuration.
    pub config: Vec<u8>,
}

/// One queue, as the driver described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Descriptors.
    pub size: u16,
    /// True if the driver uses it.
    pub ready: bool,
    /// Descriptor table.
    pub table: u64,
    /// Ring of the driver.
    pub avail: u64,
    /// Ring of the device.
    pub used: u64,
}

/// The registers.
#[derive(Debug, Clone)]
pub struct Transport {
    nature: Nature,
    /// Status.
    pub status: u32,
    features: u64,
    select: [u32; 3],
    /// Queues: what is described, or what was when the device was started.
    pub queues: Vec<Described>,
    /// True from start to reset.
    pub active: bool,
}

/// Every feature the transport offers beside the device's: VERSION_1 and EVENT_IDX.
const COMMON: u64 = 1 << 32 | EVENT_IDX;
const EVENT_IDX: u64 = 1 << 29;
/// Interrupt status: the one register whose value depends on more than what was written.
pub const INTERRUPT_STATUS: u64 = 0x60;

impl Transport {
    /// After a reset.
    pub fn new(nature: Nature) -> Self {
        let fresh =
            |size: &u16| Described { size: *size, ready: false, table: 0, avail: 0, used: 0 };
        let queues = nature.queues.iter().map(fresh).collect();
        Self { nature, status: 0, features: 0, select: [0; 3], queues, active: false }
    }

    /// True while the device serves.
    pub fn running(&self) -> bool {
        self.active && self.status == 15
    }

    /// True if both sides agreed on event indices.
    pub fn event_idx(&self) -> bool {
        self.features & EVENT_IDX != 0
    }

    /// What a read gives; none where this does not know.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Option<()> {
        data.fill(0);
        if let Some(at) = offset.checked_sub(0x100) {
            let rest = self.nature.config.iter().skip(at as usize);
            data.iter_mut().zip(rest).for_each(|(slot, byte)| *slot = *byte);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            let [device_half, _, queue] = self.select;
            let queue = queue as usize;
            let value = match offset {
                0x00 => 0x7472_6976,
                0x04 => 2,
                0x08 => self.nature.kind,
                0x0C => u32::from_le_bytes(*b"COFR"),
                0x10 if device_half < 2 => (self.offered() >> (32 * device_half)) as u32,
                0x34 => self.nature.queues.get(queue).map_or(0, |size| u32::from(*size)),
                0x44 => self.queues.get(queue).is_some_and(|queue| queue.ready).into(),
                INTERRUPT_STATUS => return None,
                0x70 => self.status,
                0xB0..=0xBC => u32::MAX,
                _ => 0,
            };
            data.copy_from_slice(&value.to_le_bytes());
        }
        Some(())
    }

    /// A write happens. True if it resets the device, or the driver gives up on it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Ok(value) = <[u8; 4]>::try_from(data) else { return false };
        let value = u32::from_le_bytes(value);
        match offset {
            0x14 => self.select[0] = value,
            0x24 => self.select[1] = value,
            0x30 => self.select[2] = value,
            0x20 if self.status == 3 && self.select[1] < 2 => {
                let shift = 32 * self.select[1];
                self.features &= !(0xFFFF_FFFF << shift);
                self.features |= u64::from(value) << shift;
            }
            0x70 => return self.write_status(value),
            _ if self.status == 11 => self.describe(offset, value),
            _ => {}
        }
        false
    }

    fn write_status(&mut self, value: u32) -> bool {
        match (self.status, value) {
            (_, 0) => {
                let [device_half, driver_half, _] = self.select;
                *self = Self::new(self.nature.clone());
                self.select = [device_half, driver_half, 0];
                return true;
            }
            (now, _) if now & 0xC0 != 0 => {}
            (_, value) if value & 128 != 0 => {
                self.status |= 128;
                return true;
            }
            (0, 1) | (1, 3) => self.status = value,
            (3, 11) => {
                let known = self.features & !self.offered() == 0;
                if known && self.features & 1 << 32 != 0 {
                    self.status = 11;
                }
            }
            (11, 15) if self.queues.iter().all(|queue| !queue.ready || sound(queue)) => {
                self.status = 15;
                self.active = true;
                // A queue the driver left out is not there.
            }
            (11, 15) => self.status |= 64,
            _ => {}
        }
        false
    }

    fn describe(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.select[2] as usize) else { return };
        let most = self.nature.queues[self.select[2] as usize];
        let (address, align) = match offset & !4 {
            0x80 => (&mut queue.table, 16),
            0x90 => (&mut queue.avail, 2),
            0xA0 => (&mut queue.used, 4),
            _ => {
                match offset {
                    0x38 if value.is_power_of_two() && value <= most.into() => {
                        queue.size = value as u16;
                    }
                    0x44 => queue.ready = value == 1,
                    _ => {}
                }
                return;
            }
        };
        let value = u64::from(value);
        let whole = match offset & 4 {
            0 => (*address & !0xFFFF_FFFF) | value,
            _ => (*address & 0xFFFF_FFFF) | value << 32,
        };
        if whole.is_multiple_of(align) {
            *address = whole;
        }
    }

    fn offered(&self) -> u64 {
        self.nature.features | COMMON
    }
}

/// True if all of a queue is memory.
fn sound(queue: &Described) -> bool {
    let size = u64::from(queue.size);
    [(queue.table, 16 * size), (queue.avail, 6 + 2 * size), (queue.used, 6 + 8 * size)]
        .into_iter()
        .all(|(address, len)| place(address, len).is_some())
}
