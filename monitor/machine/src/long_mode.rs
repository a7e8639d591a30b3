//! The state a Linux kernel expects at its 64-bit entry point (Linux `Documentation/x86/boot.rst`, "64-bit boot
//! protocol"): long mode, the first 4 GiB mapped one to one, flat segments 0x10 and 0x18, interrupts off, RSI at the zero page.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use crate::{GuestRam, MachineError};

/// Where a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinuxEntry {
    /// Address of the 64-bit entry point.
    pub rip: u64,
    /// Address of the zero page (`struct boot_params`).
    pub zero_page: u64,
}

const PAGE: u64 = 4096;
/// The tables this module writes: GDT, then page tables, up to 0xF000. The kernel replaces them; the memory is ordinary
/// RAM to it.
const GDT: u64 = 0x8000;
const PML4: u64 = GDT + PAGE;
const PDPT: u64 = PML4 + PAGE;
const PAGE_DIRECTORIES: u64 = PDPT + PAGE;
const GIB_MAPPED: u64 = 4;

const PRESENT_WRITABLE: u64 = 0x03;
const LARGE: u64 = 0x80;
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one.
const RFLAGS: u64 = 2;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, unused, 64-bit code (execute/read), flat data (read/write), busy 32-bit TSS.
const DESCRIPTORS: [u64; 5] =
    [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x008F_8B00_0000_FFFF];

/// Writes GDT and identity page tables (2 MiB pages) for the first 4 GiB.
pub(crate) fn write_tables(ram: &GuestRam) -> Result<(), MachineError> {
    let write = |value: u64, address: u64| {
        ram.view().write_obj(value, GuestAddress(address)).map_err(MachineError::memory)
    };
    for (descriptor, slot) in DESCRIPTORS.into_iter().zip(0u64..) {
        write(descriptor, GDT + slot * 8)?;
    }
    write(PDPT | PRESENT_WRITABLE, PML4)?;
    for gib in 0..GIB_MAPPED {
        let directory = PAGE_DIRECTORIES + gib * PAGE;
        write(directory | PRESENT_WRITABLE, PDPT + gib * 8)?;
        for page in 0..512 {
            let target = (gib << 30) | (page << 21);
            write(target | PRESENT_WRITABLE | LARGE, directory + page * 8)?;
        }
    }
    Ok(())
}

/// Turns the reset state into long mode over those tables.
pub(crate) fn enter(sregs: &mut kvm_sregs) {
    let data = segment(DATA_SELECTOR, 0x3, false);
    sregs.cs = segment(CODE_SELECTOR, 0xB, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { s: 0, l: 0, db: 0, ..segment(TASK_SELECTOR, 0xB, false) };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, (DESCRIPTORS.len() * 8 - 1) as u16);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// General registers at the entry point.
pub(crate) fn registers(entry: LinuxEntry) -> kvm_regs {
    kvm_regs { rip: entry.rip, rsi: entry.zero_page, rflags: RFLAGS, ..Default::default() }
}

fn segment(selector: u16, kind: u8, code64: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        db: u8::from(!code64),
        s: 1,
        l: u8::from(code64),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamRange;

    #[test]
    fn tables_map_the_first_four_gib_one_to_one() {
        let ram = GuestRam::allocate(&[RamRange { start: 0, size: 1 << 20 }]).unwrap();
        write_tables(&ram).unwrap();
        let read = |address: u64| ram.view().read_obj::<u64>(GuestAddress(address)).unwrap();
        for address in [0u64, 0x20_0000, 0xFED4_0000, 0xFFFF_FFFF] {
            let directory = read(PDPT + (address >> 30) * 8) & !0xFFF;
            let entry = read(directory + ((address >> 21) & 511) * 8);
            assert_eq!(entry & !0xFFF, address & !0x1F_FFFF);
            assert_eq!(entry & 0xFFF, PRESENT_WRITABLE | LARGE);
        }
        assert_eq!(read(GDT + u64::from(CODE_SELECTOR)), DESCRIPTORS[2]);
    }
}
