//! Values of the lake's rows as text for the target. Pure.

use std::collections::HashMap;

use super::{
    apply::{Change, Shape, Slot},
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
    let mut slot = |place: &Option<usize>| -> Slot {
        let (place, mut text) = ((*place)?, String::new());
        match rows.field(row, place) {
            Field::Unchanged => None,
            Field::Value(_) => Some(print(rows, row, place, &mut text, repaired).then_some(text)),
        }
    };
    let values = places.iter().map(&mut slot).collect();
    let Some(old_key) = rows.old_key(row) else { return Change { op, values, old: vec![] } };
    let old = shape.columns.iter().map(|column| {
        let name = file_name(&column.name);
        let found = old_key.iter().find(|(old, _)| *old == name);
        found.map(|(_, text)| text.map(str::to_owned))
    });
    Change { op, values, old: old.collect() }
}

/// Appends a value's text; `false` for NULL. One that is not UTF-8 no server takes: it is counted as `repaired`.
pub(super) fn print(
    rows: &Rows,
    row: usize,
    column: usize,
    into: &mut String,
    repaired: &mut u64,
) -> bool {
    match rows.field(row, column) {
        Field::Unchanged | Field::Value(Value::Null) => false,
        Field::Value(Value::Exact(exact)) if rows.lake(column) == LakeType::Text => {
            into.push_str(&Value::repaired(&exact));
            *repaired += 1;
            true
        }
        Field::Value(value) => {
            value.print(rows.lake(column), into);
            true
        }
    }
}

/// Where each column of the shape stands in the file, if it does.
pub(super) fn places(shape: &Shape, rows: &Rows) -> Vec<Option<usize>> {
    let names: HashMap<&str, usize> = rows.names().zip(0..).collect();
    let place = |name: &str| names.get(file_name(name).as_str()).copied();
    shape.columns.iter().map(|column| place(&column.name)).collect()
}
