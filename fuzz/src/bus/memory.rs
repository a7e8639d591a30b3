//! Guest memory, what it should hold, and descriptor chains as the virtio specification reads them.

use std::collections::BTreeSet;
use std::ops::Range;

use coffer_machine::{GuestRam, RamRange};
use vm_memory::{Bytes, GuestAddress};

/// End of low memory, which is two mappings that touch.
pub const LOW: u64 = 0x4000;
/// More memory, above 4 GiB.
pub const HIGH: u64 = 4 << 30;
const HIGH_SIZE: u64 = 0x2000;
/// Bytes of an image.
pub const TOTAL: usize = (LOW + HIGH_SIZE) as usize;

/// Where bytes of the guest are in an image of its memory; none if they are not all memory.
pub fn place(address: u64, len: u64) -> Option<Range<usize>> {
    let end = address.checked_add(len)?;
    let at = match address {
        _ if end <= LOW => address,
        HIGH.. if end <= HIGH + HIGH_SIZE => address - HIGH + LOW,
        _ => return None,
    };
    Some(at as usize..(at + len) as usize)
}

/// Real memory, and an image of what is in it.
pub struct Memory {
    ram: GuestRam,
    /// What it held when it was last looked at.
    pub image: Vec<u8>,
    /// For the next look, and for what should be there.
    spare: Vec<u8>,
    expected: Vec<u8>,
}

/// Zeroed memory. It is used for many executions: see [`Memory::clear`].
impl Default for Memory {
    fn default() -> Self {
        let half = LOW / 2;
        let ranges = [(0, half), (half, half), (HIGH, HIGH_SIZE)];
        let ranges = ranges.map(|(start, size)| RamRange { start, size });
        let ram = GuestRam::allocate(&ranges).expect("a few pages");
        Self { ram, image: vec![0; TOTAL], spare: vec![0; TOTAL], expected: vec![0; TOTAL] }
    }
}

impl Memory {
    /// What devices get.
    pub fn ram(&self) -> GuestRam {
        self.ram.clone()
    }

    /// All zeros again.
    pub fn clear(&mut self) {
        self.image.fill(0);
        self.put(0, &vec![0; LOW as usize]);
        self.put(HIGH, &vec![0; HIGH_SIZE as usize]);
    }

    /// The guest writes, as far as there is memory.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        if let Some(at) = place(address, bytes.len() as u64) {
            self.image[at].copy_from_slice(bytes);
            self.ram.view().write_slice(bytes, GuestAddress(address)).expect("there is memory");
        }
    }

    /// Looks at what is there now: the image becomes that.
    pub fn look(&mut self) -> Looked<'_> {
        let (low, high) = self.spare.split_at_mut(LOW as usize);
        self.ram.view().read_slice(low, GuestAddress(0)).expect("there is memory");
        self.ram.view().read_slice(high, GuestAddress(HIGH)).expect("there is memory");
        std::mem::swap(&mut self.image, &mut self.spare);
        Looked { before: &self.spare, after: &self.image, expected: &mut self.expected }
    }
}

/// Memory before and after a turn of a device.
pub struct Looked<'a> {
    /// As the image was.
    pub before: &'a [u8],
    /// As it is now.
    pub after: &'a [u8],
    /// Room for what should be there; what it holds now means nothing.
    pub expected: &'a mut [u8],
}

/// A little-endian number of an image; zero where there is no memory.
pub fn half_at(image: &[u8], address: u64) -> u16 {
    place(address, 2).map_or(0, |at| u16::from_le_bytes([image[at.start], image[at.start + 1]]))
}

/// The like, of four bytes.
pub fn word_at(image: &[u8], address: u64) -> u32 {
    u32::from(half_at(image, address)) | u32::from(half_at(image, address + 2)) << 16
}

/// A descriptor chain: the buffers it names, in its order.
#[derive(Debug, Default, Clone)]
pub struct Chain {
    /// First descriptor.
    pub head: u16,
    /// What the device may read.
    pub readable: Buffers,
    /// What it may write.
    pub writable: Buffers,
    /// Indirect tables.
    pub tables: Vec<Range<usize>>,
    /// Descriptors read.
    pub descriptors: usize,
}

/// Memory that a chain names.
#[derive(Debug, Default, Clone)]
pub struct Buffers {
    /// Places in the image.
    pub places: Vec<Range<usize>>,
    /// True if some of it is no memory: such a chain must not be served.
    pub astray: bool,
    /// Bytes in all.
    pub len: usize,
}

impl Buffers {
    fn add(&mut self, address: u64, len: u32) {
        match place(address, len.into()) {
            _ if len == 0 => {}
            Some(at) => self.places.push(at),
            None => self.astray = true,
        }
        self.len += len as usize;
    }

    /// Bytes that are memory.
    pub fn held(&self) -> usize {
        self.places.iter().map(|place| place.len()).sum()
    }

    /// The first `most` bytes that an image has there.
    pub fn read(&self, image: &[u8], most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for place in &self.places {
            let want = place.len().min(most - bytes.len());
            bytes.extend_from_slice(&image[place.start..place.start + want]);
        }
        bytes
    }

    /// How many bytes of an image the first `most` are: places may overlap.
    pub fn distinct(&self, most: usize) -> usize {
        self.places.iter().flat_map(Clone::clone).take(most).collect::<BTreeSet<_>>().len()
    }

    /// Writes from byte `skip` on.
    pub fn write(&self, image: &mut [u8], mut skip: usize, mut bytes: &[u8]) {
        for place in &self.places {
            let at = place.start + skip.min(place.len());
            skip -= skip.min(place.len());
            let (now, later) = bytes.split_at(bytes.len().min(place.end - at));
            image[at..at + now.len()].copy_from_slice(now);
            bytes = later;
        }
    }
}

/// Most descriptors of one chain that are followed: a turn with more is not begun.
pub const DESCRIPTORS_MAX: usize = 400;

impl Chain {
    /// Follows a chain (virtio 1.2, 2.7.5), which ends where it is wrong: at a descriptor that is not there, at an indirect
    /// table in another, or where it goes on beyond the size of its table or 4 GiB.
    pub fn follow(image: &[u8], table: u64, size: u16, head: u16) -> Self {
        let mut chain = Self { head, ..Self::default() };
        let (mut table, mut size, mut next, mut left, mut bytes) = (table, size, head, size, 0u32);
        while left > 0 && next < size && chain.descriptors <= DESCRIPTORS_MAX {
            let Some(at) = place(table.saturating_add(u64::from(next) * 16), 16) else { break };
            let [low, high, len, last] = *image[at].as_chunks().0 else { break };
            let [low, high, len, last] = [low, high, len, last].map(u32::from_le_bytes);
            let (flags, follower) = (last as u16, (last >> 16) as u16);
            let address = u64::from(low) | u64::from(high) << 32;
            if flags & INDIRECT != 0 {
                if !chain.tables.is_empty() || len % 16 != 0 || len / 16 > 0xFFFF {
                    break;
                }
                (table, size, next, left) = (address, (len / 16) as u16, 0, (len / 16) as u16);
                chain.tables.push(place(address, len.into()).unwrap_or(0..TOTAL));
                continue;
            }
            let Some(sum) = bytes.checked_add(len) else { break };
            bytes = sum;
            chain.descriptors += 1;
            let buffers =
                if flags & WRITE != 0 { &mut chain.writable } else { &mut chain.readable };
            buffers.add(address, len);
            (next, left) = (follower, if flags & NEXT != 0 { left - 1 } else { 0 });
        }
        chain
    }
}

/// The chain goes on.
pub const NEXT: u16 = 1;
/// The device may write.
pub const WRITE: u16 = 2;
/// The buffer holds descriptors.
pub const INDIRECT: u16 = 4;
