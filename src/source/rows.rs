//! Rows and values: in which words records are read again after the journal. Pure.
//!
//! **Invariant:** no cell owns bytes: it says where they lie in the message or batch that it came in.

use std::{borrow::Cow, ops::Range, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Cells, Column, Commit, RecordKind, Table};
use crate::units::{Position, Timestamp};

/// One column's value inside a message: where its bytes lie.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// The value of the row's previous version, which the server left out (unchanged TOAST).
    Unchanged,
    /// In the type's binary (send) form.
    Binary(Range<usize>),
    /// In the type's text (output) form, UTF-8.
    Text(Range<usize>),
}

impl Cell {
    /// Bytes of the value.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Null | Self::Unchanged => 0,
            Self::Binary(range) | Self::Text(range) => range.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A row: one [`Cell`] for each column of its table, in the table's order.
pub type Row = Vec<Cell>;

/// What one record says. Ranges point into the record's payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A transaction begins; its commit record begins at `begins`.
    Begin {
        /// As in [`Commit::begins`].
        begins: Position,
        /// The server's commit time.
        at: Timestamp,
        /// The transaction's number.
        xid: u32,
    },
    /// The transaction is whole.
    Commit(Commit),
    /// The table's columns in force from here on. `version` is 0.
    Table(Arc<Table>),
    /// The table is so from here on, though no row says so: a statement changed it. `version` is 0. What rows are read
    /// by is told by [`Event::Table`].
    Defined(Arc<Table>),
    /// A row came. The rows are in the decoder: [`Change::table`] names theirs.
    Change(Change),
    /// Tables were emptied, in this order.
    Truncate {
        /// Their ids.
        tables: Vec<u32>,
        /// With CASCADE.
        cascade: bool,
        /// With RESTART IDENTITY.
        restart_identity: bool,
    },
    /// Known, and of no consequence to rows (type names, origins, logical messages, our heartbeat).
    Nothing,
}

/// A row's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `Insert`, `Update` or `Delete`.
    pub op: Op,
    /// The table's id.
    pub table: u32,
    /// The new row; of a delete none.
    pub new: Option<Row>,
    /// The old row: with [`OldRow::Key`] only identity columns have values, the others are `Null`.
    pub old: Option<(OldRow, Row)>,
}

/// How much of the old row there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OldRow {
    /// The identity columns.
    Key,
    /// Every column (REPLICA IDENTITY FULL).
    Full,
}

/// The kinds of rows in the lake, by their `_op`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Op {
    /// `S`: of a snapshot.
    #[serde(rename = "S")]
    Snapshot,
    /// `I`
    #[serde(rename = "I")]
    Insert,
    /// `U`
    #[serde(rename = "U")]
    Update,
    /// `D`
    #[serde(rename = "D")]
    Delete,
    /// `T`: the table was emptied here.
    #[serde(rename = "T")]
    Truncate,
    /// `R`: read again by key.
    #[serde(rename = "R")]
    Repair,
}

impl Op {
    /// The letter in `_op`.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Snapshot => "S",
            Self::Insert => "I",
            Self::Update => "U",
            Self::Delete => "D",
            Self::Truncate => "T",
            Self::Repair => "R",
        }
    }
}

/// A value on its way into a typed column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// For `Boolean`.
    Boolean(bool),
    /// For `Int16`, `Int32`, `Int64`.
    Int(i64),
    /// For `Float32`.
    Float32(f32),
    /// For `Float64`.
    Float64(f64),
    /// For `Date`: days since 1970-01-01.
    Date(i32),
    /// For `Timestamp`, `TimestampUtc`: microseconds since 1970-01-01.
    Micros(i64),
    /// For `Decimal`: unscaled.
    Decimal(i128),
    /// For `Binary`; for `Uuid` 16 bytes.
    Bytes(Cow<'a, [u8]>),
    /// For `Text`.
    Text(Cow<'a, str>),
    /// The typed column cannot hold it: NULL there, and this text, as the source prints it, in `_exact`. Of a
    /// `Text` column, whose value is not UTF-8: its bytes as `\x` and hex digits.
    Exact(Cow<'a, str>),
}

/// How a cell in binary form is a column's value, for columns where that takes no more than to look at it:
/// what [`Decode::value`] would say, without asking it for each. Numbers are big-endian.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Plain {
    /// One byte, 0 or 1.
    Boolean,
    /// Two bytes.
    Int16,
    /// Four bytes.
    Int32,
    /// Eight bytes.
    Int64,
    /// Four bytes, IEEE 754.
    Float32,
    /// Eight bytes, IEEE 754.
    Float64,
    /// Eight bytes: microseconds since a moment.
    Micros {
        /// That moment, in microseconds since 1970-01-01.
        zero: i64,
        /// What the typed column holds, in microseconds since 1970-01-01.
        within: Range<i64>,
    },
    /// Four bytes: days since a day.
    Days {
        /// That day, in days since 1970-01-01.
        zero: i64,
        /// What the typed column holds, in days since 1970-01-01.
        within: Range<i64>,
    },
    /// A decimal: how many groups, the power of 10,000 that the first stands for, 0 or 0x4000 if it is negative, digits
    /// after the point, two bytes each; then the groups, of four digits, two bytes each. Of up to 16 digits.
    Groups {
        /// Digits that the typed column holds.
        precision: u8,
        /// Digits after the point, here as there.
        scale: u8,
    },
    /// Sixteen bytes.
    Uuid,
    /// The bytes themselves.
    Bytes,
    /// UTF-8.
    Text,
    /// UTF-8 behind one byte, which is 1.
    Versioned,
}

impl Plain {
    /// The byte that stands before the value.
    #[inline]
    pub fn prefix(&self) -> Option<u8> {
        matches!(self, Self::Versioned).then_some(1)
    }

    /// The value; `None`: the bytes are none, or the typed column does not hold it.
    #[inline]
    pub fn value<'a>(&self, bytes: &'a [u8]) -> Option<Value<'a>> {
        Some(match self {
            Self::Boolean => match bytes {
                [0] => Value::Boolean(false),
                [1] => Value::Boolean(true),
                _ => return None,
            },
            Self::Int16 => Value::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Int32 => Value::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Int64 => Value::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
            Self::Float32 => Value::Float32(f32::from_be_bytes(bytes.try_into().ok()?)),
            Self::Float64 => Value::Float64(f64::from_be_bytes(bytes.try_into().ok()?)),
            Self::Micros { zero, within } => {
                let micros = i64::from_be_bytes(bytes.try_into().ok()?).checked_add(*zero)?;
                Value::Micros(within.contains(&micros).then_some(micros)?)
            }
            Self::Days { zero, within } => {
                Value::Date(Self::day(bytes.try_into().ok()?, *zero, within)?)
            }
            Self::Groups { precision, scale } => {
                Value::Decimal(Self::decimal(bytes, *precision, *scale)?.into())
            }
            Self::Uuid if bytes.len() == 16 => Value::Bytes(Cow::Borrowed(bytes)),
            Self::Uuid => return None,
            Self::Bytes => Value::Bytes(Cow::Borrowed(bytes)),
            Self::Text => Value::Text(Cow::Borrowed(std::str::from_utf8(bytes).ok()?)),
            Self::Versioned => {
                Value::Text(Cow::Borrowed(std::str::from_utf8(bytes.strip_prefix(&[1])?).ok()?))
            }
        })
    }

    /// The day that a cell of [`Plain::Days`] holds, since 1970-01-01; `None`: the typed column does not hold it.
    #[inline]
    pub fn day(cell: [u8; 4], zero: i64, within: &Range<i64>) -> Option<i32> {
        let days = zero + i64::from(i32::from_be_bytes(cell));
        i32::try_from(days).ok().filter(|_| within.contains(&days))
    }

    /// The number × 10^scale that a cell of [`Plain::Groups`] holds; `None`: none, or one that is not read so.
    #[inline]
    pub fn decimal(bytes: &[u8], precision: u8, scale: u8) -> Option<i64> {
        let (head, groups) = bytes.split_first_chunk::<8>()?;
        let field = |at: usize| i16::from_be_bytes([head[at], head[at + 1]]);
        let (count, weight, sign) = (field(0), field(2), field(4));
        let fits = (0..=4).contains(&count) && groups.len() == 2 * usize::try_from(count).ok()?;
        if !fits || !matches!(sign, 0 | 0x4000) || field(6) != i16::from(scale) {
            return None;
        }
        let mut digits = 0_i64;
        for group in groups.chunks_exact(2) {
            let group = u16::from_be_bytes([group[0], group[1]]);
            digits = digits * 10_000 + i64::from((group < 10_000).then_some(group)?);
        }
        // Of 16 digits and two more: within an i64.
        let power = 4 * (i32::from(weight) + 1 - i32::from(count)) + i32::from(scale);
        let unscaled = match power {
            _ if digits == 0 => 0,
            0..=2 => digits * POWERS[usize::try_from(power).ok()?],
            // By what is known here, which takes no division.
            -1 => digits / 10,
            -2 => digits / 100,
            -3 => digits / 1000,
            -16..-3 => digits / POWERS[usize::try_from(-power).ok()?],
            _ => return None,
        };
        let fits = POWERS.get(usize::from(precision)).is_none_or(|bound| unscaled < *bound);
        fits.then_some(if sign == 0 { unscaled } else { -unscaled })
    }
}

/// Of ten.
const POWERS: [i64; 19] = {
    let mut powers = [1; 19];
    let mut power = 1;
    while power < 19 {
        powers[power] = powers[power - 1] * 10;
        power += 1;
    }
    powers
};

/// Why bytes from the source cannot be read. Never skipped: the source stops (I16).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end early, or go on too long.
    #[error("{what} is cut short or too long")]
    Length {
        /// Which part of the message.
        what: &'static str,
    },
    /// A kind of message, tuple or value that is not known.
    #[error("{what} of unknown kind {kind:#04x}")]
    Kind {
        /// Which part.
        what: &'static str,
        /// The byte found.
        kind: u8,
    },
    /// A row of a table that was never described.
    #[error("a row of table {0}, whose columns were never sent")]
    Table(u32),
    /// A row with another number of columns than its table.
    #[error("a row of {found} columns for `{table}`, which has {expected}")]
    Columns {
        /// Qualified name.
        table: String,
        /// Columns of the table.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A value that its type does not allow.
    #[error("column `{column}` holds a value that is no {source_type}")]
    Value {
        /// The column's name.
        column: String,
        /// Its type.
        source_type: String,
    },
    /// A string that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Utf8 {
        /// Which part.
        what: &'static str,
    },
}

impl DecodeError {
    /// [`DecodeError::Length`], made only where there is one: made and dropped for every field it costs as much
    /// as reading them.
    #[cold]
    pub(crate) fn cut(what: &'static str) -> Self {
        Self::Length { what }
    }
}

/// Reads records of one source again. One for each journal reader: it remembers tables and types.
pub trait Decode: Send {
    /// What the record says.
    ///
    /// # Errors
    ///
    /// The record is none of this source's; nothing was remembered of it.
    fn decode(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Event, DecodeError>;

    /// What a record does to one row, and of which table, if the cells of one row say all of it: the row came, or became
    /// so where nothing is told of the old one, or has gone. Cheap: what more there is of the record is not looked at.
    fn whole(&self, kind: RecordKind, payload: &[u8]) -> Option<(Op, u32)> {
        let _ = (kind, payload);
        None
    }

    /// Reads the row of such a record, whose payload is that part of `bytes`, as the next row of `cells`: they point into
    /// `bytes`. False, and no row is added: the source left values out that it has ([`Cell::Unchanged`]).
    ///
    /// # Errors
    ///
    /// As [`Decode::decode`].
    fn cells(
        &self,
        bytes: &[u8],
        payload: Range<usize>,
        cells: &mut Cells,
    ) -> Result<bool, DecodeError> {
        let _ = (bytes, payload, cells);
        Ok(false)
    }

    /// The commit that this record is, if it is one. Cheap, and remembers nothing: readers look ahead with
    /// it, because a row's position is where its transaction's commit ends.
    fn commit(&self, kind: RecordKind, payload: &[u8]) -> Option<Commit>;

    /// Reads rows of a [`RowBatch::Rows`](super::RowBatch::Rows), from `at` on, until there are no more or `cells`, which has
    /// as many columns as `table`, is full. Gives where it stopped.
    ///
    /// # Errors
    ///
    /// The bytes are no rows of `table`.
    fn block(
        &self,
        table: &Table,
        batch: &[u8],
        at: usize,
        cells: &mut Cells,
    ) -> Result<usize, DecodeError>;

    /// Calls `each` with every row of a [`RowBatch::Rows`](super::RowBatch::Rows).
    ///
    /// # Errors
    ///
    /// The bytes are no rows of `table`, or `each` said so.
    fn rows(
        &self,
        table: &Table,
        batch: &[u8],
        each: &mut dyn FnMut(&Row) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let (mut cells, mut row) = (Cells::new(table.columns.len(), 1, usize::MAX), vec![]);
        let mut at = 0;
        while at < batch.len() {
            cells.clear();
            at = self.block(table, batch, at, &mut cells)?;
            row.clear();
            row.extend(cells.row(0));
            each(&row)?;
        }
        Ok(())
    }

    /// Reads one value. `bytes` is the payload or batch that the cell points into.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Value`].
    fn value<'a>(
        &self,
        column: &Column,
        cell: &Cell,
        bytes: &'a [u8],
    ) -> Result<Value<'a>, DecodeError>;

    /// How cells of the column in binary form can be read without [`Decode::value`]; `None`: only with it.
    fn plain(&self, column: &Column) -> Option<Plain> {
        let _ = column;
        None
    }

    /// The tables remembered, to continue after a restart from where the journal is cut.
    fn tables(&self) -> Vec<Arc<Table>>;
}
