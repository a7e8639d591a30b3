//! Copies kernel, initrd and tables into guest memory.
//!
//! What it trusts: that the two memory files hold the bytes the supervisor hashed (it sealed them).
//! What it refuses: any byte more or less than the sizes in the spec, and a guest too small for them.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;

use coffer_machine::{GuestRam, LinuxEntry};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend as _, GuestMemoryError};

use crate::acpi::{self, AcpiDevices};
use crate::boot::kernel::{HEAD_SIZE, Kernel, KernelRefused, Piece};
use crate::boot::vmlinux;
use crate::boot::zero_page::{self, ZeroPage};
use crate::devices::power;
use crate::layout::{self, MemoryMap};

/// What loading comes to.
pub type Result<T> = std::result::Result<T, LoadError>;

/// Why a guest could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel cannot be booted.
    #[error(transparent)]
    Kernel(#[from] KernelRefused),
    /// A memory file could not be read to its stated size.
    #[error("cannot read the {0}: {1}")]
    Read(&'static str, #[source] std::io::Error),
    /// A memory file is not as long as the spec says.
    #[error("the {0} has {1} bytes, the spec says {2}")]
    Size(&'static str, u64, u64),
    /// Guest memory could not be written; the map and the checks above disagree.
    #[error("cannot write guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The event log is larger than its area.
    #[error("the event log has {0} bytes, its area 65536")]
    EventLog(usize),
    /// ACPI tables larger than their area.
    #[error("the acpi tables do not fit their area")]
    Acpi,
    /// No random bytes.
    #[error("cannot get random bytes: {0}")]
    Random(#[from] rustix::io::Errno),
}

/// What to load.
pub struct Payload {
    /// Kernel file and its size.
    pub kernel: (File, u64),
    /// Initrd and its size.
    pub initrd: (File, u64),
    /// Command line, without NUL.
    pub cmdline: String,
    /// TCG2 event log.
    pub event_log: Vec<u8>,
}

/// Loads everything and says where to enter.
pub fn load(
    ram: &GuestRam,
    map: &MemoryMap,
    payload: &Payload,
    devices: &AcpiDevices,
) -> Result<LinuxEntry> {
    let kernel = load_kernel(ram, map, &payload.kernel)?;
    let (initrd, initrd_size) = load_initrd(ram, map, &kernel, &payload.initrd)?;
    load_cmdline(ram, &payload.cmdline)?;
    load_seed(ram)?;
    write(ram, layout::RESET_VECTOR, &power::RESET_CODE)?;
    load_event_log(ram, map, &payload.event_log)?;
    let rsdp = load_acpi(ram, map, devices)?;
    let (e820, relocated) = (map.e820(), kernel.relocations.is_some());
    let page = ZeroPage { relocated, initrd, initrd_size, e820: &e820, rsdp }.encode();
    write(ram, layout::ZERO_PAGE, &page)?;
    Ok(LinuxEntry { rip: kernel.entry, zero_page: layout::ZERO_PAGE })
}

fn load_kernel(ram: &GuestRam, map: &MemoryMap, (file, size): &(File, u64)) -> Result<Kernel> {
    let read = |buffer: &mut [u8], offset| {
        file.read_exact_at(buffer, offset).map_err(|error| LoadError::Read("kernel", error))
    };
    check_size("kernel", file, *size)?;
    let mut head = [0u8; HEAD_SIZE];
    read(&mut head, 0)?;
    let kernel = vmlinux::parse(&head, *size)?;
    check_memory(map, kernel.end())?;
    for piece in &kernel.pieces {
        copy("kernel", ram, file, piece)?;
    }
    if let Some((offset, size)) = kernel.relocations {
        // The parser checked that it lies within the file, and limited it.
        let mut table = vec![0; size as usize];
        read(&mut table, offset)?;
        let mut random = [0; 4];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let memory = ram.view().get_slice(GuestAddress(kernel.load), kernel.size as usize)?;
        vmlinux::relocate(&memory, &kernel, &table, u32::from_ne_bytes(random))?;
    }
    Ok(kernel)
}

fn load_initrd(
    ram: &GuestRam,
    map: &MemoryMap,
    kernel: &Kernel,
    (file, size): &(File, u64),
) -> Result<(u32, u32)> {
    let size = *size;
    check_size("initrd", file, size)?;
    let address =
        map.place_high(size, u64::from(zero_page::INITRD_MAX) + 1).filter(|at| *at >= kernel.end());
    let Some(address) = address else {
        check_memory(map, kernel.end().saturating_add(size).saturating_add(PAGE))?;
        return Err(KernelRefused::Field("initrd_addr_max").into());
    };
    copy("initrd", ram, file, &Piece { offset: 0, address, size })?;
    // Both lie below the device gap at 3 GiB.
    Ok((address as u32, size as u32))
}

fn load_cmdline(ram: &GuestRam, cmdline: &str) -> Result<()> {
    let most = zero_page::CMDLINE_MAX;
    if cmdline.len() as u64 > u64::from(most) {
        return Err(KernelRefused::Cmdline(cmdline.len(), most).into());
    }
    write(ram, layout::CMDLINE, cmdline.as_bytes())?;
    write(ram, layout::CMDLINE + cmdline.len() as u64, &[0])
}

fn load_seed(ram: &GuestRam) -> Result<()> {
    let mut seed = [0u8; 32];
    getrandom(&mut seed, GetRandomFlags::empty())?;
    write(ram, layout::SETUP_DATA, &zero_page::seed_setup_data(&seed))
}

fn load_event_log(ram: &GuestRam, map: &MemoryMap, log: &[u8]) -> Result<()> {
    if log.len() as u64 > layout::EVENT_LOG_SIZE {
        return Err(LoadError::EventLog(log.len()));
    }
    write(ram, map.event_log(), log)
}

fn load_acpi(ram: &GuestRam, map: &MemoryMap, devices: &AcpiDevices) -> Result<u64> {
    let tables = acpi::build(map, devices);
    if tables.bytes.len() as u64 > layout::ACPI_SIZE {
        return Err(LoadError::Acpi);
    }
    write(ram, map.acpi(), &tables.bytes)?;
    Ok(tables.rsdp)
}

fn check_size(what: &'static str, file: &File, stated: u64) -> Result<()> {
    let actual = file.metadata().map_err(|error| LoadError::Read(what, error))?.len();
    if actual != stated {
        return Err(LoadError::Size(what, actual, stated));
    }
    Ok(())
}

fn check_memory(map: &MemoryMap, end: u64) -> Result<()> {
    if end > map.usable_end() {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(KernelRefused::Memory(mib(end), mib(map.usable_end())).into());
    }
    Ok(())
}

fn copy(what: &'static str, ram: &GuestRam, mut file: &File, piece: &Piece) -> Result<()> {
    file.seek(SeekFrom::Start(piece.offset)).map_err(|error| LoadError::Read(what, error))?;
    let (address, size) = (GuestAddress(piece.address), piece.size);
    // Sizes were checked against guest memory, which fits this process.
    ram.view().read_exact_volatile_from(address, &mut file, size as usize)?;
    Ok(())
}

fn write(ram: &GuestRam, address: u64, bytes: &[u8]) -> Result<()> {
    Ok(ram.view().write_slice(bytes, GuestAddress(address))?)
}

const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Loads 5000 zeros as a kernel that is said to have `size` bytes.
    fn loaded(size: u64) -> Result<LinuxEntry> {
        let map = MemoryMap::new(64);
        let ram = GuestRam::allocate(&map.ram()).unwrap();
        let payload = Payload {
            kernel: (file(&[0; 5000]), size),
            initrd: (file(b"abc"), 3),
            cmdline: "quiet".into(),
            event_log: vec![1, 2],
        };
        load(&ram, &map, &payload, &AcpiDevices { vcpus: 1, virtio: 0 })
    }

    #[test]
    fn refuses_a_kernel_file_of_another_size_than_stated() {
        assert!(matches!(loaded(5001), Err(LoadError::Size("kernel", 5000, 5001))));
    }

    #[test]
    fn refuses_bytes_that_are_no_kernel() {
        assert!(matches!(loaded(5000), Err(LoadError::Kernel(KernelRefused::NotAKernel))));
    }
}
