//! Requests that were refused before anything of ours was used up: made-up tokens, challenges nobody gave
//! out, bytes that are no evidence. Anybody can send them, so they get no row in the decisions log; they are
//! counted, and the count is told once a minute (SPEC 7.5).

use std::sync::atomic::{AtomicU64, Ordering};

/// Seconds between two lines.
const PERIOD_S: u64 = 60;

/// The count.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    total: AtomicU64,
    told_at: AtomicU64,
}

impl Strangers {
    /// Counts one.
    pub(crate) fn refused(&self, now: u64) {
        if let Some(total) = self.count(now) {
            tracing::warn!(total, "requests refused without a row in the decisions log");
        }
    }

    /// The total, if it is time to tell it.
    fn count(&self, now: u64) -> Option<u64> {
        let total = self.total.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let told_at = self.told_at.load(Ordering::Relaxed);
        let due = now >= told_at.saturating_add(PERIOD_S);
        // Of two that find it due one tells.
        let won = due
            && self
                .told_at
                .compare_exchange(told_at, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        won.then_some(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_total_once_a_minute() {
        let strangers = Strangers::default();
        assert_eq!(strangers.count(1000), Some(1));
        assert_eq!(strangers.count(1000), None);
        assert_eq!(strangers.count(1059), None);
        assert_eq!(strangers.count(1060), Some(4));
        assert_eq!(strangers.count(1061), None);
    }
}
