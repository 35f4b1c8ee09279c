//! What the readers of a snapshot and the pulse beside them have in common: how fast is read, how much was,
//! and which tables somebody else is waiting for.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};

use super::governor::{Governor, Pace, RATE_FIRST};
use crate::clock::Clock;

/// The pace of one source's snapshot.
pub(crate) struct Pacer {
    pace: watch::Sender<Pace>,
    /// Tables that somebody waits to lock.
    wanted: watch::Sender<BTreeSet<u32>>,
    /// When all that was read has been read at the pace.
    spent_until: Mutex<Option<Instant>>,
    read: AtomicU64,
    /// Transactions in which parts were read.
    parts: AtomicU64,
    /// Tables of which parts were read last, the last one at the end.
    tables: Mutex<Vec<Heap>>,
    /// What the governor held it to last, in bytes per second: the next snapshot begins with it.
    held: Mutex<f64>,
}

/// A table that is read: its pages are where others' pages are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Heap {
    pub(crate) id: u32,
    /// Quoted.
    pub(crate) name: String,
    /// Pages of its file; 0 where they are not known.
    pub(crate) blocks: u32,
}

impl Heap {
    pub(crate) fn new(id: u32, name: String, blocks: u32) -> Self {
        Self { id, name, blocks }
    }
}

impl Default for Pacer {
    fn default() -> Self {
        let (pace, wanted) = (watch::Sender::new(Pace::Free), watch::Sender::default());
        Self {
            pace,
            wanted,
            spent_until: Mutex::new(None),
            read: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            tables: Mutex::default(),
            held: Mutex::new(RATE_FIRST),
        }
    }
}

impl Pacer {
    pub(crate) fn set(&self, pace: Pace) {
        self.pace.send_if_modified(|now| std::mem::replace(now, pace) != pace);
    }

    /// A governor that goes on from where the last one was.
    pub(crate) fn governor(&self) -> Governor {
        Governor::new(*self.held())
    }

    /// Keeps what a governor has found.
    pub(crate) fn hold(&self, rate: f64) {
        *self.held() = rate;
    }

    /// Nobody steers any more, or looks who waits.
    pub(crate) fn let_go(&self) {
        self.set(Pace::Free);
        self.want(BTreeSet::new());
        *self.tables() = vec![];
    }

    /// Whether there is somebody who is not to feel it.
    pub(crate) fn is_held(&self) -> bool {
        *self.pace.borrow() != Pace::Free
    }

    /// Whether nothing is read.
    pub(crate) fn is_paused(&self) -> bool {
        *self.pace.borrow() == Pace::Paused
    }

    /// How many bytes of rows a server is to be asked for at once.
    pub(crate) fn sip(&self) -> u64 {
        match *self.pace.borrow() {
            Pace::Free => GULP_BYTES,
            Pace::Paused => SIP_BYTES,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is positive"
            )]
            Pace::Rate(rate) => ((rate * SIP_S) as u64).clamp(SIP_BYTES, SIP_BYTES_MAX),
        }
    }

    /// Bytes read so far, by all readers.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Notes that a part of a table is going to be read.
    pub(crate) fn reads(&self, table: Heap) {
        let mut tables = self.tables();
        tables.retain(|other| other.id != table.id);
        tables.push(table);
        let over = tables.len().saturating_sub(TABLES_KEPT);
        tables.drain(..over);
    }

    /// Of the tables of which parts were read last, the last one of so many pages.
    pub(crate) fn large_table(&self, blocks: u32) -> Option<Heap> {
        self.tables().iter().rev().find(|table| table.blocks >= blocks).cloned()
    }

    /// Notes that a table cannot be looked at now. It is known again with its next part.
    pub(crate) fn leave(&self, table: u32) {
        self.tables().retain(|other| other.id != table);
    }

    /// Notes that a part was read, in a transaction of its own.
    pub(crate) fn part(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
    }

    /// Parts read so far.
    pub(crate) fn parts(&self) -> u64 {
        self.parts.load(Ordering::Relaxed)
    }

    /// Tells which tables others wait to lock behind us.
    pub(crate) fn want(&self, tables: BTreeSet<u32>) {
        self.wanted.send_if_modified(|now| {
            let new = *now != tables;
            *now = tables;
            new
        });
    }

    /// Waits until somebody waits to lock the table. Cancel-safe.
    pub(crate) async fn wanted(&self, table: u32) {
        let mut wanted = self.wanted.subscribe();
        // The sender is ours: it does not go.
        drop(wanted.wait_for(|tables| tables.contains(&table)).await);
    }

    /// Notes that `bytes` were read, and waits until more may be.
    pub(crate) async fn take(&self, bytes: u64, clock: &dyn Clock) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        let mut pace = self.pace.subscribe();
        let mut owed = Some(bytes);
        loop {
            let now = *pace.borrow_and_update();
            let wait = match now {
                Pace::Free => {
                    *self.spent() = None;
                    return;
                }
                Pace::Paused => Duration::MAX,
                Pace::Rate(rate) => self.spend(owed.take().unwrap_or(0), rate, clock.now()),
            };
            if wait.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(wait.min(SLEEP_MAX)) => {}
                changed = pace.changed() => drop(changed),
            }
        }
    }

    /// Spends `bytes` at `rate`: how long until they are paid for.
    fn spend(&self, bytes: u64, rate: f64, now: Instant) -> Duration {
        let mut spent = self.spent();
        let saved = now.checked_sub(BURST).unwrap_or(now);
        #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 bytes")]
        let seconds = (bytes as f64 / rate.max(1.0)).min(OWED_S_MAX);
        let until = spent.map_or(saved, |at| at.max(saved)) + Duration::from_secs_f64(seconds);
        *spent = Some(until);
        until.saturating_duration_since(now)
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Vec<Heap>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, f64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spent(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.spent_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server does at once whose other users are not to feel it: some tenths of a millisecond of one processor of it,
/// or more where it bears a higher rate unfelt.
const SIP_BYTES: u64 = 32 << 10;
const SIP_BYTES_MAX: u64 = 256 << 10;
const SIP_S: f64 = 0.002;
/// What it is asked for when they are gone.
const GULP_BYTES: u64 = 4 << 20;
/// What a reader that was late may catch up.
const BURST: Duration = Duration::from_millis(10);
/// A value of hundreds of megabytes is not paid for for longer, once it is read.
const OWED_S_MAX: f64 = 60.0;
/// As many as are read at once, and some before.
const TABLES_KEPT: usize = 20;
const SLEEP_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn readers_share_the_rate() {
        let pacer = Pacer::default();
        pacer.set(Pace::Rate(1e6));
        let start = SystemClock.now();
        let reader = || async {
            for _ in 0..5 {
                pacer.take(25_000, &SystemClock).await;
            }
        };
        tokio::join!(reader(), reader());
        let took = SystemClock.now() - start;
        assert!(took >= Duration::from_millis(195), "{took:?}");
        assert_eq!(pacer.read(), 250_000);
    }

    #[test]
    fn a_server_that_bears_more_is_asked_for_more_at_once() {
        let pacer = Pacer::default();
        assert!(!pacer.is_held());
        let asked = [Pace::Paused, Pace::Rate(1e6), Pace::Rate(5e7), Pace::Rate(1e10), Pace::Free];
        let asked = asked.map(|pace| {
            pacer.set(pace);
            pacer.sip() >> 10
        });
        assert_eq!(asked, [32, 32, 97, 256, 4096]);
    }

    #[tokio::test]
    async fn a_pause_holds_all_and_its_end_lets_them_go() {
        let pacer = Pacer::default();
        assert!(pacer.take(1 << 30, &SystemClock).now_or_never().is_some());
        pacer.set(Pace::Paused);
        let mut taking = Box::pin(pacer.take(1, &SystemClock));
        assert!(taking.as_mut().now_or_never().is_none());
        pacer.set(Pace::Free);
        taking.await;
    }

    #[tokio::test]
    async fn who_reads_a_table_hears_that_it_is_wanted() {
        let pacer = Pacer::default();
        let mut wanted = Box::pin(pacer.wanted(7));
        pacer.want(BTreeSet::from([8]));
        assert!(wanted.as_mut().now_or_never().is_none());
        pacer.want(BTreeSet::from([7, 8]));
        wanted.await;
    }
}
