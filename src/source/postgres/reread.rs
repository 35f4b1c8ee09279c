//! Decides what of a table must be read again once its snapshot is done, and how its rows are named.
//!
//! Reading again is part of the same passes as the snapshot. Of each noted key the row is read as it is by
//! then, or not at all if it is gone: all that happened to it is in the stream. A note is forgotten only when
//! the changes up to the position of that reading are sealed: the row may have got another key before it,
//! and that one is noted then too.
//!
//! Where the notes would be too many, all of the table is read again, by ranges of its key. That ends: whatever
//! happens to a row meanwhile, it stays in its part, so that only rows which get another key are noted. Of
//! a table whose keys change without rest a person is told, who can give it REPLICA IDENTITY FULL: then its
//! changes say all values, and nothing is noted.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    catalog::{Described, Listed, identifier, literal, quoted},
    chunks::{Blocks, Extent, Plan},
    error::SourceError,
    ranges::Ranges,
    repair::{self, Stage},
    session::Shared,
    snapshot::plan_fact,
    wire::Wire,
};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{
        chunk_facts,
        fate::{Fate, fate_fact},
        reread::{
            EPOCH_FACT, EpochEnd, Reread, Span, Unchanged, group_fact, reread_facts, span_fact,
            unchanged_all_fact, unchanged_facts,
        },
    },
    units::Position,
};

/// How a table stands whose parts are all sealed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// Nothing is missing.
    Whole,
    /// Changes, or the ledger, are waited for.
    Waiting,
    /// Rows are to be read again: those of these notes.
    Keys(Vec<String>),
    /// All its parts are to be read again.
    Parts,
}

/// What the facts say of a table whose parts are all sealed.
#[derive(Debug, Default)]
struct Found {
    span: Option<Span>,
    /// Key of the note of all rows, if there is one.
    all: Option<String>,
    /// Keys of the notes.
    notes: Vec<String>,
    /// What was read again, by the keys of its facts.
    rereads: BTreeMap<String, Reread>,
    /// Those of them that the ledger does not have yet.
    shipping: BTreeSet<String>,
    /// The changes are sealed up to here.
    sealed: Position,
}

/// What is to be done next.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Step {
    /// Nothing now.
    Stand(Standing),
    /// These facts are to be removed: what they ask for is there, or never was missing.
    Forget(Vec<String>),
}

/// Says how the table stands, and removes the facts that are done with.
pub(crate) async fn settle(
    shared: &Shared,
    (table_id, listed): (u32, &Listed),
    plan: &Plan,
) -> Result<Standing, SourceError> {
    let facts = &*shared.facts;
    let stage = repair::stage(facts, table_id);
    if stage == Stage::Waiting {
        let Some(why) = repair::hopeless(shared, table_id, listed) else {
            return Ok(Standing::Waiting);
        };
        repair::give_up(shared, table_id, plan, why).await?;
        return Ok(Standing::Parts);
    }
    loop {
        let found = find(shared, table_id)?;
        let read = found.rereads.values().map(|reread| reread.position).max();
        match found.next() {
            Step::Stand(Standing::Parts) => {
                match stage {
                    Stage::None => begin_again(shared, table_id, plan).await?,
                    _ => repair::give_up(shared, table_id, plan, repair::TOO_MANY).await?,
                }
                return Ok(Standing::Parts);
            }
            Step::Stand(standing) => return Ok(standing),
            Step::Forget(keys) => {
                let mut batch = FactBatch::default();
                for key in keys {
                    batch.delete(key);
                }
                repair::reached(facts, table_id, read.unwrap_or_default(), &mut batch)?;
                shared.facts.record(batch).await?;
            }
        }
    }
}

/// Has the ledger told that a table is whole, if it was not. Of one that left and came back it is not so.
pub(crate) fn tell(
    facts: &dyn Facts,
    table_id: u32,
    plan: &Plan,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    let span: Option<Span> = facts::read(facts, &span_fact(table_id))?;
    let (told, last) = span.map_or((false, Position(0)), |span| (span.told, span.last));
    if !told && !plan.gone {
        batch.put(span_fact(table_id), &Span::settled(last));
        batch.put(fate_fact(table_id, Fate::Whole), &Fate::Whole);
        repair::tell(facts, table_id, batch)?;
    }
    Ok(())
}

fn find(shared: &Shared, table_id: u32) -> Result<Found, SourceError> {
    let facts = &*shared.facts;
    let all = unchanged_all_fact(table_id);
    let notes = facts.scan(&unchanged_facts(table_id)).into_iter().map(|(key, _)| key);
    let notes: Vec<String> = notes.filter(|key| *key != all).collect();
    let rereads: BTreeMap<String, Reread> =
        facts::read_all(facts, &reread_facts(table_id))?.into_iter().collect();
    let shipping =
        rereads.iter().filter(|(_, reread)| facts.get(&group_fact(reread.group)).is_some());
    let epoch: Option<EpochEnd> = facts::read(facts, EPOCH_FACT)?;
    Ok(Found {
        span: facts::read(facts, &span_fact(table_id))?,
        all: facts.get(&all).map(|_| all),
        notes,
        shipping: shipping.map(|(key, _)| key.clone()).collect(),
        rereads,
        sealed: epoch.map_or(Position(0), |epoch| epoch.end.position),
    })
}

/// All parts of the table are missing again; what is noted of it is moot.
async fn begin_again(shared: &Shared, table_id: u32, plan: &Plan) -> Result<(), SourceError> {
    tracing::warn!(table = plan.table, "too many rows may lack values: reading all of them again");
    let mut batch = FactBatch::default();
    delete_all(&*shared.facts, table_id, &mut batch);
    // No part is read yet, and from here on a row that keeps its key cannot be missed.
    batch.put(span_fact(table_id), &Span::begun(Position(0), true));
    batch.put(plan_fact(table_id), &plan.again());
    Ok(shared.facts.record(batch).await?)
}

/// Deletes all that is known of the table's parts and of its rows.
pub(crate) fn delete_all(facts: &dyn Facts, table_id: u32, batch: &mut FactBatch) {
    for prefix in [chunk_facts(table_id), unchanged_facts(table_id), reread_facts(table_id)] {
        for (key, _) in facts.scan(&prefix) {
            batch.delete(key);
        }
    }
}

/// The plan of a table that is read again, divided by its key before its first part. `None`: its rows are
/// named otherwise than when it was divided, so that it begins anew.
pub(crate) async fn divide(
    shared: &Shared,
    wire: &mut Wire,
    described: &Described,
    mut plan: Plan,
    (done, extent): (&BTreeSet<u32>, Extent),
) -> Result<Option<Plan>, SourceError> {
    if done.is_empty() {
        let count = u32::try_from(plan.chunks.len()).unwrap_or(u32::MAX);
        plan.ranges = Ranges::divide(wire, described, extent.blocks, count).await?;
        if plan.ranges.is_none() {
            // One part is read at one position.
            plan.chunks = vec![Blocks::ALL];
        }
    } else if plan.ranges.as_ref().is_some_and(|ranges| !ranges.fits(&described.table)) {
        begin_again(shared, described.table.id, &plan).await?;
        return Ok(None);
    }
    Ok(Some(plan))
}

impl Found {
    fn next(self) -> Step {
        let span = self.span.filter(|span| span.whole);
        let nothing = self.notes.is_empty() && self.all.is_none() && self.rereads.is_empty();
        let Some(span) = span.filter(|span| !span.is_one()) else {
            return match nothing {
                true => Step::Stand(Standing::Whole),
                // No row can have moved: all parts were read at one position.
                false => self.forget_all(),
            };
        };
        // Notes may still come.
        if self.sealed < span.last {
            return Step::Stand(Standing::Waiting);
        }
        if self.all.is_some() {
            return Step::Stand(Standing::Parts);
        }
        let settled = |(key, reread): &(&String, &Reread)| {
            self.sealed >= reread.position && !self.shipping.contains(*key)
        };
        let done: Vec<String> = self
            .rereads
            .iter()
            .filter(settled)
            .flat_map(|(key, reread)| reread.notes.iter().chain([key]).cloned())
            .collect();
        if !done.is_empty() {
            return Step::Forget(done);
        }
        let read: BTreeSet<&String> =
            self.rereads.values().flat_map(|reread| &reread.notes).collect();
        let open: Vec<String> =
            self.notes.iter().filter(|note| !read.contains(note)).cloned().collect();
        Step::Stand(match (open.is_empty(), nothing) {
            (false, _) => Standing::Keys(open),
            (true, true) => Standing::Whole,
            (true, false) => Standing::Waiting,
        })
    }

    fn forget_all(self) -> Step {
        let facts = self.notes.into_iter().chain(self.rereads.into_keys());
        Step::Forget(facts.chain(self.all).collect())
    }
}

/// What names the rows of a table that is read again is not what it was: the next pass begins anew. Parts
/// of this one may still be sealed.
pub(crate) async fn spoil(shared: &Shared, table_id: u32) -> Result<(), SourceError> {
    let key = plan_fact(table_id);
    let Some(mut plan) = facts::read::<Plan>(&*shared.facts, &key)? else { return Ok(()) };
    if let Some(ranges) = &mut plan.ranges {
        ranges.spoil();
    }
    let mut batch = FactBatch::default();
    batch.put(key, &plan);
    Ok(shared.facts.record(batch).await?)
}

/// Notes the whole table: its rows cannot be read by the keys that are noted.
pub(crate) async fn note_all(shared: &Shared, table_id: u32) -> Result<(), SourceError> {
    let mut batch = FactBatch::default();
    batch.put(unchanged_all_fact(table_id), &true);
    Ok(shared.facts.record(batch).await?)
}

/// Notes that are read as one chunk.
pub(crate) struct Chunk {
    pub(crate) notes: Vec<String>,
    /// What names their rows: behind the table's name; of rows that are gone, the rows themselves.
    pub(crate) from: String,
    /// Where they are gone, and the chunk's number, which is its note's: it is the same in every pass.
    pub(crate) gone: Option<(Position, u32)>,
}

/// Makes chunks of notes. `None`: rows are named by columns that the table has no more.
pub(crate) fn chunks(
    shared: &Shared,
    described: &Described,
    notes: &[String],
) -> Result<Option<Vec<Chunk>>, SourceError> {
    let mut chunks = vec![];
    let mut open: Option<(Unchanged, Vec<String>)> = None;
    for note in notes {
        // Gone: it was replaced meanwhile by a note of the whole table.
        let Some(more) = facts::read::<Unchanged>(&*shared.facts, note)? else { continue };
        if let Some((held, names)) = &mut open
            && held.columns == more.columns
            && held.gone.is_none()
            && more.gone.is_none()
            && held.keys.len() + more.keys.len() <= KEYS_MAX
        {
            held.keys.extend(more.keys);
            names.push(note.clone());
            continue;
        }
        chunks.extend(open.replace((more, vec![note.clone()])));
    }
    chunks.extend(open);
    let chunks = chunks.into_iter().map(|(keys, notes)| {
        let from = match keys.gone {
            Some(_) => keys_alone(described, &keys)?,
            None => condition(described, &keys)?,
        };
        let number = || notes.first()?.rsplit('-').next()?.parse().ok();
        let gone = keys.gone.map(|position| (position, number().unwrap_or_default()));
        Some(Chunk { notes, from, gone })
    });
    Ok(chunks.collect())
}

/// The condition on the rows of these keys, with its WHERE. `None`: there are no such columns.
pub(crate) fn condition(described: &Described, rows: &Unchanged) -> Option<String> {
    let values = values(described, rows)?;
    let names: Vec<String> = (0..rows.columns.len()).map(|at| format!("c{at}")).collect();
    let equal = rows.columns.iter().zip(&names);
    let equal = equal
        .map(|(column, name)| format!("lakehead_k.{name} = lakehead_t.{}", identifier(column)));
    Some(format!(
        " AS lakehead_t WHERE EXISTS (SELECT FROM {values} AS lakehead_k({}) WHERE {})",
        names.join(","),
        equal.collect::<Vec<_>>().join(" AND ")
    ))
}

/// Rows of the table that have these keys, and NULL else: a relation. `None`: there are no such columns.
fn keys_alone(described: &Described, rows: &Unchanged) -> Option<String> {
    let values = values(described, rows)?;
    let names: Vec<String> = (0..rows.columns.len()).map(|at| format!("c{at}")).collect();
    let columns = described.table.columns.iter().map(|column| {
        let name = identifier(&column.name);
        match rows.columns.iter().position(|key| *key == column.name) {
            Some(at) => format!("lakehead_k.c{at} AS {name}"),
            None => format!("lakehead_n.{name}"),
        }
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    // No NULL is cast: a domain may not allow it.
    let table = quoted(&described.table.schema, &described.table.name);
    Some(format!(
        "(SELECT {columns} FROM {values} AS lakehead_k({}) LEFT JOIN ONLY {table} AS lakehead_n ON false) AS lakehead_t",
        names.join(",")
    ))
}

/// The keys, each value with its type. `None`: there are no such columns.
fn values(described: &Described, rows: &Unchanged) -> Option<String> {
    let types = rows.columns.iter().map(|name| {
        let column = described.table.columns.iter().find(|column| column.name == *name)?;
        Some(column.source_type.as_str())
    });
    let types: Vec<&str> = types.collect::<Option<_>>()?;
    let keys = rows.keys.iter().map(|key| {
        let values = key.iter().zip(&types).map(|(text, of)| format!("{}::{of}", literal(text)));
        format!("({})", values.collect::<Vec<_>>().join(","))
    });
    Some(format!("(VALUES {})", keys.collect::<Vec<_>>().join(",")))
}

/// Rows of one chunk, but for those of one epoch, which stay together.
const KEYS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64) -> Option<Span> {
        let begun = Span::begun(Position(first), false);
        Some(Span::with(Some(begun), Position(last), true))
    }

    fn notes(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn found(names: &[&str], sealed: u64) -> Found {
        let (notes, sealed) = (notes(names), Position(sealed));
        Found { span: span(10, 20), notes, sealed, ..Found::default() }
    }

    fn reread(position: u64, names: &[&str]) -> BTreeMap<String, Reread> {
        let reread = Reread { position: Position(position), group: 5, notes: notes(names) };
        BTreeMap::from([("r".to_owned(), reread)])
    }

    #[test]
    fn nothing_is_read_again_before_all_that_may_be_missing_is_noted() {
        assert_eq!(found(&["1"], 19).next(), Step::Stand(Standing::Waiting));
        assert_eq!(found(&[], 19).next(), Step::Stand(Standing::Waiting));
        assert_eq!(found(&[], 20).next(), Step::Stand(Standing::Whole));
        assert_eq!(found(&["1"], 20).next(), Step::Stand(Standing::Keys(notes(&["1"]))));
        let all = Found { all: Some("all".into()), ..found(&["1"], 20) };
        assert_eq!(all.next(), Step::Stand(Standing::Parts));
    }

    #[test]
    fn that_a_table_is_whole_is_told_once_and_not_of_one_that_left() {
        let facts = facts::MemoryFacts::default();
        let told = |plan: &Plan| {
            let mut batch = FactBatch::default();
            tell(&facts, 7, plan, &mut batch).unwrap();
            facts.record_blocking(batch.clone()).unwrap();
            batch.changes.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let mut batch = FactBatch::default();
        batch.put(span_fact(7), &span(10, 20).unwrap());
        facts.record_blocking(batch).unwrap();
        let plan = Plan { done: true, ..Plan::empty("public.t".into()) };
        assert_eq!(told(&Plan { gone: true, ..plan.clone() }), [""; 0]);
        assert_eq!(told(&plan), [span_fact(7), fate_fact(7, Fate::Whole)]);
        assert_eq!(told(&plan), [""; 0]);
        let settled = facts::read::<Span>(&facts, &span_fact(7)).unwrap().unwrap();
        assert!(settled.is_one() && settled.last == Position(20));
    }

    #[test]
    fn a_table_read_at_one_position_lacks_nothing() {
        let one = |names| Found { span: span(10, 10), ..found(names, 5) };
        assert_eq!(one(&["1"]).next(), Step::Forget(notes(&["1"])));
        assert_eq!(one(&[]).next(), Step::Stand(Standing::Whole));
    }

    #[test]
    fn a_note_stays_until_the_ledger_has_its_rows_and_the_changes_before_them_are_sealed() {
        let read = |sealed| Found { rereads: reread(30, &["1"]), ..found(&["1"], sealed) };
        let shipping = Found { shipping: BTreeSet::from(["r".into()]), ..read(30) };
        assert_eq!(shipping.next(), Step::Stand(Standing::Waiting));
        assert_eq!(read(29).next(), Step::Stand(Standing::Waiting));
        assert_eq!(read(30).next(), Step::Forget(notes(&["1", "r"])));
    }

    #[test]
    fn what_was_noted_after_a_reading_is_read_too() {
        let more = Found { rereads: reread(30, &["1"]), ..found(&["1", "2"], 25) };
        assert_eq!(more.next(), Step::Stand(Standing::Keys(notes(&["2"]))));
    }
}
