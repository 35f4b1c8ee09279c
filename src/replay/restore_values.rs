//! Values of the lake's rows as text for the target. Pure.

use std::collections::HashMap;

use super::{
    apply::{Change, Matching, Shape, Slot},
    read::{Field, Rows},
};
use crate::{
    journal::{LakeType, Op, Value},
    seal::columns::file_name,
};

/// A row of the file as a change of the target's table. Counts what is `repaired` of it.
pub(super) fn change(
    (rows, row): (&Rows, usize),
    op: Op,
    shape: &Shape,
    places: &[Option<usize>],
    repaired: &mut u64,
) -> Change {
    if op == Op::Truncate {
        return Change { op, values: vec![], old: vec![] };
    }
    let mut slot = |(column, place): (usize, &Option<usize>)| -> Slot {
        let (place, mut text) = ((*place)?, String::new());
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
    let old = shape.columns.iter().enumerate().map(|(at, column)| {
        let name = file_name(&column.name);
        let found = old_key.iter().find(|(old, _)| *old == name);
        let is_text = places[at].is_some_and(|place| rows.lake(place) == LakeType::Text);
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

/// Where each column of the shape stands in the file, if it does.
pub(super) fn places(shape: &Shape, rows: &Rows) -> Vec<Option<usize>> {
    let names: HashMap<&str, usize> = rows.names().zip(0..).collect();
    let place = |name: &str| names.get(file_name(name).as_str()).copied();
    shape.columns.iter().map(|column| place(&column.name)).collect()
}
