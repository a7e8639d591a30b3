//! Runs a corpus against a judge.

use std::collections::BTreeSet;

use crate::case::{Expect, Surface};
use crate::corpus::{Corpus, CorpusError, Located};
use crate::judge::{Judge, Verdict};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Refused, with the expected code, or by a judge that speaks no codes.
    RefusedAsExpected,
    /// Refused for another reason.
    RefusedOtherwise {
        /// What was said instead.
        found: String,
    },
    /// A forgery was accepted.
    AcceptedWrongly,
    /// A valid input was accepted.
    AcceptedAsExpected,
    /// A valid input was refused.
    RefusedWrongly {
        /// What was said.
        found: String,
    },
    /// No verdict.
    Broken {
        /// What happened.
        detail: String,
    },
    /// The judge does not speak the surface.
    Unsupported,
}

impl Outcome {
    /// True if the judge did what was expected.
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::RefusedAsExpected | Self::AcceptedAsExpected)
    }
}

/// One case and its outcome; of a sweep the worst.
#[derive(Debug, Clone)]
pub struct CaseResult {
    /// The case.
    pub located: Located,
    /// How it ended.
    pub outcome: Outcome,
    /// Offset at which a sweep met that outcome first.
    pub offset: Option<usize>,
}

/// Runs every case of `surfaces`, all if empty.
pub fn run(
    corpus: &Corpus,
    judge: &dyn Judge,
    surfaces: &BTreeSet<Surface>,
) -> Result<Vec<CaseResult>, CorpusError> {
    let mut results = Vec::new();
    for located in corpus.cases() {
        if surfaces.is_empty() || surfaces.contains(&located.case.surface) {
            results.push(one(corpus, judge, located)?);
        }
    }
    Ok(results)
}

/// Runs one case.
pub fn one(
    corpus: &Corpus,
    judge: &dyn Judge,
    located: &Located,
) -> Result<CaseResult, CorpusError> {
    let mut worst: Option<(Outcome, usize)> = None;
    let mut n = 0;
    corpus.inputs(located, |input| {
        let outcome = compare(judge.judge(&input), &located.case.expect, judge.speaks_codes());
        if worst.as_ref().is_none_or(|(before, _)| gravity(&outcome) > gravity(before)) {
            worst = Some((outcome, n));
        }
        n += 1;
    })?;
    let empty = || (Outcome::Broken { detail: "a sweep of no offset".into() }, 0);
    let (outcome, at) = worst.unwrap_or_else(empty);
    let offset = located.case.sweep.as_ref().map(|sweep| sweep.from + at);
    Ok(CaseResult { located: located.clone(), outcome, offset })
}

fn compare(verdict: Verdict, expect: &Expect, codes: bool) -> Outcome {
    match (verdict, expect) {
        (Verdict::Unsupported, _) => Outcome::Unsupported,
        (Verdict::Broken(detail), _) => Outcome::Broken { detail },
        (Verdict::Accept, Expect::Accept(_)) => Outcome::AcceptedAsExpected,
        (Verdict::Accept, Expect::Reject(_)) => Outcome::AcceptedWrongly,
        (Verdict::Reject(found), Expect::Accept(_)) => Outcome::RefusedWrongly { found },
        (Verdict::Reject(found), Expect::Reject(code)) if codes && found != *code => {
            Outcome::RefusedOtherwise { found }
        }
        (Verdict::Reject(_), Expect::Reject(_)) => Outcome::RefusedAsExpected,
    }
}

/// Which of two outcomes of a sweep is told.
fn gravity(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::RefusedAsExpected | Outcome::AcceptedAsExpected => 0,
        Outcome::Unsupported => 1,
        Outcome::RefusedOtherwise { .. } => 2,
        Outcome::Broken { .. } => 3,
        Outcome::AcceptedWrongly | Outcome::RefusedWrongly { .. } => 4,
    }
}
