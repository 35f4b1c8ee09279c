//! Journal: keeps what the source sent until the lake has it.
//!
//! Takes [`Run`]s. Gives [`Batch`]es in order, and the [`Durable`] watermark. Keeps segment files
//! (the truth) and a sled index (their queryable image, rebuilt from them at need).
//!
//! The folder of one source, `<data_dir>/journal/<source>/`:
//!
//! ```text
//! seg-<number>.log   segments; the format stands in `record`
//! index/             sled: the facts, checkpointed
//! index.bad-<n>/     indexes that were set aside; two are kept
//! index.busy         the index is being written to
//! reserve            room given back when the disk is full
//! lock               held by the process
//! ```
//!
//! The way in: `keep` (waits for room) → `queue` → `writer` (compresses; gathers a group, seals,
//! writes, syncs, publishes) → `segment`. The way out: `reader`; of the last batches, `recent`. At the
//! start: `recover`, `tail`. Beside them: `upkeep` (checkpoints, unlinks), `scrub` (reads closed segments again), `quota`,
//! `reserve`, `inspect` (for people).

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod record;
mod watermark;
mod catalogue;
mod quota;
mod cipher;
mod pack;
mod segment;
mod scan;
mod find;
mod tail;
mod recover;
mod verify;
mod store;
mod reserve;
mod queue;
mod keep;
mod writer;
mod upkeep;
mod scrub;
mod open;
mod begin;
mod recent;
mod reader;
mod rewind;
#[cfg(feature = "sim")]
pub(crate) mod hand;
pub mod inspect;
pub mod memory;
#[cfg(test)]
mod tests;

pub use begin::begin_at;

/// Whether a file of a journal's folder is a segment of it.
pub fn is_segment(path: &std::path::Path) -> bool {
    segment::file_number(path).is_some()
}

pub use crate::source::{
    Attribute, Before, CHUNK_FACTS, Cell, Cells, Change, ChunkDone, Column, Commit, Decode,
    DecodeError, Domain, Durable, Event, Identity, Keep, KeepError, LakeType, ORIGIN_FACT, OldRow,
    Op, Origin, Piece, Place, Plain, Reading, RecordKind, Row, RowBatch, Run, Sight, SnapshotChunk,
    Table, TypeDefinition, Value, chunk_fact, chunk_facts, fate, gap, generator, large_object, own,
    records, reread, split_record,
};
pub use store::THREADS as INDEX_THREADS;

use crate::{
    config::Secret,
    disk::device,
    error::{Cause, Classified},
    units::{Position, Sequence},
};

/// What a journal is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder, made if it is not there.
    pub dir: PathBuf,
    /// The journal key, 32 bytes.
    pub key: Secret,
    /// Limit of all segment files, in bytes.
    pub max_bytes: u64,
    /// Size at which a segment is closed, in bytes; an eighth of `max_bytes` if that is less.
    pub segment_bytes: u64,
}

/// The journal of one source: takes runs ([`Keep`]) and facts ([`Facts`](crate::facts::Facts)), and
/// gives batches back ([`Journal::reader`]).
pub struct Journal {
    shared: Arc<keep::Shared>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// A durable [`Run`], with its place in the journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Batch {
    /// Dense number within the source's journal, from 1; of torn batches, which readers never see, too.
    pub number: u64,
    /// How it lies on transactions.
    pub piece: Piece,
    /// Number of its first change; where it has none, of the next.
    pub first: Sequence,
    /// How many changes it holds.
    pub changes: u64,
    /// The last commit in it.
    pub commit: Option<Commit>,
    /// For `First`, `Middle` and `Last`: the commit that ends the transaction.
    pub ends: Option<Commit>,
    /// The framed records: read them with [`records`].
    pub bytes: Vec<u8>,
}

/// Reads batches in order, whole transactions only, waiting for more.
pub trait ReadBatches: Send {
    /// The next batch, or `None` if none became durable within `wait`.
    /// A `First` is given only when its `Last` is durable too.
    ///
    /// # Errors
    ///
    /// The batch is there but damaged: the error names its range.
    fn next(&mut self, wait: Duration) -> Result<Option<Batch>, JournalError>;

    /// The bytes of the last batch are gone from memory.
    fn let_go(&mut self) {}
}

/// The batches that damage took, as far as known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Batches {
    /// None of them.
    None,
    /// From this one through this one.
    Range(u64, u64),
    /// Some from this one through this one.
    Some(u64, u64),
    /// All from this one on, in this segment.
    From(u64),
    /// All of this segment.
    Segment,
}

/// Why the journal cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The device refused a write or an fsync. The process must end: nothing unsynced counts (I6).
    #[error("write journal {path}: {why}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        why: std::io::Error,
    },
    /// A file cannot be read.
    #[error("read journal {path}: {why}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        why: std::io::Error,
    },
    /// No room on the file system.
    #[error("journal {path}: the file system is full")]
    Full {
        /// The folder.
        path: String,
    },
    /// A frame's checksum or seal does not match, and more frames follow it.
    #[error("journal {path}: damage from byte {from} to {to} (batches {batches}): {what}")]
    Damaged {
        /// The segment.
        path: String,
        /// First bad byte.
        from: u64,
        /// First good byte after it.
        to: u64,
        /// The batches in the range, as far as known.
        batches: Batches,
        /// What does not match.
        what: String,
    },
    /// The key opens nothing in it.
    #[error("journal {path}: written with another key")]
    Key {
        /// The segment.
        path: String,
    },
    /// Another process has the folder.
    #[error("journal {path}: in use by another process")]
    Held {
        /// The folder.
        path: String,
    },
    /// It was to begin elsewhere, and has begun already.
    #[error("journal {path}: it has begun already, and holds changes up to {held}")]
    Begun {
        /// The folder.
        path: String,
        /// Where it stands.
        held: Position,
    },
    /// The journal stopped earlier; its first error said why.
    #[error("journal stopped: {0}")]
    Stopped(String),
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Range(first, last) if first == last => write!(f, "{first}"),
            Self::Range(first, last) => write!(f, "{first}–{last}"),
            Self::Some(first, last) => write!(f, "some of {first}–{last}"),
            Self::From(first) => write!(f, "from {first} on"),
            Self::Segment => f.write_str("all of this segment"),
        }
    }
}

impl Classified for JournalError {
    fn cause(&self) -> Cause {
        match self {
            Self::Write { .. } | Self::Read { .. } | Self::Stopped(_) => Cause::DiskFailed,
            Self::Full { .. } => Cause::DiskFull,
            Self::Damaged { .. } => Cause::JournalDamaged,
            Self::Key { .. } => Cause::JournalKey,
            Self::Held { .. } | Self::Begun { .. } => Cause::Config,
        }
    }
}
