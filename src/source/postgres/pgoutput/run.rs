//! A run of records that may be anything, for fuzzers.

use super::{
    super::super::{Cell, Cells, Change, Decode, DecodeError, Event, RecordKind, records},
    PgDecoder, types,
};

/// Reads any bytes as a run of records, and every value in it: for fuzzers. Gives the rows read.
///
/// # Errors
///
/// The first record that cannot be read.
///
/// # Panics
///
/// A row that can be read by itself into cells is another one there.
pub fn read_run(bytes: &[u8]) -> Result<u64, DecodeError> {
    let mut decoder = PgDecoder::default();
    let mut rows = 0;
    for record in records(bytes) {
        let (kind, payload) = record.ok_or(DecodeError::Length { what: "a record" })?;
        let event = decoder.decode(kind, payload);
        assert!(is_read_alike(&decoder, kind, payload, event.as_ref().ok()), "{event:?}");
        let Event::Change(change) = event? else { continue };
        let table = decoder.table(change.table)?;
        let old = change.old.map(|(_, row)| row);
        for row in change.new.iter().chain(&old) {
            for (column, cell) in table.columns.iter().zip(row) {
                if *cell != Cell::Unchanged {
                    types::value(column, cell, payload)?;
                }
            }
            rows += 1;
        }
    }
    Ok(rows)
}

/// Whether [`Decode::cells`] says of a record what it says as an `event`; `None`: that it is none.
fn is_read_alike(
    decoder: &PgDecoder,
    kind: RecordKind,
    payload: &[u8],
    event: Option<&Event>,
) -> bool {
    let Some((op, id)) = decoder.whole(kind, payload) else { return true };
    let width = decoder.tables.get(&id).map_or(0, |table| table.columns.len());
    let mut cells = Cells::new(width, 1, usize::MAX);
    match (decoder.cells(payload, 0..payload.len(), &mut cells), event) {
        (Ok(true), Some(Event::Change(change))) => {
            let row = change.new.as_ref().or(change.old.as_ref().map(|(_, row)| row));
            let whole = change.new.is_none() || change.old.is_none();
            (change.op, change.table) == (op, id)
                && whole
                && row.is_some_and(|row| cells.row(0).eq(row.iter().cloned()))
        }
        (Ok(false), Some(Event::Change(Change { new, old, .. }))) => {
            let row = new.as_ref().or(old.as_ref().map(|(_, row)| row));
            row.is_some_and(|row| row.contains(&Cell::Unchanged)) && cells.is_empty()
        }
        (Ok(false) | Err(_), None) => cells.is_empty(),
        _ => false,
    }
}
