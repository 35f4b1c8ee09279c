//! Keeps the set of tables up to date while the stream runs: finds new ones, publishes them, has
//! their rows read, and read again where values may be missing.
//!
//! **Invariant (I12):** a table is published before the snapshot that its rows are read under is
//! taken, so that each of its changes is in the snapshot or in the stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    at_rest, bridge,
    catalog::Listed,
    chunks::Plan,
    connect::{Backoff, Target},
    error::SourceError,
    generators::Generators,
    gone::{self, Gone, Noted},
    large_object_parts,
    large_objects::LargeObjects,
    login::Purpose,
    repair,
    reread::{self, Standing},
    rewritten::{self, Rewritten},
    session::{self, Fresh, Shared},
    slot,
    snapshot::{Pass, plan_fact, progress},
    waiting,
    wire::Wire,
};
use crate::{
    error::{Cause, Classified},
    facts::FactBatch,
    shutdown::Tasks,
    source::SnapshotChunk,
    telemetry::board::{SourceState, SourceStatus, TableProgress},
    units::Position,
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
    /// Why the last order to repair tables was refused.
    refused: Option<String>,
    rewritten: Rewritten,
    generators: Generators,
    large_objects: LargeObjects,
    /// Where large objects that are to be read stand.
    wanted: Option<Position>,
    /// Whether tables were read last.
    read_tables: bool,
}

/// What is to be read.
#[derive(Default)]
pub(crate) struct Missing {
    pub(crate) tables: BTreeMap<u32, Listed>,
    /// Of those whose parts are all sealed: the notes of rows to be read again.
    pub(crate) keys: BTreeMap<u32, Vec<String>>,
}

impl Tables {
    pub(crate) fn new(
        shared: Arc<Shared>,
        chunks: mpsc::Sender<SnapshotChunk>,
        tasks: Tasks,
        fresh: Option<Fresh>,
    ) -> Self {
        Self {
            shared,
            chunks,
            tasks,
            fresh,
            wire: None,
            whole: BTreeSet::new(),
            refused: None,
            rewritten: Rewritten::default(),
            generators: Generators::default(),
            large_objects: LargeObjects::default(),
            wanted: None,
            read_tables: false,
        }
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
            let wait = match self.look(pass.is_some()).await {
                Ok(missing) => {
                    self.shared.board.calm(LOOK_ALARM);
                    looking.reset();
                    if pass.is_none() && missing.tables.is_empty() {
                        // Of a table that is gone since.
                        self.shared.board.calm(PASS_ALARM);
                    }
                    if pass.is_none() {
                        pass = self.begin_next(missing);
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

    /// Looks at the catalog, brings the publications to it. What of its tables the lake lacks. While a pass
    /// is `running`, which waits for facts of its parts, none are settled.
    async fn look(&mut self, running: bool) -> Result<Missing, SourceError> {
        let wire = match &mut self.wire {
            Some(wire) => wire,
            none => {
                let target = Target::load(&self.shared.config, &self.shared.url)?;
                none.insert(target.open(Purpose::Sql).await?)
            }
        };
        let noted = Noted::read(&*self.shared.facts)?;
        let position = Position(self.shared.log_end.load(Ordering::Relaxed));
        let listing = session::tables(&self.shared, wire).await?.tables;
        match running {
            true => self.rewritten.glance(wire, position).await?,
            false => {
                let anew = self.rewritten.look(&self.shared, wire, &listing, position).await?;
                self.whole.retain(|id| !anew.contains(id));
            }
        }
        let is_looked_at = at_rest::look(&self.shared, wire, &listing).await?;
        self.generators.look(&self.shared, wire, &listing, &self.chunks).await?;
        let objects = &mut self.large_objects;
        self.wanted = objects.look(&self.shared, wire, &self.chunks, running).await?;
        let missing = self.settle(listing, &noted, running).await?;
        let is_told = is_looked_at
            && self.shared.at_rest.due().is_none()
            && rewritten::doubted(&*self.shared.facts).is_empty();
        if !running && is_told && self.shared.board.look(|status| status.received) >= position {
            self.shared.board.write(|status| status.catalog = position);
        }
        Ok(missing)
    }

    /// Brings what is known of tables to the `listing`, and says what of them the lake lacks.
    pub(crate) async fn settle(
        &mut self,
        listing: BTreeMap<u32, Listed>,
        noted: &Noted,
        running: bool,
    ) -> Result<Missing, SourceError> {
        let (mut batch, mut missing) = (FactBatch::default(), Missing::default());
        let mut restless = vec![];
        let listed = |id| listing.contains_key(&id);
        let gone = gone::look(&*self.shared.facts, listed, noted, running, &mut batch)?;
        if !batch.changes.is_empty() {
            self.shared.facts.record(std::mem::take(&mut batch)).await?;
        }
        self.tell_gone(gone);
        if bridge::look(&*self.shared.facts, running, &mut batch)? {
            self.shared.facts.record(std::mem::take(&mut batch)).await?;
            self.whole.clear();
            self.fresh = None;
        }
        if !running {
            self.take_order().await?;
        }
        look_again(&mut self.whole, listed, &noted.rows);
        let all: BTreeSet<u32> = listing.keys().copied().collect();
        for (id, listed) in listing {
            if self.whole.contains(&id) {
                continue;
            }
            let known = progress(&self.shared, id)?;
            if known.is_none() {
                // Its changes may come before its parts are planned: should it go, the ledger hears of it.
                batch.put(plan_fact(id), &Plan::empty(listed.qualified()));
                // What stands there by now is of another table that had the name.
                self.shared.board.write(|status| {
                    status.snapshot.insert(listed.qualified(), TableProgress::default());
                });
            }
            let plan = known.as_ref().filter(|plan| plan.done);
            let standing = match plan {
                Some(_) if running => Standing::Waiting,
                Some(plan) => reread::settle(&self.shared, (id, &listed), plan).await?,
                None => Standing::Parts,
            };
            let known = known.as_ref().filter(|_| standing != Standing::Whole);
            restless.extend(known.filter(|plan| plan.is_restless()).map(|plan| plan.table.clone()));
            match standing {
                Standing::Whole => {
                    if let Some(plan) = plan {
                        batch.put(plan_fact(id), plan);
                        reread::tell(&*self.shared.facts, id, plan, &mut batch)?;
                    }
                    self.whole.insert(id);
                }
                Standing::Waiting => {}
                Standing::Keys(notes) => {
                    missing.keys.insert(id, notes);
                    missing.tables.insert(id, listed);
                }
                Standing::Parts => drop(missing.tables.insert(id, listed)),
            }
        }
        if !batch.changes.is_empty() {
            self.shared.facts.record(batch).await?;
        }
        self.tell_restless(&restless);
        let whole = !running && all.is_subset(&self.whole);
        bridge::tell(&self.shared, whole, self.refused.as_deref()).await?;
        let reading = missing.tables.len() > missing.keys.len();
        self.shared.board.write(|status| match (status.state, reading) {
            (SourceState::Streaming, true) => status.state = SourceState::Snapshot,
            (SourceState::Snapshot, false) => status.state = SourceState::Streaming,
            _ => {}
        });
        Ok(missing)
    }

    /// Takes an order to repair tables behind a gap, if there is one.
    async fn take_order(&mut self) -> Result<(), SourceError> {
        let refused = repair::look(&self.shared).await?.err();
        if refused != self.refused
            && let Some(why) = &refused
        {
            tracing::warn!(why, "an order to repair tables is refused");
        }
        self.refused = refused;
        Ok(())
    }

    /// Tells of tables that were read again as a whole, and are to be once more.
    fn tell_restless(&self, tables: &[String]) {
        match tables {
            [] => self.shared.board.calm(RESTLESS_ALARM),
            tables => {
                let what = format!(
                    "{}: too many rows got another key while all of it was read again",
                    tables.join(", ")
                );
                let now = self.shared.clock.wall();
                self.shared.board.alarm(RESTLESS_ALARM, Cause::TableRestless, &what, now);
            }
        }
    }

    /// Says once which tables are gone, and which of them are back.
    fn tell_gone(&self, gone: Gone) {
        for Plan { table, done, .. } in gone.left {
            self.shared.board.write(|status| {
                status.snapshot.remove(&table);
            });
            match done {
                true => tracing::warn!(
                    table,
                    "the table is gone, or excluded: what the lake has of it stays"
                ),
                false => tracing::warn!(
                    table,
                    "the table is gone, or excluded, before its snapshot was whole: \
                     `lakehead restore` leaves it out"
                ),
            }
        }
        for table in gone.back {
            tracing::warn!(table, "the table was left out for a while: all of it is read anew");
        }
    }

    /// Begins to read, if something is missing: tables and large objects in turns.
    fn begin_next(
        &mut self,
        missing: Missing,
    ) -> Option<oneshot::Receiver<Result<(), SourceError>>> {
        let objects = self.wanted.take_if(|_| self.read_tables || missing.tables.is_empty());
        if let Some(stands) = objects {
            self.read_tables = false;
            return Some(self.begin_objects(stands));
        }
        if missing.tables.is_empty() {
            return None;
        }
        self.read_tables = true;
        Some(self.begin(missing))
    }

    /// Begins to read large objects.
    fn begin_objects(&self, stands: Position) -> oneshot::Receiver<Result<(), SourceError>> {
        let (tell, told) = oneshot::channel();
        let (shared, chunks) = (Arc::clone(&self.shared), self.chunks.clone());
        let (is_cut, tasks) = (Arc::clone(&self.large_objects.is_cut), self.tasks.clone());
        self.tasks.spawn(async move {
            let read = large_object_parts::Pass { shared, chunks, stands, is_cut }.run(&tasks);
            let end = tasks.token().run_until_cancelled(Box::pin(read)).await;
            // Nobody listens any more if the source was stopped.
            drop(tell.send(end.unwrap_or(Err(SourceError::Ended))));
        });
        told
    }

    /// Begins to read what is missing.
    fn begin(&mut self, missing: Missing) -> oneshot::Receiver<Result<(), SourceError>> {
        let (tell, told) = oneshot::channel();
        let Missing { tables, keys } = missing;
        let (shared, chunks) = (Arc::clone(&self.shared), self.chunks.clone());
        let (fresh, tasks) = (self.fresh.take(), self.tasks.clone());
        let gaps = shared.gaps.load(Ordering::Relaxed);
        self.tasks.spawn(async move {
            let read = async {
                let fresh = match fresh {
                    Some(fresh) => fresh,
                    None => take_snapshot(&shared, tables.keys().copied().collect()).await?,
                };
                Pass { shared, gaps, chunks, fresh, tables, keys }.run(&tasks).await
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

/// Tables that are to be looked at though they were whole: an epoch that was open when one became so may
/// still have noted rows of it, and one that comes back is not what it was.
fn look_again(whole: &mut BTreeSet<u32>, listed: impl Fn(u32) -> bool, noted: &BTreeSet<u32>) {
    whole.retain(|id| listed(*id) && !noted.contains(id));
}

/// A snapshot at a position of its own: that of a slot which ends with it.
async fn take_snapshot(shared: &Shared, tables: BTreeSet<u32>) -> Result<Fresh, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let mut wire = target.open(Purpose::Replication).await?;
    let timeline = slot::identify(&mut wire).await?.timeline;
    let name = shared.names.temporary();
    let held = waiting::create(shared, &target, wire, &name, true).await?;
    Ok(Fresh { held, timeline, tables })
}

/// Whether some table's snapshot is not whole, as far as the board knows.
pub(crate) fn resting_state(shared: &Shared) -> SourceState {
    let is_open = |status: &SourceStatus| !status.snapshot.values().all(TableProgress::is_whole);
    match shared.board.look(is_open) {
        true => SourceState::Snapshot,
        false => SourceState::Streaming,
    }
}

/// The alarm for what keeps the catalog from being looked at.
const LOOK_ALARM: &str = "catalog";
/// The alarm for what keeps a snapshot from being read.
const PASS_ALARM: &str = "snapshot";
/// The alarm for tables that are read again and again.
const RESTLESS_ALARM: &str = "tables-restless";
const LOOK_EVERY: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_table_of_which_a_row_is_noted_late_is_looked_at_again() {
        let mut whole = BTreeSet::from([1, 2, 3]);
        look_again(&mut whole, |id| id != 3, &BTreeSet::from([2, 9]));
        assert_eq!(whole, BTreeSet::from([1]));
    }
}
