//! The machine under a VM: KVM ioctls, guest memory and vCPUs (SPEC 6.3).
//!
//! What it is: the one crate of Coffer where `unsafe` may appear, and only in the modules that say why.
//! Everything above it (`coffer-vmm`) forbids it.
//! What it trusts: the kernel behind the `/dev/kvm` descriptor it is handed.
//! What it refuses: opening anything by path, mapping memory whose life it does not control, and vCPU
//! features a sealed guest has no business with (nested virtualization, SGX, performance counters).

mod cpuid;
mod doorbell;
mod long_mode;
mod machine;
mod memory;
mod tap;
mod vcpu;
mod vcpu_thread;

pub use doorbell::Doorbell;
pub use long_mode::LinuxEntry;
pub use machine::{Machine, MachineError};
pub use memory::{GuestRam, RamRange};
pub use tap::attach_tap;
pub use vcpu::{Bus, Exit, Vcpu};
pub use vcpu_thread::VcpuThread;
