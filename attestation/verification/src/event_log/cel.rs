//! What userspace measured: TCG Canonical Event Log 1.0 in JSON, as systemd writes it to
//! `/run/log/systemd/tpm2-measure.log`: a JSON text sequence (RFC 7464), a list, or one record a line.
//!
//! As with firmware's log, what replays is authentic in order, register and digests; a record's text only
//! where it hashes to the digest. Firmware's registers, IMA's and the resettable ones are refused here:
//! nobody in userspace has business there, and a log must not be able to repair another.

use super::json::Json;
use super::replay::Registers;
use crate::Reject;
use crate::evidence::EVENT_LOG_MAX;
use crate::tpm::hash::{Ha, HashAlg};

/// Most records: a boot of systemd writes about 20; portable services and credentials a few more each.
const RECORDS_MAX: usize = 4096;
/// Most digests of a record: banks a TPM can list.
const DIGESTS_MAX: usize = 16;
/// Registers of userspace: loader (8, 9), UKI and phases (11), configuration (12), extensions (13),
/// MOK (14), machine (15). UAPI.7, Linux TPM PCR registry.
const REGISTERS: [u8; 7] = [8, 9, 11, 12, 13, 14, 15];

/// A log, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CelLog {
    records: Vec<Record>,
}

/// One record that extends a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Register.
    pub pcr: u8,
    /// Digests of the banks this build computes, one each.
    pub digests: Vec<Ha>,
    /// What kind of content it claims, such as `systemd`.
    pub content_type: String,
    /// What systemd calls the event, such as `phase`; claimed.
    pub event_type: Option<String>,
    /// The text that systemd says it measured; claimed, unless [`Self::text_is_measured`].
    pub text: Option<String>,
}

impl Record {
    /// The digest of a bank.
    pub fn digest_in(&self, bank: HashAlg) -> Option<Ha> {
        self.digests.iter().find(|digest| digest.hash() == bank).copied()
    }

    /// True if the text hashes to the digest of this bank. Names of volumes stand beside a keyed digest.
    pub fn text_is_measured(&self, bank: HashAlg) -> bool {
        let digest = self.digest_in(bank);
        self.text.as_ref().is_some_and(|text| digest == Some(bank.digest(&[text.as_bytes()])))
    }
}

impl CelLog {
    /// Reads a whole log.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        if bytes.len() > EVENT_LOG_MAX {
            return Err(Reject::LimitExceeded);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Reject::Malformed)?;
        let values = values(text)?;
        let mut records = Vec::new();
        for (place, value) in (0u64..).zip(&values) {
            // The number is optional in what systemd writes; where it stands it counts from 0.
            if value.get("recnum").is_some_and(|number| number.integer() != Some(place)) {
                return Err(Reject::Malformed);
            }
            records.extend(record(value)?);
        }
        Ok(Self { records })
    }

    /// The records that extend registers, in order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Extends registers that firmware's log left. A record without a digest in their bank is refused: it
    /// was measured, and nobody could say to what.
    pub fn replay(&self, registers: &mut Registers) -> Result<(), Reject> {
        for record in &self.records {
            let digest = record.digest_in(registers.bank()).ok_or(Reject::BankNotAllowed)?;
            registers.extend(record.pcr, &digest)?;
        }
        Ok(())
    }
}

/// The values of a text sequence, a list, or lines.
fn values(text: &str) -> Result<Vec<Json>, Reject> {
    if text.starts_with('[') {
        let Json::List(list) = Json::read(text)? else { return Err(Reject::Malformed) };
        return if list.len() > RECORDS_MAX { Err(Reject::LimitExceeded) } else { Ok(list) };
    }
    let (separator, body) = match text.strip_prefix('\u{1e}') {
        Some(body) => ('\u{1e}', body),
        None => ('\n', text.strip_suffix('\n').unwrap_or(text)),
    };
    if body.is_empty() {
        return if separator == '\n' { Ok(vec![]) } else { Err(Reject::Malformed) };
    }
    let mut values = Vec::new();
    for part in body.split(separator) {
        if values.len() == RECORDS_MAX {
            return Err(Reject::LimitExceeded);
        }
        values.push(Json::read(part)?);
    }
    Ok(values)
}

/// A record that extends a register; none for one that extends an NV index.
fn record(value: &Json) -> Result<Option<Record>, Reject> {
    let pcr = match (value.get("pcr"), value.get("nv_index")) {
        (Some(pcr), None) => pcr.integer().and_then(|pcr| u8::try_from(pcr).ok()),
        // systemd's NvPCRs are not quoted; their anchors are, in PCR 9.
        (None, Some(_)) => return Ok(None),
        _ => None,
    };
    let pcr = pcr.ok_or(Reject::Malformed)?;
    if !REGISTERS.contains(&pcr) {
        return Err(Reject::PcrOutOfRange);
    }
    let content_type = value.get("content_type").and_then(Json::text).ok_or(Reject::Malformed)?;
    let content = value.get("content").ok_or(Reject::Malformed)?;
    let of_content = |key| content.get(key).and_then(Json::text).map(str::to_owned);
    Ok(Some(Record {
        pcr,
        digests: digests(value)?,
        content_type: content_type.to_owned(),
        event_type: of_content("eventType"),
        text: of_content("string"),
    }))
}

fn digests(value: &Json) -> Result<Vec<Ha>, Reject> {
    let list = value.get("digests").and_then(Json::list).ok_or(Reject::Malformed)?;
    if list.len() > DIGESTS_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut digests: Vec<Ha> = Vec::new();
    for entry in list {
        let field = |key| entry.get(key).and_then(Json::text).ok_or(Reject::Malformed);
        let bytes = hex::decode(field("digest")?).map_err(|_| Reject::Malformed)?;
        // Banks nothing here computes are left out.
        let Some(hash) = HashAlg::from_name(field("hashAlg")?) else { continue };
        let digest = Ha::new(hash, &bytes).ok_or(Reject::Malformed)?;
        if digests.iter().any(|seen| seen.hash() == hash) {
            return Err(Reject::DuplicateBank);
        }
        digests.push(digest);
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(pcr: u8, text: &str) -> String {
        let digest = HashAlg::Sha256.digest(&[text.as_bytes()]);
        format!(
            r#"{{"pcr":{pcr},"digests":[{{"hashAlg":"sha256","digest":"{digest}"}}],"content_type":"systemd","content":{{"eventType":"phase","string":"{text}","bootId":"b","timestamp":1}}}}"#
        )
    }

    fn sequence(records: &[String]) -> String {
        records.iter().map(|record| format!("\u{1e}{record}\n")).collect()
    }

    #[test]
    fn replays_after_firmware() {
        let records = [record(11, "enter-initrd"), record(15, "machine-id:x"), record(11, "ready")];
        let log = CelLog::parse(sequence(&records).as_bytes()).unwrap();
        assert!(log.records().iter().all(|record| record.text_is_measured(HashAlg::Sha256)));
        let mut registers = Registers::reset(HashAlg::Sha256, 0);
        let section = HashAlg::Sha256.digest(&[b"a UKI section"]);
        registers.extend(11, &section).unwrap();
        let extended = |value: Ha, text: &str| {
            value.extend(HashAlg::Sha256.digest(&[text.as_bytes()]).as_bytes())
        };
        let expected = extended(extended(registers.get(11).unwrap(), "enter-initrd"), "ready");
        log.replay(&mut registers).unwrap();
        assert_eq!(registers.check([(11, expected)]), Ok(()));
        let other = extended(expected, "leave-initrd");
        let mismatch = registers.check([(11, other)]);
        assert_eq!(mismatch, Err((11, Reject::ReplayMismatch)), "(F30)");
    }

    #[test]
    fn reads_sequences_lists_and_lines() {
        let records = [record(11, "enter-initrd"), record(12, "x")];
        let whole = CelLog::parse(sequence(&records).as_bytes()).unwrap();
        assert_eq!(CelLog::parse(records.join("\n").as_bytes()), Ok(whole.clone()));
        assert_eq!(CelLog::parse(format!("[{}]", records.join(",")).as_bytes()), Ok(whole));
        assert_eq!(CelLog::parse(b"").unwrap().records(), []);
    }

    #[test]
    fn refuses_every_near_miss() {
        let good = record(11, "ready");
        let check = |what: &str, from: &str, to: &str, reject: Reject| {
            let changed = good.replacen(from, to, 1);
            assert_ne!(changed, good, "{what}");
            assert_eq!(CelLog::parse(changed.as_bytes()), Err(reject), "{what}");
        };
        for pcr in ["0", "7", "10", "16", "23", "24"] {
            check("register", r#""pcr":11"#, &format!(r#""pcr":{pcr}"#), Reject::PcrOutOfRange);
        }
        check("register 256", r#""pcr":11"#, r#""pcr":267"#, Reject::Malformed);
        check("register as text", r#""pcr":11"#, r#""pcr":"11""#, Reject::Malformed);
        check("no register", r#""pcr":11,"#, "", Reject::Malformed);
        check("two registers", r#""pcr":11"#, r#""pcr":11,"nv_index":1"#, Reject::Malformed);
        check("a key twice", r#""pcr":11"#, r#""pcr":11,"pcr":11"#, Reject::Malformed);
        check("a record out of order", r#""pcr":11"#, r#""recnum":1,"pcr":11"#, Reject::Malformed);
        check("short digest", r#""digest":"b2"#, r#""digest":""#, Reject::Malformed);
        check("digest of another size", "sha256", "sha384", Reject::Malformed);
        check("no digests", r#""digests""#, r#""digest""#, Reject::Malformed);
        check("no content", r#""content":"#, r#""contents":"#, Reject::Malformed);
        let twice = r#"[{"hashAlg":"sha1","digest":"0000000000000000000000000000000000000000"},"#;
        let twice = format!("{twice}{}", &twice[1..]);
        check("a bank twice", "[", &twice, Reject::DuplicateBank);
        check("bytes after", "}}", "}}{}", Reject::TrailingData);
        assert_eq!(CelLog::parse(&[0x1e]), Err(Reject::Malformed), "an empty record");
        assert_eq!(CelLog::parse(&vec![b' '; EVENT_LOG_MAX + 1]), Err(Reject::LimitExceeded));
    }

    #[test]
    fn limits_admit_the_last_that_is_within() {
        let limit = Err(Reject::LimitExceeded);
        let parse = |text: &str| CelLog::parse(text.as_bytes()).map(|log| log.records.len());
        let nv = |count: usize| vec![r#"{"nv_index":1}"#.to_owned(); count];
        let (most, more) = (nv(RECORDS_MAX), nv(RECORDS_MAX + 1));
        assert_eq!(parse(&sequence(&most)), Ok(0));
        assert_eq!(parse(&sequence(&more)), limit);
        assert_eq!(parse(&format!("[{}]", most.join(","))), Ok(0));
        assert_eq!(parse(&format!("[{}]", more.join(","))), limit);
        let banks = |count: usize| {
            let unknown = r#"{"hashAlg":"sm3_256","digest":""},"#.repeat(count - 1);
            parse(&record(11, "ready").replacen('[', &format!("[{unknown}"), 1))
        };
        assert_eq!(banks(DIGESTS_MAX), Ok(1));
        assert_eq!(banks(DIGESTS_MAX + 1), limit);
        let padded = |size: usize| {
            let record = record(11, "ready");
            parse(&(" ".repeat(size - record.len()) + &record))
        };
        assert_eq!(padded(EVENT_LOG_MAX), Ok(1));
        assert_eq!(padded(EVENT_LOG_MAX + 1), limit);
    }

    #[test]
    fn a_record_has_one_digest_of_each_bank() {
        let sha384 = HashAlg::Sha384.digest(&[b"ready"]);
        let both = format!(r#"[{{"hashAlg":"sha384","digest":"{sha384}"}},"#);
        let log = CelLog::parse(record(11, "ready").replacen('[', &both, 1).as_bytes()).unwrap();
        assert_eq!(log.records()[0].digest_in(HashAlg::Sha384), Some(sha384));
        assert!(log.records()[0].text_is_measured(HashAlg::Sha256));
    }

    #[test]
    fn a_text_beside_another_digest_is_not_measured() {
        let changed = record(11, "ready").replace(r#""string":"ready""#, r#""string":"Ready""#);
        let log = CelLog::parse(changed.as_bytes()).unwrap();
        assert_eq!(log.records()[0].text.as_deref(), Some("Ready"));
        assert!(!log.records()[0].text_is_measured(HashAlg::Sha256));
        let good = CelLog::parse(record(11, "ready").as_bytes()).unwrap();
        assert!(!good.records()[0].text_is_measured(HashAlg::Sha384), "no digest in this bank");
    }

    #[test]
    fn what_another_bank_says_is_not_replayed() {
        let log = CelLog::parse(record(11, "ready").as_bytes()).unwrap();
        let mut registers = Registers::reset(HashAlg::Sha384, 0);
        assert_eq!(log.replay(&mut registers), Err(Reject::BankNotAllowed));
        let unknown = record(11, "ready").replace("sha256", "sm3_256");
        assert_eq!(CelLog::parse(unknown.as_bytes()).unwrap().records()[0].digests, []);
        let nv = r#"{"nv_index":1,"digests":[],"content_type":"systemd","content":{}}"#;
        assert_eq!(CelLog::parse(nv.as_bytes()).unwrap().records(), []);
    }

    proptest! {
        #[test]
        fn never_panics(text in r#"[\x{1e}\n\[\]{}",:a-z0-9]{0,200}"#) {
            let _ = CelLog::parse(text.as_bytes());
        }

        #[test]
        fn reads_what_was_written(texts in proptest::collection::vec("[a-z:-]{1,20}", 0..10)) {
            let records: Vec<String> = texts.iter().map(|text| record(13, text)).collect();
            let log = CelLog::parse(sequence(&records).as_bytes()).unwrap();
            let back: Vec<_> = log.records().iter().filter_map(|r| r.text.clone()).collect();
            prop_assert_eq!(back, texts);
        }
    }
}
