//! How much an interface carries in one direction: two token buckets, in bytes and in frames (SPEC 6.6).
//!
//! A bucket is kept as the time at which what was let through is paid for (the GCRA of ITU-T I.371): no timer fills it,
//! and no rounding loses from it.

use std::time::{Duration, Instant};

use coffer_monitor_wire::Refusal;
use coffer_monitor_wire::api::NetLimit;

/// What may go at once, as time at the full rate.
const BURST: Duration = Duration::from_millis(100);

/// The limits of one direction.
pub struct Limit {
    bytes: Bucket,
    frames: Bucket,
}

impl Limit {
    /// Full buckets.
    pub fn new(limit: NetLimit) -> Self {
        let bucket = |rate| Bucket { rate, paid: None };
        Self {
            bytes: bucket(limit.bytes_per_s.get()),
            frames: bucket(limit.frames_per_s.get().into()),
        }
    }

    /// Whether a frame of `bytes` may go at `now`; it has gone then.
    pub fn takes(&mut self, bytes: usize, now: Instant) -> Result<(), Refusal> {
        let within = self.frames.takes(1, now) && self.bytes.takes(bytes as u64, now);
        if within { Ok(()) } else { Err(Refusal::FrameLimit) }
    }
}

struct Bucket {
    /// Per second; not zero.
    rate: u64,
    paid: Option<Instant>,
}

impl Bucket {
    fn takes(&mut self, amount: u64, now: Instant) -> bool {
        let paid = self.paid.map_or(now, |paid| paid.max(now));
        // The last one may go beyond: a frame larger than a burst would never go otherwise.
        let takes = paid.duration_since(now) < BURST;
        if takes {
            let nanos = amount.saturating_mul(1_000_000_000).checked_div(self.rate);
            self.paid = Some(paid + Duration::from_nanos(nanos.unwrap_or(0)));
        }
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(bytes: u64, frames: u32) -> Limit {
        let (bytes, frames) = (bytes.try_into().unwrap(), frames.try_into().unwrap());
        Limit::new(NetLimit { bytes_per_s: bytes, frames_per_s: frames })
    }

    /// How many frames of `size` go when one is offered every microsecond from `from` on.
    fn gone(limit: &mut Limit, size: usize, from: Instant, micros: u64) -> u64 {
        let at = |micro| from + Duration::from_micros(micro);
        (0..micros).filter(|micro| limit.takes(size, at(*micro)).is_ok()).count() as u64
    }

    #[test]
    fn carries_the_rate_and_a_burst_and_no_more() {
        let start = Instant::now();
        // A megabyte a second, so a hundred thousand bytes at once: a thousand frames in a second, a hundred before.
        let mut by_bytes = limit(1_000_000, u32::MAX);
        assert_eq!(gone(&mut by_bytes, 1000, start, 1_000_000), 1100);
        let mut by_frames = limit(u64::MAX, 1000);
        assert_eq!(gone(&mut by_frames, 1000, start, 1_000_000), 1100);
    }

    #[test]
    fn what_is_not_used_is_kept_for_one_burst_only() {
        let start = Instant::now();
        let mut limit = limit(u64::MAX, 1000);
        assert_eq!(gone(&mut limit, 60, start, 10), 10);
        let later = start + Duration::from_secs(3600);
        // And the one that begins before the burst is over.
        assert_eq!(gone(&mut limit, 60, later, 500), 101);
    }

    #[test]
    fn the_largest_frame_goes_at_the_least_rate_and_is_paid_for() {
        let start = Instant::now();
        let mut limit = limit(1000, 1000);
        assert!(limit.takes(65_000, start).is_ok());
        assert!(limit.takes(1, start + Duration::from_secs(64)).is_err());
        assert!(limit.takes(1, start + Duration::from_secs(65)).is_ok());
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut limit = limit(u64::MAX, 1000);
        assert_eq!((0..1000).filter(|_| limit.takes(60, start).is_ok()).count(), 100);
        assert!(limit.takes(60, start - Duration::from_secs(60)).is_err());
    }

    proptest! {
        #[test]
        fn no_pattern_of_frames_gets_more(
            bytes in 1u64..10_000_000,
            frames in 1u32..100_000,
            offers in proptest::collection::vec((0u64..5_000, 1usize..3000), 1..400),
        ) {
            let mut limit = limit(bytes, frames);
            let (start, mut micros, mut sent, mut count) = (Instant::now(), 0u64, 0u64, 0u64);
            for (wait, size) in offers {
                micros += wait;
                if limit.takes(size, start + Duration::from_micros(micros)).is_ok() {
                    sent += size as u64;
                    count += 1;
                }
            }
            let seconds = micros as f64 / 1e6 + 0.1;
            // Beside the burst, the last one; and rounding of a nanosecond for each.
            prop_assert!(sent as f64 <= seconds * bytes as f64 * 1.001 + 3000.0);
            prop_assert!(count as f64 <= seconds * f64::from(frames) * 1.001 + 1.0);
        }
    }
}
