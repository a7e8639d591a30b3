//! The head of a Linux kernel, in either of its two forms: a bzImage (Linux `Documentation/x86/boot.rst`), which
//! unpacks itself, or the ELF file inside it (SPEC 3.3.1), which was unpacked when the image was built.
//!
//! What it trusts: nothing; the kernel is measured, not vouched for. Every field is checked before use.
//! What it refuses: bzImages without the 64-bit entry point, and numbers that do not fit the file or the guest.

use thiserror::Error;

use crate::boot::vmlinux;

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
    #[error("the kernel is neither a Linux bzImage nor an ELF file for x86_64")]
    NotAKernel,
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

/// What the head of a bootable kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The setup header, as it goes into the zero page at [`HEADER_START`].
    pub setup: Vec<u8>,
    /// What is loaded, in ascending order of addresses.
    pub pieces: Vec<Piece>,
    /// Offset and bytes of the table of places that depend on its address, if it has one.
    pub relocations: Option<(u64, u64)>,
    /// Where the boot vCPU enters.
    pub entry: u64,
    /// First address of the memory it needs until it runs.
    pub load: u64,
    /// Bytes of that.
    pub size: u64,
    /// Last address the initrd may occupy.
    pub initrd_max: u64,
    /// Most bytes of command line, without NUL.
    pub cmdline_max: u32,
}

/// Bytes of the file that go to one place in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First byte in the file.
    pub offset: u64,
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl Kernel {
    /// Reads the head, the first [`HEAD_SIZE`] bytes of a file of `file_size` bytes.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, KernelRefused> {
        match head.starts_with(vmlinux::MAGIC) {
            true => vmlinux::parse(&Fields(head), file_size),
            false => Self::of_bzimage(head, file_size),
        }
    }

    fn of_bzimage(head: &[u8], file_size: u64) -> Result<Self, KernelRefused> {
        let field = Fields(head);
        if field.u32(0x202)? != u32::from_le_bytes(*b"HdrS") || field.u16(0x1FE)? != 0xAA55 {
            return Err(KernelRefused::NotAKernel);
        }
        let version = field.u16(0x206)?;
        if version < 0x020C {
            let [minor, major] = version.to_le_bytes();
            return Err(KernelRefused::OldProtocol { major, minor });
        }
        if field.u8(0x211)? & LOADED_HIGH == 0 {
            return Err(KernelRefused::NotAKernel);
        }
        if field.u16(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(KernelRefused::No64BitEntry);
        }
        let (offset, size) = code(&field, file_size)?;
        let load = field.u64(0x258)?;
        let kernel = Self {
            setup: setup_header(&field)?,
            pieces: vec![Piece { offset, address: load, size }],
            relocations: None,
            // Before the load address is checked it may be any number.
            entry: load.wrapping_add(ENTRY_64),
            load,
            size: u64::from(field.u32(0x260)?),
            initrd_max: u64::from(field.u32(0x22C)?),
            cmdline_max: field.u32(0x238)?,
        };
        kernel.check(u64::from(field.u32(0x230)?), size)?;
        Ok(kernel)
    }

    /// End of the memory the kernel needs.
    pub fn end(&self) -> u64 {
        // Both were checked to stay below 2^33.
        self.load + self.size
    }

    fn check(&self, alignment: u64, code: u64) -> Result<(), KernelRefused> {
        // The preferred address is right for relocatable and fixed kernels alike.
        let aligned = alignment.is_power_of_two() && self.load.is_multiple_of(alignment.max(PAGE));
        if !aligned
            || self.load < crate::layout::HIGH_RAM_START
            || self.load >= crate::layout::GAP_START
        {
            return Err(KernelRefused::Field("pref_address"));
        }
        if self.size < code {
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
pub(super) struct Fields<'a>(&'a [u8]);

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
    pub(super) fn u16(&self, at: usize) -> Result<u16, KernelRefused> {
        self.array(at).map(u16::from_le_bytes)
    }
    pub(super) fn u32(&self, at: usize) -> Result<u32, KernelRefused> {
        self.array(at).map(u32::from_le_bytes)
    }
    pub(super) fn u64(&self, at: usize) -> Result<u64, KernelRefused> {
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
        assert_eq!(Kernel::parse(&head, FILE), Err(expected));
    }

    #[test]
    fn accepts_a_debian_header() {
        let kernel = Kernel::parse(&good(), FILE).unwrap();
        let code = Piece { offset: 40 * 512, address: 0x100_0000, size: FILE - 40 * 512 };
        assert_eq!((kernel.load, kernel.pieces), (0x100_0000, vec![code]));
        assert_eq!(kernel.setup.len(), 0x26C - 0x1F1);
    }

    #[test]
    fn refuses_near_misses() {
        refuses(0x202, b"HdrT", KernelRefused::NotAKernel);
        refuses(0x1FE, &[0, 0], KernelRefused::NotAKernel);
        refuses(0x211, &[0], KernelRefused::NotAKernel);
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
        assert_eq!(Kernel::parse(&good()[..0x260], FILE), Err(KernelRefused::Truncated));
        assert_eq!(Kernel::parse(&good(), 40 * 512), Err(KernelRefused::Truncated));
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
            if let Ok(kernel) = Kernel::parse(&head, size) {
                let [code] = kernel.pieces[..] else { panic!("a bzImage has one piece") };
                prop_assert!(code.address + code.size <= kernel.end());
                prop_assert!(code.offset + code.size == size);
            }
        }
    }
}
