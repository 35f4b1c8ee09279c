//! Hands rows to seal, and waits until it has sealed them.
//!
//! **Invariant:** what is held of a table's rows between the server and seal is bounded, however large they are (P4).

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::sleep};

use super::{error::SourceError, gulp::Rows, session::Shared, snapshot::progress};
use crate::{heap::large::Held, source::RowBatch};

/// Parts that were handed to seal as a whole.
#[derive(Default)]
pub(super) struct Handed {
    tables: BTreeSet<u32>,
    /// The channels of those that seal may still be at.
    open: Vec<mpsc::Sender<RowBatch>>,
}

impl Handed {
    pub(super) fn add(&mut self, table: u32, tell: mpsc::Sender<RowBatch>) {
        self.tables.insert(table);
        self.is_open();
        self.open.push(tell);
    }

    /// Whether seal is still at one. A part that it could not seal is not waited for: it is missing, and
    /// the next pass reads it.
    fn is_open(&mut self) -> bool {
        self.open.retain(|tell| !tell.is_closed());
        !self.open.is_empty()
    }
}

/// Hands a batch to seal. Of a part's rows above 1 MiB there is one at a time between the server and seal; one that
/// had to wait for its turn (`large`) has it until it is sealed.
pub(super) async fn hand(
    shared: &Shared,
    table: &str,
    tell: &mpsc::Sender<RowBatch>,
    rows: Rows,
    large: Option<Held<'static>>,
) -> Result<(), SourceError> {
    let length = rows.payload();
    let Rows { bytes, rows, .. } = rows;
    let ended = |_| SourceError::Ended;
    if bytes.len() > ROW_BYTES {
        drop(tell.reserve_many(BATCHES).await.map_err(|_| SourceError::Ended)?);
        taken(tell, bytes).await?;
        if large.is_some() {
            // What comes after it is taken when it is sealed.
            taken(tell, Bytes::new()).await?;
        }
    } else {
        tell.send(RowBatch::Rows(bytes)).await.map_err(ended)?;
    }
    shared.board.write(|status| {
        if let Some(progress) = status.snapshot.get_mut(table) {
            progress.rows += rows;
            progress.bytes += length;
            progress.rows_estimated = progress.rows_estimated.max(progress.rows);
        }
    });
    Ok(())
}

/// Hands a batch to seal, and waits until it is taken, as all before it are.
pub(super) async fn taken(tell: &mpsc::Sender<RowBatch>, bytes: Bytes) -> Result<(), SourceError> {
    tell.send(RowBatch::Rows(bytes)).await.map_err(|_| SourceError::Ended)?;
    drop(tell.reserve_many(BATCHES).await.map_err(|_| SourceError::Ended)?);
    Ok(())
}

/// Waits until seal has let go of every part it was handed.
pub(super) async fn wait_sealed(
    shared: &Shared,
    handed: &Mutex<Handed>,
) -> Result<(), SourceError> {
    loop {
        let (open, tables) = {
            let mut handed = lock(handed);
            (handed.is_open(), handed.tables.clone())
        };
        for id in tables {
            progress(shared, id)?;
        }
        if !open {
            return Ok(());
        }
        sleep(SEALED_POLL).await;
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Batches between the server and seal, per worker: of some 320 KiB each, as the connection's buffer. More waits in the
/// kernel's.
pub(super) const BATCHES: usize = 2;
/// A larger batch is one row, and waits until the ones before it are taken.
const ROW_BYTES: usize = 1 << 20;
const SEALED_POLL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_seal_gave_up_is_waited_for_no_longer() {
        let mut handed = Handed::default();
        assert!(!handed.is_open());
        let parts = [1, 2].map(|table| {
            let (tell, rows) = mpsc::channel(1);
            handed.add(table, tell);
            rows
        });
        assert!(handed.is_open());
        // Whether it was recorded or failed, seal drops what it was given.
        drop(parts);
        assert!(!handed.is_open());
        assert_eq!(handed.tables.len(), 2);
    }
}
