//! What was booted: applications, UKI sections, command lines and initrds, each with the register and event
//! that back it.
//!
//! Digests are authentic once the log replays. That a digest is *the kernel's* or *the initrd's* is as
//! good as [`Item::role`] says: backed where the role itself was measured (names of UKI sections), claimed
//! where it stands only in a type or a label. A verdict must therefore account for every event of a register,
//! as [`crate::host_reference`] does; [`Boot::applications`] lists whatever of PCR 4 is not known to be harmless.

use super::body::{Tagged, grub_text, text, utf16};
use super::{Content, Event, EventType, Log};
use crate::tpm::hash::Ha;

/// How far a role is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What it is was measured beside it.
    Backed,
    /// What it is stands in the log only.
    Claimed,
}

/// One thing measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Register.
    pub pcr: u8,
    /// Number of the event.
    pub event: u32,
    /// Digest of the thing itself.
    pub digest: Ha,
    /// Whether it is what it is listed as.
    pub role: Role,
    /// Name or path; believed as far as the role.
    pub name: Option<String>,
    /// The text itself, if it stands in the log and hashes to the digest.
    pub text: Option<String>,
}

/// What a log tells of a boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// PCR 4: every event but separators and measured announcements, in order. Authenticode digests, if they
    /// are of images.
    pub applications: Vec<Item>,
    /// PCR 11, by systemd-stub: sections of a UKI in the order measured.
    pub sections: Vec<Item>,
    /// PCR 8 by GRUB, PCR 9 by Linux's EFI stub, PCR 12 by systemd-stub.
    pub command_lines: Vec<Item>,
    /// PCR 9, by Linux's EFI stub and GRUB.
    pub initrds: Vec<Item>,
    /// PCR 9: files that GRUB read.
    pub files: Vec<Item>,
}

impl Boot {
    /// Reads a log; meaningful for the registers that it replays to.
    pub fn extract(log: &Log<'_>) -> Self {
        let mut boot = Self::default();
        for event in log.events().iter().filter(|event| event.is_measured()) {
            match event.pcr {
                4 => boot.applications.extend(application(log, event)),
                8 => boot.command_lines.extend(grub_command_line(log, event)),
                9 => boot.pcr9(event),
                12 => boot.command_lines.extend(stub_command_line(log, event)),
                _ => {}
            }
        }
        boot.sections = sections(log);
        boot
    }

    fn pcr9(&mut self, event: &Event<'_>) {
        let label = text(event.data);
        match (event.kind, Tagged::read(event.data), label) {
            (EventType::EVENT_TAG, Ok(tagged), _) => {
                let name = text(tagged.data);
                match tagged.tag {
                    Tagged::LINUX_LOAD_OPTIONS => self.command_lines.push(claimed(event, name)),
                    Tagged::LINUX_INITRD => self.initrds.push(claimed(event, name)),
                    _ => {}
                }
            }
            (EventType::IPL, _, Some(label)) if label == RED_HAT_INITRD => {
                self.initrds.push(claimed(event, Some(label)));
            }
            (EventType::IPL, _, name) => self.files.push(claimed(event, name)),
            _ => {}
        }
    }
}

/// An event of PCR 4, unless it is a separator or an announcement that was measured letter by letter.
fn application(log: &Log<'_>, event: &Event<'_>) -> Option<Item> {
    let announced = ACTIONS.contains(&event.data) && event.data_is_measured();
    if event.digest == log.separator() || announced {
        return None;
    }
    let name = match super::body::ImageLoad::read(event.data) {
        Ok(image) => Some(image.path.to_string()).filter(|path| !path.is_empty()),
        Err(_) => text(event.data),
    };
    Some(claimed(event, name))
}

/// GRUB's `kernel_cmdline: …`: the text is measured, the label is not.
fn grub_command_line(log: &Log<'_>, event: &Event<'_>) -> Option<Item> {
    let label = |label: &&[u8]| event.data.starts_with(label);
    let label = GRUB_COMMAND_LINES.iter().find(|known| label(known))?;
    let backed = match event.content(log.bank()) {
        Content::Part(backed) => Some(backed),
        _ => None,
    };
    let measured =
        |b: &super::Backed<'_>| grub_text(event.data).is_some_and(|t| t.starts_with(b.bytes()));
    let text = backed.filter(measured).and_then(|backed| text(backed.bytes()));
    let name = self::text(label).map(|name| name.trim_end_matches([':', ' ']).to_owned());
    Some(Item { text, ..claimed(event, name) })
}

/// systemd-stub's override of the command line: UTF-16, measured as it stands.
fn stub_command_line(log: &Log<'_>, event: &Event<'_>) -> Option<Item> {
    match event.content(log.bank()) {
        Content::Whole(backed) if event.kind == EventType::IPL => {
            let text = utf16(backed.bytes())?;
            Some(Item { text: Some(text), ..claimed(event, None) })
        }
        _ => None,
    }
}

/// systemd-stub measures each section by two events: its name, then its contents.
fn sections(log: &Log<'_>) -> Vec<Item> {
    let mut sections = Vec::new();
    let mut events = log.of_pcr(UKI_PCR);
    while let Some(event) = events.next() {
        let Content::Respelt(name) = event.content(log.bank()) else { continue };
        let name = name.trim_end_matches('\0').to_owned();
        if !name.starts_with('.') {
            continue;
        }
        let Some(contents) = events.next() else { break };
        let text = contents.content(log.bank()).backed().and_then(|backed| text(backed.bytes()));
        let item = Item { role: Role::Backed, text, ..claimed(contents, Some(name)) };
        sections.push(item);
    }
    sections
}

fn claimed(event: &Event<'_>, name: Option<String>) -> Item {
    let (pcr, number, digest) = (event.pcr, event.number, event.digest);
    Item { pcr, event: number, digest, role: Role::Claimed, name, text: None }
}

/// Sections of a UKI.
const UKI_PCR: u8 = 11;
/// GRUB of Red Hat 2.02.
const RED_HAT_INITRD: &str = "grub_linuxefi Initrd";
const GRUB_COMMAND_LINES: [&[u8]; 2] = [b"kernel_cmdline: ", b"grub_kernel_cmdline "];
/// The boot manager's announcements (PFP 1.06, table 30).
pub(crate) const ACTIONS: [&[u8]; 2] = [
    b"Calling EFI Application from Boot Option",
    b"Returning from EFI Application from Boot Option",
];

#[cfg(test)]
mod tests {
    use super::super::{LogBuilder, SEPARATOR, parse};
    use super::*;
    use crate::Digest;

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
    }

    fn section(log: LogBuilder, name: &str, contents: &[u8]) -> LogBuilder {
        let measured = format!("{name}\0");
        log.event(11, EventType::IPL, Digest::of(&[measured.as_bytes()]), &utf16(name)).event(
            11,
            EventType::IPL,
            Digest::of(&[contents]),
            &utf16(name),
        )
    }

    fn digests(items: &[Item]) -> Vec<Option<Digest>> {
        items.iter().map(|item| item.digest.sha256()).collect()
    }

    #[test]
    fn sections_have_measured_names() {
        let log = section(section(LogBuilder::new(), ".linux", b"kernel"), ".cmdline", b"quiet");
        let bytes = log.finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        let names: Vec<_> = boot.sections.iter().map(|s| s.name.as_deref()).collect();
        assert_eq!(names, [Some(".linux"), Some(".cmdline")]);
        assert!(boot.sections.iter().all(|s| s.role == Role::Backed));
        assert_eq!(boot.sections[0].digest.sha256(), Some(Digest::of(&[b"kernel"])));
        assert_eq!((boot.sections[0].event, boot.sections[1].event), (1, 3));
        // The label alone names nothing.
        let at = bytes.windows(4).position(|w| w == b".\0l\0").unwrap();
        let mut renamed = bytes.clone();
        renamed[at + 2] = b'm';
        let boot = Boot::extract(&parse(&renamed).unwrap());
        assert!(boot.sections.iter().all(|s| s.name.as_deref() != Some(".minux")));
    }

    #[test]
    fn a_section_has_a_text_where_the_text_was_measured() {
        let bytes = section(LogBuilder::new(), ".linux", b"kernel")
            .event(11, EventType::IPL, Digest::of(&[b".uname\0"]), &utf16(".uname"))
            .event(11, EventType::IPL, Digest::of(&[b"6.12"]), b"6.12")
            .finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        let texts: Vec<_> = boot.sections.iter().map(|s| s.text.as_deref()).collect();
        assert_eq!(texts, [None, Some("6.12")]);
    }

    #[test]
    fn applications_are_whatever_is_not_known_to_be_harmless() {
        let d = |b: u8| Digest([b; 32]);
        let bytes = LogBuilder::new()
            .event(4, EventType::EFI_ACTION, Digest::of(&[ACTIONS[0]]), ACTIONS[0])
            .event(4, EventType::SEPARATOR, Digest::of(&[SEPARATOR]), SEPARATOR)
            .event(4, EventType::EFI_BOOT_SERVICES_APPLICATION, d(1), b"not a path")
            .event(4, EventType::EFI_ACTION, d(2), ACTIONS[0])
            .event(4, EventType::SEPARATOR, d(3), SEPARATOR)
            .finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        assert_eq!(digests(&boot.applications), [Some(d(1)), Some(d(2)), Some(d(3))]);
    }

    #[test]
    fn an_application_is_named_by_its_path_or_its_text() {
        let image = |path: &[u8]| {
            let head = [0, 0, 0, path.len() as u64].map(u64::to_le_bytes).concat();
            [&head[..], path].concat()
        };
        let kind = EventType::EFI_BOOT_SERVICES_APPLICATION;
        let bytes = LogBuilder::new()
            .event(4, kind, Digest([1; 32]), &image(b"\x04\x04\x06\0a\0\x7f\xff\x04\0"))
            .event(4, kind, Digest([1; 32]), &image(b""))
            .event(4, EventType::IPL, Digest([1; 32]), b"MokList\0")
            .finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        let names: Vec<_> = boot.applications.iter().map(|a| a.name.as_deref()).collect();
        assert_eq!(names, [Some("a"), None, Some("MokList")]);
    }

    #[test]
    fn pcr_9_tells_command_lines_initrds_and_files_apart() {
        let d = |b: u8| Digest([b; 32]);
        let tagged = |tag: u32, label: &[u8]| {
            [&tag.to_le_bytes()[..], &(label.len() as u32).to_le_bytes(), label].concat()
        };
        let options = tagged(Tagged::LINUX_LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0");
        let bytes = LogBuilder::new()
            .event(9, EventType::EVENT_TAG, d(1), &options)
            .event(9, EventType::EVENT_TAG, d(2), &tagged(Tagged::LINUX_INITRD, b"Linux initrd\0"))
            .event(9, EventType::EVENT_TAG, d(3), &tagged(7, b"Linux initrd\0"))
            .event(9, EventType::IPL, d(4), b"grub_linuxefi Initrd\0")
            .event(9, EventType::IPL, d(5), b"/vmlinuz\0")
            .event(9, EventType::IPL, d(6), &[0xff])
            .event(9, EventType::EFI_ACTION, d(7), b"/vmlinuz\0")
            .finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        assert_eq!(digests(&boot.command_lines), [Some(d(1))]);
        assert_eq!(digests(&boot.initrds), [Some(d(2)), Some(d(4))]);
        assert_eq!(digests(&boot.files), [Some(d(5)), Some(d(6))]);
    }

    #[test]
    fn command_lines_are_text_only_where_the_text_was_measured() {
        let line = b"/vmlinuz ro quiet";
        let logged = [&b"kernel_cmdline: "[..], line, b"\0"].concat();
        let stub = utf16("console=ttyS0");
        let bytes = LogBuilder::new()
            .event(8, EventType::IPL, Digest::of(&[line]), &logged)
            .event(8, EventType::IPL, Digest([1; 32]), &logged)
            .event(8, EventType::IPL, Digest::of(&[b"set x=1"]), b"grub_cmd: set x=1\0")
            .event(12, EventType::IPL, Digest::of(&[&stub]), &stub)
            .event(12, EventType::IPL, Digest([2; 32]), &stub)
            .event(12, EventType::EFI_ACTION, Digest::of(&[&stub]), &stub)
            .finish();
        let boot = Boot::extract(&parse(&bytes).unwrap());
        let texts: Vec<_> = boot.command_lines.iter().map(|c| c.text.as_deref()).collect();
        assert_eq!(texts, [Some("/vmlinuz ro quiet"), None, Some("console=ttyS0")]);
    }
}
