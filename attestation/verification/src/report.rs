//! What was measured and what was expected: the rows a decision is made of (SPEC 7.3, steps 12 and 13).
//!
//! The verdict and the text for people come from the same rows, so a report cannot say other than what
//! decided. Words of ours are borrowed: an accepted evidence has some forty rows, and few need text made for them.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::event_log::EventType;
use crate::tpm::hash::{Ha, HashAlg};

/// One thing measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Register.
    pub pcr: u8,
    /// Bank, such as `sha256`.
    pub bank: Cow<'static, str>,
    /// Event type, or `-` for a whole register or a missing event.
    pub event: Cow<'static, str>,
    /// What it is, in a few words.
    pub what: Cow<'static, str>,
    /// What was found; none if the event is missing.
    #[serde(with = "as_hex")]
    pub digest: Option<Ha>,
    /// What had to be found; none if nothing had to be, or if no reference value exists.
    #[serde(with = "as_hex")]
    pub expected: Option<Ha>,
    /// False if this row refuses.
    pub ok: bool,
}

/// An event type as rows show it.
pub(crate) fn word(kind: EventType) -> Cow<'static, str> {
    match kind.name() {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(kind.to_string()),
    }
}

impl Row {
    /// A digest that has to be the expected one.
    pub(crate) fn judged(
        pcr: u8,
        event: impl Into<Cow<'static, str>>,
        what: impl Into<Cow<'static, str>>,
        found: impl Into<Ha>,
        expected: impl Into<Ha>,
    ) -> Self {
        let (found, expected) = (found.into(), expected.into());
        Self::new(pcr, event, what, Some(found), Some(expected), found == expected)
    }

    /// A digest shown for information; nothing is asked of it here.
    pub(crate) fn noted(
        pcr: u8,
        event: impl Into<Cow<'static, str>>,
        what: impl Into<Cow<'static, str>>,
        found: impl Into<Ha>,
    ) -> Self {
        Self::new(pcr, event, what, Some(found.into()), None, true)
    }

    /// Something that must not be there, or that no reference value exists for.
    pub(crate) fn refused(
        pcr: u8,
        event: impl Into<Cow<'static, str>>,
        what: impl Into<Cow<'static, str>>,
        found: impl Into<Ha>,
    ) -> Self {
        Self::new(pcr, event, what, Some(found.into()), None, false)
    }

    /// Something that had to be there.
    pub(crate) fn missing(
        pcr: u8,
        what: impl Into<Cow<'static, str>>,
        expected: impl Into<Ha>,
    ) -> Self {
        Self::new(pcr, "-", what, None, Some(expected.into()), false)
    }

    fn new(
        pcr: u8,
        event: impl Into<Cow<'static, str>>,
        what: impl Into<Cow<'static, str>>,
        digest: Option<Ha>,
        expected: Option<Ha>,
        ok: bool,
    ) -> Self {
        // Without either there is nothing to be of a bank.
        let hash = digest.or(expected).map_or(HashAlg::Sha256, |value| value.hash());
        let (bank, event, what) = (Cow::Borrowed(hash.name()), event.into(), what.into());
        Self { pcr, bank, event, what, digest, expected, ok }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pcr {} `{}`: ", self.pcr, self.what)?;
        match (&self.digest, &self.expected) {
            (Some(found), Some(expected)) => write!(f, "found {found}, expected {expected}"),
            (Some(found), None) => write!(f, "found {found}, expected nothing"),
            (None, Some(expected)) => write!(f, "found nothing, expected {expected}"),
            (None, None) => f.write_str("found nothing, expected nothing"),
        }
    }
}

/// Rows of the host and of the VM, in the order they were judged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The host's boot.
    pub host: Vec<Row>,
    /// The VM's launch.
    pub vm: Vec<Row>,
}

/// Digests as hex; the length tells the algorithm.
mod as_hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::tpm::hash::{Ha, HashAlg};

    pub(super) fn serialize<S: Serializer>(value: &Option<Ha>, s: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => s.collect_str(value),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Ha>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let bytes = hex::decode(&text).map_err(D::Error::custom)?;
        let value = HashAlg::ALL.into_iter().find_map(|hash| Ha::new(hash, &bytes));
        // One spelling: what is written here is lower case.
        let value = value.filter(|value| value.to_string() == text);
        value.map(Some).ok_or_else(|| D::Error::custom("not a digest in lower-case hex"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    const FOUND: Digest = Digest([0xab; 32]);
    const EXPECTED: Digest = Digest([0xcd; 32]);

    #[test]
    fn a_row_is_json_with_digests_in_one_spelling() {
        let (found, expected) = ("ab".repeat(32), "cd".repeat(32));
        let row = Row::judged(4, word(EventType::SEPARATOR), "host kernel", FOUND, EXPECTED);
        let json = format!(
            r#"{{"pcr":4,"bank":"sha256","event":"EV_SEPARATOR","what":"host kernel","digest":"{found}","expected":"{expected}","ok":false}}"#
        );
        assert_eq!(serde_json::to_string(&row).unwrap(), json);
        assert_eq!(serde_json::from_str::<Row>(&json).unwrap(), row);
        let missing = Row::missing(9, "host initrd", EXPECTED);
        let text = serde_json::to_string(&missing).unwrap();
        assert!(text.contains(r#""digest":null"#), "{text}");
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), missing);
        for (from, to) in [
            (found.as_str(), "AB".repeat(32)),
            (&found, "ab".repeat(31)),
            (&found, "ab".repeat(33)),
            (&found, "xy".repeat(32)),
            (&found, String::new()),
            (r#""ok":"#, r#""more":1,"ok":"#.to_owned()),
        ] {
            let changed = json.replacen(from, &to, 1);
            assert_ne!(changed, json);
            assert!(serde_json::from_str::<Row>(&changed).is_err(), "{changed}");
        }
    }

    #[test]
    fn a_row_says_what_was_found_and_what_had_to_be() {
        let (found, expected) = ("ab".repeat(32), "cd".repeat(32));
        let kind = word(EventType(0x1234));
        assert_eq!(kind, EventType(0x1234).to_string());
        for (row, says, ok) in [
            (
                Row::judged(0, kind, "a", FOUND, FOUND),
                format!("found {found}, expected {found}"),
                true,
            ),
            (
                Row::judged(0, "-", "a", FOUND, EXPECTED),
                format!("found {found}, expected {expected}"),
                false,
            ),
            (Row::noted(0, "-", "a", FOUND), format!("found {found}, expected nothing"), true),
            (Row::refused(0, "-", "a", FOUND), format!("found {found}, expected nothing"), false),
            (Row::missing(0, "a", EXPECTED), format!("found nothing, expected {expected}"), false),
        ] {
            assert_eq!((row.to_string(), row.ok), (format!("pcr 0 `a`: {says}"), ok));
        }
    }
}
