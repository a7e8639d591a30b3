//! The header of a Linux bzImage (Linux `Documentation/x86/boot.rst`).
//!
//! What it trusts: nothing; the kernel is measured, not vouched for. Every field is checked before use.
//! What it refuses: images without the 64-bit entry point, and numbers that do not fit the file or the guest.

use thiserror::Error;

/// Bytes of the file that hold the whole header.
pub const HEAD_SIZE: usize = 0x290;
/// First byte of the setup header, in the file and in the zero page alike.
pub const HEADER_START: usize = 0x1F1;
/// The 64-bit entry point is this far into the loaded kernel.
pub const ENTRY_64: u64 = 0x200;

/// Why a kernel cannot be booted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KernelRefused {
    /// Shorter than its own header.
    #[error("the kernel file ends inside its header")]
    Truncated,
    /// No `HdrS` magic.
    #[error("the kernel is not a Linux bzImage")]
    NotBzImage,
    /// Older than protocol 2.12.
    #[error("the kernel speaks boot protocol {major}.{minor}, older than 2.12")]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// No 64-bit entry point.
    #[error("the kernel has no 64-bit entry point")]
    No64BitEntry,
    /// A number in the header is impossible.
    #[error("the kernel header field `{0}` is impossible")]
    Field(&'static str),
    /// The guest is too small for it.
    #[error(
        "the kernel and initrd need {need_mib} MiB of guest memory below 3 GiB, the guest has {have_mib}"
    )]
    Memory {
        /// Needed, MiB.
        need_mib: u64,
        /// There, MiB.
        have_mib: u64,
    },
    /// The command line is longer than this kernel takes.
    #[error("the command line has {0} bytes, this kernel takes {1}")]
    Cmdline(usize, u32),
}

/// What the header of a bootable kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHeader {
    /// The setup header, as it goes into the zero page at [`HEADER_START`].
    pub setup: Vec<u8>,
    /// Where the protected-mode code starts in the file.
    pub code_offset: u64,
    /// Bytes of protected-mode code.
    pub code_size: u64,
    /// Address to load it at.
    pub load: u64,
    /// Memory it needs from there until it has unpacked itself.
    pub init_size: u64,
    /// Last address the initrd may occupy.
    pub initrd_max: u64,
    /// Most bytes of command line, without NUL.
    pub cmdline_max: u32,
}

impl KernelHeader {
    /// Reads the header from the first [`HEAD_SIZE`] bytes of a file of `file_size` bytes.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, KernelRefused> {
        let field = Fields(head);
        if field.u32(0x202)? != u32::from_le_bytes(*b"HdrS") || field.u16(0x1FE)? != 0xAA55 {
            return Err(KernelRefused::NotBzImage);
        }
        let version = field.u16(0x206)?;
        if version < 0x020C {
            let [minor, major] = version.to_le_bytes();
            return Err(KernelRefused::OldProtocol { major, minor });
        }
        if field.u8(0x211)? & LOADED_HIGH == 0 {
            return Err(KernelRefused::NotBzImage);
        }
        if field.u16(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(KernelRefused::No64BitEntry);
        }
        let (code_offset, code_size) = code(&field, file_size)?;
        let header = Self {
            setup: setup_header(&field)?,
            code_offset,
            code_size,
            load: field.u64(0x258)?,
            init_size: u64::from(field.u32(0x260)?),
            initrd_max: u64::from(field.u32(0x22C)?),
            cmdline_max: field.u32(0x238)?,
        };
        header.check(u64::from(field.u32(0x230)?))?;
        Ok(header)
    }

    /// End of the memory the kernel needs.
    pub fn end(&self) -> u64 {
        // Both were checked to stay below 2^33.
        self.load + self.init_size
    }

    fn check(&self, alignment: u64) -> Result<(), KernelRefused> {
        // The preferred address is right for relocatable and fixed kernels alike.
        let aligned = alignment.is_power_of_two() && self.load.is_multiple_of(alignment.max(PAGE));
        if !aligned
            || self.load < crate::layout::HIGH_RAM_START
            || self.load >= crate::layout::GAP_START
        {
            return Err(KernelRefused::Field("pref_address"));
        }
        if self.init_size < self.code_size {
            return Err(KernelRefused::Field("init_size"));
        }
        Ok(())
    }
}

/// Place and size of the protected-mode code.
fn code(field: &Fields<'_>, file_size: u64) -> Result<(u64, u64), KernelRefused> {
    // Zero means four, for boot sectors of 1991.
    let sectors = match field.u8(0x1F1)? {
        0 => 4,
        n => u64::from(n),
    };
    let offset = (sectors + 1) * 512;
    let size = file_size.checked_sub(offset).ok_or(KernelRefused::Truncated)?;
    if size <= ENTRY_64 {
        return Err(KernelRefused::Truncated);
    }
    Ok((offset, size))
}

/// The bytes of the header: from 0x1F1 to the target of the jump at 0x200.
fn setup_header(field: &Fields<'_>) -> Result<Vec<u8>, KernelRefused> {
    let end = 0x202 + usize::from(field.u8(0x201)?);
    if !(HEADER_2_12_END..=HEAD_SIZE).contains(&end) {
        return Err(KernelRefused::Field("jump"));
    }
    field.0.get(HEADER_START..end).map(<[u8]>::to_vec).ok_or(KernelRefused::Truncated)
}

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const PAGE: u64 = 4096;
/// End of `handover_offset`, the last field protocol 2.12 knows.
const HEADER_2_12_END: usize = 0x268;

/// Little-endian fields at file offsets.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], KernelRefused> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(KernelRefused::Truncated)
    }
    fn u8(&self, at: usize) -> Result<u8, KernelRefused> {
        self.array(at).map(u8::from_le_bytes)
    }
    fn u16(&self, at: usize) -> Result<u16, KernelRefused> {
        self.array(at).map(u16::from_le_bytes)
    }
    fn u32(&self, at: usize) -> Result<u32, KernelRefused> {
        self.array(at).map(u32::from_le_bytes)
    }
    fn u64(&self, at: usize) -> Result<u64, KernelRefused> {
        self.array(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: u64 = 1 << 20;

    fn good() -> Vec<u8> {
        let mut head = vec![0u8; HEAD_SIZE];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1F1, &[39]);
        put(0x1FE, &0xAA55u16.to_le_bytes());
        put(0x200, &[0xEB, 0x6A]);
        put(0x202, b"HdrS");
        put(0x206, &0x020Fu16.to_le_bytes());
        put(0x211, &[1]);
        put(0x22C, &0x7FFF_FFFFu32.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x236, &0x7Fu16.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x337_8000u32.to_le_bytes());
        head
    }

    #[track_caller]
    fn refuses(at: usize, bytes: &[u8], expected: KernelRefused) {
        let mut head = good();
        head[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(KernelHeader::parse(&head, FILE), Err(expected));
    }

    #[test]
    fn accepts_a_debian_header() {
        let header = KernelHeader::parse(&good(), FILE).unwrap();
        assert_eq!(
            (header.load, header.code_offset, header.code_size),
            (0x100_0000, 40 * 512, FILE - 40 * 512)
        );
        assert_eq!(header.setup.len(), 0x26C - 0x1F1);
    }

    #[test]
    fn refuses_near_misses() {
        refuses(0x202, b"HdrT", KernelRefused::NotBzImage);
        refuses(0x1FE, &[0, 0], KernelRefused::NotBzImage);
        refuses(0x211, &[0], KernelRefused::NotBzImage);
        refuses(
            0x206,
            &0x020Bu16.to_le_bytes(),
            KernelRefused::OldProtocol { major: 2, minor: 11 },
        );
        refuses(0x236, &[0, 0], KernelRefused::No64BitEntry);
        refuses(0x258, &[0; 8], KernelRefused::Field("pref_address"));
        refuses(0x258, &0x101_0000u64.to_le_bytes(), KernelRefused::Field("pref_address"));
        refuses(0x258, &u64::MAX.to_le_bytes(), KernelRefused::Field("pref_address"));
        refuses(0x230, &[0; 4], KernelRefused::Field("pref_address"));
        refuses(0x260, &[0; 4], KernelRefused::Field("init_size"));
        refuses(0x201, &[0x10], KernelRefused::Field("jump"));
        refuses(0x201, &[0xFF], KernelRefused::Field("jump"));
    }

    #[test]
    fn refuses_a_file_that_ends_early() {
        assert_eq!(KernelHeader::parse(&good()[..0x260], FILE), Err(KernelRefused::Truncated));
        assert_eq!(KernelHeader::parse(&good(), 40 * 512), Err(KernelRefused::Truncated));
    }

    proptest! {
        #[test]
        fn never_panics_and_what_it_accepts_is_within_limits(
            changes in proptest::collection::vec((0x1F0usize..HEAD_SIZE, any::<u8>()), 0..12),
            size in any::<u64>(),
        ) {
            let mut head = good();
            for (at, byte) in changes {
                head[at] = byte;
            }
            if let Ok(header) = KernelHeader::parse(&head, size) {
                prop_assert!(header.load + header.code_size <= header.end());
                prop_assert!(header.code_offset + header.code_size == size);
            }
        }
    }
}
