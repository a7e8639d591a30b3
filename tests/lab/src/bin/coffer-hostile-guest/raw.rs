//! What a guest's root can reach and no safe wrapper gives: device registers, its own memory by physical address, ports.
//!
//! Unsafe because nothing safe maps `/dev/mem`, shares a page between a device and two CPUs, or executes `in` and `out`.
//! It runs in a guest of the lab and nowhere else; what it is allowed to break is that guest.
#![expect(unsafe_code, reason = "maps /dev/mem and locked pages, reads and writes ports")]

use std::arch::asm;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context as _, Result, ensure};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A page of device registers.
#[derive(Clone, Copy)]
pub struct Window(usize);

impl Window {
    /// Maps the page at a guest-physical address.
    pub fn open(address: u64) -> Result<Self> {
        let memory = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_SYNC)
            .open("/dev/mem")
            .context("cannot open /dev/mem")?;
        let at = libc::off_t::try_from(address)?;
        // SAFETY: a new shared mapping at a place of the kernel's choice, never unmapped; what is behind it is only
        // reached through the volatile accesses below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memory.as_raw_fd(),
                at,
            )
        };
        ensure!(base != libc::MAP_FAILED, "{address:#x}: {}", io::Error::last_os_error());
        Ok(Self(base as usize))
    }

    /// Reads `width` bytes, 1, 2, 4 or 8, at `offset`, which is brought into the page.
    pub fn read(self, offset: usize, width: usize) -> u64 {
        let at = self.at(offset, width);
        // SAFETY: the access lies within the mapping (`at`); x86 takes any alignment, and so do volatile
        // accesses as the compiler makes them for these types.
        unsafe {
            match width {
                1 => u64::from((at as *const u8).read_volatile()),
                2 => u64::from(load16(at)),
                4 => u64::from(load32(at)),
                _ => load64(at),
            }
        }
    }

    /// Writes the low `width` bytes.
    pub fn write(self, offset: usize, width: usize, value: u64) {
        let at = self.at(offset, width);
        // SAFETY: as for `read`.
        unsafe {
            match width {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => asm!("mov word ptr [{}], {:x}", in(reg) at, in(reg) value as u16),
                4 => asm!("mov dword ptr [{}], {:e}", in(reg) at, in(reg) value as u32),
                _ => asm!("mov qword ptr [{}], {}", in(reg) at, in(reg) value),
            }
        }
    }

    fn at(self, offset: usize, width: usize) -> usize {
        self.0 + offset.min(PAGE - width)
    }
}

// Loads by instruction, as they may be unaligned, which Rust's own do not allow.

/// # Safety
/// 1. `at` is mapped for 2 bytes.
unsafe fn load16(at: usize) -> u16 {
    let value: u16;
    // SAFETY: the caller's duty.
    unsafe { asm!("mov {:x}, word ptr [{}]", out(reg) value, in(reg) at) };
    value
}

/// # Safety
/// 1. `at` is mapped for 4 bytes.
unsafe fn load32(at: usize) -> u32 {
    let value: u32;
    // SAFETY: the caller's duty.
    unsafe { asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) at) };
    value
}

/// # Safety
/// 1. `at` is mapped for 8 bytes.
unsafe fn load64(at: usize) -> u64 {
    let value: u64;
    // SAFETY: the caller's duty.
    unsafe { asm!("mov {}, qword ptr [{}]", out(reg) value, in(reg) at) };
    value
}

/// A page of memory that stays where it is, and its guest-physical address.
#[derive(Clone, Copy)]
pub struct Page {
    bytes: &'static [AtomicU8],
    /// Guest-physical address.
    pub address: u64,
}

impl Page {
    /// A page of zeros.
    pub fn new() -> Result<Self> {
        // SAFETY: a new private anonymous mapping, locked, never unmapped; every byte of it is reached as an atomic.
        let bytes = unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE,
                -1,
                0,
            );
            ensure!(base != libc::MAP_FAILED, "no page: {}", io::Error::last_os_error());
            std::slice::from_raw_parts(base as *const AtomicU8, PAGE)
        };
        let address = physical(bytes.as_ptr() as usize)?;
        Ok(Self { bytes, address })
    }

    /// Writes bytes; what goes beyond the page is left out.
    pub fn write(self, offset: usize, bytes: &[u8]) {
        for (slot, byte) in self.bytes.iter().skip(offset).zip(bytes) {
            slot.store(*byte, Ordering::SeqCst);
        }
    }

    /// Fills the page.
    pub fn fill(self, byte: u8) {
        self.bytes.iter().for_each(|slot| slot.store(byte, Ordering::Relaxed));
    }

    /// The bytes at `offset`.
    pub fn read(self, offset: usize, count: usize) -> Vec<u8> {
        self.bytes.iter().skip(offset).take(count).map(|b| b.load(Ordering::SeqCst)).collect()
    }
}

/// The page frame behind an address, by `/proc/self/pagemap`.
fn physical(address: usize) -> Result<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut map = File::open("/proc/self/pagemap").context("cannot open the page map")?;
    map.seek(SeekFrom::Start((address / PAGE * 8) as u64))?;
    let mut entry = [0; 8];
    map.read_exact(&mut entry)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(entry & PRESENT != 0 && entry & FRAME != 0, "the page map hides frames");
    Ok((entry & FRAME) * PAGE as u64)
}

/// Puts this thread before every other of its CPU.
pub fn never_yield() -> Result<()> {
    let most = libc::sched_param { sched_priority: 99 };
    // SAFETY: the call reads the one structure it is given, which lives until it returns.
    let put = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &most) };
    ensure!(put == 0, "no right to the CPU: {}", io::Error::last_os_error());
    Ok(())
}

/// The right to all ports.
#[derive(Clone, Copy)]
pub struct Ports(());

impl Ports {
    /// Takes it, for this thread and those it starts.
    pub fn take() -> Result<Self> {
        // SAFETY: changes what this thread may execute and nothing else.
        let taken = unsafe { libc::iopl(3) };
        ensure!(taken == 0, "no right to ports: {}", io::Error::last_os_error());
        Ok(Self(()))
    }

    /// `in`, 1, 2 or 4 bytes.
    pub fn read(self, port: u16, width: usize) -> u32 {
        let value: u32;
        // SAFETY: `take` got the right; a port access touches no memory of this program.
        unsafe {
            match width {
                1 => asm!("in al, dx", in("dx") port, inout("eax") 0u32 => value),
                2 => asm!("in ax, dx", in("dx") port, inout("eax") 0u32 => value),
                _ => asm!("in eax, dx", in("dx") port, inout("eax") 0u32 => value),
            }
        }
        value
    }

    /// `out`, 1, 2 or 4 bytes.
    pub fn write(self, port: u16, width: usize, value: u32) {
        // SAFETY: as for `read`.
        unsafe {
            match width {
                1 => asm!("out dx, al", in("dx") port, in("eax") value),
                2 => asm!("out dx, ax", in("dx") port, in("eax") value),
                _ => asm!("out dx, eax", in("dx") port, in("eax") value),
            }
        }
    }

    /// `rep outsb`: all bytes through one port.
    pub fn write_all(self, port: u16, bytes: &[u8]) {
        // SAFETY: as for `read`; the instruction reads exactly the bytes of the slice.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") port,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
            );
        }
    }
}

/// Bytes the console's driver still has to print; none where it cannot say.
pub fn unprinted() -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ writes one int, and this one is alive.
    let told = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCOUTQ, &raw mut bytes) };
    if told == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}
