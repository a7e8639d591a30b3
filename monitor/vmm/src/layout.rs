//! Where everything lies in guest-physical memory (SPEC 6.3).
//!
//! ```text
//! 0x7000            zero page            3 GiB..4 GiB  devices, no RAM
//! 0x8000..0xF000    GDT, page tables     0xD0000000    virtio-mmio, 4 KiB each
//! 0x10000           setup data (seed)    0xFEC00000    IOAPIC (KVM)
//! 0x20000           command line         0xFED40000    TPM CRB, and its buffer in the page behind
//! 0xFFFF0           reset vector
//! 1 MiB..           RAM: kernel, initrd  0xFEE00000    local APICs (KVM)
//! top of low RAM    ACPI tables 64 KiB, event log 64 KiB
//! 4 GiB..           RAM beyond 3 GiB
//! ```

use coffer_machine::RamRange;

/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// `struct setup_data` with the random seed.
pub const SETUP_DATA: u64 = 0x1_0000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Where real mode begins after a reset: the last 16 bytes of the first megabyte.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// First megabyte: RAM ends here, as on every PC (EBDA and video memory above).
pub const LOW_RAM_END: u64 = 0x9_FC00;
/// RAM goes on here.
pub const HIGH_RAM_START: u64 = 1 << 20;
/// RAM stops here for devices and goes on at [`GAP_END`].
pub const GAP_START: u64 = 3 << 30;
/// First address above the devices.
pub const GAP_END: u64 = 4 << 30;

/// First virtio-mmio window.
pub const VIRTIO_BASE: u64 = 0xD000_0000;
/// Size of one window.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// Interrupt of the first virtio device; the next ones follow.
pub const VIRTIO_FIRST_GSI: u32 = 5;
/// IOAPIC pins are 0..24.
pub const GSI_COUNT: u32 = 24;
/// IOAPIC registers, in KVM.
pub const IOAPIC: u32 = 0xFEC0_0000;
/// Local APIC registers, in KVM.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// TPM CRB, locality 0.
pub const TPM: u64 = 0xFED4_0000;
/// Size of the CRB page.
pub const TPM_WINDOW: u64 = 0x1000;
/// The CRB's buffer for commands and responses: memory, so that no vCPU leaves the guest for each word of it.
pub const TPM_BUFFER: u64 = TPM + TPM_WINDOW;
/// Bytes of the buffer.
pub const TPM_BUFFER_SIZE: u64 = 0x1000;

/// First serial port.
pub const COM1_PORT: u16 = 0x3F8;
/// Its interrupt.
pub const COM1_GSI: u32 = 4;
/// Ports of the power block: sleep control, sleep status, reset.
pub const POWER_PORT: u16 = 0x600;
/// i8042 command port; only its reset command does anything.
pub const I8042_PORT: u16 = 0x64;

/// Room for ACPI tables.
pub const ACPI_SIZE: u64 = 64 << 10;
/// Log area named by the ACPI TPM2 table.
pub const EVENT_LOG_SIZE: u64 = 64 << 10;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Kind of an e820 entry (ACPI 6.5 table 15.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Kind {
    /// Free for the kernel.
    Ram = 1,
    /// Free once the tables were read; Linux keeps them.
    AcpiTables = 3,
    /// Never touched by the kernel: the event log.
    AcpiNvs = 4,
}

/// One e820 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Kind.
    pub kind: E820Kind,
}

/// The memory of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMap {
    low_end: u64,
    high_size: u64,
}

impl MemoryMap {
    /// A map of `mib` MiB.
    pub fn new(mib: u32) -> Self {
        let total = u64::from(mib) * MIB;
        Self { low_end: total.min(GAP_START), high_size: total.saturating_sub(GAP_START) }
    }

    /// What to back with memory, in ascending order: RAM, and the TPM's buffer, which the kernel is not told of as RAM.
    pub fn ram(&self) -> Vec<RamRange> {
        let buffer = RamRange { start: TPM_BUFFER, size: TPM_BUFFER_SIZE };
        let high = RamRange { start: GAP_END, size: self.high_size };
        let ranges = [RamRange { start: 0, size: self.low_end }, buffer, high];
        ranges.into_iter().filter(|range| range.size > 0).collect()
    }

    /// End of low RAM that kernel and initrd may use.
    pub fn usable_end(&self) -> u64 {
        self.low_end.saturating_sub(ACPI_SIZE + EVENT_LOG_SIZE)
    }

    /// First address of the ACPI tables.
    pub fn acpi(&self) -> u64 {
        self.usable_end()
    }

    /// First address of the event log.
    pub fn event_log(&self) -> u64 {
        self.usable_end() + ACPI_SIZE
    }

    /// What the kernel is told.
    pub fn e820(&self) -> Vec<E820Entry> {
        let entry = |start, end: u64, kind| E820Entry { start, size: end - start, kind };
        let entries = [
            entry(0, LOW_RAM_END, E820Kind::Ram),
            entry(HIGH_RAM_START, self.usable_end(), E820Kind::Ram),
            entry(self.acpi(), self.event_log(), E820Kind::AcpiTables),
            entry(self.event_log(), self.low_end, E820Kind::AcpiNvs),
            entry(GAP_END, GAP_END + self.high_size, E820Kind::Ram),
        ];
        entries.into_iter().filter(|entry| entry.size > 0).collect()
    }

    /// Highest page-aligned place for `size` bytes that ends at or below both `limit` and usable low RAM.
    pub fn place_high(&self, size: u64, limit: u64) -> Option<u64> {
        let end = self.usable_end().min(limit);
        Some(end.checked_sub(size)? / PAGE * PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_three_gib_goes_above_the_devices() {
        let map = MemoryMap::new(4096);
        assert_eq!(map.ram().get(2), Some(&RamRange { start: GAP_END, size: 1 << 30 }));
        assert!(map.e820().iter().all(|e| e.start + e.size <= GAP_START || e.start >= GAP_END));
        assert!(map.ram().iter().any(|r| r.start == TPM_BUFFER));
    }

    #[test]
    fn e820_entries_ascend_without_overlap_and_stay_in_ram() {
        for mib in [64, 3071, 3072, 3073, 8192] {
            let map = MemoryMap::new(mib);
            let mut end = 0;
            for entry in map.e820() {
                assert!(entry.start >= end, "{mib} MiB: {entry:?}");
                end = entry.start + entry.size;
                assert!(
                    map.ram().iter().any(|r| entry.start >= r.start && end <= r.start + r.size)
                );
            }
        }
    }
}
