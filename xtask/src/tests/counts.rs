//! What test programs said of themselves, added up.

/// Tests of any number of programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Not run.
    pub ignored: u64,
    /// Programs that did not end well: a test of theirs failed, or they died.
    pub broken: Vec<String>,
}

impl Counts {
    /// Takes a line of libtest's; counts if it sums up.
    pub fn line(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result:") {
            self.passed += number_before(result, "passed");
            self.failed += number_before(result, "failed");
            self.ignored += number_before(result, "ignored");
        }
    }

    /// Both.
    pub fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.broken.extend(other.broken);
        self
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split([' ', ';']).filter(|w| !w.is_empty()).collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            [number, found] if *found == word => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod test {
    use super::Counts;

    #[test]
    fn adds_up_what_libtest_prints() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "running 5 tests",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            counts.line(line);
        }
        let twice = counts.clone().and(counts);
        assert_eq!((twice.passed, twice.failed, twice.ignored), (34, 6, 2));
    }
}
