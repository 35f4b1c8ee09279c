//! Source: pulls what the database holds and what changes in it.
//!
//! Takes the database's protocol. Gives [`Run`]s of records, as they were sent, to the journal, and
//! [`SnapshotChunk`]s of rows to seal. Keeps nothing.
//!
//! What else it has is the vocabulary in which records are read again after the journal:
//! [`Table`], [`Column`], [`Row`], [`Event`], [`Value`]. It knows no database; `postgres` fills it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    heap::large::Turn,
    units::{Point, Position, Timestamp},
};

mod cells;
pub mod digest;
pub mod fate;
pub mod gap;
pub mod generator;
pub mod large_object;
pub mod order;
pub mod own;
pub mod postgres;
pub mod reread;
mod rows;
mod table;

pub use cells::{Cells, Place};
pub use reread::{Reading, Sight};
pub use rows::{Cell, Change, Decode, DecodeError, Event, OldRow, Op, Plain, Row, Value};
pub use table::{Attribute, Before, Column, Domain, Identity, LakeType, Table, TypeDefinition};

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
    /// The last commit in it. Present in `Whole` and `Last`. In a run without a transaction of the server's it is a
    /// mark: none of ours ends after the ones before it and up to there.
    pub commit: Option<Commit>,
    /// Until its bytes are in the log: whose turn it is, if they are many.
    pub turn: Turn,
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
    /// Transactions committed in the same run, this one included; of a mark 0.
    pub transactions: u32,
}

impl Run {
    /// An empty run.
    pub fn new(piece: Piece) -> Self {
        Self { piece, bytes: vec![], changes: 0, commit: None, turn: Turn::default() }
    }

    /// Appends one record.
    pub fn push(&mut self, kind: RecordKind, payload: &[u8]) {
        self.bytes.extend_from_slice(&record_head(kind, payload));
        self.bytes.extend_from_slice(payload);
    }

    /// Puts one record before all that are in it.
    pub fn put_before(&mut self, kind: RecordKind, payload: &[u8]) {
        let head = record_head(kind, payload);
        self.bytes.splice(..0, head.iter().chain(payload).copied());
    }
}

fn record_head(kind: RecordKind, payload: &[u8]) -> [u8; 5] {
    let length = u32::try_from(payload.len()).expect("PostgreSQL's messages are below 2 GiB");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind as u8]
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
    /// The last commit's time; 0 where it is not known.
    pub at: Timestamp,
    /// Transactions that the journal ever made durable, over all starts.
    pub transactions: u64,
}

impl Durable {
    /// Whether a mark is the last thing that is durable, and no transaction.
    pub fn is_mark(&self) -> bool {
        // A commit record takes more than a byte.
        self.begins.0 + 1 >= self.point.position.0
    }
}

/// Where the records go: the journal, seen from the source.
pub trait Keep: Send + Sync {
    /// Begins a session with the source: drops the torn tail of an unfinished transaction, and says
    /// what is durable. Transactions up to there that the server sends again are to be skipped.
    fn session(&self) -> BoxFuture<'_, Result<Durable, KeepError>>;

    /// Waits until there is room for a run of so many bytes, for who does not want to wait with it in its hand.
    fn room(&self, bytes: u64) -> BoxFuture<'_, Result<(), KeepError>>;

    /// Takes a run. Answers when it has been taken over (not yet durable); waits while the journal is
    /// full. Not cancel-safe: a caller keeps the future until it answers.
    fn append(&self, run: Run) -> BoxFuture<'_, Result<(), KeepError>>;

    /// The watermark, as it grows.
    fn durable(&self) -> tokio::sync::watch::Receiver<Durable>;

    /// Told when the watermark has grown: for one who waits. (Who waits at a watch channel is woken in an order that
    /// chance decides, and a simulation is to be a run.)
    fn grown(&self) -> &tokio::sync::Notify;

    /// Whether it has lost what the lake does not have yet: nothing more is to be confirmed, and a new
    /// session is to ask for it again.
    fn has_lost(&self) -> bool {
        false
    }

    /// The end of the last whole transaction before what it has lost; `None` if it has lost nothing.
    fn whole(&self) -> BoxFuture<'_, Result<Option<Durable>, KeepError>> {
        Box::pin(async { Ok(None) })
    }

    /// Goes on at `to`, as [`Keep::whole`] gave it: all after it will come again.
    fn rewind(&self, to: Durable) -> BoxFuture<'_, Result<Durable, KeepError>> {
        Box::pin(
            async move { Err(KeepError(format!("it does not go back to {}", to.point.position))) },
        )
    }
}

/// The journal can take no more, for good: the process ends and recovers.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal stopped: {0}")]
pub struct KeepError(pub String);

/// Which database, slot and history this box follows. Fact: [`ORIGIN_FACT`], recorded when the slot
/// is made, or taken over from a lost box; what differs from it later is a gap (DESIGN §4).
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
    /// The name of the second publication, of inserts only; absent beside an operator's publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Where the slot begins, and the first snapshot stands.
    pub consistent_point: Position,
    /// Whether this box made the slot, there: no crash of the server takes it back to before that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
}

/// Key of the [`Origin`].
pub const ORIGIN_FACT: &str = "source/origin";

/// Key of the fact that a snapshot chunk is sealed, durable. Written by seal together with the chunk's
/// group, read by the source after a restart. Value: [`ChunkDone`].
pub fn chunk_fact(table_id: u32, chunk: u32) -> String {
    format!("{}{chunk:08}", chunk_facts(table_id))
}

/// Prefix of a table's [`chunk_fact`]s.
pub fn chunk_facts(table_id: u32) -> String {
    format!("{CHUNK_FACTS}{table_id:010}/")
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
    /// What it is read for.
    pub reading: Reading,
    /// Batches of whole rows. Closed without [`RowBatch::End`] means that reading failed.
    pub rows: tokio::sync::mpsc::Receiver<RowBatch>,
}

/// A piece of a snapshot chunk.
#[derive(Debug)]
pub enum RowBatch {
    /// Rows as the database sent them (PostgreSQL: binary COPY tuples, whole ones, without header and trailer; each bare, or
    /// in the CopyData message that it came in).
    Rows(Bytes),
    /// As [`RowBatch::Rows`]: rows that are gone, with NULL in all but their keys.
    Gone(Bytes),
    /// All rows of the chunk have been given; how many.
    End(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_back_its_records() {
        let mut run = Run::new(Piece::Whole);
        run.push(RecordKind::Definition, b"");
        run.put_before(RecordKind::Message, b"B");
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
