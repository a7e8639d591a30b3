//! One VM: its KVM descriptor, its memory and its interrupt lines.
//!
//! Unsafe here because KVM's wrapper adopts a raw descriptor without proof of ownership.
#![expect(unsafe_code, reason = "adopts the /dev/kvm descriptor the supervisor sent")]

use std::os::fd::{IntoRawFd, OwnedFd};

use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use thiserror::Error;

use crate::vcpu::Vcpu;
use crate::{Doorbell, GuestRam, RamRange};

/// The only KVM API version there has been since 2007.
const KVM_API_VERSION: i32 = 12;
/// Three pages Intel hosts need below 4 GiB, outside guest memory (`KVM_SET_TSS_ADDR`).
const TSS_ADDRESS: usize = 0xFFFB_D000;
/// One page Intel hosts need for real mode (`KVM_SET_IDENTITY_MAP_ADDR`).
const IDENTITY_MAP_ADDRESS: u64 = 0xFFFB_C000;

/// Why the machine could not be built or run.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The descriptor is not a usable KVM.
    #[error("the descriptor sent as `/dev/kvm` answers API version {0}, not 12")]
    ApiVersion(i32),
    /// This KVM lacks something the machine is built on.
    #[error("this KVM lacks `{0}`")]
    Capability(&'static str),
    /// A memory range is impossible.
    #[error("guest memory does not fit this process")]
    MemoryShape,
    /// Memory could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Memory(String),
    /// More vCPUs than this KVM can run.
    #[error("this KVM runs at most {0} vcpus")]
    TooManyVcpus(usize),
    /// An ioctl failed.
    #[error("kvm refused {0}: {1}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// Too many CPUID or MSR entries for one call.
    #[error("kvm reports more {0} entries than one call can carry")]
    TooManyEntries(&'static str),
    /// An eventfd could not be made.
    #[error("cannot make an eventfd: {0}")]
    Eventfd(#[from] std::io::Error),
}

impl MachineError {
    pub(crate) fn memory(error: impl ToString) -> Self {
        Self::Memory(error.to_string())
    }
}

/// The failure of an ioctl that asked for `what`.
pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |errno| MachineError::Kvm(what, errno)
}

/// A VM without vCPUs yet.
pub struct Machine {
    pub(crate) kvm: Kvm,
    pub(crate) vm: VmFd,
    pub(crate) ram: GuestRam,
}

impl Machine {
    /// Builds a VM with in-kernel interrupt controllers over the `/dev/kvm` descriptor.
    pub fn new(host: OwnedFd, ranges: &[RamRange]) -> Result<Self, MachineError> {
        // SAFETY: the descriptor is owned (taken out of `OwnedFd`) and handed over exactly once. If it is
        // not KVM, its ioctls fail; the version check below is the first of them.
        let host = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(host.into_raw_fd()) };
        check(&host)?;
        let vm = host.create_vm().map_err(kvm("a vm"))?;
        let identity_map = vm.set_identity_map_address(IDENTITY_MAP_ADDRESS);
        identity_map.map_err(kvm("the identity map address"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(kvm("the tss address"))?;
        vm.create_irq_chip().map_err(kvm("interrupt controllers"))?;
        let ram = GuestRam::allocate(ranges)?;
        ram.lend(&vm)?;
        Ok(Self { kvm: host, vm, ram })
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// An interrupt line: each ring is one edge on `gsi`.
    pub fn interrupt_line(&self, gsi: u32) -> Result<Doorbell, MachineError> {
        let line = Doorbell::new()?;
        self.vm.register_irqfd(&line.0, gsi).map_err(kvm("an interrupt line"))?;
        Ok(line)
    }

    /// A doorbell KVM rings when the guest writes `value` as 32 bits to `address`; no vCPU leaves the kernel for it.
    pub fn notify_on_write(&self, address: u64, value: u32) -> Result<Doorbell, MachineError> {
        let bell = Doorbell::new()?;
        let address = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(&bell.0, &address, value).map_err(kvm("a doorbell"))?;
        Ok(bell)
    }

    /// vCPU `id` of `count`.
    pub fn vcpu(&self, id: u8, count: u8) -> Result<Vcpu, MachineError> {
        let most = self.kvm.get_max_vcpus();
        if usize::from(count) > most {
            return Err(MachineError::TooManyVcpus(most));
        }
        Vcpu::new(self, id, count)
    }
}

fn check(kvm: &Kvm) -> Result<(), MachineError> {
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(MachineError::ApiVersion(version));
    }
    for (capability, name) in [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
        // Guests have no PIT: without the deadline timer they would have no clock tick at all.
        (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(MachineError::Capability(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_descriptor_that_is_not_kvm() {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let refused = Machine::new(null, &[RamRange { start: 0, size: 1 << 20 }]);
        assert!(matches!(refused, Err(MachineError::ApiVersion(-1))));
    }
}
