//! A value that threads share: one has it at a time, and others wait for it to become what they need (SPEC 6.4, 6.5).
//!
//! A thread that panics while it has the value fails alone. What lies in these is never left half changed by anything
//! that can panic, and one lost request must not put every VM of the host out of reach.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A value of which somebody waits for a change.
#[derive(Debug, Default)]
pub struct Guarded<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Guarded<T> {
    /// Nobody has it yet.
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Condvar::new() }
    }

    /// Blocks until nobody else has it. Whoever has it must not ask, nor wait, again.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has those that wait look again; to be called after each change that may concern one.
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Blocks while `so` is true of it.
    pub fn wait_while(&self, so: impl FnMut(&mut T) -> bool) -> MutexGuard<'_, T> {
        self.changed.wait_while(self.lock(), so).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Guarded::wait_while`], at most for `patience`: `so` may still be true then.
    pub fn wait_while_for(
        &self,
        patience: Duration,
        so: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'_, T> {
        let waited = self.changed.wait_timeout_while(self.lock(), patience, so);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn whoever_panics_with_it_fails_alone() {
        let value = Guarded::new(1);
        let panicked = thread::scope(|scope| {
            let holder = scope.spawn(|| {
                let _held = value.lock();
                panic!("with the value in hand");
            });
            holder.join().is_err()
        });
        assert!(panicked);
        *value.lock() += 1;
        assert_eq!(*value.wait_while(|value| *value != 2), 2);
        assert_eq!(*value.wait_while_for(Duration::from_millis(1), |_| true), 2);
    }

    #[test]
    fn who_waits_hears_of_the_change() {
        let value = Guarded::new(0);
        let patience = Duration::from_secs(60);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| *value.wait_while(|value| *value == 0));
            let patient = scope.spawn(|| *value.wait_while_for(patience, |value| *value == 0));
            thread::sleep(Duration::from_millis(50));
            assert!(!waiting.is_finished() && !patient.is_finished());
            *value.lock() = 7;
            value.notify();
            assert_eq!((waiting.join().unwrap(), patient.join().unwrap()), (7, 7));
        });
    }
}
