//! How often this VM's guest was refused what (SPEC 6.8): counted where it is refused, told to the supervisor.
//!
//! What it refuses: to be a way to keep anybody busy. The device loop is woken once for any number of refusals, and
//! tells the sums at most once each [`PAUSE`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coffer_machine::Doorbell;
use coffer_monitor_wire::Refusal;

/// Shortest time between two tellings.
pub const PAUSE: Duration = Duration::from_secs(1);

/// The counters of a VM; a device has a handle on them. The default tells nobody.
#[derive(Clone, Default)]
pub struct Refusals {
    sums: Arc<Mutex<Sums>>,
    bell: Option<Arc<Doorbell>>,
}

#[derive(Default)]
struct Sums {
    counts: BTreeMap<Refusal, u64>,
    /// There is something the bell was rung for and nobody has collected.
    news: bool,
}

impl Refusals {
    /// Counters that ring `bell` when there is news.
    pub fn new(bell: Doorbell) -> Self {
        Self { sums: Arc::default(), bell: Some(Arc::new(bell)) }
    }

    /// One more.
    pub fn count(&self, refusal: Refusal) {
        let mut sums = self.lock();
        let count = sums.counts.entry(refusal).or_default();
        *count = count.saturating_add(1);
        if !std::mem::replace(&mut sums.news, true)
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
    }

    /// The sums, if they changed since they were last taken.
    pub fn take_news(&self) -> Option<BTreeMap<Refusal, u64>> {
        let mut sums = self.lock();
        std::mem::take(&mut sums.news).then(|| sums.counts.clone())
    }

    /// The sums.
    pub fn sums(&self) -> BTreeMap<Refusal, u64> {
        self.lock().counts.clone()
    }

    /// Rings when there is news.
    pub fn bell(&self) -> Option<&Doorbell> {
        self.bell.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_refusals_rings_once_until_it_is_heard() {
        let refusals = Refusals::new(Doorbell::new().unwrap());
        assert_eq!(refusals.take_news(), None);
        let rung = || refusals.bell().unwrap().clear();
        assert!(!rung());
        for _ in 0..1000 {
            refusals.count(Refusal::Chain);
        }
        assert!(rung());
        refusals.count(Refusal::Chain);
        assert!(!rung());
        assert_eq!(refusals.take_news(), Some([(Refusal::Chain, 1001)].into()));
        assert_eq!(refusals.take_news(), None);
        refusals.count(Refusal::Ring);
        assert!(rung());
        assert_eq!(refusals.take_news(), Some(refusals.sums()));
    }
}
