//! Who is asked for a verdict.

use crate::case::{Files, Surface};

/// What a judge says of one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Believed.
    Accept,
    /// Refused, with the judge's own word for why.
    Reject(String),
    /// The judge does not know this kind of input.
    Unsupported,
    /// No verdict: it crashed, was silent or spoke nonsense.
    Broken(String),
}

/// One input: the evidence and what a verifier would know beside it. Never the expected verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Kind of input.
    pub surface: Surface,
    /// Its files.
    pub files: Files,
}

/// A verifier under test.
pub trait Judge {
    /// Judges one input.
    fn judge(&self, input: &Input) -> Verdict;

    /// True if its reasons are the codes of SPEC section 9, so that they can be held against the expected.
    fn speaks_codes(&self) -> bool;

    /// Name for the report.
    fn name(&self) -> String;
}
