//! The journal as the source sees it: what was lost of it counts only where it is not sealed yet.
//!
//! **Invariant:** the journal never stands before what is sealed, and is never taken back before it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::RunError;
use crate::{
    journal::{Durable, Journal, Keep, KeepError, Run},
    seal::Sealer,
    units::{Position, Timestamp},
};

/// The journal, and how far it is sealed.
pub(super) struct Held {
    journal: Arc<Journal>,
    sealer: Sealer,
}

impl Held {
    /// Joins them. A journal that has lost what was sealed already goes on behind it. Blocks.
    ///
    /// # Errors
    ///
    /// The facts do not read, or the journal stopped.
    pub(super) fn new(journal: Arc<Journal>, sealer: Sealer) -> Result<Self, RunError> {
        sealer.sealed()?;
        let held = Self { journal, sealer };
        let (sealed, durable) = (held.sealed(), *held.journal.durable().borrow());
        if durable.batch < sealed.batch {
            tracing::warn!(%sealed.point.position, "the journal has lost its end, which was sealed");
            held.journal.rewind_blocking(sealed).map_err(RunError::Keep)?;
        }
        Ok(held)
    }

    /// The end of what is sealed, as a watermark.
    fn sealed(&self) -> Durable {
        let durable = *self.journal.durable().borrow();
        // That the fact reads was seen at the start.
        let Some(sealed) = self.sealer.sealed().ok().flatten() else { return Durable::default() };
        let begins = Position(sealed.end.position.0.saturating_sub(1));
        // How many transactions that is stands nowhere; it is counted for people only.
        Durable { point: sealed.end, batch: sealed.batch, begins, at: Timestamp(0), ..durable }
    }
}

impl Keep for Held {
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>> {
        self.journal.session()
    }

    fn room(&self, bytes: u64) -> BoxFuture<'_, Result<(), KeepError>> {
        self.journal.room(bytes)
    }

    fn append(&self, run: Run) -> BoxFuture<'_, Result<(), KeepError>> {
        self.journal.append(run)
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.journal.durable()
    }

    fn grown(&self) -> &Notify {
        self.journal.grown()
    }

    fn has_lost(&self) -> bool {
        // Asked often: what is sealed is looked up only where it matters.
        let damaged = self.journal.damaged_after(0);
        damaged.is_some_and(|_| self.journal.damaged_after(self.sealed().batch).is_some())
    }

    fn whole(&self) -> BoxFuture<'_, Result<Option<Durable>, KeepError>> {
        let sealed = self.sealed();
        let Some(lost) = self.journal.damaged_after(sealed.batch) else {
            return Box::pin(async { Ok(None) });
        };
        let journal = Arc::clone(&self.journal);
        let looked = tokio::task::spawn_blocking(move || journal.whole_before(lost, sealed));
        Box::pin(async move {
            let looked = looked.await.map_err(|why| KeepError(why.to_string()))?;
            looked.map(Some).map_err(|why| KeepError(why.to_string()))
        })
    }

    fn rewind(&self, to: Durable) -> BoxFuture<'_, Result<Durable, KeepError>> {
        self.journal.rewind(to)
    }
}
