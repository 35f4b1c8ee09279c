//! Two tables, and rows of them as a server sends them.

use lakehead::{
    journal::{Column, Identity, Table},
    source::postgres::types,
};

/// Five columns: about 80 bytes.
pub(crate) fn orders() -> Table {
    let columns = [("id", 20), ("customer", 23), ("amount", 701), ("at", 1184), ("note", 25)];
    table("orders", columns.map(|(name, type_id)| column(name, type_id, -1)).into())
}

/// Eighteen columns of many types: about 600 bytes.
pub(crate) fn wide() -> Table {
    let numeric = |precision: i32, scale: i32| (precision << 16 | scale) + 4;
    let columns = [
        ("id", 20, -1),
        ("k1", 20, -1),
        ("k2", 23, -1),
        ("status", 21, -1),
        ("flag", 16, -1),
        ("name", 25, -1),
        ("city", 25, -1),
        ("note", 25, -1),
        ("amount", 1700, numeric(14, 2)),
        ("rate", 1700, numeric(10, 6)),
        ("created", 1184, -1),
        ("updated", 1184, -1),
        ("d", 1082, -1),
        ("uid", 2950, -1),
        ("ratio", 701, -1),
        ("doc", 3802, -1),
        ("blob", 17, -1),
        ("big", 25, -1),
    ];
    table("wide", columns.map(|(name, id, modifier)| column(name, id, modifier)).into())
}

fn table(name: &str, columns: Vec<Column>) -> Table {
    Table {
        id: 16_384,
        schema: "public".into(),
        name: name.into(),
        version: 1,
        columns,
        key: vec!["id".into()],
        identity: Identity::Default,
        types: vec![],
    }
}

fn column(name: &str, type_id: u32, type_modifier: i32) -> Column {
    Column {
        name: name.into(),
        source_type: "as in the bench".into(),
        type_id,
        type_modifier,
        lake: types::lake_type(type_id, type_modifier),
        identity: name == "id",
        not_null: false,
        default: None,
        generated: None,
        number: None,
        before: None,
    }
}

/// A row's values in their binary forms. One in four of the columns that may be NULL is.
pub(crate) fn row(table: &Table, number: u64, dice: &mut fastrand::Rng) -> Vec<Option<Vec<u8>>> {
    let value = |column: &Column| {
        let optional = matches!(column.name.as_str(), "note" | "updated" | "big");
        if optional && (dice.u8(..4) == 0 || column.name == "big") {
            return None;
        }
        let words: String = (0..dice.usize(3..9))
            .map(|_| ["paid ", "late ", "ship ", "gift "][dice.usize(..4)])
            .collect();
        Some(match column.type_id {
            16 => vec![dice.u8(..2)],
            17 => (0..64).map(|_| dice.u8(..)).collect(),
            20 if column.name == "id" => number.to_be_bytes().into(),
            20 => dice.u64(..1_000_000_007).to_be_bytes().into(),
            21 => dice.u16(..8).to_be_bytes().into(),
            23 => dice.u32(..100_000).to_be_bytes().into(),
            701 => dice.f64().to_be_bytes().into(),
            1082 => dice.u32(7_305..9_305).to_be_bytes().into(),
            1184 => (631_152_000_000_000 + number * 37_000_000).to_be_bytes().into(),
            1700 if column.name == "rate" => rate(dice),
            1700 => numeric(dice),
            2950 => dice.u128(..).to_be_bytes().into(),
            3802 => [b"\x01", json(number).as_bytes()].concat(),
            _ => words.into_bytes(),
        })
    };
    table.columns.iter().map(value).collect()
}

/// Two digits of base 10,000 before the point and one after it.
fn numeric(dice: &mut fastrand::Rng) -> Vec<u8> {
    let digits = [dice.u16(1..99), dice.u16(..10_000), dice.u16(..100) * 100];
    let head = [3_u16, 1, 0, 2];
    head.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect()
}

/// Less than one, with six digits behind the point.
fn rate(dice: &mut fastrand::Rng) -> Vec<u8> {
    let digits = [dice.u16(1..10_000), dice.u16(..100) * 100];
    let head = [2_u16, u16::MAX, 0, 6];
    head.iter().chain(&digits).flat_map(|word| word.to_be_bytes()).collect()
}

fn json(number: u64) -> String {
    let (sku, quantity, zip) = (number % 5_000, number % 10, 10_000 + number % 89_999);
    format!(
        r#"{{"qty": {quantity}, "sku": {sku}, "addr": {{"zip": {zip}, "street": "{number:032x}"}}, "tags": ["a{quantity}", "c"]}}"#
    )
}

/// Tuples of a binary COPY, about `bytes` of them, from row `first` on, and how many.
pub(crate) fn tuples(
    table: &Table,
    first: u64,
    bytes: usize,
    dice: &mut fastrand::Rng,
) -> (Vec<u8>, u64) {
    let (mut batch, mut rows) = (vec![], 0);
    while batch.len() < bytes {
        let values = row(table, first + rows, dice);
        rows += 1;
        batch.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            put_length(&mut batch, value.as_deref());
        }
    }
    (batch, rows)
}

/// A value with its length before it; -1: NULL.
pub(crate) fn put_length(out: &mut Vec<u8>, value: Option<&[u8]>) {
    let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
    out.extend(length.to_be_bytes());
    out.extend(value.unwrap_or_default());
}
