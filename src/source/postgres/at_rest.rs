//! Notices tables that were altered while nothing of theirs changes: of them the stream says nothing.
//!
//! Each look at the catalog finds whose definition may be another than before, and where the server's log ends then.
//! Once the stream has come that far, and no transaction is open, the definition stands there (`stream/resting`), if
//! the catalog still has it and it was not told of last.
//!
//! **Invariant:** a definition stands behind all rows that were written before it: whatever the look saw had been
//! committed where the log ended behind it. What the stream tells of a table is news of it: it is looked at again.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    batch::POSTGRES_EPOCH_US,
    catalog::{self, Listed},
    error::SourceError,
    rewritten,
    session::Shared,
    slot,
    snapshot::plan_fact,
    statements,
    wire::Wire,
};
use crate::{
    facts::{self, FactDamaged, Facts},
    source::{
        RecordKind, Run, Table,
        fate::{By, told_fact, version_facts},
    },
    units::Position,
};

/// What is known of the definitions in the catalog, from the beginning of a session on.
#[derive(Debug, Default)]
pub(crate) struct AtRest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts sessions.
    session: u64,
    /// What the journal held when the session began.
    begun: Position,
    /// Where the log ended at the last whole look.
    looked: Option<Position>,
    /// Nobody looks before: of a large catalog it takes the server long.
    rests_until: Option<Instant>,
    /// Whether a table was forgotten since, to be looked at again.
    is_news: bool,
    seen: BTreeMap<u32, Seen>,
    /// What the stream told of tables last: a definition, or none.
    told: BTreeMap<u32, Told>,
    /// Definitions that are to stand behind a position.
    waiting: BTreeMap<u32, (Table, Position)>,
}

/// A definition as it was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    /// What it is made of.
    parts: String,
    shape: u64,
}

/// What the stream told of a table last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Told {
    /// The definition's shape, if there was one.
    shape: Option<u64>,
    /// In this transaction.
    xid: u32,
}

impl AtRest {
    /// A session begins where the journal holds changes up to there.
    pub(crate) fn begin(&self, begun: Position) {
        let mut state = self.state();
        *state = State { session: state.session + 1, begun, ..State::default() };
    }

    /// From where on something is to be recorded.
    pub(crate) fn due(&self) -> Option<Position> {
        self.state().waiting.values().map(|(_, behind)| *behind).min()
    }

    /// The stream tells of a table, in this transaction.
    pub(crate) fn heard(&self, table_id: u32, definition: Option<&Table>, xid: u32) {
        let (mut state, shape) = (self.state(), definition.map(shape));
        state.told.insert(table_id, Told { shape, xid });
        state.waiting.remove(&table_id);
        if state.seen.get(&table_id).is_some_and(|seen| Some(seen.shape) != shape) {
            state.forget(table_id);
        }
    }

    /// Some of the tables whose definitions may stand at `position`.
    pub(crate) fn due_at(&self, position: Position) -> Vec<u32> {
        let state = self.state();
        let due = state.waiting.iter().filter(|(_, (_, behind))| *behind <= position);
        due.map(|(id, _)| *id).take(TABLES_AT_ONCE).collect()
    }

    /// The transactions in which the stream told of tables last: of each the table.
    pub(crate) fn told_in(&self, tables: &[u32]) -> BTreeMap<u32, Vec<u32>> {
        let (state, mut told_in) = (self.state(), BTreeMap::<u32, Vec<u32>>::new());
        for id in tables {
            // 0: what stood at a mark is in none.
            if let Some(told) = state.told.get(id).filter(|told| told.xid > 0) {
                told_in.entry(told.xid).or_default().push(*id);
            }
        }
        told_in
    }

    /// The definitions of tables that still are made of the same `parts`, to be recorded now. Others are looked at again.
    pub(crate) fn take(&self, tables: &[u32], parts: &BTreeMap<u32, String>) -> Vec<Table> {
        let (mut state, mut taken) = (self.state(), vec![]);
        for id in tables {
            let Some((table, _)) = state.waiting.remove(id) else { continue };
            let seen = state.seen.get(id).map(|seen| &seen.parts);
            match seen.is_some() && seen == parts.get(id) {
                true => {
                    state.told.insert(*id, Told { shape: Some(shape(&table)), xid: 0 });
                    taken.push(table);
                }
                false => state.forget(*id),
            }
        }
        taken
    }

    /// Forgets tables that are not there any more.
    fn keep(&self, is_listed: impl Fn(&u32) -> bool) {
        let mut state = self.state();
        state.seen.retain(|id, _| is_listed(id));
        state.waiting.retain(|id, _| is_listed(id));
    }

    /// Begins a look where seal has come to this, and gives the session's number. What the lake was told last is not
    /// known before all that the journal held when the session began is sealed.
    fn begin_look(&self, sealed: Position) -> Option<u64> {
        let state = self.state();
        (sealed >= state.begun).then_some(state.session)
    }

    /// Whether the log has not gone on since the last whole look.
    fn is_still(&self, end: Position) -> bool {
        self.state().looked == Some(end)
    }

    /// All tables have been looked at when the log ended there.
    fn end_look(&self, session: u64, end: Position) {
        let mut state = self.state();
        // What was heard meanwhile is looked at next time.
        if state.session == session && !std::mem::take(&mut state.is_news) {
            state.looked = Some(end);
        }
    }

    fn is_seen(&self, id: u32, parts: &str) -> bool {
        self.state().seen.get(&id).is_some_and(|seen| seen.parts == parts)
    }

    /// A table has been looked at in a `session`. `is_known`: the lake is known to have it so, but for what the stream
    /// told since.
    fn look(
        &self,
        (session, parts): (u64, String),
        (table, behind): (Table, Position),
        is_known: bool,
    ) {
        let (mut state, shape, id) = (self.state(), shape(&table), table.id);
        if state.session != session {
            return;
        }
        let before = state.seen.insert(id, Seen { parts, shape });
        if before.is_some_and(|seen| seen.shape == shape) {
            return;
        }
        let is_told = match state.told.get(&id) {
            Some(told) => told.shape == Some(shape),
            None => is_known,
        };
        match is_told {
            true => drop(state.waiting.remove(&id)),
            false => drop(state.waiting.insert(id, (table, behind))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicked task left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A table is to be looked at again.
    fn forget(&mut self, table_id: u32) {
        self.seen.remove(&table_id);
        self.waiting.remove(&table_id);
        (self.looked, self.is_news) = (None, true);
    }
}

/// What tells a definition from another one.
fn shape(table: &Table) -> u64 {
    let json = serde_json::to_vec(&table.shape()).expect("a table is plain data");
    let mut hasher = DefaultHasher::new();
    hasher.write(&json);
    hasher.finish()
}

/// Looks at the definitions of the tables of a `listing`. False: not at all of them.
pub(crate) async fn look(
    shared: &Shared,
    wire: &mut Wire,
    listing: &BTreeMap<u32, Listed>,
) -> Result<bool, SourceError> {
    let (facts, at_rest) = (&*shared.facts, &shared.at_rest);
    at_rest.keep(|id| listing.contains_key(id));
    let Some(session) = at_rest.begin_look(shared.board.look(|status| status.sealed.position))
    else {
        return Ok(false);
    };
    let end = slot::log_end(wire).await?;
    if at_rest.is_still(end) {
        return Ok(true);
    }
    let began = shared.clock.now();
    if at_rest.state().rests_until.is_some_and(|until| began < until) {
        return Ok(false);
    }
    let mut parts = parts(wire, "t.oid >= 16384").await?;
    let ended = shared.clock.now();
    let took = ended.saturating_duration_since(began);
    at_rest.state().rests_until = Some(ended + took * SHARE);
    // Of what is not in the lake yet, its first rows will tell.
    let is_copied =
        |id: u32| facts.get(&plan_fact(id)).is_some() && !facts.scan(&version_facts(id)).is_empty();
    parts.retain(|id, parts| {
        listing.contains_key(id) && !at_rest.is_seen(*id, parts) && is_copied(*id)
    });
    let mut is_whole = true;
    let locked = if parts.is_empty() { vec![] } else { locked(wire).await? };
    for locked in locked {
        // They are looked at once nobody would have to be waited for.
        is_whole &= parts.remove(&locked).is_none();
    }
    let ids: Vec<u32> = parts.keys().copied().collect();
    for ids in ids.chunks(TABLES_AT_ONCE) {
        let described = match describe(wire, ids).await {
            Err(error) if error.is_of_a_moving_catalog() || error.is_of_a_lock() => {
                is_whole = false;
                continue;
            }
            described => described?,
        };
        let behind = slot::log_end(wire).await?;
        for (id, mut described) in described {
            let Some(parts) = parts.remove(&id) else { continue };
            rewritten::settle(facts, id, &mut described)?;
            let is_known = is_recorded(facts, &described.table)?;
            at_rest.look((session, parts), (described.table, behind), is_known);
        }
    }
    if is_whole {
        at_rest.end_look(session, end);
    }
    Ok(is_whole)
}

/// Describes tables without waiting for anybody: what defaults are printed by locks their tables.
async fn describe(
    wire: &mut Wire,
    ids: &[u32],
) -> Result<BTreeMap<u32, catalog::Described>, SourceError> {
    wire.query("look at definitions", "SET lock_timeout = '50ms'").await?;
    let described = catalog::describe(wire, ids.iter().copied()).await;
    wire.query("look at definitions", "RESET lock_timeout").await?;
    described
}

/// Tables that somebody has, or waits to have, for himself.
async fn locked(wire: &mut Wire) -> Result<Vec<u32>, SourceError> {
    let rows = wire.query("look at definitions", LOCKED).await?;
    rows.iter().map(|row| row.parse_as(0)).collect()
}

/// What the definitions of tables are made of, by table.
pub(crate) async fn parts(
    wire: &mut Wire,
    which: &str,
) -> Result<BTreeMap<u32, String>, SourceError> {
    let rows = wire.query("look at definitions", &PARTS.replace("{which}", which)).await?;
    rows.iter().map(|row| Ok((row.parse_as(0)?, row.text(1)?.to_owned()))).collect()
}

/// Whether all that was recorded of it last says that a table is like this.
fn is_recorded(facts: &dyn Facts, table: &Table) -> Result<bool, FactDamaged> {
    let recorded = recorded(facts, table.id)?;
    let is_same = |known: &Option<Table>| {
        known.as_ref().is_some_and(|known| known.is_numbered() && known.same_shape(table))
    };
    Ok(!recorded.is_empty() && recorded.iter().all(is_same))
}

/// What was recorded last of a table, by changes and by parts of a snapshot, where there are such.
pub(crate) fn recorded(
    facts: &dyn Facts,
    table_id: u32,
) -> Result<Vec<Option<Table>>, FactDamaged> {
    let mut recorded = vec![];
    for by in [By::Changes, By::Parts] {
        let version: Option<u32> = facts::read(facts, &told_fact(table_id, by))?;
        if let Some(version) = version {
            recorded
                .push(facts::read(facts, &format!("{}{version:010}", version_facts(table_id)))?);
        }
    }
    Ok(recorded)
}

/// Has definitions stand at a mark: in a transaction that no server sends, as its number is none.
pub(crate) fn record(mark: &mut Run, definitions: &[Table]) {
    let Some(commit) = mark.commit.filter(|_| !definitions.is_empty()) else { return };
    let at = (commit.at.0 - POSTGRES_EPOCH_US).to_be_bytes();
    let [begins, end] = [commit.begins, commit.position].map(|position| position.0.to_be_bytes());
    let begin = [&b"B"[..], &begins, &at, &0u32.to_be_bytes()].concat();
    let commit = [&b"C\0"[..], &begins, &end, &at].concat();
    let definitions = definitions.iter().map(statements::definition);
    let messages = [begin].into_iter().chain(definitions).chain([commit]);
    messages.for_each(|message| mark.push(RecordKind::Message, &message));
}

/// Of the server's time looks take so much: one part in this many.
const SHARE: u32 = 100;
/// Bounds the answer.
const TABLES_AT_ONCE: usize = 200;
/// 0 table, 1 what its definition is made of: who wrote each of its parts in the catalog last, and what its defaults
/// name. Where it has types that people made all such types are among them. `{which}`: tables `t`.
const PARTS: &str = "WITH types AS (SELECT concat_ws(',',
        (SELECT concat(count(*), ':', sum(y.xmin::text::int8), ':', sum(n.xmin::text::int8))
            FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace LEFT JOIN pg_class r ON r.oid = y.typrelid
            WHERE y.oid >= 16384 AND coalesce(r.relkind, 'c') = 'c'
            AND NOT EXISTS (SELECT FROM pg_type e JOIN pg_class o ON o.oid = e.typrelid WHERE e.oid = y.typelem AND o.relkind <> 'c')),
        (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_enum),
        (SELECT concat(count(*), ':', sum(xmin::text::int8)) FROM pg_constraint WHERE contypid <> 0),
        (SELECT concat(count(*), ':', sum(a.xmin::text::int8)) FROM pg_class r JOIN pg_attribute a ON a.attrelid = r.oid
            WHERE r.relkind = 'c')) AS parts)
    SELECT t.oid, concat_ws(' ', t.xmin, n.xmin,
        (SELECT concat(count(*), ':', sum(a.xmin::text::int8 * a.attnum), CASE WHEN max(a.atttypid::int8) >= 16384 THEN (SELECT parts FROM types) END)
            FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum > 0),
        (SELECT concat(count(*), ':', sum(d.xmin::text::int8 * d.adnum), ':', sum(coalesce(r.xmin, f.xmin)::text::int8), ':', sum(m.xmin::text::int8),
                CASE WHEN bool_or(p.refclassid = 'pg_catalog.pg_type'::regclass) THEN (SELECT parts FROM types) END)
            FROM pg_attrdef d LEFT JOIN pg_depend p ON p.classid = 'pg_catalog.pg_attrdef'::regclass AND p.objid = d.oid
            LEFT JOIN pg_class r ON p.refclassid = 'pg_catalog.pg_class'::regclass AND r.oid = p.refobjid AND r.relkind = 'S'
            LEFT JOIN pg_proc f ON p.refclassid = 'pg_catalog.pg_proc'::regclass AND f.oid = p.refobjid
            LEFT JOIN pg_namespace m ON m.oid = coalesce(r.relnamespace, f.pronamespace) WHERE d.adrelid = t.oid HAVING count(*) > 0),
        (SELECT concat(count(*), ':', sum(i.xmin::text::int8)) FROM pg_index i WHERE i.indrelid = t.oid AND (i.indisprimary OR i.indisreplident)),
        (SELECT concat(count(*), ':', sum(k.xmin::text::int8)) FROM pg_constraint k WHERE k.conrelid = t.oid AND k.contype = 'n'))
    FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace WHERE t.relkind = 'r' AND {which}";
const LOCKED: &str = "SELECT DISTINCT relation FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::pgoutput::PgDecoder, *};
    use crate::{
        facts::MemoryFacts,
        source::{Commit, Decode as _, Event, Piece, generator::table, records},
        units::Timestamp,
    };

    fn named(name: &str, nullable: bool) -> Table {
        let mut table = Table { id: 7, name: name.into(), ..table() };
        table.columns[0].not_null = !nullable;
        table
    }

    /// A look at a table that is made of these parts, when the log ended there.
    fn look(at_rest: &AtRest, parts: &str, table: &Table, behind: u64, is_known: bool) {
        let session = at_rest.state().session;
        at_rest.look((session, parts.into()), (table.clone(), Position(behind)), is_known);
    }

    /// What is recorded at a position where the catalog has the table made of these parts.
    fn taken(at_rest: &AtRest, position: u64, parts: &str) -> Vec<String> {
        let due = at_rest.due_at(Position(position));
        let taken = at_rest.take(&due, &BTreeMap::from([(7, parts.to_owned())]));
        taken.into_iter().map(|table| table.name).collect()
    }

    #[test]
    fn a_definition_waits_until_the_stream_has_come_to_where_it_was_seen() {
        let at_rest = AtRest::default();
        look(&at_rest, "1", &named("t", false), 10, true);
        assert_eq!(at_rest.due(), None, "the lake has it so");
        assert!(at_rest.is_seen(7, "1") && !at_rest.is_seen(7, "2"));
        look(&at_rest, "2", &named("u", true), 20, false);
        assert_eq!((at_rest.due(), at_rest.due_at(Position(19))), (Some(Position(20)), vec![]));
        // Seen again before that, the same made of other parts, then another.
        look(&at_rest, "3", &named("u", true), 25, false);
        assert_eq!(at_rest.due(), Some(Position(20)));
        look(&at_rest, "4", &named("v", true), 30, false);
        assert!(at_rest.due_at(Position(29)).is_empty());
        assert_eq!(taken(&at_rest, 30, "4"), ["v"]);
        assert_eq!((at_rest.due(), taken(&at_rest, 40, "4")), (None, vec![]));
        // Back to what the lake has, as far as its facts say.
        look(&at_rest, "5", &named("t", false), 50, true);
        assert_eq!(taken(&at_rest, 50, "5"), ["t"]);
        // As it was told.
        look(&at_rest, "6", &named("t", false), 60, false);
        assert_eq!(at_rest.due(), None);
    }

    #[test]
    fn what_has_changed_again_is_looked_at_again() {
        let at_rest = AtRest::default();
        look(&at_rest, "1", &named("t", true), 10, false);
        assert_eq!(taken(&at_rest, 10, "2"), Vec::<String>::new());
        assert!(!at_rest.is_seen(7, "1") && at_rest.due().is_none());
        look(&at_rest, "2", &named("u", true), 20, false);
        assert_eq!(taken(&at_rest, 20, "2"), ["u"]);
        // It is gone.
        look(&at_rest, "3", &named("v", true), 30, false);
        let due = at_rest.due_at(Position(30));
        assert_eq!(at_rest.take(&due, &BTreeMap::new()), []);
    }

    #[test]
    fn what_the_stream_tells_counts_and_has_a_table_looked_at_again_if_it_is_another() {
        let (at_rest, now) = (AtRest::default(), named("t", true));
        look(&at_rest, "1", &now, 10, true);
        // An older one, without a definition, of a stream that lags.
        at_rest.heard(7, None, 700);
        assert!(!at_rest.is_seen(7, "1"));
        look(&at_rest, "1", &now, 20, true);
        assert_eq!(at_rest.told_in(&[7, 8]), BTreeMap::from([(700, vec![7])]));
        // It tells of just that, and another one waits no more.
        at_rest.heard(7, Some(&now), 701);
        assert_eq!((at_rest.due(), at_rest.is_seen(7, "1")), (None, true));
        look(&at_rest, "2", &named("u", true), 30, false);
        at_rest.heard(7, Some(&now), 702);
        assert_eq!((at_rest.due(), at_rest.is_seen(7, "2")), (None, false));
        look(&at_rest, "2", &named("u", true), 40, true);
        assert_eq!(taken(&at_rest, 40, "2"), ["u"]);
    }

    #[test]
    fn of_a_table_that_is_gone_and_of_an_earlier_session_nothing_waits() {
        let at_rest = AtRest::default();
        let altered = || look(&at_rest, "1", &named("t", true), 10, false);
        let begin: fn(&AtRest) = |at_rest| at_rest.begin(Position(5));
        for forget in [begin, |at_rest: &AtRest| at_rest.keep(|_| false)] {
            altered();
            assert!(at_rest.due().is_some() && at_rest.is_seen(7, "1"));
            forget(&at_rest);
            assert!(at_rest.due().is_none() && !at_rest.is_seen(7, "1"));
        }
        altered();
        at_rest.keep(|id| *id == 7);
        assert_eq!(taken(&at_rest, 10, "1"), ["t"]);
        // A look that the session's end overtook.
        at_rest.look((0, "1".into()), (named("t", true), Position(10)), true);
        assert!(at_rest.due().is_none());
    }

    #[test]
    fn nobody_looks_while_the_log_stands() {
        let at_rest = AtRest::default();
        let session = at_rest.begin_look(Position(0)).unwrap();
        assert!(!at_rest.is_still(Position(1)));
        look(&at_rest, "1", &named("t", true), 1, true);
        at_rest.end_look(session, Position(1));
        assert!(at_rest.is_still(Position(1)) && !at_rest.is_still(Position(2)));
        at_rest.heard(7, None, 700);
        assert!(!at_rest.is_still(Position(1)), "it is to be looked at again");
        // Heard in the midst of a look.
        at_rest.end_look(session, Position(1));
        assert!(!at_rest.is_still(Position(1)));
        at_rest.end_look(session, Position(1));
        assert!(at_rest.is_still(Position(1)));
        // Nothing is known before what a session began with is sealed.
        at_rest.begin(Position(9));
        assert_eq!(at_rest.begin_look(Position(8)), None);
        let next = at_rest.begin_look(Position(9)).unwrap();
        at_rest.end_look(session, Position(9));
        assert!(next > session && !at_rest.is_still(Position(9)));
    }

    #[test]
    fn it_is_recorded_only_if_all_that_was_told_last_says_so() {
        let facts = MemoryFacts::default();
        let put = |key: String, value: serde_json::Value| {
            let mut batch = facts::FactBatch::default();
            batch.put(key, &value);
            facts.record_blocking(batch).unwrap();
        };
        let mut table = named("t", true);
        (1..).zip(&mut table.columns).for_each(|(n, column)| column.number = Some(n));
        let other = Table { name: "u".into(), ..table.clone() };
        let plain = Table { columns: named("t", true).columns, ..table.clone() };
        for (version, of) in [(1, &table), (2, &other), (3, &plain)] {
            let key = format!("{}{version:010}", version_facts(7));
            put(key, serde_json::to_value(Table { version, ..of.clone() }).unwrap());
        }
        assert!(!is_recorded(&facts, &table).unwrap());
        for (by, version, expected) in [
            (By::Parts, 1, true),
            (By::Changes, 2, false),
            // What the stream alone told has no numbers: it is no definition of the catalog.
            (By::Changes, 3, false),
            (By::Changes, 1, true),
            (By::Parts, 2, false),
        ] {
            put(told_fact(7, by), version.into());
            assert_eq!(is_recorded(&facts, &table).unwrap(), expected, "{by:?} {version}");
        }
    }

    #[test]
    fn what_was_altered_at_rest_stands_at_a_mark_in_a_transaction_that_is_none() {
        let (position, begins, at) = (Position(20), Position(19), Timestamp(9));
        let commit = Commit { position, begins, at, transactions: 0 };
        let mark = || Run { commit: Some(commit), ..Run::new(Piece::Whole) };
        let mut run = mark();
        record(&mut run, &[]);
        assert_eq!(run, mark());
        record(&mut run, &[named("t", true), named("u", true)]);
        assert_eq!((run.changes, run.commit), (0, Some(commit)));
        let mut decoder = PgDecoder::default();
        let records = records(&run.bytes).map(Option::unwrap);
        let events: Vec<_> =
            records.map(|(kind, payload)| decoder.decode(kind, payload).unwrap()).collect();
        let defined =
            |name: &str| Event::Defined(Arc::new(Table { version: 0, ..named(name, true) }));
        let wanted = [
            Event::Begin { begins, at, xid: 0 },
            defined("t"),
            defined("u"),
            Event::Commit(Commit { transactions: 1, ..commit }),
        ];
        assert_eq!(events, wanted);
    }
}
