//! How fast a snapshot may be read so that those who work in the database do not feel it. Pure.
//!
//! It experiments: it reads for some seconds, pauses for a moment, and compares what was felt while it read
//! with what was felt while it did not: what a small commit took, what a page took that had to be read, how far
//! standbys were behind. What the two have in common, the load of others and the server's own speed, drops
//! out; what is left is ours. The rate follows the comparison: up while all is as fast as without us, down in
//! proportion as what is felt most is slower.

use std::{collections::VecDeque, time::Duration};

use super::felt::{Felt, Sense, mean};

/// Decides the rate.
#[derive(Debug)]
pub(crate) struct Governor {
    /// In bytes per second, over all that is read at once.
    rate: f64,
    /// What was felt in the last pauses.
    calm: VecDeque<Felt>,
    /// Pages a second that others had to have read, in the last pauses.
    missed: VecDeque<f64>,
    stretch: Stretch,
    /// For how many stretches it has read slowly to see whether somebody is there.
    doubts: u32,
    /// For so many stretches it is known that nobody is.
    deaf: u32,
    /// What was slower most in the last stretch of reading, and how much; 1 for not at all.
    slower: (Sense, f64),
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
    pub(crate) felt: Felt,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// How long it was.
    pub(crate) took: Duration,
    /// Transactions of others that ended.
    pub(crate) others: u64,
    /// Pages that others wanted and the server had to read.
    pub(crate) missed: u64,
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
        let (calm, missed) = (VecDeque::new(), VecDeque::new());
        Self { rate, calm, missed, stretch, doubts: 0, deaf: 0, slower: UNHARMED }
    }

    /// The rate that reading is held to while somebody is there, in bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// What is being done.
    pub(crate) fn stretch(&self) -> Stretch {
        self.stretch
    }

    /// What is slower most than without us, as found last, and how much; 1 for not at all.
    pub(crate) fn slower(&self) -> (Sense, f64) {
        self.slower
    }

    /// What is done next, after what was seen in the stretch that ended.
    pub(crate) fn next(&mut self, seen: Seen) -> Stretch {
        let seconds = seen.took.as_secs_f64().max(0.001);
        let crowd = to_f64(seen.others) / seconds;
        let read = to_f64(seen.bytes) / seconds;
        let few = crowd < CROWD_MIN;
        // Who waits for seconds ends few transactions: that there are few says nothing then.
        let stuck = few && seen.felt.is_stuck() && self.heeds() && self.doubts < DOUBTS_MAX;
        self.deaf = self.deaf.saturating_sub(1);
        self.stretch = match self.stretch.pace {
            Pace::Paused => {
                keep(&mut self.missed, to_f64(seen.missed) / seconds);
                keep(&mut self.calm, seen.felt);
                self.reading()
            }
            Pace::Free | Pace::Rate(_) if stuck => {
                self.rate = RATE_MIN;
                self.doubts += 1;
                PAUSE
            }
            Pace::Free | Pace::Rate(_) if few => {
                self.calm.clear();
                self.missed.clear();
                self.slower = UNHARMED;
                if std::mem::take(&mut self.doubts) > 0 {
                    // It was nobody's harm.
                    self.deaf = DEAF;
                }
                Stretch { pace: Pace::Free, length: READING }
            }
            Pace::Free => {
                // Somebody came: from half of what it was.
                self.rate = (read / 2.0).clamp(RATE_MIN, RATE_MAX);
                PAUSE
            }
            Pace::Rate(_) => {
                self.doubts = 0;
                self.judge(&seen.felt, read);
                PAUSE
            }
        };
        self.stretch
    }

    /// Whether what takes seconds may be our harm: it does not take as long in most pauses, too, and is not known to be
    /// nobody's.
    pub(crate) fn heeds(&self) -> bool {
        let as_long = self.calm.iter().filter(|pause| pause.is_stuck()).count();
        self.deaf == 0 && (self.calm.len() < PAUSES_KEPT / 2 || as_long * 2 < self.calm.len())
    }

    fn reading(&self) -> Stretch {
        Stretch { pace: Pace::Rate(self.rate), length: READING }
    }

    /// Whether others wait for pages to be read. In a pause nothing is read for us; what sessions had read they tell
    /// once a second, so that single pauses say little.
    fn pages_are_missed(&self) -> bool {
        mean(self.missed.iter().copied()).is_some_and(|rate| rate >= MISSED_MIN)
    }

    /// Sets the rate by what was felt while `read` bytes a second were read.
    fn judge(&mut self, felt: &Felt, read: f64) {
        let pages = self.pages_are_missed();
        let senses = Sense::ALL.into_iter().filter(|sense| *sense != Sense::Page || pages);
        let slower = senses
            .filter_map(|sense| Some((sense, felt.slower(sense, &self.calm, (READING, PAUSING))?)));
        let Some(most) = slower.max_by(|one, other| one.1.total_cmp(&other.1)) else { return };
        self.slower = most;
        let change = (SLOWER_AIM / most.1).powf(1.5).clamp(CHANGE_MIN, CHANGE_MAX);
        // What is not used says nothing: the rate stays near what is read.
        let used = (read * 2.0).max(RATE_FIRST);
        self.rate = (self.rate.min(used) * change).clamp(RATE_MIN, RATE_MAX);
    }
}

/// Adds what the newest pause has shown.
fn keep<T>(kept: &mut VecDeque<T>, newest: T) {
    kept.push_back(newest);
    while kept.len() > PAUSES_KEPT {
        kept.pop_front();
    }
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
const UNHARMED: (Sense, f64) = (Sense::Commit, 1.0);
/// With fewer transactions of others a second there is nobody whose commits could be slower.
const CROWD_MIN: f64 = 5.0;
/// Stretches of reading, a minute.
const DEAF: u32 = 15;
/// With fewer pages a second of others that have to be read nobody feels how long that takes.
const MISSED_MIN: f64 = 20.0;
/// A backlog that is ours is gone by then: stretches of reading, half a minute.
const DOUBTS_MAX: u32 = 7;
/// Until it is known whether somebody is there.
const FIRST: Duration = Duration::from_secs(2);
const READING: Duration = Duration::from_secs(4);
const PAUSE: Stretch = Stretch { pace: Pace::Paused, length: PAUSING };
const PAUSING: Duration = Duration::from_millis(500);
/// The pauses of some 36 seconds are what reading is compared with.
const PAUSES_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server on which something takes `base`, and longer the more of its `capacity` is read.
    struct Server {
        sense: Sense,
        base: f64,
        capacity: f64,
        others_per_s: f64,
        missed_per_s: f64,
        random: fastrand::Rng,
    }

    impl Server {
        fn new(base_ms: f64, capacity_mib: f64, seed: u64) -> Self {
            let random = fastrand::Rng::with_seed(seed);
            let capacity = capacity_mib * 1_048_576.0;
            let (sense, base) = (Sense::Commit, base_ms / 1000.0);
            Self { sense, base, capacity, others_per_s: 500.0, missed_per_s: 500.0, random }
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
            let mut felt = Felt::default();
            for _ in 0..count {
                // Half of it is fixed, half of it is waiting.
                let waiting = -self.random.f64().max(1e-9).ln();
                felt.add(self.sense, Duration::from_secs_f64(mean * (0.5 + 0.5 * waiting)));
                if self.sense != Sense::Commit {
                    felt.add(Sense::Commit, Duration::from_millis(2));
                }
            }
            let whole = |amount: f64| Duration::from_secs_f64(amount).as_secs();
            let bytes = whole(self.load(stretch.pace) * self.capacity * seconds);
            let others = whole(self.others_per_s * seconds);
            let missed = whole(self.missed_per_s * seconds);
            Seen { felt, bytes, took: stretch.length, others, missed }
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
    fn who_waits_for_pages_or_for_a_standby_is_felt_as_who_commits_is() {
        for sense in [Sense::Page, Sense::Waited] {
            let mut server = Server { sense, ..Server::new(3.0, 200.0, 3) };
            let mut governor = Governor::default();
            drive(&mut governor, &mut server, 40);
            let (slower, rate) = drive(&mut governor, &mut server, 200);
            assert!(slower < 1.15, "{sense:?}: {slower}");
            assert!(rate > 0.02 * server.capacity, "{sense:?}: {rate}");
            assert_eq!(governor.slower().0, sense);
        }
        // Where all that others want is in memory, a disk that is busy is nothing to them.
        let mut server =
            Server { sense: Sense::Page, missed_per_s: 3.0, ..Server::new(3.0, 200.0, 3) };
        let mut governor = Governor::default();
        drive(&mut governor, &mut server, 40);
        let (_, rate) = drive(&mut governor, &mut server, 100);
        assert!(rate > 0.6 * server.capacity, "{rate}");
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
    fn who_waits_for_seconds_is_not_taken_for_nobody() {
        let seen = |sense, took, others| {
            let mut felt = Felt::default();
            felt.add(sense, took);
            Seen { felt, others, bytes: 1 << 30, took: READING, ..Seen::default() }
        };
        let (stuck, quick) = (Duration::from_secs(2), Duration::from_millis(2));
        for sense in [Sense::Commit, Sense::Page, Sense::Waited] {
            let mut governor = Governor::default();
            governor.next(seen(sense, quick, 0));
            assert_eq!(governor.stretch().pace, Pace::Free);
            // It is read with all might, and one is ended each second.
            assert_eq!(governor.next(seen(sense, stuck, 4)), PAUSE);
            assert_eq!(governor.next(seen(sense, stuck, 0)).pace, Pace::Rate(RATE_MIN));
            // Somebody was there.
            governor.next(seen(sense, quick, 4000));
            assert!(matches!(governor.next(seen(sense, quick, 0)).pace, Pace::Rate(_)));
            // Nobody was, it takes as long in pauses: that is known for a while.
            let mut governor = Governor::default();
            let slowly =
                (0..20).take_while(|_| governor.next(seen(sense, stuck, 4)).pace != Pace::Free);
            assert!((6..14).contains(&slowly.count()), "{sense:?}");
            for _ in 0..DEAF {
                assert_eq!(governor.next(seen(sense, stuck, 4)).pace, Pace::Free);
            }
            assert_eq!(governor.next(seen(sense, stuck, 4)), PAUSE);
            // Others wait as long whether we read or not, and do what they do.
            let mut governor = Governor::default();
            for _ in 0..50 {
                governor.next(seen(sense, stuck, 4000));
            }
            assert!(governor.rate() >= RATE_FIRST, "{sense:?}");
        }
        let mut governor = Governor::default();
        assert_eq!(governor.next(seen(Sense::Follower, stuck, 4)).pace, Pace::Free);
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
            stretches in prop::collection::vec((prop::collection::vec((0..4usize, 0u64..100_000), 0..20), any::<[u64; 3]>()), 1..50),
        ) {
            let mut governor = Governor::default();
            for (samples, [bytes, others, missed]) in stretches {
                let mut felt = Felt::default();
                for (sense, ms) in samples {
                    felt.add(Sense::ALL[sense], Duration::from_millis(ms));
                }
                let seen = Seen { felt, bytes, took: governor.stretch().length, others, missed };
                let stretch = governor.next(seen);
                prop_assert!(stretch.length <= READING);
                if let Pace::Rate(rate) = stretch.pace {
                    prop_assert!((RATE_MIN..=RATE_MAX).contains(&rate));
                }
            }
        }
    }
}
