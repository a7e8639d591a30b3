//! Separators: where firmware's part of PCR 0 to 7 ends, and what may still follow (PFP 1.06, 3.3.2.2, 3.3.4
//! and 10.4.1).
//!
//! A separator is told by its digest as well as by its type: types are claimed, and whoever could extend a
//! register after boot could otherwise move the end of firmware's part behind his own events.
//!
//! After its separator a register of the first eight may be extended by these alone:
//!
//! | PCR | what | why |
//! |---|---|---|
//! | 0, 3 | nothing | firmware and its option ROMs have handed over |
//! | 1 | boot variables | measured anew at each boot attempt (3.3.4.2) |
//! | 2 | drivers | started from a disk or by a boot loader (3.3.4.3) |
//! | 4 | applications, drivers, boot actions, loaders' own events | the boot itself (3.3.4.5) |
//! | 5 | partition tables, actions, loaders' configuration | the boot itself; ExitBootServices (3.3.4.6) |
//! | 6 | anything | the maker's own; nothing here is derived from it (3.3.4.7) |
//! | 7 | authorities, actions | what verified each image (3.3.4.8); the state itself stands before |

use super::{Event, EventLog, EventType, Log, SEPARATOR};
use crate::Reject;
use crate::tpm::hash::Ha;

/// What a separator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// Four zero bytes: handed over without an error.
    HandedOver,
    /// 0xFFFFFFFF: what some firmware of TPM 1.2 days wrote; refused.
    Ones,
    /// 0x00000001: an error was met.
    Error,
    /// Anything else.
    Other,
}

impl Separator {
    /// Reads a separator's data.
    pub fn read(data: &[u8]) -> Self {
        match data {
            [0, 0, 0, 0] => Self::HandedOver,
            [0xff, 0xff, 0xff, 0xff] => Self::Ones,
            [1, 0, 0, 0] => Self::Error,
            _ => Self::Other,
        }
    }

    /// A few words for people.
    pub fn text(self) -> &'static str {
        match self {
            Self::HandedOver => "firmware handed over",
            Self::Ones => "0xffffffff, an error or very old firmware",
            Self::Error => "firmware met an error",
            Self::Other => "not a separator's value",
        }
    }
}

impl<'a> Log<'a> {
    /// The digest of four zero bytes in this log's bank.
    pub(super) fn separator(&self) -> Ha {
        self.bank.digest(&[SEPARATOR])
    }

    /// The events of a register before and after its separator, by digest; all are before if there is none.
    pub(super) fn around_separator(&self, pcr: u8) -> (Vec<&Event<'a>>, Vec<&Event<'a>>) {
        let separator = self.separator();
        let mut seen = false;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for event in self.of_pcr(pcr) {
            let is_separator = event.digest == separator;
            match seen {
                _ if is_separator => {}
                true => after.push(event),
                false => before.push(event),
            }
            seen |= is_separator;
        }
        (before, after)
    }

    /// [`EventLog::check_separators`] for whoever shows a log.
    pub(super) fn separators(&self) -> Result<(), (u8, Reject)> {
        let separator = self.separator();
        let mut seen = [false; FIRMWARE_PCRS];
        for event in self.events.iter().filter(|event| event.is_measured()) {
            let Some(seen) = seen.get_mut(usize::from(event.pcr)) else { continue };
            let typed = event.kind == EventType::SEPARATOR;
            let digest = event.digest == separator;
            if typed || digest {
                let valid = typed && digest && event.data == SEPARATOR;
                if !valid || std::mem::replace(seen, true) {
                    return Err((event.pcr, Reject::SeparatorInvalid));
                }
            } else if *seen && !may_follow(event.pcr, event.kind) {
                return Err((event.pcr, Reject::SeparatorOrder));
            }
        }
        match (0..).zip(seen).find(|(_, seen)| !seen) {
            Some((pcr, _)) => Err((pcr, Reject::SeparatorInvalid)),
            None => Ok(()),
        }
    }
}

impl EventLog<'_> {
    /// Checks that each of PCR 0 to 7 has exactly one separator, of four zero bytes, and nothing after it
    /// that belongs before. Firmware that met an error measures another value; firmware that never handed
    /// over measures none.
    pub fn check_separators(&self) -> Result<(), (u8, Reject)> {
        self.separators()
    }
}

/// True if an event of this type may follow the separator of its register.
fn may_follow(pcr: u8, kind: EventType) -> bool {
    let after: &[EventType] = match pcr {
        1 => &[EventType::EFI_VARIABLE_BOOT, EventType::EFI_VARIABLE_BOOT2],
        2 => &[EventType::EFI_BOOT_SERVICES_DRIVER, EventType::EFI_RUNTIME_SERVICES_DRIVER],
        4 => &[
            EventType::EFI_BOOT_SERVICES_APPLICATION,
            EventType::EFI_BOOT_SERVICES_DRIVER,
            EventType::EFI_RUNTIME_SERVICES_DRIVER,
            EventType::EFI_ACTION,
            EventType::ACTION,
            EventType::IPL,
            EventType::COMPACT_HASH,
        ],
        5 => &[
            EventType::EFI_GPT_EVENT,
            EventType::EFI_ACTION,
            EventType::ACTION,
            EventType::IPL,
            EventType::IPL_PARTITION_DATA,
            EventType::EVENT_TAG,
        ],
        7 => &[EventType::EFI_VARIABLE_AUTHORITY, EventType::EFI_ACTION],
        _ => &[],
    };
    pcr == MAKERS_PCR || after.contains(&kind)
}

/// PCR 0 to 7 are firmware's.
const FIRMWARE_PCRS: usize = 8;
/// Of the host platform's maker.
const MAKERS_PCR: u8 = 6;

#[cfg(test)]
mod tests {
    use super::super::{LogBuilder, parse};
    use super::*;
    use crate::Digest;

    type Ev = (u8, EventType, Digest, Vec<u8>);

    fn backed(pcr: u8, kind: EventType, data: &[u8]) -> Ev {
        (pcr, kind, Digest::of(&[data]), data.to_vec())
    }

    fn separators() -> Vec<Ev> {
        (0..8).map(|pcr| backed(pcr, EventType::SEPARATOR, SEPARATOR)).collect()
    }

    #[track_caller]
    fn check(what: &str, events: &[Ev], expected: Result<(), (u8, Reject)>) {
        let log = events.iter().fold(LogBuilder::new(), |log, (pcr, kind, digest, data)| {
            log.event(*pcr, *kind, *digest, data)
        });
        assert_eq!(parse(&log.finish()).unwrap().check_separators(), expected, "{what}");
    }

    #[test]
    fn refuses_separators_that_are_missing_repeated_or_wrong() {
        check("one each", &separators(), Ok(()));
        for pcr in 0..8 {
            let invalid = Err((pcr, Reject::SeparatorInvalid));
            let at = usize::from(pcr);
            let mut without = separators();
            without.remove(at);
            check("missing (F11)", &without, invalid);
            let mut twice = separators();
            twice.push(backed(pcr, EventType::SEPARATOR, SEPARATOR));
            check("two (F12)", &twice, invalid);
            let mut claimed = separators();
            claimed[at].3 = vec![0xff; 4];
            check("0xffffffff with the digest of zeros (F13)", &claimed, invalid);
            let mut error = separators();
            error[at] = backed(pcr, EventType::SEPARATOR, &[1, 0, 0, 0]);
            check("an error", &error, invalid);
            let mut ones = separators();
            ones[at] = backed(pcr, EventType::SEPARATOR, &[0xff; 4]);
            check("ones", &ones, invalid);
            let mut relabelled = separators();
            relabelled[at].1 = EventType::EFI_ACTION;
            check("under another type", &relabelled, invalid);
            let mut hidden = separators();
            hidden.push(backed(pcr, EventType::EFI_ACTION, SEPARATOR));
            check("a second one under another type", &hidden, invalid);
        }
    }

    #[test]
    fn refuses_what_belongs_before_a_separator() {
        let after = |pcr, kind: EventType| {
            let mut events = separators();
            events.push(backed(pcr, kind, b"x"));
            events
        };
        for (pcr, kind) in [
            (0, EventType::S_CRTM_VERSION),
            (0, EventType::EFI_PLATFORM_FIRMWARE_BLOB2),
            (1, EventType::EFI_HANDOFF_TABLES),
            (2, EventType::EFI_BOOT_SERVICES_APPLICATION),
            (3, EventType::EFI_VARIABLE_DRIVER_CONFIG),
            (4, EventType::EFI_VARIABLE_BOOT),
            (5, EventType::EFI_VARIABLE_BOOT),
            (7, EventType::EFI_VARIABLE_DRIVER_CONFIG),
        ] {
            let late = Err((pcr, Reject::SeparatorOrder));
            check("late (F10)", &after(pcr, kind), late);
        }
        for (pcr, kind) in [
            (1, EventType::EFI_VARIABLE_BOOT),
            (2, EventType::EFI_BOOT_SERVICES_DRIVER),
            (4, EventType::EFI_BOOT_SERVICES_APPLICATION),
            (4, EventType::EFI_ACTION),
            (5, EventType::EFI_GPT_EVENT),
            (5, EventType::EFI_ACTION),
            (6, EventType::COMPACT_HASH),
            (7, EventType::EFI_VARIABLE_AUTHORITY),
            (9, EventType::EVENT_TAG),
        ] {
            check("the boot itself", &after(pcr, kind), Ok(()));
        }
    }
}
