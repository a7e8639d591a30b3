//! What libFuzzer says of a run. Only a run that says it did what was asked counts.

use anyhow::{Context as _, Result, ensure};

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for, and nothing found.
    Done(Done),
    /// A panic, a hang or too much memory; libFuzzer kept the input.
    Finding,
}

/// A run with no finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// Inputs executed.
    pub executions: u64,
    /// Edges of the control flow that were reached.
    pub edges: u64,
}

/// Reads what a run for `runs` executions left on its standard error.
pub fn read(success: bool, said: &str, runs: u64) -> Result<Outcome> {
    if !success {
        // Killed, out of disk, not even started: none of these is libFuzzer's verdict.
        ensure!(said.contains("SUMMARY: libFuzzer"), "it did not run to an end");
        return Ok(Outcome::Finding);
    }
    let executions = executions(said).context("it does not say how much it did")?;
    ensure!(executions >= runs, "it ended after {executions} of {runs} executions");
    let edges = edges(said).context("it does not say what it reached")?;
    Ok(Outcome::Done(Done { executions, edges }))
}

/// Inputs executed, of a finding too.
pub fn executions(said: &str) -> Option<u64> {
    let line =
        said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}

/// From the last line that says so.
fn edges(said: &str) -> Option<u64> {
    let after = said.rsplit_once(" cov: ")?.1;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "#2\tINITED cov: 19 ft: 20\n#9\tDONE   cov: 21 ft: 25 corp: 3/9b\n\
                        stat::number_of_executed_units: 9\n";

    #[test]
    fn a_run_to_the_end_counts() {
        let done = Done { executions: 9, edges: 21 };
        assert_eq!(read(true, SAID, 9).unwrap(), Outcome::Done(done));
    }

    #[test]
    fn a_run_that_did_less_or_says_less_is_an_error() {
        assert!(read(true, SAID, 10).is_err(), "one execution short");
        assert!(read(true, "", 9).is_err());
        assert!(read(true, &SAID.replace(" cov: ", " c: "), 9).is_err());
        assert!(read(true, &SAID.replace("number_of", "some"), 9).is_err());
        assert!(read(false, SAID, 9).is_err(), "killed");
    }

    #[test]
    fn what_libfuzzer_stops_at_is_a_finding() {
        for why in ["deadly signal", "timeout", "out-of-memory (used: 1025Mb; limit: 1024Mb)"] {
            let said = format!("{SAID}SUMMARY: libFuzzer: {why}\n");
            assert_eq!(read(false, &said, 9).unwrap(), Outcome::Finding);
        }
    }
}
