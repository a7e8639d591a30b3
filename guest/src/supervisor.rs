//! The workload's life: start, reap, restart with growing pauses, orderly stop.
//!
//! Two threads share it: PID 1's own, which starts and reaps, and the one that hears the monitor's stop.
//! A stop that arrives at any moment either finds the workload and ends it, or keeps it from starting.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use coffer_image::appliance::Workload;
use coffer_pid1::children::{self, Ended};
use nix::sys::signal::Signal;

use crate::Failure;
use crate::workload::environment;

/// How long a workload may take to end after SIGTERM; the monitor waits a little longer than this.
pub const GRACE: Duration = Duration::from_secs(8);
/// First pause before a restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A workload that ran this long starts again with the first pause.
const STEADY: Duration = Duration::from_secs(60);

/// How supervision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The workload ended by itself and is not to be restarted.
    Ended(Ended),
    /// A stop was asked for; whoever called [`Supervisor::stop`] finishes the machine.
    Stopped,
}

/// The shared state.
#[derive(Default)]
pub struct Supervisor {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    workload: Option<i32>,
}

impl Supervisor {
    /// Runs the workload until it ends for good. `running` is called once, after the first start.
    pub fn run(&self, workload: &Workload, running: impl FnOnce()) -> Result<Outcome, Failure> {
        let mut running = Some(running);
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let Some(pid) = self.start(workload)? else { return Ok(Outcome::Stopped) };
            if let Some(running) = running.take() {
                running();
            }
            let ended = self.wait_for(pid)?;
            if self.lock().stopping {
                return Ok(Outcome::Stopped);
            }
            if ended.is_success() || !workload.restart {
                return Ok(Outcome::Ended(ended));
            }
            if started.elapsed() >= STEADY {
                pause = FIRST_PAUSE;
            }
            eprintln!(
                "coffer-init: the workload ended with {ended}; restart in {} ms",
                pause.as_millis()
            );
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Ends the workload: SIGTERM to its process group, SIGKILL after `grace`. Returns when it is gone.
    pub fn stop(&self, grace: Duration) -> Result<(), Failure> {
        let mut state = self.lock();
        state.stopping = true;
        let Some(pid) = state.workload else { return Ok(()) };
        children::signal_group(pid, Signal::SIGTERM)?;
        let wait = self.ended.wait_timeout_while(state, grace, |state| state.workload.is_some());
        let (state, timeout) = wait.unwrap_or_else(|poisoned| poisoned.into_inner());
        if timeout.timed_out() {
            children::signal_group(pid, Signal::SIGKILL)?;
            // SIGKILL cannot be refused; the wait is for the reaper's thread alone.
            drop(self.ended.wait_timeout_while(state, grace, |state| state.workload.is_some()));
        }
        Ok(())
    }

    /// Starts the workload unless a stop came first.
    fn start(&self, workload: &Workload) -> Result<Option<i32>, Failure> {
        let mut state = self.lock();
        if state.stopping {
            return Ok(None);
        }
        // Under the lock, so that a stop never falls between the start and its record.
        let pid = children::spawn_session(&workload.argv, &environment(workload))?;
        state.workload = Some(pid);
        Ok(Some(pid))
    }

    /// Reaps every orphan of the machine until the workload itself ends.
    fn wait_for(&self, pid: i32) -> Result<Ended, Failure> {
        loop {
            match children::reap()? {
                Some(reaped) if reaped.pid == pid => {
                    self.lock().workload = None;
                    self.ended.notify_all();
                    return Ok(reaped.ended);
                }
                Some(_) => {}
                None => return Err(Failure::Workload("its process is gone".into())),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic anywhere powers off; until then the state is two plain fields and always whole.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
