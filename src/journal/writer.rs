//! The two threads that write: one compresses, one gathers groups, writes, syncs and publishes.
//!
//! **Invariant (I6):** nothing is published, answered or visible before the fdatasync that covers it.
//! After any failure but a full disk the journal stops for good. Without load a group is written as
//! soon as it arrives; under load, groups are what came while the last one was synced.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    JournalError,
    catalogue::Entry,
    device::Device,
    keep::{Shared, lock},
    pack::Packer,
    queue::{Admission, Answer, Facts, Raw, Taken, Work},
    record::Kind,
    reserve::{FACTS_ROOM, Reserve},
    segment::{Head, Label, Segment},
    store::{Changes, Checkpoint},
    watermark::Progress,
};
use crate::{facts::FactBatch, heap::large::Turn, source::Durable};

/// The writing thread's state.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) segment: Segment,
    pub(crate) progress: Progress,
    pub(crate) packer: Packer,
    pub(crate) reserve: Reserve,
    /// Facts changed since the index's last checkpoint.
    pub(crate) pending: Changes,
    pub(crate) token: tokio_util::sync::CancellationToken,
    pub(crate) disk_full: bool,
    /// The last group found no room although the reserve is given back: it is tried again after a rest.
    pub(crate) stuck: bool,
    /// When the reserve was last given to another room.
    pub(crate) lent_at: Option<Instant>,
    /// When upkeep was done, and the last checkpoint made.
    pub(crate) kept_up_at: Instant,
    pub(crate) checkpoint_at: Instant,
    pub(crate) checkpoint_frame: u64,
    pub(crate) pending_bytes: usize,
}

/// How long the writer sleeps without work: then it looks after the disk, the token and the index.
const TICK: Duration = Duration::from_millis(200);

/// What a trimmed segment must give back to be ended on a full disk.
const ROLL_BYTES_FULL: u64 = 1 << 20;

/// Longer than a group takes to be sealed.
const LENT_TIME: Duration = Duration::from_secs(30);

/// Time between checkpoints of the index.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Changes collected for the index before it is written without waiting for its time.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// What a group leads to.
struct Outcome {
    facts: Vec<Facts>,
    sessions: Vec<Answer<Durable>>,
    admissions: Vec<Admission>,
}

/// The packing thread's work, until the queue ends.
pub(crate) fn pack(shared: &Arc<Shared>, mut packer: Packer) {
    while let Some(raw) = shared.queue.take_raw() {
        if let Err(error) = pack_one(shared, &mut packer, raw) {
            return shared.fail(error);
        }
    }
}

/// Packs one thing, and hands it on.
pub(crate) fn pack_one(shared: &Shared, packer: &mut Packer, raw: Raw) -> Result<(), JournalError> {
    let work = match raw {
        Raw::Session(to, answer) => Work::Session(to, answer),
        Raw::Run(run, admission) => {
            let keeps = lock(&shared.recent).wants(run.piece, run.bytes.len());
            match packer.run(run, shared.density(), keeps) {
                Ok(packed) => Work::Run(packed, admission),
                Err(why) => {
                    return Err(JournalError::Write {
                        path: shared.dir.display().to_string(),
                        why,
                    });
                }
            }
        }
    };
    shared.queue.push_work(work);
    Ok(())
}

impl Writer {
    /// Writes until the queue ends or something fails.
    pub(crate) fn run(mut self) {
        match self.work() {
            Err(error) => self.shared.fail(error),
            Ok(()) if self.shared.has_failed() => {}
            Ok(()) => self.finish(),
        }
        self.shared.mailbox.close();
    }

    fn work(&mut self) -> Result<(), JournalError> {
        while self.turn(TICK)? {
            if std::mem::take(&mut self.stuck) {
                std::thread::sleep(TICK);
            }
        }
        Ok(())
    }

    /// Writes the next group, waiting for it at most `wait`, and does what has to be done now and then.
    /// False: the queue has ended.
    pub(crate) fn turn(&mut self, wait: Duration) -> Result<bool, JournalError> {
        if self.token.is_cancelled() {
            self.shared.close();
        }
        match self.shared.queue.take(self.disk_full, wait) {
            Taken::Group(group) => self.commit(group)?,
            Taken::Idle => {}
            Taken::Closed => return Ok(false),
        }
        self.keep_up()?;
        Ok(true)
    }

    /// Writes one group and makes it durable, or puts it back if there is no room.
    fn commit(&mut self, mut group: Vec<Work>) -> Result<(), JournalError> {
        let mark = self.segment.begin();
        let before = self.progress.clone();
        let bytes_before = self.segment.bytes();
        let written = group.iter_mut().try_for_each(|work| self.write(work));
        match written.and_then(|()| self.segment.sync()) {
            Ok(()) => {}
            Err(JournalError::Full { .. }) => {
                self.segment.cut(mark)?;
                self.progress = before;
                // Who makes room for them may have to wait for his turn.
                for work in &mut group {
                    if let Work::Run(packed, admission) = work {
                        admission.turn = Turn::default();
                        // It may be long until there is room.
                        packed.came = None;
                    }
                }
                self.shared.queue.put_back(group);
                self.wait_for_room();
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let mut outcome = Outcome { facts: vec![], sessions: vec![], admissions: vec![] };
        for work in group {
            match work {
                Work::Run(packed, admission) => {
                    if let Some(batch) = packed.came() {
                        lock(&self.shared.recent).put(batch);
                    }
                    outcome.admissions.push(admission);
                }
                Work::Session(_, answer) => outcome.sessions.push(answer),
                Work::Facts(facts) => outcome.facts.push(facts),
            }
        }
        self.publish(outcome, self.segment.bytes() - bytes_before);
        Ok(())
    }

    fn write(&mut self, work: &mut Work) -> Result<(), JournalError> {
        match work {
            Work::Run(packed, _) => {
                let (batch, first) = (self.progress.next_batch, self.progress.next_sequence);
                let last = packed.parts.len() - 1;
                for (number, plain) in packed.parts.iter().enumerate() {
                    let kind = if number == last { Kind::Batch } else { Kind::Part };
                    let (piece, changes) = (packed.piece, packed.changes);
                    self.segment.push(Label { kind, piece, batch, first, changes }, plain)?;
                }
                packed.place = (batch, first);
                self.progress.advance(packed.piece, packed.changes, packed.commit);
                Ok(())
            }
            Work::Session(Some(to), _) => {
                self.progress.rewind(*to);
                let plain = self.progress.encode();
                self.segment.push(Label::control(Kind::Rewind, &self.progress, 0), &plain)
            }
            Work::Session(None, _) => match self.progress.tear() {
                Some((from, to)) => {
                    let plain = [from.to_le_bytes(), to.to_le_bytes()].concat();
                    self.segment.push(Label::control(Kind::Session, &self.progress, 0), &plain)
                }
                None => Ok(()),
            },
            Work::Facts(facts) => {
                let packed = self.packer.facts(&facts.plain).map_err(|why| {
                    JournalError::Write { path: self.segment.path().display().to_string(), why }
                })?;
                let count = facts.batch.changes.len() as u64;
                self.segment.push(Label::control(Kind::Facts, &self.progress, count), &packed)
            }
        }
    }

    /// Everything in the segment is durable: says so.
    fn publish(&mut self, outcome: Outcome, written_bytes: u64) {
        let collect = !self.shared.mailbox.index_gone();
        let mut answers = vec![];
        for Facts { batch, answer, .. } in outcome.facts {
            if collect {
                self.collect(&batch);
            }
            self.shared.apply_facts(batch);
            answers.push(answer);
        }
        self.shared.publish(&self.progress, &self.segment, written_bytes);
        drop(outcome.admissions);
        answers.into_iter().for_each(|answer| answer(Ok(())));
        let durable = self.progress.durable;
        outcome.sessions.into_iter().for_each(|answer| answer(Ok(durable)));
    }

    fn collect(&mut self, batch: &FactBatch) {
        for (key, value) in &batch.changes {
            self.pending_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            self.pending.insert(key.clone(), value.clone());
        }
    }

    /// What has to be done now and then.
    fn keep_up(&mut self) -> Result<(), JournalError> {
        let now = self.shared.clock.now();
        if self.shared.lend.swap(false, Ordering::AcqRel) {
            self.lent_at = Some(now);
            if !self.disk_full {
                self.disk_is_full();
            }
        }
        if now.saturating_duration_since(self.kept_up_at) >= TICK {
            self.kept_up_at = now;
            self.look_after_disk(now);
            self.shared.forecast(now);
        }
        if self.wants_roll() {
            self.roll()?;
        }
        let due = now.saturating_duration_since(self.checkpoint_at) >= CHECKPOINT_EVERY;
        let changed = self.segment.frame() > self.checkpoint_frame;
        if changed && (due || self.pending_bytes >= PENDING_BYTES_MAX) {
            self.checkpoint(now);
        }
        Ok(())
    }

    /// A segment ends when it is large, or when all in it has been trimmed and it is not small: on a full
    /// disk even a little of that may be what is missing.
    fn wants_roll(&self) -> bool {
        let bytes = self.segment.bytes();
        let used = self.progress.next_batch > self.segment.header().first_batch;
        let trimmed = self.shared.trimmed() >= self.progress.next_batch - 1;
        if self.disk_full {
            return used && trimmed && bytes >= ROLL_BYTES_FULL;
        }
        bytes >= self.shared.segment_bytes
            || used && trimmed && bytes >= self.shared.segment_bytes / 4
    }

    fn roll(&mut self) -> Result<(), JournalError> {
        self.progress.torn.trim(self.shared.trimmed());
        let number = self.segment.header().number + 1;
        let made = {
            let facts = self.shared.facts();
            let previous_bytes = self.segment.bytes();
            let head = Head { number, previous_bytes, progress: &self.progress, facts: &facts };
            Segment::create(
                &*self.device,
                &self.shared.dir,
                &self.shared.key,
                &head,
                &mut self.packer,
            )
        };
        let young = match made {
            Ok(young) => young,
            Err(JournalError::Full { .. }) => {
                // The old one goes on growing until there is room.
                self.disk_is_full();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        young.reserve(if self.disk_full { FACTS_ROOM } else { self.shared.segment_bytes });
        self.shared.begin_segment(&young, &self.progress);
        std::mem::replace(&mut self.segment, young).close();
        self.shared.mailbox.trim();
        self.checkpoint(self.shared.clock.now());
        Ok(())
    }

    /// Tells the index how far the log is, unless it is still at the last checkpoint.
    pub(crate) fn checkpoint(&mut self, now: Instant) {
        if !self.shared.mailbox.takes_checkpoint() {
            return;
        }
        let header = self.segment.header();
        let checkpoint = Checkpoint {
            is_plain: false,
            segment: header.number,
            salt: header.salt,
            frame: self.segment.frame(),
            facts: self.shared.facts().len() as u64,
            progress: self.progress.clone(),
        };
        self.shared.mailbox.checkpoint(checkpoint, std::mem::take(&mut self.pending));
        (self.checkpoint_at, self.checkpoint_frame) = (now, self.segment.frame());
        self.pending_bytes = 0;
    }

    /// A group found no room.
    fn wait_for_room(&mut self) {
        if !self.disk_full {
            // With the reserve given back, facts can still be written.
            self.disk_is_full();
        } else if self.shared.queue.is_closing() {
            self.shared.queue.fail("the disk is full");
        } else {
            self.stuck = true;
        }
    }

    fn disk_is_full(&mut self) {
        self.disk_full = true;
        self.reserve.release(&*self.device);
        self.keep_facts_room();
        self.shared.set_disk_full(true);
    }

    /// On a full disk, before others take what is free.
    fn keep_facts_room(&self) {
        self.segment.reserve(self.segment.bytes() + FACTS_ROOM);
    }

    /// Takes runs again once the reserve is back and a queue's worth of room beside it. Who has been given
    /// it has it for a while.
    fn look_after_disk(&mut self, now: Instant) {
        if !self.disk_full {
            return;
        }
        self.keep_facts_room();
        let lent = self.lent_at.is_some_and(|at| now.saturating_duration_since(at) < LENT_TIME);
        if !lent && self.reserve.restore(&*self.device) {
            self.disk_full = false;
            self.shared.set_disk_full(false);
            // It began while there was no room to reserve.
            self.segment.reserve(self.shared.segment_bytes);
        }
    }

    /// The last checkpoint of a clean stop. Waits for the one before it.
    fn finish(&mut self) {
        self.shared.queue.fail("it was told to stop");
        while !self.shared.mailbox.takes_checkpoint() && !self.shared.mailbox.index_gone() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.checkpoint(self.shared.clock.now());
    }
}

/// The new segment's line in the catalogue.
pub(crate) fn entry(segment: &Segment) -> Entry {
    let header = segment.header();
    Entry {
        number: header.number,
        path: segment.path().to_owned(),
        first_batch: Some(header.first_batch),
        bytes: segment.bytes(),
    }
}
