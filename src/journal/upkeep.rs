//! The thread beside the writer: checkpoints of the index, and the unlinking of trimmed segments.
//!
//! Its fsyncs and unlinks take tens of milliseconds, which no group commit shall wait for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{
    keep::Shared,
    store::{Changes, Checkpoint, Store},
};
use crate::disk;

/// Where the thread finds what to do: at most one checkpoint waits.
#[derive(Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Mail>,
    came: Condvar,
}

#[derive(Default)]
struct Mail {
    checkpoint: Option<(Checkpoint, Changes)>,
    trim: bool,
    closing: bool,
    /// The index gave up: nobody need collect changes for it.
    index_gone: bool,
}

impl Mailbox {
    /// Whether a checkpoint would be taken at once.
    pub(crate) fn takes_checkpoint(&self) -> bool {
        let mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.checkpoint.is_none() && !mail.index_gone
    }

    /// Whether the index is of no more use.
    pub(crate) fn index_gone(&self) -> bool {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).index_gone
    }

    pub(crate) fn checkpoint(&self, checkpoint: Checkpoint, changes: Changes) {
        self.post(|mail| mail.checkpoint = Some((checkpoint, changes)));
    }

    pub(crate) fn trim(&self) {
        self.post(|mail| mail.trim = true);
    }

    /// Nobody keeps an index.
    #[cfg(feature = "sim")]
    pub(crate) fn give_index_up(&self) {
        self.post(|mail| (mail.index_gone, mail.checkpoint) = (true, None));
    }

    /// Whether trimmed segments are to be unlinked; asked once.
    #[cfg(feature = "sim")]
    pub(crate) fn takes_trim(&self) -> bool {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut mail.trim)
    }

    pub(crate) fn close(&self) {
        self.post(|mail| mail.closing = true);
    }

    fn post(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        self.came.notify_one();
    }

    /// Waits for something to do.
    fn take(&self) -> Mail {
        let mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |mail: &mut Mail| mail.checkpoint.is_none() && !mail.trim && !mail.closing;
        let mut mail = self.came.wait_while(mail, idle).unwrap_or_else(PoisonError::into_inner);
        let checkpoint = mail.checkpoint.take();
        let trim = std::mem::take(&mut mail.trim);
        Mail { checkpoint, trim, closing: mail.closing, index_gone: mail.index_gone }
    }
}

/// The thread's work, until the writer has closed the mailbox. `hold` is given back last.
pub(crate) fn run(shared: &Arc<Shared>, store: Option<Store>, hold: disk::Hold) {
    let mut store = store;
    if store.is_none() {
        shared.mailbox.post(|mail| mail.index_gone = true);
    }
    loop {
        let mail = shared.mailbox.take();
        if mail.trim {
            shared.unlink_trimmed();
        }
        if let (Some((checkpoint, changes)), Some(open)) = (mail.checkpoint, &mut store)
            && let Err(error) = open.checkpoint(&checkpoint, changes)
        {
            tracing::warn!(%error, "the journal's index is not written any more: the next start makes it anew");
            shared.mailbox.post(|mail| mail.index_gone = true);
            // Dropping it would write again.
            std::mem::forget(store.take());
        }
        if mail.closing {
            break;
        }
    }
    drop(store);
    drop(hold);
    shared.set_ended();
}
