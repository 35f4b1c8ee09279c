//! What waits to be written: runs on their way through compression, then all in the order of arrival.
//!
//! **Invariant (I25):** runs are bounded by [`QUEUE_BYTES`] of permits, held until they are durable or
//! given up; facts by [`FACTS_QUEUE_BYTES`], beyond which they are refused (rooms wait for each
//! batch of facts, so this is never reached but by a defect).

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    keep::{Shared, lock},
    pack::Packed,
    watermark::fits,
};
use crate::{
    heap::large::Turn,
    source::{Durable, Run},
};

/// Bytes of runs taken over and not yet durable, before compression. Those that are kept as they came ([`super::recent`])
/// stand beside their compressed parts until then: of rows that nothing compresses twice as much.
pub(crate) const QUEUE_BYTES: usize = 8 << 20;

/// Bytes of facts that wait.
pub(crate) const FACTS_QUEUE_BYTES: usize = 64 << 20;

/// Bytes of one group commit, about.
pub(crate) const GROUP_BYTES: usize = 4 << 20;

/// Told the outcome, or why the journal stopped.
pub(crate) type Answer<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// What the packing thread takes.
pub(crate) enum Raw {
    Run(Run, Admission),
    Session(Option<Durable>, Answer<Durable>),
}

/// What the writing thread takes.
pub(crate) enum Work {
    Run(Packed, Admission),
    /// With a point: the log goes on there.
    Session(Option<Durable>, Answer<Durable>),
    /// Facts as they stand in a frame, before compression.
    Facts(Facts),
}

/// Facts to be recorded.
pub(crate) struct Facts {
    pub(crate) plain: Vec<u8>,
    pub(crate) batch: crate::facts::FactBatch,
    pub(crate) answer: Answer<()>,
}

/// A run's place in the quota and in the queue, given back when dropped.
#[expect(dead_code, reason = "held for their drop")]
pub(crate) struct Admission {
    pub(crate) counted: Counted,
    pub(crate) permit: OwnedSemaphorePermit,
    pub(crate) turn: Turn,
}

/// A run's place in the quota, given back when dropped.
pub(crate) struct Counted {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        lock(&self.shared.quota).done(self.bytes);
        self.shared.room.notify_waiters();
    }
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    raw_came: Condvar,
    work_came: Condvar,
}

#[derive(Default)]
struct Inner {
    raw: VecDeque<Raw>,
    /// Whether the packing thread has something in its hands.
    packing: bool,
    work: VecDeque<Work>,
    /// Whether a transaction is open after all that was taken in.
    open: bool,
    facts_bytes: usize,
    /// Something else than work wants the writer.
    poked: bool,
    closing: bool,
    failed: Option<String>,
}

/// What the writing thread gets.
pub(crate) enum Taken {
    Group(Vec<Work>),
    Idle,
    /// Everything was written, and nothing more will come.
    Closed,
}

impl Queue {
    /// Takes a run in.
    pub(crate) fn push_run(&self, run: Run, admission: Admission) -> Result<(), String> {
        let mut inner = self.accepting()?;
        inner.open = fits(inner.open, &run)?;
        inner.raw.push_back(Raw::Run(run, admission));
        self.raw_came.notify_one();
        Ok(())
    }

    /// Begins a session: what comes next begins a transaction, at `to` if given.
    pub(crate) fn push_session(&self, to: Option<Durable>, answer: Answer<Durable>) {
        match self.accepting() {
            Ok(mut inner) => {
                inner.open = false;
                inner.raw.push_back(Raw::Session(to, answer));
                self.raw_came.notify_one();
            }
            Err(why) => answer(Err(why)),
        }
    }

    /// Takes facts in.
    pub(crate) fn push_facts(&self, facts: Facts) {
        let refused = match self.accepting() {
            Ok(mut inner) if inner.facts_bytes + facts.plain.len() <= FACTS_QUEUE_BYTES => {
                inner.facts_bytes += facts.plain.len();
                inner.work.push_back(Work::Facts(facts));
                self.work_came.notify_one();
                return;
            }
            Ok(_) => "more facts wait than fit in memory".into(),
            Err(why) => why,
        };
        (facts.answer)(Err(refused));
    }

    /// For the packing thread: the next thing, or `None` at the end.
    pub(crate) fn take_raw(&self) -> Option<Raw> {
        let mut inner = self.lock();
        inner.packing = false;
        self.work_came.notify_one();
        loop {
            if inner.failed.is_some() {
                return None;
            }
            if let Some(raw) = inner.raw.pop_front() {
                inner.packing = true;
                return Some(raw);
            }
            if inner.closing {
                return None;
            }
            inner = self.raw_came.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`Queue::take_raw`] would answer at once with something.
    #[cfg(feature = "sim")]
    pub(crate) fn has_raw(&self) -> bool {
        let inner = self.lock();
        inner.failed.is_none() && !inner.raw.is_empty()
    }

    /// Whether anything waits for the writing thread.
    #[cfg(feature = "sim")]
    pub(crate) fn has_work(&self, facts_only: bool) -> bool {
        let inner = self.lock();
        let wanted = |work: &Work| !facts_only || matches!(work, Work::Facts(_));
        inner.failed.is_none() && (!inner.raw.is_empty() || inner.work.iter().any(wanted))
    }

    /// For the packing thread: hands on what it took.
    pub(crate) fn push_work(&self, work: Work) {
        let mut inner = self.lock();
        inner.packing = false;
        match &inner.failed {
            Some(why) => {
                let why = why.clone();
                drop(inner);
                refuse(work, &why);
            }
            None => {
                inner.work.push_back(work);
                self.work_came.notify_one();
            }
        }
    }

    /// For the writing thread: all that waits, up to one group. Waits at most `wait`.
    /// `facts_only`: runs and sessions stay, since there is no room for them.
    pub(crate) fn take(&self, facts_only: bool, wait: Duration) -> Taken {
        let ready = |inner: &Inner| {
            inner.poked
                || inner.closing
                || inner.failed.is_some()
                || inner.work.iter().any(|work| !facts_only || matches!(work, Work::Facts(_)))
        };
        let waited = self.work_came.wait_timeout_while(self.lock(), wait, |inner| !ready(inner));
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.poked = false;
        let group = inner.take_group(facts_only);
        if !group.is_empty() {
            return Taken::Group(group);
        }
        let done = inner.raw.is_empty() && !inner.packing && inner.work.is_empty();
        // A full disk must not keep a box from stopping: what is not durable is asked for again.
        let closed = inner.closing && (done || facts_only);
        if closed || inner.failed.is_some() { Taken::Closed } else { Taken::Idle }
    }

    /// For the writing thread: puts a group back that found no room.
    pub(crate) fn put_back(&self, group: Vec<Work>) {
        let mut inner = self.lock();
        for work in group.into_iter().rev() {
            if let Work::Facts(facts) = &work {
                inner.facts_bytes += facts.plain.len();
            }
            inner.work.push_front(work);
        }
    }

    /// Wakes the writing thread.
    pub(crate) fn poke(&self) {
        self.lock().poked = true;
        self.work_came.notify_one();
    }

    /// Takes no more in; what is in is still written.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.raw_came.notify_all();
        self.work_came.notify_all();
    }

    /// Stops at once: what waits is told why.
    pub(crate) fn fail(&self, why: &str) {
        let (raw, work) = {
            let mut inner = self.lock();
            inner.failed.get_or_insert_with(|| why.into());
            (std::mem::take(&mut inner.raw), std::mem::take(&mut inner.work))
        };
        self.raw_came.notify_all();
        self.work_came.notify_all();
        for raw in raw {
            if let Raw::Session(_, answer) = raw {
                answer(Err(why.into()));
            }
        }
        work.into_iter().for_each(|work| refuse(work, why));
    }

    /// Whether the end has been asked for.
    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Why nothing more is taken in, if so.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.accepting().err()
    }

    fn accepting(&self) -> Result<MutexGuard<'_, Inner>, String> {
        let inner = self.lock();
        match &inner.failed {
            Some(why) => Err(why.clone()),
            None if inner.closing => Err("it was told to stop".into()),
            None => Ok(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_group(&mut self, facts_only: bool) -> Vec<Work> {
        let mut group = vec![];
        let mut kept = VecDeque::new();
        let mut bytes = 0;
        while bytes < GROUP_BYTES
            && let Some(work) = self.work.pop_front()
        {
            match &work {
                Work::Facts(facts) => {
                    self.facts_bytes -= facts.plain.len();
                    bytes += facts.plain.len();
                }
                Work::Run(..) | Work::Session(..) if facts_only => {
                    kept.push_back(work);
                    continue;
                }
                Work::Run(packed, _) => bytes += packed.parts.iter().map(Vec::len).sum::<usize>(),
                Work::Session(..) => {}
            }
            group.push(work);
        }
        kept.append(&mut self.work);
        self.work = kept;
        group
    }
}

fn refuse(work: Work, why: &str) {
    match work {
        Work::Run(..) => {}
        Work::Session(_, answer) => answer(Err(why.into())),
        Work::Facts(facts) => (facts.answer)(Err(why.into())),
    }
}
