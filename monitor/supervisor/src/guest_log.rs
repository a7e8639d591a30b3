//! What a guest can make the host write to its log: a few lines for each VM, one that says there is more, and
//! then nothing. What it trusts: nothing; the guest chooses how often it is asked.

use std::sync::atomic::{AtomicU8, Ordering};

/// Lines written for one VM.
const LINES_MAX: u8 = 5;

/// How much of a VM's allowance is used.
#[derive(Debug, Default)]
pub struct GuestLog(AtomicU8);

impl GuestLog {
    /// Warns of what the guest of `vm` did.
    pub fn warn(&self, vm: &str, message: &str) {
        match self.spend() {
            Ok(used) if used < LINES_MAX => tracing::warn!(vm, "{message}"),
            Ok(_) => tracing::warn!(vm, "more of the same; no longer logged"),
            Err(_) => {}
        }
    }

    /// How many lines came before this one; an error once no more are counted.
    fn spend(&self) -> Result<u8, u8> {
        let count = |used: u8| (used <= LINES_MAX).then_some(used + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_few_lines_then_one_then_none() {
        let log = GuestLog::default();
        let spent: Vec<Result<u8, u8>> = (0..1000).map(|_| log.spend()).collect();
        let written = usize::from(LINES_MAX);
        assert!(spent[..written].iter().all(|spent| spent.is_ok_and(|used| used < LINES_MAX)));
        assert_eq!(spent[written], Ok(LINES_MAX));
        assert!(spent[written + 1..].iter().all(Result::is_err));
    }
}
