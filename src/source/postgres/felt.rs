//! What those who work in a database feel of a snapshot, and how much of it is the snapshot's. Pure.

use std::{collections::VecDeque, time::Duration};

/// What is felt, each by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sense {
    /// How long a small commit takes, on this server alone.
    Commit,
    /// How long it takes to read a page that may not be in memory.
    Page,
    /// How far a standby is behind that commits wait for.
    Waited,
    /// How far any other standby is behind.
    Follower,
}

/// What was felt in a stretch: per sense what it took each time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Felt {
    commits: Vec<Duration>,
    /// Pages of `heap`.
    pages: Vec<Duration>,
    heap: u32,
    waited: Vec<Duration>,
    followers: Vec<Duration>,
}

impl Sense {
    pub(super) const ALL: [Self; 4] = [Self::Commit, Self::Page, Self::Waited, Self::Follower];

    /// What nobody feels, in seconds.
    fn unfelt(self) -> f64 {
        match self {
            Self::Commit | Self::Waited => 0.000_25,
            // Of one that is in memory what takes is the way to the server and back.
            Self::Page => 0.001,
            Self::Follower => 0.1,
        }
    }

    /// Whether it is a distance, which adds up while it is not made up for.
    fn is_distance(self) -> bool {
        matches!(self, Self::Waited | Self::Follower)
    }
}

impl Felt {
    /// A page of a table. Of several tables the last one's are kept: one is in memory, the other is not.
    pub(crate) fn add_page(&mut self, heap: u32, took: Duration) {
        if std::mem::replace(&mut self.heap, heap) != heap {
            self.pages.clear();
        }
        self.pages.push(took);
    }

    pub(crate) fn add(&mut self, sense: Sense, took: Duration) {
        match sense {
            Sense::Commit => &mut self.commits,
            Sense::Page => &mut self.pages,
            Sense::Waited => &mut self.waited,
            Sense::Follower => &mut self.followers,
        }
        .push(took);
    }

    /// What it took by one sense, in order of time.
    pub(crate) fn of(&self, sense: Sense) -> &[Duration] {
        match sense {
            Sense::Commit => &self.commits,
            Sense::Page => &self.pages,
            Sense::Waited => &self.waited,
            Sense::Follower => &self.followers,
        }
    }

    /// Whether somebody who was there had to wait for seconds.
    pub(super) fn is_stuck(&self) -> bool {
        [&self.commits, &self.pages, &self.waited].into_iter().flatten().any(|took| *took >= STUCK)
    }

    /// How many times slower it was than in the pauses, by how long it and each of them was; `None` if too little was
    /// felt.
    pub(super) fn slower(
        &self,
        sense: Sense,
        pauses: &VecDeque<Self>,
        (length, pause_length): (Duration, Duration),
    ) -> Option<f64> {
        let pauses = pauses.iter().filter(|pause| sense != Sense::Page || pause.heap == self.heap);
        let pauses: Vec<&[Duration]> = pauses.map(|pause| pause.of(sense)).collect();
        let (calm, busy) = (sorted(pauses.iter().copied().flatten()), sorted(self.of(sense)));
        let most = most(&calm, sense.unfelt())?;
        let (calm, busy) = (slow(&calm, most)?, slow(&busy, most)?);
        let level = (busy + sense.unfelt()) / (calm + sense.unfelt());
        if !sense.is_distance() {
            return Some(level);
        }
        // What was lost while it was read is not made up for within a pause: both see it. But in the one it grows, or
        // stays, and in the other it shrinks.
        let mut paused: Vec<f64> = pauses.iter().map(|pause| grown(pause, pause_length)).collect();
        paused.sort_by(f64::total_cmp);
        Some(level.max(1.0 + grown(self.of(sense), length) - paused.get(paused.len() / 2)?))
    }
}

/// What slow ones took, the slower quarter on average, of which none counts for more than `most`: others
/// are felt in the slow ones, and one that a disk held up says nothing of us. `None` of too few.
fn slow(sorted: &[f64], most: f64) -> Option<f64> {
    mean(sorted.get(sorted.len() * 3 / 4..)?.iter().map(|seconds| seconds.min(most)))
}

/// The most that one counts for, by those that were not disturbed.
fn most(calm: &[f64], unfelt: f64) -> Option<f64> {
    Some(calm.get(calm.len() * 9 / 10)?.max(unfelt) * MOST)
}

/// By how many seconds a distance grew in a second of a stretch; one that jumps says little.
fn grown(samples: &[Duration], length: Duration) -> f64 {
    let quarter = samples.len() / 4;
    let behind = |part: &[Duration]| mean(part.iter().map(Duration::as_secs_f64));
    match (behind(&samples[..quarter]), behind(&samples[samples.len() - quarter..])) {
        // From the middle of one quarter to the middle of the other.
        (Some(first), Some(last)) => {
            ((last - first) / (length.as_secs_f64() * 0.75)).clamp(-1.0, 1.0)
        }
        _ => 0.0,
    }
}

/// In seconds, the fastest first.
fn sorted<'a>(samples: impl IntoIterator<Item = &'a Duration>) -> Vec<f64> {
    let mut seconds: Vec<f64> = samples.into_iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = u32::try_from(values.len()).ok().filter(|count| *count > 0)?;
    Some(values.sum::<f64>() / f64::from(count))
}

/// What takes longer slows reading down at once.
pub(crate) const STUCK: Duration = Duration::from_secs(1);
/// One counts for at most so many times what nine of ten take undisturbed.
const MOST: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTHS: (Duration, Duration) = (Duration::from_secs(4), Duration::from_millis(500));

    fn felt(sense: Sense, ms: impl IntoIterator<Item = u64>) -> Felt {
        let mut felt = Felt::default();
        ms.into_iter().for_each(|ms| felt.add(sense, Duration::from_millis(ms)));
        felt
    }

    #[test]
    fn the_slower_quarter_counts_and_a_commit_that_a_disk_held_up_hardly() {
        let calm = VecDeque::from([felt(Sense::Commit, [2; 100])]);
        let slower =
            |busy: Vec<u64>| felt(Sense::Commit, busy).slower(Sense::Commit, &calm, LENGTHS);
        assert!((slower(vec![2; 80]).unwrap() - 1.0).abs() < 1e-9);
        let held_up = [vec![2; 79], vec![500]].concat();
        assert!(slower(held_up).unwrap() < 1.06);
        // A tenth of them half as slow again: their median says nothing of it.
        let felt_by_some = [vec![2; 72], vec![3; 8]].concat();
        assert!(slower(felt_by_some).unwrap() > 1.15);
        assert!(slower(vec![]).is_none());
        assert!(felt(Sense::Commit, [2]).slower(Sense::Page, &calm, LENGTHS).is_none());
    }

    #[test]
    fn a_table_in_memory_is_not_what_one_on_the_disk_is_compared_with() {
        let pages = |heap, ms: [u64; 20]| {
            let mut felt = Felt::default();
            ms.into_iter().for_each(|ms| felt.add_page(heap, Duration::from_millis(ms)));
            felt
        };
        let calm = VecDeque::from([pages(1, [4; 20]), pages(2, [9; 20])]);
        let slower = |felt: &Felt| felt.slower(Sense::Page, &calm, LENGTHS);
        assert!((slower(&pages(2, [9; 20])).unwrap() - 1.0).abs() < 1e-9);
        assert!(slower(&pages(1, [9; 20])).unwrap() > 1.5);
        assert!(slower(&pages(3, [9; 20])).is_none());
        // The last one's count.
        let mut both = pages(1, [1; 20]);
        both.add_page(2, Duration::from_millis(9));
        assert_eq!(both.of(Sense::Page), [Duration::from_millis(9)]);
    }

    #[test]
    fn a_standby_that_falls_behind_while_it_is_read_is_felt_though_a_pause_does_not_mend_it() {
        for sense in [Sense::Waited, Sense::Follower] {
            // A minute behind, and so many seconds more in each.
            let behind = |grows: f64, samples: u32, length: Duration| {
                let mut felt = Felt::default();
                for n in 0..samples {
                    let at = f64::from(n) / f64::from(samples) * length.as_secs_f64();
                    felt.add(sense, Duration::from_secs_f64(60.0 + at * grows));
                }
                felt
            };
            let slower = |reading: f64, paused: f64| {
                let pauses = VecDeque::from([behind(paused, 20, LENGTHS.1)]);
                behind(reading, 80, LENGTHS.0).slower(sense, &pauses, LENGTHS).unwrap()
            };
            assert!(slower(0.5, 0.0) > 1.4);
            assert!(slower(0.0, -0.5) > 1.4);
            // It does so whether we read or not.
            for alike in [-0.5, 0.0, 0.5] {
                assert!(slower(alike, alike) < 1.03, "{alike}");
            }
        }
        // Ten milliseconds are nothing to who only looks, but to who waits for them.
        let of = |sense| {
            let pauses = VecDeque::from([felt(sense, [5; 20])]);
            felt(sense, [10; 80]).slower(sense, &pauses, LENGTHS).unwrap()
        };
        assert!(of(Sense::Waited) > 1.5);
        assert!(of(Sense::Follower) < 1.08);
    }
}
