//! Guest memory: anonymous, private to this process, kept out of core dumps.
//!
//! Unsafe here because telling the kernel how to treat a mapping, and lending it to KVM, are both claims
//! about raw addresses no safe wrapper can check.
#![expect(unsafe_code, reason = "madvise and KVM_SET_USER_MEMORY_REGION take raw addresses")]

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use crate::MachineError;

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
pub struct GuestRam(Arc<GuestMemoryMmap>);

impl GuestRam {
    /// Maps fresh zeroed memory for each range.
    pub fn allocate(ranges: &[RamRange]) -> Result<Self, MachineError> {
        let ranges: Vec<(GuestAddress, usize)> = ranges
            .iter()
            .map(|range| Ok((GuestAddress(range.start), usize::try_from(range.size)?)))
            .collect::<Result<_, std::num::TryFromIntError>>()
            .map_err(|_| MachineError::MemoryShape)?;
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|e| MachineError::Memory(e.to_string()))?;
        for region in memory.iter() {
            advise(region);
        }
        Ok(Self(Arc::new(memory)))
    }

    /// The memory, for bounds-checked access.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.0
    }

    /// Lends every range to `vm`. The caller keeps a clone of `self` for as long as the VM can run.
    pub(crate) fn lend(&self, vm: &VmFd) -> Result<(), MachineError> {
        for (slot, region) in (0u32..).zip(self.0.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host_address(region) as u64,
            };
            // SAFETY: the address and size describe one live mapping owned by `region`; regions do not
            // overlap (checked by `from_ranges`), and `Machine` and each `Vcpu` hold a clone of `self`
            // beside every descriptor through which KVM could run the guest.
            unsafe { vm.set_user_memory_region(slot) }.map_err(|e| MachineError::kvm("lending memory", e))?;
        }
        Ok(())
    }
}

/// Where the mapping of a region starts in this process.
fn host_address(region: &impl std::ops::Deref<Target = MmapRegion>) -> *mut u8 {
    region.as_ptr()
}

/// Keeps guest memory out of core dumps, and asks for huge pages: fewer nested page faults at boot.
fn advise(region: &(impl std::ops::Deref<Target = MmapRegion> + GuestMemoryRegion)) {
    for advice in [libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE] {
        // SAFETY: the range is exactly one live anonymous mapping; neither advice changes its contents.
        // A refused advice (no huge pages in this kernel) changes nothing we rely on: the process is
        // also marked undumpable.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    }
}
