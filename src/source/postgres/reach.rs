//! How far up the log rows were read that the stream has not come to: a snapshot stands ahead of it.
//!
//! What a snapshot showed must not be lost by the server afterwards: if a standby takes over, or a backup is put
//! back, that lacks some of it, the rows in the lake are of a history that never was, though every change that
//! is held is there. So it counts as held.
//!
//! | fact | what |
//! |---|---|
//! | `source/read/<timeline>` | the last position at which rows of that timeline were, or may have been, read |
//!
//! **Invariant:** it is recorded before the first row is read, and under [`Shared::judging`]: a server is judged before
//! or after that, never beside it. It is forgotten only once nothing of that timeline can be lost any more unseen.

use std::sync::atomic::Ordering;

use super::{error::SourceError, session::Shared};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{ORIGIN_FACT, Origin},
    units::Position,
};

/// Remembers that rows are read at `position` of `timeline`, under a snapshot that was taken after `gaps` gaps.
/// Whether they may be: not if the server was judged otherwise since, or is being judged, which can wait for others'
/// transactions, and a snapshot must not be held meanwhile.
pub(crate) async fn remember(
    shared: &Shared,
    timeline: u32,
    position: Position,
    gaps: u64,
) -> Result<bool, SourceError> {
    let Ok(_turn) = shared.judging.try_lock() else { return Ok(false) };
    let origin: Option<Origin> = facts::read(&*shared.facts, ORIGIN_FACT)?;
    let judged = origin.is_some_and(|origin| origin.timeline == timeline);
    if !judged || shared.gaps.load(Ordering::Relaxed) != gaps {
        return Ok(false);
    }
    if position > reached(&*shared.facts, timeline)? {
        let mut batch = FactBatch::default();
        batch.put(fact(timeline), &position);
        shared.facts.record(batch).await?;
    }
    Ok(true)
}

/// How far rows of a timeline were read.
pub(crate) fn reached(facts: &dyn Facts, timeline: u32) -> Result<Position, FactDamaged> {
    Ok(facts::read(facts, &fact(timeline))?.unwrap_or_default())
}

/// A timeline is left behind all that was read of it.
pub(crate) fn forget(timeline: u32, batch: &mut FactBatch) {
    batch.delete(fact(timeline));
}

/// What comes next begins at `to`, behind a gap. A slot that was moved can begin before what was read ahead.
pub(crate) fn pass(
    facts: &dyn Facts,
    timeline: u32,
    to: Position,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    if reached(facts, timeline)? <= to {
        forget(timeline, batch);
    }
    Ok(())
}

fn fact(timeline: u32) -> String {
    format!("source/read/{timeline}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::MemoryFacts;

    #[test]
    fn a_gap_that_ends_before_what_was_read_forgets_nothing() {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        batch.put(fact(3), &Position(50));
        facts.record_blocking(batch).unwrap();
        for (to, left) in [(49, 50), (50, 0)] {
            let mut batch = FactBatch::default();
            pass(&facts, 3, Position(to), &mut batch).unwrap();
            facts.record_blocking(batch).unwrap();
            assert_eq!(reached(&facts, 3).unwrap(), Position(left), "to {to}");
        }
    }
}
