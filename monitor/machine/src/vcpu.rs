//! One vCPU: its registers at start, and its exits while it runs.
//!
//! What it refuses: interpreting anything the guest asks for. Port and memory accesses go to the [`Bus`];
//! every other exit ends the run with a name for it.

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_fpu,
    kvm_msr_entry,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::machine::{Machine, MachineError, kvm};
use crate::{GuestRam, LinuxEntry, cpuid, long_mode};

/// What a guest reaches through ports and through memory that is not RAM.
///
/// Any width from 1 to 8 bytes, any address: implementations answer every access and never panic. A read
/// nobody answers is all ones, a write nobody answers is lost, as on a real bus.
pub trait Bus {
    /// Guest reads from an I/O port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// Guest writes to an I/O port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// Guest reads from device memory.
    fn memory_read(&self, address: u64, data: &mut [u8]);
    /// Guest writes to device memory.
    fn memory_write(&self, address: u64, data: &[u8]);
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// An access was served or a signal arrived; run again.
    Again,
    /// Triple fault or reset event.
    Reset,
    /// Shutdown event.
    PowerOff,
    /// KVM cannot go on; what it said.
    Broken(String),
}

/// A vCPU and a share of the memory it runs in.
pub struct Vcpu {
    fd: VcpuFd,
    ram: GuestRam,
    /// 0 is the one that boots.
    pub(crate) id: u8,
}

impl Vcpu {
    pub(crate) fn new(machine: &Machine, id: u8, count: u8) -> Result<Self, MachineError> {
        let fd = machine.vm.create_vcpu(u64::from(id)).map_err(kvm("a vcpu"))?;
        let supported = machine.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid::guest(&supported.map_err(kvm("its cpuid"))?, id, count)?;
        // Before the MSRs: since Linux 6.13 KVM derives which MSRs exist from the CPUID set here.
        fd.set_cpuid2(&cpuid).map_err(kvm("this cpuid"))?;
        let vcpu = Self { fd, ram: machine.ram.clone(), id };
        vcpu.set_msrs()?;
        vcpu.set_fpu()?;
        vcpu.set_local_interrupts()?;
        Ok(vcpu)
    }

    /// Puts this vCPU at a kernel's 64-bit entry point. The others wait for the guest to start them.
    pub fn boot(&self, entry: LinuxEntry) -> Result<(), MachineError> {
        long_mode::write_tables(&self.ram)?;
        let mut sregs = self.fd.get_sregs().map_err(kvm("reading segments"))?;
        long_mode::enter(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(kvm("long mode"))?;
        self.fd.set_regs(&long_mode::registers(entry)).map_err(kvm("the entry point"))
    }

    /// Tells the guest's clock that the time since is no fault of the guest's: its watchdogs stay calm. A guest that
    /// has no such clock cannot be told.
    pub fn was_paused(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs until the next exit and serves it if it is an access to the bus.
    pub fn run(&mut self, bus: &impl Bus) -> Exit {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
            Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.memory_write(address, data),
            Ok(VcpuExit::Intr | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return Exit::Reset,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Exit::Reset,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Exit::PowerOff,
            Ok(other) => return Exit::Broken(format!("vcpu {} stopped with {other:?}", self.id)),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {}
            Err(e) => return Exit::Broken(format!("vcpu {} cannot run: {e}", self.id)),
        }
        Exit::Again
    }

    fn set_msrs(&self) -> Result<(), MachineError> {
        /// Fast string operations, on by default on every CPU that has the MSR.
        const MISC_ENABLE: (u32, u64) = (0x1A0, 1);
        /// Memory type range registers: on, write-back by default; device memory is below no range, and KVM
        /// decides its type anyway.
        const MTRR_DEFAULT: (u32, u64) = (0x2FF, (1 << 11) | 6);
        let entries = [MISC_ENABLE, MTRR_DEFAULT].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        });
        let msrs = Msrs::from_entries(&entries).map_err(|_| MachineError::TooManyEntries("msr"))?;
        self.fd.set_msrs(&msrs).map(|_| ()).map_err(kvm("msrs"))
    }

    fn set_fpu(&self) -> Result<(), MachineError> {
        // The reset values of the x87 control word and MXCSR (Intel SDM 3A table 9-1).
        let fpu = kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() };
        self.fd.set_fpu(&fpu).map_err(kvm("the fpu state"))
    }

    /// LINT0 takes external interrupts, LINT1 takes NMIs: what firmware would have set up.
    fn set_local_interrupts(&self) -> Result<(), MachineError> {
        const LINT0: usize = 0x350;
        const LINT1: usize = 0x360;
        const MODE_EXTINT: u32 = 7 << 8;
        const MODE_NMI: u32 = 4 << 8;
        let mut lapic = self.fd.get_lapic().map_err(kvm("reading the local apic"))?;
        for (register, mode) in [(LINT0, MODE_EXTINT), (LINT1, MODE_NMI)] {
            for (slot, byte) in lapic.regs.iter_mut().skip(register).zip(mode.to_le_bytes()) {
                *slot = byte.cast_signed();
            }
        }
        self.fd.set_lapic(&lapic).map_err(kvm("the local apic"))
    }
}
