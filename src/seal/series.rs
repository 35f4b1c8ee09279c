//! The objects of one table within one epoch or one snapshot chunk: usually one, several where the rows
//! are too many, too large, of two dates, or of two versions of the schema.
//!
//! **Invariant:** one object holds one version of the schema, one date, and a range of changes that no
//! other object of the table overlaps.

use std::sync::Arc;

use super::{
    Op, SealError, Table,
    cut::day,
    encode::{BlockIn, Encode, LARGE_ROW_BYTES, Layout, RowIn},
    key::Stem,
    object::{Draft, Maker},
};
use crate::{
    heap,
    units::{Position, Sequence, Timestamp},
};

/// What the objects cover.
#[derive(Clone, Copy, Debug)]
pub(super) enum Covers {
    /// Changes of an epoch.
    Changes,
    /// A chunk of a snapshot.
    Chunk {
        /// Where the snapshot stands.
        position: Position,
        /// Which chunk.
        chunk: u32,
        /// Whether its rows are read again.
        again: bool,
    },
}

/// The objects so far, and the one that is open.
pub(super) struct Series {
    covers: Covers,
    object_bytes: u64,
    open: Option<(Box<dyn Encode>, Timestamp)>,
    done: Vec<Draft>,
}

impl Series {
    /// No objects yet. One is ended when it has `object_bytes`.
    pub(super) fn new(covers: Covers, object_bytes: u64) -> Self {
        Self { covers, object_bytes, open: None, done: vec![] }
    }

    /// An object of `table` even if no row comes: an empty table is seen too.
    pub(super) fn declare(&mut self, maker: &Maker, table: &Arc<Table>, at: Timestamp, op: Op) {
        self.open(maker, table, at, false).declare(op);
    }

    /// Adds a row of `table`, committed at `at`.
    pub(super) fn append(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        row: &RowIn<'_>,
    ) -> Result<(), SealError> {
        let large = row.weight() >= LARGE_ROW_BYTES;
        self.fitting(maker, table, at, large)?.append(maker, row)
    }

    /// Adds rows of `table`, committed on the day of `at`, none of them large.
    pub(super) fn append_block(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        rows: &BlockIn<'_>,
    ) -> Result<(), SealError> {
        self.fitting(maker, table, at, false)?.append_block(maker, rows)
    }

    /// The object that the next rows go into.
    fn fitting(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        large: bool,
    ) -> Result<&mut dyn Encode, SealError> {
        let fits = self.open.as_ref().is_none_or(|(open, date)| {
            (!large || open.layout() == Layout::Large)
                && day(*date) == day(at)
                && (Arc::ptr_eq(open.table(), table) || open.table().version == table.version)
                && open.encoded() < self.object_bytes
        });
        if !fits {
            self.roll(maker)?;
        }
        Ok(self.open(maker, table, at, large))
    }

    /// The open object, made if there is none.
    fn open(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        large: bool,
    ) -> &mut dyn Encode {
        let layout = if large { Layout::Large } else { Layout::Rows };
        if large && self.open.is_none() {
            heap::give_back();
        }
        let (open, _) = self.open.get_or_insert_with(|| ((maker.encode)(maker, table, layout), at));
        &mut **open
    }

    /// Writes what the open object holds in memory.
    pub(super) fn write_all(&mut self, maker: &Maker) -> Result<(), SealError> {
        self.open.as_mut().map_or(Ok(()), |(open, _)| open.write_all(maker))
    }

    /// Ends the open object as a part: more of the table may follow.
    pub(super) fn roll(&mut self, maker: &Maker) -> Result<(), SealError> {
        let part = u32::try_from(self.done.len() + 1).ok();
        self.finish(maker, part)
    }

    /// Ends the open object as the last one.
    pub(super) fn end(mut self, maker: &Maker) -> Result<Vec<Draft>, SealError> {
        let part = u32::try_from(self.done.len() + 1).ok().filter(|part| *part > 1);
        self.finish(maker, part)?;
        Ok(self.done)
    }

    /// Bytes of all its objects so far.
    pub(super) fn encoded(&self) -> u64 {
        let done: u64 = self.done.iter().map(|draft| draft.object.bytes).sum();
        done + self.open.as_ref().map_or(0, |(open, _)| open.encoded())
    }

    /// As [`Encode::memory`]; what is done holds none.
    pub(super) fn memory(&self) -> (usize, usize) {
        self.open.as_ref().map_or((0, 0), |(open, _)| open.memory())
    }

    /// Whether an object is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the open object has a file.
    pub(super) fn has_file(&self) -> bool {
        self.open.as_ref().is_some_and(|(open, _)| open.has_file())
    }

    /// The last change in the open object.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.open.as_ref().and_then(|(open, _)| open.range()).map(|(_, last)| last)
    }

    fn finish(&mut self, maker: &Maker, part: Option<u32>) -> Result<(), SealError> {
        let Some((open, at)) = self.open.take() else { return Ok(()) };
        let stem = match self.covers {
            Covers::Chunk { position, chunk, again: false } => {
                Stem::Snapshot { position, chunk, part }
            }
            Covers::Chunk { position, chunk, again: true } => {
                Stem::Repair { position, chunk, part }
            }
            Covers::Changes => {
                let none = (Sequence(0), Sequence(0));
                let (from, to) = open.range().unwrap_or(none);
                Stem::Changes { from, to, part }
            }
        };
        let table = Arc::clone(open.table());
        let key = |sha256: &str| maker.keys.data(&maker.source, &table, at, stem, sha256);
        self.done.push(open.finish(maker, &key)?);
        Ok(())
    }
}
