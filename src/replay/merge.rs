//! The changes of one epoch in the order of the source: a merge of its objects by `_sequence`.
//!
//! Of each table one object is open at a time; all of them together hold a bounded number of bytes,
//! plus one row each.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    ReplayError,
    fetch::Fetcher,
    read::{BATCH_BYTES, LakeFile, Rows},
};
use crate::ledger::EntryObject;

/// A table's objects in one epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Track {
    /// The table's id.
    pub table: u32,
    /// The version of its schema, for files that do not say theirs.
    pub version: u32,
    /// In order.
    pub objects: Vec<EntryObject>,
}

/// The merge, standing at a row.
#[derive(Debug)]
pub struct Merge<'a> {
    fetcher: &'a Fetcher,
    batch_bytes: usize,
    lanes: Vec<Lane>,
    /// The next row of each lane that has one.
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

#[derive(Debug)]
struct Lane {
    track: Track,
    objects: VecDeque<EntryObject>,
    key: String,
    file: Option<LakeFile>,
    rows: Option<Rows>,
    at: usize,
    last: u64,
}

/// Where the merge stands.
#[derive(Clone, Copy, Debug)]
pub struct Here<'a> {
    /// The table's id.
    pub table: u32,
    /// The version of the row's file.
    pub version: u32,
    /// The batch that the row is in.
    pub rows: &'a Rows,
    /// Its place there.
    pub row: usize,
}

impl<'a> Merge<'a> {
    /// Stands at the first row.
    ///
    /// # Errors
    ///
    /// An object cannot be fetched or read.
    pub async fn new(fetcher: &'a Fetcher, tracks: Vec<Track>) -> Result<Self, ReplayError> {
        let batch_bytes = (OPEN_BYTES / tracks.len().max(1)).clamp(BATCH_BYTES_MIN, BATCH_BYTES);
        let lanes = tracks.into_iter().map(|track| async move {
            let objects = track.objects.iter().cloned().collect();
            let key = String::new();
            let mut lane = Lane { track, objects, key, file: None, rows: None, at: 0, last: 0 };
            lane.load(fetcher, batch_bytes).await?;
            Ok::<_, ReplayError>(lane)
        });
        let lanes: Vec<Lane> = stream::iter(lanes).buffered(FETCHES).try_collect().await?;
        let mut merge = Self { fetcher, batch_bytes, lanes, heap: BinaryHeap::new() };
        for lane in 0..merge.lanes.len() {
            merge.push(lane)?;
        }
        Ok(merge)
    }

    /// The row that it stands at, or `None` after the last.
    pub fn here(&self) -> Option<Here<'_>> {
        let Reverse((_, lane)) = self.heap.peek()?;
        let lane = &self.lanes[*lane];
        let rows = lane.rows.as_ref()?;
        let version = lane.file.as_ref().and_then(LakeFile::version).unwrap_or(lane.track.version);
        Some(Here { table: lane.track.table, version, rows, row: lane.at })
    }

    /// Goes to the next row.
    ///
    /// # Errors
    ///
    /// As [`Merge::new`].
    pub async fn advance(&mut self) -> Result<(), ReplayError> {
        let Some(Reverse((_, at))) = self.heap.pop() else { return Ok(()) };
        let lane = &mut self.lanes[at];
        lane.at += 1;
        if lane.rows.as_ref().is_none_or(|rows| lane.at >= rows.len()) {
            lane.load(self.fetcher, self.batch_bytes).await?;
        }
        self.push(at)
    }

    fn push(&mut self, at: usize) -> Result<(), ReplayError> {
        let lane = &mut self.lanes[at];
        let Some(rows) = &lane.rows else { return Ok(()) };
        let sequence = rows.meta(lane.at).sequence;
        if sequence <= lane.last {
            return Err(ReplayError::object(
                &lane.key,
                "its rows are not in the order of `_sequence`",
            ));
        }
        lane.last = sequence;
        self.heap.push(Reverse((sequence, at)));
        Ok(())
    }
}

impl Lane {
    /// Reads the next batch that has rows, from the next object if need be.
    async fn load(&mut self, fetcher: &Fetcher, batch_bytes: usize) -> Result<(), ReplayError> {
        self.at = 0;
        self.rows = None;
        loop {
            if let Some(file) = &mut self.file {
                match file.next_rows()? {
                    Some(rows) if rows.is_empty() => continue,
                    Some(rows) => {
                        self.rows = Some(rows);
                        return Ok(());
                    }
                    None => self.file = None,
                }
            }
            let Some(object) = self.objects.pop_front() else { return Ok(()) };
            self.file = Some(fetcher.rows(&object, batch_bytes).await?);
            self.key = object.key;
        }
    }
}

/// What the batches of all open objects may take together.
const OPEN_BYTES: usize = 96 << 20;
const BATCH_BYTES_MIN: usize = 64 << 10;
/// Objects fetched at once.
const FETCHES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{Folder, Sample, row};

    fn write(folder: &Folder, key: &str, sequences: &[u64]) -> EntryObject {
        let values = [Some("1"), None, None, None, None, None, None, None, None];
        let rows: Vec<_> = sequences.iter().map(|at| row("I", *at, 9, &values)).collect();
        Sample::new().write(&folder.0.join(key), &rows);
        folder.object(key)
    }

    async fn order(fetcher: &Fetcher, tracks: Vec<Track>) -> Result<Vec<(u32, u64)>, ReplayError> {
        let mut merge = Merge::new(fetcher, tracks).await?;
        let mut order = vec![];
        while let Some(here) = merge.here() {
            order.push((here.table, here.rows.meta(here.row).sequence));
            merge.advance().await?;
        }
        Ok(order)
    }

    #[tokio::test]
    async fn changes_of_all_tables_come_in_the_order_of_the_source() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let fetcher = Fetcher::new(folder.lake(), &dir.path().join("work")).unwrap();
        let track = |table, objects| Track { table, version: 1, objects };
        let one = vec![
            write(&folder, "a", &[1, 4, 5]),
            write(&folder, "e", &[]),
            write(&folder, "b", &[8]),
        ];
        let two = vec![write(&folder, "c", &[2, 3, 7])];
        let order_of = order(&fetcher, vec![track(1, one), track(2, two), track(3, vec![])]).await;
        let expected = [(1, 1), (2, 2), (2, 3), (1, 4), (1, 5), (2, 7), (1, 8)];
        assert_eq!(order_of.unwrap(), expected);
        let swapped = vec![write(&folder, "b", &[8]), write(&folder, "a", &[1])];
        let refused = order(&fetcher, vec![track(1, swapped)]).await;
        assert!(matches!(refused, Err(ReplayError::Object { .. })));
    }
}
