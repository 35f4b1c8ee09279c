//! Source: pulls what the database holds and what changes in it.
//!
//! Takes the database's protocol. Gives [`Run`]s of records, as they were sent, to the journal, and
//! [`SnapshotChunk`]s of rows to seal. Keeps nothing.
//!
//! The rest of this file is the vocabulary in which records are read again after the journal:
//! [`Table`], [`Column`], [`Row`], [`Event`], [`Value`]. It knows no database; `postgres` fills it.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::units::{Point, Position, Timestamp};

pub mod postgres;

// ---- what the source gives to the journal ----

/// What a record holds. The byte stands in the journal's format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum RecordKind {
    /// A message of the database's change stream, as it was sent (PostgreSQL: one pgoutput message).
    Message = b'm',
    /// A [`Table`] as JSON, as the catalog had it when the message before this record arrived.
    Definition = b'd',
}

/// Consecutive records: whole transactions, or one piece of a transaction too large for one run.
///
/// Bytes: per record `u32 LE length of payload | u8 kind | payload`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Run {
    /// Whether transactions begin and end in it.
    pub piece: Piece,
    /// The framed records.
    pub bytes: Vec<u8>,
    /// Changes in it: rows inserted, updated, deleted, and one for each table of a TRUNCATE.
    pub changes: u64,
    /// The last commit in it. Present in `Whole` and `Last`.
    pub commit: Option<Commit>,
}

/// How a [`Run`] lies on transactions. The byte stands in the journal's format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Piece {
    /// One or more whole transactions.
    Whole = 0,
    /// The beginning of one transaction.
    First = 1,
    /// Neither its beginning nor its end.
    Middle = 2,
    /// Its end.
    Last = 3,
}

/// A commit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Commit {
    /// Where its commit record ends: the transaction's position.
    pub position: Position,
    /// Where its commit record begins: what BEGIN announces, by which a repeated transaction is known.
    pub begins: Position,
    /// The server's commit time.
    pub at: Timestamp,
    /// Transactions committed in the same run, this one included.
    pub transactions: u32,
}

impl Run {
    /// An empty run.
    pub fn new(piece: Piece) -> Self {
        Self { piece, bytes: vec![], changes: 0, commit: None }
    }

    /// Appends one record.
    pub fn push(&mut self, kind: RecordKind, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("PostgreSQL's messages are below 2 GiB");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(payload);
    }
}

/// Reads the records of a run's bytes, in order. `None` as an item: the bytes are not a run.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Option<(RecordKind, &[u8])>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = split_record(rest);
        rest = split.map_or(&[], |(_, _, after)| after);
        Some(split.map(|(kind, payload, _)| (kind, payload)))
    })
}

/// The first record, and what follows it. `None`: the bytes do not begin with a record.
pub fn split_record(bytes: &[u8]) -> Option<(RecordKind, &[u8], &[u8])> {
    let (head, body) = bytes.split_at_checked(5)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let (payload, after) = body.split_at_checked(usize::try_from(length).ok()?)?;
    let kind = match head[4] {
        b'm' => RecordKind::Message,
        b'd' => RecordKind::Definition,
        _ => return None,
    };
    Some((kind, payload, after))
}

/// How far the journal is fsynced, at the end of a whole transaction. Only this, or what is in the
/// ledger, is ever confirmed to the source.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Durable {
    /// After this change, at this position.
    pub point: Point,
    /// The last batch.
    pub batch: u64,
    /// Where the last commit record begins; see [`Commit::begins`].
    pub begins: Position,
}

/// Where the records go: the journal, seen from the source.
pub trait Keep: Send + Sync {
    /// Begins a session with the source: drops the torn tail of an unfinished transaction, and says
    /// what is durable. Transactions up to there that the server sends again are to be skipped.
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>>;

    /// Takes a run. Answers when it has been taken over (not yet durable); waits while the journal is
    /// full. Not cancel-safe: a caller keeps the future until it answers.
    fn append(&self, run: Run) -> BoxFuture<'_, Result<(), KeepError>>;

    /// The watermark, as it grows.
    fn durable(&self) -> tokio::sync::watch::Receiver<Durable>;
}

/// The journal can take no more, for good: the process ends and recovers.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal stopped: {0}")]
pub struct KeepError(pub String);

/// Which database, slot and history this box follows. Fact: [`ORIGIN_FACT`], recorded when the slot
/// is made; what differs from it later is a gap (DESIGN §4).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Origin {
    /// PostgreSQL's `system_identifier`.
    pub system_identifier: String,
    /// PostgreSQL's timeline.
    pub timeline: u32,
    /// The database's name.
    pub database: String,
    /// The slot's name.
    pub slot: String,
    /// The publication's name.
    pub publication: String,
    /// Where the slot begins, and the first snapshot stands.
    pub consistent_point: Position,
}

/// Key of the [`Origin`].
pub const ORIGIN_FACT: &str = "source/origin";

/// Key of the fact that a snapshot chunk is sealed, durable. Written by seal together with the chunk's
/// group, read by the source after a restart. Value: [`ChunkDone`].
pub fn chunk_fact(table_id: u32, chunk: u32) -> String {
    format!("{CHUNK_FACTS}{table_id:010}/{chunk:08}")
}

/// Prefix of all [`chunk_fact`]s.
pub const CHUNK_FACTS: &str = "seal/chunk/";

/// A sealed snapshot chunk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChunkDone {
    /// The position of the snapshot that it was read under.
    pub position: Position,
    /// Rows in it.
    pub rows: u64,
}

// ---- what the source gives to seal, for a snapshot ----

/// One part of one table, read under one exported snapshot.
#[derive(Debug)]
pub struct SnapshotChunk {
    /// The table as the catalog had it under the snapshot.
    pub table: Arc<Table>,
    /// Which part: dense from 0 within the table.
    pub number: u32,
    /// Parts of the table in all.
    pub chunks: u32,
    /// Where the snapshot stands in the log.
    pub position: Position,
    /// When the snapshot was taken.
    pub at: Timestamp,
    /// Batches of whole rows. Closed without [`RowBatch::End`] means that reading failed.
    pub rows: tokio::sync::mpsc::Receiver<RowBatch>,
}

/// A piece of a snapshot chunk.
#[derive(Debug)]
pub enum RowBatch {
    /// Rows as the database sent them (PostgreSQL: binary COPY tuples, whole ones, without header and trailer).
    Rows(Bytes),
    /// All rows of the chunk have been given; how many.
    End(u64),
}

// ---- tables ----

/// A table at one version of its schema: what `_schema/…/<version>.json` holds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Table {
    /// The database's own number for it (PostgreSQL: its OID).
    pub id: u32,
    /// Schema, as the catalog spells it.
    pub schema: String,
    /// Name, as the catalog spells it.
    pub name: String,
    /// Number of this version, from 1, given by seal; 0 before that.
    #[serde(default)]
    pub version: u32,
    /// Columns in the table's order, without dropped ones.
    pub columns: Vec<Column>,
    /// Names of the primary key's columns, in its order; empty without one.
    #[serde(default)]
    pub key: Vec<String>,
    /// What an UPDATE or DELETE names the old row by.
    pub identity: Identity,
    /// Types that the columns use and a fresh database lacks, in an order in which they can be created.
    #[serde(default)]
    pub types: Vec<TypeDefinition>,
}

/// What names the old row of a change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// The primary key.
    Default,
    /// A unique index: the columns with [`Column::identity`].
    Index,
    /// The whole old row.
    Full,
    /// Nothing.
    Nothing,
}

/// A column.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Column {
    /// Name, as the catalog spells it.
    pub name: String,
    /// The source's type as the source prints it: `numeric(12,2)`, `timestamp with time zone`, `public.mood`.
    pub source_type: String,
    /// The type's number in the source.
    pub type_id: u32,
    /// The type's modifier in the source, -1 if none.
    pub type_modifier: i32,
    /// What the lake's column holds.
    pub lake: LakeType,
    /// Whether it names the old row of a change.
    #[serde(default)]
    pub identity: bool,
    /// NOT NULL.
    #[serde(default)]
    pub not_null: bool,
    /// The default's expression, if the catalog was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `stored`, or the identity kind (`always`, `by default`), if generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
}

/// What a column is in Parquet (DESIGN §7).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LakeType {
    /// BOOLEAN
    Boolean,
    /// INT(16)
    Int16,
    /// INT(32)
    Int32,
    /// INT(64); PostgreSQL's oid too
    Int64,
    /// FLOAT
    Float32,
    /// DOUBLE
    Float64,
    /// DATE
    Date,
    /// TIMESTAMP(µs), no zone
    Timestamp,
    /// TIMESTAMP(µs, UTC)
    TimestampUtc,
    /// DECIMAL(precision, scale), precision 1–38, scale 0–precision
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// BINARY
    Binary,
    /// FIXED_LEN_BYTE_ARRAY(16), UUID
    Uuid,
    /// UTF8: as the source prints the value
    Text,
}

/// A type of the source that restore has to create.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TypeDefinition {
    /// The type's number in the source.
    pub id: u32,
    /// Qualified and quoted, as SQL spells it.
    pub name: String,
    /// The statement that creates it.
    pub create: String,
}

impl Table {
    /// `schema.table`, as the source spells it: for people and the ledger.
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether two versions describe the same columns, key and identity (their numbers aside).
    pub fn same_shape(&self, other: &Self) -> bool {
        let plain = |table: &Self| Self { version: 0, ..table.clone() };
        plain(self) == plain(other)
    }
}

// ---- rows and values ----

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
    /// The typed column cannot hold it: NULL there, and this text, as the source prints it, in `_exact`.
    Exact(Cow<'a, str>),
}

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

/// Reads records of one source again. One for each journal reader: it remembers tables and types.
pub trait Decode: Send {
    /// What the record says.
    ///
    /// # Errors
    ///
    /// The record is none of this source's; nothing was remembered of it.
    fn decode(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Event, DecodeError>;

    /// The commit that this record is, if it is one. Cheap, and remembers nothing: readers look ahead with
    /// it, because a row's position is where its transaction's commit ends.
    fn commit(&self, kind: RecordKind, payload: &[u8]) -> Option<Commit>;

    /// Splits a [`RowBatch::Rows`]: appends each row's cells, and calls `each` with them.
    ///
    /// # Errors
    ///
    /// The bytes are no rows of `table`, or `each` said so.
    fn rows(
        &self,
        table: &Table,
        batch: &[u8],
        each: &mut dyn FnMut(&Row) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError>;

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

    /// The tables remembered, to continue after a restart from where the journal is cut.
    fn tables(&self) -> Vec<Arc<Table>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_back_its_records() {
        let mut run = Run::new(Piece::Whole);
        run.push(RecordKind::Message, b"B");
        run.push(RecordKind::Definition, b"");
        let read: Vec<_> = records(&run.bytes).collect();
        assert_eq!(
            read,
            [Some((RecordKind::Message, &b"B"[..])), Some((RecordKind::Definition, &b""[..]))]
        );
    }

    #[test]
    fn bytes_that_are_no_run_end_with_none() {
        let mut run = Run::new(Piece::Whole);
        run.push(RecordKind::Message, b"abc");
        let cut = &run.bytes[..run.bytes.len() - 1];
        assert_eq!(records(cut).collect::<Vec<_>>(), [None]);
    }
}
