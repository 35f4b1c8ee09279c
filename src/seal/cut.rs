//! When an epoch ends. Pure: time is an argument.
//!
//! **Invariant:** only asked at the end of a batch that ends a transaction: an epoch is a run of whole
//! transactions, of all tables at once.

use std::time::{Duration, Instant};

use crate::units::Timestamp;

/// The bounds of an epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Encoded bytes at which it ends.
    pub(super) bytes: u64,
    /// Age at which it ends.
    pub(super) age: Duration,
    /// Open tables at which it ends: more would not fit in memory side by side.
    pub(super) tables: usize,
}

/// How far an epoch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// When its first batch was read.
    pub(super) began: Instant,
    /// Encoded bytes of all tables.
    pub(super) bytes: u64,
    /// Tables with an open object.
    pub(super) tables: usize,
    /// Whether commits of two dates are in it.
    pub(super) dates: bool,
}

impl Cut {
    /// Whether an epoch ends here.
    pub(super) fn is_due(&self, progress: &Progress, now: Instant) -> bool {
        progress.dates
            || progress.bytes >= self.bytes
            || progress.tables >= self.tables
            || self.left(progress.began, now).is_zero()
    }

    /// How long an epoch may still wait for more.
    pub(super) fn left(&self, began: Instant, now: Instant) -> Duration {
        self.age.saturating_sub(now.saturating_duration_since(began))
    }
}

/// Days since 1970-01-01 UTC: the partition that a commit belongs to.
pub(super) fn day(at: Timestamp) -> i64 {
    at.0.div_euclid(86_400_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const CUT: Cut = Cut { bytes: 100, age: Duration::from_secs(60), tables: 3 };

    #[test]
    fn each_bound_ends_an_epoch_by_itself() {
        let began = SystemClock.now();
        let young = Progress { began, bytes: 99, tables: 2, dates: false };
        assert!(!CUT.is_due(&young, began + Duration::from_millis(59_999)));
        assert!(CUT.is_due(&young, began + Duration::from_secs(60)));
        assert!(CUT.is_due(&Progress { bytes: 100, ..young }, began));
        assert!(CUT.is_due(&Progress { tables: 3, ..young }, began));
        assert!(CUT.is_due(&Progress { dates: true, ..young }, began));
    }

    #[test]
    fn what_is_left_never_underflows() {
        let began = SystemClock.now();
        assert_eq!(CUT.left(began, began + Duration::from_secs(10)), Duration::from_secs(50));
        assert_eq!(CUT.left(began, began + Duration::from_secs(1000)), Duration::ZERO);
        assert_eq!(CUT.left(began + Duration::from_secs(5), began), CUT.age);
    }

    #[test]
    fn a_day_ends_at_midnight_utc_before_1970_too() {
        let midnight: Timestamp = "2026-11-21T00:00:00Z".parse().unwrap();
        assert_eq!(day(Timestamp(midnight.0 - 1)) + 1, day(midnight));
        assert_eq!(day(Timestamp(-1)), -1);
    }
}
