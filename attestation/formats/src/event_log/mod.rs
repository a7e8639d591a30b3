//! What a monitor writes of an event log: its form and the measurements of a launch (TCG PC Client
//! Platform Firmware Profile 1.06, section 10, "crypto-agile" format; SPEC 3.6). Logs are read and judged
//! by the verification crate, which knows the event types of firmware too.

mod launch;
pub mod writer;

pub use launch::{VmEvent, VmLog, vm_launch_log};

/// Data of a separator that marks the end of firmware's part of a register (PFP 1.06, 3.3.2.2).
pub const SEPARATOR: &[u8] = &[0; 4];
/// First event's data of a crypto-agile log (PFP 1.06, 10.4.5.1).
pub const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";

/// The type of an event that a monitor writes (PFP 1.06, table 27): its number and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventKind(pub u32, pub &'static str);

impl EventKind {
    /// Not measured.
    pub const NO_ACTION: Self = Self(0x03, "EV_NO_ACTION");
    /// End of the pre-boot part.
    pub const SEPARATOR: Self = Self(0x04, "EV_SEPARATOR");
    /// The launch record.
    pub const EVENT_TAG: Self = Self(0x06, "EV_EVENT_TAG");
    /// The monitor's version.
    pub const S_CRTM_VERSION: Self = Self(0x08, "EV_S_CRTM_VERSION");
    /// What the guest is booted from.
    pub const IPL: Self = Self(0x0d, "EV_IPL");
}
