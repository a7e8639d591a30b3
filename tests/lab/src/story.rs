//! What the demo prints: steps with their times, expectations with their outcomes.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

/// The telling of it.
pub struct Story {
    started: Instant,
    terminal: bool,
    steps: Vec<(String, Duration)>,
    expectations: Vec<Expectation>,
}

struct Expectation {
    case: String,
    expected: String,
    got: String,
}

impl Story {
    /// Nothing told yet.
    pub fn begin() -> Self {
        Self {
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            steps: Vec::new(),
            expectations: Vec::new(),
        }
    }

    /// Does one step; shows that it goes on, and how long it took.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let bar = self.terminal.then(|| spinner(name));
        let result = work();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let took = started.elapsed();
        let mark = if result.is_ok() { "ok" } else { "FAILED" };
        println!("  {:>6.1} s  {name}: {mark}", took.as_secs_f64());
        self.steps.push((name.to_owned(), took));
        result
    }

    /// Says something.
    pub fn say(&self, text: &str) {
        println!("{text}");
    }

    /// Notes what was expected and what came.
    pub fn expect(&mut self, case: &str, expected: &str, got: &str) {
        let mark = if expected == got { "as expected" } else { "NOT AS EXPECTED" };
        println!("            {case}: {got} ({mark})");
        self.expectations.push(Expectation {
            case: case.to_owned(),
            expected: expected.to_owned(),
            got: got.to_owned(),
        });
    }

    /// The last word; an error if any expectation failed.
    pub fn end(self) -> Result<()> {
        let mut outcomes = table(&["case", "expected", "got", ""]);
        for e in &self.expectations {
            let mark = if e.expected == e.got { "ok" } else { "FAILED" };
            outcomes.add_row([&e.case, &e.expected, &e.got, &mark.to_owned()]);
        }
        let mut times = table(&["step", "seconds"]);
        for (name, took) in &self.steps {
            times.add_row([name.clone(), format!("{:.1}", took.as_secs_f64())]);
        }
        println!("\n{times}\n\n{outcomes}");
        let failed = self.expectations.iter().filter(|e| e.expected != e.got).count();
        println!(
            "\n{} of {} expectations held; {:.1} s in all",
            self.expectations.len() - failed,
            self.expectations.len(),
            self.started.elapsed().as_secs_f64()
        );
        if failed > 0 {
            bail!("{failed} expectations failed");
        }
        Ok(())
    }
}

/// An empty table.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().copied());
    table
}

fn spinner(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style).with_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
