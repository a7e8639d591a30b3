//! The VM process: one guest, its devices, and nothing else (SPEC 6.1 to 6.3).
//!
//! What it is: `coffer-vmm` builds one VM from a [`coffer_monitor_wire::VmSpec`] that arrives with its descriptors
//! over standard input, runs it and reports how it ended. It opens nothing by path.
//! What it trusts: the supervisor at the other end of that socket, the kernel behind `/dev/kvm`.
//! What it refuses to trust: the guest, in everything (each register, ring and descriptor is an allegation);
//! the bytes of an integrity disk until their tree says so; swtpm and the network backend beyond their framing.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod devices;
pub mod gate;
pub mod jail;
pub mod layout;
pub mod plan;
pub mod process;
pub mod refusals;
pub mod stop;
pub mod virtio;
pub mod vm;
