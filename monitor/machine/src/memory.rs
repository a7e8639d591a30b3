//! Guest memory: anonymous, private to this process, kept out of core dumps.
//!
//! Unsafe here because placing a mapping, telling the kernel how to treat it, and lending it to KVM are claims
//! about raw addresses no safe wrapper can check.
#![expect(unsafe_code, reason = "mmap, madvise and KVM_SET_USER_MEMORY_REGION take raw addresses")]

use std::io;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use crate::machine::{MachineError, kvm};

/// A range of guest-physical addresses backed by memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes; a multiple of the page size.
    pub size: u64,
}

/// The memory of one guest. Clones share it; it is unmapped when the last holder is gone, and every vCPU
/// is a holder, so KVM never runs over an address range that was given to something else.
#[derive(Clone)]
pub struct GuestRam(Arc<Inner>);

/// Fields are dropped in this order: the view before what it looks at.
struct Inner {
    view: GuestMemoryMmap,
    _mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Maps fresh zeroed memory for each range.
    pub fn allocate(ranges: &[RamRange]) -> Result<Self, MachineError> {
        let (mut regions, mut mappings) = (Vec::new(), Vec::new());
        for range in ranges {
            let size = usize::try_from(range.size).map_err(|_| MachineError::MemoryShape)?;
            let mapping = Mapping::new(size).map_err(MachineError::memory)?;
            regions.push(mapping.region(range.start)?);
            mappings.push(mapping);
        }
        let view = GuestMemoryMmap::from_regions(regions).map_err(MachineError::memory)?;
        Ok(Self(Arc::new(Inner { view, _mappings: mappings })))
    }

    /// The memory, for bounds-checked access.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.0.view
    }

    /// Lends every range to `vm`. The caller keeps a clone of `self` for as long as the VM can run.
    pub(crate) fn lend(&self, vm: &VmFd) -> Result<(), MachineError> {
        for (slot, region) in (0u32..).zip(self.0.view.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the address and size describe one live mapping owned by `region`; regions do not
            // overlap (checked by `from_regions`), and `Machine` and each `Vcpu` hold a clone of `self`
            // beside every descriptor through which KVM could run the guest.
            unsafe { vm.set_user_memory_region(slot) }.map_err(kvm("lending memory"))?;
        }
        Ok(())
    }
}

/// Anonymous memory that starts at a huge page boundary, as guest-physical ranges do: only where both are
/// congruent can one entry of a nested page table cover 2 MiB. Unaligned, a booting guest takes 30,000
/// faults that cost more than all else its start does.
struct Mapping {
    start: *mut u8,
    size: usize,
}

// SAFETY: a `Mapping` is the sole owner of an address range and hands out no reference into it itself;
// which thread unmaps it makes no difference.
unsafe impl Send for Mapping {}
// SAFETY: as above; it has no methods that act through `&self` on the memory.
unsafe impl Sync for Mapping {}

const HUGE_PAGE: usize = 2 << 20;
const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Mapping {
    fn new(size: usize) -> io::Result<Self> {
        let reserved = size.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping wherever the kernel likes; it replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), reserved, PROTECTION, FLAGS, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = base.align_offset(HUGE_PAGE);
        let start = base.wrapping_byte_add(before);
        // SAFETY: both ranges lie inside the mapping just made and outside `start..start + size`; nobody
        // knows of them yet. `before` is less than HUGE_PAGE, so both lengths are in range; an empty
        // range is refused by the kernel and changes nothing.
        unsafe {
            libc::munmap(base, before);
            libc::munmap(start.wrapping_byte_add(size), HUGE_PAGE - before);
        }
        // Whoever started the monitor may have asked for merging of all there is (systemd: MemoryKSM=yes).
        for advice in [libc::MADV_DONTDUMP, libc::MADV_UNMERGEABLE, libc::MADV_HUGEPAGE] {
            // SAFETY: exactly one live anonymous mapping; no advice changes its contents. A refused
            // advice (no huge pages, or no merging, in this kernel) changes nothing we rely on: the
            // process is also marked undumpable.
            unsafe { libc::madvise(start, size, advice) };
        }
        Ok(Self { start: start.cast(), size })
    }

    /// A view of this mapping at guest address `at`, to be dropped before the mapping.
    fn region(&self, at: u64) -> Result<GuestRegionMmap, MachineError> {
        // SAFETY: start and size are those of a live mapping with these protections and flags; `Inner`
        // drops the view, which holds the region, before the mapping.
        let region = unsafe { MmapRegion::build_raw(self.start, self.size, PROTECTION, FLAGS) }
            .map_err(MachineError::memory)?;
        GuestRegionMmap::new(region, GuestAddress(at)).ok_or(MachineError::MemoryShape)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours alone, and whoever looked at it (`Inner::view`) is gone.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_is_zeroed_bounded_and_aligned_for_huge_pages() {
        let ram = GuestRam::allocate(&[
            RamRange { start: 0, size: 3 << 20 },
            RamRange { start: 4 << 30, size: 4096 },
        ])
        .unwrap();
        for region in ram.view().iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
        ram.view().write_obj(7u8, GuestAddress((3 << 20) - 1)).unwrap();
        assert!(ram.view().write_obj(7u8, GuestAddress(3 << 20)).is_err());
        assert_eq!(ram.view().read_obj::<u64>(GuestAddress(4 << 30)).unwrap(), 0);
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let range = RamRange { start: 0, size: 1 << 20 };
        assert!(GuestRam::allocate(&[range, range]).is_err());
    }
}
