//! One structure that says what a log tells, what of it is backed, and what a verdict makes of it.
//!
//! The verdict here comes from the functions that appraisal asks, over the rows that are shown; no text is
//! made apart from them. The values it is given are whatever the caller holds: signed or not is not its
//! matter, and it is no [`crate::appraisal::Appraisal`].

use serde::Serialize;

use super::body::{Body, Variable};
use super::boot::Boot;
use super::secure_boot::SecureBoot;
use super::{Content, Event, Format, Log, Quirk, parse_bank, show, subject};
use crate::Reject;
use crate::host_reference::HostReference;
use crate::report::Row;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::pcr::PCR_COUNT;

/// A log explained.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// `crypto-agile` or `tpm-1.2`.
    pub format: &'static str,
    /// The bank that digests below are of.
    pub bank: &'static str,
    /// Every bank of the log that this build computes.
    pub banks: Vec<&'static str>,
    /// What is irregular, and why the log is shown all the same.
    pub notes: Vec<Note>,
    /// Why reading ended before the end.
    pub broken: Option<Reject>,
    /// The events.
    pub events: Vec<Found>,
    /// The registers: `digest` is what is quoted, or what the log replays to if nothing is; `expected` what
    /// the log replays to, if something is quoted.
    pub registers: Vec<Row>,
    /// Secure Boot, by backed events of PCR 7; none if the log does not say, or lies.
    pub secure_boot: Option<bool>,
    /// What was booted.
    pub boot: Vec<Booted>,
    /// The rows of each reference.
    pub references: Vec<Judged>,
    /// Whether it is read by the strict reader and leads to the quoted values.
    pub replay: Verdict,
    /// What a verdict makes of it as the log of a host's firmware: [`Explanation::replay`], then the rules for such
    /// logs, then the references.
    pub verdict: Verdict,
}

/// An irregularity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Note {
    /// Number of the event, if it is one's.
    pub event: Option<u32>,
    /// What.
    pub quirk: Quirk,
    /// The code a verdict refuses with; none if it does not.
    pub refusal: Option<Reject>,
    /// Why it is safe to read on.
    pub why_safe: &'static str,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Number, from 0.
    pub event: u32,
    /// Register; none for an EV_NO_ACTION that names none there is.
    pub pcr: Option<u8>,
    /// Type; always claimed.
    pub kind: String,
    /// Digest, hex; none where nothing was measured.
    pub digest: Option<String>,
    /// `whole`, `part`, `respelt`: the digest is of the data; `claimed`: of something else; `unmeasured`.
    pub data: &'static str,
    /// What the digest is of, by the type.
    pub subject: &'static str,
    /// The data in a few words, if it has a structure.
    pub text: Option<String>,
    /// Set if the data has not the structure of its type.
    pub malformed: Option<Reject>,
}

/// Something that was booted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Booted {
    /// `application`, `section`, `command-line`, `initrd` or `file`.
    pub what: &'static str,
    /// Register.
    pub pcr: u8,
    /// Number of the event.
    pub event: u32,
    /// Digest, hex.
    pub digest: String,
    /// True if what it is was measured; false if only claimed.
    pub role_backed: bool,
    /// Name or path.
    pub name: Option<String>,
    /// The text itself, if it was measured.
    pub text: Option<String>,
}

/// A log against a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Name of the reference.
    pub reference: String,
    /// What was measured and expected.
    pub rows: Vec<Row>,
}

/// What a verdict makes of a log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The first refusal; none if there is nothing to refuse.
    pub reject: Option<Reject>,
    /// The register at fault, if it is one's.
    pub pcr: Option<u8>,
    /// One line: what was found and expected.
    pub why: String,
}

/// Explains a log, in the bank of the quoted values, or the one asked for, or its best. Fails only if the
/// bytes are no log or the bank is not there.
pub fn explain(
    bytes: &[u8],
    bank: Option<HashAlg>,
    quoted: Option<&[(u8, Ha)]>,
    references: &[HostReference],
) -> Result<Explanation, Reject> {
    let quoted_bank = quoted.and_then(|values| values.first()).map(|(_, value)| value.hash());
    let log = show(bytes, quoted_bank.or(bank))?;
    let registers = registers(&log, quoted);
    let judged = judge(bytes, &log, quoted, references);
    let note = |(event, quirk): &(Option<u32>, Quirk)| Note {
        event: *event,
        quirk: *quirk,
        refusal: quirk.refusal(),
        why_safe: quirk.why_safe(),
    };
    Ok(Explanation {
        format: match log.format() {
            Format::Legacy => "tpm-1.2",
            Format::CryptoAgile => "crypto-agile",
        },
        bank: log.bank().name(),
        banks: log.banks().iter().map(|bank| bank.name()).collect(),
        notes: log.quirks().iter().map(note).collect(),
        broken: log.broken(),
        events: log.events().iter().map(|event| found(event, log.bank())).collect(),
        secure_boot: SecureBoot::unauthenticated(&log).ok().and_then(|state| state.enabled()),
        boot: booted(&Boot::extract(&log)),
        replay: replay(bytes, &log, &registers).err().unwrap_or_else(Verdict::nothing),
        verdict: verdict(bytes, &log, &registers, &judged),
        registers,
        references: judged,
    })
}

/// Every register the log extends or the quote covers.
fn registers(log: &Log<'_>, quoted: Option<&[(u8, Ha)]>) -> Vec<Row> {
    let Some(replayed) = log.registers(log.bank()) else { return vec![] };
    let mut rows = Vec::new();
    for pcr in 0..PCR_COUNT {
        let Some(replayed) = replayed.get(pcr) else { continue };
        let value = quoted.and_then(|values| values.iter().find(|(index, _)| *index == pcr));
        match value {
            Some((_, value)) => rows.push(Row::judged(pcr, "-", "register", *value, replayed)),
            None if log.of_pcr(pcr).next().is_some() => {
                rows.push(Row::noted(pcr, "-", "register, not quoted", replayed));
            }
            None => {}
        }
    }
    rows
}

fn judge(
    bytes: &[u8],
    log: &Log<'_>,
    quoted: Option<&[(u8, Ha)]>,
    references: &[HostReference],
) -> Vec<Judged> {
    let Ok(strict) = parse_bank(bytes, log.bank()) else { return vec![] };
    let replayed = |pcr| Some((pcr, strict.registers(strict.bank())?.get(pcr)?));
    let values: Vec<(u8, Ha)> = match quoted {
        Some(values) => values.to_vec(),
        None => (0..PCR_COUNT).filter_map(replayed).collect(),
    };
    let judged = |reference: &HostReference| Judged {
        reference: reference.name.clone(),
        rows: reference.judge_values(&strict, &values),
    };
    references.iter().map(judged).collect()
}

impl Verdict {
    fn nothing() -> Self {
        Self { reject: None, pcr: None, why: "nothing to refuse".into() }
    }

    fn refuse(reject: Reject, pcr: Option<u8>, why: String) -> Self {
        Self { reject: Some(reject), pcr, why }
    }
}

/// What is asked of any log.
fn replay(bytes: &[u8], log: &Log<'_>, registers: &[Row]) -> Result<(), Verdict> {
    if let Err(reject) = parse_bank(bytes, log.bank()) {
        return Err(Verdict::refuse(reject, None, reject.message().into()));
    }
    match registers.iter().find(|row| !row.ok) {
        Some(row) => Err(Verdict::refuse(Reject::ReplayMismatch, Some(row.pcr), row.to_string())),
        None => Ok(()),
    }
}

/// The checks of SPEC 7.3, steps 12 and 13, in their order.
fn verdict(bytes: &[u8], log: &Log<'_>, registers: &[Row], judged: &[Judged]) -> Verdict {
    let refuse = Verdict::refuse;
    if let Err(refusal) = replay(bytes, log, registers) {
        return refusal;
    }
    // In the order of `check_firmware`, which has the last word: this one can say which event it is.
    if log.separators().is_ok()
        && let Err((event, reject)) = log.data()
    {
        let hash = log.bank().digest(&[event.data]);
        let said = match event.digest == hash {
            true => "the data is not what its type says".to_owned(),
            false => format!("the digest is {}, the data hashes to {hash}", event.digest),
        };
        let why = format!("{}: event {}, {}: {said}", reject.message(), event.number, event.kind);
        return refuse(reject, Some(event.pcr), why);
    }
    if let Err((pcr, reject)) = log.check_firmware() {
        return refuse(reject, Some(pcr), format!("pcr {pcr}: {}", reject.message()));
    }
    let faults = |judged: &Judged| judged.rows.iter().filter(|row| !row.ok).count();
    let closest = judged.iter().min_by_key(|judged| faults(judged));
    if let Some(row) = closest.and_then(|judged| judged.rows.iter().find(|row| !row.ok)) {
        return refuse(Reject::HostNotRecognised, Some(row.pcr), row.to_string());
    }
    Verdict::nothing()
}

fn found(event: &Event<'_>, bank: HashAlg) -> Found {
    let data = match event.content(bank) {
        Content::Whole(_) => "whole",
        Content::Part(_) => "part",
        Content::Respelt(_) => "respelt",
        Content::Claimed(_) => "claimed",
        Content::Unmeasured => "unmeasured",
    };
    let body = Body::read(event);
    Found {
        event: event.number,
        pcr: (event.pcr != Event::NO_PCR).then_some(event.pcr),
        kind: event.kind.to_string(),
        digest: event.is_measured().then(|| event.digest.to_string()),
        data,
        subject: subject(event.kind).text(),
        malformed: body.as_ref().err().copied(),
        text: body.ok().and_then(|body| describe(&body)),
    }
}

/// The data in a few words.
fn describe(body: &Body<'_>) -> Option<String> {
    Some(match body {
        Body::Variable(variable) => variable_text(variable),
        Body::Image(image) => image.path.to_string(),
        Body::Gpt(gpt) => format!("disk {}, {} partitions", gpt.disk, gpt.partitions.len()),
        Body::Firmware(blob) => format!("{} bytes at {:#x}", blob.length, blob.base),
        Body::Tables(tables) => format!("{} tables", tables.tables.len()),
        Body::Tagged(tagged) => match super::body::text(tagged.data) {
            Some(text) => format!("{:#x}: {text}", tagged.tag),
            None => format!("{:#x}", tagged.tag),
        },
        Body::Separator(separator) => separator.text().into(),
        Body::StartupLocality(locality) => format!("startup locality {locality}"),
        Body::Text(text) => text.clone(),
        Body::Opaque(_) => return None,
    })
}

fn variable_text(variable: &Variable<'_>) -> String {
    let size = variable.data.len();
    match variable.data {
        [value] => format!("{} = {value}", variable.name),
        _ => format!("{}, {size} bytes", variable.name),
    }
}

fn booted(boot: &Boot) -> Vec<Booted> {
    let lists = [
        ("application", &boot.applications),
        ("section", &boot.sections),
        ("command-line", &boot.command_lines),
        ("initrd", &boot.initrds),
        ("file", &boot.files),
    ];
    let items =
        lists.into_iter().flat_map(|(what, list)| list.iter().map(move |item| (what, item)));
    let booted = |(what, item): (&'static str, &super::boot::Item)| Booted {
        what,
        pcr: item.pcr,
        event: item.event,
        digest: item.digest.to_string(),
        role_backed: item.role == super::boot::Role::Backed,
        name: item.name.clone(),
        text: item.text.clone(),
    };
    items.map(booted).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{EventType, LogBuilder, SEPARATOR, parse};
    use super::*;
    use crate::Digest;
    use crate::host_reference::HostProfile;

    const KERNEL: Digest = Digest([1; 32]);
    const INITRD: Digest = Digest([2; 32]);
    const CMDLINE: Digest = Digest([3; 32]);

    /// Firmware, a kernel, and what its stub measured.
    fn boot() -> LogBuilder {
        let separator = Digest::of(&[SEPARATOR]);
        (0..8)
            .fold(LogBuilder::new(), |log, pcr| {
                log.event(pcr, EventType::SEPARATOR, separator, SEPARATOR)
            })
            .event(4, EventType::EFI_BOOT_SERVICES_APPLICATION, KERNEL, &[0; 32])
            .event(
                9,
                EventType::EVENT_TAG,
                CMDLINE,
                b"\xed\x22\x3b\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0",
            )
            .event(9, EventType::EVENT_TAG, INITRD, b"\xec\x22\x3b\x8f\x0d\0\0\0Linux initrd\0")
    }

    fn reference(name: &str, kernel: Digest, log: &[u8]) -> HostReference {
        let firmware: BTreeMap<u8, Digest> =
            HostReference::firmware_of(&parse(log).unwrap()).unwrap();
        HostReference {
            name: name.into(),
            svn: 1,
            profile: HostProfile::Sealed,
            monitor_svn: 1,
            kernel,
            initrd: INITRD,
            cmdline: CMDLINE,
            firmware,
        }
    }

    #[test]
    fn shows_the_registers_that_are_extended_or_quoted() {
        let log = boot().finish();
        let pcrs = |quoted: Option<&[(u8, Ha)]>| -> Vec<u8> {
            explain(&log, None, quoted, &[]).unwrap().registers.iter().map(|row| row.pcr).collect()
        };
        assert_eq!(pcrs(None), [0, 1, 2, 3, 4, 5, 6, 7, 9]);
        assert_eq!(pcrs(Some(&[(8, HashAlg::Sha256.zero())])), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_verdict_is_by_the_reference_that_comes_closest() {
        let log = boot().finish();
        let known = reference("known", KERNEL, &log);
        let other = reference("other", Digest([9; 32]), &log);
        let judge = |references: &[HostReference]| {
            let explained = explain(&log, None, None, references).unwrap();
            let fits = |judged: &Judged| judged.rows.iter().all(|row| row.ok);
            let fitting: Vec<bool> = explained.references.iter().map(fits).collect();
            (explained.verdict.reject, explained.verdict.pcr, fitting)
        };
        let refused = (Some(Reject::HostNotRecognised), Some(4));
        assert_eq!(judge(std::slice::from_ref(&known)), (None, None, vec![true]));
        assert_eq!(judge(&[other.clone(), known]), (None, None, vec![false, true]));
        assert_eq!(judge(&[other]), (refused.0, refused.1, vec![false]));
        assert_eq!(judge(&[]), (None, None, vec![]));
    }

    #[test]
    fn what_appraisal_refuses_is_refused_here() {
        let variable = super::super::body::tests::variable("SecureBoot", &[1]);
        let kind = EventType::EFI_VARIABLE_DRIVER_CONFIG;
        let config = |log: LogBuilder, digest, data: &[u8]| log.event(7, kind, digest, data);
        let measured = Digest::of(&[&variable]);
        let rest = boot().finish();
        let with = |first: LogBuilder| [first.finish(), rest[65..].to_vec()].concat();
        let judge = |log: &[u8]| {
            let verdict = explain(log, None, None, &[]).unwrap().verdict;
            let strict = parse(log).unwrap().check_firmware();
            assert_eq!(verdict.pcr.zip(verdict.reject), strict.err());
            (verdict.reject, verdict.why)
        };
        let once = config(LogBuilder::new(), measured, &variable);
        assert_eq!(judge(&with(once)).0, None);
        let twice = config(config(LogBuilder::new(), measured, &variable), measured, &variable);
        assert_eq!(judge(&with(twice)).0, Some(Reject::Malformed));
        let (reject, why) = judge(&with(config(LogBuilder::new(), KERNEL, &variable)));
        assert_eq!(reject, Some(Reject::EventDataMismatch), "(F5)");
        assert!(why.contains("event 0") && why.contains(&measured.to_string()), "{why}");
        let (reject, _) = judge(&LogBuilder::new().finish());
        assert_eq!(reject, Some(Reject::SeparatorInvalid));
    }

    #[test]
    fn an_event_of_no_register_is_shown_with_none() {
        let nowhere = boot().event(24, EventType::NO_ACTION, Digest::ZERO, b"x").finish();
        let explained = explain(&nowhere, None, None, &[]).unwrap();
        let pcrs: Vec<Option<u8>> = explained.events.iter().map(|event| event.pcr).collect();
        assert_eq!(pcrs[8..], [Some(4), Some(9), Some(9), None]);
    }

    #[test]
    fn a_role_is_backed_where_it_was_measured() {
        let name: Vec<u8> = ".linux\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let log = boot()
            .event(11, EventType::IPL, Digest::of(&[b".linux\0"]), &name)
            .event(11, EventType::IPL, KERNEL, &name)
            .finish();
        let explained = explain(&log, None, None, &[]).unwrap();
        let roles: Vec<_> = explained.boot.iter().map(|b| (b.what, b.role_backed)).collect();
        let claimed = [("application", false), ("command-line", false), ("initrd", false)];
        assert_eq!(roles[0], claimed[0]);
        assert_eq!(roles[1], ("section", true));
        assert_eq!(roles[2..], claimed[1..]);
    }
}
