//! What an event's digest is of, bank by bank: all of its data, a part of it, or something else.
//!
//! [`Backed`] is minted here only, where the hash was computed and found equal. It is as authentic as the
//! digest: once the log replays to quoted registers. Everything else in an event is claimed.

use super::{Event, EventType, Log, body};
use crate::Reject;
use crate::tpm::hash::{Ha, HashAlg};

/// Bytes that hash to a measured digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backed<'a> {
    bytes: &'a [u8],
    digest: Ha,
}

impl<'a> Backed<'a> {
    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The digest they were found to have.
    pub fn digest(&self) -> Ha {
        self.digest
    }

    fn check(bytes: &'a [u8], digest: Ha) -> Option<Self> {
        (digest.hash().digest(&[bytes]) == digest).then_some(Self { bytes, digest })
    }
}

/// How much of an event's data its digest answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// All of it.
    Whole(Backed<'a>),
    /// A part; the rest is claimed.
    Part(Backed<'a>),
    /// An ASCII text that the data spells in UTF-16.
    Respelt(String),
    /// None: the digest is of something that is not in the log, and the data is a claim about it.
    Claimed(Subject),
    /// Nothing was measured: EV_NO_ACTION, or no digest in this bank.
    Unmeasured,
}

impl<'a> Content<'a> {
    /// The bytes measured, if they stand in the log.
    pub fn backed(&self) -> Option<Backed<'a>> {
        match self {
            Self::Whole(backed) | Self::Part(backed) => Some(*backed),
            Self::Respelt(_) | Self::Claimed(_) | Self::Unmeasured => None,
        }
    }
}

/// What the digest of an event type is of (PFP 1.06, table 27 and 10.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The event's data.
    EventData,
    /// The value of a UEFI variable, without name and GUID.
    VariableData,
    /// A PE image, by its Authenticode hash.
    Image,
    /// Code or data of firmware.
    Firmware,
    /// Tables in memory.
    Tables,
    /// Whatever a boot loader or an operating system chose.
    Loader,
    /// Nothing.
    Nothing,
    /// Not said by the specification.
    Unknown,
}

impl Subject {
    /// A few words for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::EventData => "event data",
            Self::VariableData => "value of a variable",
            Self::Image => "image, by its Authenticode hash",
            Self::Firmware => "firmware code or data",
            Self::Tables => "tables in memory",
            Self::Loader => "chosen by the loader",
            Self::Nothing => "nothing",
            Self::Unknown => "not specified",
        }
    }
}

/// What the digests of events of a type are of, by the specification. Logs are held to it nowhere: what
/// decides is which bytes hash to the digest ([`Event::content`]).
pub fn subject(kind: EventType) -> Subject {
    match kind {
        EventType::NO_ACTION => Subject::Nothing,
        EventType::S_CRTM_VERSION
        | EventType::SEPARATOR
        | EventType::ACTION
        | EventType::EFI_ACTION
        | EventType::EFI_GPT_EVENT
        | EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY
        | EventType::EFI_HCRTM_EVENT
        | EventType::EFI_SPDM_FIRMWARE_BLOB
        | EventType::EFI_SPDM_FIRMWARE_CONFIG
        | EventType::PLATFORM_CONFIG_FLAGS
        | EventType::TABLE_OF_DEVICES
        | EventType::NONHOST_INFO
        | EventType::OMIT_BOOT_DEVICE_EVENTS => Subject::EventData,
        EventType::EFI_VARIABLE_BOOT => Subject::VariableData,
        EventType::EFI_BOOT_SERVICES_APPLICATION
        | EventType::EFI_BOOT_SERVICES_DRIVER
        | EventType::EFI_RUNTIME_SERVICES_DRIVER => Subject::Image,
        EventType::POST_CODE
        | EventType::S_CRTM_CONTENTS
        | EventType::CPU_MICROCODE
        | EventType::NONHOST_CODE
        | EventType::NONHOST_CONFIG
        | EventType::EFI_PLATFORM_FIRMWARE_BLOB
        | EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => Subject::Firmware,
        EventType::EFI_HANDOFF_TABLES | EventType::EFI_HANDOFF_TABLES2 => Subject::Tables,
        EventType::IPL
        | EventType::IPL_PARTITION_DATA
        | EventType::EVENT_TAG
        | EventType::COMPACT_HASH => Subject::Loader,
        _ => Subject::Unknown,
    }
}

impl<'a> Event<'a> {
    /// What the digest of a bank answers for. At most four hashes of the event's data.
    pub fn content(&self, bank: HashAlg) -> Content<'a> {
        let (true, Some(digest)) = (self.is_measured(), self.digest_in(bank)) else {
            return Content::Unmeasured;
        };
        if let Some(whole) = Backed::check(self.data, digest) {
            return Content::Whole(whole);
        }
        if let Some(part) = self.parts().find_map(|part| Backed::check(part, digest)) {
            return Content::Part(part);
        }
        match self.respelt().filter(|text| bank.digest(&[text.as_bytes()]) == digest) {
            Some(text) => Content::Respelt(text),
            None => Content::Claimed(subject(self.kind)),
        }
    }

    /// The parts of an event's data that its digest may be of.
    fn parts(&self) -> impl Iterator<Item = &'a [u8]> {
        let parts: [Option<&'a [u8]>; 2] = match self.kind {
            // EDK2 measures the value alone; some firmware does so for authorities too.
            EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_AUTHORITY => {
                [body::Variable::read(self.data).ok().map(|variable| variable.data), None]
            }
            // GRUB labels a text and measures it without label and NUL.
            EventType::IPL => {
                let text = self.data.strip_suffix(b"\0").unwrap_or(self.data);
                [body::grub_text(text), Some(text)]
            }
            EventType::EVENT_TAG => {
                [body::Tagged::read(self.data).ok().map(|tagged| tagged.data), None]
            }
            _ => [None, None],
        };
        parts.into_iter().flatten().filter(|part| !part.is_empty())
    }

    /// systemd-stub describes in UTF-16 what it measures in ASCII, with the NUL: names of UKI sections.
    fn respelt(&self) -> Option<String> {
        if self.kind != EventType::IPL || self.data.len() > RESPELT_MAX {
            return None;
        }
        let text = body::utf16(self.data)?;
        text.is_ascii().then(|| format!("{text}\0"))
    }
}

impl Log<'_> {
    /// Checks that every event's data is what its type says it is, and that firmware's configuration variables
    /// and announcements say what was measured: whoever reads them for a verdict asks this first. The data of
    /// other types is a claim beside the digest, and is judged by digest.
    pub fn check_data(&self) -> Result<(), (u8, Reject)> {
        self.data().map_err(|(event, reject)| (event.pcr, reject))
    }

    /// The same, with the event that is not as it should be.
    pub(super) fn data(&self) -> Result<(), (&Event<'_>, Reject)> {
        let check = |event: &Event<'_>| {
            body::Body::read(event)?;
            let told =
                matches!(event.kind, EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_ACTION);
            if told && !event.data_is_measured() {
                return Err(Reject::EventDataMismatch);
            }
            Ok(())
        };
        self.events().iter().try_for_each(|event| check(event).map_err(|reject| (event, reject)))
    }
}

/// Section names have at most 8 characters (PE format, 4); twice that, in UTF-16, with the NUL.
const RESPELT_MAX: usize = 2 * 17;

#[cfg(test)]
mod tests {
    use super::super::{LogBuilder, parse};
    use super::*;
    use crate::Digest;

    #[track_caller]
    fn content(
        kind: EventType,
        measured: &[u8],
        data: &[u8],
        check: impl Fn(&Content<'_>) -> bool,
    ) {
        let log = LogBuilder::new().event(4, kind, Digest::of(&[measured]), data).finish();
        let log = parse(&log).unwrap();
        let content = log.events()[0].content(HashAlg::Sha256);
        assert!(check(&content), "{content:?}");
        let stands_in_the_log = matches!(content, Content::Whole(_) | Content::Part(_));
        let backed = content.backed().map(|b| (b.bytes().to_vec(), b.digest().sha256()));
        let expected = (measured.to_vec(), Some(Digest::of(&[measured])));
        assert_eq!(backed, stands_in_the_log.then_some(expected));
        assert_eq!(log.events()[0].content(HashAlg::Sha384), Content::Unmeasured);
    }

    #[test]
    fn data_is_backed_by_the_digest_of_it_alone() {
        let whole = |c: &Content<'_>| matches!(c, Content::Whole(_));
        let part = |c: &Content<'_>| matches!(c, Content::Part(_));
        let claimed = |c: &Content<'_>| matches!(c, Content::Claimed(_));
        content(EventType::EFI_ACTION, b"text", b"text", whole);
        content(EventType::EFI_ACTION, b"text", b"texT", claimed);
        content(EventType::EFI_ACTION, b"text", b"text\0", claimed);
        content(EventType::IPL, b"set pager=1", b"grub_cmd set pager=1\0", part);
        content(EventType::IPL, b"quiet ro", b"kernel_cmdline: quiet ro\0", part);
        content(EventType::IPL, b"quiet ro", b"other label: quiet ro\0", claimed);
        content(EventType::IPL, b"an initrd", b"/initrd.img\0", claimed);
        let name: Vec<u8> = ".linux\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        content(EventType::IPL, b".linux\0", &name, |c| *c == Content::Respelt(".linux\0".into()));
        content(EventType::IPL, b".linux", &name, claimed);
        let variable = body::tests::variable("Boot0000", b"value");
        content(EventType::EFI_VARIABLE_BOOT, b"value", &variable, part);
        content(EventType::EFI_VARIABLE_BOOT2, b"value", &variable, claimed);
        content(EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable, &variable, whole);
        let tagged = b"\x01\0\0\0\x05\0\0\0label";
        content(EventType::EVENT_TAG, b"label", tagged, part);
        content(EventType::COMPACT_HASH, b"label", tagged, claimed);
    }

    #[test]
    fn only_a_loader_spells_a_short_text_in_utf_16() {
        let spelt = |text: &str| -> Vec<u8> {
            text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
        };
        let check = |kind, text: &str, respelt: bool| {
            let measured = format!("{text}\0");
            content(kind, measured.as_bytes(), &spelt(text), |c| {
                matches!(c, Content::Respelt(found) if *found == measured) == respelt
            });
        };
        check(EventType::IPL, ".sixteen.letters", true);
        check(EventType::IPL, ".linux", true);
        check(EventType::IPL, ".seventeen.letter", false);
        check(EventType::IPL, &"x".repeat(100), false);
        check(EventType::EFI_ACTION, ".linux", false);
    }

    #[test]
    fn a_claim_is_of_what_the_specification_says() {
        for (kind, expected) in [
            (EventType::EFI_VARIABLE_DRIVER_CONFIG, Subject::EventData),
            (EventType::EFI_VARIABLE_BOOT, Subject::VariableData),
            (EventType::EFI_BOOT_SERVICES_APPLICATION, Subject::Image),
            (EventType::EFI_PLATFORM_FIRMWARE_BLOB2, Subject::Firmware),
            (EventType::EFI_HANDOFF_TABLES2, Subject::Tables),
            (EventType::IPL, Subject::Loader),
            (EventType(0x1234), Subject::Unknown),
        ] {
            content(kind, b"measured", b"logged", |c| *c == Content::Claimed(expected));
        }
        assert_eq!(subject(EventType::NO_ACTION), Subject::Nothing);
    }

    #[test]
    fn refuses_configuration_that_was_not_measured() {
        let variable = |value| body::tests::variable("SecureBoot", &[value]);
        for (kind, measured, other) in [
            (EventType::EFI_VARIABLE_DRIVER_CONFIG, variable(1), variable(0)),
            (EventType::EFI_ACTION, b"data".to_vec(), b"datA".to_vec()),
        ] {
            let log = |data: &[u8]| {
                let log = LogBuilder::new().event(7, kind, Digest::of(&[&measured]), data).finish();
                parse(&log).unwrap().check_data()
            };
            assert_eq!(log(&measured), Ok(()));
            assert_eq!(log(&other), Err((7, Reject::EventDataMismatch)), "(F5)");
        }
    }

    #[test]
    fn refuses_data_that_is_not_of_its_type() {
        let kind = EventType::EFI_BOOT_SERVICES_APPLICATION;
        let log = |path: &[u8]| {
            let size = (path.len() as u64).to_le_bytes();
            let image = [&[0; 24], &size[..], path].concat();
            let log = LogBuilder::new().event(4, kind, Digest([1; 32]), &image).finish();
            parse(&log).unwrap().check_data()
        };
        assert_eq!(log(&[0x7f, 0xff, 4, 0]), Ok(()));
        assert_eq!(log(&[4, 4, 0, 0]), Err((4, Reject::Malformed)), "(F29)");
    }

    #[test]
    fn nothing_is_measured_by_no_action() {
        let log = LogBuilder::new().event(0, EventType::NO_ACTION, Digest::ZERO, b"x").finish();
        let log = parse(&log).unwrap();
        assert_eq!(log.events()[0].content(HashAlg::Sha256), Content::Unmeasured);
    }
}
