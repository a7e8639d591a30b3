//! How often what one guest does may be written to the host TPM's NV memory, which wears out (SPEC 11.9).
//!
//! So many at once as have been saved up, then one in so long. Whoever is early waits in line; nothing is refused. Each
//! volume and each vTPM has a pace, and the counter that all of them move together has one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coffer_disk::{Anchor, AnchorError};
use coffer_formats::InstanceId;

/// Moves of a volume that may be saved up, and that are kept up in a second.
const SAVED: u32 = 3000;
const A_SECOND: u32 = 5;
/// The same of the vault's counter, by which all of them move.
const SAVED_IN_ALL: u32 = 10_000;
const A_SECOND_IN_ALL: u32 = 10;

/// The pace of one guest's counters, of one volume, of one vTPM, or of a vault.
pub struct Pace(Mutex<Beat>);

#[derive(Clone, Copy)]
struct Beat {
    every: Duration,
    saved: Duration,
    /// When the next one is due, if nothing had been saved up.
    due: Option<Instant>,
}

impl Pace {
    fn of(every: Duration, saved: u32) -> Self {
        Self(Mutex::new(Beat { every, saved: every * saved, due: None }))
    }

    /// Of a vault.
    pub(crate) fn in_all() -> Self {
        Self::of(a_second(A_SECOND_IN_ALL), SAVED_IN_ALL)
    }

    /// So many a second from now on, of a vault.
    pub(crate) fn set_in_all(&self, count: u32) {
        self.set(a_second(count), SAVED_IN_ALL);
    }

    pub(crate) fn set(&self, every: Duration, saved: u32) {
        *self.beat() = Beat { every, saved: every * saved, due: None };
    }

    pub(crate) fn every(&self) -> Duration {
        self.beat().every
    }

    /// Does it when it is its turn: whoever comes next waits in line.
    pub fn keep<T>(&self, act: impl FnOnce() -> T) -> T {
        let mut beat = self.beat();
        let (wait, next) = beat.turn(Instant::now());
        std::thread::sleep(wait);
        beat.due = Some(next);
        act()
    }

    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beat {
    /// How long who comes now waits, and when the next one is due.
    fn turn(&self, now: Instant) -> (Duration, Instant) {
        let due = self.due.map_or(now, |due| due.max(now));
        ((due - now).saturating_sub(self.saved), due + self.every)
    }
}

impl Default for Pace {
    /// Of a guest's counters: one a second.
    fn default() -> Self {
        Self::of(Duration::from_secs(1), 0)
    }
}

fn a_second(count: u32) -> Duration {
    Duration::from_secs(1) / count.max(1)
}

/// The paces of a vault's volumes: each has one for as long as the vault is open, however often it is attached.
pub(crate) struct Paces {
    every: Duration,
    saved: u32,
    of: BTreeMap<InstanceId, Arc<Pace>>,
}

impl Default for Paces {
    fn default() -> Self {
        Self::a_second(A_SECOND)
    }
}

impl Paces {
    pub(crate) fn new(every: Duration, saved: u32) -> Self {
        Self { every, saved, of: BTreeMap::new() }
    }

    /// The same, of so many a second.
    pub(crate) fn a_second(count: u32) -> Self {
        Self::new(a_second(count), SAVED)
    }

    pub(crate) fn of(&mut self, volume: InstanceId) -> Arc<Pace> {
        let new = || Arc::new(Pace::of(self.every, self.saved));
        Arc::clone(self.of.entry(volume).or_insert_with(new))
    }
}

/// A counter that moves at a pace.
pub(crate) struct Paced<A>(pub A, pub Arc<Pace>);

impl<A: Anchor> Anchor for Paced<A> {
    fn read(&mut self) -> Result<u64, AnchorError> {
        self.0.read()
    }

    fn advance(&mut self, from: u64) -> Result<(), AnchorError> {
        let Self(counter, pace) = self;
        pace.keep(|| counter.advance(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_up_goes_at_once_and_the_rest_in_its_turn() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut beat = Beat { every: second, saved: 3 * second, due: None };
        let mut wait = |at: u32| {
            let (wait, next) = beat.turn(start + at * second);
            beat.due = Some(next);
            wait.as_secs()
        };
        // Three that were saved up and one that is due, all at once; who comes then waits.
        assert_eq!([0; 6].map(&mut wait), [0, 0, 0, 0, 1, 2]);
        // Nobody came for long: as many again, and no more.
        assert_eq!([100; 5].map(&mut wait), [0, 0, 0, 0, 1]);
        assert_eq!([103; 2].map(&mut wait), [0, 0]);
    }

    #[test]
    fn who_is_early_waits() {
        let pace = Pace::of(Duration::from_millis(50), 0);
        let start = Instant::now();
        (0..4).for_each(|_| pace.keep(|| ()));
        assert!(start.elapsed() >= Duration::from_millis(150));
    }
}
