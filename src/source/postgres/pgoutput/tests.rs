//! The stream that PostgreSQL 15 gave for two tables of every replica identity, a domain, an enum, a
//! stored generated column, values left out, a truncate and an altered table.

use proptest::prelude::*;

use super::*;
use crate::source::{Piece, Run};

fn stream() -> Vec<Vec<u8>> {
    let lines = include_str!("../../../../tests/fixtures/postgres-15-pgoutput.hex").lines();
    lines.map(|line| hex::decode(line).unwrap()).collect()
}

/// Every event with its payload, in order.
fn decode_all(decoder: &mut PgDecoder) -> Vec<(Event, Vec<u8>)> {
    let decoded = stream().into_iter().map(|payload| {
        let event = decoder.decode(RecordKind::Message, &payload).unwrap();
        (event, payload)
    });
    decoded.collect()
}

/// The values of a row as text: `-` for NULL, `?` for what was left out.
fn show(table: &Table, row: &Row, payload: &[u8]) -> String {
    let shown = table.columns.iter().zip(row).map(|(column, cell)| match cell {
        Cell::Unchanged => "?".to_owned(),
        Cell::Null => "-".to_owned(),
        cell => {
            let mut text = String::new();
            types::value(column, cell, payload).unwrap().print(column.lake, &mut text);
            text.truncate(12);
            text
        }
    });
    shown.collect::<Vec<_>>().join("|")
}

/// Each change as `op table old > new`.
fn changes(decoder: &mut PgDecoder) -> Vec<String> {
    let mut found = vec![];
    for payload in stream() {
        let event = decoder.decode(RecordKind::Message, &payload).unwrap();
        let Event::Change(change) = event else { continue };
        let table = decoder.table(change.table).unwrap();
        let old =
            change.old.as_ref().map(|(how, row)| format!("{how:?} {}", show(table, row, &payload)));
        let new = change.new.as_ref().map(|row| show(table, row, &payload));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        found.push(format!("{} {} {old} > {new}", change.op.letter(), table.name));
    }
    found
}

#[test]
fn the_stream_of_a_real_server_is_read() {
    assert_eq!(
        changes(&mut PgDecoder::default()),
        [
            "I orders  > 1|xxxxx|12.50|happy|{a,NULL}|2026-11-21 0",
            "I orders  > 2|-|-|-|-|-",
            "U orders  > 1|yyyyyyyyyyyy|12.50|happy|{a,NULL}|2026-11-21 0",
            "U orders  > 1|?|1.00|happy|{a,NULL}|2026-11-21 0",
            "U orders Key 1|-|-|-|-|- > 10|?|1.00|happy|{a,NULL}|2026-11-21 0",
            "D orders Key 2|-|-|-|-|- > ",
            "I Full Row  > 1|one",
            "I Full Row  > 1|-",
            "U Full Row Full 1|- > 1|two",
            "D Full Row Full 1|one > ",
            "I byidx  > k|1.50",
            "U byidx  > k|NaN",
            "U byidx Key k|- > l|NaN",
            "D byidx Key l|- > ",
            "I orders  > 3|z|1.00|sad|{}|infinity|7",
        ]
    );
}

#[test]
fn transactions_truncates_and_tables_are_told() {
    let events = decode_all(&mut PgDecoder::default());
    let (Event::Begin { begins, at, xid }, Event::Commit(commit)) = (&events[0].0, &events[7].0)
    else {
        panic!("{:?}", events[0]);
    };
    assert_eq!((*begins, *at), (commit.begins, commit.at));
    let ahead = events.iter().map(|(_, payload)| payload);
    let mut ahead =
        ahead.filter_map(|payload| PgDecoder::default().commit(RecordKind::Message, payload));
    assert_eq!(ahead.next(), Some(*commit));
    assert!(commit.position > commit.begins && *xid > 0 && at.date().starts_with("2026-11-21"));
    let tables: Vec<_> = events
        .iter()
        .filter_map(|(event, _)| match event {
            Event::Table(table) => Some(table),
            _ => None,
        })
        .collect();
    let orders = tables[0];
    assert_eq!((orders.qualified().as_str(), orders.identity), ("shop.orders", Identity::Default));
    assert_eq!(orders.key, ["id"]);
    let names: Vec<_> = orders.columns.iter().map(|column| column.source_type.as_str()).collect();
    assert_eq!(
        names,
        [
            "bigint",
            "text",
            "pg_catalog.\"numeric\"",
            "shop.mood",
            "text[]",
            "timestamp with time zone"
        ]
        .map(|name| name.replace('"', ""))
    );
    assert_eq!(tables.last().unwrap().columns.last().unwrap().name, "extra");
    let by_index = tables.iter().find(|table| table.name == "byidx").unwrap();
    assert_eq!((by_index.identity, &by_index.key[..]), (Identity::Index, &["k".to_owned()][..]));
    let full = tables.iter().find(|table| table.name == "Full Row").unwrap();
    assert_eq!((full.identity, full.key.len()), (Identity::Full, 0));
    let truncates: Vec<_> =
        events.iter().filter(|(event, _)| matches!(event, Event::Truncate { .. })).collect();
    let expected = Event::Truncate {
        tables: vec![orders.id, by_index.id],
        cascade: true,
        restart_identity: true,
    };
    assert_eq!(truncates.iter().map(|(event, _)| event).collect::<Vec<_>>(), [&expected]);
}

/// What the catalog would say of `shop.orders`: the domain by its base type, the generated column too.
fn definition(orders: &Table) -> Table {
    let mut rich = orders.clone();
    rich.columns[0].not_null = true;
    rich.columns[2] = Column {
        source_type: "shop.price".into(),
        type_id: 1700,
        type_modifier: (8 << 16 | 2) + 4,
        lake: types::lake_type(1700, (8 << 16 | 2) + 4),
        ..rich.columns[2].clone()
    };
    let stored = Column {
        name: "twice".into(),
        generated: Some("stored".into()),
        default: Some("(id * 2)".into()),
        identity: false,
        ..rich.columns[0].clone()
    };
    rich.columns.insert(6, stored);
    rich
}

#[test]
fn a_definition_replaces_the_relation_and_outlasts_its_repetition() {
    let mut decoder = PgDecoder::default();
    let messages = stream();
    for payload in &messages[..4] {
        decoder.decode(RecordKind::Message, payload).unwrap();
    }
    let orders = decoder.tables()[0].clone();
    let rich = definition(&orders);
    let json = serde_json::to_vec(&rich).unwrap();
    let told = decoder.decode(RecordKind::Definition, &json).unwrap();
    assert_eq!(told, Event::Table(Arc::new(rich.clone())));
    assert_eq!(decoder.decode(RecordKind::Definition, &json), Ok(Event::Nothing));
    assert_eq!(decoder.decode(RecordKind::Message, &messages[3]), Ok(Event::Nothing));
    let mut restarted = PgDecoder::new(decoder.tables());
    assert_eq!(restarted.decode(RecordKind::Message, &messages[3]), Ok(Event::Nothing));
    let Ok(Event::Change(change)) = restarted.decode(RecordKind::Message, &messages[4]) else {
        panic!()
    };
    let shown = show(&rich, &change.new.unwrap(), &messages[4]);
    assert_eq!(shown, "1|xxxxx|12.50|happy|{a,NULL}|2026-11-21 0|?");
    let altered = messages.iter().rfind(|payload| payload[0] == b'R').unwrap();
    assert!(matches!(restarted.decode(RecordKind::Message, altered), Ok(Event::Table(_))));
}

/// No message tells of a column that is not sent.
#[test]
fn computed_columns_come_change_and_go_by_the_definition_alone() {
    let mut decoder = PgDecoder::default();
    let messages = stream();
    for payload in &messages[..4] {
        decoder.decode(RecordKind::Message, payload).unwrap();
    }
    let plain = decoder.tables()[0].clone();
    let rich = definition(&plain);
    let mut moved = rich.clone();
    let computed = moved.columns.remove(6);
    moved.columns.push(Column { generated: Some("virtual".into()), ..computed });
    let mut without = rich.clone();
    without.columns.retain(|column| !column.is_computed());
    // With `DROP EXPRESSION` it is sent, as the others are.
    let mut ceased = rich.clone();
    ceased.columns.iter_mut().for_each(|column| column.generated = None);
    for definition in [&rich, &moved, &without, &rich, &ceased] {
        let json = serde_json::to_vec(definition).unwrap();
        let told = decoder.decode(RecordKind::Definition, &json).unwrap();
        assert_eq!(told, Event::Table(Arc::new(definition.clone())));
        let relation = decoder.decode(RecordKind::Message, &messages[3]).unwrap();
        // The old message names fewer columns than there are then.
        assert_eq!(relation == Event::Nothing, *definition != ceased);
    }
}

#[test]
fn computed_columns_that_are_not_sent_are_unchanged() {
    let mut decoder = PgDecoder::default();
    decode_all(&mut decoder);
    let mut table = (*decoder.tables()[0]).clone();
    let named = |name: &str, generated: Option<&str>| Column {
        generated: generated.map(Into::into),
        ..decoder.column(name.into(), 23, -1, name == "id")
    };
    table.columns =
        vec![named("stored", Some("stored")), named("id", None), named("virtual", Some("virtual"))];
    let decoder = PgDecoder::new(vec![table.clone()]);
    let rows = [(1, "7"), (2, "67"), (3, "678")].map(|(count, values)| {
        let mut insert = [&b"I"[..], &table.id.to_be_bytes(), b"N\0", &[count]].concat();
        values.bytes().for_each(|value| insert.extend([b't', 0, 0, 0, 1, value]));
        let decoded = decoder.clone().decode(RecordKind::Message, &insert);
        let Ok(Event::Change(change)) = decoded else { panic!("{decoded:?}") };
        show(&table, &change.new.unwrap(), &insert)
    });
    assert_eq!(rows, ["?|7|?", "6|7|?", "6|7|8"]);
}

#[test]
fn a_definition_of_another_shape_is_ignored() {
    let mut decoder = PgDecoder::default();
    let messages = stream();
    for payload in &messages[..4] {
        decoder.decode(RecordKind::Message, payload).unwrap();
    }
    let rich = definition(&decoder.tables()[0]);
    let spoils: [fn(&mut Table); 6] = [
        |table| table.name = "other".into(),
        |table| table.columns[1].name = "other".into(),
        |table| table.columns[1].type_id = 23,
        |table| table.columns[1].type_modifier = 9,
        |table| table.columns[0].identity = false,
        |table| drop(table.columns.remove(4)),
    ];
    for spoil in spoils {
        let mut spoilt = rich.clone();
        spoil(&mut spoilt);
        let json = serde_json::to_vec(&spoilt).unwrap();
        assert_eq!(decoder.decode(RecordKind::Definition, &json), Ok(Event::Nothing));
    }
    assert!(decoder.decode(RecordKind::Definition, b"{}").is_err());
}

#[test]
fn what_is_not_known_is_refused_and_changes_nothing() {
    let mut decoder = PgDecoder::default();
    let streamed = decoder.decode(RecordKind::Message, b"S\0\0\0\x01\x01");
    assert_eq!(streamed, Err(DecodeError::Kind { what: WHAT, kind: b'S' }));
    let messages = stream();
    let insert = &messages[4];
    assert!(matches!(decoder.decode(RecordKind::Message, insert), Err(DecodeError::Table(_))));
    for payload in &messages[..4] {
        let longer = [payload, &b"\0"[..]].concat();
        assert!(decoder.decode(RecordKind::Message, &longer).is_err());
        for length in 0..payload.len() {
            assert!(decoder.decode(RecordKind::Message, &payload[..length]).is_err());
        }
    }
    assert!(decoder.tables().is_empty() && decoder.type_names.is_empty());
}

#[test]
fn a_binary_value_of_a_type_without_known_form_is_refused() {
    let mut decoder = PgDecoder::default();
    decode_all(&mut decoder);
    let mut table = (*decoder.tables()[0]).clone();
    table.columns = vec![decoder.column("words".into(), 3614, -1, true)];
    let mut decoder = PgDecoder::new(vec![table.clone()]);
    let mut insert = vec![b'I'];
    insert.extend(table.id.to_be_bytes());
    insert.extend(b"N\0\x01b\0\0\0\x01x");
    let refused = decoder.decode(RecordKind::Message, &insert);
    assert_eq!(refused, Err(DecodeError::Kind { what: "a column's value", kind: b'b' }));
    insert[8] = b't';
    assert!(decoder.decode(RecordKind::Message, &insert).is_ok());
}

#[test]
fn a_commit_that_goes_on_is_none_ahead_either() {
    let commit = stream().into_iter().find(|payload| payload[0] == b'C').unwrap();
    let decoder = PgDecoder::default();
    assert!(decoder.commit(RecordKind::Message, &commit).is_some());
    assert_eq!(decoder.commit(RecordKind::Message, &[&commit[..], b"x"].concat()), None);
}

#[test]
fn a_whole_run_is_read() {
    let mut run = Run::new(Piece::Whole);
    stream().iter().for_each(|payload| run.push(RecordKind::Message, payload));
    assert_eq!(read_run(&run.bytes), Ok(18));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, first in prop::sample::select(&b"BCORYIUDTM"[..])) {
        let mut decoder = PgDecoder::default();
        decode_all(&mut decoder);
        let payload = [&[first], &bytes[..]].concat();
        drop(decoder.decode(RecordKind::Message, &payload));
        drop(decoder.decode(RecordKind::Definition, &bytes));
        drop(read_run(&bytes));
    }

    #[test]
    fn no_damage_makes_it_panic(at: prop::sample::Index, damage: Vec<(prop::sample::Index, u8)>) {
        let mut messages = stream();
        let pick = at.index(messages.len());
        for (place, byte) in damage {
            let place = place.index(messages[pick].len());
            messages[pick][place] = byte;
        }
        let mut run = Run::new(Piece::Whole);
        messages.iter().for_each(|payload| run.push(RecordKind::Message, payload));
        drop(read_run(&run.bytes));
    }
}

#[test]
fn a_definition_that_goes_with_no_row_changes_nothing_that_rows_are_read_by() {
    let mut decoder = PgDecoder::default();
    decode_all(&mut decoder);
    let before = decoder.tables();
    let mut table = (*before[0]).clone();
    table.columns.pop();
    let told = decoder.decode(RecordKind::Message, &super::super::statements::definition(&table));
    assert_eq!(told, Ok(Event::Defined(Arc::new(table))));
    assert_eq!(decoder.tables(), before);
    let forged = b"M\x01\0\0\0\0\0\0\0\0lakehead.definition\0\0\0\0\x02{}";
    assert_eq!(decoder.decode(RecordKind::Message, forged), Ok(Event::Nothing));
}

#[test]
fn a_definition_that_goes_with_no_row_is_in_force_where_rows_are_read_as_before() {
    let mut decoder = PgDecoder::default();
    decode_all(&mut decoder);
    let held = decoder.tables()[0].clone();
    let mut altered = Table { version: 9, name: "moved".into(), ..(*held).clone() };
    altered.columns[0].default = Some("7".into());
    let mut wider = altered.clone();
    wider.columns.push(Column { name: "more".into(), ..altered.columns[0].clone() });
    for (table, in_force) in [(&altered, true), (&wider, false)] {
        let table = Table { version: 0, ..table.clone() };
        let message = super::super::statements::definition(&table);
        let event = decoder.decode(RecordKind::Message, &message).unwrap();
        assert_eq!(event, Event::Defined(Arc::new(table.clone())));
        assert_eq!(decoder.tables().contains(&Arc::new(table)), in_force);
    }
}
