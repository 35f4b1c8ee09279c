//! What a row has besides its values, as columns. Pure.
//!
//! Rows of one transaction, and all of a snapshot, differ in their sequence alone: they are counted,
//! and their columns are made when the batch ends. Lists and maps are held from the first row on that has something in them.
//!
//! **Invariant:** after each row all columns have the same length.

use std::{iter, mem, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Int64Array, ListArray, MapArray, StructArray,
    builder::{Int64Builder, StringBuilder, TimestampMicrosecondBuilder},
};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, FieldRef, Fields};

use super::{
    arrays::{data_type, fits},
    pieces::Piece,
    runs::{Runs, are_long},
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
    runs: Vec<Run>,
    /// Of all of them.
    rows: usize,
    sequence: Sequences,
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

/// A sequence for each row.
#[derive(Debug)]
struct Sequences {
    /// That of every row so far, while they do not differ.
    same: Option<i64>,
    /// Those of all rows, from then on.
    each: Vec<i64>,
}

/// A list of column names for each row.
#[derive(Debug)]
pub(super) struct Names {
    names: StringBuilder,
    /// Where each row begins, and the last one ends; of rows without a name none.
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
    /// Whether rows for which nothing was pushed are not NULL.
    is_present: bool,
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
            runs: vec![],
            rows: 0,
            sequence: Sequences { same: None, each: vec![] },
            unchanged: Names { names: text(), bounds: vec![] },
            exact: Pairs::new(true),
            key: Pairs::new(false),
        }
    }

    /// `_unchanged` of the row that is open.
    pub(super) fn unchanged(&mut self) -> &mut Names {
        self.unchanged.begin(self.rows);
        &mut self.unchanged
    }

    /// `_exact` of the row that is open.
    pub(super) fn exact(&mut self) -> &mut Pairs {
        self.exact.begin(self.rows);
        &mut self.exact
    }

    /// `_key` of the row that is open.
    pub(super) fn key(&mut self) -> &mut Pairs {
        self.key.begin(self.rows);
        &mut self.key
    }

    /// Ends a row, whose names and pairs were pushed before. Without `key` its key is NULL.
    pub(super) fn append(&mut self, meta: RowMeta, key: bool) {
        if key {
            self.key.begin(self.rows);
        }
        self.sequence.push(self.rows, iter::once(sequence(meta)));
        self.end(meta, 1, key);
    }

    /// Ends `rows` rows that differ in nothing, and for which nothing was pushed.
    pub(super) fn append_alike(&mut self, meta: RowMeta, rows: usize) {
        self.sequence.repeat(self.rows, sequence(meta), rows);
        self.end(meta, rows, false);
    }

    /// Ends rows for which nothing was pushed.
    pub(super) fn append_all(&mut self, metas: &Metas<'_>, rows: usize) {
        match metas {
            Metas::Same(meta) => self.append_alike(*meta, rows),
            Metas::Each(metas) => {
                for run in metas.chunk_by(|one, next| one.is_like(next)) {
                    self.sequence.push(self.rows, run.iter().map(|meta| sequence(*meta)));
                    self.end(run[0], run.len(), false);
                }
            }
        }
    }

    /// Ends rows that differ in their sequence alone, which has been pushed.
    fn end(&mut self, meta: RowMeta, rows: usize, key: bool) {
        if rows == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.first.is_like(&meta) => run.rows += rows,
            _ => self.runs.push(Run { first: meta, rows }),
        }
        self.rows += rows;
        self.unchanged.end(rows);
        self.exact.end(rows, true);
        self.key.end(rows, key);
    }

    pub(super) fn finish(&mut self) -> [Piece; 8] {
        let rows = mem::take(&mut self.rows);
        let runs = mem::take(&mut self.runs);
        // Few are not repeated in each of their rows.
        let are_long = !runs.is_empty() && are_long(runs.len(), rows);
        let values = if are_long { runs.len() } else { rows };
        let mut op = StringBuilder::with_capacity(values, values);
        let mut position = StringBuilder::with_capacity(values, values * POSITION_BYTES);
        let mut committed_at = TimestampMicrosecondBuilder::with_capacity(values)
            .with_data_type(data_type(LakeType::TimestampUtc));
        let mut xid = Int64Builder::with_capacity(values);
        for Run { first, rows } in &runs {
            let rows = if are_long { 1 } else { *rows };
            op.append_value_n(first.op.letter(), rows);
            position.append_value_n(first.position.to_string(), rows);
            committed_at.append_value_n(first.committed_at.0, rows);
            match first.xid {
                Some(number) => xid.append_value_n(number.into(), rows),
                None => xid.append_nulls(rows),
            }
        }
        let lengths: Vec<_> = runs.iter().map(|run| run.rows).collect();
        let piece = |values: ArrayRef| match are_long {
            true => Piece::Runs(Runs::new(values, lengths.clone())),
            false => Piece::Array(values),
        };
        [
            piece(Arc::new(op.finish())),
            self.sequence.finish(rows),
            piece(Arc::new(position.finish())),
            piece(Arc::new(committed_at.finish())),
            piece(Arc::new(xid.finish())),
            self.unchanged.finish(rows),
            self.exact.finish(rows),
            self.key.finish(rows),
        ]
    }
}

impl RowMeta {
    /// Whether the other differs in its sequence at most.
    fn is_like(&self, other: &Self) -> bool {
        Self { sequence: self.sequence, ..*other } == *self
    }
}

impl Sequences {
    /// Adds those of rows behind as many as `before`.
    fn push(&mut self, before: usize, of_rows: impl Iterator<Item = i64>) {
        self.spread(before);
        self.each.extend(of_rows);
    }

    /// Adds one of so many rows.
    fn repeat(&mut self, before: usize, of_all: i64, rows: usize) {
        if before == 0 {
            self.same = Some(of_all);
        }
        if self.same != Some(of_all) {
            self.push(before, iter::repeat_n(of_all, rows));
        }
    }

    /// What comes next may differ from the rows so far: from here on each is held.
    fn spread(&mut self, before: usize) {
        if let Some(same) = self.same.take() {
            self.each.extend(iter::repeat_n(same, before));
        }
    }

    fn finish(&mut self, rows: usize) -> Piece {
        if let Some(same) = self.same.take().filter(|_| rows > 0) {
            return Piece::same(Arc::new(Int64Array::from(vec![same])), rows);
        }
        let ahead = Vec::with_capacity(rows);
        let each = ScalarBuffer::from(mem::replace(&mut self.each, ahead));
        Piece::Array(Arc::new(Int64Array::new(each, None)))
    }
}

impl Names {
    /// Before a name is pushed for the first time: the rows so far have none.
    fn begin(&mut self, rows: usize) {
        if self.bounds.is_empty() {
            self.bounds.extend(iter::repeat_n(0, rows + 1));
        }
    }

    /// Adds a name to the row that is open.
    pub(super) fn push(&mut self, name: &str) {
        self.names.append_value(name);
    }

    fn end(&mut self, rows: usize) {
        if !self.bounds.is_empty() {
            self.bounds.extend(iter::repeat_n(bound(&self.names), rows));
        }
    }

    fn finish(&mut self, rows: usize) -> Piece {
        let is_alike = self.bounds.is_empty();
        self.begin(if is_alike { rows.min(1) } else { rows });
        let names = Arc::new(self.names.finish());
        piece(ListArray::new(element(), offsets(&mut self.bounds), names, None), is_alike, rows)
    }
}

impl Pairs {
    fn new(is_present: bool) -> Self {
        let present = NullBufferBuilder::new(0);
        Self { names: text(), texts: text(), bounds: vec![], present, is_present }
    }

    /// As [`Names::begin`].
    fn begin(&mut self, rows: usize) {
        if self.bounds.is_empty() {
            self.bounds.extend(iter::repeat_n(0, rows + 1));
            self.are_present(rows, self.is_present);
        }
    }

    /// Adds a pair to the row that is open; `None`, and nothing added, if it has no room.
    pub(super) fn push(&mut self, name: &str, text: Option<&str>) -> Option<()> {
        fits(self.names.values_slice().len(), name.len())?;
        fits(self.texts.values_slice().len(), text.map_or(0, str::len))?;
        self.names.append_value(name);
        self.texts.append_option(text);
        Some(())
    }

    fn end(&mut self, rows: usize, present: bool) {
        if !self.bounds.is_empty() {
            self.bounds.extend(iter::repeat_n(bound(&self.names), rows));
            self.are_present(rows, present);
        }
    }

    fn are_present(&mut self, rows: usize, present: bool) {
        match present {
            true => self.present.append_n_non_nulls(rows),
            false => self.present.append_n_nulls(rows),
        }
    }

    fn finish(&mut self, rows: usize) -> Piece {
        let is_alike = self.bounds.is_empty();
        self.begin(if is_alike { rows.min(1) } else { rows });
        let texts: [ArrayRef; 2] = [Arc::new(self.names.finish()), Arc::new(self.texts.finish())];
        let pairs = StructArray::new(pair(), texts.into(), None);
        let (bounds, present) = (offsets(&mut self.bounds), self.present.finish());
        piece(MapArray::new(entry(), bounds, pairs, present, false), is_alike, rows)
    }
}

/// Of the one that alike rows have, so many; else itself.
fn piece(array: impl Array + 'static, is_alike: bool, rows: usize) -> Piece {
    let array = Arc::new(array);
    if is_alike && rows > 0 { Piece::same(array, rows) } else { Piece::Array(array) }
}

fn sequence(meta: RowMeta) -> i64 {
    i64::try_from(meta.sequence).expect("a box makes fewer than 2^63 changes")
}

/// Where the next row's names begin.
fn bound(names: &StringBuilder) -> i32 {
    i32::try_from(names.offsets_slice().len() - 1).expect("each name takes a byte of an i32's")
}

/// The bounds of the rows so far.
fn offsets(bounds: &mut Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(mem::take(bounds)))
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

#[cfg(test)]
mod tests {
    use arrow_array::{
        cast::AsArray,
        types::{Int64Type, TimestampMicrosecondType},
    };

    use super::*;

    /// What stands in a row: what it is, its names, its pairs, and its key.
    type Told = (RowMeta, Vec<String>, Vec<String>, Option<Vec<String>>);

    /// Rows as they are told, in whatever order they come.
    struct Model {
        arrays: MetaArrays,
        rows: Vec<Told>,
        dice: fastrand::Rng,
    }

    impl Model {
        fn meta(&mut self) -> RowMeta {
            let kind = self.dice.u8(..3);
            RowMeta {
                op: [Op::Insert, Op::Update, Op::Delete]
                    [usize::from(self.dice.u8(..10) / 9 * kind)],
                sequence: self.rows.len() as u64 * u64::from(self.dice.bool()),
                position: Position(kind.into()),
                committed_at: Timestamp(kind.into()),
                xid: (kind > 0).then_some(kind.into()),
            }
        }

        fn step(&mut self) {
            let (meta, rows) = (self.meta(), self.dice.usize(..700));
            match self.dice.u8(..4) {
                0 => {
                    self.arrays.append_alike(meta, rows);
                    self.rows.extend((0..rows).map(|_| (meta, vec![], vec![], None)));
                }
                1 | 2 => {
                    let metas: Vec<_> = (0..rows as u64)
                        .map(|row| RowMeta { sequence: meta.sequence + row, ..meta })
                        .collect();
                    self.arrays.append_all(&Metas::Each(&metas), rows);
                    self.rows.extend(metas.into_iter().map(|meta| (meta, vec![], vec![], None)));
                }
                _ => {
                    let mut told = (meta, vec![], vec![], None);
                    if self.dice.u8(..8) == 0 {
                        self.arrays.unchanged().push("name");
                        told.1.push("name".to_owned());
                    }
                    if self.dice.u8(..8) == 0 {
                        self.arrays.exact().push("pair", Some("text")).unwrap();
                        told.2.push("pair".to_owned());
                    }
                    if self.dice.bool() {
                        told.3 = Some(vec![]);
                    }
                    if let (Some(key), true) = (&mut told.3, self.dice.bool()) {
                        self.arrays.key().push("key", None).unwrap();
                        key.push("key".to_owned());
                    }
                    self.arrays.append(meta, told.3.is_some());
                    self.rows.push(told);
                }
            }
        }

        /// Whether there were runs of several values.
        fn check(&mut self) -> bool {
            let pieces = self.arrays.finish();
            let rows = mem::take(&mut self.rows);
            assert!(pieces.iter().all(|piece| piece.rows() == rows.len()));
            let is_several =
                |piece: &Piece| matches!(piece, Piece::Runs(runs) if runs.values().1.len() > 1);
            let several = pieces.iter().any(is_several);
            let [op, sequence, position, at, xid, unchanged, exact, key] =
                pieces.map(|piece| piece.array().unwrap());
            let names = |of: ArrayRef| -> Vec<String> {
                of.as_string::<i32>().iter().map(|name| name.unwrap().to_owned()).collect()
            };
            for (row, (meta, is_unchanged, is_exact, is_key)) in rows.iter().enumerate() {
                assert_eq!(op.as_string::<i32>().value(row), meta.op.letter());
                let number = sequence.as_primitive::<Int64Type>().value(row);
                assert_eq!(number.cast_unsigned(), meta.sequence);
                let text = position.as_string::<i32>().value(row);
                assert_eq!(text, meta.position.to_string());
                let at = at.as_primitive::<TimestampMicrosecondType>();
                assert_eq!(at.value(row), meta.committed_at.0);
                let xid = xid.as_primitive::<Int64Type>();
                assert_eq!(xid.is_valid(row).then(|| xid.value(row)), meta.xid.map(i64::from));
                assert_eq!(&names(unchanged.as_list::<i32>().value(row)), is_unchanged);
                let [exact, key] = [&exact, &key].map(|map| {
                    let map = map.as_map();
                    map.is_valid(row).then(|| names(ArrayRef::clone(map.value(row).column(0))))
                });
                assert_eq!((exact.as_ref(), &key), (Some(is_exact), is_key), "row {row}");
            }
            several
        }
    }

    #[test]
    fn columns_are_what_was_told_of_their_rows() {
        let mut several = 0;
        for seed in 0..200 {
            let dice = fastrand::Rng::with_seed(seed);
            let mut model = Model { arrays: MetaArrays::new(), rows: vec![], dice };
            // Again with what is left of the first time.
            for _ in 0..3 {
                (0..model.dice.usize(..6)).for_each(|_| model.step());
                several += u32::from(model.check());
            }
        }
        assert!(several > 20, "{several}");
    }
}
