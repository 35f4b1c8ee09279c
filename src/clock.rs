//! Time as a value. The only file that reads the system's clocks.

use std::time::{Instant, SystemTime};

use crate::units::Timestamp;

/// Source of `now`. Logic takes an [`Instant`]; only edges hold a `Clock`.
pub trait Clock: Send + Sync {
    /// Monotonic time: the only one that intervals and orders are made of.
    fn now(&self) -> Instant;

    /// Wall time: for people, signatures and partitions.
    fn wall(&self) -> Timestamp;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
