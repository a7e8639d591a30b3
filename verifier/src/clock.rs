//! Time, passed in so that tests own it: what the wall says, and what nobody can set.
//!
//! Records and certificates go by the wall clock. How long something given out is good goes by a clock that
//! only moves on, so that setting the wall clock back revives nothing (SPEC 7.6).

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Unix seconds, as the operator set them.
    fn now(&self) -> u64;

    /// Seconds since some moment of this process.
    fn steady(&self) -> u64;
}

/// The system's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// Zero of the steady clock.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn steady(&self) -> u64 {
        START.elapsed().as_secs()
    }
}

/// A moment by both clocks, and the process whose steady clock that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) wall: u64,
    pub(crate) steady: u64,
    pub(crate) run: [u8; 16],
}

impl Moment {
    /// True if `then` is at most `ttl_s` before this moment, by both clocks: the steady one stands still while the
    /// machine sleeps. What an earlier process gave out goes by the wall clock alone; a moment still to come is
    /// none that it gave out.
    pub(crate) fn is_within(&self, ttl_s: u64, then: &Self) -> bool {
        let wall = self.wall.checked_sub(then.wall);
        let (passed, slept) = match self.run == then.run {
            true => (self.steady.checked_sub(then.steady), wall.unwrap_or(0)),
            false => (wall, 0),
        };
        passed.is_some_and(|passed| passed.max(slept) <= ttl_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_set_back_revives_nothing() {
        let given = Moment { wall: 10_000, steady: 50, run: [1; 16] };
        let at = |wall, steady, run| Moment { wall, steady, run: [run; 16] }.is_within(120, &given);
        assert!(at(10_120, 170, 1));
        assert!(!at(10_121, 171, 1));
        assert!(!at(10_020, 171, 1), "set back by two minutes");
        assert!(at(6_400, 60, 1), "set back by an hour, ten seconds later");
        assert!(!at(100_000, 60, 1), "the machine slept");
        assert!(at(10_120, 3, 2), "another process");
        assert!(!at(10_121, 3, 2));
        assert!(!at(9_999, 3, 2), "another process, the clock set back");
    }

    #[test]
    fn the_steady_clock_does_not_go_back() {
        let first = SystemClock.steady();
        assert!(SystemClock.steady() >= first);
    }
}
