//! Keeps the set of tables up to date while the stream runs: finds new ones, publishes them, has
//! their rows read.
//!
//! **Invariant (I12):** a table is published before the snapshot that its rows are read under is
//! taken, so that each of its changes is in the snapshot or in the stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    catalog::Listed,
    connect::{Backoff, Target},
    error::SourceError,
    login::Purpose,
    session::{self, Fresh, Shared},
    slot,
    snapshot::{Pass, plan_fact, progress},
    wire::Wire,
};
use crate::{
    error::Classified, facts::FactBatch, shutdown::Tasks, source::SnapshotChunk,
    telemetry::board::SourceState,
};

/// The tables of one source, as long as the process runs.
pub(crate) struct Tables {
    shared: Arc<Shared>,
    chunks: mpsc::Sender<SnapshotChunk>,
    tasks: Tasks,
    /// The snapshot that came with the slot, until it is used.
    fresh: Option<Fresh>,
    wire: Option<Wire>,
    /// Tables whose snapshot is known to be whole.
    whole: BTreeSet<u32>,
}

impl Tables {
    pub(crate) fn new(
        shared: Arc<Shared>,
        chunks: mpsc::Sender<SnapshotChunk>,
        tasks: Tasks,
        fresh: Option<Fresh>,
    ) -> Self {
        Self { shared, chunks, tasks, fresh, wire: None, whole: BTreeSet::new() }
    }

    /// Runs until it is dropped, or for good.
    ///
    /// # Errors
    ///
    /// Only what the process must end for. All else is an alarm, and tried again.
    pub(crate) async fn run(mut self) -> SourceError {
        let (mut looking, mut reading) = (Backoff::default(), Backoff::default());
        let mut pass: Option<oneshot::Receiver<Result<(), SourceError>>> = None;
        loop {
            let wait = match self.look().await {
                Ok(missing) => {
                    self.shared.board.calm(LOOK_ALARM);
                    looking.reset();
                    if pass.is_none() && !missing.is_empty() {
                        pass = Some(self.begin(missing));
                    }
                    LOOK_EVERY
                }
                Err(error) if error.is_fatal() => return error,
                Err(error) => {
                    self.wire = None;
                    self.alarm(LOOK_ALARM, &error);
                    looking.next().max(if error.heals() { Duration::ZERO } else { LOOK_EVERY })
                }
            };
            let Some(running) = &mut pass else {
                sleep(wait).await;
                continue;
            };
            tokio::select! {
                () = sleep(wait) => {}
                end = running => {
                    pass = None;
                    match end.unwrap_or(Err(SourceError::Ended)) {
                        Ok(()) => {
                            self.shared.board.calm(PASS_ALARM);
                            reading.reset();
                        }
                        Err(error) if error.is_fatal() => return error,
                        Err(error) => {
                            self.alarm(PASS_ALARM, &error);
                            let least = if error.heals() { RETRY_MIN } else { LOOK_EVERY };
                            sleep(reading.next().max(least)).await;
                        }
                    }
                }
            }
        }
    }

    /// Looks at the catalog, brings the publications to it. The tables whose snapshot is not whole.
    async fn look(&mut self) -> Result<BTreeMap<u32, Listed>, SourceError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            none => {
                let target = Target::load(&self.shared.config, &self.shared.url)?;
                none.insert(target.open(Purpose::Sql).await?)
            }
        };
        let mut listing = session::tables(&self.shared, wire).await?.tables;
        let mut batch = FactBatch::default();
        for id in listing.keys().copied().collect::<Vec<_>>() {
            if !self.whole.contains(&id)
                && let Some(plan) = progress(&self.shared, id)?
                && plan.done
            {
                batch.put(plan_fact(id), &plan);
                self.whole.insert(id);
            }
        }
        if !batch.changes.is_empty() {
            self.shared.facts.record(batch).await?;
        }
        listing.retain(|id, _| !self.whole.contains(id));
        let reading = !listing.is_empty();
        self.shared.board.write(|status| match (status.state, reading) {
            (SourceState::Streaming, true) => status.state = SourceState::Snapshot,
            (SourceState::Snapshot, false) => status.state = SourceState::Streaming,
            _ => {}
        });
        Ok(listing)
    }

    /// Begins to read what is missing.
    fn begin(
        &mut self,
        tables: BTreeMap<u32, Listed>,
    ) -> oneshot::Receiver<Result<(), SourceError>> {
        let (tell, told) = oneshot::channel();
        let (shared, chunks) = (Arc::clone(&self.shared), self.chunks.clone());
        let (fresh, tasks) = (self.fresh.take(), self.tasks.clone());
        self.tasks.spawn(async move {
            let read = async {
                let fresh = match fresh {
                    Some(fresh) => fresh,
                    None => take_snapshot(&shared, tables.keys().copied().collect()).await?,
                };
                Pass { shared, chunks, fresh, tables }.run(&tasks).await
            };
            let end = tasks.token().run_until_cancelled(read).await;
            // Nobody listens any more if the source was stopped.
            drop(tell.send(end.unwrap_or(Err(SourceError::Ended))));
        });
        told
    }

    fn alarm(&self, room: &str, error: &SourceError) {
        tracing::warn!(%error, "the tables cannot be looked at or read; trying again");
        self.shared.board.alarm(room, error.cause(), error, self.shared.clock.wall());
    }
}

/// A snapshot at a position of its own: that of a slot which ends with it.
async fn take_snapshot(shared: &Shared, tables: BTreeSet<u32>) -> Result<Fresh, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let wire = target.open(Purpose::Replication).await?;
    let name = shared.names.temporary();
    let held = slot::create(wire, &name, true, shared.clock.wall()).await?;
    Ok(Fresh { held, tables })
}

/// Whether some table's snapshot is not whole, as far as the board knows.
pub(crate) fn resting_state(shared: &Shared) -> SourceState {
    let status = shared.board.read();
    match status.snapshot.values().any(|table| table.chunks_done < table.chunks) {
        true => SourceState::Snapshot,
        false => SourceState::Streaming,
    }
}

/// The alarm for what keeps the catalog from being looked at.
const LOOK_ALARM: &str = "catalog";
/// The alarm for what keeps a snapshot from being read.
const PASS_ALARM: &str = "snapshot";
const LOOK_EVERY: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(1);
