//! What a monitor writes of an event log: the builder and the measurements of a launch (TCG PC Client
//! Platform Firmware Profile 1.06, section 10, "crypto-agile" format; SPEC 3.6). Logs are read and judged
//! by the verification crate.

mod builder;
mod event_type;
mod launch;

pub use builder::LogBuilder;
pub use event_type::EventType;
pub use launch::{VmEvent, VmLog, vm_launch_log};

/// Data of a separator that marks the end of firmware's part of a register (PFP 1.06, 3.3.2.2).
pub const SEPARATOR: &[u8] = &[0; 4];
/// First event's data of a crypto-agile log (PFP 1.06, 10.4.5.1).
pub const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
