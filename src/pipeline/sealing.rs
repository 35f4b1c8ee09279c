//! The threads that seal: one for the changes of a source, and some for its snapshot.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Road, RunError};
use crate::{
    clock::Clock,
    error::{Cause, Classified, Disposition},
    journal::{self, Decode, Journal, Table},
    seal::{Group, SealError},
    shutdown::Tasks,
    source::postgres::pgoutput::PgDecoder,
    telemetry::board::SourceBoard,
};

impl Road {
    /// How many threads seal the snapshot: as many as read it, within [`SNAPSHOT_THREADS_MAX`].
    pub(super) fn snapshot_threads(&self) -> usize {
        let sources = &self.shared.config.sources;
        let own = sources.iter().find(|source| source.name == self.name);
        let readers = own.map_or(1, |source| source.snapshot_workers);
        threads(usize::try_from(readers).unwrap_or(1), sources.len())
    }

    /// Starts the threads that seal. They go on after what stopped them, at a slow pace, where a person
    /// or time can mend it.
    pub(super) fn seal_threads(
        &self,
        groups: mpsc::Sender<Group>,
        chunks: mpsc::Receiver<journal::SnapshotChunk>,
        tasks: &Tasks,
    ) -> Result<(), RunError> {
        let watch = |room| Watch {
            board: self.board.clone(),
            clock: Arc::clone(&self.shared.clock),
            token: tasks.token(),
            journal: Arc::clone(&self.journal),
            room,
        };
        let (sealer, journal, out, changes) =
            (self.sealer.clone(), Arc::clone(&self.journal), groups.clone(), watch("seal".into()));
        let work = move || {
            changes.keep_running(|| {
                let after = sealer.sealed()?.map_or(0, |end| end.batch);
                let decoder = &|tables: Vec<Arc<Table>>| -> Box<dyn Decode> {
                    Box::new(PgDecoder::new(tables))
                };
                let (out, token) = (out.clone(), changes.token.clone());
                sealer.run_changes(journal.follow(after), decoder, out, token)
            });
        };
        tasks.thread("seal-changes", work).map_err(RunError::Thread)?;
        let chunks = Arc::new(Mutex::new(chunks));
        for number in 1..=self.snapshot_threads() {
            let (sealer, groups, chunks) =
                (self.sealer.clone(), groups.clone(), Arc::clone(&chunks));
            let name = format!("seal-snapshot-{number}");
            let rows = watch(name.clone());
            let work = move || {
                rows.keep_running(|| {
                    let decoder = PgDecoder::default();
                    sealer.run_snapshots(&chunks, &decoder, groups.clone(), rows.token.clone())
                });
            };
            tasks.thread(&name, work).map_err(RunError::Thread)?;
        }
        Ok(())
    }
}

/// As many as read, within what all sources together may have, and at least one.
fn threads(readers: usize, sources: usize) -> usize {
    readers.min(SNAPSHOT_THREADS_MAX / sources.max(1)).max(1)
}

/// Keeps a blocking room running.
struct Watch {
    board: SourceBoard,
    clock: Arc<dyn Clock>,
    token: CancellationToken,
    journal: Arc<Journal>,
    room: String,
}

impl Watch {
    fn keep_running(&self, mut work: impl FnMut() -> Result<(), SealError>) {
        let room = self.room.as_str();
        while !self.token.is_cancelled() {
            let Err(error) = work() else { return };
            let disposition = error.cause().disposition();
            tracing::error!(room, %error, remedy = error.remedy(), "sealing stopped");
            self.board.alarm(room, error.cause(), &error, self.clock.wall());
            if error.cause() == Cause::DiskFull {
                // Else what the journal keeps free stands idle, and nothing ever drains.
                self.journal.lend_reserve();
            }
            let pause = match disposition {
                Disposition::Retry(_) => RETRY_PAUSE,
                Disposition::Halt(_) | Disposition::Fatal(_) | Disposition::Fenced(_) => HALT_PAUSE,
            };
            let until = self.clock.now() + pause;
            while !self.token.is_cancelled() && self.clock.now() < until {
                thread::sleep(TOKEN_LOOK);
            }
            self.board.calm(room);
        }
    }
}

/// Of all sources together, but at least one each: about 32 MiB each of the 256 that are the budget, beside
/// 1 for each request and 48 for each source's changes.
const SNAPSHOT_THREADS_MAX: usize = 2;
const RETRY_PAUSE: Duration = Duration::from_secs(2);
const HALT_PAUSE: Duration = Duration::from_secs(15);
const TOKEN_LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_road_seals_with_as_many_threads_as_read_within_the_budget() {
        assert_eq!(threads(1, 1), 1);
        assert_eq!(threads(2, 1), 2);
        assert_eq!(threads(16, 1), 2);
        assert_eq!(threads(16, 2), 1);
        assert_eq!(threads(16, 9), 1);
    }
}
