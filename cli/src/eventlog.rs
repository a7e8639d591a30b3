//! `coffer eventlog`: shows, replays and explains event logs, ours or any PC's `binary_bios_measurements`.
//!
//! A log is a claim. What is printed says of each event whether its digest answers for its data; only a
//! quote makes any of it authentic, and `explain --pcrs` is where the registers come in.

use coffer_attestation::Reject;
use coffer_attestation::event_log::body::Body;
use coffer_attestation::event_log::boot::{Boot, Item, Role};
use coffer_attestation::event_log::{self, Content, Event, ShownLog};
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use serde::Serialize;

use crate::args::{EventLogCommand, EventLogExplainArgs, EventLogFileArgs};
use crate::error::Error;
use crate::{files, output};

/// Most bytes of a log file: what the reader takes (SPEC 4.5).
const EVENT_LOG_MAX: u64 = 512 << 10;
/// Registers of a PC Client TPM.
const REGISTERS: u8 = 24;

/// `coffer eventlog`.
pub fn run(command: EventLogCommand) -> Result<(), Error> {
    match command {
        EventLogCommand::Show(args) => show(&args),
        EventLogCommand::Replay(args) => replay(&args),
        EventLogCommand::Explain(args) => explain(&args),
    }
}

#[derive(Serialize)]
struct LogJson {
    bank: &'static str,
    banks: Vec<&'static str>,
    startup_locality: u8,
    events: Vec<EventJson>,
    quirks: Vec<QuirkJson>,
    /// Reject code, if reading ended before the end.
    broken: Option<&'static str>,
    /// Reject code a verdict would meet, if any.
    refused_for_verdicts: Option<&'static str>,
}

#[derive(Serialize)]
struct EventJson {
    number: u32,
    pcr: Option<u8>,
    r#type: String,
    digest: String,
    /// `whole`, `part`, `respelt`, `claimed` or `unmeasured`: how far the digest answers for the data.
    backed: &'static str,
    text: String,
}

#[derive(Serialize)]
struct QuirkJson {
    event: Option<u32>,
    quirk: &'static str,
    why_safe: &'static str,
}

fn show(args: &EventLogFileArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, EVENT_LOG_MAX, "an event log")?;
    let log = read(&bytes, args.bank.as_deref())?;
    let shown = LogJson {
        bank: log.bank().name(),
        banks: log.banks().iter().map(|bank| bank.name()).collect(),
        startup_locality: log.startup_locality(),
        events: log.events().iter().map(|event| event_json(event, log.bank())).collect(),
        quirks: quirks(&log),
        broken: log.broken().map(Reject::code),
        refused_for_verdicts: event_log::parse_bank(&bytes, log.bank()).err().map(Reject::code),
    };
    if args.json {
        return output::json(&shown);
    }
    output::line(format_args!("bank {} of {}", shown.bank, shown.banks.join(", ")))?;
    let rows = shown.events.iter().map(|event| {
        let pcr = event.pcr.map_or_else(|| "-".to_owned(), |pcr| pcr.to_string());
        let digest = event.digest.get(..16).unwrap_or(&event.digest);
        [
            event.number.to_string(),
            pcr,
            event.r#type.clone(),
            digest.to_owned(),
            event.backed.to_owned(),
            clipped(&event.text),
        ]
    });
    output::table(&["NO", "PCR", "EVENT", "DIGEST", "DATA", "WHAT"], rows)?;
    for note in &shown.quirks {
        let event = note.event.map_or_else(String::new, |number| format!(", event {number}"));
        output::line(format_args!("irregular: {}{event}: {}", note.quirk, note.why_safe))?;
    }
    if let Some(code) = shown.broken {
        output::line(format_args!("the rest cannot be read ({code})"))?;
    }
    if let Some(code) = shown.refused_for_verdicts {
        output::line(format_args!("no verdict would rest on this log ({code})"))?;
    }
    Ok(())
}

#[derive(Serialize)]
struct ReplayJson {
    bank: &'static str,
    registers: Vec<RegisterJson>,
}

#[derive(Serialize)]
struct RegisterJson {
    pcr: u8,
    value: String,
    events: usize,
}

fn replay(args: &EventLogFileArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, EVENT_LOG_MAX, "an event log")?;
    let log = read(&bytes, args.bank.as_deref())?;
    whole(&log)?;
    let registers = log.registers(log.bank()).ok_or_else(|| refused(Reject::BankNotAllowed, ""))?;
    let rows = (0..REGISTERS)
        .filter_map(|pcr| {
            let events = log.of_pcr(pcr).count();
            let value = registers.get(pcr).filter(|_| events > 0)?.to_string();
            Some(RegisterJson { pcr, value, events })
        })
        .collect();
    let replayed = ReplayJson { bank: log.bank().name(), registers: rows };
    if args.json {
        return output::json(&replayed);
    }
    output::line(format_args!("bank {}", replayed.bank))?;
    let rows = replayed.registers.iter();
    let rows = rows.map(|r| [r.pcr.to_string(), r.events.to_string(), r.value.clone()]);
    output::table(&["PCR", "EVENTS", "VALUE"], rows)
}

#[derive(Serialize)]
struct ExplainJson {
    bank: &'static str,
    /// Register by register, if values were given.
    registers: Vec<CheckedJson>,
    /// True if every value given is what the log replays to.
    replays: Option<bool>,
    /// Reject code of the separator rules, with the register.
    separators: Option<String>,
    secure_boot: Option<bool>,
    applications: Vec<ItemJson>,
    uki_sections: Vec<ItemJson>,
    command_lines: Vec<ItemJson>,
    initrds: Vec<ItemJson>,
    files: Vec<ItemJson>,
}

#[derive(Serialize)]
struct CheckedJson {
    pcr: u8,
    found: String,
    expected: String,
    ok: bool,
}

#[derive(Serialize)]
struct ItemJson {
    pcr: u8,
    event: u32,
    digest: String,
    /// `backed` if what it is was measured too, `claimed` if only the log says so.
    role: &'static str,
    name: Option<String>,
    text: Option<String>,
}

fn explain(args: &EventLogExplainArgs) -> Result<(), Error> {
    let bytes = files::read(&args.file, EVENT_LOG_MAX, "an event log")?;
    let log = read(&bytes, args.bank.as_deref())?;
    whole(&log)?;
    let bank = log.bank();
    let expected = args.expected.iter().map(|text| expected(text, bank)).collect::<Result<Vec<_>, _>>()?;
    let replayed = log.registers(bank).ok_or_else(|| refused(Reject::BankNotAllowed, ""))?;
    let registers: Vec<CheckedJson> = expected
        .iter()
        .filter_map(|(pcr, expected)| {
            let found = replayed.get(*pcr)?;
            let (ok, found, expected) = (found == *expected, found.to_string(), expected.to_string());
            Some(CheckedJson { pcr: *pcr, found, expected, ok })
        })
        .collect();
    let Boot { applications, sections, command_lines, initrds, files } = Boot::extract(&log);
    let items = |items: Vec<Item>| items.into_iter().map(item_json).collect();
    let explained = ExplainJson {
        bank: bank.name(),
        replays: (!registers.is_empty()).then(|| registers.iter().all(|row| row.ok)),
        registers,
        separators: separators(&bytes, bank),
        secure_boot: log.claimed_secure_boot(),
        applications: items(applications),
        uki_sections: items(sections),
        command_lines: items(command_lines),
        initrds: items(initrds),
        files: items(files),
    };
    if args.json {
        output::json(&explained)?;
    } else {
        print(&explained)?;
    }
    match explained.registers.iter().find(|row| !row.ok) {
        Some(row) => Err(refused(
            Reject::ReplayMismatch,
            &format!("pcr {}: found {}, expected {}", row.pcr, row.found, row.expected),
        )),
        None => Ok(()),
    }
}

fn print(explained: &ExplainJson) -> Result<(), Error> {
    let secure_boot = match explained.secure_boot {
        Some(true) => "on",
        Some(false) => "off",
        None => "the log does not say",
    };
    output::pairs(&[
        ("bank", explained.bank.to_owned()),
        ("secure boot", secure_boot.to_owned()),
        ("separators", explained.separators.clone().unwrap_or_else(|| "one in each of PCR 0 to 7".into())),
    ])?;
    let groups = [
        ("applications firmware started", &explained.applications),
        ("sections of a UKI", &explained.uki_sections),
        ("command lines", &explained.command_lines),
        ("initrds", &explained.initrds),
        ("files GRUB read", &explained.files),
    ];
    for (title, items) in groups.into_iter().filter(|(_, items)| !items.is_empty()) {
        output::line(format_args!("\n{title}"))?;
        let rows = items.iter().map(|item| {
            let what = item.text.as_ref().or(item.name.as_ref()).cloned().unwrap_or_default();
            [item.pcr.to_string(), item.event.to_string(), item.digest.clone(), item.role.to_owned(), clipped(&what)]
        });
        output::table(&["PCR", "EVENT", "DIGEST", "ROLE", "WHAT"], rows)?;
    }
    match explained.replays {
        None => output::line("\nnothing here is authentic until a quote covers it; give --pcr values"),
        Some(true) => output::line("\nthe log replays to every value given"),
        Some(false) => output::line("\nthe log does not replay to the values given"),
    }
}

/// `PCR=HEX`, of the bank shown.
fn expected(text: &str, bank: HashAlg) -> Result<(u8, Ha), Error> {
    let bad = || {
        let hint = format!("give PCR=HEX with {} hex digits, as in `--pcr 4=3cbf…`", bank.size() * 2);
        Error::usage(format!("`{text}` is no register value of bank {bank}"), hint)
    };
    let (pcr, value) = text.split_once('=').ok_or_else(bad)?;
    let pcr = pcr.parse().ok().filter(|pcr| *pcr < REGISTERS).ok_or_else(bad)?;
    let value = hex::decode(value).ok().and_then(|value| Ha::new(bank, &value)).ok_or_else(bad)?;
    Ok((pcr, value))
}

fn read<'a>(bytes: &'a [u8], bank: Option<&str>) -> Result<ShownLog<'a>, Error> {
    let bank = bank.map(parse_bank).transpose()?;
    event_log::show(bytes, bank).map_err(|reject| refused(reject, ""))
}

/// Registers of half a log would mislead.
fn whole(log: &ShownLog<'_>) -> Result<(), Error> {
    match log.broken() {
        Some(reject) => Err(refused(reject, &format!("after {} events", log.events().len()))),
        None => Ok(()),
    }
}

fn parse_bank(name: &str) -> Result<HashAlg, Error> {
    HashAlg::from_name(name).ok_or_else(|| {
        Error::usage(format!("`{name}` is no bank"), "one of sha1, sha256, sha384, sha512")
    })
}

fn separators(bytes: &[u8], bank: HashAlg) -> Option<String> {
    let log = match event_log::parse_bank(bytes, bank) {
        Ok(log) => log,
        Err(reject) => return Some(format!("not judged ({})", reject.code())),
    };
    log.check_separators().err().map(|(pcr, reject)| format!("pcr {pcr}: {}", reject.code()))
}

fn quirks(log: &ShownLog<'_>) -> Vec<QuirkJson> {
    let json = |(event, quirk): &(Option<u32>, event_log::Quirk)| QuirkJson {
        event: *event,
        quirk: quirk.code(),
        why_safe: quirk.why_safe(),
    };
    log.quirks().iter().map(json).collect()
}

fn event_json(event: &Event<'_>, bank: HashAlg) -> EventJson {
    let backed = match event.content(bank) {
        Content::Whole(_) => "whole",
        Content::Part(_) => "part",
        Content::Respelt(_) => "respelt",
        Content::Claimed(_) => "claimed",
        Content::Unmeasured => "unmeasured",
    };
    EventJson {
        number: event.number,
        pcr: Some(event.pcr).filter(|pcr| *pcr != Event::NO_PCR),
        r#type: event.kind.to_string(),
        digest: event.digest.to_string(),
        backed,
        text: body_text(event),
    }
}

fn body_text(event: &Event<'_>) -> String {
    match Body::read(event) {
        Ok(body) => body.to_string(),
        Err(reject) => format!("data does not parse ({})", reject.code()),
    }
}

fn item_json(item: Item) -> ItemJson {
    ItemJson {
        pcr: item.pcr,
        event: item.event,
        digest: item.digest.to_string(),
        role: match item.role {
            Role::Backed => "backed",
            Role::Claimed => "claimed",
        },
        name: item.name,
        text: item.text,
    }
}

/// A cell of a table; `--json` has the whole.
fn clipped(text: &str) -> String {
    const CELL: usize = 72;
    match text.char_indices().nth(CELL) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn refused(reject: Reject, detail: &str) -> Error {
    Error::Rejected { what: "the event log", reject, detail: detail.to_owned() }
}
