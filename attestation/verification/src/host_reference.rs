//! Reference values of a host build, and the match of a replayed log against them (SPEC 7.4).
//!
//! The kernel is recognised by what firmware ran as an application (PCR 4), initrd and command line by what
//! the kernel's EFI stub measured (PCR 9), firmware and Secure Boot state by whole registers. Whatever else
//! stands in PCR 4 or 9 refuses the host: event types are not measured, so a second application must not be
//! able to hide behind another type.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::claims::HostClaims;
use crate::event_log::boot::ACTIONS;
use crate::event_log::{Event, EventLog, EventType, SEPARATOR, values};
use crate::quote::QuotedPcrs;
use crate::report::{Row, word};
use crate::tpm::hash::{Ha, HashAlg};

/// Registers every reference must give: firmware code, option ROM code and configuration, Secure Boot.
pub const REQUIRED_FIRMWARE: &[u8] = &[0, 2, 3, 7];

/// What a host build is, as whoever made its reference value states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostProfile {
    /// The initrd is ours: the monitor is its first process, and there is no shell and no login.
    Sealed,
    /// Any Linux; whoever is root on it can read its guests.
    Developer,
}

impl HostProfile {
    /// The name used in JSON, claims and Cedar.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sealed => "sealed",
            Self::Developer => "developer",
        }
    }
}

/// One host build a verifier accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostReference {
    /// Name for people and policies.
    pub name: String,
    /// Security version.
    pub svn: u32,
    /// What this build is. A developer host could claim to be sealed, so its word alone is not taken.
    pub profile: HostProfile,
    /// Security version of the monitor in this build.
    pub monitor_svn: u32,
    /// Authenticode SHA-256 of the kernel as firmware loaded it.
    pub kernel: Digest,
    /// Digest of the "Linux initrd" event.
    pub initrd: Digest,
    /// Digest of the "LOADED_IMAGE::LoadOptions" event.
    pub cmdline: Digest,
    /// Whole register values, PCR 0, 2, 3 and 7 at least.
    pub firmware: BTreeMap<u8, Digest>,
}

impl HostReference {
    /// The register values a reference must give, of a boot that is trusted at this moment. None in a log
    /// of another bank.
    pub fn firmware_of(log: &EventLog<'_>) -> Option<BTreeMap<u8, Digest>> {
        let registers = log.registers(HashAlg::Sha256)?;
        REQUIRED_FIRMWARE.iter().map(|&pcr| Some((pcr, registers.get(pcr)?.sha256()?))).collect()
    }

    /// Judges a replayed log and the registers it replayed to. The host matches if every row is ok.
    pub fn judge(&self, log: &EventLog<'_>, quoted: &QuotedPcrs) -> Vec<Row> {
        self.judge_values(log, &values(quoted))
    }

    /// The same over values that nobody signed, to be shown.
    pub(crate) fn judge_values(&self, log: &EventLog<'_>, quoted: &[(u8, Ha)]) -> Vec<Row> {
        let mut rows = self.registers(quoted);
        rows.extend(self.applications(log));
        rows.extend(self.stub(log));
        rows
    }

    /// What the host says of its build against what the reference states of it; the line that explains a
    /// difference.
    fn contradicted_by(&self, claims: &HostClaims) -> Option<String> {
        let differs =
            |what: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
                format!("{what}: found {found}, expected {expected} by reference `{}`", self.name)
            };
        if claims.profile != self.profile.as_str() {
            // Debug escapes what a host may have put there.
            let found = format!("{:?}", claims.profile);
            return Some(differs("host profile", &found, &format!("{:?}", self.profile.as_str())));
        }
        (claims.monitor_svn != self.monitor_svn)
            .then(|| differs("monitor svn", &claims.monitor_svn, &self.monitor_svn))
    }

    fn registers(&self, quoted: &[(u8, Ha)]) -> Vec<Row> {
        let mut rows = Vec::new();
        for &(pcr, value) in quoted {
            rows.push(match self.firmware.get(&pcr) {
                Some(expected) => Row::judged(pcr, "-", register(pcr), value, *expected),
                None if REQUIRED_FIRMWARE.contains(&pcr) => {
                    let what = format!("{}: no reference value in `{}`", register(pcr), self.name);
                    Row::refused(pcr, "-", what, value)
                }
                // Judged event by event below.
                None if matches!(pcr, BOOT_PCR | STUB_PCR) => continue,
                None => Row::noted(pcr, "-", register(pcr), value),
            });
        }
        // A reference for a register nobody quotes can never be met.
        let is_quoted = |pcr: &u8| quoted.iter().any(|(index, _)| index == pcr);
        let unquoted = self.firmware.iter().filter(|(pcr, _)| !is_quoted(pcr));
        rows.extend(unquoted.map(|(pcr, expected)| Row::missing(*pcr, register(*pcr), *expected)));
        rows
    }

    fn applications(&self, log: &EventLog<'_>) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut started = false;
        for event in log.of_pcr(BOOT_PCR) {
            rows.push(if event.kind == EventType::EFI_BOOT_SERVICES_APPLICATION {
                started = true;
                Row::judged(BOOT_PCR, word(event.kind), "host kernel", event.digest, self.kernel)
            } else if is_separator(event) || is_boot_action(event) {
                Row::noted(BOOT_PCR, word(event.kind), "boot manager", event.digest)
            } else {
                Row::refused(BOOT_PCR, word(event.kind), "unexpected event", event.digest)
            });
        }
        if !started {
            rows.push(Row::missing(BOOT_PCR, "host kernel", self.kernel));
        }
        rows
    }

    fn stub(&self, log: &EventLog<'_>) -> Vec<Row> {
        let mut slots = [
            (LOAD_OPTIONS_TAG, "host command line", self.cmdline, false),
            (INITRD_TAG, "host initrd", self.initrd, false),
        ];
        let mut rows = Vec::new();
        for event in log.of_pcr(STUB_PCR) {
            let tagged = |tag: &[u8]| event.kind == EventType::EVENT_TAG && *event.data == *tag;
            let slot = slots.iter_mut().find(|(tag, .., seen)| tagged(tag) && !*seen);
            rows.push(match slot {
                Some((_, what, expected, seen)) => {
                    *seen = true;
                    Row::judged(STUB_PCR, word(event.kind), *what, event.digest, *expected)
                }
                None if is_separator(event) => {
                    Row::noted(STUB_PCR, word(event.kind), "separator", event.digest)
                }
                None => Row::refused(STUB_PCR, word(event.kind), "unexpected event", event.digest),
            });
        }
        let missing = slots.iter().filter(|(.., seen)| !seen);
        rows.extend(missing.map(|(_, what, digest, _)| Row::missing(STUB_PCR, *what, *digest)));
        rows
    }
}

/// Why no reference recognises a host.
#[derive(Debug)]
pub(crate) struct Unrecognised {
    /// Rows of the reference it comes closest to.
    pub(crate) rows: Vec<Row>,
    /// Set if the boot matches and the host's claims about it do not.
    pub(crate) contradiction: Option<String>,
}

/// The reference a host matches, with its rows. Every reference that the boot matches must agree with the
/// claims: of two that state different things of one build the host must not be the one to choose.
pub(crate) fn recognise<'a>(
    references: &'a [HostReference],
    log: &EventLog<'_>,
    quoted: &QuotedPcrs,
    claims: &HostClaims,
) -> Result<(&'a HostReference, Vec<Row>), Unrecognised> {
    let mut matching: Option<(&HostReference, Vec<Row>)> = None;
    let mut closest: Option<Vec<Row>> = None;
    let faults = |rows: &[Row]| rows.iter().filter(|row| !row.ok).count();
    for reference in references {
        let rows = reference.judge(log, quoted);
        if faults(&rows) == 0 {
            if let Some(contradiction) = reference.contradicted_by(claims) {
                return Err(Unrecognised { rows, contradiction: Some(contradiction) });
            }
            matching = matching.or(Some((reference, rows)));
        } else if closest.as_ref().is_none_or(|best| faults(&rows) < faults(best)) {
            closest = Some(rows);
        }
    }
    matching.ok_or_else(|| {
        let unknown = |(pcr, value): (u8, &Digest)| {
            Row::refused(pcr, "-", "no host reference values are known", *value)
        };
        let rows = closest.unwrap_or_else(|| quoted.iter().map(unknown).collect());
        Unrecognised { rows, contradiction: None }
    })
}

fn is_separator(event: &Event<'_>) -> bool {
    event.kind == EventType::SEPARATOR && event.data == SEPARATOR && event.data_is_measured()
}

/// The boot manager's own announcements, letter by letter: a digest-backed event with free text could be
/// an application's image passed off as an action.
fn is_boot_action(event: &Event<'_>) -> bool {
    event.kind == EventType::EFI_ACTION && ACTIONS.contains(&event.data) && event.data_is_measured()
}

fn register(pcr: u8) -> &'static str {
    match pcr {
        0 => "firmware code",
        1 => "firmware configuration",
        2 => "option ROM code",
        3 => "option ROM configuration",
        4 => "boot manager and kernel",
        5 => "boot configuration",
        6 => "platform events",
        7 => "Secure Boot state",
        9 => "command line and initrd",
        _ => "register",
    }
}

/// Applications that firmware started.
const BOOT_PCR: u8 = 4;
/// What the kernel's EFI stub measures.
const STUB_PCR: u8 = 9;

/// TCG_PCClientTaggedEvent of the stub: tag, size, text (Linux `efi-stub-helper.c`).
const LOAD_OPTIONS_TAG: &[u8] = b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0";
const INITRD_TAG: &[u8] = b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_json_with_every_key_known() {
        let hex = "ab".repeat(32);
        let json = format!(
            r#"{{"name":"lab","svn":1,"profile":"sealed","monitor_svn":2,"kernel":"{hex}","initrd":"{hex}","cmdline":"{hex}","firmware":{{"0":"{hex}","7":"{hex}"}}}}"#
        );
        let reference: HostReference = serde_json::from_str(&json).unwrap();
        assert_eq!(reference.firmware.get(&7), Some(&Digest([0xab; 32])));
        assert_eq!(serde_json::to_string(&reference).unwrap(), json);
        for (from, to) in [
            (r#""svn":1"#, r#""svn":1,"extra":0"#),
            (r#""svn":1,"#, ""),
            (r#""profile":"sealed","#, ""),
            (r#""sealed""#, r#""Sealed""#),
            (r#""sealed""#, r#""any""#),
            (r#""monitor_svn":2,"#, ""),
            (r#""monitor_svn":2"#, r#""monitor_svn":-1"#),
            (r#""7":"ab"#, r#""7":"AB"#),
            (r#""7""#, r#""seven""#),
            (r#""7""#, r#""256""#),
        ] {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json);
            assert!(serde_json::from_str::<HostReference>(&changed).is_err(), "{changed}");
        }
    }
}
