//! Simulation: the road against a model world, one seed after the other.
//!
//! # What runs
//!
//! The road's own code, on one thread: the journal's queue, writer, segments, recovery and readers on a model
//! disk; `Stream`, `Batcher`, `Confirm` and `judge` against a model PostgreSQL that speaks pgoutput over a
//! wire in memory, `bridge::go_past` and `Tables::settle` behind its gaps; the sealer with its cuts, epochs, groups and spool on the same disk; the shipper and the
//! ledger against a model S3 behind a wire that loses, delays and repeats. Time is tokio's, paused: it moves
//! when everybody waits. Threads, files, sockets, the machine's clocks and its chance are not touched, so a
//! seed is a run: the same seed gives the same [`Outcome::hash`].
//!
//! Left out: tables of several parts, damage of journals, Parquet, encryption of objects, sled, the SDK.
//! Mirrored: see `appliance`, `follow` and `tables`.
//!
//! # What is done to it
//!
//! | model | faults |
//! |---|---|
//! | `server`, `session` | sessions cut, crash (slots go back), stop, pauses inside transactions, keepalives at any moment, what was confirmed sent again, a standby promoted with or without loss and slots, slots lost and dropped, a database put back to a backup |
//! | `disk` | unsynced writes torn, lost, reordered; a sync that fails once and drops its pages; full; names lost |
//! | `lake`, `bucket` | answers lost, effects late or twice, 5xx, SlowDown, 409, 403, stalls, stale listings, outages |
//! | `fuse` | SIGKILL between any two effects, SIGTERM, with and without a power cut |
//! | `world` | clocks jump, two boxes on one source |
//!
//! # What is held
//!
//! `oracle` and `chain` judge each step by the invariants of `INVARIANTS.md`; a function that holds one
//! is named after it. At the end faults stop and `world` demands that everything committed is in the
//! ledger once, or before the end of a gap that the ledger names; that the latest rows in the lake are those
//! of the database (`latest`); that no upload, spool file or segment is left; that `ledger::audit` finds the
//! chain whole; and that a second box is fenced. `planted` lists bugs that must be found.

use std::{
    io::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

mod appliance;
mod bell;
mod bucket;
mod chain;
mod chronicle;
mod disk;
mod engine;
mod follow;
mod fuse;
mod halved;
mod lake;
mod latest;
mod oracle;
mod plan;
mod planted;
mod server;
mod session;
mod spool;
mod tables;
mod timeline;
mod workload;
mod world;

pub use chronicle::Violation;
pub use planted::Planted;

/// What became of one seed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Lines of its chronicle.
    pub steps: u64,
    /// Their hash: the same for the same seed and firmware.
    pub hash: u64,
    /// The first invariant that did not hold.
    pub violation: Option<Violation>,
}

/// Runs one seed. `shown`: where its chronicle is written.
pub fn run(seed: u64, planted: Option<Planted>, shown: Option<Box<dyn Write + Send>>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads and sockets needs nothing of the system");
    runtime.block_on(world::run(seed, planted, shown))
}

/// Runs seeds from `from` on, `threads` at once, until one breaks something or `count` are through. `each`
/// hears of every one, in any order. Of those that break something, the first is given.
pub fn search(
    from: u64,
    count: u64,
    planted: Option<Planted>,
    threads: usize,
    each: &(dyn Fn(&Outcome) + Sync),
) -> Option<Outcome> {
    let (next, end) = (AtomicU64::new(from), from.saturating_add(count));
    let found: Mutex<Option<Outcome>> = Mutex::default();
    let work = || {
        loop {
            // Seeds are taken in order: those before one that is found are through, or under way.
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || lock(&found).is_some() {
                break;
            }
            let outcome = run(seed, planted, None);
            each(&outcome);
            let mut found = lock(&found);
            if outcome.violation.is_some() && found.as_ref().is_none_or(|known| seed < known.seed) {
                *found = Some(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Locks; what a panicked holder left ends the run anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
