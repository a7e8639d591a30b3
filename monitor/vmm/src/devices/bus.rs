//! Which device answers which port or address.
//!
//! What it refuses: passing on an access that leaves the range of its device; such a read is all ones and such a
//! write is lost, as on a bus where nobody answers.

use std::sync::Arc;

use coffer_machine::Bus;

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
}

struct Mapping {
    start: u64,
    size: u64,
    device: Arc<dyn Registers>,
}

impl DeviceBus {
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

fn read(mappings: &[Mapping], address: u64, span: usize, data: &mut [u8]) {
    match find(mappings, address, span) {
        Some((device, offset)) => device.read(offset, data),
        None => data.fill(0xFF),
    }
}

fn write(mappings: &[Mapping], address: u64, span: usize, data: &[u8]) {
    if let Some((device, offset)) = find(mappings, address, span) {
        device.write(offset, data);
    }
}

impl Bus for DeviceBus {
    // A string instruction moves many bytes through one port, so ports are matched by their address alone.
    fn port_read(&self, port: u16, data: &mut [u8]) {
        read(&self.ports, port.into(), 1, data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        write(&self.ports, port.into(), 1, data);
    }
    fn memory_read(&self, address: u64, data: &mut [u8]) {
        let span = data.len();
        read(&self.memory, address, span, data);
    }
    fn memory_write(&self, address: u64, data: &[u8]) {
        write(&self.memory, address, data.len(), data);
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
    }
}
