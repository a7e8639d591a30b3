//! A TPM's clock against what was last seen of it (clockInfo; Part 1, 36; SPEC 7.3, step 8, and 7.6).
//!
//! Counters that fall tell of a TPM that was cleared, replaced or replayed. What is compared was signed.

use crate::Reject;
use crate::quote::Signed;
use crate::tpm::attest::ClockInfo;

/// resetCount never falls; while it stays, neither restartCount nor clock does.
pub fn judge(now: &ClockInfo, last: &ClockInfo) -> Result<(), Reject> {
    let same_boot_back = now.reset_count == last.reset_count
        && (now.restart_count < last.restart_count || now.clock < last.clock);
    if now.reset_count < last.reset_count || same_boot_back {
        Err(Reject::ClockRegress)
    } else {
        Ok(())
    }
}

/// For a verdict that rests on the clock's value: it cannot repeat values after an unorderly shutdown.
pub fn require_safe(now: &ClockInfo) -> Result<(), Reject> {
    if now.safe { Ok(()) } else { Err(Reject::UnsafeClock) }
}

/// Refuses a TPM whose firmware the caller knows to be vulnerable.
pub fn check_firmware(signed: &Signed, revoked: &[u64]) -> Result<(), Reject> {
    if revoked.contains(&signed.firmware_version) { Err(Reject::TcbRevoked) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: ClockInfo = ClockInfo { clock: 100, reset_count: 5, restart_count: 2, safe: true };

    #[test]
    fn time_stands_or_goes_on() {
        assert_eq!(judge(&LAST, &LAST), Ok(()));
        assert_eq!(judge(&ClockInfo { clock: 101, ..LAST }, &LAST), Ok(()));
        // A reset sets restartCount to zero; the clock goes back to what was last saved.
        let rebooted = ClockInfo { clock: 1, reset_count: 6, restart_count: 0, safe: false };
        assert_eq!(judge(&rebooted, &LAST), Ok(()));
    }

    #[test]
    fn refuses_every_step_back() {
        for (what, now) in [
            ("resetCount", ClockInfo { reset_count: 4, clock: 200, ..LAST }),
            ("restartCount", ClockInfo { restart_count: 1, clock: 200, ..LAST }),
            ("clock", ClockInfo { clock: 99, ..LAST }),
        ] {
            assert_eq!(judge(&now, &LAST), Err(Reject::ClockRegress), "{what}");
        }
        assert_eq!(require_safe(&LAST), Ok(()));
        assert_eq!(require_safe(&ClockInfo { safe: false, ..LAST }), Err(Reject::UnsafeClock));
    }
}
