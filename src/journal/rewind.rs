//! Goes back to before damage that took changes which the lake does not have yet: the source is asked
//! again for all after the last whole transaction before it, if it still has it.
//!
//! **Invariant (I10, I17):** what is gone back to is the end of a whole transaction, at or behind what
//! is sealed; what came after it is torn, and its sequences are given again. Who may go back is for
//! the caller to judge: the source must still have what comes after.

use std::sync::{Arc, mpsc};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{
    Journal, JournalError,
    catalogue::Entry,
    cipher::SegmentKey,
    keep::{GONE, Shared, lock},
    record::{BatchPrefix, Kind},
    scan::{Item, Scan, Window},
    watermark::Progress,
};
use crate::source::{Durable, KeepError, Piece};

impl Journal {
    /// The first batch after `batch` that a reader has asked for and that is damaged; none if the log
    /// went on before it since. Who seals cannot have passed it: only what nobody has is given up.
    pub fn damaged_after(&self, batch: u64) -> Option<u64> {
        if lock(&self.shared.lost).is_empty() {
            return None;
        }
        let torn = lock(&self.shared.published).torn.clone();
        let lost = lock(&self.shared.lost);
        lost.range(batch.saturating_add(1)..).copied().find(|lost| torn.end_of(*lost).is_none())
    }

    /// The end of the last whole transaction before `batch`, or `floor` if that is all that is known.
    /// Reads one or two segments. Blocks.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`].
    pub fn whole_before(&self, batch: u64, floor: Durable) -> Result<Durable, JournalError> {
        let entries = lock(&self.shared.catalogue).entries().to_vec();
        let may_hold = |entry: &&Entry| entry.first_batch.is_some_and(|first| first <= batch);
        for entry in entries.iter().rev().filter(may_hold) {
            if let Some(found) = last_before(&self.shared, entry, batch)? {
                return Ok(if found.batch > floor.batch { found } else { floor });
            }
        }
        Ok(floor)
    }

    /// Goes on at `to`, the end of a whole transaction: what came after it is read by no one, and the
    /// source sends it again. cancel-safe: it is done all the same.
    pub fn rewind(&self, to: Durable) -> BoxFuture<'static, Result<Durable, KeepError>> {
        let (tell, told) = oneshot::channel();
        self.shared.queue.push_session(Some(to), Box::new(move |outcome| drop(tell.send(outcome))));
        Box::pin(async move { told.await.unwrap_or_else(|_| Err(GONE.into())).map_err(KeepError) })
    }

    /// As [`Journal::rewind`]. Blocks.
    ///
    /// # Errors
    ///
    /// The journal stopped.
    pub fn rewind_blocking(&self, to: Durable) -> Result<Durable, KeepError> {
        let (tell, told) = mpsc::sync_channel(1);
        self.shared.queue.push_session(Some(to), Box::new(move |outcome| drop(tell.send(outcome))));
        told.recv().unwrap_or_else(|_| Err(GONE.into())).map_err(KeepError)
    }
}

impl Shared {
    /// A reader cannot read `batch`.
    pub(crate) fn lose(&self, batch: u64) {
        let mut lost = lock(&self.lost);
        lost.insert(batch);
        if lost.len() > LOST_MAX {
            // What comes first is what is needed first; the others are met again.
            let _later = lost.pop_last();
        }
    }

    /// Whether it was found that `batch` cannot be read. Then nobody reads it any more, also if it can
    /// be read after all: the log may be going back to before it in this moment.
    pub(crate) fn is_lost(&self, batch: u64) -> bool {
        lock(&self.lost).contains(&batch)
    }
}

/// The end of the last whole transaction before `batch` that this segment knows of.
fn last_before(
    shared: &Shared,
    entry: &Entry,
    batch: u64,
) -> Result<Option<Durable>, JournalError> {
    let Ok(mut window) = Window::open(&*shared.device, &entry.path) else { return Ok(None) };
    let Ok(header) = window.header()? else { return Ok(None) };
    let key = SegmentKey::derive(shared.key.expose(), &header.salt, header.number);
    let mut scan = Scan::new(window, Some(Arc::new(key)))?;
    let mut progress = Progress::default();
    let mut found = None;
    while let Some(item) = scan.next()? {
        let Item::Frame(header, offset) = item else { continue };
        if header.kind.is_payload() && header.batch >= batch {
            break;
        }
        let held = scan.held(&header, offset)?;
        match header.kind {
            Kind::Progress | Kind::Rewind => {
                let Some(read) = Progress::decode(held) else { continue };
                progress = read;
            }
            Kind::Batch => {
                let Some((prefix, _)) = BatchPrefix::split(held) else { continue };
                progress.lose(header.batch, header.first);
                progress.advance(header.piece, header.changes, prefix.commit);
                if !matches!(header.piece, Piece::Whole | Piece::Last) {
                    continue;
                }
            }
            _ => continue,
        }
        if progress.durable.batch < batch {
            found = Some(progress.durable);
        }
    }
    Ok(found)
}

/// Damaged batches remembered, of 8 bytes each.
const LOST_MAX: usize = 1000;
