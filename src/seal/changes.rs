//! Seals the stream of changes: journal batches become epochs.
//!
//! Each row gets its `_sequence` (the batch's first number plus its ordinal), its `_position` (the *end* of
//! its transaction's commit record, found by looking ahead) and its commit time. Rows that need no look at others wait
//! for those of their table, within their batch, and are read together ([`Waiting`]). At a cut all open objects
//! are ended, and one batch of facts makes the group, the place to resume and the decoder's tables durable.
//!
//! A batch without a transaction of the server's is a mark: the epoch reaches its position, and holds nothing of it but
//! definitions of tables that were altered at rest. Where the
//! source noted a gap the epoch ends, and a group of its own says what is lost.
//!
//! **Invariants:** after a restart exactly the batches after the last recorded epoch are sealed (I11);
//! batches join without gap; each holds as many changes as the journal counted; a record that does not
//! decode stops the source and is never skipped (I13, I16).

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    ops::Range,
    sync::Arc,
    thread,
    time::Duration,
};

pub(super) mod again;

use again::Only;

use super::{
    Defined, EPOCH_FACT, EpochEnd, Fates, GroupKind, Op, SealError, Table,
    columns::{Block, Metas, RowMeta},
    encode::{BlockIn, LARGE_ROW_BYTES, RowIn},
    epoch::{Epoch, OPEN_MAX},
    sealer::{Desk, Outlet, PAUSE, RELATION_FACTS, REST},
    told::Told,
    unchanged::Notes,
    waiting::Waiting,
};
use crate::{
    facts::{self, FactBatch, FactDamaged},
    journal::{
        Batch, Change, Commit, Decode, DecodeError, Event, ORIGIN_FACT, OldRow, Origin, Piece,
        ReadBatches, RecordKind, Row,
        gap::{GAP_FACTS, Gap},
        split_record,
    },
    units::{Point, Position, Sequence, Timestamp},
};

/// The state of the one thread that seals changes.
pub(super) struct Changes<'a> {
    desk: &'a Desk,
    outlet: Outlet,
    decode: Box<dyn Decode>,
    /// As the stream has them now, and at the version that seals them, once a row came.
    tables: BTreeMap<u32, (Arc<Table>, Option<Arc<Table>>)>,
    /// As the facts have them.
    remembered: BTreeMap<u32, Arc<Table>>,
    /// Where the open epoch begins; `None` until the first batch of all.
    from: Option<Point>,
    /// Where it would end now.
    to: Point,
    batch: u64,
    transaction: Option<Transaction>,
    epoch: Epoch,
    /// Rows of the batch that is being read.
    waiting: Waiting,
    /// Of the open epoch: rows that may have to be read again.
    notes: Notes,
    /// Of the open epoch: definitions that no row brought.
    defined: Vec<Defined>,
    told: Told,
    /// Of an epoch that is read again.
    only: Option<Only>,
}

/// The transaction whose records are being read.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    position: Position,
    at: Timestamp,
    xid: u32,
}

impl<'a> Changes<'a> {
    /// Takes up where the facts say.
    pub(super) fn resume(
        desk: &'a Desk,
        outlet: Outlet,
        decode: &dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
    ) -> Result<Self, SealError> {
        let sealed: Option<EpochEnd> = facts::read(&*desk.facts, EPOCH_FACT)?;
        if let Some(sealed) = &sealed {
            desk.board.write(|status| status.sealed = sealed.end);
        }
        let remembered: BTreeMap<_, _> = facts::read_all::<Table>(&*desk.facts, RELATION_FACTS)?
            .into_iter()
            .map(|(_, table)| (table.id, Arc::new(table)))
            .collect();
        Ok(Self {
            desk,
            outlet,
            decode: decode(remembered.values().cloned().collect()),
            tables: remembered.iter().map(|(id, table)| (*id, (table.clone(), None))).collect(),
            remembered,
            from: sealed.map(|sealed| sealed.end),
            to: sealed.map(|sealed| sealed.end).unwrap_or_default(),
            batch: sealed.map_or(0, |sealed| sealed.batch),
            transaction: None,
            epoch: Epoch::new(OPEN_MAX, desk.cut.bytes),
            waiting: Waiting::default(),
            notes: Notes::default(),
            defined: vec![],
            told: Told::load(&*desk.facts)?,
            only: None,
        })
    }

    /// Seals until it is stopped.
    pub(super) fn run(mut self, reader: &mut dyn ReadBatches) -> Result<(), SealError> {
        while !self.outlet.is_stopped() {
            if !self.desk.has_room() {
                thread::sleep(PAUSE);
            } else if !self.turn(reader, REST)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads the next batch, waiting for it at most `wait`, and cuts the epoch if it is due. False: stopped.
    pub(super) fn turn(
        &mut self,
        reader: &mut dyn ReadBatches,
        wait: Duration,
    ) -> Result<bool, SealError> {
        let batch = reader.next(wait)?.filter(|batch| batch.number > self.batch);
        let now = self.desk.clock.now();
        while let Some(gap) = self.gap_before(batch.as_ref())? {
            if !self.pass(gap)? {
                return Ok(false);
            }
        }
        if let Some(batch) = batch {
            self.epoch.begin(now);
            self.take(batch)?;
            reader.let_go();
        }
        let due = self.epoch.progress().is_some_and(|so_far| self.desk.cut.is_due(&so_far, now));
        if due && self.transaction.is_none() { self.seal() } else { Ok(true) }
    }

    /// Reads one batch into the epoch.
    fn take(&mut self, batch: Batch) -> Result<(), SealError> {
        self.admit(&batch)?;
        self.notes.look_again();
        let mut commits = self.look_ahead(&batch)?;
        let unreadable = |why| SealError::Decode { what: format!("batch {}", batch.number), why };
        let length = batch.bytes.len();
        let mut bytes = batch.bytes;
        let mut read = 0;
        while read < bytes.len() {
            let broken = || unreadable(DecodeError::Length { what: "a record" });
            let (kind, payload, rest) = split_record(&bytes[read..]).ok_or_else(broken)?;
            read = bytes.len() - rest.len();
            if self.wait(kind, &bytes, read - payload.len()..read)? {
                continue;
            }
            let event = self.decode.decode(kind, payload).map_err(unreadable)?;
            self.go_on_before(&event, payload.len(), &bytes)?;
            let table = match &event {
                Event::Change(change) if payload.len() >= LARGE_ROW_BYTES => Some(change.table),
                _ => None,
            };
            self.follow(event, payload, &mut commits)?;
            if let Some(table) = table {
                // The record goes before its copy in the row builder is copied on.
                bytes = bytes.split_off(read);
                read = 0;
                self.write_out(table)?;
            }
            self.epoch.relieve(&self.desk.maker)?;
        }
        self.all_go_on(&bytes)?;
        if self.waiting.is_full() {
            self.waiting.leave();
        }
        let found = self.to.sequence.0 + 1 - batch.first.0;
        self.expect("changes in a batch", batch.changes, found)?;
        let open = u64::from(matches!(batch.piece, Piece::First | Piece::Middle));
        self.expect("transactions open after a batch", open, self.transaction.is_some().into())?;
        if let (0, Some(mark)) = (length, batch.commit) {
            self.to.position = mark.position.max(self.to.position);
            self.epoch.reach(mark.at);
        }
        self.batch = batch.number;
        Ok(())
    }

    /// Checks that a batch follows the one before.
    fn admit(&mut self, batch: &Batch) -> Result<(), SealError> {
        if self.from.is_none() {
            let origin: Option<Origin> = facts::read(&*self.desk.facts, ORIGIN_FACT)?;
            let origin = origin.ok_or(SealError::Origin)?;
            // Of a gap that is still to come, or was passed, the origin tells where it ends.
            let gap = self.gaps()?.into_iter().next();
            self.begin(gap.map_or(origin.consistent_point, |gap| gap.began));
        }
        self.expect("number of a batch's first change", self.to.sequence.0 + 1, batch.first.0)?;
        let within = u64::from(matches!(batch.piece, Piece::Middle | Piece::Last));
        self.expect("transactions open before a batch", within, self.transaction.is_some().into())?;
        Ok(())
    }

    fn begin(&mut self, position: Position) {
        self.to = Point { sequence: Sequence(0), position };
        self.from = Some(self.to);
    }

    fn gaps(&self) -> Result<Vec<Gap>, FactDamaged> {
        let gaps = facts::read_all::<Gap>(&*self.desk.facts, GAP_FACTS)?;
        Ok(gaps.into_iter().map(|(_, gap)| gap).collect())
    }

    /// The gap that comes next: before `batch`, or, with none at hand, right here.
    fn gap_before(&self, batch: Option<&Batch>) -> Result<Option<Gap>, FactDamaged> {
        let here = batch.map_or(self.batch, |batch| batch.number - 1);
        Ok(self.gaps()?.into_iter().find(|gap| gap.after <= here))
    }

    /// Ends the epoch before a gap, and says what is lost. False: stopped.
    fn pass(&mut self, gap: Gap) -> Result<bool, SealError> {
        self.expect("open transactions at a gap", 0, self.transaction.is_some().into())?;
        if self.epoch.progress().is_some() && !self.seal()? {
            return Ok(false);
        }
        if self.from.is_none() {
            self.begin(gap.began);
        }
        let (from, batch) = (self.to, self.batch);
        let to = Point { position: gap.to.max(from.position), ..from };
        tracing::error!(%from.position, %to.position, what = gap.what, "a gap: changes are lost");
        let kind = |_, facts: &mut FactBatch| {
            facts.delete(gap.fact()).put(EPOCH_FACT, &EpochEnd { end: to, batch });
            Ok(Some((GroupKind::Gap { from, to, batch, what: gap.what }, Fates::default())))
        };
        let recorded = self.desk.record(&self.outlet, vec![], kind)?;
        if recorded {
            (self.from, self.to) = (Some(to), to);
        }
        Ok(recorded)
    }

    /// The commits that end the transactions which begin in the batch.
    fn look_ahead(&self, batch: &Batch) -> Result<VecDeque<Commit>, SealError> {
        match batch.piece {
            Piece::First => Ok(batch.ends.into_iter().collect()),
            Piece::Middle | Piece::Last => Ok(VecDeque::new()),
            Piece::Whole => {
                let mut commits = VecDeque::new();
                let mut rest = &batch.bytes[..];
                while let Some((kind, payload, after)) = split_record(rest) {
                    commits.extend(self.decode.commit(kind, payload));
                    rest = after;
                }
                Ok(commits)
            }
        }
    }

    fn follow(
        &mut self,
        event: Event,
        payload: &[u8],
        commits: &mut VecDeque<Commit>,
    ) -> Result<(), SealError> {
        match event {
            Event::Begin { begins, at, xid } => {
                self.expect("open transactions at a BEGIN", 0, self.transaction.is_some().into())?;
                let commit = commits.pop_front().unwrap_or_default();
                self.expect("position of a commit record", begins.0, commit.begins.0)?;
                self.transaction = Some(Transaction { position: commit.position, at, xid });
            }
            Event::Commit(commit) => {
                let transaction = self.transaction.take();
                let position = transaction.map_or(Position(0), |open| open.position);
                self.expect("position of a commit", position.0, commit.position.0)?;
                self.to.position = commit.position;
                match transaction {
                    // None of the server's.
                    Some(Transaction { xid: 0, .. }) => self.epoch.reach(commit.at),
                    _ => self.epoch.commit(commit.at),
                }
            }
            Event::Table(table) => drop(self.tables.insert(table.id, (table, None))),
            Event::Defined(table) => self.define(&table)?,
            Event::Change(Change { op, table, new, old }) => {
                let old = old.as_ref().map(|(kind, row)| (*kind, row));
                self.append(op, table, new.as_ref(), old, payload)?;
            }
            Event::Truncate { tables, .. } => {
                for table in tables {
                    self.append(Op::Truncate, table, None, None, payload)?;
                }
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    /// A table has another definition from here on.
    fn define(&mut self, table: &Table) -> Result<(), SealError> {
        self.expect("open transactions at a definition", 1, self.transaction.is_some().into())?;
        let Some(Transaction { position, .. }) = self.transaction else { return Ok(()) };
        let numbered = self.desk.versioned(&self.outlet, table)?;
        let (id, version) = (table.id, numbered.version);
        if let Some(held) = self.tables.get_mut(&id) {
            *held = match held.0.reads_like(table) {
                true => (Arc::clone(&numbered), Some(numbered)),
                // The next row is of the version that the stream has, and tells of it.
                false => (Arc::clone(&held.0), None),
            };
        }
        if !self.told.tell_alone(&*self.desk.facts, (id, version))? {
            return Ok(());
        }
        let (table, sequence) = (table.qualified(), self.to.sequence);
        self.defined.push(Defined { table, version, position, sequence });
        Ok(())
    }

    fn append(
        &mut self,
        op: Op,
        table_id: u32,
        row: Option<&Row>,
        old: Option<(OldRow, &Row)>,
        payload: &[u8],
    ) -> Result<(), SealError> {
        self.expect("open transactions at a change", 1, self.transaction.is_some().into())?;
        let Some(Transaction { position, at, xid }) = self.transaction else { return Ok(()) };
        let sequence = self.to.sequence.0 + 1;
        if self.only.as_mut().is_some_and(|only| !only.has(table_id, sequence)) {
            self.to.sequence = Sequence(sequence);
            return Ok(());
        }
        let table = self.table(table_id)?;
        let meta = RowMeta { op, sequence, position, committed_at: at, xid: Some(xid) };
        if let (Op::Update, Some(new)) = (op, row) {
            let facts = &*self.desk.facts;
            let noted =
                self.notes.take(facts, &table, position, (new, old), payload, &*self.decode);
            noted?;
        }
        let row = RowIn::new(meta, row, old, payload, &*self.decode);
        match &mut self.only {
            Some(only) => only.append(&self.desk.maker, &table, at, &row)?,
            None => self.epoch.append(&self.desk.maker, &table, at, &row)?,
        }
        self.to.sequence = Sequence(sequence);
        Ok(())
    }

    /// Takes a record whose row can wait for others of its table. False: it is to be looked at by itself.
    fn wait(
        &mut self,
        kind: RecordKind,
        bytes: &[u8],
        payload: Range<usize>,
    ) -> Result<bool, SealError> {
        let whole = self.decode.whole(kind, &bytes[payload.clone()]);
        let may_wait = |_: &_| payload.len() < LARGE_ROW_BYTES && self.only.is_none();
        let Some((op, id)) = whole.filter(may_wait) else {
            return Ok(false);
        };
        let Some(Transaction { position, at, xid }) = self.transaction else { return Ok(false) };
        let place = match self.waiting.place(id) {
            Some(place) => place,
            None if self.waiting.is_full() => return Ok(false),
            None => {
                let table = self.table(id)?;
                self.waiting.admit(&table, &*self.decode)
            }
        };
        let sequence = self.to.sequence.0 + 1;
        let meta = RowMeta { op, sequence, position, committed_at: at, xid: Some(xid) };
        if self.waiting.is_of_another_day(&meta) {
            self.all_go_on(bytes)?;
        }
        let Some(cells) = self.waiting.cells(place) else { return Ok(false) };
        let read = self.decode.cells(bytes, payload, cells);
        let what = || format!("change {sequence}");
        if !read.map_err(|why| SealError::Decode { what: what(), why })? {
            return Ok(false);
        }
        self.to.sequence = Sequence(sequence);
        if self.waiting.add(place, meta) {
            self.go_on(place, bytes)?;
        }
        Ok(true)
    }

    /// Before something comes that does not wait, those go on that came before it.
    fn go_on_before(
        &mut self,
        event: &Event,
        length: usize,
        bytes: &[u8],
    ) -> Result<(), SealError> {
        match event {
            // The places are those of tables as they were.
            Event::Table(_) | Event::Defined(_) => {
                self.all_go_on(bytes)?;
                self.waiting.leave();
                Ok(())
            }
            // The bytes that all of them point into go with it.
            _ if length >= LARGE_ROW_BYTES => self.all_go_on(bytes),
            Event::Change(change) => match self.waiting.place(change.table) {
                Some(place) => self.go_on(place, bytes),
                None => Ok(()),
            },
            Event::Truncate { .. } => self.all_go_on(bytes),
            Event::Begin { .. } | Event::Commit(_) | Event::Nothing => Ok(()),
        }
    }

    /// The rows of all tables that wait are added to the epoch.
    fn all_go_on(&mut self, bytes: &[u8]) -> Result<(), SealError> {
        self.waiting.places().try_for_each(|place| self.go_on(place, bytes))
    }

    /// The rows that wait in a place, and point into `bytes`, are added to the epoch.
    fn go_on(&mut self, place: usize, bytes: &[u8]) -> Result<(), SealError> {
        let Some((table, cells, metas)) = self.waiting.rows(place) else { return Ok(()) };
        let (block, at) = (Block { cells, bytes }, metas[0].committed_at);
        let rows = BlockIn { metas: Metas::Each(metas), block, decode: &*self.decode };
        self.epoch.append_block(&self.desk.maker, table, at, &rows)?;
        self.waiting.gone(place);
        self.epoch.relieve(&self.desk.maker)
    }

    /// The table at the version in force.
    fn table(&mut self, id: u32) -> Result<Arc<Table>, SealError> {
        let (table, versioned) = self.tables.get_mut(&id).ok_or_else(|| SealError::Decode {
            what: format!("change {}", self.to.sequence.0 + 1),
            why: DecodeError::Table(id),
        })?;
        if let Some(versioned) = versioned {
            return Ok(Arc::clone(versioned));
        }
        let numbered = self.desk.versioned(&self.outlet, table)?;
        *versioned = Some(Arc::clone(&numbered));
        self.told.tell(id, numbered.version);
        Ok(numbered)
    }

    /// Cuts the epoch here. False: stopped, and nothing was recorded.
    fn seal(&mut self) -> Result<bool, SealError> {
        let epoch = mem::replace(&mut self.epoch, Epoch::new(OPEN_MAX, self.desk.cut.bytes));
        let (committed_at, transactions) = (epoch.committed_at(), epoch.transactions());
        let drafts = epoch.end(&self.desk.maker)?;
        let (from, to, batch) = (self.from.unwrap_or(self.to), self.to, self.batch);
        let objects = drafts.len();
        let notes = mem::take(&mut self.notes).settle(&*self.desk.facts)?;
        let (remembered, decode, told) = (&mut self.remembered, &*self.decode, &self.told);
        let (mut fates, said) = self.desk.fates()?;
        fates.defined = mem::take(&mut self.defined);
        let kind = |id, facts: &mut FactBatch| {
            notes.record(id, facts);
            facts.changes.extend(said.changes);
            facts.put(EPOCH_FACT, &EpochEnd { end: to, batch });
            told.record(facts);
            for table in decode.tables() {
                if remembered.get(&table.id) != Some(&table) {
                    facts.put(format!("{RELATION_FACTS}{:010}", table.id), &*table);
                    remembered.insert(table.id, table);
                }
            }
            let kind = GroupKind::Changes { from, to, batch, committed_at, transactions };
            Ok(Some((kind, fates)))
        };
        let recorded = self.desk.record(&self.outlet, drafts, kind)?;
        if recorded {
            self.from = Some(to);
            self.told.recorded();
            tracing::debug!(to = to.sequence.0, position = %to.position, objects, "epoch sealed");
        }
        Ok(recorded)
    }

    fn expect(&self, what: &'static str, expected: u64, found: u64) -> Result<(), SealError> {
        if expected == found {
            return Ok(());
        }
        Err(SealError::Order { what, after: self.to.sequence, expected, found })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        journal::fate::{By, told_fact},
        seal::{
            Group,
            key::{Keys, Stem},
            memory::{
                Bench, Hand, Log, NOON, Plain, change, epochs, forget, left_out, relation, table,
                truncate,
            },
        },
    };

    const DAY: i64 = 86_400_000_000;

    fn insert(table: u32, id: u64) -> Vec<u8> {
        change(b'I', table, &[&id.to_string(), "n"])
    }

    /// Changes of many transactions and tables, in `count` batches.
    fn story(count: u64) -> Log {
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), relation(&table(2, "b")), insert(1, 1)]]);
        for n in 2..=count {
            if n % 5 == 0 {
                log.pieces(NOON, &[&[insert(1, n), insert(2, n)], &[], &[insert(1, n)]]);
            } else {
                log.whole(NOON, &[&[insert(1, n)], &[], &[insert(2, n), insert(1, n)]]);
            }
        }
        log
    }

    fn sequences(bench: &Bench, groups: &[Group]) -> Vec<i64> {
        let objects = groups.iter().flat_map(|group| &group.objects);
        let data = objects.filter(|object| object.key.ends_with(".parquet"));
        let mut found: Vec<_> =
            data.flat_map(|object| bench.rows(object)).map(|row| row.sequence).collect();
        found.sort_unstable();
        found
    }

    fn bounds(group: &Group) -> (Point, Point, u64) {
        match group.kind {
            GroupKind::Changes { from, to, batch, .. } => (from, to, batch),
            _ => panic!("{group:?} is no epoch"),
        }
    }

    #[test]
    fn a_mark_moves_the_epoch_and_holds_nothing() {
        let bench = Bench::new();
        let mut log = Log::default();
        // Four batches to an epoch.
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7)], &[insert(1, 8)]]);
        log.mark(NOON + 1, 26).mark(NOON + 2, 27).mark(NOON + 3, 28);
        // An epoch of nothing else; the next commit record begins at its end.
        log.mark(NOON + 4, 28).mark(NOON + 5, 29).mark(NOON + 6, 29).mark(NOON + 7, 30);
        log.whole(NOON + 8, &[&[insert(1, 9)]]);
        log.mark(NOON + 9, 36).mark(NOON + 10, 37).mark(NOON + 11, 38);
        let groups = bench.run(log.batches).unwrap();
        let point = |sequence, position| Point {
            sequence: Sequence(sequence),
            position: Position(position),
        };
        let seen: Vec<_> =
            epochs(&groups).into_iter().map(|epoch| (bounds(epoch), epoch.objects.len())).collect();
        let ends = [point(0, 3), point(2, 28), point(2, 30), point(3, 38)];
        let epoch = |n: usize, objects| ((ends[n], ends[n + 1], 4 * (n as u64 + 1)), objects);
        assert_eq!(seen, [epoch(0, 1), epoch(1, 0), epoch(2, 1)]);
        assert_eq!(sequences(&bench, &groups), [1, 2, 3]);
    }

    #[test]
    fn a_definition_that_no_row_follows_has_its_version_and_its_place_in_the_epoch() {
        let bench = Bench::new();
        let mut log = Log::default();
        let mut after = table(1, "a");
        after.columns[1].not_null = true;
        let defined = [&b"d"[..], &serde_json::to_vec(&after).unwrap()].concat();
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7), defined, insert(1, 8)]]);
        let position = log.batches[0].commit.unwrap().position;
        for _ in 0..3 {
            log.whole(NOON, &[&[insert(1, 9)]]);
        }
        let groups = bench.run(log.batches).unwrap();
        let epoch = epochs(&groups)[0];
        let (table, sequence) = ("public.a".to_owned(), Sequence(1));
        assert_eq!(epoch.fates.defined, [Defined { table, version: 2, position, sequence }]);
        // Rows that are read as before are of it.
        let versions: Vec<_> = epoch.objects.iter().map(|object| object.version).collect();
        assert_eq!(versions, [1, 2]);
        assert_eq!(sequences(&bench, &groups), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_stands_at_a_mark_is_no_transaction() {
        let bench = Bench::new();
        let mut log = Log::default();
        let mut after = table(1, "a");
        after.columns[1].not_null = true;
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7)]]);
        log.at_rest(NOON + 1, 19, &[after.clone(), table(2, "b")]);
        log.whole(NOON + 2, &[&[insert(1, 8)]]).mark(NOON + 3, 29);
        let groups = bench.run(log.batches).unwrap();
        let epoch = epochs(&groups)[0];
        let (position, sequence) = (Position(19), Sequence(1));
        let defined = |table: &str, version| {
            let table = table.into();
            Defined { table, version, position, sequence }
        };
        assert_eq!(epoch.fates.defined, [defined("public.a", 2), defined("public.b", 1)]);
        let GroupKind::Changes { transactions, to, .. } = epoch.kind else { panic!("{epoch:?}") };
        assert_eq!((transactions, to.position), (2, Position(29)));
        assert_eq!(sequences(&bench, &groups), [1, 2]);
        // The source can know, and after a restart it is not told twice.
        let told = |id| facts::read::<u32>(&*bench.facts, &told_fact(id, By::Changes)).unwrap();
        assert_eq!([1, 2].map(told), [Some(2), Some(1)]);
        let mut again = Log::behind(2, 2);
        again.at_rest(NOON + 4, 39, &[after, table(2, "b")]);
        again.mark(NOON + 5, 40).mark(NOON + 6, 41).mark(NOON + 7, 42);
        again.batches.iter_mut().for_each(|batch| batch.number += 4);
        let groups = bench.run(again.batches).unwrap();
        let defined: Vec<_> =
            epochs(&groups).iter().map(|epoch| epoch.fates.defined.len()).collect();
        assert_eq!(defined, [0]);
    }

    #[test]
    fn a_box_that_took_a_chain_over_goes_on_at_its_end_without_what_its_decoder_knew() {
        let bench = Bench::new();
        let end = Point { sequence: Sequence(41), position: Position(95) };
        let mut heir = FactBatch::default();
        heir.put(EPOCH_FACT, &EpochEnd { end, batch: 0 });
        let known = Table { version: 3, ..table(1, "a") };
        crate::seal::put_version(&mut heir, &known);
        bench.facts().record_blocking(heir).unwrap();
        let mut log = Log::behind(41, 9);
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7), insert(1, 8)]]);
        log.whole(NOON, &[&[insert(1, 9)]]).mark(NOON, 116).mark(NOON, 117);
        let groups = bench.run(log.batches).unwrap();
        // Its shape is known: no version is given anew.
        assert_eq!(groups[0].id, 1);
        assert!(groups.iter().all(|group| group.kind != GroupKind::Schema), "{groups:?}");
        assert_eq!((bounds(&groups[0]).0, groups[0].objects[0].version), (end, 3));
        assert_eq!(sequences(&bench, &groups), [42, 43, 44]);
    }

    #[test]
    fn a_gap_ends_the_epoch_and_is_said_once_before_what_comes_behind_it() {
        let lines = |groups: &[Group]| {
            let line = |group: &Group| match &group.kind {
                GroupKind::Changes { from, to, .. } => Some(("changes", *from, *to)),
                GroupKind::Gap { from, to, .. } => Some(("gap", *from, *to)),
                GroupKind::Snapshot { .. } | GroupKind::Repair { .. } | GroupKind::Schema => None,
            };
            groups.iter().filter_map(line).collect::<Vec<_>>()
        };
        let point = |sequence, position| Point {
            sequence: Sequence(sequence),
            position: Position(position),
        };
        let bench = Bench::new();
        let note = |after, began, to| {
            let (began, to) = (Position(began), Position(to));
            let gap = Gap { after, began, to, what: "the slot is gone".into() };
            let mut batch = FactBatch::default();
            batch.put(gap.fact(), &gap);
            bench.facts().record_blocking(batch).unwrap();
        };
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7)]]);
        let before = log.batches[0].commit.unwrap().position;
        // The slot that was made behind the first was lost before a change came.
        note(1, 3, before.0 + 4);
        note(1, before.0 + 4, before.0 + 10);
        let mut behind = Log::behind(1, before.0 + 10);
        behind.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 8)]]);
        for _ in 0..3 {
            behind.whole(NOON, &[&[insert(1, 9)]]);
        }
        for (number, batch) in (2..).zip(&mut behind.batches) {
            batch.number = number;
        }
        log.batches.append(&mut behind.batches);
        let groups = bench.run(log.batches).unwrap();
        let (end, first) = (point(1, before.0), point(1, before.0 + 4));
        let gap = point(1, before.0 + 10);
        let seen = lines(&groups);
        let said = [("changes", point(0, 3), end), ("gap", end, first), ("gap", first, gap)];
        assert_eq!(seen[..3], said);
        assert_eq!((seen[3].0, seen[3].1), ("changes", gap), "{seen:?}");
        assert_eq!(bench.facts().scan(GAP_FACTS).len(), 0);
    }

    #[test]
    fn after_a_restart_the_watermark_stands_where_the_last_epoch_ended() {
        let bench = Bench::new();
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7)], &[insert(1, 8)]]);
        log.pieces(NOON, &[&[insert(1, 9)], &[change(b'D', 1, &["7", ""])]]);
        log.whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        bench.board.write(|status| status.sealed = Point::default());
        assert_eq!(bench.run(vec![]).unwrap(), []);
        assert_eq!(bench.board.read().sealed, bounds(&groups[1]).1);
    }

    #[test]
    fn a_row_stands_where_its_commit_ends() {
        let bench = Bench::new();
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 7)], &[insert(1, 8)]]);
        log.pieces(NOON, &[&[insert(1, 9)], &[change(b'D', 1, &["7", ""])]]);
        log.whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        assert_eq!(groups[0].kind, GroupKind::Schema);
        let epoch = &groups[1];
        let from = Point { sequence: Sequence(0), position: Position(3) };
        let to = Point { sequence: Sequence(4), position: Position(45) };
        assert_eq!(bounds(epoch), (from, to, 4));
        assert!(matches!(epoch.kind, GroupKind::Changes { transactions: 4, .. }), "{epoch:?}");
        let rows = bench.rows(&epoch.objects[0]);
        let seen: Vec<_> =
            rows.iter().map(|row| (&*row.op, row.sequence, &*row.position, row.id)).collect();
        assert_eq!(
            seen,
            [
                ("I", 1, "00000000/0000000F", Some(7)),
                ("I", 2, "00000000/00000019", Some(8)),
                ("I", 3, "00000000/00000023", Some(9)),
                ("D", 4, "00000000/00000023", Some(7)),
            ]
        );
        assert_eq!(epoch.objects[0].rows, BTreeMap::from([(Op::Insert, 3), (Op::Delete, 1)]));
        let stem = Keys::new("raw").parse_data(&epoch.objects[0].key).unwrap().stem;
        assert_eq!(stem, Stem::Changes { from: Sequence(1), to: Sequence(4), part: None });
        assert_eq!(bench.board.read().sealed, to);
    }

    #[test]
    fn epochs_tile_the_log_and_end_with_transactions() {
        let bench = Bench::new();
        let groups = bench.run(story(40).batches).unwrap();
        let epochs = epochs(&groups);
        assert!(epochs.len() > 5);
        let mut reached = Point { sequence: Sequence(0), position: Position(3) };
        for epoch in &epochs {
            let (from, to, _) = bounds(epoch);
            assert_eq!(from, reached);
            assert_eq!(to.position.0 % 10, 5);
            reached = to;
        }
        let ids: Vec<_> = groups.iter().map(|group| group.id).collect();
        assert_eq!(ids, (1..=groups.len() as u64).collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// I11: whatever is sealed when the box dies, every change stands in one object afterwards.
        #[test]
        fn a_box_that_dies_anywhere_seals_each_change_once(
            deaths in prop::collection::vec(0_usize..40, 0..4), step in 1_u64..90,
        ) {
            let mut bench = Bench::new();
            bench.clock = Hand::stepping(Duration::from_secs(step));
            let log = story(25);
            let mut passed = vec![];
            for read in deaths {
                let sealed = bench.open().sealed().unwrap().map_or(0, |sealed| sealed.batch);
                let left = log.batches.iter().filter(|batch| batch.number > sealed);
                let groups = bench.run(left.take(read).cloned().collect()).unwrap();
                passed.extend(groups);
            }
            bench.clock = Hand::stepping(Duration::from_secs(3600));
            passed.extend(bench.run(log.batches.clone()).unwrap());
            let ids: Vec<_> = passed.iter().map(|group| group.id).collect();
            prop_assert_eq!(ids, (1..=passed.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(&bench.open().recovered().unwrap(), &passed);
            let last = log.batches.last().unwrap();
            let changes = last.first.0 + last.changes - 1;
            let expected: Vec<_> = (1..=changes.cast_signed()).collect();
            prop_assert_eq!(sequences(&bench, &passed), expected);
            let mut reached = Point { sequence: Sequence(0), position: Position(3) };
            for epoch in epochs(&passed) {
                prop_assert_eq!(bounds(epoch).0, reached);
                reached = bounds(epoch).1;
            }
            prop_assert_eq!(bench.spooled(), passed.iter().map(|group| group.objects.len()).sum::<usize>());
        }
    }

    /// What happens to one row, and what stands of it: op, id and note.
    type Expected = (String, Option<i64>, Option<String>);

    /// A record of the table, and the rows that it makes.
    fn step(of: u32, kind: u8, id: i64, bytes: usize) -> (Vec<u8>, Vec<Expected>) {
        let note = "n".repeat(bytes);
        let values = [&*id.to_string(), &*note];
        let row = |op: &str| (op.to_owned(), Some(id), Some(note.clone()));
        match kind {
            0..10 => (change(b'I', of, &values), vec![row("I")]),
            10..14 => (change(b'U', of, &values), vec![row("U")]),
            14 | 15 => (change(b'D', of, &values), vec![row("D")]),
            16 => {
                let (op, id) = ("U".to_owned(), Some(id));
                (left_out(of, values[0]), vec![(op, id, None)])
            }
            17 => (truncate(&[1, 2]), vec![("T".to_owned(), None, None); 2]),
            18 if bytes < 150 => {
                let note = "l".repeat(LARGE_ROW_BYTES);
                let record = change(b'I', of, &[values[0], &note]);
                (record, vec![("I".to_owned(), Some(id), Some(note))])
            }
            19 => (relation(&table(of, ["a", "b", "c"][of as usize - 1])), vec![]),
            _ => (change(b'I', of, &values), vec![row("I")]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// I11: rows that waited for others of their table stand as if none had.
        #[test]
        fn rows_that_wait_go_on_once_and_in_order(
            steps in prop::collection::vec((1_u32..4, 0_u8..20, 0_usize..3000), 1..300),
            lengths in prop::collection::vec(1_usize..40, 4), hours in 0_i64..30,
        ) {
            let mut bench = Bench::new();
            bench.clock = Hand::stepping(Duration::ZERO);
            let mut log = Log::default();
            let tables = [(1, "a"), (2, "b"), (3, "c")].map(|(id, name)| relation(&table(id, name)));
            log.whole(NOON, &[&tables]);
            // The number of the transaction, the time of its commit, and what stands of a row.
            let mut expected = vec![];
            let (mut left, mut lengths, mut commit) = (&steps[..], lengths.into_iter().cycle(), 1);
            while !left.is_empty() {
                let in_pieces = left.len() % 3 == 0;
                let mut parts = vec![];
                for part in 0..3 {
                    commit += i64::from(part == 0 || !in_pieces);
                    let at = NOON + commit * hours * DAY / 24;
                    let (these, rest) = left.split_at(lengths.next().unwrap().min(left.len()));
                    let made = these.iter().map(|(of, kind, bytes)| {
                        let id = i64::try_from(expected.len()).unwrap();
                        let (record, rows) = step(*of, *kind, id, *bytes);
                        expected.extend(rows.into_iter().map(|row| (commit, at, row)));
                        record
                    });
                    parts.push((at, made.collect::<Vec<_>>()));
                    left = rest;
                }
                if in_pieces {
                    let pieces: Vec<_> = parts.iter().map(|(_, records)| &records[..]).collect();
                    log.pieces(parts[0].0, &pieces);
                } else {
                    log.each(&parts);
                }
            }
            let groups = bench.run(log.batches.clone()).unwrap();
            bench.clock = Hand::stepping(Duration::from_secs(3600));
            let rest = bench.run({ log.whole(NOON, &[&[]]); log.batches }).unwrap();
            let objects = groups.iter().chain(&rest).flat_map(|group| &group.objects);
            let mut found = vec![];
            for object in objects.filter(|object| object.key.ends_with(".parquet")) {
                let rows = bench.rows(object);
                prop_assert!(rows.is_sorted_by_key(|row| row.sequence));
                let date = jiff::Timestamp::from_microsecond(rows[0].committed_at).unwrap();
                let date = date.strftime("/dt=%Y-%m-%d/").to_string();
                prop_assert!(object.key.contains(&date), "{} {date}", object.key);
                prop_assert!(rows.iter().all(|row| row.committed_at.div_euclid(DAY) == rows[0].committed_at.div_euclid(DAY)));
                prop_assert_eq!(object.rows.values().sum::<u64>(), rows.len() as u64);
                found.extend(rows);
            }
            found.sort_by_key(|row| row.sequence);
            let sequences: Vec<_> = found.iter().map(|row| row.sequence).collect();
            let count = i64::try_from(expected.len()).unwrap();
            prop_assert_eq!(sequences, (1..=count).collect::<Vec<_>>());
            for (found, (commit, at, row)) in found.into_iter().zip(expected) {
                prop_assert_eq!((found.xid, found.committed_at), (commit, at));
                prop_assert_eq!(found.position, format!("00000000/{:08X}", commit * 10 + 5));
                prop_assert!((found.op, found.id, found.note) == row);
            }
        }
    }

    #[test]
    fn many_tables_in_a_large_transaction_stay_within_bounds_though_no_block_is_full() {
        let mut bench = Bench::new();
        bench.clock = Hand::stepping(Duration::ZERO);
        let mut log = Log::default();
        let names: Vec<_> = (1..=40).map(|id| (id, format!("t{id}"))).collect();
        let relations: Vec<_> =
            names.iter().map(|(id, name)| relation(&table(*id, name))).collect();
        log.whole(NOON, &[&relations]);
        let mut dice = fastrand::Rng::with_seed(1);
        let mut noise = || (0..20_000).map(|_| char::from(dice.u8(33..127))).collect::<String>();
        let pieces: Vec<Vec<_>> = (0..80)
            .map(|_| (1..=40).map(|id| change(b'I', id, &["1", &noise()])).collect())
            .collect();
        let pieces: Vec<_> = pieces.iter().map(Vec::as_slice).collect();
        log.pieces(NOON, &pieces);
        let sealer = bench.open();
        let (groups, _passed) = tokio::sync::mpsc::channel(1000);
        let outlet = Outlet { groups, token: CancellationToken::new() };
        let mut changes = Changes::resume(sealer.desk(), outlet, &Plain::make).unwrap();
        let mut most = 0;
        for batch in log.batches {
            changes.take(batch).unwrap();
            most = most.max(changes.epoch.held());
        }
        assert!(most < 56 << 20, "{most}");
    }

    #[test]
    fn ids_go_on_when_the_ledger_has_taken_all_groups() {
        let bench = Bench::new();
        let log = story(10);
        let first = bench.run(log.batches[..5].to_vec()).unwrap();
        forget(&*bench.facts(), &first);
        let second = bench.run(log.batches).unwrap();
        assert_eq!(second[0].id, first.last().unwrap().id + 1);
        assert_eq!(bench.spooled(), second.iter().map(|group| group.objects.len()).sum::<usize>());
    }

    #[test]
    fn what_does_not_add_up_stops_the_source_and_records_nothing() {
        let plain = story(6).batches;
        type Break<'a> = &'a dyn Fn(&mut Vec<Batch>);
        let broken: [(&str, Break<'_>); 7] = [
            ("changes in a batch", &|log| log[0].changes += 1),
            ("number of a batch's first change", &|log| drop(log.remove(0))),
            ("a record is cut short", &|log| log[0].bytes.truncate(9)),
            ("of unknown kind", &|log| log[0].bytes[5] = b'?'),
            ("whose columns were never sent", &|log| {
                let mut other = Log::default();
                other.whole(NOON, &[&[insert(3, 1)]]);
                *log = other.batches;
            }),
            ("position of a commit record", &|log| {
                let first = log.iter_mut().find(|batch| batch.piece == Piece::First);
                first.unwrap().ends = None;
            }),
            ("transactions open after a batch", &|log| {
                let first = log.iter().position(|batch| batch.piece == Piece::First).unwrap();
                log[first].piece = Piece::Whole;
            }),
        ];
        for (what, breaks) in broken {
            let mut bench = Bench::new();
            bench.clock = Hand::stepping(Duration::ZERO);
            let mut log = plain.clone();
            breaks(&mut log);
            let error = bench.run(log).unwrap_err().to_string();
            assert!(error.contains(what) || what.starts_with("transactions"), "{what}: {error}");
            assert_eq!(bench.open().sealed().unwrap(), None, "{what}");
            let groups = bench.open().recovered().unwrap();
            assert!(epochs(&groups).is_empty(), "{what}");
            assert_eq!(bench.spooled(), groups.len(), "{what}: only schemas stay");
        }
    }

    #[test]
    fn an_epoch_without_rows_still_moves_the_point() {
        let bench = Bench::new();
        let mut log = Log::default();
        log.whole(NOON, &[&[b"N".to_vec()]]);
        log.whole(NOON, &[&[]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].objects.len(), bounds(&groups[0]).1.position), (0, Position(45)));
    }

    #[test]
    fn a_date_has_its_own_objects_and_ends_an_epoch() {
        let mut bench = Bench::new();
        bench.clock = Hand::stepping(Duration::ZERO);
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), insert(1, 1)]]);
        log.whole(NOON + DAY, &[&[insert(1, 2), insert(1, 3)]]);
        let groups = bench.run(log.batches).unwrap();
        let keys: Vec<_> = groups[1].objects.iter().map(|object| &object.key[17..58]).collect();
        assert_eq!(
            keys,
            [
                "dt=2026-11-21/changes-0000000000000000000",
                "dt=2026-11-22/changes-0000000000000000000",
            ]
        );
    }

    #[test]
    fn a_shape_has_its_version_before_the_rows_that_use_it() {
        let mut bench = Bench::new();
        bench.clock = Hand::stepping(Duration::from_secs(10));
        let mut wider = table(1, "a");
        wider.columns.push(crate::journal::Column { name: "c".into(), ..wider.columns[1].clone() });
        let mut log = Log::default();
        log.whole(
            NOON,
            &[&[relation(&table(1, "a")), insert(1, 1), relation(&table(1, "a")), insert(1, 2)]],
        );
        log.whole(NOON, &[&[relation(&wider), change(b'I', 1, &["3", "n", "c"])]]);
        for _ in 0..5 {
            log.whole(NOON, &[&[]]);
        }
        let groups = bench.run(log.batches).unwrap();
        let kinds: Vec<_> = groups.iter().map(|group| group.kind == GroupKind::Schema).collect();
        assert_eq!(kinds, [true, true, false]);
        assert_eq!(groups[1].objects[0].key, "raw/_schema/erp/public.a/2.json");
        let json: Table = serde_json::from_slice(&bench.file(&groups[1].objects[0])).unwrap();
        assert!(json.same_shape(&wider) && json.version == 2);
        let versions: Vec<_> = groups[2]
            .objects
            .iter()
            .map(|object| (object.version, bench.rows(object).len()))
            .collect();
        assert_eq!(versions, [(1, 2), (2, 1)]);
    }

    #[test]
    fn a_definition_of_any_size_ends_the_rows_that_wait_for_others() {
        let mut bench = Bench::new();
        bench.clock = Hand::stepping(Duration::from_secs(10));
        let mut wider = table(1, "a");
        let default = Some("d".repeat(LARGE_ROW_BYTES));
        let more = &wider.columns[1];
        wider.columns.push(crate::journal::Column { name: "c".into(), default, ..more.clone() });
        let mut log = Log::default();
        let wide = |id: &str| change(b'I', 1, &[id, "n", "c"]);
        log.whole(
            NOON,
            &[&[relation(&table(1, "a")), insert(1, 1), relation(&wider), wide("2"), wide("3")]],
        );
        for _ in 0..7 {
            log.whole(NOON, &[&[]]);
        }
        let groups = bench.run(log.batches).unwrap();
        let objects = groups.iter().flat_map(|group| &group.objects);
        let data = objects.filter(|object| object.key.ends_with(".parquet"));
        let versions: Vec<_> =
            data.map(|object| (object.version, bench.rows(object).len())).collect();
        assert_eq!(versions, [(1, 1), (2, 2)]);
    }

    #[test]
    fn a_truncate_is_a_row_in_each_of_its_tables() {
        let bench = Bench::new();
        let mut log = Log::default();
        let relations = [relation(&table(1, "a")), relation(&table(2, "b"))];
        log.whole(NOON, &[&[relations[0].clone(), relations[1].clone(), truncate(&[1, 2])]]);
        log.whole(NOON, &[&[]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        let objects = &groups.last().unwrap().objects;
        let rows: Vec<_> = objects.iter().flat_map(|object| bench.rows(object)).collect();
        assert_eq!(rows.iter().map(|row| row.sequence).collect::<Vec<_>>(), [1, 2]);
        assert!(rows.iter().all(|row| row.op == "T" && row.id.is_none() && row.note.is_none()));
    }

    #[test]
    fn a_transaction_larger_than_an_object_stands_in_parts() {
        let mut bench = Bench::new();
        bench.options.object_bytes = 200_000;
        let mut log = Log::default();
        let noise = || -> String { (0..3000).map(|_| fastrand::alphanumeric()).collect() };
        let big = |id: u64| change(b'I', 1, &[&id.to_string(), &noise()]);
        let pieces: Vec<Vec<Vec<u8>>> =
            (0..8).map(|piece| (0..200).map(|n| big(piece * 200 + n)).collect()).collect();
        log.whole(NOON, &[&[relation(&table(1, "a"))]]);
        log.pieces(NOON, &pieces.iter().map(Vec::as_slice).collect::<Vec<_>>());
        log.whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        let epoch = groups.iter().find(|group| !group.objects.is_empty() && group.id > 1).unwrap();
        assert!(epoch.objects.len() >= 3, "{}", epoch.objects.len());
        let mut next = 1;
        for (index, object) in epoch.objects.iter().enumerate() {
            let stem = Keys::new("raw").parse_data(&object.key).unwrap().stem;
            let Stem::Changes { from, to, part } = stem else { panic!("{stem:?}") };
            assert_eq!((from.0, part), (next, u32::try_from(index + 1).ok()));
            next = to.0 + 1;
            assert!(object.bytes < 4_000_000);
        }
        assert_eq!(next, 1601);
        assert_eq!(sequences(&bench, &groups).len(), 1600);
    }

    #[test]
    fn a_large_value_goes_through_and_small_rows_beside_it() {
        let bench = Bench::new();
        let large = "x".repeat(9 << 20);
        let mut log = Log::default();
        let rows = [relation(&table(1, "a")), insert(1, 1), change(b'I', 1, &["2", &large])];
        log.whole(NOON, &[&rows, &[insert(1, 3)]]);
        log.whole(NOON, &[&[]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        let objects = &groups[1].objects;
        let rows: Vec<_> = objects.iter().flat_map(|object| bench.rows(object)).collect();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
        assert_eq!(rows[1].note.as_deref(), Some(&*large));
        assert_eq!(objects.len(), 2);
    }
}
