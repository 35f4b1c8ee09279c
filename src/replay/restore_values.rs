//! Values of the lake's rows as text for the target. Pure.

use std::collections::HashMap;

use super::{
    apply::{Change, Matching, Shape, Slot},
    read::{Field, Rows},
    schema::{before, computed, same_column},
};
use crate::{
    journal::{LakeType, Op, Value},
    seal::{Table, columns::spelling},
};

/// Where a column of the target's table stands in a file, whose rows may be of another version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// Among the file's columns.
    pub(super) at: Option<usize>,
    /// What the file calls it.
    pub(super) name: Option<String>,
    /// What the file's rows have in it if it came after them and that is known.
    pub(super) before: Slot,
}

/// A row of the file as a change of the target's table. Counts what is `repaired` of it.
pub(super) fn change(
    (rows, row): (&Rows, usize),
    op: Op,
    shape: &Shape,
    places: &[Place],
    repaired: &mut u64,
) -> Change {
    if op == Op::Truncate {
        return Change { op, values: vec![], old: vec![] };
    }
    // What is not said of a row that stays stays, too.
    let is_whole = matches!(op, Op::Insert | Op::Repair | Op::Snapshot);
    let mut slot = |(column, place): (usize, &Place)| -> Slot {
        let Some(at) = place.at else { return place.before.clone().filter(|_| is_whole) };
        let (place, mut text) = (at, String::new());
        match rows.field(row, place) {
            Field::Unchanged => None,
            Field::Value(_) => {
                let read = (rows, row, place);
                Some(print(read, is_named_by(shape, column), &mut text, repaired).then_some(text))
            }
        }
    };
    let values = places.iter().enumerate().map(&mut slot).collect();
    let Some(old_key) = rows.old_key(row) else { return Change { op, values, old: vec![] } };
    let old = places.iter().enumerate().map(|(at, place)| {
        let name = place.name.as_ref()?;
        let found = old_key.iter().find(|(old, _)| old == name);
        let is_text = place.at.is_some_and(|place| rows.lake(place) == LakeType::Text);
        let alike = is_text && !is_named_by(shape, at);
        let as_stored = |text: &str| match alike {
            true => Value::repaired(text),
            false => text.to_owned(),
        };
        found.map(|(_, text)| text.map(as_stored))
    });
    Change { op, values, old: old.collect() }
}

/// Appends a value's text; `false` for NULL. One that is not UTF-8 no server takes: it is counted as `repaired`. Of a
/// column that names the row its bytes are given: two that differ are to stay two.
pub(super) fn print(
    (rows, row, column): (&Rows, usize, usize),
    names_row: bool,
    into: &mut String,
    repaired: &mut u64,
) -> bool {
    match rows.field(row, column) {
        Field::Unchanged | Field::Value(Value::Null) => false,
        Field::Value(Value::Exact(exact)) if rows.lake(column) == LakeType::Text => {
            match names_row {
                true => into.push_str(&exact),
                false => into.push_str(&Value::repaired(&exact)),
            }
            *repaired += 1;
            true
        }
        Field::Value(value) => {
            value.print(rows.lake(column), into);
            true
        }
    }
}

/// Whether the column is one of those that name a row.
pub(super) fn is_named_by(shape: &Shape, column: usize) -> bool {
    match &shape.matching {
        Matching::Key(key) | Matching::Ordered(key) => key.contains(&column),
        Matching::Whole => false,
    }
}

/// Where each column of the shape of `table` stands in a file whose rows are of this version of it.
pub(super) fn places(table: &Table, version: &Table, rows: &Rows) -> Vec<Place> {
    let names: HashMap<&str, usize> = rows.names().zip(0..).collect();
    let spelt = spelling(version, |name| names.contains_key(name));
    let given = table.columns.iter().filter(|column| computed(column).is_none());
    let place = given.map(|column| {
        let same = same_column(version, column);
        let name = same.map(|same| spelt(&same.name));
        let at = name.as_ref().and_then(|name| names.get(name.as_str()).copied());
        let before = before(column).filter(|_| same.is_none());
        Place { at, name, before: before.map(|value| value.map(Into::into)) }
    });
    place.collect()
}
