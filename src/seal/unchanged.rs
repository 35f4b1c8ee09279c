//! Notes the rows that may have to be read again: those that an update names without saying all their
//! values, where the row before it may stand in no part of the table's snapshot.
//!
//! **Invariants:** what is noted becomes durable with the epoch's group, so that no such update is in the
//! lake without its note; all notes of a source together stay below about [`NOTES_BYTES_MAX`]: a table
//! that would pass it is noted as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{SealError, Table};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    journal::{
        Cell, Column, Decode, DecodeError, Identity, OldRow, Row, Value,
        reread::{
            Span, UNCHANGED_FACTS, Unchanged, span_fact, unchanged_all_fact, unchanged_fact,
            unchanged_facts,
        },
    },
    units::Position,
};

/// The notes of one epoch.
#[derive(Debug, Default)]
pub(super) struct Notes {
    fresh: BTreeMap<u32, Fresh>,
    /// What the facts say of the tables, since the last batch.
    standing: BTreeMap<u32, Standing>,
    bytes: usize,
}

/// Of one table.
#[derive(Debug)]
enum Fresh {
    Keys {
        columns: Vec<String>,
        /// Of rows that may have moved between parts.
        lost: BTreeSet<Vec<String>>,
        /// The new keys of rows that may be noted under their old one.
        renamed: BTreeSet<Vec<String>>,
    },
    All,
}

/// What the facts say of a table.
#[derive(Clone, Copy, Debug)]
struct Standing {
    span: Option<Span>,
    /// It is to be read again as a whole.
    all: bool,
    /// Rows of it are to be read again.
    noted: bool,
}

/// Notes as they become facts.
#[derive(Debug, Default)]
pub(super) struct Settled {
    keys: Vec<(u32, Unchanged)>,
    /// Tables noted as a whole, and the facts that this replaces.
    all: Vec<(u32, Vec<String>)>,
}

impl Notes {
    /// A batch begins that became durable after all that the facts said before: they are looked at again.
    pub(super) fn look_again(&mut self) {
        self.standing.clear();
    }

    /// Takes an update's new row, and the old one as the change gives it.
    pub(super) fn take(
        &mut self,
        facts: &dyn Facts,
        table: &Table,
        position: Position,
        (new, old): (&Row, Option<(OldRow, &Row)>),
        bytes: &[u8],
        decode: &dyn Decode,
    ) -> Result<(), SealError> {
        let left_out = new.iter().zip(&table.columns).any(|(cell, column)| is_lost(cell, column));
        let old = match old {
            // It has every value.
            Some((OldRow::Full, _)) => return Ok(()),
            Some((OldRow::Key, old)) => Some(old),
            None => None,
        };
        if !left_out || matches!(self.fresh.get(&table.id), Some(Fresh::All)) {
            return Ok(());
        }
        let standing = self.standing(facts, table.id)?;
        if standing.all {
            return Ok(());
        }
        let rekeyed = old.is_some_and(|old| is_rekeyed(table, new, old, bytes));
        let lost = Span::may_lose(standing.span.as_ref(), position, rekeyed);
        let noted = standing.noted || self.fresh.contains_key(&table.id);
        let renamed = old.is_some() && noted && standing.span.is_some_and(|span| !span.is_one());
        if !lost && !renamed {
            return Ok(());
        }
        let unreadable = |why| SealError::Decode { what: table.qualified(), why };
        match key(table, new, old, bytes, decode).map_err(unreadable)? {
            Some((columns, key)) => self.add(table.id, columns, key, lost),
            None => drop(self.fresh.insert(table.id, Fresh::All)),
        }
        Ok(())
    }

    fn add(&mut self, table_id: u32, names: Vec<String>, key: Vec<String>, moved: bool) {
        let new = || Fresh::Keys {
            columns: names.clone(),
            lost: BTreeSet::new(),
            renamed: BTreeSet::new(),
        };
        let fresh = self.fresh.entry(table_id).or_insert_with(new);
        let Fresh::Keys { columns, lost, renamed } = fresh else { return };
        let bytes = key_bytes(&key);
        if *columns != names || self.bytes + bytes > NOTES_BYTES_MAX {
            *fresh = Fresh::All;
        } else if if moved { lost } else { renamed }.insert(key) {
            self.bytes += bytes;
        }
    }

    fn standing(&mut self, facts: &dyn Facts, table_id: u32) -> Result<Standing, SealError> {
        if let Some(known) = self.standing.get(&table_id) {
            return Ok(*known);
        }
        let span: Option<Span> = facts::read(facts, &span_fact(table_id))?;
        let all = facts.get(&unchanged_all_fact(table_id)).is_some();
        // Only this decides of a table that is whole; of others every key is noted anyway.
        let several = span.is_some_and(|span| span.whole && !span.is_one());
        let noted = several && !facts.scan(&unchanged_facts(table_id)).is_empty();
        let standing = Standing { span, all, noted };
        self.standing.insert(table_id, standing);
        Ok(standing)
    }

    /// Makes facts of them: without what is noted already, and within the limit.
    pub(super) fn settle(self, facts: &dyn Facts) -> Result<Settled, FactDamaged> {
        let mut settled = Settled::default();
        if self.fresh.is_empty() {
            return Ok(settled);
        }
        let kept = facts.scan(UNCHANGED_FACTS);
        let mut bytes: usize = kept.iter().map(|(key, value)| key.len() + value.len()).sum();
        for (table_id, fresh) in self.fresh {
            let span: Option<Span> = facts::read(facts, &span_fact(table_id))?;
            if span.is_some_and(|span| span.is_one()) {
                continue;
            }
            let prefix = unchanged_facts(table_id);
            if let Fresh::Keys { columns, mut lost, renamed } = fresh {
                for (_, known) in facts::read_all::<Unchanged>(facts, &prefix)? {
                    lost.retain(|key| known.columns != columns || !known.keys.contains(key));
                }
                lost.extend(renamed);
                let own: usize = lost.iter().map(|key| key_bytes(key)).sum();
                if lost.is_empty() {
                    continue;
                }
                if bytes + own <= NOTES_BYTES_MAX {
                    bytes += own;
                    settled.keys.push((table_id, Unchanged { columns, keys: lost, gone: None }));
                    continue;
                }
            }
            tracing::warn!(table_id, "too many rows may lack values: all are to be read again");
            let replaced = facts.scan(&prefix);
            bytes -= replaced.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
            settled.all.push((table_id, replaced.into_iter().map(|(key, _)| key).collect()));
        }
        Ok(settled)
    }
}

impl Settled {
    /// Adds the facts to those of the epoch's group.
    pub(super) fn record(&self, group: u64, facts: &mut FactBatch) {
        for (table_id, unchanged) in &self.keys {
            facts.put(unchanged_fact(*table_id, group), unchanged);
        }
        for (table_id, replaced) in &self.all {
            for fact in replaced {
                facts.delete(fact);
            }
            facts.put(unchanged_all_fact(*table_id), &true);
        }
    }
}

/// Columns, and their values as the source prints them.
type Named = (Vec<String>, Vec<String>);

/// Whether the server left the value out. Of a computed column it always does.
fn is_lost(cell: &Cell, column: &Column) -> bool {
    *cell == Cell::Unchanged && !column.is_computed()
}

/// Whether the new row has another key than the old one. A key that did not change is sent, too, if it
/// has a large value.
fn is_rekeyed(table: &Table, new: &Row, old: &Row, bytes: &[u8]) -> bool {
    let told = |cell: &Cell| match cell {
        Cell::Binary(range) | Cell::Text(range) => bytes.get(range.clone()).map(<[u8]>::to_vec),
        Cell::Null | Cell::Unchanged => None,
    };
    let cells = table.columns.iter().zip(new.iter().zip(old));
    let mut named = cells.filter(|(column, _)| column.identity);
    named.any(|(_, (new, old))| *new != Cell::Unchanged && told(new) != told(old))
}

/// What names the new row: columns and values. `None`: nothing does.
fn key(
    table: &Table,
    new: &Row,
    old: Option<&Row>,
    bytes: &[u8],
    decode: &dyn Decode,
) -> Result<Option<Named>, DecodeError> {
    let (mut names, mut key) = (vec![], vec![]);
    for (at, column) in table.columns.iter().enumerate() {
        let named = match table.identity {
            Identity::Default | Identity::Index => column.identity,
            Identity::Full | Identity::Nothing => table.key.contains(&column.name),
        };
        if !named {
            continue;
        }
        // A large value of the key that did not change is in the old row, which is sent for it.
        let cells = [new.get(at), old.and_then(|old| old.get(at))];
        let told = cells.into_iter().flatten().find(|cell| **cell != Cell::Unchanged);
        let Some(told) = told else { return Ok(None) };
        let value = decode.value(column, told, bytes)?;
        if value == Value::Null {
            return Ok(None);
        }
        let mut text = String::new();
        value.print(column.lake, &mut text);
        names.push(column.name.clone());
        key.push(text);
    }
    Ok((!names.is_empty()).then_some((names, key)))
}

/// What a key takes as JSON, about.
fn key_bytes(key: &[String]) -> usize {
    key.iter().map(|text| text.len() + 3).sum::<usize>() + 2
}

/// Of all notes of a source, in the facts and in the open epoch each: facts are held in memory. Some
/// ten thousand keys.
const NOTES_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        seal::memory::{Bench, Log, NOON, Plain, left_out, relation, table},
    };

    fn span(facts: &MemoryFacts, first: u64, last: u64, whole: bool) {
        let mut batch = FactBatch::default();
        let (first, last) = (Position(first), Position(last));
        let span = Span { first, last, whole, by_key: false, told: false };
        facts.record_blocking(std::mem::take(batch.put(span_fact(7), &span))).unwrap();
    }

    /// Notes an update of the row `id` at `position` as group `group`, and says what is noted then.
    fn update(
        facts: &MemoryFacts,
        group: u64,
        position: u64,
        id: &str,
        old: Option<&str>,
    ) -> String {
        let text = format!("{id}{}", old.unwrap_or_default());
        let new = vec![Cell::Text(0..id.len()), Cell::Unchanged];
        let old = old.map(|_| vec![Cell::Text(id.len()..text.len()), Cell::Null]);
        let old = old.as_ref().map(|row| (OldRow::Key, row));
        let (mut notes, at) = (Notes::default(), Position(position));
        notes
            .take(facts, &table(7, "t"), at, (&new, old), text.as_bytes(), &Plain::DECODER)
            .unwrap();
        let mut batch = FactBatch::default();
        notes.settle(facts).unwrap().record(group, &mut batch);
        facts.record_blocking(batch).unwrap();
        noted(facts)
    }

    /// Groups and their keys; `all` for the note of all rows.
    fn noted(facts: &MemoryFacts) -> String {
        let said = facts.scan(&unchanged_facts(7)).into_iter().map(|(fact, value)| {
            let group = fact.rsplit('/').next().unwrap().trim_start_matches('0').to_owned();
            let Ok(unchanged) = serde_json::from_slice::<Unchanged>(&value) else { return group };
            assert_eq!(unchanged.columns, ["id"]);
            format!(
                "{group}: {}",
                unchanged.keys.into_iter().flatten().collect::<Vec<_>>().join(",")
            )
        });
        said.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_row_is_noted_while_it_may_have_moved_between_parts_and_only_once() {
        let facts = MemoryFacts::default();
        assert_eq!(update(&facts, 1, 5, "1", None), "1: 1");
        span(&facts, 10, 10, false);
        assert_eq!(update(&facts, 2, 10, "2", None), "1: 1", "the part has it");
        assert_eq!(update(&facts, 3, 11, "3", None), "1: 1; 3: 3");
        assert_eq!(update(&facts, 4, 12, "3", None), "1: 1; 3: 3");
        span(&facts, 10, 20, true);
        assert_eq!(update(&facts, 5, 20, "5", None), "1: 1; 3: 3; 5: 5");
        assert_eq!(update(&facts, 6, 21, "6", None), "1: 1; 3: 3; 5: 5");
    }

    #[test]
    fn a_row_that_may_be_noted_is_noted_under_its_new_key_too() {
        let facts = MemoryFacts::default();
        span(&facts, 10, 20, true);
        assert_eq!(update(&facts, 1, 30, "2", Some("1")), "", "nothing is waited for");
        update(&facts, 2, 15, "1", None);
        assert_eq!(update(&facts, 3, 30, "2", Some("1")), "2: 1; 3: 2");
        // It may have been read under that key before it was this row's.
        assert_eq!(update(&facts, 4, 40, "2", Some("9")), "2: 1; 3: 2; 4: 2");
        assert_eq!(update(&facts, 5, 50, "2", None), "2: 1; 3: 2; 4: 2");
    }

    /// Else a table that takes long to be read, and changes meanwhile, is read again for ever.
    #[test]
    fn of_a_table_read_again_by_its_keys_only_new_keys_are_noted() {
        let facts = MemoryFacts::default();
        let begun = |span: &Span| {
            let mut batch = FactBatch::default();
            batch.put(span_fact(7), span);
            facts.record_blocking(batch).unwrap();
        };
        begun(&Span::begun(Position(0), true));
        assert_eq!(update(&facts, 1, 5, "1", None), "", "its part is still to be read");
        begun(&Span::with(Some(Span::begun(Position(10), true)), Position(10), false));
        assert_eq!(update(&facts, 2, 11, "1", None), "");
        assert_eq!(update(&facts, 3, 12, "1", Some("1")), "", "the key was sent, and is the same");
        assert_eq!(update(&facts, 4, 13, "2", Some("1")), "4: 2");
        begun(&Span::with(Some(Span::begun(Position(10), true)), Position(20), true));
        let mut notes = Notes::default();
        let key = "k".repeat(1000);
        let new = vec![Cell::Text(0..key.len()), Cell::Unchanged];
        for position in 0..=NOTES_BYTES_MAX as u64 / 500 {
            let at = Position(14 + position % 10);
            let row = (&new, None);
            let decode = &Plain::DECODER;
            notes.take(&facts, &table(7, "t"), at, row, key.as_bytes(), decode).unwrap();
        }
        assert!(notes.fresh.is_empty());
        // Behind the last part the new key of a row that is noted counts as it always does.
        assert_eq!(update(&facts, 5, 21, "3", Some("2")), "4: 2; 5: 3");
    }

    #[test]
    fn of_a_table_read_at_one_position_nothing_is_noted() {
        let facts = MemoryFacts::default();
        span(&facts, 10, 10, true);
        assert_eq!(update(&facts, 1, 11, "1", None), "");
        assert_eq!(update(&facts, 2, 11, "1", Some("2")), "");
        // It became whole while the epoch was open.
        let facts = MemoryFacts::default();
        let mut notes = Notes::default();
        let new = vec![Cell::Text(0..1), Cell::Unchanged];
        let row = (&new, None);
        notes.take(&facts, &table(7, "t"), Position(11), row, b"1", &Plain::DECODER).unwrap();
        span(&facts, 10, 10, true);
        assert!(notes.settle(&facts).unwrap().keys.is_empty());
    }

    #[test]
    fn what_would_pass_the_limit_is_noted_as_the_whole_table() {
        let facts = MemoryFacts::default();
        update(&facts, 1, 5, "1", None);
        let mut notes = Notes::default();
        let key = "k".repeat(1000);
        for number in 0..=NOTES_BYTES_MAX / 1000 {
            let text = format!("{key}{number}");
            notes.add(7, vec!["id".into()], vec![text], true);
        }
        assert!(notes.bytes <= NOTES_BYTES_MAX);
        let mut batch = FactBatch::default();
        notes.settle(&facts).unwrap().record(2, &mut batch);
        facts.record_blocking(batch).unwrap();
        assert_eq!(noted(&facts), "all");
        assert_eq!(update(&facts, 3, 6, "3", None), "all");
    }

    #[test]
    fn a_row_that_nothing_names_and_columns_that_changed_make_it_the_whole_table() {
        let facts = MemoryFacts::default();
        let mut notes = Notes::default();
        let (decode, at) = (Plain::DECODER, Position(5));
        let unnamed = vec![Cell::Unchanged, Cell::Unchanged];
        notes.take(&facts, &table(7, "t"), at, (&unnamed, None), b"", &decode).unwrap();
        assert!(matches!(notes.fresh[&7], Fresh::All));
        // A large key that did not change is in the old row.
        let old = vec![Cell::Text(0..1), Cell::Null];
        let row = (&unnamed, Some((OldRow::Key, &old)));
        notes.take(&facts, &table(8, "t"), at, row, b"1", &decode).unwrap();
        assert!(matches!(&notes.fresh[&8], Fresh::Keys { lost, .. } if lost.len() == 1));
        notes.add(8, vec!["other".into()], vec!["1".into()], true);
        assert!(matches!(notes.fresh[&8], Fresh::All));
    }

    #[test]
    fn values_that_are_never_sent_are_not_lost() {
        let facts = MemoryFacts::default();
        let mut computed = table(7, "t");
        computed.columns[1].generated = Some("stored".into());
        let mut notes = Notes::default();
        let new = vec![Cell::Text(0..1), Cell::Unchanged];
        let decode = Plain::DECODER;
        notes.take(&facts, &computed, Position(5), (&new, None), b"1", &decode).unwrap();
        // The whole old row has them.
        let full = Some((OldRow::Full, &new));
        notes.take(&facts, &table(7, "t"), Position(5), (&new, full), b"1", &decode).unwrap();
        assert!(notes.fresh.is_empty());
    }

    #[test]
    fn a_note_is_recorded_with_the_group_of_its_epoch() {
        let bench = Bench::new();
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(7, "t")), left_out(7, "1"), left_out(7, "2")]]);
        for _ in 0..3 {
            log.whole(NOON, &[&[]]);
        }
        log.whole(NOON, &[&[left_out(7, "3")]]).whole(NOON, &[&[]]).whole(NOON, &[&[]]);
        log.whole(NOON, &[&[]]);
        let groups = bench.run(log.batches).unwrap();
        let epochs = crate::seal::memory::epochs(&groups);
        assert!(epochs.len() >= 2);
        let expected = format!("{}: 1,2; {}: 3", epochs[0].id, epochs[1].id);
        assert_eq!(noted(&bench.facts), expected);
    }
}
