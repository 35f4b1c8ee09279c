//! Notices tables that were altered while nothing of theirs changes: of them the stream says nothing.
//!
//! Each look at the catalog finds whose definition may be another than before, and where the server's log ends then.
//! Once the stream has come that far, and no transaction is open, the definition stands there (`stream/resting`), unless
//! the stream has told of it itself by then.
//!
//! **Invariant:** a definition stands behind all rows that were written before it: whatever the look saw had been
//! committed where the log ended behind it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{
    batch::POSTGRES_EPOCH_US,
    catalog::{self, Listed},
    error::SourceError,
    session::Shared,
    slot,
    snapshot::plan_fact,
    statements,
    wire::Wire,
};
use crate::{
    facts::{self, FactDamaged, Facts},
    source::{RecordKind, Run, Table, fate::version_facts},
    units::Position,
};

/// What is known of the definitions in the catalog, from the beginning of a session on.
#[derive(Debug, Default)]
pub(crate) struct AtRest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What a table's definition was seen to be made of.
    seen: BTreeMap<u32, String>,
    /// Definitions that are to stand behind a position.
    waiting: BTreeMap<u32, (Table, Position)>,
}

impl AtRest {
    /// A session begins: what an earlier one recorded may be lost with damage.
    pub(crate) fn begin(&self) {
        *self.state() = State::default();
    }

    /// From where on something is to be recorded.
    pub(crate) fn due(&self) -> Option<Position> {
        self.state().waiting.values().map(|(_, behind)| *behind).min()
    }

    /// The definitions that may stand at `position`.
    pub(crate) fn take(&self, position: Position) -> Vec<Table> {
        let due = |_: &u32, (_, behind): &mut (Table, Position)| *behind <= position;
        self.state().waiting.extract_if(.., due).map(|(_, (table, _))| table).collect()
    }

    /// Forgets tables that are not there any more.
    fn keep(&self, is_listed: impl Fn(&u32) -> bool) {
        let mut state = self.state();
        state.seen.retain(|id, _| is_listed(id));
        state.waiting.retain(|id, _| is_listed(id));
    }

    fn is_seen(&self, id: u32, parts: &str) -> bool {
        self.state().seen.get(&id).is_some_and(|seen| seen == parts)
    }

    /// A table has been looked at. `known`: as the lake has it, if it was not looked at before in this session.
    fn look(&self, parts: &str, (table, behind): (Table, Position), known: &Table) {
        let mut state = self.state();
        let first = state.seen.insert(table.id, parts.to_owned()).is_none();
        if !first || !table.same_shape(known) {
            state.waiting.insert(table.id, (table, behind));
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // What a panicked task left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the definitions of the tables of a `listing`.
pub(crate) async fn look(
    shared: &Shared,
    wire: &mut Wire,
    listing: &BTreeMap<u32, Listed>,
) -> Result<(), SourceError> {
    let (facts, at_rest) = (&*shared.facts, &shared.at_rest);
    at_rest.keep(|id| listing.contains_key(id));
    let mut news = BTreeMap::new();
    for row in wire.query("look at definitions", PARTS).await? {
        let (id, parts) = (row.parse_as(0)?, row.text(1)?);
        // Of what is not in the lake yet, its first rows will tell.
        if listing.contains_key(&id)
            && !at_rest.is_seen(id, parts)
            && facts.get(&plan_fact(id)).is_some()
            && let Some(known) = recorded(facts, id)?
        {
            news.insert(id, (parts.to_owned(), known));
        }
    }
    let ids: Vec<u32> = news.keys().copied().collect();
    for ids in ids.chunks(TABLES_AT_ONCE) {
        let described = catalog::describe(wire, ids.iter().copied()).await?;
        let behind = slot::log_end(wire).await?;
        for (id, described) in described {
            if let Some((parts, known)) = news.get(&id) {
                at_rest.look(parts, (described.table, behind), known);
            }
        }
    }
    Ok(())
}

/// The definition of a table that was recorded last.
pub(crate) fn recorded(facts: &dyn Facts, id: u32) -> Result<Option<Table>, FactDamaged> {
    let versions = facts::read_all::<Table>(facts, &version_facts(id))?;
    Ok(versions.into_iter().next_back().map(|(_, table)| table))
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

/// Bounds the answer.
const TABLES_AT_ONCE: usize = 200;
/// 0 table, 1 what its definition is made of: who wrote each of its parts in the catalog last. The same for all are the
/// types that people made.
const PARTS: &str = "WITH
    columns AS (SELECT attrelid AS id, count(*) AS number, sum(xmin::text::int8 * attnum) AS by
        FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0 GROUP BY 1),
    defaults AS (SELECT adrelid AS id, count(*) AS number, sum(xmin::text::int8 * adnum) AS by FROM pg_attrdef GROUP BY 1),
    keys AS (SELECT indrelid AS id, count(*) AS number, sum(xmin::text::int8) AS by
        FROM pg_index WHERE indrelid >= 16384 AND (indisprimary OR indisreplident) GROUP BY 1),
    filled AS (SELECT conrelid AS id, count(*) AS number, sum(xmin::text::int8) AS by
        FROM pg_constraint WHERE contype = 'n' AND conrelid <> 0 GROUP BY 1),
    types AS (SELECT concat_ws(',', (SELECT count(*) || ':' || sum(xmin::text::int8) FROM pg_type WHERE oid >= 16384 AND typtype IN ('d', 'e', 'r')),
        (SELECT count(*) || ':' || sum(xmin::text::int8) FROM pg_enum),
        (SELECT count(*) || ':' || sum(xmin::text::int8) FROM pg_constraint WHERE contypid <> 0),
        (SELECT sum(c.number) || ':' || sum(c.by) FROM columns c JOIN pg_class r ON r.oid = c.id WHERE r.relkind = 'c')) AS parts)
    SELECT t.oid, concat_ws(' ', t.xmin, n.xmin, c.number, c.by, d.number, d.by, k.number, k.by, f.number, f.by, types.parts)
    FROM types, pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace LEFT JOIN columns c ON c.id = t.oid
    LEFT JOIN defaults d ON d.id = t.oid LEFT JOIN keys k ON k.id = t.oid LEFT JOIN filled f ON f.id = t.oid
    WHERE t.relkind = 'r' AND t.oid >= 16384";

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

    #[test]
    fn a_definition_waits_until_the_stream_has_come_to_where_it_was_seen() {
        let (at_rest, known) = (AtRest::default(), named("t", false));
        at_rest.look("1", (known.clone(), Position(10)), &known);
        assert_eq!(at_rest.due(), None, "the lake has it so");
        assert!(at_rest.is_seen(7, "1") && !at_rest.is_seen(7, "2"));
        at_rest.look("2", (named("t", true), Position(20)), &known);
        assert_eq!((at_rest.due(), at_rest.take(Position(19))), (Some(Position(20)), vec![]));
        // Seen again before that: the last one counts.
        at_rest.look("3", (named("u", true), Position(30)), &known);
        assert_eq!(at_rest.take(Position(29)), []);
        assert_eq!(at_rest.take(Position(30)), [named("u", true)]);
        assert_eq!((at_rest.due(), at_rest.take(Position(40))), (None, vec![]));
        // Back to what the lake was told first: whether that was the last, the stream knows.
        at_rest.look("4", (known.clone(), Position(50)), &known);
        assert_eq!(at_rest.take(Position(50)), [known]);
    }

    #[test]
    fn of_a_table_that_is_gone_and_of_an_earlier_session_nothing_waits() {
        let (at_rest, known) = (AtRest::default(), named("t", false));
        let altered = || at_rest.look("1", (named("t", true), Position(10)), &known);
        for forget in [AtRest::begin as fn(&AtRest), |at_rest: &AtRest| at_rest.keep(|_| false)] {
            altered();
            assert!(at_rest.due().is_some() && at_rest.is_seen(7, "1"));
            forget(&at_rest);
            assert!(at_rest.due().is_none() && !at_rest.is_seen(7, "1"));
        }
        altered();
        at_rest.keep(|id| *id == 7);
        assert_eq!(at_rest.take(Position(10)).len(), 1);
    }

    #[test]
    fn the_definition_that_was_recorded_last_is_the_one_of_the_greatest_number() {
        let facts = MemoryFacts::default();
        assert_eq!(recorded(&facts, 7).unwrap(), None);
        let mut batch = facts::FactBatch::default();
        for version in [1, 2, 10] {
            let table = Table { version, ..named(&format!("t{version}"), false) };
            batch.put(format!("{}{version:010}", version_facts(7)), &table);
        }
        facts.record_blocking(batch).unwrap();
        assert_eq!(recorded(&facts, 7).unwrap().unwrap().name, "t10");
        assert_eq!(recorded(&facts, 8).unwrap(), None);
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
