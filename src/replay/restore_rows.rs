//! The work of a restore: tables, and their changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Progress, ReplayError, RestoreReport,
    apply::{Change, Pending, RowKey, Shape, Step, alone},
    evolve::numbered,
    fetch::Fetcher,
    merge::{Here, Merge},
    plan::{Epoch, Plan, TablePlan},
    plan_defined::Definition,
    read::BATCH_BYTES,
    restore_not_null::lacks,
    restore_repairs::Repairs,
    restore_target::{Lacking, Target},
    restore_values::{Place, change, places},
};
use crate::{
    journal::Op,
    ledger::EntryObject,
    seal::Table,
    units::{Point, Position, Sequence},
};

/// A restore under way.
pub(super) struct Restore<'a> {
    pub(super) target: Target<'a>,
    pub(super) fetcher: &'a Fetcher,
    /// By table id and version.
    pub(super) versions: BTreeMap<(u32, u32), Arc<Table>>,
    pub(super) live: BTreeMap<u32, Live>,
    bound: Position,
    /// Committed in the target.
    pub(super) applied: Point,
    /// Changes since then.
    uncommitted: u64,
    /// Text of them that waits.
    pending_bytes: usize,
    /// Rows inserted without all their values.
    pub(super) lacking: Lacking,
    /// Rows that were read again.
    pub(super) repairs: Repairs,
    pub(super) report: RestoreReport,
    /// As it was at the last commit.
    kept: RestoreReport,
    /// What was passed so far, and what there is in all, for the progress.
    pub(super) done: Amounts,
    pub(super) all: Amounts,
    pub(super) progress: &'a mut (dyn FnMut(Progress) + Send),
}

/// Rows of snapshots, and changes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amounts {
    pub(super) rows: u64,
    pub(super) changes: u64,
}

/// A table of the target.
pub(super) struct Live {
    /// As it is now.
    pub(super) table: Arc<Table>,
    pub(super) shape: Shape,
    pending: Pending,
    /// Changes up to here are in its rows already.
    skip_until: Position,
    /// Up to here its definition is ahead of the changes, and rows may be ahead of them.
    pub(super) last_snapshot: Position,
    /// Between these, too: behind a gap, until it was repaired.
    doubtful: Vec<(Position, Position)>,
    /// Whether changes wait that its rows may be ahead of: of those some find no row.
    unsettled: bool,
    /// By the version of the file whose rows come, and how it spells its columns: the shape's columns as columns of the file.
    places: HashMap<(u32, usize), Vec<Place>>,
}

impl Live {
    pub(super) fn new(table: Arc<Table>, planned: &TablePlan) -> Self {
        let shape = Shape::new(&table);
        Self {
            skip_until: if shape.converges() { planned.first } else { planned.last },
            shape,
            table,
            pending: Pending::default(),
            last_snapshot: planned.last,
            doubtful: planned.doubtful.clone(),
            unsettled: false,
            places: HashMap::new(),
        }
    }

    /// Whether its rows may be ahead of a change at this position, or behind it.
    fn may_differ(&self, at: Position) -> bool {
        at <= self.last_snapshot || self.doubtful.iter().any(|(from, to)| *from < at && at <= *to)
    }

    fn become_version(&mut self, table: Arc<Table>) {
        self.shape = Shape::new(&table);
        self.table = table;
        self.places.clear();
    }
}

impl<'a> Restore<'a> {
    pub(super) fn new(
        target: Target<'a>,
        fetcher: &'a Fetcher,
        versions: BTreeMap<(u32, u32), Arc<Table>>,
        bound: Position,
        (applied, lacking): (Point, Lacking),
        (before, progress): (RestoreReport, &'a mut (dyn FnMut(Progress) + Send)),
    ) -> Self {
        let report = RestoreReport { at: applied, ..before };
        Self {
            target,
            fetcher,
            versions,
            live: BTreeMap::new(),
            bound,
            applied,
            uncommitted: 0,
            pending_bytes: 0,
            lacking,
            repairs: Repairs::default(),
            kept: report.clone(),
            report,
            done: Amounts::default(),
            all: Amounts::default(),
            progress,
        }
    }

    /// All of it.
    pub(super) async fn fill(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        self.loosen_sequences(plan).await?;
        self.make_tables(plan).await?;
        self.load_snapshots(plan).await?;
        self.apply_changes(plan).await?;
        self.tighten().await?;
        self.make_large_objects(plan).await?;
        self.make_sequences(plan).await?;
        self.tighten_domains().await
    }

    /// What it did that counts, for one that goes on in its place.
    pub(super) fn given_up(self) -> RestoreReport {
        RestoreReport { notes: noted(self.kept.notes, self.target.notes), ..self.kept }
    }

    /// What is in the report so far stays, whatever becomes of the next transaction.
    pub(super) fn keep(&mut self) {
        self.kept = self.report.clone();
    }

    pub(super) fn into_report(mut self, plan: &Plan) -> RestoreReport {
        let mut left = vec![];
        for (id, entry) in plan.tables.iter().filter_map(|(id, table)| Some((id, table.left?))) {
            let Some(live) = self.live.get(id) else { continue };
            let table = live.table.qualified();
            self.target.notes.push(format!(
                "{table} stands as it was when it left (entry {entry}): it was dropped, excluded, unreadable, or a statement changed values of it that are in no stream"
            ));
            left.push(table);
        }
        for (id, rewritten) in &plan.rewritten {
            let Some(live) = self.live.get(id) else { continue };
            self.target.notes.push(rewritten.doubt(&live.table.qualified()));
        }
        for away in &plan.away {
            self.target.notes.push(format!("{} is not restored: {}", away.table, away.why()));
        }
        for table in &plan.reserved {
            self.target.notes.push(format!(
                "{table} is not restored: in the schema lakehead_restore a restore keeps its own progress"
            ));
        }
        let notes = noted(self.report.notes, self.target.notes);
        let tables = self.live.values().map(|live| live.table.qualified());
        let lacking: usize = self.lacking.values().map(BTreeSet::len).sum();
        let incomplete_rows = u64::try_from(lacking).unwrap_or(u64::MAX);
        RestoreReport {
            tables: tables.collect(),
            left,
            away: plan.away.iter().map(|away| away.table.clone()).collect(),
            incomplete_rows,
            notes,
            ..self.report
        }
    }

    /// Applies the changes that are not in yet, up to the plan's end.
    pub(super) async fn apply_changes(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        let mut reached = self.applied;
        self.target.begin().await?;
        let missing: Vec<&Epoch> = self.missing(plan).collect();
        for epoch in missing {
            reached = self.apply_epoch(epoch).await?;
            if self.may_commit(reached) {
                self.commit(reached).await?;
                self.target.begin().await?;
            }
        }
        self.repair(Position(plan.end.position.0 + 1)).await?;
        if reached.position < plan.end.position {
            reached.position = plan.end.position;
        }
        self.commit(reached).await
    }

    /// The epochs that are not in yet.
    pub(super) fn missing<'p>(&self, plan: &'p Plan) -> impl Iterator<Item = &'p Epoch> + use<'p> {
        let Sequence(sequence) = self.applied.sequence;
        let position = self.repairs.begin(self.applied.position);
        plan.epochs
            .iter()
            .filter(move |epoch| epoch.to.sequence.0 > sequence || epoch.to.position > position)
    }

    /// Applies one epoch, and gives the point reached.
    async fn apply_epoch(&mut self, epoch: &Epoch) -> Result<Point, ReplayError> {
        let mut merge = Merge::new(self.fetcher, epoch.tracks.clone()).await?;
        let mut defined = &epoch.defined[..];
        let applied = self.applied;
        let mut reached = if applied.position > epoch.from.position { applied } else { epoch.from };
        while let Some(here) = merge.here() {
            let meta = here.rows.meta(here.row);
            self.define(&mut defined, meta.sequence).await?;
            if meta.position > self.bound {
                return Ok(reached);
            }
            self.repair(meta.position).await?;
            if meta.sequence > self.applied.sequence.0
                || self.repairs.takes_again(here.table, meta.position)
            {
                if meta.position != reached.position && self.may_commit(reached) {
                    self.commit(reached).await?;
                    self.target.begin().await?;
                }
                self.take(here).await?;
                self.uncommitted += 1;
                self.report.changes += 1;
                self.report.committed_at = Some(meta.committed_at);
                reached = Point { sequence: Sequence(meta.sequence), position: meta.position };
            }
            self.done.changes += 1;
            if self.done.changes.is_multiple_of(TELL_CHANGES) {
                self.tell_changes();
            }
            merge.advance().await?;
        }
        self.define(&mut defined, u64::MAX).await?;
        self.repair(Position(epoch.to.position.0 + 1)).await?;
        Ok(epoch.to)
    }

    /// Makes tables what statements made of them before this change, each behind what was read again before it.
    async fn define(
        &mut self,
        defined: &mut &[Definition],
        before: u64,
    ) -> Result<(), ReplayError> {
        while let Some((next, rest)) =
            defined.split_first().filter(|(of, _)| of.sequence.0 < before)
        {
            *defined = rest;
            if next.position <= self.applied.position || next.position > self.bound {
                continue;
            }
            let of = (next.table, next.version);
            let Some(version) = self.versions.get(&of).cloned() else { continue };
            self.repair(next.position).await?;
            let Some(live) = self.live.get(&next.table) else { continue };
            let known = live.skip_until.max(live.last_snapshot);
            if next.position > known && live.table.version != version.version {
                self.become_version(next.table, version, next.position).await?;
            }
        }
        Ok(())
    }

    async fn become_version(
        &mut self,
        id: u32,
        version: Arc<Table>,
        at: Position,
    ) -> Result<(), ReplayError> {
        self.write_out(id).await?;
        let live = self.live.get_mut(&id).expect("only tables that are there get a version");
        let version = numbered(&live.table, &version);
        let made = self.target.alter((&live.table, &version), at).await?;
        live.become_version(Arc::new(made));
        Ok(())
    }

    fn may_commit(&self, at: Point) -> bool {
        self.uncommitted >= COMMIT_CHANGES && self.repairs.may_commit(at.position)
    }

    /// Applies what was read again before this position.
    async fn repair(&mut self, before: Position) -> Result<(), ReplayError> {
        while let Some((table, object)) = self.repairs.next_before(before) {
            let mut file = self.fetcher.rows(&object, BATCH_BYTES).await?;
            let version = file.version().unwrap_or(self.live[&table].table.version);
            let mut count = 0;
            while let Some(rows) = file.next_rows()? {
                for row in 0..rows.len() {
                    self.take(Here { table, version, rows: &rows, row }).await?;
                    count += 1;
                }
            }
            self.target.record_object(&object, count).await?;
            self.uncommitted += count;
        }
        Ok(())
    }

    /// Takes one change over.
    async fn take(&mut self, here: Here<'_>) -> Result<(), ReplayError> {
        let meta = here.rows.meta(here.row);
        let Some(version) = self.versions.get(&(here.table, here.version)).cloned() else {
            // A table of the same name, made before or after this one in the same epoch.
            return Ok(());
        };
        let Some(live) = self.live.get_mut(&here.table) else { return Ok(()) };
        if meta.position <= live.skip_until {
            return Ok(());
        }
        // A key that was gone is written under the version that the table had when it was looked for.
        let late = meta.op == Op::Delete && meta.sequence == 0;
        let other = version.version != live.table.version && !late;
        if meta.position > live.last_snapshot && other {
            self.become_version(here.table, version.clone(), meta.position).await?;
        }
        let live = self.live.get_mut(&here.table).expect("it was there above");
        live.unsettled |= live.may_differ(meta.position);
        let known = live.places.entry((here.version, here.rows.spelt()));
        let known = known.or_insert_with(|| places(&live.table, &version, here.rows));
        let repaired = &mut self.report.repaired_values;
        let change = change((here.rows, here.row), meta.op, &live.shape, known, repaired);
        let lacks = lacks(&live.table, &live.shape, &change);
        self.loosen(here.table, &lacks).await?;
        let live = self.live.get_mut(&here.table).expect("it was there above");
        self.pending_bytes += change.bytes();
        if let Some(lacking) = self.lacking.get_mut(&here.table) {
            forget(lacking, &change, &live.shape);
        }
        if let Err(change) = live.pending.take(&live.shape, change) {
            self.write_out(here.table).await?;
            self.rekey(here.table, change).await?;
        }
        if self.pending_bytes > PENDING_BYTES {
            self.write_all().await?;
        }
        Ok(())
    }

    /// Brings what is pending into the target, and commits.
    async fn commit(&mut self, at: Point) -> Result<(), ReplayError> {
        self.write_all().await?;
        let at = Point {
            sequence: at.sequence.max(self.applied.sequence),
            position: at.position.max(self.applied.position),
        };
        self.target.record(at, &self.lacking).await?;
        self.target.commit().await?;
        self.applied = at;
        self.uncommitted = 0;
        self.report.at = at;
        self.keep();
        self.tell_changes();
        Ok(())
    }

    fn tell_changes(&mut self) {
        let (done, all) = (self.done.changes, self.all.changes);
        (self.progress)(Progress::Changes { done, all });
    }

    async fn write_all(&mut self) -> Result<(), ReplayError> {
        let waiting = self.live.iter().filter(|(_, live)| !live.pending.is_empty());
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.write_out(id).await?;
        }
        self.pending_bytes = 0;
        Ok(())
    }

    async fn write_out(&mut self, id: u32) -> Result<(), ReplayError> {
        let Some(live) = self.live.get_mut(&id) else { return Ok(()) };
        let steps = std::mem::take(&mut live.pending).steps(&live.shape);
        let name = live.shape.name.clone();
        self.run(id, &name, &steps).await?;
        if let Some(live) = self.live.get_mut(&id) {
            live.unsettled = false;
        }
        Ok(())
    }

    /// Applies a change of a key that leaves values out.
    async fn rekey(&mut self, id: u32, change: Change) -> Result<(), ReplayError> {
        let live = &self.live[&id];
        let keys = change.keys(&live.shape);
        let (step, name) = (alone(&live.shape, change), live.shape.name.clone());
        let moved = self.run(id, &name, &[step]).await?;
        if let (Some((old, new)), Some(lacking)) = (keys, self.lacking.get_mut(&id))
            && lacking.remove(&old)
            && moved
        {
            lacking.insert(new);
        }
        Ok(())
    }

    /// Runs steps. Says whether the last one found its row under the old key.
    async fn run(&mut self, id: u32, name: &str, steps: &[Step]) -> Result<bool, ReplayError> {
        let mut instead = false;
        for step in steps {
            let missed = self.target.step(name, step).await?;
            if !missed.inserted.is_empty() {
                self.lacking.entry(id).or_default().extend(missed.inserted);
            }
            if !self.live[&id].unsettled {
                self.report.unmatched_rows += missed.unmatched;
            }
            instead = missed.instead;
        }
        Ok(instead)
    }
}

/// Sentences, each once.
fn noted(mut notes: Vec<String>, more: Vec<String>) -> Vec<String> {
    for note in more {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes
}

pub(super) fn rows_of(object: &EntryObject) -> u64 {
    object.rows.values().sum()
}

pub(super) fn changes_of(epoch: &Epoch) -> u64 {
    epoch.tracks.iter().flat_map(|track| &track.objects).map(rows_of).sum()
}

/// Strikes out the rows that a change completes or removes.
fn forget(lacking: &mut BTreeSet<RowKey>, change: &Change, shape: &Shape) {
    match (change.op, change.keys(shape)) {
        (Op::Truncate, _) => lacking.clear(),
        (Op::Delete, Some((old, _))) => drop(lacking.remove(&old)),
        (_, Some((old, new))) if change.is_whole() => {
            lacking.remove(&old);
            lacking.remove(&new);
        }
        _ => {}
    }
}

/// Changes after which the target commits, at the next end of a transaction.
const COMMIT_CHANGES: u64 = 10_000;
/// Changes after which the progress is told.
const TELL_CHANGES: u64 = 500;
/// Text that may wait before it is written, within the transaction.
const PENDING_BYTES: usize = 32 << 20;
