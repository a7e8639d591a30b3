//! Somebody who asks a server for its page again and again, whatever else happens, and notes how long each answer took.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::appliance::SITE_NAME;
use crate::process;

/// Longest an answer may take, on an emulated CPU that a dozen virtual ones share. A request is tried once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between an answer and the next question: several visitors share one emulated CPU with those they visit.
const PAUSE: Duration = Duration::from_millis(1000);

/// What is visited.
#[derive(Clone)]
pub struct Target {
    /// For messages.
    pub name: String,
    /// Port on 127.0.0.1.
    pub port: u16,
    /// What the page must say.
    pub page: String,
    /// Certificate of the site; without one the page comes over plain HTTP.
    pub certificate: Option<PathBuf>,
}

/// A visitor at work.
pub struct Visitor {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Visits>,
}

/// What came of it.
pub struct Visits {
    /// Name of the target.
    pub name: String,
    /// How long each answer took.
    pub taken: Vec<Duration>,
    /// What went wrong.
    pub failures: Vec<String>,
}

impl Target {
    /// Asks once.
    pub fn ask(&self) -> Result<Duration> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--max-time", &PATIENCE.as_secs().to_string()]);
        match &self.certificate {
            Some(certificate) => {
                let host = format!("{SITE_NAME}:{}", self.port);
                curl.args(["--resolve", &format!("{host}:127.0.0.1")]);
                curl.arg("--cacert").arg(certificate).arg(format!("https://{host}/"));
            }
            None => {
                curl.arg(format!("http://127.0.0.1:{}/", self.port));
            }
        }
        let start = Instant::now();
        let said = process::run(&mut curl, PATIENCE * 2)?;
        let took = start.elapsed();
        ensure!(said.ok, "{}", said.err.trim());
        ensure!(said.out.contains(&self.page), "another page: {}", said.out);
        Ok(took)
    }
}

impl Visitor {
    /// Begins.
    pub fn start(target: Target) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = thread::spawn(move || {
            let mut visits =
                Visits { name: target.name.clone(), taken: Vec::new(), failures: Vec::new() };
            while !told.load(Ordering::SeqCst) {
                match target.ask() {
                    Ok(took) => visits.taken.push(took),
                    Err(error) => visits.failures.push(format!("{error:#}")),
                }
                thread::sleep(PAUSE);
            }
            visits
        });
        Self { over, thread }
    }

    /// Ends, once the answer under way is there.
    pub fn stop(self) -> Result<Visits> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow!("a visitor panicked"))
    }
}

impl Visits {
    /// The time that so many of 100 answers took at most.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.taken.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let taken = (1..=200).rev().map(Duration::from_millis).collect();
        let visits = Visits { name: String::new(), taken, failures: Vec::new() };
        let at = |percent| visits.percentile(percent).as_millis();
        assert_eq!((at(50), at(99), at(100), at(0)), (100, 198, 200, 1));
    }
}
