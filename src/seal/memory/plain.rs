//! The records of the source in memory, its decoder, and its journal's batches.
//!
//! Records: `B` begins at xid, `C` position begins at, `R` a table as JSON, `I`, `U`, `D` table id and
//! values, `T` table ids, `N` nothing. A value is its length and its text; of one left out the length is
//! [`LEFT_OUT`].

use std::{ops::Range, sync::Arc};

use crate::{
    journal::{
        Batch, Cell, Cells, Change, Column, Commit, Decode, DecodeError, Event, Identity, LakeType,
        OldRow, Op, Piece, Place, RecordKind, Row, Run, Table, Value,
    },
    units::{Position, Sequence, Timestamp},
};

/// 2026-11-21T12:00:00Z
pub(in crate::seal) const NOON: i64 = 1_795_262_400_000_000;

/// `public.<name>` with the columns `id` and `note`.
pub(in crate::seal) fn table(id: u32, name: &str) -> Table {
    let column = |name: &str, lake, identity| Column {
        name: name.into(),
        source_type: if identity { "bigint" } else { "text" }.into(),
        type_id: 20,
        type_modifier: -1,
        lake,
        identity,
        not_null: identity,
        default: None,
        generated: None,
        number: None,
        before: None,
    };
    Table {
        id,
        schema: "public".into(),
        name: name.into(),
        version: 0,
        columns: vec![column("id", LakeType::Int64, true), column("note", LakeType::Text, false)],
        key: vec!["id".into()],
        identity: Identity::Default,
        types: vec![],
    }
}

/// Length of a value that is that of the row before.
const LEFT_OUT: u32 = u32::MAX;

/// The values of one row, as `I` and snapshots carry them.
pub(in crate::seal) fn row(values: &[&str]) -> Vec<u8> {
    let mut bytes = vec![];
    for value in values {
        bytes.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes
}

/// Reads those records.
#[derive(Default)]
pub(in crate::seal) struct Plain {
    tables: Vec<Arc<Table>>,
}

impl Plain {
    /// One that knows no tables: enough for values.
    pub(in crate::seal) const DECODER: Self = Self { tables: vec![] };

    pub(in crate::seal) fn make(tables: Vec<Arc<Table>>) -> Box<dyn Decode> {
        Box::new(Self { tables })
    }
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn number<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.0.get(self.1..).and_then(<[u8]>::first_chunk);
        self.1 += N;
        bytes.copied().ok_or(DecodeError::Length { what: "a record" })
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.number().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.number().map(u64::from_be_bytes)
    }

    fn cells(&mut self, count: usize) -> Result<Row, DecodeError> {
        let mut row = vec![];
        for _ in 0..count {
            let length = self.u32()?;
            if length == LEFT_OUT {
                row.push(Cell::Unchanged);
                continue;
            }
            let length = length as usize;
            row.push(Cell::Text(self.1..self.1 + length));
            self.1 += length;
        }
        if self.1 > self.0.len() {
            return Err(DecodeError::Length { what: "a value" });
        }
        Ok(row)
    }
}

impl Decode for Plain {
    fn decode(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Event, DecodeError> {
        if let Some(commit) = self.commit(kind, payload) {
            return Ok(Event::Commit(commit));
        }
        let mut cursor = Cursor(payload, 1);
        let op = match payload[0] {
            b'B' => {
                return Ok(Event::Begin {
                    begins: Position(cursor.u64()?),
                    at: Timestamp(cursor.u64()?.cast_signed()),
                    xid: cursor.u32()?,
                });
            }
            b'R' => {
                let table: Arc<Table> = Arc::new(serde_json::from_slice(&payload[1..]).unwrap());
                self.tables.retain(|known| known.id != table.id);
                self.tables.push(Arc::clone(&table));
                return Ok(Event::Table(table));
            }
            b'T' => {
                let tables: Result<_, _> =
                    (0..(payload.len() - 1) / 4).map(|_| cursor.u32()).collect();
                let (cascade, restart_identity) = (false, false);
                return Ok(Event::Truncate { tables: tables?, cascade, restart_identity });
            }
            b'N' => return Ok(Event::Nothing),
            b'd' => {
                let table: Table = serde_json::from_slice(&payload[1..]).unwrap();
                return Ok(Event::Defined(table.into()));
            }
            b'I' => Op::Insert,
            b'U' => Op::Update,
            b'D' => Op::Delete,
            kind => return Err(DecodeError::Kind { what: "message", kind }),
        };
        let table = cursor.u32()?;
        let known = self.tables.iter().find(|known| known.id == table);
        let row = cursor.cells(known.ok_or(DecodeError::Table(table))?.columns.len())?;
        let (new, old) = match op {
            Op::Delete => (None, Some((OldRow::Key, row))),
            _ => (Some(row), None),
        };
        Ok(Event::Change(Change { op, table, new, old }))
    }

    fn whole(&self, _: RecordKind, payload: &[u8]) -> Option<(Op, u32)> {
        let op = match payload[0] {
            b'I' => Op::Insert,
            b'U' => Op::Update,
            b'D' => Op::Delete,
            _ => return None,
        };
        Some((op, Cursor(payload, 1).u32().ok()?))
    }

    fn cells(
        &self,
        bytes: &[u8],
        payload: Range<usize>,
        cells: &mut Cells,
    ) -> Result<bool, DecodeError> {
        let mut cursor = Cursor(&bytes[..payload.end], payload.start + 5);
        let row = cursor.cells(cells.columns())?;
        if row.contains(&Cell::Unchanged) {
            return Ok(false);
        }
        (0..).zip(&row).for_each(|(column, cell)| cells.set(column, Place::of(cell).unwrap()));
        cells.end(payload.len());
        Ok(true)
    }

    fn commit(&self, _: RecordKind, payload: &[u8]) -> Option<Commit> {
        let mut cursor = Cursor(payload, 1);
        (payload[0] == b'C').then(|| Commit {
            position: Position(cursor.u64().unwrap()),
            begins: Position(cursor.u64().unwrap()),
            at: Timestamp(cursor.u64().unwrap().cast_signed()),
            transactions: 1,
        })
    }

    fn block(
        &self,
        table: &Table,
        batch: &[u8],
        at: usize,
        cells: &mut Cells,
    ) -> Result<usize, DecodeError> {
        let mut cursor = Cursor(batch, at);
        while cursor.1 < batch.len() && !cells.is_full() {
            let begin = cursor.1;
            for (column, cell) in (0..).zip(cursor.cells(table.columns.len())?) {
                cells.set(column, Place::of(&cell)?);
            }
            cells.end(cursor.1 - begin);
        }
        Ok(cursor.1)
    }

    fn value<'a>(
        &self,
        column: &Column,
        cell: &Cell,
        bytes: &'a [u8],
    ) -> Result<Value<'a>, DecodeError> {
        let Cell::Text(range) = cell else { return Ok(Value::Null) };
        let text = str::from_utf8(&bytes[range.clone()]).unwrap();
        match column.lake {
            LakeType::Int64 => Ok(Value::Int(text.parse().unwrap())),
            _ => Ok(Value::Text(text.into())),
        }
    }

    fn plain(&self, column: &Column) -> Option<crate::journal::Plain> {
        (column.lake == LakeType::Text).then_some(crate::journal::Plain::Text)
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.clone()
    }
}

/// Writes batches as the journal would give them. Commits begin at odd tens and end 5 later.
#[derive(Clone, Debug, Default)]
pub(in crate::seal) struct Log {
    pub(in crate::seal) batches: Vec<Batch>,
    changes: u64,
    commits: u64,
}

impl Log {
    /// A batch with one whole transaction for each of `transactions`, committed at `at`.
    pub(in crate::seal) fn whole(&mut self, at: i64, transactions: &[&[Vec<u8>]]) -> &mut Self {
        let mut run = Run::new(Piece::Whole);
        for records in transactions {
            self.begin(&mut run, at);
            self.records(&mut run, records);
            self.commit(&mut run, at);
        }
        self.push(run, None)
    }

    /// A batch with whole transactions, each committed at a time of its own.
    pub(in crate::seal) fn each(&mut self, transactions: &[(i64, Vec<Vec<u8>>)]) -> &mut Self {
        let mut run = Run::new(Piece::Whole);
        for (at, records) in transactions {
            self.begin(&mut run, *at);
            self.records(&mut run, records);
            self.commit(&mut run, *at);
        }
        self.push(run, None)
    }

    /// A batch that says that nothing was in the log up to `position`.
    pub(in crate::seal) fn mark(&mut self, at: i64, position: u64) -> &mut Self {
        let (position, begins) = (Position(position), Position(position - 1));
        let commit = Some(Commit { position, begins, at: Timestamp(at), transactions: 0 });
        self.push(Run { commit, ..Run::new(Piece::Whole) }, None)
    }

    /// A mark at which tables stand that were altered at rest.
    pub(in crate::seal) fn at_rest(
        &mut self,
        at: i64,
        position: u64,
        tables: &[Table],
    ) -> &mut Self {
        let begins = (position - 1).to_be_bytes();
        let (moment, none) = (at.to_be_bytes(), 0u32.to_be_bytes());
        let begin = [&b"B"[..], &begins, &moment, &none].concat();
        let commit = [&b"C"[..], &position.to_be_bytes(), &begins, &moment].concat();
        let tables =
            tables.iter().map(|table| [&b"d"[..], &serde_json::to_vec(table).unwrap()].concat());
        let records: Vec<_> = [begin].into_iter().chain(tables).chain([commit]).collect();
        self.mark(at, position);
        let mut run = Run::new(Piece::Whole);
        records.iter().for_each(|record| run.push(RecordKind::Message, record));
        self.batches.last_mut().unwrap().bytes = run.bytes;
        self
    }

    /// As the log of a box that goes on behind `changes` and `commits` of another.
    pub(in crate::seal) fn behind(changes: u64, commits: u64) -> Self {
        Self { batches: vec![], changes, commits }
    }

    /// Batches with one transaction, a piece each.
    pub(in crate::seal) fn pieces(&mut self, at: i64, pieces: &[&[Vec<u8>]]) -> &mut Self {
        let begins = (self.commits + 1) * 10;
        let ends = Commit {
            position: Position(begins + 5),
            begins: Position(begins),
            at: Timestamp(at),
            transactions: 1,
        };
        for (index, records) in pieces.iter().enumerate() {
            let piece = match index {
                0 => Piece::First,
                last if last + 1 == pieces.len() => Piece::Last,
                _ => Piece::Middle,
            };
            let mut run = Run::new(piece);
            if piece == Piece::First {
                self.begin(&mut run, at);
            }
            self.records(&mut run, records);
            if piece == Piece::Last {
                self.commit(&mut run, at);
            }
            self.push(run, Some(ends));
        }
        self
    }

    fn begin(&self, run: &mut Run, at: i64) {
        let begins = (self.commits + 1) * 10;
        let xid = u32::try_from(self.commits + 1).unwrap();
        let (at, xid) = (at.to_be_bytes(), xid.to_be_bytes());
        run.push(RecordKind::Message, &[b"B", &begins.to_be_bytes()[..], &at, &xid].concat());
    }

    fn commit(&mut self, run: &mut Run, at: i64) {
        self.commits += 1;
        let begins = self.commits * 10;
        let position = (begins + 5).to_be_bytes();
        let record = [b"C", &position[..], &begins.to_be_bytes(), &at.to_be_bytes()].concat();
        run.push(RecordKind::Message, &record);
        run.commit = Some(Commit {
            position: Position(begins + 5),
            begins: Position(begins),
            at: Timestamp(at),
            transactions: 1,
        });
    }

    fn records(&mut self, run: &mut Run, records: &[Vec<u8>]) {
        for record in records {
            run.push(RecordKind::Message, record);
            run.changes += match record[0] {
                b'I' | b'U' | b'D' => 1,
                b'T' => (record.len() as u64 - 1) / 4,
                _ => 0,
            };
        }
    }

    fn push(&mut self, run: Run, ends: Option<Commit>) -> &mut Self {
        self.batches.push(Batch {
            number: self.batches.len() as u64 + 1,
            piece: run.piece,
            first: Sequence(self.changes + 1),
            changes: run.changes,
            commit: run.commit,
            ends,
            bytes: run.bytes,
        });
        self.changes += run.changes;
        self
    }
}

/// A table's description, as a record.
pub(in crate::seal) fn relation(table: &Table) -> Vec<u8> {
    [b"R".to_vec(), serde_json::to_vec(table).unwrap()].concat()
}

/// A change, as a record.
pub(in crate::seal) fn change(op: u8, table: u32, values: &[&str]) -> Vec<u8> {
    [vec![op], table.to_be_bytes().to_vec(), row(values)].concat()
}

/// An update of the row `id` that leaves its note out, as a record.
pub(in crate::seal) fn left_out(table: u32, id: &str) -> Vec<u8> {
    [change(b'U', table, &[id]), LEFT_OUT.to_be_bytes().to_vec()].concat()
}

/// A TRUNCATE, as a record.
pub(in crate::seal) fn truncate(tables: &[u32]) -> Vec<u8> {
    [vec![b'T'], tables.iter().flat_map(|id| id.to_be_bytes()).collect()].concat()
}
