//! The journal's format on disk. Pure.
//!
//! **Invariant (I22):** a segment's key is used with each nonce once: the salt is drawn anew for every
//! segment, every start of the process begins a new segment, and nonces only grow within one, also
//! where frames that found no room were cut off again.
//!
//! All numbers are little-endian. A folder holds `seg-<number, 20 digits>.log`, numbered upwards;
//! only the last one is written to. A segment is made under the name `.new` and renamed once its head
//! is fsynced, so a `.log` without a head is damaged, not young.
//!
//! ```text
//! segment  = header, head, frames
//! header     0  8  magic "LHJSEG01"
//!            8  4  version: 1
//!           12  4  zero
//!           16  8  number of the segment
//!           24  8  number of the first batch that it can hold
//!           32  8  bytes of the segment numbered one less when it was closed; 0 if there is none
//!           40 32  salt
//!           72  4  CRC32C of bytes 0–71
//! head     = frame Progress, frames Dump…, frame DumpEnd: all that is needed of earlier segments
//! frame      0  4  magic "LHJF"
//!            4  1  kind
//!            5  1  piece (Part, Batch), else 0
//!            6  2  zero
//!            8  4  bytes of the payload
//!           12  8  number of the frame: dense within the segment, from 0
//!           20  8  nonce: grows within the segment
//!           28  8  number of the first frame of its group commit: all frames before that were fsynced
//!           36  8  number of the batch; in other kinds of the next batch
//!           44  8  sequence of its first change; in other kinds of the next change
//!           52  8  changes (Part, Batch: of the batch; Dump, Facts: facts; DumpEnd: facts in the head), else 0
//!           60  4  CRC32C of the payload
//!           64  4  CRC32C of bytes 0–63
//!           68     payload
//! payload  = AES-256-GCM of the plaintext, then the tag (16 bytes);
//!            key = HKDF-SHA256(journal key, salt, "lakehead journal segment 1" | number of the segment),
//!            nonce = 4 zero bytes | nonce, additional data = bytes 0–59 of the frame
//! ```
//! Plaintexts by kind:
//! ```text
//! 1 Progress  sequence u64, position u64, batch u64, commit begins u64 (all of the durable watermark),
//!             next batch u64, next sequence u64, first batch of the open transaction u64 (0: none),
//!             torn ranges u32, each: first batch u64, last batch u64; transactions ever durable u64
//!             (0 if absent), last commit's time i64 (0 if absent)
//! 2 Dump      bytes u32, zstd of: each 1 u8, bytes u32, key, bytes u32, value
//! 3 DumpEnd   empty
//! 4 Part      as Batch; more of the same batch follows in the next frame
//! 5 Batch     commit present u8, position u64, begins u64, at i64, transactions u32 (zeros if absent),
//!             bytes of the whole run u64, bytes of this part u32, zstd of them
//! 6 Facts     as Dump; 0 u8, bytes u32, key for one that is deleted
//! 7 Session   first batch u64, last batch u64: of a transaction that will not be completed
//! 8 Rewind    as Progress: where the log goes on, since what came after it is asked for again
//! ```

use std::collections::BTreeMap;

use crate::{
    facts::FactBatch,
    source::{Commit, Piece},
    units::{Position, Timestamp},
};

/// Begins every segment.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"LHJSEG01";
/// Bytes of a segment's header.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 76;
/// Begins every frame.
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"LHJF";
/// Bytes of a frame's header.
pub(crate) const FRAME_HEADER_BYTES: usize = 68;
/// The part of a frame's header that its seal covers.
pub(crate) const FRAME_BOUND_BYTES: usize = 60;
/// Bytes of the seal's tag.
pub(crate) const TAG_BYTES: usize = 16;
/// Largest payload of a frame. Batches come in parts far below it; facts are refused above it.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// Bytes of facts in one Dump frame, about.
pub(crate) const DUMP_BYTES: usize = 1 << 20;
/// Length of what stands before the compressed bytes of a Part or Batch.
pub(crate) const BATCH_PREFIX_BYTES: usize = 41;

/// Numbers count from 0 or 1 and stay below it, so that sums of two fit; above it nothing was ever written.
const NUMBER_MAX: u64 = u64::MAX >> 1;

const VERSION: u32 = 1;

/// The beginning of a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    pub(crate) first_batch: u64,
    pub(crate) previous_bytes: u64,
    pub(crate) salt: [u8; 32],
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub(crate) enum Kind {
    Progress = 1,
    Dump = 2,
    DumpEnd = 3,
    Part = 4,
    Batch = 5,
    Facts = 6,
    Session = 7,
    Rewind = 8,
}

/// The beginning of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: Kind,
    pub(crate) piece: Piece,
    pub(crate) payload_bytes: u32,
    pub(crate) frame: u64,
    pub(crate) nonce: u64,
    pub(crate) group: u64,
    pub(crate) batch: u64,
    pub(crate) first: u64,
    pub(crate) changes: u64,
    pub(crate) payload_crc: u32,
}

/// What stands before the compressed bytes of a Part or Batch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BatchPrefix {
    pub(crate) commit: Option<Commit>,
    pub(crate) run_bytes: u64,
    pub(crate) part_bytes: u32,
}

/// The facts by key.
pub(crate) type FactMap = BTreeMap<String, Vec<u8>>;

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_batch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.previous_bytes.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.salt);
        let crc = crc32c::crc32c(&bytes[..72]);
        bytes[72..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Number and salt, as they stand in a header that may not read.
    pub(crate) fn as_it_stands(bytes: &[u8]) -> Option<(u64, [u8; 32])> {
        let number = bytes.get(16..24)?.try_into().ok()?;
        Some((u64::from_le_bytes(number), bytes.get(40..72)?.try_into().ok()?))
    }

    /// Reads it, or says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.get(..SEGMENT_HEADER_BYTES).ok_or("its header is cut short")?;
        let mut fields = Fields(bytes);
        if fields.take(8) != Some(&SEGMENT_MAGIC) {
            return Err("its magic is not LHJSEG01");
        }
        if crc32c::crc32c(&bytes[..72]) != u32_at(bytes, 72) {
            return Err("the checksum of its header does not match");
        }
        if fields.u32() != Some(VERSION) {
            return Err("its version is not known to this firmware");
        }
        let mut read = || {
            (fields.u32()? == 0).then_some(())?;
            let (number, first_batch, previous_bytes) =
                (fields.u64()?, fields.u64()?, fields.u64()?);
            let salt = fields.take(32)?.try_into().ok()?;
            are_counts(&[number, first_batch, previous_bytes])?;
            Some(Self { number, first_batch, previous_bytes, salt })
        };
        read().ok_or("its header is none that this firmware writes")
    }
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = self.piece as u8;
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        let numbers = [self.frame, self.nonce, self.group, self.batch, self.first, self.changes];
        for (number, place) in numbers.iter().zip(bytes[12..60].chunks_exact_mut(8)) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[60..64].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..64]);
        bytes[64..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it, or says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES).ok_or("a frame's header is cut short")?;
        if bytes[..4] != FRAME_MAGIC {
            return Err("no frame begins here");
        }
        if crc32c::crc32c(&bytes[..64]) != u32_at(bytes, 64) {
            return Err("the checksum of a frame's header does not match");
        }
        let mut fields = Fields(&bytes[4..]);
        let mut read = || {
            let kind = Kind::from_byte(fields.u8()?)?;
            let piece = piece_from_byte(fields.u8()?)?;
            (fields.take(2)? == [0; 2]).then_some(())?;
            let payload_bytes = fields.u32()?;
            let (frame, nonce, group) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let (batch, first, changes) = (fields.u64()?, fields.u64()?, fields.u64()?);
            are_counts(&[frame, nonce, group, batch, first, changes])?;
            let payload_crc = fields.u32()?;
            let header = Self {
                kind,
                piece,
                payload_bytes,
                frame,
                nonce,
                group,
                batch,
                first,
                changes,
                payload_crc,
            };
            (TAG_BYTES..=PAYLOAD_BYTES_MAX).contains(&header.payload_len()).then_some(header)
        };
        read().ok_or("a frame's header is of no kind that this firmware knows")
    }

    pub(crate) fn payload_len(&self) -> usize {
        usize::try_from(self.payload_bytes).unwrap_or(usize::MAX)
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Progress,
            Self::Dump,
            Self::DumpEnd,
            Self::Part,
            Self::Batch,
            Self::Facts,
            Self::Session,
            Self::Rewind,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether it carries rows; all other kinds carry facts.
    pub(crate) fn is_payload(self) -> bool {
        matches!(self, Self::Part | Self::Batch)
    }
}

impl BatchPrefix {
    pub(crate) fn encode(&self) -> [u8; BATCH_PREFIX_BYTES] {
        let mut bytes = [0; BATCH_PREFIX_BYTES];
        bytes[0] = u8::from(self.commit.is_some());
        let commit = self.commit.unwrap_or_default();
        bytes[1..9].copy_from_slice(&commit.position.0.to_le_bytes());
        bytes[9..17].copy_from_slice(&commit.begins.0.to_le_bytes());
        bytes[17..25].copy_from_slice(&commit.at.0.to_le_bytes());
        bytes[25..29].copy_from_slice(&commit.transactions.to_le_bytes());
        bytes[29..37].copy_from_slice(&self.run_bytes.to_le_bytes());
        bytes[37..].copy_from_slice(&self.part_bytes.to_le_bytes());
        bytes
    }

    /// The prefix, and the compressed bytes after it.
    pub(crate) fn split(plain: &[u8]) -> Option<(Self, &[u8])> {
        let mut fields = Fields(plain);
        let present = fields.flag()?;
        let (position, begins) = (Position(fields.u64()?), Position(fields.u64()?));
        let at = Timestamp(fields.u64()?.cast_signed());
        let commit = Commit { position, begins, at, transactions: fields.u32()? };
        let (run_bytes, part_bytes) = (fields.u64()?, fields.u32()?);
        Some((Self { commit: present.then_some(commit), run_bytes, part_bytes }, fields.0))
    }
}

/// Adds one fact, put or deleted, to the plaintext of a Dump or Facts frame (before compression).
pub(crate) fn push_fact(plain: &mut Vec<u8>, key: &str, value: Option<&[u8]>) {
    plain.push(u8::from(value.is_some()));
    for field in [Some(key.as_bytes()), value].into_iter().flatten() {
        let length =
            u32::try_from(field.len()).expect("record refused facts beyond a frame's size");
        plain.extend_from_slice(&length.to_le_bytes());
        plain.extend_from_slice(field);
    }
}

/// The plaintexts of the Dump frames (before compression) that hold `facts`, and how many each holds.
pub(crate) fn dumps(facts: &FactMap) -> impl Iterator<Item = (Vec<u8>, u64)> {
    let mut facts = facts.iter().peekable();
    std::iter::from_fn(move || {
        facts.peek()?;
        let (mut plain, mut count) = (vec![], 0);
        while plain.len() < DUMP_BYTES
            && let Some((key, value)) = facts.next()
        {
            push_fact(&mut plain, key, Some(value));
            count += 1;
        }
        Some((plain, count))
    })
}

/// Frames of the head of a segment that begins with `facts`.
pub(crate) fn head_frames(facts: &FactMap) -> u64 {
    2 + dumps(facts).count() as u64
}

/// Reads the facts of a Dump or Facts frame. `None`: the bytes are no facts.
pub(crate) fn read_facts(plain: &[u8]) -> Option<FactBatch> {
    let mut fields = Fields(plain);
    let mut batch = FactBatch::default();
    while !fields.0.is_empty() {
        let present = fields.flag()?;
        let key = String::from_utf8(fields.sized()?.to_vec()).ok()?;
        let value = if present { Some(fields.sized()?.to_vec()) } else { None };
        batch.changes.push((key, value));
    }
    Some(batch)
}

/// Applies `batch` to `facts`.
pub(crate) fn apply_facts(facts: &mut FactMap, batch: FactBatch) {
    for (key, value) in batch.changes {
        match value {
            Some(value) => facts.insert(key, value),
            None => facts.remove(&key),
        };
    }
}

/// Takes fields off the front of bytes.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(field)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|field| field[0])
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }
}

/// `None`: one of them can count nothing.
pub(crate) fn are_counts(numbers: &[u64]) -> Option<()> {
    numbers.iter().all(|number| *number <= NUMBER_MAX).then_some(())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes[offset..offset + 4].try_into().expect("four bytes");
    u32::from_le_bytes(field)
}

fn piece_from_byte(byte: u8) -> Option<Piece> {
    let all = [Piece::Whole, Piece::First, Piece::Middle, Piece::Last];
    all.into_iter().find(|piece| *piece as u8 == byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: Kind::Batch,
            piece: Piece::Last,
            payload_bytes: 0x102,
            frame: 3,
            nonce: 4,
            group: 2,
            batch: 0x1122_3344_5566_7788,
            first: 6,
            changes: 7,
            payload_crc: 0xDEAD_BEEF,
        }
    }

    #[test]
    fn a_header_that_nothing_writes_is_refused_though_its_checksum_matches() {
        let mend = |mut bytes: [u8; FRAME_HEADER_BYTES]| {
            let crc = crc32c::crc32c(&bytes[..64]);
            bytes[64..].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        for number in [
            FrameHeader { frame: u64::MAX, ..header() },
            FrameHeader { changes: u64::MAX, ..header() },
        ] {
            assert!(FrameHeader::decode(&number.encode()).is_err());
        }
        let mut unused = header().encode();
        unused[6] = 1;
        assert!(FrameHeader::decode(&mend(unused)).is_err());
        assert_eq!(read_facts(&[2, 1, 0, 0, 0, b'k']), None);
    }

    #[test]
    fn the_bytes_of_a_segment_header_are_pinned() {
        let header =
            SegmentHeader { number: 7, first_batch: 300, previous_bytes: 4096, salt: [0xAB; 32] };
        let expected = "4c484a534547303101000000000000000700000000000000\
                        2c010000000000000010000000000000\
                        abababababababababababababababababababababababababababababababab";
        let bytes = header.encode();
        assert_eq!(hex::encode(&bytes[..72]), expected);
        assert_eq!(hex::encode(&bytes[72..]), "33e2ef87");
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn the_bytes_of_a_frame_header_are_pinned() {
        let expected = "4c484a460503000002010000\
                        0300000000000000040000000000000002000000000000008877665544332211\
                        06000000000000000700000000000000efbeadde";
        let bytes = header().encode();
        assert_eq!(hex::encode(&bytes[..64]), expected);
        assert_eq!(hex::encode(&bytes[64..]), "b7249168");
        assert_eq!(FrameHeader::decode(&bytes), Ok(header()));
    }

    #[test]
    fn the_bytes_of_a_batch_prefix_and_of_facts_are_pinned() {
        let commit = Commit {
            position: Position(0x0A),
            begins: Position(0x09),
            at: Timestamp(-2),
            transactions: 5,
        };
        let prefix = BatchPrefix { commit: Some(commit), run_bytes: 0x100, part_bytes: 0x80 };
        let bytes = prefix.encode();
        let expected = "010a000000000000000900000000000000feffffffffffffff05000000\
                        000100000000000080000000";
        assert_eq!(hex::encode(bytes), expected);
        assert_eq!(BatchPrefix::split(&bytes), Some((prefix, &[][..])));

        let mut plain = vec![];
        push_fact(&mut plain, "a", Some(b"xy"));
        push_fact(&mut plain, "b", None);
        assert_eq!(hex::encode(&plain), "010100000061020000007879000100000062");
        let read = read_facts(&plain).unwrap();
        assert_eq!(read.changes, [("a".into(), Some(b"xy".to_vec())), ("b".into(), None)]);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let frame = header().encode();
        let segment =
            SegmentHeader { number: 1, first_batch: 1, previous_bytes: 0, salt: [1; 32] }.encode();
        for bit in 0..frame.len() * 8 {
            let mut bytes = frame;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bytes).is_err(), "bit {bit}");
        }
        for bit in 0..segment.len() * 8 {
            let mut bytes = segment;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _read = FrameHeader::decode(&bytes);
            let _read = SegmentHeader::decode(&bytes);
            let _read = BatchPrefix::split(&bytes);
            let _read = read_facts(&bytes);
        }
    }
}
