//! How much the journal may hold, and how long that lasts. Pure.
//!
//! **Invariant (I26, I27):** runs wait when the budget or the disk is full and are never dropped;
//! facts are not asked, so that a full box still ships, trims and drains.

use std::time::{Duration, Instant};

/// The budget.
#[derive(Debug)]
pub(crate) struct Quota {
    max_bytes: u64,
    /// Taken over from the source and not yet written, before compression.
    queued_bytes: u64,
    /// Bytes of segment files.
    used_bytes: u64,
    /// Whether runs wait for the budget; ends only when some room has come back.
    exceeded: bool,
    /// Whether the file system refused a write.
    disk_full: bool,
    growth: Growth,
}

/// Why runs wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Full {
    /// The budget is used up.
    Budget,
    /// The file system is.
    Disk,
}

impl Quota {
    pub(crate) fn new(max_bytes: u64, used_bytes: u64) -> Self {
        Self {
            max_bytes,
            queued_bytes: 0,
            used_bytes,
            exceeded: false,
            disk_full: false,
            growth: Growth::default(),
        }
    }

    /// Takes a run of `bytes` in, or says why it has to wait.
    pub(crate) fn admit(&mut self, bytes: u64) -> Result<(), Full> {
        let counted = self.counted(bytes);
        let wanted = self.used_bytes.saturating_add(self.queued_bytes).saturating_add(counted);
        let limit =
            if self.exceeded { self.max_bytes - self.max_bytes / 32 } else { self.max_bytes };
        self.exceeded = wanted > limit;
        if self.disk_full {
            Err(Full::Disk)
        } else if self.exceeded {
            Err(Full::Budget)
        } else {
            self.queued_bytes += counted;
            Ok(())
        }
    }

    /// Whether three quarters of the budget are free, and the disk takes writes.
    pub(crate) fn is_roomy(&self) -> bool {
        !self.disk_full && self.used_bytes < self.max_bytes / 4
    }

    /// A run that was admitted has been written, or given up.
    pub(crate) fn done(&mut self, bytes: u64) {
        self.queued_bytes = self.queued_bytes.saturating_sub(self.counted(bytes));
    }

    /// Segments hold `used_bytes` now; `written_bytes` were added at `now`.
    pub(crate) fn used(&mut self, used_bytes: u64, written_bytes: u64, now: Instant) {
        self.used_bytes = used_bytes;
        self.growth.add(written_bytes, now);
    }

    /// The file system refuses writes, or takes them again.
    pub(crate) fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
    }

    /// Seconds until the budget is used up if nothing were shipped any more, at the present rate of
    /// writing; `None` while nothing is written.
    pub(crate) fn seconds_left(&self, now: Instant) -> Option<u64> {
        let rate = self.growth.bytes_per_s(now);
        let left = self.max_bytes.saturating_sub(self.used_bytes);
        left.checked_div(rate)
    }

    /// A run larger than half the budget is let in when half of it is free, lest it wait for ever.
    fn counted(&self, bytes: u64) -> u64 {
        bytes.min(self.max_bytes / 2)
    }
}

/// Bytes written lately.
#[derive(Debug, Default)]
struct Growth {
    /// Bytes in the window that is over, and its length.
    before: Option<(u64, Duration)>,
    current_bytes: u64,
    current_since: Option<Instant>,
}

/// Long enough to level bursts, short enough to follow the day's load.
const WINDOW: Duration = Duration::from_secs(60);

impl Growth {
    fn add(&mut self, bytes: u64, now: Instant) {
        let since = *self.current_since.get_or_insert(now);
        let length = now.saturating_duration_since(since);
        if length >= WINDOW {
            self.before = Some((self.current_bytes, length));
            self.current_bytes = 0;
            self.current_since = Some(now);
        }
        self.current_bytes += bytes;
    }

    fn bytes_per_s(&self, now: Instant) -> u64 {
        let current =
            self.current_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let (bytes, length) = self.before.unwrap_or_default();
        let millis = (current + length).as_millis().max(1000);
        let rate = u128::from(bytes + self.current_bytes) * 1000 / millis;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn a_quarter_of_the_budget_is_room_enough() {
        let now = SystemClock.now();
        let mut quota = Quota::new(100, 24);
        assert!(quota.is_roomy());
        quota.set_disk_full(true);
        assert!(!quota.is_roomy());
        quota.set_disk_full(false);
        quota.used(25, 1, now);
        assert!(!quota.is_roomy());
        quota.used(10, 0, now);
        assert!(quota.is_roomy());
    }

    #[test]
    fn what_is_queued_counts_and_a_full_budget_drains_before_it_opens() {
        let now = SystemClock.now();
        let mut quota = Quota::new(3200, 0);
        assert_eq!(quota.admit(1600), Ok(()));
        assert_eq!(quota.admit(1600), Ok(()));
        assert_eq!(quota.admit(1), Err(Full::Budget));
        quota.done(1600);
        quota.used(1550, 1550, now);
        assert_eq!(quota.admit(1), Err(Full::Budget), "a few bytes free are not enough");
        quota.used(1400, 0, now);
        assert_eq!(quota.admit(1), Ok(()));
    }

    #[test]
    fn a_run_larger_than_the_budget_passes_when_half_of_it_is_free() {
        let mut quota = Quota::new(1000, 400);
        assert_eq!(quota.admit(5000), Ok(()));
        assert_eq!(quota.admit(5000), Err(Full::Budget));
        quota.done(5000);
        assert_eq!(quota.admit(1), Ok(()));
    }

    #[test]
    fn a_full_disk_lets_no_run_in() {
        let mut quota = Quota::new(1000, 0);
        quota.set_disk_full(true);
        assert_eq!(quota.admit(1), Err(Full::Disk));
        quota.set_disk_full(false);
        assert_eq!(quota.admit(1), Ok(()));
    }

    #[test]
    fn the_forecast_follows_the_rate_of_writing() {
        let start = SystemClock.now();
        let mut quota = Quota::new(1_000_000, 0);
        assert_eq!(quota.seconds_left(start), None);
        for second in 0..120 {
            quota.used(1000 * second, 1000, start + Duration::from_secs(second));
        }
        let left = quota.seconds_left(start + Duration::from_secs(120)).unwrap();
        assert!((870..=885).contains(&left), "{left}");
        assert!(quota.seconds_left(start + Duration::from_secs(1200)).unwrap() > 5000);
    }
}
