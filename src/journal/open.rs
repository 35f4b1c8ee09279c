//! Opens and stops a journal.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock, atomic::Ordering},
};

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Journal, JournalError, Options, ReadBatches,
    catalogue::Catalogue,
    cipher::KEY_BYTES,
    device::{Device, FileSystem, is_full},
    keep::{Phase, Published, Shared, lock},
    pack::Packer,
    queue::{QUEUE_BYTES, Queue},
    quota::Quota,
    reader::Reader,
    recover::{Survey, mend, remove_young, survey},
    reserve::{FACTS_ROOM, Reserve},
    scrub,
    segment::{Head, Segment, write_error},
    store::{self, Changes, Image, Store},
    tail::Verdict,
    upkeep::{self, Mailbox},
    writer::{self, Writer},
};
use crate::{clock::Clock, disk, shutdown::Tasks, telemetry::board::SourceBoard};

impl Journal {
    /// Opens the journal of one source: recovers, and begins a new segment. Blocks; a few seconds at
    /// most. The threads end with `tasks`: they finish what is queued first, so whoever records
    /// facts stops before.
    ///
    /// # Errors
    ///
    /// [`JournalError::Held`], [`JournalError::Key`], [`JournalError::Full`] (no room for a segment's
    /// head even without the reserve), [`JournalError::Damaged`] (facts were lost), or the device's.
    pub fn open(
        options: Options,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, JournalError> {
        Self::open_on(Arc::new(FileSystem), options, board, clock, tasks)
    }

    pub(crate) fn open_on(
        device: Arc<dyn Device>,
        options: Options,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, JournalError> {
        let dir = options.dir.clone();
        let hold = hold(&dir, &options)?;
        remove_young(&*device, &dir)?;
        let key = options.key.expose();
        let opened = Store::open(&dir, key);
        let image = opened.as_ref().ok().and_then(|(_, image)| image.as_ref());
        let survey = survey(&*device, &dir, key, image)?;
        // Only now is it known that the key is the right one.
        let (store, image) = open_index(&dir, key, opened);
        let (store, image) = judge_index(&dir, key, &survey.index, (store, image));
        let pending = difference(image.as_ref(), &survey);
        let started = mended(&device, &options, survey, pending)?;
        let (journal, writer) = start(device, options, board, clock, tasks.token(), started);
        if let Err(why) = spawn(&journal, writer, store, hold, tasks) {
            // What was spawned ends, too.
            journal.shared.mailbox.close();
            return Err(write_error(&journal.shared.dir, why));
        }
        Ok(Arc::new(journal))
    }

    /// Reads the batches after `after_batch`.
    pub fn reader(&self, after_batch: u64) -> Box<dyn ReadBatches> {
        Box::new(Reader::new(self.shared.clone(), after_batch))
    }

    /// [`Journal::reader`] for the one who reads behind the writer: the last batches are given as they came.
    pub fn follow(&self, after_batch: u64) -> Box<dyn ReadBatches> {
        lock(&self.shared.recent).follow();
        Box::new(Reader::following(self.shared.clone(), after_batch))
    }

    /// Gives up all batches through `through_batch`: they are in the lake, and the ledger says so
    /// (I8). Answers at once; the segments are unlinked soon after.
    pub fn trim(&self, through_batch: u64) {
        let durable = self.shared.durable.borrow().batch;
        self.shared.trimmed.fetch_max(through_batch.min(durable), Ordering::AcqRel);
        self.shared.mailbox.trim();
        self.shared.queue.poke();
    }

    /// Gives the reserve to another room that found the disk full, and takes no more runs meanwhile: what
    /// is sealed and shipped makes room again (I26).
    pub fn lend_reserve(&self) {
        self.shared.lend.store(true, Ordering::Release);
        self.shared.queue.poke();
    }

    /// Writes what is queued, makes a last checkpoint, and waits until the folder is free. What comes
    /// later is refused. cancel-safe: it goes on stopping.
    pub async fn stop(&self) {
        self.shared.close();
        let mut phase = self.shared.phase.subscribe();
        // The sender lives as long as the journal.
        let _ended = phase.wait_for(|phase| *phase == Phase::Ended).await;
    }

    /// Waits until the journal fails, and says why: the process has to end. cancel-safe.
    pub async fn failed(&self) -> JournalError {
        let mut phase = self.shared.phase.subscribe();
        loop {
            if let Some(error) = lock(&self.shared.failure).take() {
                return error;
            }
            let stopped = lock(&self.shared.published).failed.clone();
            if let Some(why) = stopped {
                return JournalError::Stopped(why);
            }
            if phase.changed().await.is_err() {
                return JournalError::Stopped("its threads ended".into());
            }
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// What the recovered log goes on with.
pub(super) struct Parts {
    segment: Segment,
    packer: Packer,
    survey: Survey,
}

/// A recovered log that can be written to.
pub(crate) struct Started {
    parts: Parts,
    reserve: Reserve,
    disk_full: bool,
    /// What the index lacks.
    pending: Changes,
}

pub(super) fn hold(dir: &Path, options: &Options) -> Result<disk::Hold, JournalError> {
    let path = || dir.display().to_string();
    if options.key.expose().len() != KEY_BYTES {
        return Err(JournalError::Key { path: path() });
    }
    disk::create_dir(dir).map_err(|why| write_error(dir, why))?;
    let hold = disk::Hold::take(dir).map_err(|why| write_error(dir, why))?;
    hold.ok_or_else(|| JournalError::Held { path: path() })
}

/// What does not open of the index is set aside, and a new one is begun.
fn open_index(
    dir: &Path,
    key: &[u8],
    opened: io::Result<(Store, Option<Image>)>,
) -> (Option<Store>, Option<Image>) {
    match opened {
        Ok((store, image)) => (Some(store), image),
        // sled does not open on a full disk: nothing is wrong with it.
        Err(error) if is_full(&error) => (None, None),
        Err(error) => (new_index(dir, key, &error), None),
    }
}

fn new_index(dir: &Path, key: &[u8], why: &dyn std::fmt::Display) -> Option<Store> {
    tracing::warn!(%why, "the journal's index is set aside and made anew from the log");
    let made = store::set_aside(dir).and_then(|()| Store::open(dir, key));
    match made {
        Ok((store, _)) => Some(store),
        Err(error) => {
            tracing::warn!(%error, "the journal runs without its index");
            None
        }
    }
}

/// Keeps the index, or makes it anew.
fn judge_index(
    dir: &Path,
    key: &[u8],
    verdict: &Verdict,
    (store, image): (Option<Store>, Option<Image>),
) -> (Option<Store>, Option<Image>) {
    match verdict {
        Verdict::Agrees | Verdict::Behind => (store, image),
        Verdict::Wrong(why) => {
            drop(store);
            (new_index(dir, key, why), None)
        }
    }
}

/// What the index lacks.
fn difference(image: Option<&Image>, survey: &Survey) -> Changes {
    let mut changes = Changes::new();
    let known = image.map(|image| &image.facts);
    for (key, value) in &survey.facts {
        if known.and_then(|known| known.get(key)) != Some(value) {
            changes.insert(key.clone(), Some(value.clone()));
        }
    }
    for key in known.into_iter().flat_map(|known| known.keys()) {
        if !survey.facts.contains_key(key) {
            changes.insert(key.clone(), None);
        }
    }
    changes
}

/// Mends the log and begins its next segment.
pub(crate) fn mended(
    device: &Arc<dyn Device>,
    options: &Options,
    survey: Survey,
    pending: Changes,
) -> Result<Started, JournalError> {
    if let Some(last) = survey.last.as_ref().filter(|last| last.file_bytes > last.end) {
        let cut_bytes = last.file_bytes - last.end;
        tracing::info!(cut_bytes, "the journal's torn tail is cut");
    }
    mend(&**device, &survey)?;
    let reserve = Reserve::new(&options.dir, options.max_bytes);
    // Given back while the head is written: a full box must open.
    reserve.release(&**device);
    let parts = begin(device, options, survey)?;
    let disk_full = !reserve.restore(&**device);
    Ok(Started { parts, reserve, disk_full, pending })
}

/// Begins a new segment: a restart never writes into an old one (I22).
pub(super) fn begin(
    device: &Arc<dyn Device>,
    options: &Options,
    mut survey: Survey,
) -> Result<Parts, JournalError> {
    let failed = |why| write_error(&options.dir, why);
    let mut packer = Packer::new().map_err(failed)?;
    // No session of the source has survived, so no open transaction will be completed.
    survey.progress.tear();
    let (number, previous_bytes) = survey.next;
    let head = Head { number, previous_bytes, progress: &survey.progress, facts: &survey.facts };
    let segment = Segment::create(&**device, &options.dir, &options.key, &head, &mut packer)?;
    survey.catalogue.push(writer::entry(&segment));
    Ok(Parts { segment, packer, survey })
}

/// The journal, and what its writing thread is to do.
pub(crate) fn start(
    device: Arc<dyn Device>,
    options: Options,
    board: SourceBoard,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
    started: Started,
) -> (Journal, Writer) {
    let Started { parts: Parts { segment, packer, survey }, reserve, disk_full, pending } = started;
    let shared = share(device.clone(), options, board, clock, survey.catalogue);
    *lock(&shared.published) = Published {
        durable: survey.progress.durable,
        torn: survey.progress.torn.clone(),
        segment: segment.header().number,
        synced_bytes: segment.bytes(),
        failed: None,
    };
    shared.durable.send_replace(survey.progress.durable);
    *shared.facts.write().unwrap_or_else(PoisonError::into_inner) = survey.facts;
    shared.board.write(|status| {
        status.durable = survey.progress.durable.point;
        status.transactions_durable = survey.progress.durable.transactions;
    });
    survey.damage.iter().for_each(|damage| shared.show_damage(damage));
    if disk_full {
        segment.reserve(segment.bytes() + FACTS_ROOM);
        shared.set_disk_full(true);
    } else {
        segment.reserve(shared.segment_bytes);
    }
    let now = shared.clock.now();
    let mut writer = Writer {
        shared: shared.clone(),
        device,
        segment,
        progress: survey.progress,
        packer,
        reserve,
        pending,
        pending_bytes: 0,
        token,
        disk_full,
        stuck: false,
        lent_at: None,
        kept_up_at: now,
        checkpoint_at: now,
        checkpoint_frame: 0,
    };
    writer.checkpoint(now);
    shared.mailbox.trim();
    (Journal { shared }, writer)
}

fn share(
    device: Arc<dyn Device>,
    options: Options,
    board: SourceBoard,
    clock: Arc<dyn Clock>,
    catalogue: Catalogue,
) -> Arc<Shared> {
    let used_bytes = catalogue.bytes();
    board.write(|status| {
        status.journal_bytes = used_bytes;
        status.journal_full = false;
        status.journal_bytes_max = options.max_bytes;
    });
    Arc::new(Shared {
        dir: options.dir,
        key: options.key,
        // A budget must hold several segments, or trimming gives nothing back.
        segment_bytes: options.segment_bytes.min(options.max_bytes / 8).max(1),
        max_bytes: options.max_bytes,
        board,
        clock,
        device,
        queue: Queue::default(),
        mailbox: Mailbox::default(),
        catalogue: Mutex::new(catalogue),
        facts: RwLock::default(),
        quota: Mutex::new(Quota::new(options.max_bytes, used_bytes)),
        published: Mutex::default(),
        recent: Mutex::default(),
        moved: Condvar::new(),
        durable: watch::Sender::default(),
        grown: Notify::new(),
        permits: Arc::new(Semaphore::new(QUEUE_BYTES)),
        room: Notify::new(),
        trimmed: 0.into(),
        lost: Mutex::default(),
        full_shown: false.into(),
        lend: false.into(),
        failure: Mutex::new(None),
        phase: watch::Sender::default(),
    })
}

fn spawn(
    journal: &Journal,
    writer: Writer,
    store: Option<Store>,
    hold: disk::Hold,
    tasks: &Tasks,
) -> io::Result<()> {
    let packer = Packer::new()?;
    let shared = journal.shared.clone();
    tasks.thread("journal-upkeep", move || upkeep::run(&shared, store, hold))?;
    let shared = journal.shared.clone();
    tasks.thread("journal-scrub", move || scrub::run(&shared))?;
    let shared = journal.shared.clone();
    tasks.thread("journal-pack", move || writer::pack(&shared, packer))?;
    tasks.thread("journal-write", move || writer.run())
}
