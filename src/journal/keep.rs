//! What the journal's threads, readers and callers share; and its face to the source ([`Keep`]) and
//! to every room ([`Facts`]).
//!
//! **Invariant (I27):** a run waits here while the budget or the disk is full; it is never dropped.

use std::{
    collections::BTreeSet,
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::{
    Journal, JournalError,
    catalogue::Catalogue,
    device::Device,
    pack::Density,
    queue::{self, Admission, Counted, Queue},
    quota::{Full, Quota},
    recent::Recent,
    record::{self, FactMap},
    segment::Segment,
    upkeep::Mailbox,
    watermark::{Progress, Torn},
    writer,
};
use crate::{
    clock::Clock,
    config::Secret,
    error::{Cause, Classified},
    facts::{FactBatch, Facts, FactsError},
    source::{Durable, Keep, KeepError, Run},
    telemetry::board::SourceBoard,
    units::ByteSize,
};

/// What all parts of one journal share.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) key: Secret,
    pub(crate) segment_bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) board: SourceBoard,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) queue: Queue,
    pub(crate) mailbox: Mailbox,
    pub(crate) catalogue: Mutex<Catalogue>,
    pub(crate) facts: RwLock<FactMap>,
    pub(crate) quota: Mutex<Quota>,
    pub(crate) published: Mutex<Published>,
    pub(crate) recent: Mutex<Recent>,
    /// [`Shared::published`] changed: for readers, which are threads.
    pub(crate) moved: Condvar,
    pub(crate) durable: watch::Sender<Durable>,
    /// [`Shared::durable`] grew.
    pub(crate) grown: Notify,
    pub(crate) permits: Arc<Semaphore>,
    /// Room may have come back: for runs that wait.
    pub(crate) room: Notify,
    pub(crate) trimmed: AtomicU64,
    /// Batches that a reader has met and could not read.
    pub(crate) lost: Mutex<BTreeSet<u64>>,
    pub(crate) full_shown: AtomicBool,
    /// Another room found the disk full, and is to have the reserve.
    pub(crate) lend: AtomicBool,
    /// The first error, until someone takes it.
    pub(crate) failure: Mutex<Option<JournalError>>,
    pub(crate) phase: watch::Sender<Phase>,
}

/// Where the journal's life is.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Phase {
    #[default]
    Running,
    /// It failed; its threads are ending.
    Failed,
    /// Its threads have ended, and the folder is free.
    Ended,
}

/// What readers may know.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) durable: Durable,
    pub(crate) torn: Torn,
    /// The segment written to, and how far it is synced.
    pub(crate) segment: u64,
    pub(crate) synced_bytes: u64,
    pub(crate) failed: Option<String>,
}

/// What a reader finds at a batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// It can be read.
    Durable,
    /// It is torn, and so are all through this one.
    Torn(u64),
    /// It is not durable yet.
    Ahead,
}

impl Shared {
    /// How densely the next run is to be compressed.
    pub(crate) fn density(&self) -> Density {
        if lock(&self.quota).is_roomy() { Density::Fast } else { Density::Dense }
    }

    pub(crate) fn facts(&self) -> RwLockReadGuard<'_, FactMap> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn apply_facts(&self, batch: FactBatch) {
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        record::apply_facts(&mut facts, batch);
    }

    pub(crate) fn trimmed(&self) -> u64 {
        self.trimmed.load(Ordering::Acquire)
    }

    /// The segment is durable as it is: tells everyone.
    pub(crate) fn publish(&self, progress: &Progress, segment: &Segment, written_bytes: u64) {
        let used_bytes = {
            let mut catalogue = lock(&self.catalogue);
            catalogue.grow(segment.bytes());
            catalogue.bytes()
        };
        lock(&self.quota).used(used_bytes, written_bytes, self.clock.now());
        self.board.write(|status| {
            status.durable = progress.durable.point;
            status.transactions_durable = progress.durable.transactions;
            status.journal_bytes = used_bytes;
            status.journal_syncs += 1;
            status.journal_written_bytes += written_bytes;
        });
        {
            let mut published = lock(&self.published);
            published.durable = progress.durable;
            published.synced_bytes = segment.bytes();
            if published.torn != progress.torn {
                published.torn = progress.torn.clone();
            }
        }
        self.moved.notify_all();
        self.durable.send_if_modified(|durable| {
            let moved = *durable != progress.durable;
            *durable = progress.durable;
            moved
        });
        self.grown.notify_one();
    }

    /// A new segment is written to from here on.
    pub(crate) fn begin_segment(&self, segment: &Segment, progress: &Progress) {
        let used_bytes = {
            let mut catalogue = lock(&self.catalogue);
            catalogue.push(writer::entry(segment));
            catalogue.bytes()
        };
        lock(&self.quota).used(used_bytes, segment.bytes(), self.clock.now());
        self.board.write(|status| {
            status.journal_bytes = used_bytes;
            status.journal_syncs += 1;
            status.journal_written_bytes += segment.bytes();
        });
        let mut published = lock(&self.published);
        published.segment = segment.header().number;
        published.synced_bytes = segment.bytes();
        published.torn = progress.torn.clone();
    }

    /// Unlinks what is trimmed.
    pub(crate) fn unlink_trimmed(&self) {
        let (taken, used_bytes) = {
            let mut catalogue = lock(&self.catalogue);
            (catalogue.take_trimmed(self.trimmed()), catalogue.bytes())
        };
        for entry in taken {
            // One that stays is found again at the next start, and trimmed again.
            if let Err(error) = self.device.remove(&entry.path) {
                tracing::warn!(path = %entry.path.display(), %error, "a trimmed segment is not removed");
            }
        }
        lock(&self.quota).used(used_bytes, 0, self.clock.now());
        self.board.write(|status| status.journal_bytes = used_bytes);
        self.room.notify_waiters();
    }

    /// What a reader finds at `batch`, waiting for it at most `wait`.
    pub(crate) fn standing(&self, batch: u64, wait: Duration) -> Result<Standing, JournalError> {
        let ahead = |published: &mut Published| {
            published.failed.is_none() && published.durable.batch < batch
        };
        let waited = self.moved.wait_timeout_while(lock(&self.published), wait, ahead);
        let (published, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &published.failed {
            return Err(JournalError::Stopped(why.clone()));
        }
        Ok(if published.durable.batch < batch {
            Standing::Ahead
        } else if let Some(end) = published.torn.end_of(batch) {
            Standing::Torn(end)
        } else {
            Standing::Durable
        })
    }

    /// How far segment `number` is synced, if it is the one written to.
    pub(crate) fn synced_bytes(&self, number: u64) -> Option<u64> {
        let published = lock(&self.published);
        (published.segment == number).then_some(published.synced_bytes)
    }

    /// Damage was found: shows it.
    pub(crate) fn show_damage(&self, error: &JournalError) {
        let text = error.to_string();
        self.board.write(|status| {
            if status.journal_damage.len() < DAMAGE_SHOWN_MAX
                && !status.journal_damage.contains(&text)
            {
                tracing::error!(%error, "the journal is damaged");
                status.journal_damage.push(text);
            }
        });
    }

    /// Stops for good.
    pub(crate) fn fail(&self, error: JournalError) {
        let why = error.to_string();
        tracing::error!(%error, "the journal stopped");
        self.board.alarm("journal", error.cause(), &error, self.clock.wall());
        lock(&self.failure).get_or_insert(error);
        self.phase.send_if_modified(|phase| {
            let running = *phase == Phase::Running;
            *phase = (*phase).max(Phase::Failed);
            running
        });
        lock(&self.published).failed.get_or_insert(why.clone());
        self.queue.fail(&why);
        self.moved.notify_all();
        self.permits.close();
        self.room.notify_waiters();
    }

    /// Takes no more in; what is in is still written.
    pub(crate) fn close(&self) {
        self.queue.close();
        self.permits.close();
        self.room.notify_waiters();
    }

    pub(crate) fn has_failed(&self) -> bool {
        *self.phase.borrow() != Phase::Running
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.phase.borrow() == Phase::Ended
    }

    /// The threads have ended.
    pub(crate) fn set_ended(&self) {
        self.phase.send_replace(Phase::Ended);
    }

    /// Shows how long the room lasts.
    pub(crate) fn forecast(&self, now: Instant) {
        let seconds_left = lock(&self.quota).seconds_left(now);
        self.board.write(|status| status.journal_seconds_left = seconds_left);
    }

    /// The file system refuses writes, or takes them again.
    pub(crate) fn set_disk_full(&self, full: bool) {
        lock(&self.quota).set_disk_full(full);
        if full {
            self.show_full(Full::Disk);
        } else {
            self.show_room();
        }
    }

    /// Lets a run in, once there is room for it.
    async fn admit(self: &Arc<Self>, bytes: u64) -> Result<Counted, KeepError> {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(why) = self.queue.refusal() {
                return Err(KeepError(why));
            }
            let admitted = lock(&self.quota).admit(bytes);
            match admitted {
                Ok(()) => {
                    self.show_room();
                    return Ok(Counted { shared: self.clone(), bytes });
                }
                Err(full) => {
                    self.show_full(full);
                    self.queue.poke();
                    room.await;
                }
            }
        }
    }

    fn show_full(&self, full: Full) {
        self.full_shown.store(true, Ordering::Release);
        self.board.write(|status| status.journal_full = true);
        let shipped = self.durable.borrow().batch <= self.trimmed();
        let max = ByteSize(self.max_bytes);
        let (cause, what) = match full {
            Full::Disk => {
                (Cause::DiskFull, format!("the file system of {} is full", self.dir.display()))
            }
            Full::Budget if shipped => {
                (Cause::JournalFull, format!("one transaction is larger than `max_bytes`, {max}"))
            }
            Full::Budget => (Cause::JournalFull, format!("all of `max_bytes`, {max}, is used")),
        };
        self.board.alarm("journal", cause, &what, self.clock.wall());
    }

    fn show_room(&self) {
        self.room.notify_waiters();
        if self.full_shown.swap(false, Ordering::AcqRel) && !self.has_failed() {
            self.board.write(|status| status.journal_full = false);
            self.board.calm("journal");
        }
    }
}

impl Keep for Journal {
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>> {
        let (tell, told) = oneshot::channel();
        self.shared.queue.push_session(None, Box::new(move |outcome| drop(tell.send(outcome))));
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(GONE.into())).map_err(KeepError) })
    }

    fn room(&self, bytes: u64) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move { self.shared.admit(bytes).await.map(drop) })
    }

    fn append(&self, mut run: Run) -> BoxFuture<'_, Result<(), KeepError>> {
        Box::pin(async move {
            let bytes = run.bytes.len();
            let counted = self.shared.admit(bytes as u64).await?;
            let wanted = u32::try_from(bytes.clamp(1, queue::QUEUE_BYTES)).expect("8 MiB at most");
            let permit = self.shared.permits.clone().acquire_many_owned(wanted).await;
            let Ok(permit) = permit else {
                return Err(KeepError(self.shared.queue.refusal().unwrap_or_else(|| GONE.into())));
            };
            let turn = std::mem::take(&mut run.turn);
            let admission = Admission { counted, permit, turn };
            self.shared.queue.push_run(run, admission).map_err(KeepError)
        })
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.shared.durable.subscribe()
    }

    fn grown(&self) -> &Notify {
        &self.shared.grown
    }
}

impl Journal {
    fn push_facts(&self, batch: FactBatch, answer: queue::Answer<()>) {
        let bytes = batch
            .changes
            .iter()
            .map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len) + FACT_FIELDS_BYTES);
        let bytes: usize = bytes.sum();
        if bytes > FACTS_BYTES_MAX {
            return answer(Err(format!("a batch of {bytes} B is larger than {FACTS_BYTES_MAX} B")));
        }
        let mut plain = Vec::with_capacity(bytes);
        for (key, value) in &batch.changes {
            record::push_fact(&mut plain, key, value.as_deref());
        }
        self.shared.queue.push_facts(queue::Facts { plain, batch, answer });
    }
}

impl Facts for Journal {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.facts().get(key).cloned()
    }

    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let facts = self.shared.facts();
        let from = facts.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let under = from.take_while(|(key, _)| key.starts_with(prefix));
        under.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn record(&self, batch: FactBatch) -> BoxFuture<'static, Result<(), FactsError>> {
        let (tell, told) = oneshot::channel();
        self.push_facts(batch, Box::new(move |outcome| drop(tell.send(outcome))));
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(GONE.into())).map_err(FactsError) })
    }

    fn record_blocking(&self, batch: FactBatch) -> Result<(), FactsError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.push_facts(batch, Box::new(move |outcome| drop(tell.send(outcome))));
        told.recv().unwrap_or_else(|_| Err(GONE.into())).map_err(FactsError)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Facts of one batch, in bytes: far below a frame's bound, compressed or not.
const FACTS_BYTES_MAX: usize = 32 << 20;

/// Bytes of a fact's lengths and flag in a frame.
const FACT_FIELDS_BYTES: usize = 9;

/// Damaged ranges shown at once.
const DAMAGE_SHOWN_MAX: usize = 100;

pub(crate) const GONE: &str = "its threads ended";
