//! The thread that reads closed segments again, so that a disk that forgets is found out while the
//! source or the lake may still have what it forgot.
//!
//! Each closed segment is read when it was closed and then once in [`EVERY`], from the device and not
//! from the system's memory, at most at [`BYTES_PER_S`]. A restart begins again with the oldest.
//!
//! **Invariant (I10):** what does not match is shown with its range, as a reader would show it, and
//! stops nothing: whoever needs that range meets it there. What was trimmed meanwhile is nobody's loss.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Batches, JournalError,
    catalogue::Entry,
    keep::{Shared, lock},
    recover::length_damage,
    scan::Window,
    verify::{Order, Verifier},
};

/// Time after which a segment is read again.
const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Read at most, in bytes a second. 50 GiB take 3 h 33 min.
const BYTES_PER_S: u32 = 4 << 20;

/// How often new segments are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// A pause is made once it is worth one.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The journal's end is noticed within this time.
const SLICE: Duration = Duration::from_millis(100);

/// The thread's work, until the journal ends.
pub(crate) fn run(shared: &Arc<Shared>) {
    let mut rounds = Rounds::default();
    while !shared.has_ended() {
        let closed = closed(shared);
        match rounds.next(&closed, shared.clock.now()) {
            Some(entry) => read(shared, entry),
            None => rest(shared, LOOK),
        }
    }
}

/// All but the one that is written to.
fn closed(shared: &Shared) -> Vec<Entry> {
    let catalogue = lock(&shared.catalogue);
    let entries = catalogue.entries();
    entries.split_last().map_or_else(Vec::new, |(_, closed)| closed.to_vec())
}

/// Reads one segment, and shows what is wrong with it.
pub(crate) fn read(shared: &Shared, entry: &Entry) {
    let mut pace = Pace::new(shared.clock.now());
    let outcome = read_at_pace(shared, entry, &mut pace);
    if let Err(error) = outcome {
        show(shared, entry, &error);
    }
}

fn read_at_pace(shared: &Shared, entry: &Entry, pace: &mut Pace) -> Result<(), JournalError> {
    let mut window =
        Window::open(&*shared.device, &entry.path).map_err(|error| gone(entry, error))?;
    window.forget()?;
    let file_bytes = window.file_bytes()?;
    // Each segment for itself: what stands before its first batch is in another.
    let mut order = Order::default();
    let mut verifier = Verifier::new(window, &shared.key, &mut order)?;
    loop {
        let before = verifier.offset();
        let more = verifier.step().map_err(|error| unread(entry, &verifier, file_bytes, error))?;
        for error in verifier.gaps.drain(..).chain(verifier.wrong.drain(..)) {
            show(shared, entry, &error);
        }
        if !more {
            break;
        }
        let bytes = verifier.offset() - before;
        shared.board.write(|status| status.journal_scrubbed_bytes += bytes);
        rest(shared, pace.pause(bytes, shared.clock.now()));
        if shared.has_ended() {
            return Ok(());
        }
    }
    let as_it_is = Entry { bytes: file_bytes, ..entry.clone() };
    let next = lock(&shared.catalogue).after(entry.number).cloned();
    let Some(Ok(mut next)) = next.map(|next| Window::open(&*shared.device, &next.path)) else {
        return Ok(());
    };
    let Ok(header) = next.header()? else { return Ok(()) };
    length_damage(&as_it_is, &header).map_or(Ok(()), Err)
}

/// Shows damage, unless the segment is not needed any more.
fn show(shared: &Shared, entry: &Entry, error: &JournalError) {
    let held = closed(shared).iter().any(|held| held.number == entry.number);
    if held && !shared.has_ended() {
        shared.show_damage(error);
    }
}

/// A file that is not there, though nobody trimmed it.
fn gone(entry: &Entry, error: JournalError) -> JournalError {
    match error {
        JournalError::Read { path, why } if why.kind() == ErrorKind::NotFound => {
            JournalError::Damaged {
                path,
                from: 0,
                to: entry.bytes,
                batches: Batches::Segment,
                what: "its file is gone".into(),
            }
        }
        error => error,
    }
}

/// The device refuses to read on.
fn unread(
    entry: &Entry,
    verifier: &Verifier<'_>,
    file_bytes: u64,
    error: JournalError,
) -> JournalError {
    JournalError::Damaged {
        path: entry.path.display().to_string(),
        from: verifier.offset(),
        to: file_bytes,
        batches: Batches::From(verifier.next_batch()),
        what: error.to_string(),
    }
}

/// Sleeps, unless the journal ends.
fn rest(shared: &Shared, time: Duration) {
    let mut left = time;
    while !left.is_zero() && !shared.has_ended() {
        let slice = left.min(SLICE);
        std::thread::sleep(slice);
        left -= slice;
    }
}

/// When each segment was read last.
#[derive(Default)]
struct Rounds(BTreeMap<u64, Instant>);

impl Rounds {
    /// The segment to read at `now`: of those never read the oldest, else the one read longest ago
    /// if that is [`EVERY`] ago. It counts as read from here on.
    fn next<'a>(&mut self, closed: &'a [Entry], now: Instant) -> Option<&'a Entry> {
        self.0.retain(|number, _| closed.iter().any(|entry| entry.number == *number));
        let read_at = |entry: &&Entry| self.0.get(&entry.number).copied();
        let next = closed.iter().min_by_key(|entry| (read_at(entry), entry.number))?;
        let due = read_at(&next).is_none_or(|at| now.saturating_duration_since(at) >= EVERY);
        due.then(|| {
            self.0.insert(next.number, now);
            next
        })
    }
}

/// When the bytes read so far have had their time.
struct Pace(Instant);

impl Pace {
    fn new(now: Instant) -> Self {
        Self(now)
    }

    /// How long to wait after reading `bytes` more.
    fn pause(&mut self, bytes: u64, now: Instant) -> Duration {
        let time = Duration::from_secs_f64(bytes as f64 / f64::from(BYTES_PER_S));
        self.0 = self.0.max(now) + time;
        let ahead = self.0.saturating_duration_since(now);
        if ahead < PAUSE_MIN { Duration::ZERO } else { ahead }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::clock::{Clock, SystemClock};

    fn segments(numbers: &[u64]) -> Vec<Entry> {
        let entry = |number: &u64| Entry {
            number: *number,
            path: PathBuf::new(),
            first_batch: None,
            bytes: 1,
        };
        numbers.iter().map(entry).collect()
    }

    fn number(next: Option<&Entry>) -> Option<u64> {
        next.map(|entry| entry.number)
    }

    #[test]
    fn each_segment_is_read_once_a_day_the_new_ones_first() {
        let (mut rounds, start) = (Rounds::default(), SystemClock.now());
        let closed = segments(&[3, 4]);
        assert_eq!(number(rounds.next(&closed, start)), Some(3));
        assert_eq!(number(rounds.next(&closed, start + LOOK)), Some(4));
        assert_eq!(number(rounds.next(&closed, start + EVERY / 2)), None);
        let closed = segments(&[3, 4, 5]);
        assert_eq!(number(rounds.next(&closed, start + EVERY / 2)), Some(5));
        assert_eq!(number(rounds.next(&closed, start + EVERY - LOOK)), None);
        assert_eq!(number(rounds.next(&closed, start + EVERY)), Some(3));
        // 3 was trimmed.
        assert_eq!(number(rounds.next(&closed[1..], start + EVERY + LOOK)), Some(4));
        assert_eq!(number(rounds.next(&closed[1..], start + EVERY + LOOK)), None);
        assert_eq!(number(rounds.next(&[], start + EVERY * 9)), None);
    }

    #[test]
    fn no_second_has_more_bytes_than_it_may() {
        let start = SystemClock.now();
        let (mut pace, mut now) = (Pace::new(start), start);
        for _ in 0..1000 {
            now += pace.pause(100_000, now);
        }
        let time = (now - start).as_secs_f64();
        let rate = 1000.0 * 100_000.0 / time;
        assert!(
            rate <= f64::from(BYTES_PER_S) * 1.01 && rate > f64::from(BYTES_PER_S) * 0.9,
            "{rate}"
        );
        // What was not used is not saved up.
        now += Duration::from_secs(60);
        assert_eq!(pace.pause(1 << 20, now), Duration::from_millis(250));
    }
}
