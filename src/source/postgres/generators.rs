//! Looks at the database's sequence generators ([`generator`](crate::source::generator)) beside the tables: which
//! there are, and where they stand.
//!
//! Which: those that a copied table owns, or takes a default from; those that go with no table, by their own name, as
//! if they were tables; and those of a partitioned table whose name matches, as its partitions hold the rows.
//!
//! Cheap for the server (P5): nothing is read while its log stands still, and the longer a look takes, the longer
//! the next one waits. Cheap for the lake: only what changed is written, at most once within
//! `sequence_interval`, and an entry without rows says that nothing did, if there were changes of tables since.
//! What cannot be read stops nothing: its definition goes to the lake, and an alarm names the privilege.
//!
//! **Invariant:** looks stand at rising positions. Behind a gap all are written anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    catalog::{Listed, identifier, quoted},
    error::SourceError,
    message::TextRow,
    pattern::Patterns,
    session::Shared,
    slot,
    wire::Wire,
};
use crate::{
    error::Cause,
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{
        ORIGIN_FACT, Origin, Reading, RowBatch, Sight, SnapshotChunk,
        generator::{
            COLUMNS, Datum, GENERATOR_FACTS, Generator, LOOK_FACT, Look, Owner, Stands,
            generator_fact, table,
        },
        reread::{EPOCH_FACT, EpochEnd},
    },
    telemetry::board::SourceState,
    units::Position,
};

/// The looks of one process.
#[derive(Debug, Default)]
pub(crate) struct Generators {
    /// The channel of a look that seal may still be at.
    handed: Option<mpsc::Sender<RowBatch>>,
    /// When the last one was handed over.
    written: Option<Instant>,
    /// Not before then, so that looking takes no more than a hundredth of the server's time.
    rests: Option<Instant>,
    /// Where the server's log ended at the last look that found nothing to write.
    seen: Option<Position>,
    /// What was told of those that cannot be read.
    told: Option<String>,
}

/// What a look found.
#[derive(Debug)]
struct Found {
    /// Where the log ended before it.
    position: Position,
    generators: BTreeMap<u32, Generator>,
}

/// What of a look goes to the lake.
#[derive(Debug, Default, Eq, PartialEq)]
struct News {
    changed: Vec<u32>,
    gone: Vec<Generator>,
    whole: bool,
}

impl Generators {
    /// Looks, if it is time to. What the server refuses is an alarm, and stops nothing.
    pub(crate) async fn look(
        &mut self,
        shared: &Shared,
        wire: &mut Wire,
        listed: &BTreeMap<u32, Listed>,
        chunks: &mpsc::Sender<SnapshotChunk>,
    ) -> Result<(), SourceError> {
        if !self.is_due(shared) {
            return Ok(());
        }
        let begun = shared.clock.now();
        let looked = self.look_now(shared, wire, listed, chunks).await;
        let now = shared.clock.now();
        self.rests = Some(now + 100 * now.saturating_duration_since(begun));
        match looked {
            // One went between two statements: the next look knows.
            Err(error) if error.is_of_a_moving_catalog() => Ok(()),
            Err(error @ SourceError::Server { .. }) => {
                self.tell(shared, Some(format!("sequences cannot be looked at: {error}")));
                Ok(())
            }
            other => other,
        }
    }

    fn is_due(&mut self, shared: &Shared) -> bool {
        if self.handed.as_ref().is_some_and(|handed| !handed.is_closed()) {
            return false;
        }
        self.handed = None;
        let now = shared.clock.now();
        let (every, state) =
            (shared.config.sequence_interval, shared.board.look(|status| status.state));
        // The first look follows a session that has just judged the server.
        let first = self.written.is_none() && self.seen.is_none();
        (first || matches!(state, SourceState::Streaming | SourceState::Snapshot))
            && self.rests.is_none_or(|until| now >= until)
            && self.written.is_none_or(|last| now.saturating_duration_since(last) >= every)
    }

    async fn look_now(
        &mut self,
        shared: &Shared,
        wire: &mut Wire,
        listed: &BTreeMap<u32, Listed>,
        chunks: &mpsc::Sender<SnapshotChunk>,
    ) -> Result<(), SourceError> {
        let facts = &*shared.facts;
        let last: Option<Look> = facts::read(facts, LOOK_FACT)?;
        let position = slot::log_end(wire).await?;
        if self.seen == Some(position) || last.is_some_and(|last| position <= last.position) {
            return Ok(());
        }
        let found = find(shared, wire, listed, position).await?;
        self.tell(shared, unreadable(&found.generators, &shared.url.user));
        let news = news(facts, last, &found)?;
        if news.is_none() {
            self.seen = Some(position);
            return Ok(());
        }
        let (news, since) = (news.unwrap_or_default(), last.unwrap_or_default().since_whole);
        match chunks.try_send(self.chunk(shared, &found, &news, since)) {
            Ok(()) => {
                self.written = Some(shared.clock.now());
                Ok(())
            }
            // Seal has enough to do.
            Err(TrySendError::Full(_)) => {
                self.handed = None;
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(SourceError::Ended),
        }
    }

    /// All of a look, with its rows.
    fn chunk(
        &mut self,
        shared: &Shared,
        found: &Found,
        news: &News,
        since_whole: u32,
    ) -> SnapshotChunk {
        let mut facts = FactBatch::default();
        let since_whole = if news.whole { 0 } else { since_whole.saturating_add(1) };
        facts.put(LOOK_FACT, &Look { position: found.position, since_whole });
        let mut batches = vec![];
        let mut open = vec![];
        for generator in news.changed.iter().filter_map(|id| found.generators.get(id)) {
            facts.put(generator_fact(generator.id), generator);
            tuple(&generator.row(), &mut open);
            if open.len() >= BATCH_BYTES {
                batches.push(RowBatch::Rows(Bytes::from(std::mem::take(&mut open))));
            }
        }
        batches.push(RowBatch::Rows(open.into()));
        let names: BTreeSet<_> =
            found.generators.values().map(|one| (&one.schema, &one.name)).collect();
        let (mut gone, mut rows) = (vec![], news.changed.len());
        for generator in &news.gone {
            if !found.generators.contains_key(&generator.id) {
                facts.delete(generator_fact(generator.id));
            }
            // Another one may have its name.
            if !names.contains(&(&generator.schema, &generator.name)) {
                tuple(&generator.row_gone(), &mut gone);
                rows += 1;
            }
        }
        batches.push(RowBatch::Gone(gone.into()));
        batches.push(RowBatch::End(u64::try_from(rows).unwrap_or(u64::MAX)));
        let (tell, receive) = mpsc::channel(batches.len());
        for batch in batches {
            tell.try_send(batch).expect("there is room for each");
        }
        self.handed = Some(tell);
        SnapshotChunk {
            table: table().into(),
            number: 0,
            chunks: 1,
            position: found.position,
            at: shared.clock.wall(),
            reading: Reading::Look { of: Sight::Sequences { whole: news.whole }, facts },
            rows: receive,
        }
    }

    /// Raises the alarm, or takes it down.
    fn tell(&mut self, shared: &Shared, what: Option<String>) {
        match &what {
            Some(what) => {
                if self.told.as_ref() != Some(what) {
                    tracing::warn!(what, "sequences are not copied as they stand; rows are");
                }
                let now = shared.clock.wall();
                shared.board.alarm(ALARM, Cause::SourcePrivilege, what, now);
            }
            None => shared.board.calm(ALARM),
        }
        self.told = what;
    }
}

/// How many there are to copy, and what is to be granted to `role` if some cannot be read.
pub(super) async fn count(
    wire: &mut Wire,
    patterns: &Patterns,
    listed: &BTreeMap<u32, Listed>,
    role: &str,
) -> Result<(usize, Option<String>), SourceError> {
    let (mut generators, readable) = list(wire, patterns, listed).await?;
    let all = generators.len();
    for id in readable {
        generators.remove(&id);
    }
    Ok((all, unreadable(&generators, role)))
}

/// Reads which there are, and where they stand.
async fn find(
    shared: &Shared,
    wire: &mut Wire,
    listed: &BTreeMap<u32, Listed>,
    position: Position,
) -> Result<Found, SourceError> {
    let (mut generators, readable) = list(wire, &shared.patterns, listed).await?;
    for some in readable.chunks(READ_AT_ONCE) {
        let one = |id: &u32| {
            let Generator { schema, name, .. } = &generators[id];
            format!("SELECT {id}, last_value, is_called FROM {}", quoted(schema, name))
        };
        let sql = some.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ");
        for row in wire.query(LOOKING, &sql).await? {
            if let Some(generator) = generators.get_mut(&row.parse_as(0)?) {
                generator.stands = Some(Stands { last: row.parse_as(1)?, called: row.flag(2) });
            }
        }
    }
    Ok(Found { position, generators })
}

/// Reads which there are, by id, and which of them can be read.
async fn list(
    wire: &mut Wire,
    patterns: &Patterns,
    listed: &BTreeMap<u32, Listed>,
) -> Result<(BTreeMap<u32, Generator>, Vec<u32>), SourceError> {
    let (mut generators, mut readable) = (BTreeMap::new(), vec![]);
    for row in wire.query(LOOKING, LIST).await? {
        let generator = parse(&row)?;
        let using: Vec<u32> = numbers(row.optional(15));
        let owner = generator.owner.as_ref();
        let (schema, name) = match owner {
            None => (&generator.schema, &generator.name),
            Some(owner) => (&owner.schema, &owner.table),
        };
        let by_name = owner.is_none() || row.flag(16);
        let wanted = owner.is_some_and(|owner| listed.contains_key(&owner.table_id))
            || using.iter().any(|id| listed.contains_key(id))
            || by_name && patterns.include(schema, name);
        if !wanted {
            continue;
        }
        if row.flag(10) {
            readable.push(generator.id);
        }
        generators.insert(generator.id, generator);
    }
    Ok((generators, readable))
}

fn parse(row: &TextRow) -> Result<Generator, SourceError> {
    let owner = match row.optional(11) {
        None => None,
        Some(_) => Some(Owner {
            table_id: row.parse_as(11)?,
            schema: row.text(12)?.into(),
            table: row.text(13)?.into(),
            column: row.text(14)?.into(),
            identity: match row.optional(17) {
                Some("a") => Some("always".into()),
                Some("d") => Some("by default".into()),
                _ => None,
            },
        }),
    };
    Ok(Generator {
        id: row.parse_as(0)?,
        schema: row.text(1)?.into(),
        name: row.text(2)?.into(),
        data_type: row.text(3)?.into(),
        start: row.parse_as(4)?,
        min: row.parse_as(5)?,
        max: row.parse_as(6)?,
        increment: row.parse_as(7)?,
        cycle: row.flag(8),
        cache: row.parse_as(9)?,
        stands: None,
        owner,
    })
}

fn numbers(list: Option<&str>) -> Vec<u32> {
    list.into_iter().flat_map(|list| list.split(',')).filter_map(|id| id.parse().ok()).collect()
}

/// What is to be written; `None`: nothing.
fn news(facts: &dyn Facts, last: Option<Look>, found: &Found) -> Result<Option<News>, FactDamaged> {
    let known: BTreeMap<u32, Generator> = facts::read_all::<Generator>(facts, GENERATOR_FACTS)?
        .into_iter()
        .map(|(_, generator)| (generator.id, generator))
        .collect();
    let origin: Option<Origin> = facts::read(facts, ORIGIN_FACT)?;
    let begins = origin.map(|origin| origin.consistent_point).unwrap_or_default();
    let changed = |(id, now): &(&u32, &Generator)| known.get(id) != Some(now);
    let changed: Vec<u32> = found.generators.iter().filter(changed).map(|(id, _)| *id).collect();
    let goes = |known: &&Generator| {
        let now = found.generators.get(&known.id);
        now.is_none_or(|now| (&now.schema, &now.name) != (&known.schema, &known.name))
    };
    let gone: Vec<Generator> = known.values().filter(goes).cloned().collect();
    let Some(last) = last.filter(|last| last.position >= begins) else {
        // The first look, or the first behind a gap.
        let all: Vec<u32> = found.generators.keys().copied().collect();
        let nothing = all.is_empty() && gone.is_empty();
        return Ok((!nothing).then_some(News { changed: all, gone, whole: true }));
    };
    if changed.is_empty() && gone.is_empty() {
        let epoch: Option<EpochEnd> = facts::read(facts, EPOCH_FACT)?;
        let behind = epoch.is_some_and(|epoch| epoch.end.position > last.position);
        return Ok((behind && !found.generators.is_empty()).then(News::default));
    }
    let whole = last.since_whole >= SINCE_WHOLE_MAX || 2 * changed.len() >= found.generators.len();
    let changed = match whole {
        true => found.generators.keys().copied().collect(),
        false => changed,
    };
    Ok(Some(News { changed, gone, whole }))
}

/// What is to be granted, if some cannot be read.
fn unreadable(generators: &BTreeMap<u32, Generator>, role: &str) -> Option<String> {
    let closed: Vec<&Generator> =
        generators.values().filter(|generator| generator.stands.is_none()).collect();
    let (first, role) = (closed.first()?, identifier(role));
    let names: Vec<String> =
        closed.iter().take(NAMES_SHOWN).map(|generator| generator.qualified()).collect();
    let more = closed.len().saturating_sub(NAMES_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let schemas: BTreeSet<&String> = closed.iter().map(|generator| &generator.schema).collect();
    let grant = match closed.len() {
        1 => {
            let name = quoted(&first.schema, &first.name);
            format!("GRANT SELECT ON SEQUENCE {name} TO {role}")
        }
        _ => {
            let schemas = schemas.iter().map(|schema| identifier(schema)).collect::<Vec<_>>();
            format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {} TO {role}", schemas.join(", "))
        }
    };
    Some(format!(
        "sequences whose values cannot be read: {}{more}; run: {grant}, and GRANT USAGE ON SCHEMA where that is missing",
        names.join(", ")
    ))
}

/// Appends a row as binary COPY has it.
fn tuple(row: &[Datum<'_>], into: &mut Vec<u8>) {
    let columns = i16::try_from(COLUMNS.len()).expect("they are few");
    into.extend(columns.to_be_bytes());
    let mut value = |bytes: Option<&[u8]>| {
        let length = bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("names are short"));
        into.extend(length.to_be_bytes());
        into.extend(bytes.unwrap_or_default());
    };
    for datum in row {
        match datum {
            Datum::Text(text) => value(text.map(str::as_bytes)),
            Datum::Int(int) => value(int.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice)),
            Datum::Boolean(flag) => {
                value(flag.map(|flag| [u8::from(flag)]).as_ref().map(<[u8; 1]>::as_slice));
            }
        }
    }
}

/// 0 id, 1 schema, 2 name, 3 type, 4 start, 5 least, 6 greatest, 7 increment, 8 cycles, 9 cache, 10 readable, 11 owning
/// table, 12 its schema, 13 its name, 14 owning column, 15 tables whose defaults take from it, 16 the owner is
/// partitioned, 17 how the column is an identity.
const LIST: &str = "SELECT c.oid, n.nspname, c.relname, format_type(s.seqtypid, NULL), s.seqstart, s.seqmin, s.seqmax,
    s.seqincrement, s.seqcycle, s.seqcache,
    has_sequence_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
    t.oid, m.nspname, t.relname, a.attname,
    (SELECT string_agg(DISTINCT f.adrelid::text, ',') FROM pg_depend u JOIN pg_attrdef f ON f.oid = u.objid
    WHERE u.classid = 'pg_attrdef'::regclass AND u.refclassid = 'pg_class'::regclass AND u.refobjid = c.oid),
    t.relkind = 'p', a.attidentity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
    LEFT JOIN pg_depend o ON o.classid = 'pg_class'::regclass AND o.objid = c.oid AND o.objsubid = 0
    AND o.refclassid = 'pg_class'::regclass AND o.refobjsubid > 0 AND o.deptype IN ('a', 'i')
    LEFT JOIN pg_class t ON t.oid = o.refobjid LEFT JOIN pg_namespace m ON m.oid = t.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
    WHERE c.relkind = 'S' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'";

const LOOKING: &str = "look at sequences";
/// The alarm for those that cannot be read.
const ALARM: &str = "sequences";
/// In one statement, which locks each against being dropped.
const READ_AT_ONCE: usize = 100;
/// Looks that write only what changed, before one that writes all: a restore reads so many objects at most.
const SINCE_WHOLE_MAX: u32 = 100;
const BATCH_BYTES: usize = 256 << 10;
const NAMES_SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        source::{Cell, Decode, generator::sample::generator, postgres::pgoutput::PgDecoder},
        units::{Point, Sequence},
    };

    fn found(position: u64, generators: &[Generator]) -> Found {
        let generators = generators.iter().map(|one| (one.id, one.clone())).collect();
        Found { position: Position(position), generators }
    }

    /// Facts as a look leaves them.
    fn looked(position: u64, since_whole: u32, generators: &[Generator]) -> MemoryFacts {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        batch.put(LOOK_FACT, &Look { position: Position(position), since_whole });
        for one in generators {
            batch.put(generator_fact(one.id), one);
        }
        facts.record_blocking(batch).unwrap();
        facts
    }

    fn next(facts: &MemoryFacts, found: &Found) -> Option<News> {
        news(facts, facts::read(facts, LOOK_FACT).unwrap(), found).unwrap()
    }

    #[test]
    fn only_what_changed_is_written_and_all_of_it_now_and_then() {
        let all: Vec<Generator> = (1..=5).map(|id| generator(id, &format!("s{id}"), 1)).collect();
        let first = next(&MemoryFacts::default(), &found(10, &all)).unwrap();
        assert_eq!((first.changed.len(), first.whole), (5, true));
        assert_eq!(next(&looked(10, 0, &all), &found(20, &all)), None);
        let mut moved = all.clone();
        moved[2].stands = Some(Stands { last: 2, called: true });
        let one = News { changed: vec![3], gone: vec![], whole: false };
        assert_eq!(next(&looked(10, 7, &all), &found(20, &moved)), Some(one));
        let full = next(&looked(10, SINCE_WHOLE_MAX, &all), &found(20, &moved)).unwrap();
        assert_eq!((full.changed.len(), full.whole), (5, true));
        assert_eq!(next(&MemoryFacts::default(), &found(10, &[])), None);
    }

    #[test]
    fn a_look_says_that_nothing_changed_once_tables_did() {
        let all = [generator(1, "s", 1)];
        let facts = looked(10, 0, &all);
        let cut = |position| {
            let end = Point { sequence: Sequence(1), position: Position(position) };
            let mut batch = FactBatch::default();
            batch.put(EPOCH_FACT, &EpochEnd { end, batch: 1 });
            facts.record_blocking(batch).unwrap();
        };
        cut(10);
        assert_eq!(next(&facts, &found(20, &all)), None);
        cut(11);
        assert_eq!(next(&facts, &found(20, &all)), Some(News::default()));
    }

    #[test]
    fn one_that_is_gone_or_renamed_is_named_by_its_old_name() {
        let (one, other) = (generator(1, "a", 1), generator(2, "b", 1));
        let facts = looked(10, 0, &[one.clone(), other.clone(), generator(3, "c", 1)]);
        let renamed = Generator { name: "z".into(), ..other.clone() };
        let news = next(&facts, &found(20, &[renamed, generator(3, "c", 1)])).unwrap();
        assert_eq!((news.gone, news.changed.contains(&2)), (vec![one, other], true));
    }

    #[test]
    fn behind_a_gap_all_are_written_anew() {
        let all = [generator(1, "a", 1), generator(2, "b", 1), generator(3, "c", 1)];
        let (facts, mut batch) = (looked(10, 0, &all), FactBatch::default());
        let origin = r#"{"system_identifier":"7","timeline":1,"database":"erp","slot":"s","publication":"p","consistent_point":"00000000/0000000B"}"#;
        batch.changes.push((ORIGIN_FACT.into(), Some(origin.as_bytes().into())));
        facts.record_blocking(batch).unwrap();
        let news = next(&facts, &found(20, &all)).unwrap();
        assert_eq!((news.changed.len(), news.whole), (3, true));
    }

    #[test]
    fn a_row_is_read_as_one_of_a_copy() {
        let one = generator(9, "t \"x\"", -4);
        let mut bytes = vec![];
        tuple(&one.row(), &mut bytes);
        tuple(&one.row_gone(), &mut bytes);
        let mut rows = vec![];
        PgDecoder::default()
            .rows(&table(), &bytes, &mut |row| {
                rows.push(row.clone());
                Ok(())
            })
            .unwrap();
        let at = |row: usize, column: usize| match &rows[row][column] {
            Cell::Binary(range) => Some(&bytes[range.clone()]),
            _ => None,
        };
        assert_eq!(at(0, 1), Some(&b"t \"x\""[..]));
        assert_eq!(at(0, 10), Some(&(-4i64).to_be_bytes()[..]));
        assert_eq!((at(0, 11), at(0, 12)), (Some(&[1][..]), None));
        assert_eq!((at(1, 1), at(1, 2)), (Some(&b"t \"x\""[..]), None));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_the_statement_that_mends_it() {
        let closed = |id, name: &str| Generator { stands: None, ..generator(id, name, 0) };
        let told = |all: &[Generator]| unreadable(&found(1, all).generators, "lakehead");
        assert_eq!(told(&[generator(1, "a", 1)]), None);
        let one = told(&[closed(1, "a"), generator(2, "b", 1)]).unwrap();
        assert!(one.contains("GRANT SELECT ON SEQUENCE \"public\".\"a\" TO \"lakehead\""), "{one}");
        let many: Vec<Generator> = (1..=7).map(|id| closed(id, &format!("s{id}"))).collect();
        let many = told(&many).unwrap();
        assert!(many.contains("s5 and 2 more"), "{many}");
        assert!(many.contains("ON ALL SEQUENCES IN SCHEMA \"public\" TO"), "{many}");
    }
}
