//! One case as its file states it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kind of input a case is; a verifier that does not speak a surface says so and is not judged on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// TPMS_ATTEST, TPMT_SIGNATURE, key, qualifying data, PCR values.
    Quote,
    /// An event log and the PCR values it has to replay to.
    Eventlog,
    /// EK certificate, chain, roots, CRLs, time.
    Endorsement,
    /// Public areas of EK and AK, activation proof, first quote.
    Enrolment,
    /// Two-level evidence and what the verifier knows.
    Evidence,
    /// Facts, policies, a resource id.
    Decision,
    /// A signed release, as the guest judges it.
    Release,
    /// A conversation with a verifier that keeps state.
    Protocol,
    /// One encoded structure.
    Encoding,
}

impl Surface {
    /// Every surface.
    pub const ALL: [Self; 9] = [
        Self::Quote,
        Self::Eventlog,
        Self::Endorsement,
        Self::Enrolment,
        Self::Evidence,
        Self::Decision,
        Self::Release,
        Self::Protocol,
        Self::Encoding,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quote => "quote",
            Self::Eventlog => "eventlog",
            Self::Endorsement => "endorsement",
            Self::Enrolment => "enrolment",
            Self::Evidence => "evidence",
            Self::Decision => "decision",
            Self::Release => "release",
            Self::Protocol => "protocol",
            Self::Encoding => "encoding",
        }
    }

    /// The surface of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|surface| surface.name() == name)
    }
}

/// `case.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Id of the defect, such as `A1`; several cases may show variants of one.
    pub id: String,
    /// The defect in one clause.
    pub title: String,
    /// Kind of input.
    pub surface: Surface,
    /// Folder under `originals/`.
    pub original: String,
    /// What was done to the original, for people.
    pub mutation: String,
    /// What was done to the original, byte for byte.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<Edit>,
    /// One input for each offset instead of a single one; applied after the edits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
    /// True if a key the verifier trusts signed the mutated bytes, so that no signature check can refuse them.
    pub resigned: bool,
    /// The verdict.
    pub expect: Expect,
    /// Advisories, issues and papers the case comes from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
}

/// Replaces `remove` bytes of `file` from offset `at` of the *original* by new ones. Edits of one file are in
/// ascending order and do not overlap. A file that is not there is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// File of the original.
    pub file: String,
    /// Offset.
    pub at: usize,
    /// Bytes that go.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub remove: usize,
    /// Bytes that come, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub insert: String,
    /// Bytes that come, as text; used instead of `insert` for text files.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// How often they come; once if absent.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeat: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn once() -> usize {
    1
}

fn is_once(n: &usize) -> bool {
    *n == 1
}

/// One input for each offset of a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// File of the original.
    pub file: String,
    /// What happens at each offset.
    pub kind: SweepKind,
    /// First offset.
    pub from: usize,
    /// Offset after the last.
    pub to: usize,
    /// A file that changes with the offset: the signature over what the sweep made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Beside>,
}

/// What a sweep does at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweepKind {
    /// Only the bytes before the offset stay.
    Truncate,
    /// Bit `offset mod 8` of the byte at the offset is flipped.
    FlipBit,
}

/// Record `offset - from` of `records`, a file beside `case.json` of records of `size` bytes, becomes `file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beside {
    /// File of the input.
    pub file: String,
    /// File of the case.
    pub records: String,
    /// Bytes of a record.
    pub size: usize,
}

/// The verdict a case has to end in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Expect {
    /// Refused with this code (SPEC section 9).
    Reject(String),
    /// Accepted; always true.
    Accept(bool),
}

/// Files of an input by name.
pub type Files = BTreeMap<String, Vec<u8>>;
