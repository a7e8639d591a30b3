//! `coffer quote`: judges a TPM quote with the files that tpm2-tools write (SPEC 7.3, steps 4 to 7).
//!
//! What is printed was signed by the key given, for the nonce given; what could not be checked, because
//! the key came without its public area or the registers without their values, is said.

use coffer_attestation::quote::{BoundQuote, QuoteKey, QuotedRegisters, ReceivedQuote};
use coffer_attestation::tpm::attest::Attest;
use coffer_attestation::tpm::command::Hierarchy;
use coffer_attestation::tpm::hash::HashAlg;
use coffer_attestation::tpm::public::{Public, Scheme};
use coffer_attestation::{Reject, enroll, event_log};
use serde::Serialize;

use crate::args::{PrimaryOf, QuoteCommand, QuoteVerifyArgs};
use crate::error::Error;
use crate::key_file::{self, KeyFile};
use crate::{files, output, tpm2_files};

/// Most bytes of a quote, a signature, a key or a register file: the largest is a register file, 13 KiB.
const QUOTE_FILE_MAX: u64 = 64 << 10;
/// Most bytes of an event log (SPEC 4.5).
const EVENT_LOG_MAX: u64 = 512 << 10;

/// `coffer quote`.
pub fn run(command: QuoteCommand) -> Result<(), Error> {
    match command {
        QuoteCommand::Verify(args) => verify(&args),
    }
}

/// A quote that was accepted, for people and programs.
#[derive(Serialize)]
struct Verified {
    key_name: Option<String>,
    qualified_signer_checked: bool,
    attest: SignedJson,
    registers: Option<Vec<Register>>,
    event_log_replays: Option<bool>,
    not_checked: Vec<&'static str>,
    /// What holds and is still no ground for a verdict.
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct SignedJson {
    selected: Vec<String>,
    clock_ms: u64,
    reset_count: u32,
    restart_count: u32,
    clock_safe: bool,
    firmware_version: String,
    qualified_signer: String,
}

#[derive(Serialize)]
struct Register {
    bank: &'static str,
    pcr: u8,
    value: String,
}

fn verify(args: &QuoteVerifyArgs) -> Result<(), Error> {
    let nonce = nonce(&args.nonce)?;
    let attest = files::read(&args.attest, QUOTE_FILE_MAX, "a TPMS_ATTEST")?;
    let signature = files::read(&args.signature, QUOTE_FILE_MAX, "a signature")?;
    let key = key_file::read(&args.key)?;
    let parent = args.parent.as_deref().map(key_file::public).transpose()?;

    let scheme = key.scheme(args.scheme.as_deref())?;
    let quote_key = quote_key(&key, scheme, args.primary, parent.as_ref())?;
    let signature = tpm2_files::signature(&signature, scheme).map_err(refused)?;
    let bound = ReceivedQuote::new(&attest, &signature)
        .authenticate(&quote_key)
        .and_then(|quote| quote.bind(&nonce, Reject::NonceMismatch))
        .map_err(|reject| explained(reject, &attest, &nonce))?;
    let mut verified = Verified {
        key_name: key.public().map(|public| public.name().to_string()),
        qualified_signer_checked: parent.is_some() || args.primary.is_some(),
        attest: signed(&bound),
        registers: None,
        event_log_replays: None,
        not_checked: not_checked(&key, args),
        warnings: of_the_clock(&bound),
    };
    if let Some(path) = &args.pcrs {
        let selected: Vec<_> = bound.selected().collect();
        let file = files::read(path, QUOTE_FILE_MAX, "a register file")?;
        let values = tpm2_files::register_values(&file, &selected).map_err(refused)?;
        let registers =
            bound.registers(&values).map_err(|reject| explained(reject, &attest, &nonce))?;
        verified.warnings.extend(of_registers(&registers));
        if let Some(log) = &args.event_log {
            let log = files::read(log, EVENT_LOG_MAX, "an event log")?;
            replay(&log, &registers)?;
            verified.event_log_replays = Some(true);
        }
        verified.registers = Some(register_rows(&registers));
    }
    print(&verified, args.json)
}

/// The nonce as `tpm2_quote -q` takes it: hex, of up to 64 bytes.
fn nonce(hex_text: &str) -> Result<Vec<u8>, Error> {
    let nonce = hex::decode(hex_text).map_err(|_| {
        Error::usage("the nonce is not hex", "give the bytes that were passed to `tpm2_quote -q`")
    })?;
    if nonce.is_empty() || nonce.len() > 64 {
        return Err(Error::usage(
            format!("the nonce has {} bytes", nonce.len()),
            "give 1 to 64 bytes; a quote without a nonce proves nothing of now",
        ));
    }
    Ok(nonce)
}

/// With a public area the key has to be an attestation key: an unrestricted one signs what anybody makes up.
fn quote_key<'a>(
    key: &'a KeyFile,
    scheme: Scheme,
    primary: Option<PrimaryOf>,
    parent: Option<&Public>,
) -> Result<QuoteKey<'a>, Error> {
    let Some(public) = key.public() else {
        return match (primary, parent) {
            (None, None) => Ok(QuoteKey::dangerous_unnamed(key.key(), scheme)),
            _ => Err(Error::usage(
                "a PEM key has no name to check the signer by",
                "give the public area (`tpm2_readpublic -o ak.pub`), or leave out --primary and --parent",
            )),
        };
    };
    enroll::check_ak(public).map_err(refused)?;
    Ok(match (primary, parent) {
        (Some(primary), _) => QuoteKey::primary(public, primary.hierarchy()),
        // tpm2_createak makes the AK a child of the EK, a primary of the endorsement hierarchy.
        (None, Some(parent)) => {
            QuoteKey::child(public, &parent.name().qualified_in(Hierarchy::Endorsement))
        }
        (None, None) => QuoteKey::dangerous_unnamed(public.key(), scheme),
    })
}

fn not_checked(key: &KeyFile, args: &QuoteVerifyArgs) -> Vec<&'static str> {
    let mut gaps = Vec::new();
    if key.public().is_none() {
        gaps.push(
            "whether the key is a restricted key of a TPM: it was given without its public area",
        );
    }
    if args.primary.is_none() && args.parent.is_none() {
        gaps.push("the qualified signer: give --parent (the EK's public area) or --primary");
    }
    if args.pcrs.is_none() {
        gaps.push("register values: give --pcrs");
    }
    gaps
}

fn of_the_clock(bound: &BoundQuote) -> Vec<String> {
    let safe = bound.signed().clock_info.safe;
    let unsafe_clock = "the TPM was not shut down in order, so its clock may have stood still";
    if safe { Vec::new() } else { vec![unsafe_clock.to_owned()] }
}

/// Registers no verdict may rest on: of a weak bank, resettable by whoever likes, or never extended.
fn of_registers(registers: &QuotedRegisters) -> Vec<String> {
    let judged = registers
        .iter()
        .filter_map(|(bank, pcr, _)| Some((bank, pcr, registers.rely_on(bank, &[pcr]).err()?)));
    judged
        .map(|(bank, pcr, reject)| {
            format!("{bank}:{pcr}: {} ({})", reject.message(), reject.code())
        })
        .collect()
}

fn signed(bound: &BoundQuote) -> SignedJson {
    let signed = bound.signed();
    SignedJson {
        selected: bound.selected().map(|(bank, pcr)| format!("{bank}:{pcr}")).collect(),
        clock_ms: signed.clock_info.clock,
        reset_count: signed.clock_info.reset_count,
        restart_count: signed.clock_info.restart_count,
        clock_safe: signed.clock_info.safe,
        firmware_version: format!("{:016x}", signed.firmware_version),
        qualified_signer: signed.qualified_signer.to_string(),
    }
}

fn register_rows(registers: &QuotedRegisters) -> Vec<Register> {
    registers
        .iter()
        .map(|(bank, pcr, value)| Register { bank: bank.name(), pcr, value: value.to_string() })
        .collect()
}

/// Every bank quoted has to be what the log replays to, in each register quoted.
fn replay(log: &[u8], registers: &QuotedRegisters) -> Result<(), Error> {
    for bank in HashAlg::ALL {
        let quoted: Vec<_> =
            registers.iter().filter(|(b, ..)| *b == bank).map(|(_, pcr, v)| (pcr, *v)).collect();
        if quoted.is_empty() {
            continue;
        }
        let parsed = event_log::parse_bank(log, bank).map_err(|reject| Error::Rejected {
            what: "the event log",
            reject,
            detail: format!("bank {bank}"),
        })?;
        let replayed = parsed.registers(bank).ok_or_else(|| refused(Reject::BankNotAllowed))?;
        replayed.check(quoted).map_err(|(pcr, reject)| Error::Rejected {
            what: "the event log",
            reject,
            detail: format!("bank {bank}, pcr {pcr}"),
        })?;
    }
    Ok(())
}

fn print(verified: &Verified, json: bool) -> Result<(), Error> {
    if json {
        return output::json(verified);
    }
    let attest = &verified.attest;
    output::line("the quote is authentic and answers this nonce")?;
    output::pairs(&[
        ("key", verified.key_name.clone().unwrap_or_else(|| "name not known (PEM)".into())),
        ("registers", attest.selected.join(" ")),
        ("clock", format!("{} ms, safe: {}", attest.clock_ms, attest.clock_safe)),
        ("resets", format!("{}, restarts {}", attest.reset_count, attest.restart_count)),
        ("firmware", attest.firmware_version.clone()),
    ])?;
    if let Some(registers) = &verified.registers {
        let rows =
            registers.iter().map(|r| [r.bank.to_owned(), r.pcr.to_string(), r.value.clone()]);
        output::table(&["BANK", "PCR", "VALUE"], rows)?;
    }
    if verified.event_log_replays == Some(true) {
        output::line("the event log replays to these values")?;
    }
    for gap in &verified.not_checked {
        output::line(format_args!("not checked: {gap}"))?;
    }
    for warning in &verified.warnings {
        output::line(format_args!("warning: {warning}"))?;
    }
    Ok(())
}

/// A refusal with what the structure holds beside what was asked for.
fn explained(reject: Reject, attest: &[u8], nonce: &[u8]) -> Error {
    let found = match (reject, Attest::parse_quote(attest)) {
        (Reject::NonceMismatch, Ok((attest, _))) => {
            let found = hex::encode(&attest.extra_data);
            format!("extraData: found {found}, expected {}", hex::encode(nonce))
        }
        (Reject::PcrDigestMismatch, Ok((_, quote))) => {
            format!(
                "pcrDigest: {} was signed, not that of the values",
                hex::encode(&quote.pcr_digest)
            )
        }
        (Reject::SignerNameMismatch, Ok((attest, _))) => {
            format!("qualifiedSigner: found {}, not that of the key", attest.qualified_signer)
        }
        _ => String::new(),
    };
    Error::Rejected { what: "the quote", reject, detail: found }
}

fn refused(reject: Reject) -> Error {
    Error::Rejected { what: "the quote", reject, detail: String::new() }
}

impl PrimaryOf {
    fn hierarchy(self) -> Hierarchy {
        match self {
            Self::Endorsement => Hierarchy::Endorsement,
            Self::Owner => Hierarchy::Owner,
            Self::Platform => Hierarchy::Platform,
        }
    }
}
