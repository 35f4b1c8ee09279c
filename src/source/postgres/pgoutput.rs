//! pgoutput: the messages of PostgreSQL's change stream, protocol versions 1 to 4 without streaming
//! of unfinished transactions. Pure.
//!
//! One record is one message: a kind byte, then big-endian fields as in
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>. A
//! [`RecordKind::Definition`] is a [`Table`] as JSON, read from the catalog when the Relation message
//! before it came: it knows what that message does not (names of types, NOT NULL, defaults, the
//! key's order). It replaces the Relation's table if their columns agree, and stays in force while
//! later Relation messages agree with it.
//!
//! A generated column is in the definition alone: in every row it is [`Cell::Unchanged`], so that it is never taken for
//! NULL, also where the server sends it (18, if the publication says so; a virtual one never).
//!
//! **Invariants:** a message of another kind, length or table is an error and changes nothing (I16);
//! a row's cells lie within its payload.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use super::{
    super::{
        Cell, Cells, Change, Column, Commit, Decode, DecodeError, Event, Identity, OldRow, Op,
        Place, Plain, RecordKind, Row, Table, Value,
    },
    builtin, copy,
    fields::Reader,
    statements::DEFINITION,
    types,
};
use crate::units::{Position, Timestamp};

mod run;

pub use run::read_run;

/// Reads PostgreSQL's records. Holds the tables it was told of, by id.
#[derive(Clone, Debug, Default)]
pub struct PgDecoder {
    tables: BTreeMap<u32, Arc<Table>>,
    /// Qualified names of user types, by id.
    type_names: HashMap<u32, String>,
}

impl PgDecoder {
    /// A decoder that knows these tables: those of [`Decode::tables`] before a restart.
    pub fn new(tables: impl IntoIterator<Item = impl Into<Arc<Table>>>) -> Self {
        let tables = tables.into_iter().map(Into::into).map(|table: Arc<_>| (table.id, table));
        Self { tables: tables.collect(), type_names: HashMap::new() }
    }

    /// The commit that this record is, if it is one. Remembers nothing: readers look ahead with it.
    pub fn commit(&self, kind: RecordKind, payload: &[u8]) -> Option<Commit> {
        let (b'C', body) = payload.split_first()? else { return None };
        let mut reader = Reader::new(body);
        match commit(&mut reader) {
            Ok(Event::Commit(commit)) if kind == RecordKind::Message => {
                reader.end(WHAT).ok().map(|()| commit)
            }
            _ => None,
        }
    }

    fn message(&mut self, payload: &[u8]) -> Result<Event, DecodeError> {
        let mut reader = Reader::new(payload);
        let event = match reader.u8(WHAT)? {
            b'B' => begin(&mut reader)?,
            b'C' => commit(&mut reader)?,
            b'I' => self.insert(&mut reader)?,
            b'U' => self.update(&mut reader)?,
            b'D' => self.delete(&mut reader)?,
            b'T' => truncate(&mut reader)?,
            b'R' => return self.relation(reader),
            b'Y' => return self.type_name(reader),
            b'O' => {
                reader.u64("an Origin")?;
                reader.text("an Origin")?;
                Event::Nothing
            }
            b'M' => {
                reader.take(9, "a Message")?;
                let prefix = reader.text("a Message")?;
                let length = reader.length("a Message")?;
                let content = reader.take(length, "a Message")?;
                reader.end(WHAT)?;
                return Ok(if prefix == DEFINITION {
                    self.defined(&payload[content])
                } else {
                    Event::Nothing
                });
            }
            kind => return Err(DecodeError::Kind { what: WHAT, kind }),
        };
        reader.end(WHAT)?;
        Ok(event)
    }

    /// A definition that goes with no row: only this box writes it, and it changes nothing that rows are read by. Where
    /// they are read as before it is in force for them: the server describes a table again only if it has to.
    fn defined(&mut self, json: &[u8]) -> Event {
        let Ok(table) = serde_json::from_slice::<Table>(json) else { return Event::Nothing };
        let table = Arc::new(Table { version: 0, ..table });
        if let Some(held) = self.tables.get_mut(&table.id).filter(|held| held.reads_like(&table)) {
            *held = Arc::clone(&table);
        }
        Event::Defined(table)
    }

    fn insert(&self, reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
        let table = self.table(reader.u32("an Insert")?)?;
        expect_kind(reader, b'N', "an Insert's row")?;
        let new = Some(row(table, reader)?);
        Ok(Event::Change(Change { op: Op::Insert, table: table.id, new, old: None }))
    }

    fn update(&self, reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
        let table = self.table(reader.u32("an Update")?)?;
        let mut old = None;
        let mut kind = reader.u8("an Update")?;
        if let Some(how) = old_row(kind) {
            old = Some((how, row(table, reader)?));
            kind = reader.u8("an Update")?;
        }
        if kind != b'N' {
            return Err(DecodeError::Kind { what: "an Update's row", kind });
        }
        let new = Some(row(table, reader)?);
        Ok(Event::Change(Change { op: Op::Update, table: table.id, new, old }))
    }

    fn delete(&self, reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
        let table = self.table(reader.u32("a Delete")?)?;
        let kind = reader.u8("a Delete")?;
        let how = old_row(kind).ok_or(DecodeError::Kind { what: "a Delete's row", kind })?;
        let old = Some((how, row(table, reader)?));
        Ok(Event::Change(Change { op: Op::Delete, table: table.id, new: None, old }))
    }

    fn table(&self, id: u32) -> Result<&Table, DecodeError> {
        self.tables.get(&id).map(Arc::as_ref).ok_or(DecodeError::Table(id))
    }

    fn type_name(&mut self, mut reader: Reader<'_>) -> Result<Event, DecodeError> {
        let id = reader.u32("a Type")?;
        let (schema, name) = (reader.text("a Type")?, reader.text("a Type")?);
        reader.end("a Type")?;
        let schema = if schema.is_empty() { "pg_catalog" } else { schema };
        self.type_names.insert(id, format!("{}.{}", quoted(schema), quoted(name)));
        Ok(Event::Nothing)
    }

    fn relation(&mut self, mut reader: Reader<'_>) -> Result<Event, DecodeError> {
        const WHAT: &str = "a Relation";
        let id = reader.u32(WHAT)?;
        let schema = reader.text(WHAT)?;
        let schema = if schema.is_empty() { "pg_catalog" } else { schema }.to_owned();
        let name = reader.text(WHAT)?.to_owned();
        let identity = match reader.u8(WHAT)? {
            b'd' => Identity::Default,
            b'i' => Identity::Index,
            b'f' => Identity::Full,
            b'n' => Identity::Nothing,
            kind => return Err(DecodeError::Kind { what: "a replica identity", kind }),
        };
        let mut columns = vec![];
        for _ in 0..reader.u16(WHAT)? {
            let identity = reader.u8(WHAT)? & 1 == 1;
            let name = reader.text(WHAT)?.to_owned();
            let (type_id, modifier) = (reader.u32(WHAT)?, reader.i32(WHAT)?);
            columns.push(self.column(name, type_id, modifier, identity));
        }
        reader.end(WHAT)?;
        let named = columns.iter().filter(|column| column.identity && identity != Identity::Full);
        let key = named.map(|column| column.name.clone()).collect();
        let table = Table { id, schema, name, version: 0, columns, key, identity, types: vec![] };
        if self.tables.get(&id).is_some_and(|held| agree(held, &table, Domains::OverBuiltIn)) {
            return Ok(Event::Nothing);
        }
        let table = Arc::new(table);
        self.tables.insert(id, table.clone());
        Ok(Event::Table(table))
    }

    fn column(&self, name: String, type_id: u32, type_modifier: i32, identity: bool) -> Column {
        let source_type = builtin::name(type_id, type_modifier)
            .or_else(|| self.type_names.get(&type_id).cloned())
            .unwrap_or_else(|| format!("type {type_id}"));
        Column {
            name,
            source_type,
            type_id,
            type_modifier,
            lake: types::lake_type(type_id, type_modifier),
            identity,
            not_null: false,
            default: None,
            generated: None,
            number: None,
            before: None,
        }
    }

    /// A definition is taken only for a table whose Relation message agrees with it.
    fn definition(&mut self, payload: &[u8]) -> Result<Event, DecodeError> {
        let mut table: Table = serde_json::from_slice(payload)
            .map_err(|_| DecodeError::Length { what: "a table's definition" })?;
        table.version = 0;
        let Some(held) = self.tables.get(&table.id) else { return Ok(Event::Nothing) };
        // One that was in force may have other computed columns: no message tells of them, nor that one is none
        // any more.
        let sent = held.columns.iter().filter(|column| !column.is_computed()).cloned().collect();
        let sent = Table { columns: sent, ..(**held).clone() };
        let agrees = [held, &sent].into_iter().any(|sent| agree(&table, sent, Domains::OverAny));
        if **held == table || !agrees {
            return Ok(Event::Nothing);
        }
        let table = Arc::new(table);
        self.tables.insert(table.id, table.clone());
        Ok(Event::Table(table))
    }
}

impl Decode for PgDecoder {
    fn decode(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Event, DecodeError> {
        match kind {
            RecordKind::Message => self.message(payload),
            RecordKind::Definition => self.definition(payload),
        }
    }

    fn whole(&self, kind: RecordKind, payload: &[u8]) -> Option<(Op, u32)> {
        let [tag, id @ .., row] = payload.first_chunk::<ROW_HEAD_BYTES>()?;
        let op = match (kind, tag, row) {
            (RecordKind::Message, b'I', b'N') => Op::Insert,
            (RecordKind::Message, b'U', b'N') => Op::Update,
            (RecordKind::Message, b'D', b'K' | b'O') => Op::Delete,
            _ => return None,
        };
        Some((op, u32::from_be_bytes(*id)))
    }

    fn cells(
        &self,
        bytes: &[u8],
        payload: Range<usize>,
        cells: &mut Cells,
    ) -> Result<bool, DecodeError> {
        let whole = self.whole(RecordKind::Message, bytes.get(payload.clone()).unwrap_or(&[]));
        let (_, id) = whole.ok_or_else(|| DecodeError::cut(WHAT))?;
        let table = self.table(id)?;
        let expected = table.columns.len();
        if cells.columns() != expected {
            let (table, found) = (table.qualified(), cells.columns());
            return Err(DecodeError::Columns { table, expected, found });
        }
        let mut reader = Reader::new(&bytes[..payload.end]);
        reader.take(payload.start + ROW_HEAD_BYTES, WHAT)?;
        let sent = sent(table, usize::from(reader.u16("a row")?))?;
        for (number, column) in table.columns.iter().enumerate() {
            let place =
                if sent(column) { place(column, &mut reader)? } else { Some(Place::UNCHANGED) };
            let Some(place) = place else { return Ok(false) };
            cells.set(number, place);
        }
        reader.end(WHAT)?;
        cells.end(payload.len());
        Ok(true)
    }

    fn commit(&self, kind: RecordKind, payload: &[u8]) -> Option<Commit> {
        Self::commit(self, kind, payload)
    }

    fn block(
        &self,
        table: &Table,
        batch: &[u8],
        at: usize,
        cells: &mut Cells,
    ) -> Result<usize, DecodeError> {
        copy::block(table, batch, at, cells)
    }

    fn value<'a>(
        &self,
        column: &Column,
        cell: &Cell,
        bytes: &'a [u8],
    ) -> Result<Value<'a>, DecodeError> {
        types::value(column, cell, bytes)
    }

    fn plain(&self, column: &Column) -> Option<Plain> {
        types::plain(column)
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.values().cloned().collect()
    }
}

fn begin(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    let begins = Position(reader.u64("a Begin")?);
    let at = timestamp(reader.u64("a Begin")?);
    Ok(Event::Begin { begins, at, xid: reader.u32("a Begin")? })
}

fn commit(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    reader.u8("a Commit")?;
    let begins = Position(reader.u64("a Commit")?);
    let position = Position(reader.u64("a Commit")?);
    let at = timestamp(reader.u64("a Commit")?);
    Ok(Event::Commit(Commit { position, begins, at, transactions: 1 }))
}

fn truncate(reader: &mut Reader<'_>) -> Result<Event, DecodeError> {
    let count = reader.u32("a Truncate")?;
    let flags = reader.u8("a Truncate")?;
    let tables: Result<_, _> = (0..count).map(|_| reader.u32("a Truncate")).collect();
    Ok(Event::Truncate {
        tables: tables?,
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
    })
}

/// Reads a tuple. Computed columns that are not sent are `Unchanged`. One that is sent may be none any more.
fn row(table: &Table, reader: &mut Reader<'_>) -> Result<Row, DecodeError> {
    let sent = sent(table, usize::from(reader.u16("a row")?))?;
    let mut row = Row::with_capacity(table.columns.len());
    for column in &table.columns {
        row.push(if sent(column) { cell(column, reader)? } else { Cell::Unchanged });
    }
    Ok(row)
}

fn cell(column: &Column, reader: &mut Reader<'_>) -> Result<Cell, DecodeError> {
    Ok(match reader.u8("a column")? {
        b'n' => Cell::Null,
        b'u' => Cell::Unchanged,
        b't' => Cell::Text(range(reader)?),
        b'b' if types::renders_binary(column.type_id) => Cell::Binary(range(reader)?),
        kind => return Err(DecodeError::Kind { what: "a column's value", kind }),
    })
}

/// [`cell`]; `None`: it is one that the source left out, and may have.
#[inline]
fn place(column: &Column, reader: &mut Reader<'_>) -> Result<Option<Place>, DecodeError> {
    Ok(match cell(column, reader)? {
        Cell::Unchanged if !column.is_computed() => None,
        cell => Some(Place::of(&cell)?),
    })
}

fn range(reader: &mut Reader<'_>) -> Result<Range<usize>, DecodeError> {
    let length = reader.length("a column's value")?;
    reader.take(length, "a column's value")
}

/// Which columns' types may differ between a definition and a Relation message: the catalog
/// describes a domain by its base type.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Domains {
    /// A message stays with the definition in force. A user type that differs is taken for a change.
    OverBuiltIn,
    /// A definition that was read because of the message.
    OverAny,
}

/// Whether a Relation message is that of this definition: what is recorded behind it counts only then.
pub(super) fn is_that_of(message: &[u8], table: &Table) -> bool {
    match PgDecoder::default().decode(RecordKind::Message, message) {
        Ok(Event::Table(sent)) => agree(table, &sent, Domains::OverAny),
        _ => false,
    }
}

/// Whether `rich` describes the table of a Relation message: the same names, types, modifiers and key
/// flags in the same order, generated columns aside that are not sent.
fn agree(rich: &Table, sent: &Table, domains: Domains) -> bool {
    let Ok(is_sent) = self::sent(rich, sent.columns.len()) else { return false };
    let columns = rich.columns.iter().filter(|column| is_sent(column));
    let built_in = |column: &Column| column.type_id < builtin::FIRST_USER_TYPE;
    let same_type = |rich: &Column, sent: &Column| {
        if rich.type_id == sent.type_id {
            return rich.type_modifier == sent.type_modifier;
        }
        !built_in(sent) && (built_in(rich) || domains == Domains::OverAny)
    };
    let flagged = sent.identity != Identity::Full;
    let same = |(rich, sent): (&Column, &Column)| {
        rich.name == sent.name
            && same_type(rich, sent)
            && (!flagged || rich.identity == sent.identity)
    };
    (rich.id, &rich.schema, &rich.name, rich.identity)
        == (sent.id, &sent.schema, &sent.name, sent.identity)
        && columns.zip(&sent.columns).all(same)
}

/// Which columns a row of `found` values has: all, or all that are not computed, or all that are not virtual.
///
/// # Errors
///
/// None of these.
pub(super) fn sent(table: &Table, found: usize) -> Result<fn(&Column) -> bool, DecodeError> {
    let expected = table.columns.len();
    if found == expected {
        return Ok(|_| true);
    }
    let kinds: [fn(&Column) -> bool; 2] =
        [|column| !column.is_computed(), |column| !column.is_virtual()];
    let count = |sent: fn(&Column) -> bool| table.columns.iter().filter(|own| sent(own)).count();
    let sent = kinds.into_iter().find(|sent| count(*sent) == found);
    sent.ok_or_else(|| DecodeError::Columns { table: table.qualified(), expected, found })
}

fn old_row(kind: u8) -> Option<OldRow> {
    match kind {
        b'K' => Some(OldRow::Key),
        b'O' => Some(OldRow::Full),
        _ => None,
    }
}

fn expect_kind(reader: &mut Reader<'_>, wanted: u8, what: &'static str) -> Result<(), DecodeError> {
    let kind = reader.u8(what)?;
    if kind == wanted { Ok(()) } else { Err(DecodeError::Kind { what, kind }) }
}

/// From microseconds since 2000-01-01.
fn timestamp(micros: u64) -> Timestamp {
    const EPOCH_US: i64 = super::calendar::EPOCH_DAYS * super::calendar::DAY_US;
    Timestamp(micros.cast_signed().saturating_add(EPOCH_US))
}

/// A name as SQL spells it, quoted if it must be.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let bare = name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    if bare && !name.is_empty() {
        name.into()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Of a message with a row: what it is, the table, and what kind of row comes.
const ROW_HEAD_BYTES: usize = 6;
const WHAT: &str = "a pgoutput message";

#[cfg(test)]
mod tests;
