//! What a guest can make the host write to its log: a few lines for each VM, one that says there is more, and
//! then nothing. What it trusts: nothing; the guest chooses how often it is asked.

use std::sync::atomic::{AtomicU8, Ordering};

/// Lines written for one VM.
const LINES_MAX: u8 = 5;

/// How much of a VM's allowance is used.
#[derive(Debug, Default)]
pub struct GuestLog(AtomicU8);

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Written,
    Announced,
    Dropped,
}

impl GuestLog {
    /// Warns of what the guest of `vm` did.
    pub fn warn(&self, vm: &str, message: &str) {
        match self.spend() {
            Fate::Written => tracing::warn!(vm, "{message}"),
            Fate::Announced => tracing::warn!(vm, "more of the same; no longer logged"),
            Fate::Dropped => {}
        }
    }

    fn spend(&self) -> Fate {
        let count = |used: u8| (used <= LINES_MAX).then_some(used + 1);
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
            Ok(used) if used < LINES_MAX => Fate::Written,
            Ok(_) => Fate::Announced,
            Err(_) => Fate::Dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_few_lines_then_one_then_none() {
        let log = GuestLog::default();
        let fates: Vec<Fate> = (0..1000).map(|_| log.spend()).collect();
        let written = usize::from(LINES_MAX);
        assert!(fates[..written].iter().all(|fate| *fate == Fate::Written));
        assert_eq!(fates[written], Fate::Announced);
        assert!(fates[written + 1..].iter().all(|fate| *fate == Fate::Dropped));
    }
}
