//! Compresses runs and facts into the plaintexts of frames, and reads them back. Pure.
//!
//! **Invariant:** a run is cut into parts of [`PART_BYTES`], so that neither writing nor reading one
//! needs more than the run itself and a few MiB beside it, however large its values are.

use std::io::{self, Cursor};

use super::{
    Batch,
    record::{self, BATCH_PREFIX_BYTES, BatchPrefix, Fields, PAYLOAD_BYTES_MAX},
};
use crate::{
    facts::FactBatch,
    source::{Commit, Piece, Run},
    units::Sequence,
};

/// Bytes of a run in one frame, before compression.
pub(crate) const PART_BYTES: usize = 4 << 20;

/// A run takes memory in steps of this size: a length that is not true costs no more.
const RESERVE_BYTES: usize = 64 << 20;

/// While there is room: about half the CPU, and half as many bytes again (47 % more of the rows of
/// `benches/stream.py`).
const FAST_LEVEL: i32 = -3;

/// When room is short; facts always.
const DENSE_LEVEL: i32 = 1;

/// How densely a run is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Density {
    /// What costs least.
    Fast,
    /// What keeps the box going longest while nothing can be shipped.
    Dense,
}

/// A run, compressed.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) piece: Piece,
    pub(crate) changes: u64,
    pub(crate) commit: Option<Commit>,
    /// Plaintexts of its frames, at least one.
    pub(crate) parts: Vec<Vec<u8>>,
    /// As it came, if it is to be kept.
    pub(crate) came: Option<Vec<u8>>,
    /// Number of the batch, and of its first change, once it is written.
    pub(crate) place: (u64, u64),
}

/// Compresses; one for each thread, since its context is costly to make.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

/// Decompresses.
pub(crate) struct Unpacker(zstd::bulk::Decompressor<'static>);

impl Packed {
    /// The batch, as it came; `None`: it is not to be kept.
    pub(crate) fn came(self) -> Option<Batch> {
        let Self { piece, changes, commit, came, place: (number, first), .. } = self;
        let first = Sequence(first);
        came.map(|bytes| Batch { number, piece, first, changes, commit, ends: None, bytes })
    }
}

impl Packer {
    pub(crate) fn new() -> io::Result<Self> {
        zstd::bulk::Compressor::new(DENSE_LEVEL).map(Self)
    }

    /// Compresses a run. `keeps`: it is to be kept as it came.
    pub(crate) fn run(&mut self, run: Run, density: Density, keeps: bool) -> io::Result<Packed> {
        self.0.set_compression_level(match density {
            Density::Fast => FAST_LEVEL,
            Density::Dense => DENSE_LEVEL,
        })?;
        let packed = self.parts(run, keeps);
        self.0.set_compression_level(DENSE_LEVEL)?;
        packed
    }

    fn parts(&mut self, run: Run, keeps: bool) -> io::Result<Packed> {
        let run_bytes = run.bytes.len() as u64;
        let mut parts = vec![];
        let mut rest = &run.bytes[..];
        loop {
            let (part, after) = rest.split_at(rest.len().min(PART_BYTES));
            let part_bytes = u32::try_from(part.len()).expect("a part is 4 MiB at most");
            let commit = run.commit.filter(|_| after.is_empty());
            let prefix = BatchPrefix { commit, run_bytes, part_bytes };
            parts.push(self.after(&prefix.encode(), part)?);
            rest = after;
            if rest.is_empty() {
                return Ok(Packed {
                    piece: run.piece,
                    changes: run.changes,
                    commit: run.commit,
                    parts,
                    came: keeps.then_some(run.bytes),
                    place: (0, 0),
                });
            }
        }
    }

    /// Compresses facts as they stand in a frame.
    pub(crate) fn facts(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(plain.len()).map_err(io::Error::other)?;
        self.after(&length.to_le_bytes(), plain)
    }

    fn after(&mut self, prefix: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut packed = Vec::with_capacity(prefix.len() + bound(plain.len()));
        packed.extend_from_slice(prefix);
        let mut end = Cursor::new(packed);
        end.set_position(prefix.len() as u64);
        self.0.compress_to_buffer(plain, &mut end)?;
        let mut packed = end.into_inner();
        packed.shrink_to_fit();
        Ok(packed)
    }
}

impl Unpacker {
    pub(crate) fn new() -> io::Result<Self> {
        zstd::bulk::Decompressor::new().map(Self)
    }

    /// How many bytes the run has of which the plaintext is a part.
    pub(crate) fn run_bytes(plain: &[u8]) -> Option<usize> {
        usize::try_from(BatchPrefix::split(plain)?.0.run_bytes).ok()
    }

    /// Appends a part of a run to `run`, the `last` or another. Gives its commit; `None`: the
    /// plaintext is no such part.
    pub(crate) fn part(
        &mut self,
        plain: &[u8],
        last: bool,
        run: &mut Vec<u8>,
    ) -> Option<Option<Commit>> {
        let (prefix, packed) = BatchPrefix::split(plain)?;
        debug_assert_eq!(plain.len() - packed.len(), BATCH_PREFIX_BYTES);
        let run_bytes = usize::try_from(prefix.run_bytes).ok()?;
        let part_bytes = usize::try_from(prefix.part_bytes).ok()?;
        let missing = run_bytes.checked_sub(run.len())?;
        if run.capacity() - run.len() < part_bytes {
            run.try_reserve_exact(missing.min(RESERVE_BYTES)).ok()?;
        }
        self.append(packed, part_bytes, run)?;
        (!last || run.len() == run_bytes).then_some(prefix.commit)
    }

    /// Reads the facts of a frame. `None`: the plaintext holds none.
    pub(crate) fn facts(&mut self, plain: &[u8]) -> Option<FactBatch> {
        let mut fields = Fields(plain);
        let length = usize::try_from(fields.u32()?).ok().filter(|at| *at <= PAYLOAD_BYTES_MAX)?;
        let mut facts = Vec::new();
        facts.try_reserve_exact(length).ok()?;
        self.append(fields.0, length, &mut facts)?;
        record::read_facts(&facts)
    }

    fn append(&mut self, packed: &[u8], bytes: usize, to: &mut Vec<u8>) -> Option<()> {
        let before = to.len();
        if to.capacity() - before < bytes {
            return None;
        }
        let mut end = Cursor::new(to);
        end.set_position(before as u64);
        let written = self.0.decompress_to_buffer(packed, &mut end).ok()?;
        (written == bytes).then_some(())
    }
}

/// The most that compression can make of `bytes` (zstd's ZSTD_COMPRESSBOUND, rounded up).
fn bound(bytes: usize) -> usize {
    bytes + (bytes >> 8) + 128
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(bytes: Vec<u8>) -> usize {
        let run = Run {
            bytes,
            changes: 3,
            commit: Some(Commit::default()),
            piece: Piece::Last,
            ..Run::new(Piece::Last)
        };
        let packed = Packer::new().unwrap().run(run.clone(), Density::Fast, true).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        let mut read = vec![];
        let mut commit = None;
        for (number, part) in packed.parts.iter().enumerate() {
            assert_eq!(commit, None);
            let last = number + 1 == packed.parts.len();
            commit = unpacker.part(part, last, &mut read).unwrap();
        }
        assert_eq!((read, commit), (run.bytes, run.commit));
        packed.parts.len()
    }

    #[test]
    fn a_run_of_any_size_comes_back() {
        assert_eq!(round_trip(vec![]), 1);
        assert_eq!(round_trip(vec![1; PART_BYTES]), 1);
        assert_eq!(round_trip((0..=255).cycle().take(2 * PART_BYTES + 1).collect()), 3);
        assert_eq!(
            round_trip(std::iter::repeat_with(|| fastrand::u8(..)).take(70_000).collect()),
            1
        );
    }

    #[test]
    fn what_is_dense_is_so_behind_what_was_fast_and_facts_always_are() {
        let words = ["insert", "update", "delete", "truncate", "ålesund", "oslo"];
        let text = |_| format!("{} {} ", fastrand::choice(words).unwrap(), fastrand::u16(..));
        let bytes = (0..20_000).map(text).collect::<String>().into_bytes();
        let run = |packer: &mut Packer, density| {
            let run = Run { bytes: bytes.clone(), ..Run::new(Piece::First) };
            packer.run(run, density, false).unwrap().parts
        };
        let (mut one, mut other) = (Packer::new().unwrap(), Packer::new().unwrap());
        let fast = run(&mut one, Density::Fast);
        let facts = one.facts(&bytes).unwrap();
        assert_eq!(facts, other.facts(&bytes).unwrap());
        assert!(facts.len() < fast[0].len(), "{} of {}", facts.len(), fast[0].len());
        assert_eq!(run(&mut one, Density::Dense), run(&mut other, Density::Dense));
    }

    #[test]
    fn a_length_that_is_not_true_takes_no_memory() {
        let run = Run { bytes: vec![1; 100], ..Run::new(Piece::First) };
        let mut part =
            Packer::new().unwrap().run(run, Density::Dense, false).unwrap().parts.remove(0);
        part[29..37].fill(0xFF);
        let mut read = vec![];
        assert_eq!(Unpacker::new().unwrap().part(&part, true, &mut read), None);
        assert!(read.capacity() <= RESERVE_BYTES, "{}", read.capacity());
        assert_eq!(Unpacker::new().unwrap().facts(&[0xFF; 8]), None);
    }

    #[test]
    fn a_part_that_claims_another_length_is_refused() {
        let run = Run { bytes: vec![1; 100], ..Run::new(Piece::First) };
        let mut part =
            Packer::new().unwrap().run(run, Density::Dense, false).unwrap().parts.remove(0);
        part[37] = 99;
        assert_eq!(Unpacker::new().unwrap().part(&part, true, &mut vec![]), None);
    }
}
