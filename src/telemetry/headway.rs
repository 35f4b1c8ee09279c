//! How fast the snapshot of one source goes, and how long it still takes. Pure: it is shown the tables' progress
//! now and then.
//!
//! What counts is bytes on the server's disk. A table's share that is read is that of its parts that are sealed, and
//! of those under way as many as their rows let expect: by the parts that are done, or else by the server's estimate.
//!
//! **Invariant:** it keeps at most [`SAMPLES_MAX`] samples, however long a snapshot takes: the older ones thin out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::board::{SourceStatus, TableProgress};

/// What was seen of one source's snapshot.
#[derive(Debug)]
pub struct Headway {
    samples: VecDeque<Sample>,
    /// When it was first seen going.
    began: Option<Instant>,
    /// When there was last more than ever before.
    grew: Option<(Instant, f64)>,
    /// Samples nearer than this to the last one are left out.
    every: Duration,
    /// Bytes to be read in all, and parts that are done, as of the last sample.
    all: (f64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    read: f64,
}

/// How it goes on at the present rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    /// Bytes of the server's disk in a second.
    pub bytes_per_s: f64,
    /// Until all is read.
    pub left: Duration,
}

impl Default for Headway {
    fn default() -> Self {
        Self { samples: VecDeque::new(), began: None, grew: None, every: EVERY_MIN, all: (0.0, 0) }
    }
}

impl Headway {
    /// Looks at the status at `now`.
    pub fn sample(&mut self, now: Instant, status: &SourceStatus) {
        let tables = status.snapshot.values();
        let read: f64 = tables.clone().map(|table| table.share() * disk_bytes(table)).sum();
        let parts = tables.clone().map(|table| u64::from(table.chunks_done)).sum();
        let (all, parts_before) = (tables.map(disk_bytes).sum::<f64>(), self.all.1);
        // A table came, went, was measured or is read again: what was seen is of something else.
        if all.to_bits() != self.all.0.to_bits() || parts < parts_before || all - read < 1.0 {
            *self = Self::default();
        }
        self.all = (all, parts);
        if all - read < 1.0 {
            return;
        }
        let began = *self.began.get_or_insert(now);
        if self.grew.is_none_or(|(_, most)| read > most) {
            self.grew = Some((now, read));
        }
        let last = self.samples.back().map(|sample| sample.at);
        if last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            return;
        }
        self.samples.push_back(Sample { at: now, read });
        // The present rate is that of the second half, and of no less than a minute.
        let window = WINDOW_MIN.max(now.saturating_duration_since(began) / 2);
        while self
            .samples
            .get(1)
            .is_some_and(|second| now.saturating_duration_since(second.at) >= window)
        {
            self.samples.pop_front();
        }
        if self.samples.len() > SAMPLES_MAX {
            let mut odd = false;
            self.samples.retain(|_| {
                odd = !odd;
                odd
            });
            self.every *= 2;
        }
    }

    /// `None` while nothing is read, or too little was seen.
    pub fn forecast(&self) -> Option<Forecast> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let span = last.at.saturating_duration_since(first.at);
        let (grew_at, _) = self.grew?;
        let still = last.at.saturating_duration_since(grew_at) > STILL_MAX;
        if span < SPAN_MIN || last.read <= first.read || still {
            return None;
        }
        let bytes_per_s = (last.read - first.read) / span.as_secs_f64();
        let left = ((self.all.0 - last.read) / bytes_per_s).max(0.0);
        let left = Duration::from_secs_f64((left <= LEFT_S_MAX).then_some(left)?);
        Some(Forecast { bytes_per_s, left })
    }
}

fn disk_bytes(table: &TableProgress) -> f64 {
    (table.bytes_estimated as f64).max(BLOCK_BYTES)
}

/// Samples kept for one source.
const SAMPLES_MAX: usize = 1024;
const EVERY_MIN: Duration = Duration::from_secs(1);
const WINDOW_MIN: Duration = Duration::from_secs(60);
const SPAN_MIN: Duration = Duration::from_secs(5);
/// Nothing was read for so long: nothing is going on.
const STILL_MAX: Duration = Duration::from_secs(300);
/// Ten years: further away nothing is forecast.
const LEFT_S_MAX: f64 = 10.0 * 365.0 * 86_400.0;
/// Even an empty table has to be looked at.
const BLOCK_BYTES: f64 = 8192.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::{Clock, SystemClock};

    const SECOND: Duration = Duration::from_secs(1);

    /// A table of `parts` parts of 1,000 rows and 1 MB, of which so many rows are read, and all whole parts sealed.
    fn table(parts: u32, rows: u64, estimated: u64) -> TableProgress {
        let chunks_done = u32::try_from(rows / 1000).unwrap().min(parts);
        TableProgress {
            chunks_done,
            chunks: parts,
            rows,
            rows_done: u64::from(chunks_done) * 1000,
            rows_estimated: estimated,
            bytes: rows * 500,
            bytes_estimated: u64::from(parts) * 1_000_000,
        }
    }

    fn status(tables: impl IntoIterator<Item = TableProgress>) -> SourceStatus {
        let tables = tables.into_iter().enumerate();
        let snapshot = tables.map(|(n, table)| (format!("t{n}"), table)).collect();
        SourceStatus { snapshot, ..SourceStatus::default() }
    }

    #[test]
    fn what_is_left_goes_on_as_the_second_half_went() {
        let (start, mut headway) = (SystemClock.now(), Headway::default());
        headway.sample(start, &status([table(100, 0, 100_000), table(10, 0, 10_000)]));
        assert_eq!(headway.forecast(), None, "nothing is read yet");
        // A hundred rows a second for 200 s, then 200.
        for s in 0..=300_u32 {
            let rows = u64::from(s.min(200)) * 100 + u64::from(s.saturating_sub(200)) * 200;
            headway
                .sample(start + s * SECOND, &status([table(100, rows, 100_000), table(10, 0, 9)]));
        }
        let found = headway.forecast().unwrap();
        // The last 150 s: 50 at the old rate. 70,000 rows of 1,000 bytes are left.
        let rate = (50.0 * 100.0 + 100.0 * 200.0) / 150.0 * 1000.0;
        assert!((found.bytes_per_s / rate - 1.0).abs() < 0.02, "{found:?}, {rate}");
        assert!((found.left.as_secs_f64() * rate / 70_000_000.0 - 1.0).abs() < 0.02, "{found:?}");
    }

    #[test]
    fn rows_that_the_server_misjudges_count_by_the_parts_that_are_done() {
        // It expects a tenth: while the first part is read that is all there is to go by.
        assert_eq!(table(10, 50, 1000).share(), 0.05);
        assert_eq!(table(10, 999, 1000).share(), 0.999);
        assert_eq!(table(10, 1500, 1000).share(), 0.15);
        // It expects nothing.
        assert_eq!(table(10, 999, 0).share(), 0.0);
        assert_eq!(table(10, 2500, 0).share(), 0.25);
        assert_eq!((table(0, 5, 0).share(), table(1, 1000, 7).share()), (0.0, 1.0));
    }

    #[test]
    fn what_is_whole_is_forecast_no_more_and_what_begins_anew_is_seen_anew() {
        let (start, mut headway) = (SystemClock.now(), Headway::default());
        for s in 0..20_u32 {
            headway.sample(start + s * SECOND, &status([table(4, u64::from(s) * 100, 4000)]));
        }
        assert!(headway.forecast().is_some());
        headway.sample(start + 20 * SECOND, &status([table(4, 100, 4000)]));
        assert_eq!(headway.forecast(), None);
        for s in 21..40_u32 {
            headway.sample(start + s * SECOND, &status([table(4, u64::from(s) * 100, 4000)]));
        }
        assert!(headway.forecast().is_some());
        headway.sample(start + 41 * SECOND, &status([table(4, 4000, 4000)]));
        assert_eq!(headway.forecast(), None);
        assert_eq!(headway.samples.len(), 0);
    }

    #[test]
    fn what_was_not_measured_yet_is_no_speed_and_what_stands_still_has_none() {
        let (start, mut headway) = (SystemClock.now(), Headway::default());
        // As a restart finds it: parts that are done, of a table whose size nobody has asked for.
        let unmeasured = TableProgress { bytes_estimated: 0, ..table(40, 20_000, 40_000) };
        headway.sample(start, &status([unmeasured]));
        for s in 1..=30_u32 {
            let rows = 20_000 + u64::from(s) * 10;
            headway.sample(start + s * SECOND, &status([table(40, rows, 40_000)]));
        }
        let found = headway.forecast().unwrap().bytes_per_s;
        assert!((found / 10_000.0 - 1.0).abs() < 0.02, "{found}");
        // A part that turns out larger than those before: corrected, and not begun anew.
        let found = headway.samples.len();
        let larger = TableProgress { rows_done: 30_000, rows: 30_100, ..table(40, 21_000, 40_000) };
        headway.sample(start + 31 * SECOND, &status([larger.clone()]));
        assert_eq!(headway.samples.len(), found + 1);
        for s in 32..=400_u32 {
            headway.sample(start + s * SECOND, &status([larger.clone()]));
        }
        assert_eq!(headway.forecast(), None);
    }

    #[test]
    fn a_week_of_it_is_remembered_within_bounds() {
        let (start, mut headway) = (SystemClock.now(), Headway::default());
        let week = 7 * 86_400_u32;
        for s in (0..week).step_by(7) {
            let rows = u64::from(s);
            headway.sample(start + s * SECOND, &status([table(2000, rows, 2_000_000)]));
            assert!(headway.samples.len() <= SAMPLES_MAX);
        }
        let left = headway.forecast().unwrap().left.as_secs_f64();
        assert!((left / f64::from(2_000_000 - week) - 1.0).abs() < 0.02, "{left}");
    }

    proptest! {
        #[test]
        fn no_progress_is_more_than_all(
            chunks in 0_u32..9, chunks_done in 0_u32..12, rows: u64, rows_done: u64, rows_estimated: u64,
        ) {
            let table = TableProgress {
                chunks, chunks_done, rows, rows_done, rows_estimated, ..TableProgress::default()
            };
            let share = table.share();
            prop_assert!((0.0..=1.0).contains(&share), "{}", share);
        }
    }
}
