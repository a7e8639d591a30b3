//! `struct boot_params`, the page a Linux kernel is handed (Linux `Documentation/x86/zero-page.rst`).

use crate::layout::{self, E820Entry};

/// Size of the page.
pub const SIZE: usize = 4096;

/// Last address the initrd may occupy.
pub const INITRD_MAX: u32 = 0x7FFF_FFFF;
/// Most bytes of command line, without NUL.
pub const CMDLINE_MAX: u32 = 2047;

/// What goes into it beside constants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroPage<'a> {
    /// The kernel's address was chosen at random: Linux then draws those of its other areas as well.
    pub relocated: bool,
    /// Address of the initrd.
    pub initrd: u32,
    /// Its bytes.
    pub initrd_size: u32,
    /// Memory map.
    pub e820: &'a [E820Entry],
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
}

impl ZeroPage<'_> {
    /// The page.
    pub fn encode(&self) -> [u8; SIZE] {
        let mut page = [0u8; SIZE];
        put(&mut page, 0x070, &self.rsdp.to_le_bytes());
        // What a bzImage's header would say, protocol 2.15: an ELF file has none, and Linux reads it all the same.
        put(&mut page, 0x1FE, &[0x55, 0xAA]);
        put(&mut page, 0x202, b"HdrS");
        put(&mut page, 0x206, &0x020F_u16.to_le_bytes());
        put(&mut page, 0x210, &[UNKNOWN_LOADER]);
        put(&mut page, 0x211, &[LOADED_HIGH | if self.relocated { KASLR } else { 0 }]);
        put(&mut page, 0x218, &self.initrd.to_le_bytes());
        put(&mut page, 0x21C, &self.initrd_size.to_le_bytes());
        put(&mut page, 0x22C, &INITRD_MAX.to_le_bytes());
        put(&mut page, 0x238, &CMDLINE_MAX.to_le_bytes());
        put(&mut page, 0x228, &(layout::CMDLINE as u32).to_le_bytes());
        put(&mut page, 0x250, &layout::SETUP_DATA.to_le_bytes());
        self.put_e820(&mut page);
        page
    }

    fn put_e820(&self, page: &mut [u8; SIZE]) {
        let entries = self.e820.iter().take(E820_MAX);
        put(page, 0x1E8, &[entries.len() as u8]);
        for (slot, entry) in entries.enumerate() {
            let at = 0x2D0 + slot * 20;
            put(page, at, &entry.start.to_le_bytes());
            put(page, at + 8, &entry.size.to_le_bytes());
            put(page, at + 16, &(entry.kind as u32).to_le_bytes());
        }
    }
}

/// `struct setup_data` of type `SETUP_RNG_SEED`: Linux credits it and wipes it.
pub fn seed_setup_data(seed: &[u8; 32]) -> Vec<u8> {
    const SETUP_RNG_SEED: u32 = 9;
    let no_next = 0u64.to_le_bytes();
    let length = (seed.len() as u32).to_le_bytes();
    [&no_next[..], &SETUP_RNG_SEED.to_le_bytes(), &length, seed].concat()
}

const UNKNOWN_LOADER: u8 = 0xFF;
const LOADED_HIGH: u8 = 1;
const KASLR: u8 = 2;
const E820_MAX: usize = 128;

/// Copies into the page; offsets are constants of the protocol, all inside it.
fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(target) = page.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::MemoryMap;

    #[test]
    fn carries_addresses_and_memory_map() {
        let e820 = MemoryMap::new(128).e820();
        let page = ZeroPage {
            relocated: true,
            initrd: 0x1234_5000,
            initrd_size: 77,
            e820: &e820,
            rsdp: 0x55,
        }
        .encode();
        assert_eq!(page[0x1E8] as usize, e820.len());
        assert_eq!(page[0x1EF], 0, "sentinel");
        assert_eq!(page[0x218..0x220], [0, 0x50, 0x34, 0x12, 77, 0, 0, 0]);
        assert_eq!(page[0x1FE..0x206], *b"\x55\xAA\0\0HdrS");
        assert_eq!(page[0x210..0x212], [0xFF, 3]);
        assert_eq!(page[0x70], 0x55);
        assert_eq!(page[0x2D0 + 16], 1);
    }
}
