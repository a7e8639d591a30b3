//! An unpacked kernel: an ELF file of segments, and a table of the places in them that depend on the address the
//! kernel runs at (SPEC 3.3.1). No guest spends its start unpacking it, and each still gets an address of its own.
//!
//! The kernel stays where it was linked to lie in physical memory; only its virtual address moves. What the table
//! names is checked against the kernel's own memory: a wrong table makes a kernel that does not start, no more.

use vm_memory::{VolatileMemory as _, VolatileSlice};

use crate::boot::kernel::{Fields, Kernel, KernelRefused, Piece};
use crate::layout;

/// ELF, 64 bits, little-endian, version 1.
pub const MAGIC: &[u8] = b"\x7FELF\x02\x01\x01";
/// Segment type of the table: in the range ELF leaves to systems, and ours alone.
pub const PT_RELOCATIONS: u32 = 0x6372_656C;

/// ET_EXEC for EM_X86_64.
const EXECUTABLE_X86_64: u32 = 2 | 62 << 16;
const PT_LOAD: u32 = 1;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u16 = 56;
/// As many as fit behind the header into what is read.
const SEGMENTS_MAX: u16 = 10;
/// Linux 6.1 has 800 KiB.
const TABLE_MAX: u64 = 16 << 20;
/// Where physical address 0 is in the kernel's own map (`__START_KERNEL_map`), and how much that map holds.
const KERNEL_MAP: u64 = 0xFFFF_FFFF_8000_0000;
const KERNEL_MAP_SIZE: u64 = 1 << 30;
/// `CONFIG_PHYSICAL_ALIGN`: what a kernel's address is a multiple of.
const ALIGNMENT: u64 = 2 << 20;

/// Reads the ELF header and its segments from the first [`kernel::HEAD_SIZE`] bytes of a file of `file_size` bytes.
///
/// [`kernel::HEAD_SIZE`]: crate::boot::kernel::HEAD_SIZE
pub fn parse(head: &[u8], file_size: u64) -> Result<Kernel, KernelRefused> {
    let impossible = |name| Err(KernelRefused::Field(name));
    if !head.starts_with(MAGIC) {
        return Err(KernelRefused::NotAKernel);
    }
    let field = Fields(head);
    let segments = field.u16(0x38)?;
    if field.u32(0x10)? != EXECUTABLE_X86_64 {
        return Err(KernelRefused::NotAKernel);
    }
    if field.u64(0x20)? != HEADER || field.u16(0x36)? != PROGRAM_HEADER || segments > SEGMENTS_MAX {
        return impossible("e_phoff");
    }
    let (mut pieces, mut relocations) = (Vec::new(), None);
    let (mut load, mut end) = (None, layout::HIGH_RAM_START);
    for at in (HEADER as usize..).step_by(PROGRAM_HEADER.into()).take(segments.into()) {
        let kind = field.u32(at)?;
        let (offset, address) = (field.u64(at + 0x08)?, field.u64(at + 0x18)?);
        let (size, memory) = (field.u64(at + 0x20)?, field.u64(at + 0x28)?);
        if offset.checked_add(size).is_none_or(|end| end > file_size) {
            return Err(KernelRefused::Truncated);
        }
        match kind {
            PT_LOAD => {
                let beyond = address.checked_add(memory).filter(|end| *end <= layout::GAP_START);
                let (true, Some(beyond)) = (address >= end && size <= memory, beyond) else {
                    return impossible("p_paddr");
                };
                load.get_or_insert(address);
                end = beyond;
                pieces.push(Piece { offset, address, size });
            }
            PT_RELOCATIONS if size > TABLE_MAX || !size.is_multiple_of(4) => {
                return impossible("p_filesz");
            }
            PT_RELOCATIONS => relocations = Some((offset, size)),
            _ => {}
        }
    }
    let (Some(load), entry) = (load, field.u64(0x18)?) else { return impossible("e_phnum") };
    if !(load..end).contains(&entry) {
        return impossible("e_entry");
    }
    Ok(Kernel { pieces, relocations, entry, load, size: end - load })
}

/// Moves the kernel in `memory` to a virtual address that `random` chooses.
///
/// The table is Linux's own (`arch/x86/tools/relocs.c`): lists of 32-bit addresses, each behind a zero. First the
/// places of 64 bits, then, up to Linux 6.14, those from which the distance is taken away, last those of 32 bits.
pub fn relocate(
    memory: &VolatileSlice<'_>,
    kernel: &Kernel,
    table: &[u8],
    random: u32,
) -> Result<(), KernelRefused> {
    let words: Vec<u32> = table.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    let lists: Vec<&[u32]> = words.split(|word| *word == 0).collect();
    let (wide, inverse, narrow) = match lists[..] {
        [[], wide, narrow] => (wide, &[][..], narrow),
        [[], wide, inverse, narrow] => (wide, inverse, narrow),
        _ => return Err(BAD_TABLE),
    };
    let room = KERNEL_MAP_SIZE.saturating_sub(kernel.end()) / ALIGNMENT + 1;
    let distance = u64::from(random) % room * ALIGNMENT;
    for word in wide {
        let place = memory.get_ref::<u64>(offset(kernel, *word)?).map_err(|_| BAD_TABLE)?;
        place.store(place.load().wrapping_add(distance));
    }
    // Distances are below 1 GiB.
    let distance = distance as u32;
    for (words, distance) in [(inverse, distance.wrapping_neg()), (narrow, distance)] {
        for word in words {
            let place = memory.get_ref::<u32>(offset(kernel, *word)?).map_err(|_| BAD_TABLE)?;
            place.store(place.load().wrapping_add(distance));
        }
    }
    Ok(())
}

const BAD_TABLE: KernelRefused = KernelRefused::Field("relocations");

/// How far into the kernel's memory the byte lies that it calls `word`, an address whose upper half is all ones.
fn offset(kernel: &Kernel, word: u32) -> Result<usize, KernelRefused> {
    let physical = (u64::from(word) | 0xFFFF_FFFF_0000_0000).checked_sub(KERNEL_MAP);
    let within = physical.and_then(|at| at.checked_sub(kernel.load)).ok_or(BAD_TABLE)?;
    usize::try_from(within).map_err(|_| BAD_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes as _;

    use crate::boot::kernel::HEAD_SIZE;

    const FILE: u64 = 0x4000;
    const LOAD: u64 = 0x100_0000;

    fn segment(kind: u32, offset: u64, address: u64, size: u64, memory: u64) -> Vec<u8> {
        let numbers = [offset, address + KERNEL_MAP, address, size, memory, 0x1000];
        let numbers = numbers.iter().flat_map(|n| n.to_le_bytes());
        [kind.to_le_bytes(), 5u32.to_le_bytes()].concat().into_iter().chain(numbers).collect()
    }

    /// The head of a kernel with two segments, a note and a table.
    fn good() -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.resize(16, 0);
        head.extend(EXECUTABLE_X86_64.to_le_bytes());
        head.extend(1u32.to_le_bytes());
        [LOAD, 64, 0].iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(0u32.to_le_bytes());
        [64u16, 56, 4, 0, 0, 0].iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(segment(1, 0x1000, LOAD, 0x800, 0x1000));
        head.extend(segment(1, 0x2000, LOAD + 0x1000, 0, 0x3000));
        head.extend(segment(4, 0x1000, LOAD, 8, 8));
        head.extend(segment(PT_RELOCATIONS, 0x3000, 0, 20, 0));
        head.resize(HEAD_SIZE, 0);
        head
    }

    #[test]
    fn reads_segments_and_table() {
        let kernel = parse(&good(), FILE).unwrap();
        let first = Piece { offset: 0x1000, address: LOAD, size: 0x800 };
        assert_eq!(kernel.pieces.first(), Some(&first));
        assert_eq!((kernel.entry, kernel.load, kernel.size), (LOAD, LOAD, 0x4000));
        assert_eq!(kernel.relocations, Some((0x3000, 20)));
    }

    #[track_caller]
    fn refuses(at: usize, bytes: &[u8], expected: KernelRefused) {
        let mut head = good();
        head[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(parse(&head, FILE), Err(expected));
    }

    #[test]
    fn refuses_near_misses() {
        const FIRST: usize = 64;
        const TABLE: usize = 64 + 3 * 56;
        let field = KernelRefused::Field;
        refuses(4, &[1], KernelRefused::NotAKernel);
        refuses(0x12, &[3], KernelRefused::NotAKernel);
        refuses(0x20, &[65], field("e_phoff"));
        refuses(0x38, &[11], field("e_phoff"));
        refuses(0x38, &[0], field("e_phnum"));
        refuses(0x18, &(LOAD + 0x4000).to_le_bytes(), field("e_entry"));
        refuses(0x18, &(LOAD - 1).to_le_bytes(), field("e_entry"));
        refuses(FIRST + 0x08, &FILE.to_le_bytes(), KernelRefused::Truncated);
        refuses(FIRST + 0x08, &u64::MAX.to_le_bytes(), KernelRefused::Truncated);
        refuses(FIRST + 0x18, &0x9_0000u64.to_le_bytes(), field("p_paddr"));
        refuses(FIRST + 0x18, &(LOAD + 0x1000).to_le_bytes(), field("p_paddr"));
        refuses(FIRST + 0x18, &u64::MAX.to_le_bytes(), field("p_paddr"));
        refuses(FIRST + 0x28, &0x7FFu64.to_le_bytes(), field("p_paddr"));
        refuses(FIRST + 0x28, &u64::MAX.to_le_bytes(), field("p_paddr"));
        refuses(TABLE + 0x20, &[21], field("p_filesz"));
        refuses(TABLE + 0x08, &0x3FF0u64.to_le_bytes(), KernelRefused::Truncated);
    }

    #[test]
    fn refuses_a_kernel_that_unpacks_itself() {
        let mut bzimage = vec![0; HEAD_SIZE];
        bzimage[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(parse(&bzimage, FILE), Err(KernelRefused::NotAKernel));
    }

    #[test]
    fn refuses_a_file_that_ends_early() {
        assert_eq!(parse(&good()[..200], FILE), Err(KernelRefused::Truncated));
        assert_eq!(parse(&good(), 0x3010), Err(KernelRefused::Truncated));
    }

    fn table(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Relocates memory whose bytes are all zero, and gives what is at some places.
    fn relocated(words: &[u32], random: u32) -> Result<(u64, u32, u32), KernelRefused> {
        let kernel = parse(&good(), FILE).unwrap();
        let mut bytes = vec![0; kernel.size as usize];
        let memory = VolatileSlice::from(bytes.as_mut_slice());
        relocate(&memory, &kernel, &table(words), random)?;
        let wide = memory.read_obj(0x10).unwrap();
        Ok((wide, memory.read_obj(0x21).unwrap(), memory.read_obj(0x3FFC).unwrap()))
    }

    #[test]
    fn moves_every_place_by_one_distance() {
        const D: u64 = 5 * ALIGNMENT;
        let minus = (D as u32).wrapping_neg();
        let old = [0, 0x8100_0010, 0, 0x8100_0021, 0, 0x8100_3FFC];
        assert_eq!(relocated(&old, 5), Ok((D, minus, D as u32)));
        let new = [0, 0x8100_0010, 0, 0x8100_0021, 0x8100_3FFC];
        assert_eq!(relocated(&new, 5), Ok((D, D as u32, D as u32)));
        // The last place in the kernel's own map, and round again.
        let places = ((KERNEL_MAP_SIZE - LOAD - 0x4000) / ALIGNMENT) as u32;
        let furthest = u64::from(places) * ALIGNMENT;
        assert_eq!(relocated(&new, places).unwrap().0, furthest);
        assert!(LOAD + 0x4000 + furthest <= KERNEL_MAP_SIZE);
        assert_eq!(relocated(&new, places + 1).unwrap().0, 0);
    }

    #[test]
    fn refuses_a_table_that_leaves_the_kernel() {
        for bad in [0x8100_3FFD, 0x8100_4000, 0x80FF_FFFF, 0x7FFF_FFFF, u32::MAX, 1] {
            assert_eq!(relocated(&[0, 0, bad], 1), Err(BAD_TABLE), "{bad:#x}");
            assert_eq!(relocated(&[0, bad, 0], 1), Err(BAD_TABLE), "{bad:#x}");
        }
        for lists in [&[][..], &[0], &[0x8100_0010, 0, 0], &[0, 0, 0, 0]] {
            assert_eq!(relocated(lists, 1), Err(BAD_TABLE), "{lists:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_what_it_accepts_is_within_limits(
            changes in proptest::collection::vec((7usize..300, any::<u8>()), 0..12),
            size in 0..0x10000u64,
            words in proptest::collection::vec(prop_oneof![Just(0u32), 0x8100_0000u32..0x8100_5000], 0..20),
            random in any::<u32>(),
        ) {
            let mut head = good();
            for (at, byte) in changes {
                head[at] = byte;
            }
            if let Ok(kernel) = parse(&head, size) {
                let mut end = layout::HIGH_RAM_START;
                for piece in &kernel.pieces {
                    prop_assert!(piece.address >= end && piece.offset + piece.size <= size);
                    end = piece.address + piece.size;
                }
                prop_assert!(end <= kernel.end() && kernel.end() <= layout::GAP_START);
                prop_assert!((kernel.load..kernel.end()).contains(&kernel.entry));
                let mut bytes = vec![0; 0x5000.min(kernel.size as usize)];
                let _ = relocate(&VolatileSlice::from(bytes.as_mut_slice()), &kernel, &table(&words), random);
            }
        }
    }
}
