//! What people see while they wait: a spinner per step on a terminal, plain lines elsewhere, a summary at the end.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps done so far.
pub struct Progress {
    started: Instant,
    terminal: bool,
    steps: Vec<Done>,
}

struct Done {
    name: String,
    took: Duration,
    outcome: String,
}

/// A step under way.
pub struct Step {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
            steps: Vec::new(),
        }
    }

    /// Shows that a step begins.
    pub fn begin(&self, name: &str) -> Step {
        let bar = self.terminal.then(|| {
            let style =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("==> {name}");
        }
        Step { name: name.to_owned(), started: Instant::now(), bar }
    }

    /// Shows that a step ended well; `outcome` says what came of it in a word or two.
    pub fn end(&mut self, step: Step, outcome: &str) {
        let took = step.started.elapsed();
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        eprintln!("  ok  {:<44} {:>7.1} s  {outcome}", step.name, took.as_secs_f64());
        self.steps.push(Done { name: step.name, took, outcome: outcome.to_owned() });
    }

    /// Runs a step from begin to end.
    pub fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Step) -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        let step = self.begin(name);
        match work(&step) {
            Ok((value, outcome)) => {
                self.end(step, &outcome);
                Ok(value)
            }
            Err(error) => {
                if let Some(bar) = &step.bar {
                    bar.finish_and_clear();
                }
                let took = step.started.elapsed();
                self.steps.push(Done { name: step.name, took, outcome: "FAILED".to_owned() });
                Err(error)
            }
        }
    }

    /// Runs a step that shows its own progress: no spinner is drawn over its output.
    pub fn own_output<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> anyhow::Result<(T, String)>,
    ) -> anyhow::Result<T> {
        let terminal = std::mem::replace(&mut self.terminal, false);
        let done = self.step(name, |_| work());
        self.terminal = terminal;
        done
    }

    /// The last word: every step with its time.
    pub fn summary(&self, ok: bool) {
        if self.steps.is_empty() {
            return;
        }
        eprintln!();
        for done in &self.steps {
            eprintln!("  {:<48} {:>7.1} s  {}", done.name, done.took.as_secs_f64(), done.outcome);
        }
        let verdict = if ok { "all done" } else { "FAILED" };
        eprintln!("  {verdict:<48} {:>7.1} s", self.started.elapsed().as_secs_f64());
    }
}

impl Step {
    /// Shows one line of what goes on inside the step; on a terminal only.
    pub fn note(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.trim().to_owned());
        }
    }
}
