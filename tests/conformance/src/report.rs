//! What a run says: a table per section, the deviations, two figures.

use std::fmt;

use serde::Serialize;

use crate::case::Expect;
use crate::run::{CaseResult, Outcome};

/// One line of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Section, or `all`.
    pub section: String,
    /// Cases judged and not judged.
    pub cases: usize,
    /// Refused as expected.
    pub refused: usize,
    /// Refused for another reason than expected.
    pub refused_otherwise: usize,
    /// Forgeries accepted.
    pub accepted_wrongly: usize,
    /// Valid inputs accepted.
    pub accepted: usize,
    /// Valid inputs refused.
    pub refused_wrongly: usize,
    /// No verdict.
    pub broken: usize,
    /// Of a surface the judge does not speak.
    pub unsupported: usize,
}

/// One case that did not end as expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deviation {
    /// `SECTION/NAME`.
    pub case: String,
    /// The defect.
    pub title: String,
    /// Expected: a code, or `accept`.
    pub expected: String,
    /// Found.
    pub found: String,
}

/// A run, summed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Who judged.
    pub judge: String,
    /// Sections in order, and all.
    pub lines: Vec<Line>,
    /// What did not end as expected.
    pub deviations: Vec<Deviation>,
}

impl Report {
    /// Sums up.
    pub fn new(judge: String, results: &[CaseResult]) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let mut all = Line { section: "all".into(), ..Line::default() };
        for result in results {
            let section = &result.located.section;
            if lines.last().is_none_or(|line| line.section != *section) {
                lines.push(Line { section: section.clone(), ..Line::default() });
            }
            if let Some(line) = lines.last_mut() {
                line.count(&result.outcome);
            }
            all.count(&result.outcome);
        }
        lines.push(all);
        let deviations = results.iter().filter_map(deviation).collect();
        Self { judge, lines, deviations }
    }

    /// All sections together.
    pub fn all(&self) -> Line {
        self.lines.last().cloned().unwrap_or_default()
    }

    /// True if every case that was judged ended as expected, and one was.
    pub fn is_expected(&self) -> bool {
        let all = self.all();
        self.deviations.is_empty() && all.cases > all.unsupported
    }

    /// Forgeries refused as expected, in percent of those judged.
    pub fn refused_percent(&self) -> f64 {
        let all = self.all();
        let broken = self.broken(false);
        percent(all.refused, all.refused + all.refused_otherwise + all.accepted_wrongly + broken)
    }

    /// Valid inputs accepted, in percent of those judged.
    pub fn accepted_percent(&self) -> f64 {
        let all = self.all();
        percent(all.accepted, all.accepted + all.refused_wrongly + self.broken(true))
    }

    fn broken(&self, valid: bool) -> usize {
        let broken = self.deviations.iter().filter(|d| d.found.starts_with(BROKEN));
        broken.filter(|deviation| (deviation.expected == "accept") == valid).count()
    }
}

/// No case at all is no success.
fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

impl Line {
    fn count(&mut self, outcome: &Outcome) {
        self.cases += 1;
        *match outcome {
            Outcome::RefusedAsExpected => &mut self.refused,
            Outcome::RefusedOtherwise { .. } => &mut self.refused_otherwise,
            Outcome::AcceptedWrongly => &mut self.accepted_wrongly,
            Outcome::AcceptedAsExpected => &mut self.accepted,
            Outcome::RefusedWrongly { .. } => &mut self.refused_wrongly,
            Outcome::Broken { .. } => &mut self.broken,
            Outcome::Unsupported => &mut self.unsupported,
        } += 1;
    }
}

fn deviation(result: &CaseResult) -> Option<Deviation> {
    let found = match &result.outcome {
        Outcome::RefusedAsExpected | Outcome::AcceptedAsExpected | Outcome::Unsupported => {
            return None;
        }
        Outcome::AcceptedWrongly => "accept".into(),
        Outcome::RefusedOtherwise { found } | Outcome::RefusedWrongly { found } => found.clone(),
        Outcome::Broken { detail } => format!("{BROKEN}: {detail}"),
    };
    let at = result.offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
    let case = &result.located.case;
    Some(Deviation {
        case: format!("{}/{}", result.located.section, result.located.name),
        title: case.title.clone(),
        expected: match &case.expect {
            Expect::Reject(code) => code.clone(),
            Expect::Accept(_) => "accept".into(),
        },
        found: format!("{found}{at}"),
    })
}

/// How a verdict that is none begins.
const BROKEN: &str = "no verdict";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "judged by {}\n", self.judge)?;
        writeln!(
            f,
            "{:8} {:>6} {:>8} {:>10} {:>9} {:>9} {:>8} {:>8} {:>12}",
            "section",
            "cases",
            "refused",
            "otherwise",
            "ACCEPTED",
            "valid ok",
            "REFUSED",
            "broken",
            "unsupported"
        )?;
        for l in &self.lines {
            writeln!(
                f,
                "{:8} {:>6} {:>8} {:>10} {:>9} {:>9} {:>8} {:>8} {:>12}",
                l.section,
                l.cases,
                l.refused,
                l.refused_otherwise,
                l.accepted_wrongly,
                l.accepted,
                l.refused_wrongly,
                l.broken,
                l.unsupported
            )?;
        }
        if !self.deviations.is_empty() {
            writeln!(f, "\n{} not as expected:", self.deviations.len())?;
        }
        for d in &self.deviations {
            writeln!(f, "{}: expected {}, found {}: {}", d.case, d.expected, d.found, d.title)?;
        }
        let figure = |value: f64| if value >= 100.0 { "ok" } else { "short" };
        let (refused, accepted) = (self.refused_percent(), self.accepted_percent());
        writeln!(f, "\nfigure corpus.refused {refused:.1} % budget >= 100 {}", figure(refused))?;
        write!(f, "figure corpus.accepted {accepted:.1} % budget >= 100 {}", figure(accepted))
    }
}
