//! Which device answers which port or address.
//!
//! What it refuses: passing on an access that leaves the range of its device; such a read is all ones and such a
//! write is lost, as on a bus where nobody answers, and both are counted.

use std::sync::Arc;

use coffer_machine::Bus;
use coffer_monitor_wire::Refusal;

use crate::refusals::Refusals;

/// The registers of a device, as the guest reaches them.
///
/// `offset + data.len()` lies within the range the device was mapped with; `data` holds 1 to 8 bytes for memory and,
/// for ports, as many bytes as the guest's (string) instruction moved. Any such access must be answered without a panic.
pub trait Registers: Send + Sync {
    /// Guest reads `data.len()` bytes.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Guest writes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// All ports and device memory of one VM.
#[derive(Default)]
pub struct DeviceBus {
    ports: Vec<Mapping>,
    memory: Vec<Mapping>,
    refusals: Refusals,
}

struct Mapping {
    start: u64,
    size: u64,
    device: Arc<dyn Registers>,
}

impl DeviceBus {
    /// A bus with nothing on it.
    pub fn new(refusals: Refusals) -> Self {
        Self { refusals, ..Self::default() }
    }

    /// Maps `size` ports from `start`.
    pub fn map_ports(&mut self, start: u16, size: u16, device: Arc<dyn Registers>) {
        self.ports.push(Mapping { start: start.into(), size: size.into(), device });
    }

    /// Maps `size` bytes of device memory from `start`.
    pub fn map_memory(&mut self, start: u64, size: u64, device: Arc<dyn Registers>) {
        self.memory.push(Mapping { start, size, device });
    }
}

/// The device at `address`, if all of `len` bytes are its.
fn find(mappings: &[Mapping], address: u64, len: usize) -> Option<(&dyn Registers, u64)> {
    mappings.iter().find_map(|mapping| {
        let offset = address.checked_sub(mapping.start)?;
        let end = offset.checked_add(len as u64)?;
        (end <= mapping.size).then_some((&*mapping.device, offset))
    })
}

impl DeviceBus {
    // A string instruction moves many bytes through one port, so ports are matched by their address alone.
    fn at_port(&self, port: u16) -> Option<(&dyn Registers, u64)> {
        let found = find(&self.ports, port.into(), 1);
        self.answered(found, Refusal::UnmappedPort)
    }

    fn at_address(&self, address: u64, span: usize) -> Option<(&dyn Registers, u64)> {
        self.answered(find(&self.memory, address, span), Refusal::UnmappedMemory)
    }

    fn answered<T>(&self, found: Option<T>, or: Refusal) -> Option<T> {
        if found.is_none() {
            self.refusals.count(or);
        }
        found
    }
}

impl Bus for DeviceBus {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        match self.at_port(port) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xFF),
        }
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.at_port(port) {
            device.write(offset, data);
        }
    }
    fn memory_read(&self, address: u64, data: &mut [u8]) {
        match self.at_address(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xFF),
        }
    }
    fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.at_address(address, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
pub(crate) mod harness {
    //! Throws any access at a device; every device's tests use it.

    use super::Registers;
    use proptest::prelude::*;

    /// One access.
    #[derive(Debug, Clone)]
    pub enum Access {
        /// Read of so many bytes.
        Read(u64, usize),
        /// Write.
        Write(u64, Vec<u8>),
    }

    /// Accesses within `size` bytes of registers, of any width and alignment.
    pub fn accesses(size: u64) -> impl Strategy<Value = Vec<Access>> {
        let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
        let one = (0..size, width, any::<u64>(), any::<bool>()).prop_map(
            move |(offset, width, value, write)| {
                let width = width.min((size - offset) as usize);
                match write {
                    true => Access::Write(offset, value.to_le_bytes()[..width].to_vec()),
                    false => Access::Read(offset, width),
                }
            },
        );
        proptest::collection::vec(one, 0..64)
    }

    /// Performs them.
    pub fn perform(device: &dyn Registers, accesses: &[Access]) {
        for access in accesses {
            match access {
                Access::Read(offset, width) => device.read(*offset, &mut [0; 8][..*width]),
                Access::Write(offset, data) => device.write(*offset, data),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl Registers for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn accesses_that_leave_a_device_reach_nobody() {
        let mut bus = DeviceBus::default();
        bus.map_memory(0x1000, 0x10, Arc::new(Echo));
        let read = |address, width: usize| {
            let mut data = [0; 8];
            bus.memory_read(address, &mut data[..width]);
            data[0]
        };
        assert_eq!(read(0x100F, 1), 0xF);
        assert_eq!(read(0x100F, 2), 0xFF);
        assert_eq!(read(0xFFF, 1), 0xFF);
        assert_eq!(read(u64::MAX, 8), 0xFF);
        bus.port_write(7, &[1]);
        let counts = [(Refusal::UnmappedPort, 1), (Refusal::UnmappedMemory, 3)];
        assert_eq!(bus.refusals.take_news(), Some(counts.into()));
        assert_eq!((read(0x1000, 1), bus.refusals.take_news()), (0, None));
    }
}
