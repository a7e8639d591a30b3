//! Event types (PFP 1.06, table 27). A type is a claim of the log's writer: no verdict may rest on it
//! unless the digest is held against a reference as well.

use std::fmt;

use coffer_exchange::event_log::EventKind;

macro_rules! event_types {
    ($( $(#[$doc:meta])* $name:ident = $value:literal : $text:literal ),* $(,)?) => {
        /// The type of an event; unknown values are kept.
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct EventType(pub u32);

        impl EventType {
            $( $(#[$doc])* pub const $name: Self = Self($value); )*

            /// The name in the specification, if this build knows it.
            pub fn name(self) -> Option<&'static str> {
                match self.0 { $( $value => Some($text), )* _ => None }
            }
        }
    };
}

event_types! {
    /// Before measured boot.
    PREBOOT_CERT = 0x0000_0000: "EV_PREBOOT_CERT",
    /// POST code or firmware volume.
    POST_CODE = 0x0000_0001: "EV_POST_CODE",
    /// Informs, extends nothing.
    NO_ACTION = 0x0000_0003: "EV_NO_ACTION",
    /// Ends firmware's part of a register.
    SEPARATOR = 0x0000_0004: "EV_SEPARATOR",
    /// An action of the platform.
    ACTION = 0x0000_0005: "EV_ACTION",
    /// Tagged data of an operating system.
    EVENT_TAG = 0x0000_0006: "EV_EVENT_TAG",
    /// Contents of the static root of trust.
    S_CRTM_CONTENTS = 0x0000_0007: "EV_S_CRTM_CONTENTS",
    /// Version of the static root of trust.
    S_CRTM_VERSION = 0x0000_0008: "EV_S_CRTM_VERSION",
    /// CPU microcode.
    CPU_MICROCODE = 0x0000_0009: "EV_CPU_MICROCODE",
    /// Platform configuration flags.
    PLATFORM_CONFIG_FLAGS = 0x0000_000a: "EV_PLATFORM_CONFIG_FLAGS",
    /// Table of devices.
    TABLE_OF_DEVICES = 0x0000_000b: "EV_TABLE_OF_DEVICES",
    /// Compact hash.
    COMPACT_HASH = 0x0000_000c: "EV_COMPACT_HASH",
    /// Initial program loader.
    IPL = 0x0000_000d: "EV_IPL",
    /// Partition data of the loader.
    IPL_PARTITION_DATA = 0x0000_000e: "EV_IPL_PARTITION_DATA",
    /// Code outside the host's CPU.
    NONHOST_CODE = 0x0000_000f: "EV_NONHOST_CODE",
    /// Configuration outside the host's CPU.
    NONHOST_CONFIG = 0x0000_0010: "EV_NONHOST_CONFIG",
    /// Information outside the host's CPU.
    NONHOST_INFO = 0x0000_0011: "EV_NONHOST_INFO",
    /// Boot devices left out.
    OMIT_BOOT_DEVICE_EVENTS = 0x0000_0012: "EV_OMIT_BOOT_DEVICE_EVENTS",
    /// Configuration variable of the UEFI driver phase.
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    /// Boot variable.
    EFI_VARIABLE_BOOT = 0x8000_0002: "EV_EFI_VARIABLE_BOOT",
    /// UEFI application: a loader or a kernel.
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    /// UEFI boot services driver.
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004: "EV_EFI_BOOT_SERVICES_DRIVER",
    /// UEFI runtime driver.
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    /// GPT.
    EFI_GPT_EVENT = 0x8000_0006: "EV_EFI_GPT_EVENT",
    /// An action of UEFI.
    EFI_ACTION = 0x8000_0007: "EV_EFI_ACTION",
    /// A firmware blob.
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    /// Tables handed off.
    EFI_HANDOFF_TABLES = 0x8000_0009: "EV_EFI_HANDOFF_TABLES",
    /// A firmware blob, second form.
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000a: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    /// Tables handed off, second form.
    EFI_HANDOFF_TABLES2 = 0x8000_000b: "EV_EFI_HANDOFF_TABLES2",
    /// Boot variable, second form.
    EFI_VARIABLE_BOOT2 = 0x8000_000c: "EV_EFI_VARIABLE_BOOT2",
    /// H-CRTM.
    EFI_HCRTM_EVENT = 0x8000_0010: "EV_EFI_HCRTM_EVENT",
    /// Authority a UEFI image was verified by.
    EFI_VARIABLE_AUTHORITY = 0x8000_00e0: "EV_EFI_VARIABLE_AUTHORITY",
    /// Firmware of a device, measured over SPDM.
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00e1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    /// Configuration of a device, measured over SPDM.
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00e2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:08x}", self.0),
        }
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<EventKind> for EventType {
    fn from(kind: EventKind) -> Self {
        Self(kind.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_calls_its_events_as_the_specification_does() {
        for kind in [
            EventKind::NO_ACTION,
            EventKind::SEPARATOR,
            EventKind::EVENT_TAG,
            EventKind::S_CRTM_VERSION,
            EventKind::IPL,
        ] {
            assert_eq!(EventType::from(kind).name(), Some(kind.1));
        }
    }
}
