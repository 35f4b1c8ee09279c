//! What a row has besides its values, as columns. Pure.
//!
//! Rows of one transaction, and all of a snapshot, differ in their sequence alone: they are counted,
//! and their columns are made when the batch ends.
//!
//! **Invariant:** after each row all columns have the same length.

use std::{iter, mem, sync::Arc};

use arrow_array::{
    ArrayRef, ListArray, MapArray, PrimitiveArray, StructArray,
    builder::{Int64Builder, StringBuilder, TimestampMicrosecondBuilder},
    types::Int64Type,
};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields};

use super::{
    arrays::{data_type, fits},
    pieces::Piece,
};
use crate::{
    journal::{LakeType, Op},
    units::{Position, Timestamp},
};

/// What a row has besides its values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RowMeta {
    /// `_op`
    pub op: Op,
    /// `_sequence`
    pub sequence: u64,
    /// `_position`
    pub position: Position,
    /// `_committed_at`
    pub committed_at: Timestamp,
    /// `_xid`
    pub xid: Option<u32>,
}

/// What the rows of a block have besides their values.
#[derive(Clone, Copy, Debug)]
pub enum Metas<'a> {
    /// The same.
    Same(RowMeta),
    /// Each its own.
    Each(&'a [RowMeta]),
}

impl Metas<'_> {
    /// That of a row.
    ///
    /// # Panics
    ///
    /// There is no such row.
    pub fn of(&self, row: usize) -> RowMeta {
        match self {
            Self::Same(meta) => *meta,
            Self::Each(metas) => metas[row],
        }
    }
}

/// The columns after the table's own, growing.
#[derive(Debug)]
pub(super) struct MetaArrays {
    /// The rows so far, while they differ in nothing and nothing was pushed for them.
    alike: Option<Run>,
    runs: Vec<Run>,
    sequence: Vec<i64>,
    unchanged: Names,
    exact: Pairs,
    key: Pairs,
}

/// Rows that differ in their sequence alone.
#[derive(Debug)]
struct Run {
    first: RowMeta,
    rows: usize,
}

/// A list of column names for each row.
#[derive(Debug)]
pub(super) struct Names {
    names: StringBuilder,
    /// Where each row begins, and the last one ends.
    bounds: Vec<i32>,
}

/// Texts by column name for each row, or NULL.
#[derive(Debug)]
pub(super) struct Pairs {
    names: StringBuilder,
    texts: StringBuilder,
    /// As of [`Names`].
    bounds: Vec<i32>,
    present: NullBufferBuilder,
}

/// Their fields.
pub(super) fn fields() -> [Field; 8] {
    let instant = data_type(LakeType::TimestampUtc);
    [
        Field::new("_op", DataType::Utf8, false),
        Field::new("_sequence", DataType::Int64, false),
        Field::new("_position", DataType::Utf8, false),
        Field::new("_committed_at", instant, false),
        Field::new("_xid", DataType::Int64, true),
        Field::new("_unchanged", DataType::List(element()), false),
        Field::new("_exact", DataType::Map(entry(), false), false),
        Field::new("_key", DataType::Map(entry(), false), true),
    ]
}

impl MetaArrays {
    pub(super) fn new() -> Self {
        Self {
            alike: None,
            runs: vec![],
            sequence: vec![],
            unchanged: Names { names: text(), bounds: vec![0] },
            exact: Pairs::new(),
            key: Pairs::new(),
        }
    }

    /// `_unchanged` of the row that is open.
    pub(super) fn unchanged(&mut self) -> &mut Names {
        self.spread();
        &mut self.unchanged
    }

    /// `_exact` of the row that is open.
    pub(super) fn exact(&mut self) -> &mut Pairs {
        self.spread();
        &mut self.exact
    }

    /// `_key` of the row that is open.
    pub(super) fn key(&mut self) -> &mut Pairs {
        self.spread();
        &mut self.key
    }

    /// Ends a row, whose names and pairs were pushed before. Without `key` its key is NULL.
    pub(super) fn append(&mut self, meta: RowMeta, key: bool) {
        self.spread();
        match self.runs.last_mut() {
            Some(run) if run.first.is_like(&meta) => run.rows += 1,
            _ => self.runs.push(Run { first: meta, rows: 1 }),
        }
        self.sequence.push(sequence(meta));
        self.unchanged.end();
        self.exact.end(true);
        self.key.end(key);
    }

    /// Ends `rows` rows that differ in nothing, and for which nothing was pushed.
    pub(super) fn append_alike(&mut self, meta: RowMeta, rows: usize) {
        match &mut self.alike {
            Some(run) if run.first == meta => run.rows += rows,
            None if self.sequence.is_empty() => self.alike = Some(Run { first: meta, rows }),
            _ => {
                self.spread();
                self.append_each(meta, rows, iter::repeat_n(sequence(meta), rows));
            }
        }
    }

    /// Ends rows for which nothing was pushed.
    pub(super) fn append_all(&mut self, metas: &Metas<'_>, rows: usize) {
        match metas {
            Metas::Same(meta) => self.append_alike(*meta, rows),
            Metas::Each(metas) => {
                self.spread();
                for run in metas.chunk_by(|one, next| one.is_like(next)) {
                    self.append_each(run[0], run.len(), run.iter().map(|meta| sequence(*meta)));
                }
            }
        }
    }

    /// What comes next differs from the rows so far: from here on each is held.
    fn spread(&mut self) {
        if let Some(Run { first, rows }) = self.alike.take() {
            self.append_each(first, rows, iter::repeat_n(sequence(first), rows));
        }
    }

    fn append_each(&mut self, meta: RowMeta, rows: usize, sequence: impl Iterator<Item = i64>) {
        match self.runs.last_mut() {
            Some(run) if run.first.is_like(&meta) => run.rows += rows,
            _ => self.runs.push(Run { first: meta, rows }),
        }
        self.sequence.extend(sequence);
        self.unchanged.bounds.extend(iter::repeat_n(bound(&self.unchanged.names), rows));
        for (pairs, present) in [(&mut self.exact, true), (&mut self.key, false)] {
            pairs.bounds.extend(iter::repeat_n(bound(&pairs.names), rows));
            match present {
                true => pairs.present.append_n_non_nulls(rows),
                false => pairs.present.append_n_nulls(rows),
            }
        }
    }

    pub(super) fn finish(&mut self) -> [Piece; 8] {
        if let Some(Run { first, rows }) = self.alike.take() {
            self.append_each(first, 1, iter::once(sequence(first)));
            return self.arrays().map(|value| Piece::Same(value, rows));
        }
        self.arrays().map(Piece::Array)
    }

    fn arrays(&mut self) -> [ArrayRef; 8] {
        let rows = self.sequence.len();
        let mut op = StringBuilder::with_capacity(rows, rows);
        let mut position = StringBuilder::with_capacity(rows, rows * POSITION_BYTES);
        let mut committed_at = TimestampMicrosecondBuilder::with_capacity(rows)
            .with_data_type(data_type(LakeType::TimestampUtc));
        let mut xid = Int64Builder::with_capacity(rows);
        for Run { first, rows } in self.runs.drain(..) {
            op.append_value_n(first.op.letter(), rows);
            position.append_value_n(first.position.to_string(), rows);
            committed_at.append_value_n(first.committed_at.0, rows);
            match first.xid {
                Some(number) => xid.append_value_n(number.into(), rows),
                None => xid.append_nulls(rows),
            }
        }
        let ahead = Vec::with_capacity(rows);
        let sequence = ScalarBuffer::from(mem::replace(&mut self.sequence, ahead));
        [
            Arc::new(op.finish()),
            Arc::new(PrimitiveArray::<Int64Type>::new(sequence, None)),
            Arc::new(position.finish()),
            Arc::new(committed_at.finish()),
            Arc::new(xid.finish()),
            Arc::new(self.unchanged.finish()),
            Arc::new(self.exact.finish()),
            Arc::new(self.key.finish()),
        ]
    }
}

impl RowMeta {
    /// Whether the other differs in its sequence at most.
    fn is_like(&self, other: &Self) -> bool {
        Self { sequence: self.sequence, ..*other } == *self
    }
}

impl Names {
    /// Adds a name to the row that is open.
    pub(super) fn push(&mut self, name: &str) {
        self.names.append_value(name);
    }

    fn end(&mut self) {
        self.bounds.push(bound(&self.names));
    }

    fn finish(&mut self) -> ListArray {
        let names = Arc::new(self.names.finish());
        ListArray::new(element(), offsets(&mut self.bounds), names, None)
    }
}

impl Pairs {
    fn new() -> Self {
        let present = NullBufferBuilder::new(0);
        Self { names: text(), texts: text(), bounds: vec![0], present }
    }

    /// Adds a pair to the row that is open; `None`, and nothing added, if it has no room.
    pub(super) fn push(&mut self, name: &str, text: Option<&str>) -> Option<()> {
        fits(self.names.values_slice().len(), name.len())?;
        fits(self.texts.values_slice().len(), text.map_or(0, str::len))?;
        self.names.append_value(name);
        self.texts.append_option(text);
        Some(())
    }

    fn end(&mut self, present: bool) {
        self.bounds.push(bound(&self.names));
        self.present.append(present);
    }

    fn finish(&mut self) -> MapArray {
        let texts: [ArrayRef; 2] = [Arc::new(self.names.finish()), Arc::new(self.texts.finish())];
        let pairs = StructArray::new(pair(), texts.into(), None);
        MapArray::new(entry(), offsets(&mut self.bounds), pairs, self.present.finish(), false)
    }
}

fn sequence(meta: RowMeta) -> i64 {
    i64::try_from(meta.sequence).expect("a box makes fewer than 2^63 changes")
}

/// Where the next row's names begin.
fn bound(names: &StringBuilder) -> i32 {
    i32::try_from(names.offsets_slice().len() - 1).expect("each name takes a byte of an i32's")
}

/// The bounds of the rows so far; begins anew with as much room.
fn offsets(bounds: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let mut ahead = Vec::with_capacity(bounds.len());
    ahead.push(0);
    OffsetBuffer::new(ScalarBuffer::from(mem::replace(bounds, ahead)))
}

fn text() -> StringBuilder {
    StringBuilder::with_capacity(0, 0)
}

fn element() -> FieldRef {
    Arc::new(Field::new("element", DataType::Utf8, true))
}

fn entry() -> FieldRef {
    Arc::new(Field::new("key_value", DataType::Struct(pair()), false))
}

fn pair() -> Fields {
    let name = Field::new("key", DataType::Utf8, false);
    Fields::from(vec![name, Field::new("value", DataType::Utf8, true)])
}

/// Of a position as text.
const POSITION_BYTES: usize = 17;
