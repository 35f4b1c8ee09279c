//! What the lake says of each row, as an analyst asks for it: per key the row with the greatest position and
//! sequence. Judged against what stands in the database.
//!
//! It is not `replay`: it knows of a chain only the rows of its entries, in their order, and where gaps end.
//! Behind a gap only rows count that were read, or changed, behind it.

use std::collections::BTreeMap;

use super::{
    server::{is_ours, table_name},
    timeline::Timeline,
};
use crate::{ledger::Entry, units::Position};

/// All rows of the lake.
#[derive(Default)]
pub(crate) struct Latest {
    rows: BTreeMap<(String, u64), Version>,
    /// Where tables were emptied last.
    emptied: BTreeMap<String, Mark>,
    /// Tables whose snapshot is complete, and where it stands.
    whole: BTreeMap<String, Position>,
    /// Where the last gap ends.
    floor: Position,
}

/// Position and sequence: of two versions of a row the greater one counts.
type Mark = (Position, u64);

/// The latest version of a row.
struct Version {
    mark: Mark,
    /// Without NULLs at its end; `None`: deleted.
    values: Option<Vec<String>>,
}

impl Latest {
    /// A gap that ends at `to`.
    pub(crate) fn pass(&mut self, to: Position) {
        self.floor = to;
        self.rows.retain(|_, version| version.mark.0 >= to);
        self.emptied.retain(|_, mark| mark.0 >= to);
        self.whole.retain(|_, position| *position >= to);
    }

    /// Takes what an entry says beside its rows.
    pub(crate) fn hear(&mut self, entry: &Entry) {
        let complete = entry.completes.iter().filter(|(_, position)| **position >= self.floor);
        for (table, position) in complete {
            let name = table.strip_prefix("public.").unwrap_or(table);
            self.whole.insert(name.into(), *position);
        }
    }

    /// Takes a row: `<_op> <_position> <_xid> <table> <key> <values>`. False: it is none.
    pub(crate) fn take(&mut self, sequence: u64, row: &str) -> bool {
        let mut words = row.split(' ').map(String::from);
        let (Some(op), Some(Ok(position))) = (words.next(), words.next().map(|at| at.parse()))
        else {
            return false;
        };
        let (Some(table), mark) = (words.nth(1), (position, sequence)) else { return false };
        if position < self.floor || self.emptied.get(&table).is_some_and(|last| mark < *last) {
            return true;
        }
        if op == "T" {
            self.rows.retain(|(of, _), version| *of != table || version.mark > mark);
            self.emptied.insert(table, mark);
            return true;
        }
        let Some(Ok(key)) = words.next().map(|key| key.parse()) else { return false };
        let values = (op != "D").then(|| trimmed(words.collect()));
        self.put((table, key), Version { mark, values });
        true
    }

    fn put(&mut self, key: (String, u64), mut version: Version) {
        if let Some(known) = self.rows.get_mut(&key) {
            if known.mark >= version.mark {
                fill(known, &version);
                return;
            }
            fill(&mut version, known);
        }
        self.rows.insert(key, version);
    }

    /// Whether it is what stands in the database.
    pub(crate) fn compare(&self, timeline: &Timeline) -> Result<(), String> {
        for (table, rows) in timeline.rows.iter().enumerate().filter(|(table, _)| is_ours(*table)) {
            let name = table_name(table);
            if !self.whole.contains_key(&name) {
                return Err(format!("{name} is not whole behind {}", self.floor));
            }
            let (from, to) = ((name.clone(), 0), (name.clone(), u64::MAX));
            let found = self.rows.range(from..=to).filter_map(|((_, key), version)| {
                version.values.as_ref().map(|values| (*key, values.clone()))
            });
            let found: BTreeMap<_, _> = found.collect();
            let words = |text: &String| trimmed(text.split(' ').map(String::from).collect());
            let there: BTreeMap<_, _> =
                rows.iter().map(|(key, text)| (*key, words(text))).collect();
            if found != there {
                let keys = found.keys().chain(there.keys());
                let key = keys.copied().find(|key| found.get(key) != there.get(key)).unwrap_or(0);
                let (here, stands) = (found.get(&key), there.get(&key));
                return Err(format!(
                    "row {key} of {name} is {here:?} in the lake and {stands:?} in the database"
                ));
            }
        }
        Ok(())
    }
}

/// Gives a version the value that it left out, from the one before.
fn fill(version: &mut Version, before: &Version) {
    let (Some(values), Some(known)) = (&mut version.values, &before.values) else { return };
    if let (Some(note), Some(value)) = (values.first_mut(), known.first())
        && note == "~"
    {
        note.clone_from(value);
    }
}

/// A column that came later is NULL in rows of before.
fn trimmed(mut values: Vec<String>) -> Vec<String> {
    while values.last().is_some_and(|value| value == "!") {
        values.pop();
    }
    values
}
