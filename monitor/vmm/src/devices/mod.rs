//! Devices that are not virtio, and what every device owes the machine.

pub mod bus;
pub mod lifecycle;
pub mod power;
pub mod serial;
pub mod swtpm;
pub mod tpm_crb;
