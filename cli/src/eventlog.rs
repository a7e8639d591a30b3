//! `coffer eventlog`: shows, replays and explains event logs, ours or any PC's `binary_bios_measurements`; shows and
//! replays what systemd and the kernel measured after it.
//!
//! A log is a claim. What is printed says of each event whether its digest answers for its data; only a
//! quote makes any of it authentic, and `explain --pcr` is where register values come in. Text and verdict
//! are made of one [`Explanation`]. What a log says is hostile text: tables show it without control characters.

use coffer_attestation::Reject;
use coffer_attestation::event_log::{Booted, Explanation, explain as explain_log};
use coffer_attestation::host_reference::HostReference;
use coffer_attestation::report::Row;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::pcr::PCR_COUNT;
use serde::Serialize;

use crate::args::{EventLogCommand, EventLogExplainArgs, EventLogFileArgs};
use crate::error::Error;
use crate::userspace_log::{Event, UserspaceLog};
use crate::{files, output};

/// Most bytes of a file: a kernel's list of 100,000 files. Readers of firmware's logs take 512 KiB (SPEC 4.5).
const FILE_MAX: u64 = 16 << 20;

/// `coffer eventlog`.
pub fn run(command: EventLogCommand) -> Result<(), Error> {
    match command {
        EventLogCommand::Show(args) => show(&args),
        EventLogCommand::Replay(args) => replay(&args),
        EventLogCommand::Explain(args) => explain(&args),
    }
}

fn show(args: &EventLogFileArgs) -> Result<(), Error> {
    let bytes = file(args)?;
    if let Some(log) = UserspaceLog::read(&bytes) {
        return show_userspace(args, &log.map_err(|reject| refused(reject, ""))?);
    }
    let shown = explained(&bytes, args, None, &[])?;
    if args.json {
        return output::json(&shown);
    }
    head(&shown)?;
    let rows = shown.events.iter().map(|event| {
        let text = match (&event.text, event.malformed) {
            (Some(text), _) => clipped(text),
            (None, Some(reject)) => format!("does not parse ({})", reject.code()),
            (None, None) => event.subject.to_owned(),
        };
        [
            event.event.to_string(),
            event.pcr.map_or_else(|| "-".to_owned(), |pcr| pcr.to_string()),
            event.kind.clone(),
            event.digest.as_deref().map_or("-", short).to_owned(),
            event.data.to_owned(),
            text,
        ]
    });
    output::table(&["NO", "PCR", "EVENT", "DIGEST", "DATA", "WHAT"], rows)?;
    notes(&shown)
}

/// A list of systemd's or the kernel's.
#[derive(Serialize)]
struct Userspace {
    format: &'static str,
    bank: &'static str,
    events: Vec<Event>,
}

fn show_userspace(args: &EventLogFileArgs, log: &UserspaceLog<'_>) -> Result<(), Error> {
    let bank = bank(args)?.unwrap_or(HashAlg::Sha256);
    let shown = Userspace { format: log.format(), bank: bank.name(), events: log.events(bank) };
    if args.json {
        return output::json(&shown);
    }
    output::pairs(&[
        ("format", shown.format.to_owned()),
        ("bank", shown.bank.to_owned()),
        ("events", shown.events.len().to_string()),
    ])?;
    let rows = shown.events.iter().map(|event| {
        [
            event.event.to_string(),
            event.pcr.to_string(),
            event.kind.clone(),
            event.digest.as_deref().map_or("-", short).to_owned(),
            if event.measured { "measured" } else { "claimed" }.to_owned(),
            event.text.as_deref().map(clipped).unwrap_or_default(),
        ]
    });
    output::table(&["NO", "PCR", "EVENT", "DIGEST", "DATA", "WHAT"], rows)
}

/// One register as the log has it.
#[derive(Serialize)]
struct Replayed {
    bank: &'static str,
    registers: Vec<Register>,
}

#[derive(Serialize)]
struct Register {
    pcr: u8,
    value: String,
}

fn replay(args: &EventLogFileArgs) -> Result<(), Error> {
    let bytes = file(args)?;
    if let Some(log) = UserspaceLog::read(&bytes) {
        let (log, bank) =
            (log.map_err(|reject| refused(reject, ""))?, bank(args)?.unwrap_or(HashAlg::Sha256));
        let registers = log.replay(bank).map_err(|reject| refused(reject, ""))?;
        let register = |(pcr, value): (u8, Ha)| Register { pcr, value: value.to_string() };
        let registers = registers.into_iter().map(register).collect();
        print_replayed(args, &Replayed { bank: bank.name(), registers })?;
        if !args.json && log.runs_on() {
            output::line(
                "from zero: what firmware and loaders measured before is not in this list",
            )?;
        }
        return Ok(());
    }
    let shown = explained(&bytes, args, None, &[])?;
    // Registers of half a log would mislead.
    if let Some(reject) = shown.broken {
        return Err(refused(reject, &format!("after {} events", shown.events.len())));
    }
    let registers = shown
        .registers
        .iter()
        .filter_map(|row| Some(Register { pcr: row.pcr, value: row.digest?.to_string() }));
    print_replayed(args, &Replayed { bank: shown.bank, registers: registers.collect() })?;
    // What a verdict would refuse is said; programs have it from `show`.
    if args.json { Ok(()) } else { notes(&shown) }
}

fn print_replayed(args: &EventLogFileArgs, replayed: &Replayed) -> Result<(), Error> {
    if args.json {
        return output::json(replayed);
    }
    output::line(format_args!("bank {}", replayed.bank))?;
    let rows = replayed.registers.iter().map(|r| [r.pcr.to_string(), r.value.clone()]);
    output::table(&["PCR", "VALUE"], rows)
}

fn explain(args: &EventLogExplainArgs) -> Result<(), Error> {
    let file = &args.log;
    let bank = bank(file)?;
    let expected =
        args.expected.iter().map(|text| expected(text, bank)).collect::<Result<Vec<_>, _>>()?;
    let references =
        args.references.iter().map(|path| files::reference(path)).collect::<Result<Vec<_>, _>>()?;
    let quoted = (!expected.is_empty()).then_some(expected.as_slice());
    let bytes = self::file(file)?;
    if UserspaceLog::read(&bytes).is_some() {
        let hint = "`coffer eventlog show` and `replay` read lists of systemd and of the kernel";
        return Err(Error::usage(format!("`{}` is no firmware's log", file.file.display()), hint));
    }
    let explained = explained(&bytes, file, quoted, &references)?;
    if file.json {
        output::json(&explained)?;
    } else {
        print(&explained, quoted.is_some())?;
    }
    // Values or references were given to be held against, so a refusal is a failure. Only a reference makes it
    // the log of a host: guests and other firmware have logs too.
    let verdict = if references.is_empty() { &explained.replay } else { &explained.verdict };
    match verdict.reject {
        Some(reject) if quoted.is_some() || !references.is_empty() => {
            Err(refused(reject, &verdict.why))
        }
        _ => Ok(()),
    }
}

fn print(explained: &Explanation, quoted: bool) -> Result<(), Error> {
    head(explained)?;
    let secure_boot = match explained.secure_boot {
        Some(true) => "on",
        Some(false) => "off",
        None => "the log does not say",
    };
    output::pairs(&[("secure boot", secure_boot.to_owned())])?;
    if !explained.boot.is_empty() {
        output::line("\nwhat was booted")?;
        let rows = explained.boot.iter().map(booted);
        output::table(&["PCR", "EVENT", "AS", "ROLE", "DIGEST", "WHAT"], rows)?;
    }
    output::line("\nregisters")?;
    rows(&explained.registers, if quoted { ["QUOTED", "LOG"] } else { ["LOG", ""] })?;
    for judged in &explained.references {
        output::line(format_args!("\nreference `{}`", judged.reference))?;
        rows(&judged.rows, ["FOUND", "EXPECTED"])?;
    }
    notes(explained)?;
    let (replay, verdict) = (&explained.replay, &explained.verdict);
    if replay.reject.is_some() || verdict.reject.is_none() || !explained.references.is_empty() {
        output::untrusted(&format!("\nverdict: {}", verdict.why))?;
    } else {
        output::untrusted(&format!("\nverdict: {}", replay.why))?;
        output::untrusted(&format!("as the log of a host's firmware: {}", verdict.why))?;
    }
    if quoted {
        return Ok(());
    }
    output::line("nothing here is authentic until a quote covers it; give --pcr values of one")
}

fn booted(item: &Booted) -> [String; 6] {
    let what = item.text.as_ref().or(item.name.as_ref());
    [
        item.pcr.to_string(),
        item.event.to_string(),
        item.what.to_owned(),
        if item.role_backed { "backed" } else { "claimed" }.to_owned(),
        short(&item.digest).to_owned(),
        what.map(|what| clipped(what)).unwrap_or_default(),
    ]
}

fn rows(rows: &[Row], [found, expected]: [&str; 2]) -> Result<(), Error> {
    let text = |value: &Option<Ha>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
    let cells = rows.iter().map(|row| {
        let verdict = if row.ok { "" } else { "refused" };
        [
            row.pcr.to_string(),
            row.what.to_string(),
            text(&row.digest),
            text(&row.expected),
            verdict.into(),
        ]
    });
    output::table(&["PCR", "WHAT", found, expected, ""], cells)
}

fn head(shown: &Explanation) -> Result<(), Error> {
    output::pairs(&[
        ("format", shown.format.to_owned()),
        ("bank", format!("{} of {}", shown.bank, shown.banks.join(", "))),
        ("events", shown.events.len().to_string()),
    ])
}

fn notes(shown: &Explanation) -> Result<(), Error> {
    for note in &shown.notes {
        let event = note.event.map_or_else(String::new, |number| format!(", event {number}"));
        let refusal = note.refusal.map_or("tolerated", Reject::code);
        output::line(format_args!(
            "irregular: {}{event} ({refusal}): {}",
            note.quirk, note.why_safe
        ))?;
    }
    match shown.broken {
        Some(reject) => output::line(format_args!("the rest cannot be read ({})", reject.code())),
        None => Ok(()),
    }
}

fn file(args: &EventLogFileArgs) -> Result<Vec<u8>, Error> {
    files::read(&args.file, FILE_MAX, "an event log")
}

fn bank(args: &EventLogFileArgs) -> Result<Option<HashAlg>, Error> {
    args.bank.as_deref().map(parse_bank).transpose()
}

fn explained(
    bytes: &[u8],
    args: &EventLogFileArgs,
    quoted: Option<&[(u8, Ha)]>,
    references: &[HostReference],
) -> Result<Explanation, Error> {
    explain_log(bytes, bank(args)?, quoted, references).map_err(|reject| refused(reject, ""))
}

/// `PCR=HEX`, of the bank named, or else of the one whose values have so many digits.
fn expected(text: &str, bank: Option<HashAlg>) -> Result<(u8, Ha), Error> {
    let bad = || {
        let (of, digits) = match bank {
            Some(bank) => (format!(" of bank {bank}"), (bank.size() * 2).to_string()),
            None => (String::new(), "40, 64, 96 or 128".to_owned()),
        };
        let hint = format!("give PCR=HEX with {digits} hex digits, as in `--pcr 4=3cbf...`");
        Error::usage(format!("`{text}` is no register value{of}"), hint)
    };
    let (pcr, value) = text.split_once('=').ok_or_else(bad)?;
    let pcr = pcr.parse().ok().filter(|pcr| *pcr < PCR_COUNT).ok_or_else(bad)?;
    let value = hex::decode(value).map_err(|_| bad())?;
    let by_size = [HashAlg::Sha1, HashAlg::Sha256, HashAlg::Sha384, HashAlg::Sha512]
        .into_iter()
        .find(|bank| bank.size() == value.len());
    let value = bank.or(by_size).and_then(|bank| Ha::new(bank, &value)).ok_or_else(bad)?;
    Ok((pcr, value))
}

fn parse_bank(name: &str) -> Result<HashAlg, Error> {
    HashAlg::from_name(name).ok_or_else(|| {
        Error::usage(format!("`{name}` is no bank"), "one of sha1, sha256, sha384, sha512")
    })
}

/// The first digits of a digest; `--json` has all.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// A cell of a table; `--json` has the whole.
fn clipped(text: &str) -> String {
    const CELL: usize = 72;
    match text.char_indices().nth(CELL) {
        Some((at, _)) => format!("{}...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn refused(reject: Reject, detail: &str) -> Error {
    Error::Rejected { what: "the event log", reject, detail: detail.to_owned() }
}
