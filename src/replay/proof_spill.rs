//! Records of many tables on disk, so that a table is looked at in parts that fit in memory (P4).
//!
//! One file, whose name is gone as soon as it is made: nothing of it stays, however the process ends. It holds
//! records of the lake's objects, as open as those lie beside it. A record begins with a [`Hash`], whose first
//! byte says in which part it is; it is framed by its length, `u32 LE`. A part that is too large is read in
//! several passes, each over the records whose second byte belongs to it.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::ReplayError;
use crate::{disk, source::digest::Hash};

/// The file.
#[derive(Debug)]
pub(super) struct Spill {
    file: File,
    path: PathBuf,
    end: u64,
    heaps: BTreeMap<Heap, Parts>,
}

/// Whose records: of the lake's rows, or of the database's, by the table's id.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Heap {
    Lake(u32),
    Source(u32),
}

#[derive(Debug)]
struct Parts {
    /// What waits to be written.
    open: Vec<Vec<u8>>,
    /// Where the blocks of each part lie: offset and length.
    blocks: Vec<Vec<(u64, usize)>>,
}

impl Spill {
    /// In this folder.
    pub(super) fn new(dir: &Path) -> Result<Self, ReplayError> {
        let path = dir.join("rows");
        let failed = |why| ReplayError::file(&path, why);
        let file = disk::create(&path).map_err(failed)?;
        disk::remove(&path).map_err(failed)?;
        Ok(Self { file, path, end: 0, heaps: BTreeMap::new() })
    }

    /// Begins a heap anew, for about so many records.
    pub(super) fn begin(&mut self, heap: Heap, records: u64) {
        let parts = if records > SMALL_RECORDS { PARTS } else { 1 };
        self.begin_parts(heap, parts);
    }

    /// Begins a heap that is divided as another one is.
    pub(super) fn begin_like(&mut self, heap: Heap, other: Heap) {
        self.begin_parts(heap, self.parts(other));
    }

    fn begin_parts(&mut self, heap: Heap, parts: usize) {
        let parts = Parts { open: vec![vec![]; parts], blocks: vec![vec![]; parts] };
        self.heaps.insert(heap, parts);
    }

    /// Appends a record, which begins with its hash.
    pub(super) fn push(&mut self, heap: Heap, record: &[u8]) -> Result<(), ReplayError> {
        let Some(parts) = self.heaps.get_mut(&heap) else { return Ok(()) };
        let part = usize::from(record.first().copied().unwrap_or(0)) % parts.open.len();
        let open = &mut parts.open[part];
        let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
        open.extend_from_slice(&length.to_le_bytes());
        open.extend_from_slice(record);
        match open.len() >= BLOCK_BYTES {
            true => self.write(heap, part),
            false => Ok(()),
        }
    }

    /// Writes what waits, so that it takes no memory.
    pub(super) fn settle(&mut self, heap: Heap) -> Result<(), ReplayError> {
        (0..self.parts(heap)).try_for_each(|part| self.write(heap, part))
    }

    fn write(&mut self, heap: Heap, part: usize) -> Result<(), ReplayError> {
        let Some(parts) = self.heaps.get_mut(&heap) else { return Ok(()) };
        let block = std::mem::take(&mut parts.open[part]);
        if block.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all_at(&block, self.end);
        written.map_err(|why| ReplayError::file(&self.path, why))?;
        parts.blocks[part].push((self.end, block.len()));
        self.end += block.len() as u64;
        Ok(())
    }

    /// How many parts a heap has.
    pub(super) fn parts(&self, heap: Heap) -> usize {
        self.heaps.get(&heap).map_or(0, |parts| parts.blocks.len())
    }

    /// In how many passes a part is read.
    pub(super) fn passes(&self, heap: Heap, part: usize) -> usize {
        let parts = self.heaps.get(&heap).and_then(|parts| parts.blocks.get(part));
        let bytes: usize = parts.into_iter().flatten().map(|(_, length)| length).sum();
        bytes.div_ceil(PASS_BYTES).clamp(1, 256)
    }

    /// The records of one pass, framed. Of a heap that is settled.
    pub(super) fn read(
        &self,
        heap: Heap,
        part: usize,
        (pass, passes): (usize, usize),
    ) -> Result<Vec<u8>, ReplayError> {
        let parts = self.heaps.get(&heap).and_then(|parts| parts.blocks.get(part));
        let mut kept = vec![];
        for (offset, length) in parts.into_iter().flatten() {
            let mut block = vec![0; *length];
            let read = self.file.read_exact_at(&mut block, *offset);
            read.map_err(|why| ReplayError::file(&self.path, why))?;
            if passes == 1 {
                kept.append(&mut block);
                continue;
            }
            for record in records(&block) {
                if usize::from(record.get(1).copied().unwrap_or(0)) % passes == pass {
                    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
                    kept.extend_from_slice(&length.to_le_bytes());
                    kept.extend_from_slice(record);
                }
            }
        }
        Ok(kept)
    }

    /// Forgets a heap. Its room on disk is given back at the end.
    pub(super) fn forget(&mut self, heap: Heap) {
        self.heaps.remove(&heap);
    }

    /// A file that cannot be what it was.
    pub(super) fn damaged(&self) -> ReplayError {
        ReplayError::file(&self.path, io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// The records of framed bytes.
pub(super) fn records(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (record, after) = after.split_at_checked(length)?;
        rest = after;
        Some(record)
    })
}

/// The hash that a record begins with, and what follows it.
pub(super) fn split(record: &[u8]) -> Option<(Hash, &[u8])> {
    record.split_first_chunk::<16>().map(|(hash, rest)| (*hash, rest))
}

/// Parts of a table that is not small.
const PARTS: usize = 256;
/// A table of fewer is read as one.
const SMALL_RECORDS: u64 = 20_000;
/// Written at once; of each part of one table as much waits: 16 MiB.
const BLOCK_BYTES: usize = 64 << 10;
/// Records in memory at once.
const PASS_BYTES: usize = 24 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_read_again_once_over_all_parts_and_passes() {
        let dir = tempfile::tempdir().unwrap();
        let mut spill = Spill::new(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its name is gone");
        let heap = Heap::Lake(7);
        spill.begin(heap, SMALL_RECORDS + 1);
        let record = |n: u32| {
            let hash = crate::source::digest::hash(&n.to_le_bytes());
            [&hash[..], &n.to_le_bytes(), &[7; 500]].concat()
        };
        for n in 0..50_000 {
            spill.push(heap, &record(n)).unwrap();
        }
        spill.settle(heap).unwrap();
        let mut seen = vec![];
        for part in 0..spill.parts(heap) {
            assert_eq!(spill.passes(heap, part), 1);
            for pass in 0..3 {
                let bytes = spill.read(heap, part, (pass, 3)).unwrap();
                seen.extend(records(&bytes).map(|record| {
                    let (hash, rest) = split(record).unwrap();
                    assert_eq!(usize::from(hash[0]) % spill.parts(heap), part);
                    u32::from_le_bytes(*rest.first_chunk().unwrap())
                }));
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..50_000).collect::<Vec<_>>());
        spill.begin_like(Heap::Source(7), heap);
        assert_eq!(spill.parts(Heap::Source(7)), PARTS);
        spill.forget(heap);
        assert_eq!(spill.parts(heap), 0);
    }
}
