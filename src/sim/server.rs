//! A PostgreSQL in memory: transactions with LSNs, timelines, slots that confirm and are lost.
//!
//! It keeps what it committed, by timeline, so that the lake can be judged by it. How it speaks is in
//! `session`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::{io::DuplexStream, sync::Notify};

use super::{
    bell::Bell,
    chronicle::Chronicle,
    lock,
    timeline::{Change, Row, Timeline, Transaction},
};
use crate::{
    source::postgres::{
        error::{ServerError, SourceError},
        origin,
        tls::Channel,
        wire::Wire,
    },
    units::Position,
};

/// The server. Clones are one.
#[derive(Clone)]
pub(crate) struct ModelServer {
    state: Arc<Mutex<State>>,
    /// Rings at each commit: sessions wait for more.
    pub(crate) committed: Arc<Bell>,
    /// Rings when all sessions are cut.
    pub(crate) cuts: Arc<Bell>,
    /// A connection has come.
    pub(crate) arrived: Arc<Notify>,
}

/// One connection, the server's end.
pub(crate) struct Arrival {
    pub(crate) stream: DuplexStream,
    /// Of a replication connection, the slot.
    pub(crate) slot: Option<String>,
}

pub(crate) struct State {
    chronicle: Chronicle,
    random: fastrand::Rng,
    up: bool,
    /// The last one is in force.
    timelines: Vec<Timeline>,
    end: u64,
    xid: u32,
    tables: Vec<TableNow>,
    slots: BTreeMap<String, ModelSlot>,
    arrivals: VecDeque<Arrival>,
    /// It was put back to a backup, and nobody has looked since.
    unseen: bool,
    /// How often it was started.
    starts: u64,
}

/// All tables at one position, as they are exported with a slot: columns beyond the first two, and rows.
pub(crate) struct Snapshot {
    pub(crate) position: Position,
    pub(crate) tables: Vec<(usize, BTreeMap<u64, String>)>,
    /// It ends with its session.
    cuts: u64,
}

#[derive(Clone, Copy, Default)]
struct TableNow {
    more: usize,
}

/// A slot.
#[derive(Clone, Debug)]
pub(crate) struct ModelSlot {
    pub(crate) confirmed: Position,
    /// What a crash of the server leaves of it.
    persisted: Position,
    lost: bool,
    active: bool,
}

/// Tables: the last one is excluded by the configuration.
pub(crate) const TABLES: usize = 3;
/// Whether the rows of a table are ours.
pub(crate) fn is_ours(table: usize) -> bool {
    table + 1 < TABLES
}
/// A table's name.
pub(crate) fn table_name(table: usize) -> String {
    if is_ours(table) { format!("t{table}") } else { format!("scratch_{table}") }
}
/// A table's number in the server.
pub(crate) fn table_id(table: usize) -> u32 {
    16_400 + u32::try_from(table).unwrap_or(0)
}

impl ModelServer {
    pub(crate) fn new(chronicle: Chronicle, seed: u64) -> Self {
        let state = State {
            chronicle,
            random: fastrand::Rng::with_seed(seed),
            up: true,
            timelines: vec![Timeline::first()],
            end: 0x0100_0000,
            xid: 700,
            tables: vec![TableNow::default(); TABLES],
            slots: BTreeMap::new(),
            arrivals: VecDeque::new(),
            unseen: false,
            starts: 1,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            committed: Arc::default(),
            cuts: Arc::default(),
            arrived: Arc::default(),
        }
    }

    /// Looks at, or changes, what it holds.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut lock(&self.state))
    }

    /// Connects: a wire that is logged in. `slot`: for replication from it.
    pub(crate) fn connect(&self, slot: Option<&str>) -> Result<Wire, SourceError> {
        let mut state = lock(&self.state);
        if !state.up {
            return Err(SourceError::broken("connect", "refused"));
        }
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        state.arrivals.push_back(Arrival { stream: theirs, slot: slot.map(Into::into) });
        self.arrived.notify_one();
        let mut wire = Wire::new(Channel::Memory(ours), "model:5432".into());
        wire.parameters.insert("server_version".into(), "15.0".into());
        Ok(wire)
    }

    pub(crate) fn arrival(&self) -> Option<Arrival> {
        lock(&self.state).arrivals.pop_front()
    }

    /// As IDENTIFY_SYSTEM answers.
    pub(crate) fn identify(&self) -> Result<origin::Server, SourceError> {
        let state = lock(&self.state);
        if !state.up {
            return Err(SourceError::broken("identify", "gone"));
        }
        let number = |index: usize| state.timelines[index].number;
        let mut history = vec![];
        let mut at = state.timelines.len() - 1;
        while at > 0 {
            let Timeline { parent, branched, .. } = state.timelines[at];
            history.insert(0, (number(parent), branched));
            at = parent;
        }
        Ok(origin::Server {
            system_identifier: SYSTEM.into(),
            timeline: number(state.timelines.len() - 1),
            database: DATABASE.into(),
            log_end: Position(state.end),
            history,
        })
    }

    /// As it prints when it was started.
    pub(crate) fn started(&self) -> String {
        lock(&self.state).starts.to_string()
    }

    /// As `pg_replication_slots` says.
    pub(crate) fn look(&self, name: &str) -> Option<origin::Slot> {
        let state = lock(&self.state);
        let slot = state.slots.get(name)?;
        Some(origin::Slot {
            plugin: "pgoutput".into(),
            database: DATABASE.into(),
            active: slot.active,
            restart: (!slot.lost).then_some(slot.confirmed),
            confirmed: Some(slot.confirmed),
            wal_status: if slot.lost { "lost" } else { "reserved" }.into(),
            failover: false,
        })
    }

    /// CREATE_REPLICATION_SLOT: where it begins, and what stands there.
    pub(crate) fn make_slot(&self, name: &str) -> Result<Snapshot, SourceError> {
        let snapshot = self.snapshot()?;
        let at = snapshot.position;
        let mut state = lock(&self.state);
        let slot = ModelSlot { confirmed: at, persisted: at, lost: false, active: false };
        state.note(format_args!("slot {name} at {at}"));
        if state.slots.insert(name.into(), slot).is_some() {
            let error = ServerError { code: "42710".into(), ..ServerError::default() };
            return Err(SourceError::Server { doing: "make the slot", error });
        }
        Ok(snapshot)
    }

    /// A slot that ends with its session: for its snapshot.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, SourceError> {
        let mut state = lock(&self.state);
        if !state.up {
            return Err(SourceError::broken("make the slot", "gone"));
        }
        state.end += 56;
        let columns = state.tables.iter().map(|table| table.more);
        let tables = columns.zip(state.timeline().rows.iter().cloned()).collect();
        Ok(Snapshot { position: Position(state.end), tables, cuts: self.cuts.count() })
    }

    /// Whether the session that exported the snapshot is still there.
    pub(crate) fn has(&self, snapshot: &Snapshot) -> bool {
        snapshot.cuts == self.cuts.count()
    }

    pub(crate) fn drop_slot(&self, name: &str) {
        let mut state = lock(&self.state);
        state.slots.remove(name);
        state.note(format_args!("slot {name} dropped"));
    }

    /// Commits a transaction.
    pub(crate) fn commit(&self, rows: Vec<Row>, at: i64) {
        lock(&self.state).commit(rows, at);
        self.committed.ring();
    }

    /// Ends every session. `crash`: the slots go back to what was persisted.
    pub(crate) fn cut_sessions(&self, crash: bool) {
        let mut state = lock(&self.state);
        state.starts += u64::from(crash);
        for slot in state.slots.values_mut() {
            slot.active = false;
            if crash {
                slot.confirmed = slot.persisted;
            }
        }
        state.arrivals.clear();
        drop(state);
        self.cuts.ring();
    }

    pub(crate) fn set_up(&self, up: bool) {
        let mut state = lock(&self.state);
        state.up = up;
        state.note(format_args!("up: {up}"));
    }

    /// A standby takes over that lacks the last `lost` transactions. Whether a slot of that name came
    /// with it: `slots`.
    pub(crate) fn promote(&self, lost: usize, slots: bool) {
        let mut state = lock(&self.state);
        let mut next = state.timeline().clone();
        let kept = next.log.len().saturating_sub(lost);
        // What the last one left off ends here: with it the standby's log.
        let branched = match next.log.get(kept) {
            Some(first_lost) => Position(first_lost.begins.0 - 1),
            None => Position(state.end),
        };
        next.cut(kept);
        // A standby that lacks so much was never on the youngest timelines.
        next.parent = state.timelines.len() - 1;
        while next.parent > 0 && state.timelines[next.parent].branched >= branched {
            next.parent = state.timelines[next.parent].parent;
        }
        next.branched = branched;
        next.number = state.timelines.iter().map(|timeline| timeline.number + 1).max().unwrap_or(1);
        state.end = branched.0 + 64;
        state.timelines.push(next);
        state.keep_slots(slots, branched);
        state.note(format_args!("promoted at {branched}, {lost} transactions lost, slots {slots}"));
        drop(state);
        self.cut_sessions(true);
    }

    /// The database is put back to a backup of its timeline, which lacks the last `lost` transactions. With
    /// the slots as they were then, or without: `slots`.
    pub(crate) fn restore(&self, lost: usize, slots: bool) {
        let mut state = lock(&self.state);
        let mut next = state.timeline().clone();
        let oldest = next.log.partition_point(|transaction| transaction.begins <= next.branched);
        let kept = next.log.len().saturating_sub(lost).max(oldest);
        let end = next.log.get(kept).map_or(state.end, |first_lost| first_lost.begins.0 - 1);
        next.cut(kept);
        state.end = end;
        state.timelines.push(next);
        state.keep_slots(slots, Position(end));
        state.unseen = true;
        state.note(format_args!("back to a backup at {}, slots {slots}", Position(end)));
        drop(state);
        self.cut_sessions(true);
    }

    /// A box has looked, and will not forget what it saw.
    pub(crate) fn seen(&self) {
        lock(&self.state).unseen = false;
    }
}

impl State {
    /// The slots that a standby or a backup has, at `end` of its log.
    fn keep_slots(&mut self, kept: bool, end: Position) {
        if !kept {
            self.slots.clear();
        }
        for slot in self.slots.values_mut() {
            slot.confirmed = slot.persisted.min(end);
            slot.persisted = slot.confirmed;
        }
    }

    pub(crate) fn note(&self, line: std::fmt::Arguments<'_>) {
        self.chronicle.note(format_args!("server: {line}"));
    }

    pub(crate) fn timeline(&self) -> &Timeline {
        &self.timelines[self.timelines.len() - 1]
    }

    pub(crate) fn timelines(&self) -> &[Timeline] {
        &self.timelines
    }

    pub(crate) fn end(&self) -> Position {
        Position(self.end)
    }

    pub(crate) fn slot(&self, name: &str) -> Option<&ModelSlot> {
        self.slots.get(name)
    }

    /// A session takes or leaves a slot.
    pub(crate) fn set_active(&mut self, name: &str, active: bool) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.active = active;
        }
    }

    /// A status update. Persisted now and then, as a checkpoint does.
    pub(crate) fn confirm(&mut self, name: &str, position: Position) {
        let persists = self.random.u8(..3) == 0;
        let Some(slot) = self.slots.get_mut(name) else { return };
        slot.confirmed = slot.confirmed.max(position);
        if persists {
            slot.persisted = slot.confirmed;
        }
    }

    /// The server gives a slot up: `max_slot_wal_keep_size`.
    pub(crate) fn lose_slot(&mut self, name: &str) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.lost = true;
        }
        self.note(format_args!("slot {name} lost"));
    }

    /// Whether it was put back to a backup, and no session has looked since.
    pub(crate) fn is_unseen(&self) -> bool {
        self.unseen
    }

    /// Log that is no transaction of this database.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.end += bytes;
    }

    /// A column more.
    pub(crate) fn alter(&mut self, table: usize) {
        self.tables[table].more += 1;
        self.note(format_args!("{} has a column more", table_name(table)));
    }

    /// The note of a row that is there, and its key.
    pub(crate) fn pick(&self, table: usize, number: usize) -> Option<(u64, String)> {
        let rows = &self.timeline().rows[table];
        let (key, values) = rows.iter().nth(number % rows.len().max(1))?;
        Some((*key, values.split(' ').next()?.into()))
    }

    pub(crate) fn columns_more(&self, table: usize) -> usize {
        self.tables[table].more
    }

    fn commit(&mut self, rows: Vec<Row>, at: i64) {
        let size: u64 = rows.iter().map(|row| 40 + row.note.len() as u64).sum();
        self.end += 32 + size;
        let begins = Position(self.end);
        self.end += 48;
        let end = Position(self.end);
        // Others write, too: the next record need not begin where this one ends.
        self.end += self.random.u64(..3) * 24;
        self.xid += 1;
        let xid = self.xid;
        let last = self.timelines.len() - 1;
        let timeline = &mut self.timelines[last];
        rows.iter().for_each(|row| timeline.apply(row));
        for row in rows.iter().filter(|row| is_ours(row.table)) {
            let text = format!(
                "{} {end} {xid} {}{}",
                row.op.escape_ascii(),
                table_name(row.table),
                row.shown()
            );
            timeline.changes.push(Arc::new(Change { position: end, begins, text }));
        }
        let changes_after = timeline.changes.len();
        let count = rows.len();
        timeline.log.push(Arc::new(Transaction { begins, end, xid, at, rows, changes_after }));
        self.note(format_args!("commits {xid} at {end}: {count} rows, {changes_after} changes"));
    }
}

pub(crate) const SYSTEM: &str = "7301";
pub(crate) const DATABASE: &str = "erp";
/// Of a connection, each way.
const BUFFER_BYTES: usize = 64 << 10;
