//! The head of a Linux kernel: the ELF file inside a bzImage, unpacked when the image was built (SPEC 3.3.1).
//!
//! What it trusts: nothing; the kernel is measured, not vouched for. Every field is checked before use.
//! What it refuses: anything else, a bzImage too, and numbers that do not fit the file or the guest.

use thiserror::Error;

/// Bytes of the file that hold all headers.
pub const HEAD_SIZE: usize = 0x290;

/// Why a kernel cannot be booted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KernelRefused {
    /// Shorter than its own header.
    #[error("the kernel file ends inside its header")]
    Truncated,
    /// No ELF file, or one for another machine.
    #[error("the kernel is no ELF file for x86_64")]
    NotAKernel,
    /// A number in the header is impossible.
    #[error("the kernel header field `{0}` is impossible")]
    Field(&'static str),
    /// The guest is too small for it.
    #[error("the kernel and initrd need {0} MiB of guest memory below 3 GiB, the guest has {1}")]
    Memory(u64, u64),
    /// The command line is longer than this kernel takes.
    #[error("the command line has {0} bytes, this kernel takes {1}")]
    Cmdline(usize, u32),
}

/// What the head of a bootable kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
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
    /// End of the memory the kernel needs.
    pub fn end(&self) -> u64 {
        // Both were checked to stay below 2^33.
        self.load + self.size
    }
}

/// Little-endian fields at file offsets.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], KernelRefused> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or(KernelRefused::Truncated)
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
