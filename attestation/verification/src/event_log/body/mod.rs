//! Structures inside event data (PFP 1.06, 10.2; UEFI 2.10). Little-endian, borrowed, bounded by the event.
//!
//! Reading one believes nothing: whether the bytes are backed is [`super::Content`]'s to say. What does not
//! parse is [`Reject::Malformed`]; no structure can be longer than its event, and each list has a limit.

mod device_path;
mod firmware;
mod gpt;
mod image;
mod signature_list;
mod tagged;
mod text;
mod variable;

pub use device_path::{DevicePath, Node};
pub use firmware::{FirmwareBlob, HandoffTables};
pub use gpt::{Gpt, Partition};
pub use image::ImageLoad;
pub use signature_list::{Signature, SignatureList, signature_lists};
pub use tagged::Tagged;
pub use text::{grub_text, text, utf16};
pub use variable::{Guid, Variable};

use super::separator::Separator;
use super::{Event, EventType, STARTUP_LOCALITY};
use crate::Reject;

/// An event's data, as its type has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// UEFI_VARIABLE_DATA.
    Variable(Variable<'a>),
    /// UEFI_IMAGE_LOAD_EVENT.
    Image(ImageLoad<'a>),
    /// UEFI_GPT_DATA.
    Gpt(Gpt<'a>),
    /// UEFI_PLATFORM_FIRMWARE_BLOB and its second form.
    Firmware(FirmwareBlob<'a>),
    /// UEFI_HANDOFF_TABLE_POINTERS and its second form.
    Tables(HandoffTables<'a>),
    /// TCG_PCClientTaggedEvent.
    Tagged(Tagged<'a>),
    /// A separator's value.
    Separator(Separator),
    /// The locality that TPM2_Startup ran in.
    StartupLocality(u8),
    /// Text, as ASCII, UTF-8 or UTF-16.
    Text(String),
    /// Bytes of no known structure.
    Opaque(&'a [u8]),
}

impl<'a> Body<'a> {
    /// Reads an event's data by its claimed type.
    pub fn read(event: &Event<'a>) -> Result<Self, Reject> {
        let data = event.data;
        Ok(match event.kind {
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2 => Self::Variable(Variable::read(data)?),
            EventType::EFI_VARIABLE_AUTHORITY => Self::Variable(Variable::read_authority(data)?),
            EventType::EFI_BOOT_SERVICES_APPLICATION
            | EventType::EFI_BOOT_SERVICES_DRIVER
            | EventType::EFI_RUNTIME_SERVICES_DRIVER => Self::Image(ImageLoad::read(data)?),
            EventType::EFI_GPT_EVENT => Self::Gpt(Gpt::read(data)?),
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => {
                Self::Firmware(FirmwareBlob::described(data)?)
            }
            EventType::EFI_PLATFORM_FIRMWARE_BLOB => Self::Firmware(FirmwareBlob::read(data)?),
            EventType::EFI_HANDOFF_TABLES => Self::Tables(HandoffTables::read(data)?),
            EventType::EFI_HANDOFF_TABLES2 => Self::Tables(HandoffTables::described(data)?),
            EventType::EVENT_TAG => Self::Tagged(Tagged::read(data)?),
            EventType::SEPARATOR => Self::Separator(Separator::read(data)),
            // Text, or where firmware put the code.
            EventType::POST_CODE | EventType::S_CRTM_CONTENTS => match text(data) {
                Some(text) => Self::Text(text),
                None => FirmwareBlob::read(data).map_or(Self::Opaque(data), Self::Firmware),
            },
            EventType::NO_ACTION => match data.strip_prefix(STARTUP_LOCALITY) {
                Some([locality]) => Self::StartupLocality(*locality),
                Some(_) => return Err(Reject::Malformed),
                None => Self::free(data),
            },
            _ => Self::free(data),
        })
    }

    fn free(data: &'a [u8]) -> Self {
        text(data).map_or(Self::Opaque(data), Self::Text)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Digest;
    use crate::event_log::{LogBuilder, parse};

    /// UEFI_VARIABLE_DATA in the global namespace.
    pub(in crate::event_log) fn variable(name: &str, value: &[u8]) -> Vec<u8> {
        let name: Vec<u16> = name.encode_utf16().collect();
        let mut out = Guid::GLOBAL.0.to_vec();
        out.extend((name.len() as u64).to_le_bytes());
        out.extend((value.len() as u64).to_le_bytes());
        out.extend(name.iter().flat_map(|c| c.to_le_bytes()));
        out.extend(value);
        out
    }

    #[track_caller]
    fn check(kind: EventType, data: &[u8], expected: Body<'_>) {
        let digest = if kind == EventType::NO_ACTION { Digest::ZERO } else { Digest::of(&[data]) };
        let log = LogBuilder::new().event(0, kind, digest, data).finish();
        let log = parse(&log).unwrap();
        assert_eq!(Body::read(&log.events()[0]), Ok(expected), "{kind}");
    }

    #[test]
    fn data_is_read_by_the_type_of_its_event() {
        let measured = variable("db", b"value");
        let read = Variable { guid: Guid::GLOBAL, name: "db".into(), data: b"value" };
        for kind in [
            EventType::EFI_VARIABLE_DRIVER_CONFIG,
            EventType::EFI_VARIABLE_BOOT,
            EventType::EFI_VARIABLE_BOOT2,
            EventType::EFI_VARIABLE_AUTHORITY,
        ] {
            check(kind, &measured, Body::Variable(read.clone()));
        }
        let place = [1u64, 2].map(u64::to_le_bytes).concat();
        let blob = FirmwareBlob { description: b"", base: 1, length: 2 };
        check(EventType::EFI_PLATFORM_FIRMWARE_BLOB, &place, Body::Firmware(blob));
        let described = FirmwareBlob { description: b"PEI", ..blob };
        let named = [b"\x03PEI", &place[..]].concat();
        check(EventType::EFI_PLATFORM_FIRMWARE_BLOB2, &named, Body::Firmware(described));
        let tables = |description| Body::Tables(HandoffTables { description, tables: vec![] });
        check(EventType::EFI_HANDOFF_TABLES, &[0; 8], tables(b""));
        check(EventType::EFI_HANDOFF_TABLES2, b"\x01x\0\0\0\0\0\0\0\0", tables(b"x"));
        let gpt = [b"EFI PART", &[0; 76][..], &[128, 0, 0, 0], &[0; 12]].concat();
        let empty = Gpt { disk: Guid([0; 16]), partitions: vec![] };
        check(EventType::EFI_GPT_EVENT, &gpt, Body::Gpt(empty));
        // Firmware puts either into these: a text, or where the code stands.
        for kind in [EventType::POST_CODE, EventType::S_CRTM_CONTENTS] {
            check(kind, b"POST CODE", Body::Text("POST CODE".into()));
            check(kind, &place, Body::Firmware(blob));
            check(kind, &place[1..], Body::Opaque(&place[1..]));
        }
        check(EventType::NO_ACTION, b"StartupLocality\0\x03", Body::StartupLocality(3));
        check(EventType::NO_ACTION, b"a note", Body::Text("a note".into()));
        check(EventType::IPL, &place, Body::Opaque(&place));
    }

    #[test]
    fn a_separator_says_one_of_three_things_or_nothing() {
        for (data, separator) in [
            (&[0u8; 4][..], Separator::HandedOver),
            (&[0xff; 4], Separator::Ones),
            (&[1, 0, 0, 0], Separator::Error),
            (&[0, 0, 0, 1], Separator::Other),
            (&[0; 3], Separator::Other),
        ] {
            check(EventType::SEPARATOR, data, Body::Separator(separator));
        }
    }

    proptest! {
        #[test]
        fn no_body_of_any_type_panics(
            kind in prop_oneof![0u32..20, 0x8000_0000u32..0x8000_0012, 0x8000_00e0u32..0x8000_00e3],
            data in proptest::collection::vec(prop_oneof![Just(0u8), Just(4), any::<u8>()], 0..300),
        ) {
            let kind = EventType(kind);
            let digest = if kind == EventType::NO_ACTION { Digest::ZERO } else { Digest::of(&[&data]) };
            let log = LogBuilder::new().event(4, kind, digest, &data).finish();
            if let Ok(log) = parse(&log) {
                let event = &log.events()[0];
                let _ = Body::read(event);
                let _ = event.content(log.bank());
                let _ = signature_lists(&data).map(|lists| lists.len());
            }
        }
    }
}
