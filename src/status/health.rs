//! Whether the box is healthy, as it was looked at last. Pure.
//!
//! Takes a way to look and gives its answer. Keeps the last one, since a look makes a whole report.
//!
//! **Invariant:** one look at a time, and one in [`AGE_MAX`], however many ask.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The last look: when, and what it found.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<(Instant, bool)>>);

impl Health {
    /// Whether the box was healthy at `now`, or less than [`AGE_MAX`] before.
    pub(super) fn at(&self, now: Instant, look: impl FnOnce() -> bool) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((looked, healthy)) if now.saturating_duration_since(looked) < AGE_MAX => healthy,
            _ => {
                let healthy = look();
                *last = Some((now, healthy));
                healthy
            }
        }
    }
}

/// How old an answer may be.
pub(super) const AGE_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn however_many_ask_there_is_one_look_a_second() {
        let (health, start) = (Health::default(), SystemClock.now());
        assert!(health.at(start, || true));
        let late = start + AGE_MAX - Duration::from_millis(1);
        assert!(health.at(late, || unreachable!("it was looked at")));
        assert!(!health.at(start + AGE_MAX, || false));
        assert!(!health.at(start, || unreachable!("others came first")));
    }
}
