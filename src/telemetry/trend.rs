//! How one source develops: how old the oldest change is that the lake lacks, and when the journal
//! will be full. Pure: it is shown the status now and then, and remembers what it needs.
//!
//! **Invariant:** it keeps at most [`SAMPLES_MAX`] samples, however long an outage lasts: the older ones thin out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::board::SourceStatus;
use crate::units::{Position, Timestamp};

/// What was seen of one source.
#[derive(Debug)]
pub struct Trend {
    samples: VecDeque<Sample>,
    /// Samples nearer than this to the last one are left out.
    every: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    durable: Position,
    written_bytes: u64,
}

impl Default for Trend {
    fn default() -> Self {
        Self { samples: VecDeque::new(), every: EVERY_MIN }
    }
}

impl Trend {
    /// Looks at the status at `now`.
    pub fn sample(&mut self, now: Instant, status: &SourceStatus) {
        let last = self.samples.back().map(|sample| sample.at);
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            return;
        }
        let durable = status.durable.position;
        let sample = Sample { at: now, durable, written_bytes: status.journal_written_bytes };
        self.samples.push_back(sample);
        // The second sample stays as long as it is needed: by the lag if it is not shipped, by the rate if it is young.
        while self.samples.get(1).is_some_and(|second| {
            second.durable <= status.shipped.position
                && now.saturating_duration_since(second.at) > RATE_WINDOW
        }) {
            self.samples.pop_front();
        }
        if self.samples.len() > SAMPLES_MAX {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
            self.every *= 2;
        } else if self.samples.len() < SAMPLES_MAX / 8 {
            self.every = EVERY_MIN;
        }
    }

    /// For how long the oldest durable change that the lake lacks has been durable; zero if it lacks none.
    pub fn lag(&self, now: Instant, wall: Timestamp, status: &SourceStatus) -> Duration {
        let shipped = status.shipped.position;
        if status.durable.position <= shipped {
            return Duration::ZERO;
        }
        let first = self.samples.iter().position(|sample| sample.durable > shipped);
        let seen = first
            .map_or(Duration::ZERO, |index| now.saturating_duration_since(self.samples[index].at));
        if first != Some(0) {
            return seen;
        }
        // Unshipped since before the first sample: then only the commit times tell.
        let told = status.shipped_at.map_or(0, |at| wall.0.saturating_sub(at.0).max(0));
        seen.max(Duration::from_micros(told.unsigned_abs()))
    }

    /// How long the journal still takes changes at the present rate if nothing is shipped; `None` while
    /// nothing comes, or too little was seen.
    pub fn journal_left(&self, status: &SourceStatus) -> Option<Duration> {
        let last = self.samples.back()?;
        let young = |sample: &&Sample| last.at.saturating_duration_since(sample.at) <= RATE_WINDOW;
        let first = self.samples.iter().find(young)?;
        let span = last.at.saturating_duration_since(first.at);
        let written = last.written_bytes.checked_sub(first.written_bytes)?;
        if span < RATE_SPAN_MIN || written == 0 {
            return None;
        }
        let free = status.journal_bytes_max.saturating_sub(status.journal_bytes);
        let seconds = free as f64 / (written as f64 / span.as_secs_f64());
        Some(Duration::from_secs_f64(seconds.min(LEFT_S_MAX)))
    }
}

/// Samples kept for one source: 100 KiB.
pub const SAMPLES_MAX: usize = 4096;
const EVERY_MIN: Duration = Duration::from_secs(1);
/// "At the present rate" means the rate of the last ten minutes.
const RATE_WINDOW: Duration = Duration::from_secs(600);
const RATE_SPAN_MIN: Duration = Duration::from_secs(10);
/// Ten years: further away nothing is forecast.
const LEFT_S_MAX: f64 = 10.0 * 365.0 * 86_400.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        units::{Point, Sequence},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn status(durable: u64, shipped: u64, written: u64) -> SourceStatus {
        let point = |position| Point { sequence: Sequence(0), position: Position(position) };
        SourceStatus {
            durable: point(durable),
            shipped: point(shipped),
            journal_written_bytes: written,
            journal_bytes: 40,
            journal_bytes_max: 400,
            ..SourceStatus::default()
        }
    }

    #[test]
    fn the_lag_is_the_age_of_the_oldest_change_not_shipped() {
        let start = SystemClock.now();
        let mut trend = Trend::default();
        // Idle for an hour, then one change: it is not an hour old.
        trend.sample(start, &status(10, 10, 0));
        trend.sample(start + 3600 * SECOND, &status(20, 10, 1));
        trend.sample(start + 3601 * SECOND, &status(30, 10, 2));
        let at =
            |s: u32, shipped| trend.lag(start + s * SECOND, Timestamp(0), &status(30, shipped, 2));
        assert_eq!(at(3605, 10), 5 * SECOND);
        assert_eq!(at(3605, 20), 4 * SECOND);
        assert_eq!(at(3605, 30), Duration::ZERO);
    }

    #[test]
    fn after_a_restart_the_commit_times_tell_the_lag() {
        let start = SystemClock.now();
        let mut trend = Trend::default();
        let mut status = status(30, 10, 0);
        status.shipped_at = Some(Timestamp(1_000_000));
        trend.sample(start, &status);
        assert_eq!(trend.lag(start, Timestamp(61_000_000), &status), 60 * SECOND);
    }

    #[test]
    fn the_forecast_divides_what_is_free_by_the_present_rate() {
        let start = SystemClock.now();
        let mut trend = Trend::default();
        for s in 0..=20 {
            trend.sample(start + s * SECOND, &status(10, 10, u64::from(s) * 6));
        }
        assert_eq!(trend.journal_left(&status(10, 10, 0)), Some(60 * SECOND));
        let mut idle = Trend::default();
        for s in 0..=20 {
            idle.sample(start + s * SECOND, &status(10, 10, 6));
        }
        assert_eq!(idle.journal_left(&status(10, 10, 6)), None);
    }

    #[test]
    fn a_week_of_outage_is_remembered_within_bounds() {
        let start = SystemClock.now();
        let mut trend = Trend::default();
        let week = 7 * 86_400_u32;
        for s in 0..week {
            trend.sample(start + s * SECOND, &status(u64::from(s) + 1, 0, u64::from(s)));
        }
        assert!(trend.samples.len() <= SAMPLES_MAX);
        let lag = trend.lag(start + week * SECOND, Timestamp(0), &status(u64::from(week), 0, 0));
        assert_eq!(lag, week * SECOND);
        // Half shipped: the answer is as good as the samples are dense.
        let half = trend.lag(
            start + week * SECOND,
            Timestamp(0),
            &status(u64::from(week), u64::from(week / 2), 0),
        );
        assert!(half.abs_diff(week / 2 * SECOND) < 600 * SECOND, "{half:?}");
        // All shipped: dense again.
        let caught_up = status(u64::from(week), u64::from(week), 0);
        trend.sample(start + (week + 2000) * SECOND, &caught_up);
        trend.sample(start + (week + 4000) * SECOND, &caught_up);
        assert!(trend.samples.len() < 4 && trend.every == EVERY_MIN);
    }
}
