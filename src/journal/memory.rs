//! A journal without a disk, for tests of other rooms and for simulation: durable at once, gone with
//! the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::{
    Batch, JournalError, Piece, ReadBatches,
    keep::lock,
    watermark::{Progress, fits},
};
use crate::{
    source::{Durable, Keep, KeepError, Run},
    units::Sequence,
};

/// The journal.
#[derive(Debug, Default)]
pub struct MemoryJournal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: Mutex<Log>,
    moved: Condvar,
    durable: watch::Sender<Durable>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Log {
    progress: Progress,
    batches: BTreeMap<u64, Batch>,
}

struct MemoryReader {
    inner: Arc<Inner>,
    next: u64,
}

impl MemoryJournal {
    /// An empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the batches after `after_batch`.
    pub fn reader(&self, after_batch: u64) -> Box<dyn ReadBatches> {
        Box::new(MemoryReader { inner: self.0.clone(), next: after_batch + 1 })
    }

    /// Gives up all batches through `through_batch`.
    pub fn trim(&self, through_batch: u64) {
        let mut log = lock(&self.0.log);
        let through = through_batch.min(log.progress.durable.batch);
        log.batches = log.batches.split_off(&(through + 1));
    }
}

impl Keep for MemoryJournal {
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>> {
        let mut log = lock(&self.0.log);
        if let Some((from, _)) = log.progress.tear() {
            let _torn = log.batches.split_off(&from);
        }
        let durable = log.progress.durable;
        Box::pin(async move { Ok(durable) })
    }

    fn room(&self, _: u64) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async { Ok(()) })
    }

    fn append(&self, run: Run) -> BoxFuture<'_, Result<(), KeepError>> {
        let mut log = lock(&self.0.log);
        if let Err(why) = fits(log.progress.open.is_some(), &run) {
            return Box::pin(async move { Err(KeepError(why)) });
        }
        let batch = Batch {
            number: log.progress.next_batch,
            piece: run.piece,
            first: Sequence(log.progress.next_sequence),
            changes: run.changes,
            commit: run.commit,
            ends: None,
            bytes: run.bytes,
        };
        log.progress.advance(run.piece, run.changes, run.commit);
        log.batches.insert(batch.number, batch);
        let durable = log.progress.durable;
        drop(log);
        self.0.moved.notify_all();
        self.0.durable.send_if_modified(|known| {
            let moved = *known != durable;
            *known = durable;
            moved
        });
        self.0.grown.notify_one();
        Box::pin(async { Ok(()) })
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.0.durable.subscribe()
    }

    fn grown(&self) -> &Notify {
        &self.0.grown
    }
}

impl ReadBatches for MemoryReader {
    fn next(&mut self, wait: Duration) -> Result<Option<Batch>, JournalError> {
        loop {
            let next = self.next;
            let ahead = |log: &mut Log| log.progress.durable.batch < next;
            let waited = self.inner.moved.wait_timeout_while(lock(&self.inner.log), wait, ahead);
            let (log, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if log.progress.durable.batch < next {
                return Ok(None);
            }
            if let Some(end) = log.progress.torn.end_of(next) {
                self.next = end + 1;
                continue;
            }
            let Some(mut batch) = log.batches.get(&next).cloned() else {
                return Err(JournalError::Stopped(format!("batch {next} was trimmed")));
            };
            if batch.piece != Piece::Whole {
                let last = log.batches.range(next..).find(|(_, later)| later.piece == Piece::Last);
                batch.ends = last.and_then(|(_, last)| last.commit);
            }
            self.next += 1;
            return Ok(Some(batch));
        }
    }
}
