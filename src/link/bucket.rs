//! A token bucket that says when bytes may go. Pure.
//!
//! **Invariant (P8):** within any span of time no more goes than the rate times that span and [`BURST`],
//! and one [`Bucket::quantum_bytes`]; while bytes wait, no less.

use std::time::{Duration, Instant};

use crate::units::BitRate;

/// What a link has let go so far, as a time: those who ask are served in the order in which they ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    bytes_per_s: u64,
    /// When all that was granted has gone at the rate.
    spent_until: Instant,
}

impl Bucket {
    pub(super) fn new(rate: BitRate, now: Instant) -> Self {
        Self { bytes_per_s: (rate.0 / 8).max(1), spent_until: now }
    }

    /// How many bytes are asked for at once: so few that others need not wait for long.
    pub(super) fn quantum_bytes(&self) -> usize {
        let bytes = self.bytes_per_s / QUANTA_PER_S;
        usize::try_from(bytes).unwrap_or(usize::MAX).clamp(QUANTUM_BYTES_MIN, QUANTUM_BYTES_MAX)
    }

    /// Grants `bytes`: gives the time from which they may go.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        // An idle link saves up a burst, not more. A sleeper that wakes late catches up by the same.
        let saved = now.checked_sub(BURST).unwrap_or(now);
        let at = self.spent_until.max(saved);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        self.spent_until = at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        at
    }
}

/// Wake-ups on a busy machine are late by a few milliseconds: shorter would lose rate to them.
pub(super) const BURST: Duration = Duration::from_millis(20);
const QUANTA_PER_S: u64 = 200;
/// A full segment of Ethernet.
const QUANTUM_BYTES_MIN: usize = 1448;
const QUANTUM_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start() -> Instant {
        use crate::clock::{Clock, SystemClock};
        SystemClock.now() + Duration::from_secs(3600)
    }

    #[test]
    fn whoever_never_stops_asking_gets_the_rate_and_not_more() {
        let start = start();
        let mut bucket = Bucket::new(BitRate(80_000_000), start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(10) {
            sent += 50_000;
            now = now.max(bucket.take(50_000, now));
        }
        let rate = sent as f64 / 10.0;
        assert!((10_000_000.0..10_300_000.0).contains(&rate), "{rate}");
    }

    #[test]
    fn the_quantum_goes_with_the_rate() {
        let quantum = |rate| Bucket::new(BitRate(rate), start()).quantum_bytes();
        assert_eq!(quantum(64_000), QUANTUM_BYTES_MIN);
        assert_eq!(quantum(80_000_000), 50_000);
        assert_eq!(quantum(10_000_000_000), QUANTUM_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn no_span_of_time_sees_more_than_its_share(
            asks in prop::collection::vec((1u64..60_000, 0u64..40_000, 0u64..9_000), 1..200),
            rate in 1_000_000u64..1_000_000_000,
        ) {
            let start = start();
            let mut bucket = Bucket::new(BitRate(rate), start);
            let (mut now, mut gone) = (start, vec![]);
            for (bytes, idle_us, late_us) in asks {
                now += Duration::from_micros(idle_us);
                let at = bucket.take(bytes, now);
                if at > now {
                    now = at + Duration::from_micros(late_us);
                }
                gone.push((now, bytes));
            }
            for from in 0..gone.len() {
                let mut sum = 0;
                for (at, bytes) in &gone[from..] {
                    let span = (*at - gone[from].0 + BURST).as_secs_f64();
                    // What goes at the span's end was asked for in it, all but its last byte.
                    prop_assert!(sum as f64 <= span * rate as f64 / 8.0 + 60_000.0);
                    sum += bytes;
                }
            }
        }
    }
}
