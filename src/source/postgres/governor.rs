//! How fast a snapshot may be read so that those who work in the database do not feel it. Pure.
//!
//! It experiments: it reads for some seconds, pauses for a moment, and compares what a small commit took
//! while it read with what it took while it did not. What the two have in common, the load of others and
//! the server's own speed, drops out; what is left is ours. The rate follows the comparison: up while
//! commits are as fast as without us, down in proportion as they are slower.

use std::{collections::VecDeque, time::Duration};

/// Decides the rate.
#[derive(Debug)]
pub(crate) struct Governor {
    /// In bytes per second, over all that is read at once.
    rate: f64,
    /// What commits took in the last pauses.
    calm: VecDeque<Vec<Duration>>,
    stretch: Stretch,
    /// How much slower commits were in the last stretch of reading, 1 for not at all.
    slower: f64,
}

/// What is done until the governor is asked again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stretch {
    pub(crate) pace: Pace,
    pub(crate) length: Duration,
}

/// How fast is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As fast as it goes: nobody is there who could feel it.
    Free,
    /// So many bytes a second.
    Rate(f64),
    /// Not at all.
    Paused,
}

/// What was seen in a stretch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// What each small commit took.
    pub(crate) commits: Vec<Duration>,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// How long it was.
    pub(crate) took: Duration,
    /// Transactions of others that ended.
    pub(crate) others: u64,
}

impl Default for Governor {
    fn default() -> Self {
        Self::new(RATE_FIRST)
    }
}

impl Governor {
    /// Begins with `rate`: what it was when it was judged last.
    pub(crate) fn new(rate: f64) -> Self {
        let stretch = Stretch { pace: Pace::Rate(rate), length: FIRST };
        Self { rate, calm: VecDeque::new(), stretch, slower: 1.0 }
    }

    /// The rate that reading is held to while somebody is there, in bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// What is being done.
    pub(crate) fn stretch(&self) -> Stretch {
        self.stretch
    }

    /// How much slower commits are than without us, as found last; 1 for not at all.
    pub(crate) fn slower(&self) -> f64 {
        self.slower
    }

    /// What is done next, after what was seen in the stretch that ended.
    pub(crate) fn next(&mut self, seen: Seen) -> Stretch {
        let seconds = seen.took.as_secs_f64().max(0.001);
        let crowd = to_f64(seen.others) / seconds;
        let read = to_f64(seen.bytes) / seconds;
        self.stretch = match self.stretch.pace {
            Pace::Paused => {
                self.calm.push_back(seen.commits);
                while self.calm.len() > PAUSES_KEPT {
                    self.calm.pop_front();
                }
                self.reading()
            }
            Pace::Free | Pace::Rate(_) if crowd < CROWD_MIN => {
                self.calm.clear();
                self.slower = 1.0;
                Stretch { pace: Pace::Free, length: READING }
            }
            Pace::Free => {
                // Somebody came: from half of what it was.
                self.rate = (read / 2.0).clamp(RATE_MIN, RATE_MAX);
                PAUSE
            }
            Pace::Rate(_) => {
                self.judge(&seen.commits, read);
                PAUSE
            }
        };
        self.stretch
    }

    fn reading(&self) -> Stretch {
        Stretch { pace: Pace::Rate(self.rate), length: READING }
    }

    /// Sets the rate by what commits took while `read` bytes a second were read.
    fn judge(&mut self, commits: &[Duration], read: f64) {
        let calm: Vec<Duration> = self.calm.iter().flatten().copied().collect();
        let Some(most) = most(&calm) else { return };
        let (Some(calm), Some(busy)) = (slow(&calm, most), slow(commits, most)) else {
            return;
        };
        self.slower = (busy + UNFELT) / (calm + UNFELT);
        let change = (SLOWER_AIM / self.slower).powf(1.5).clamp(CHANGE_MIN, CHANGE_MAX);
        // What is not used says nothing: the rate stays near what is read.
        let used = (read * 2.0).max(RATE_FIRST);
        self.rate = (self.rate.min(used) * change).clamp(RATE_MIN, RATE_MAX);
    }
}

/// Seconds that slow commits took, the slower quarter on average, of which none counts for more than `most`: others
/// are felt in the slow ones, and one that a disk held up says nothing of us. `None` of too few.
fn slow(commits: &[Duration], most: f64) -> Option<f64> {
    let sorted = sorted(commits);
    let slow = sorted.get(sorted.len() * 3 / 4..).filter(|slow| !slow.is_empty())?;
    let sum: f64 = slow.iter().map(|seconds| seconds.min(most)).sum();
    Some(sum / to_f64(u64::try_from(slow.len()).unwrap_or(u64::MAX)))
}

/// The most that one commit counts for, in seconds, by those that were not disturbed.
fn most(calm: &[Duration]) -> Option<f64> {
    let sorted = sorted(calm);
    Some(sorted.get(sorted.len() * 9 / 10)? * MOST)
}

/// In seconds, the fastest first.
fn sorted(commits: &[Duration]) -> Vec<f64> {
    let mut seconds: Vec<f64> = commits.iter().map(Duration::as_secs_f64).collect();
    seconds.sort_by(f64::total_cmp);
    seconds
}

#[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

/// The rate to begin with, while nothing is known.
pub(crate) const RATE_FIRST: f64 = 16_777_216.0;
/// It goes on whatever is felt: a snapshot that never ends harms, too.
pub(crate) const RATE_MIN: f64 = 1_048_576.0;
/// Faster than any box.
const RATE_MAX: f64 = 17_179_869_184.0;
/// How much slower the rate is steered to. The promise is less than 1.15 (P5).
const SLOWER_AIM: f64 = 1.08;
/// By how much the rate changes at once.
const CHANGE_MIN: f64 = 0.65;
const CHANGE_MAX: f64 = 1.4;
/// One commit counts for at most so many times what nine of ten take undisturbed.
const MOST: f64 = 2.0;
/// In seconds. Nobody feels a quarter of a millisecond.
const UNFELT: f64 = 0.000_25;
/// With fewer transactions of others a second there is nobody whose commits could be slower.
const CROWD_MIN: f64 = 5.0;
/// Until it is known whether somebody is there.
const FIRST: Duration = Duration::from_secs(2);
const READING: Duration = Duration::from_secs(4);
const PAUSE: Stretch = Stretch { pace: Pace::Paused, length: Duration::from_millis(500) };
/// The pauses of some 36 seconds are what reading is compared with.
const PAUSES_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server on which a commit takes `base`, and longer the more of its `capacity` is read.
    struct Server {
        base: f64,
        capacity: f64,
        others_per_s: f64,
        random: fastrand::Rng,
    }

    impl Server {
        fn new(base_ms: f64, capacity_mib: f64, seed: u64) -> Self {
            let random = fastrand::Rng::with_seed(seed);
            let capacity = capacity_mib * 1_048_576.0;
            Self { base: base_ms / 1000.0, capacity, others_per_s: 500.0, random }
        }

        fn load(&self, pace: Pace) -> f64 {
            match pace {
                Pace::Paused => 0.0,
                Pace::Free => 0.95,
                Pace::Rate(rate) => (rate / self.capacity).min(0.95),
            }
        }

        /// What is true of it: how much slower commits are.
        fn slower(&self, pace: Pace) -> f64 {
            1.0 / (1.0 - self.load(pace))
        }

        fn run(&mut self, stretch: Stretch) -> Seen {
            let seconds = stretch.length.as_secs_f64();
            let count = if stretch.pace == Pace::Paused { 18 } else { 80 };
            let mean = self.base * self.slower(stretch.pace);
            let commits = (0..count).map(|_| {
                // Half of it is fixed, half of it is waiting.
                let waiting = -self.random.f64().max(1e-9).ln();
                Duration::from_secs_f64(mean * (0.5 + 0.5 * waiting))
            });
            let commits = commits.collect();
            let whole = |amount: f64| Duration::from_secs_f64(amount).as_secs();
            let bytes = whole(self.load(stretch.pace) * self.capacity * seconds);
            let others = whole(self.others_per_s * seconds);
            Seen { commits, bytes, took: stretch.length, others }
        }
    }

    /// Mean of what commits are slower by, and of the rate, over the reading of `turns` turns.
    fn drive(governor: &mut Governor, server: &mut Server, turns: u32) -> (f64, f64) {
        let (mut slower, mut rate, mut seconds) = (0.0, 0.0, 0.0);
        for _ in 0..turns {
            let stretch = governor.stretch();
            let length = stretch.length.as_secs_f64();
            slower += server.slower(stretch.pace) * length;
            rate += server.load(stretch.pace) * server.capacity * length;
            seconds += length;
            let seen = server.run(stretch);
            governor.next(seen);
        }
        (slower / seconds, rate / seconds)
    }

    #[test]
    fn commits_of_others_are_less_than_15_percent_slower() {
        for seed in 0..50 {
            let mut server = Server::new(3.0, 200.0, seed);
            let mut governor = Governor::default();
            drive(&mut governor, &mut server, 40);
            let (slower, rate) = drive(&mut governor, &mut server, 200);
            assert!(slower < 1.15, "seed {seed}: {slower}");
            // And what it may take it takes.
            assert!(rate > 0.02 * server.capacity, "seed {seed}: {rate}");
        }
    }

    #[test]
    fn the_slower_quarter_counts_and_a_commit_that_a_disk_held_up_hardly() {
        let calm = vec![Duration::from_millis(2); 100];
        let most = most(&calm).unwrap();
        let slower = |busy: &[u64]| {
            let busy: Vec<Duration> = busy.iter().map(|ms| Duration::from_millis(*ms)).collect();
            slow(&busy, most).unwrap() / slow(&calm, most).unwrap()
        };
        assert!((slower(&[2; 80]) - 1.0).abs() < 1e-9);
        let held_up = [vec![2; 79], vec![500]].concat();
        assert!(slower(&held_up) < 1.06);
        // A tenth of them half as slow again: their median says nothing of it.
        let felt = [vec![2; 72], vec![3; 8]].concat();
        assert!(slower(&felt) > 1.15);
        assert!(slow(&[], most).is_none());
    }

    #[test]
    fn a_slow_server_is_left_alone_within_seconds_and_never_quite() {
        let mut server = Server::new(20.0, 4.0, 7);
        let mut governor = Governor::default();
        drive(&mut governor, &mut server, 18);
        let pace = governor.reading().pace;
        assert!(matches!(pace, Pace::Rate(rate) if rate < 3.0 * RATE_MIN), "{pace:?}");
        server.capacity = 1.0;
        drive(&mut governor, &mut server, 20);
        assert_eq!(governor.reading().pace, Pace::Rate(RATE_MIN));
    }

    #[test]
    fn where_nobody_is_nothing_is_held_back_until_somebody_comes() {
        let mut server = Server::new(3.0, 200.0, 1);
        server.others_per_s = 0.5;
        let mut governor = Governor::default();
        assert!(governor.stretch().length <= Duration::from_secs(2));
        drive(&mut governor, &mut server, 3);
        assert_eq!(governor.stretch().pace, Pace::Free);
        server.others_per_s = 50.0;
        let seen = server.run(governor.stretch());
        assert_eq!(governor.next(seen), PAUSE);
        let (slower, _) = drive(&mut governor, &mut server, 4);
        assert!(slower < 3.0, "{slower}");
    }

    #[test]
    fn a_rate_that_is_not_used_does_not_grow() {
        let mut governor = Governor::default();
        let mut server = Server::new(3.0, 1e9, 1);
        for _ in 0..400 {
            let mut seen = server.run(governor.stretch());
            seen.bytes = 1000;
            governor.next(seen);
        }
        let pace = governor.reading().pace;
        assert!(matches!(pace, Pace::Rate(rate) if rate <= RATE_FIRST * CHANGE_MAX), "{pace:?}");
    }

    proptest! {
        #[test]
        fn whatever_is_seen_the_rate_stays_within_its_bounds(
            stretches in prop::collection::vec((prop::collection::vec(0u64..100_000, 0..5), any::<u64>(), any::<u64>()), 1..50),
        ) {
            let mut governor = Governor::default();
            for (commits, bytes, others) in stretches {
                let commits = commits.into_iter().map(Duration::from_millis).collect();
                let seen = Seen { commits, bytes, took: governor.stretch().length, others };
                let stretch = governor.next(seen);
                prop_assert!(stretch.length <= READING);
                if let Pace::Rate(rate) = stretch.pace {
                    prop_assert!((RATE_MIN..=RATE_MAX).contains(&rate));
                }
            }
        }
    }
}
