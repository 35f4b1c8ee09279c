//! Checks one segment: every frame's checksum and seal, that it holds what its kind says, and that
//! batches follow one another. For `check`, which reads a stopped box, and for `scrub`, which reads a
//! running one.
//!
//! **Invariant (I10):** whatever does not match is given as [`JournalError::Damaged`] with its range,
//! in the same words that a reader would find for it; the rest of the segment is checked all the same.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{
    Batches, JournalError, Piece,
    cipher::SegmentKey,
    find::header_damage,
    pack::Unpacker,
    record::{FrameHeader, Kind},
    scan::{Bad, FOREIGN, Item, Scan, Window, read_error},
    segment::file_number,
    tail::damaged,
    watermark::{Progress, follows},
};
use crate::{config::Secret, units::ByteSize};

/// One segment.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct SegmentReport {
    /// Its number.
    pub number: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// Whole frames in it.
    pub frames: u64,
    /// Whole batches in it, torn ones included.
    pub batches: u64,
    /// Changes in them.
    pub changes: u64,
    /// The first of them.
    pub first_batch: Option<u64>,
    /// The last of them.
    pub last_batch: Option<u64>,
}

/// A segment that is being checked.
pub(crate) struct Verifier<'a> {
    name: String,
    scan: Scan,
    unpacker: Unpacker,
    order: &'a mut Order,
    /// The batch whose parts are coming.
    run: Vec<u8>,
    /// Number of the next batch, as the frames before say.
    next_batch: u64,
    /// What lacked frames, until it is known where they go on.
    gap: Option<Bad>,
    pub(crate) report: SegmentReport,
    /// Ranges that hold no frames. In the last segment such a range can be a torn tail.
    pub(crate) gaps: Vec<JournalError>,
    /// Whole frames that are not what they should be.
    pub(crate) wrong: Vec<JournalError>,
}

/// Whether batches follow one another, over all segments that are checked in a row.
#[derive(Default)]
pub(crate) struct Order {
    /// Number of the next batch and its first sequence; `None` before the first and after damage.
    next: Option<(u64, u64)>,
    open: bool,
    /// Where sequences go back to when the open transaction is torn; `None` if it began out of sight.
    open_first: Option<u64>,
}

impl<'a> Verifier<'a> {
    /// Begins with the segment in `window`.
    ///
    /// # Errors
    ///
    /// [`JournalError::Damaged`]: its header does not read, so neither does the rest. Or
    /// [`JournalError::Read`].
    pub(crate) fn new(
        mut window: Window,
        key: &Secret,
        order: &'a mut Order,
    ) -> Result<Self, JournalError> {
        let header = match window.header()? {
            Ok(header) => header,
            Err(what) => {
                *order = Order::default();
                return Err(header_damage(window.path(), what, Batches::Segment));
            }
        };
        let path = window.path();
        let unpacker = Unpacker::new().map_err(|why| read_error(path, why))?;
        let key = Arc::new(SegmentKey::derive(key.expose(), &header.salt, header.number));
        Ok(Self {
            name: path.display().to_string(),
            report: SegmentReport { number: header.number, ..SegmentReport::unread(&window)? },
            scan: Scan::new(window, Some(key))?,
            unpacker,
            order,
            run: vec![],
            next_batch: header.first_batch,
            gap: None,
            gaps: vec![],
            wrong: vec![],
        })
    }

    /// Checks the next frame. `false`: there is none any more.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`].
    pub(crate) fn step(&mut self) -> Result<bool, JournalError> {
        match self.scan.next()? {
            Some(Item::Frame(header, offset)) => self.frame(&header, offset)?,
            Some(Item::Bad(bad)) => {
                self.run.clear();
                self.gap.get_or_insert(bad);
            }
            None => {
                self.end_gap(None);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// First byte that is not checked yet.
    pub(crate) fn offset(&self) -> u64 {
        self.scan.offset()
    }

    /// Number of the next batch.
    pub(crate) fn next_batch(&self) -> u64 {
        self.next_batch
    }

    fn frame(&mut self, header: &FrameHeader, offset: u64) -> Result<(), JournalError> {
        self.end_gap(Some(header.batch));
        self.report.frames += 1;
        let held = self.scan.held(header, offset)?;
        let what = holds(header, held, &mut self.unpacker, &mut self.run, self.order);
        if header.kind == Kind::Batch {
            self.report.batches += 1;
            self.report.changes = self.report.changes.saturating_add(header.changes);
            self.report.first_batch.get_or_insert(header.batch);
            self.report.last_batch = Some(header.batch);
            self.next_batch = header.batch + 1;
        }
        if let Some(what) = what {
            let to = offset + header.frame_bytes();
            let bad = Bad { from: offset, to, frame: header.frame, header: Some(*header), what };
            self.wrong.push(damaged(&self.name, &bad, 0, 0));
        }
        Ok(())
    }

    /// What lacked frames ends here, before `batch` or at the end of the file.
    fn end_gap(&mut self, batch: Option<u64>) {
        if let Some(bad) = self.gap.take() {
            let named = match (batch, bad.header) {
                // What follows may stand in the next segment.
                (None, None) => unknown(&self.name, &bad, self.next_batch),
                _ => damaged(&self.name, &bad, self.next_batch, batch.unwrap_or(0)),
            };
            let kind = if bad.what == FOREIGN { &mut self.wrong } else { &mut self.gaps };
            kind.push(named);
            *self.order = Order::default();
        }
    }
}

/// The error that names a bad range at the end of a segment: what was in it nothing tells.
fn unknown(name: &str, bad: &Bad, next_batch: u64) -> JournalError {
    JournalError::Damaged {
        path: name.into(),
        from: bad.from,
        to: bad.to,
        batches: Batches::From(next_batch),
        what: bad.what.into(),
    }
}

/// What is wrong with an open frame.
fn holds(
    header: &FrameHeader,
    plain: &[u8],
    unpacker: &mut Unpacker,
    run: &mut Vec<u8>,
    order: &mut Order,
) -> Option<&'static str> {
    let unreadable = Some("a frame does not hold what its kind says");
    match header.kind {
        Kind::Progress => {
            let Some(progress) = Progress::decode(plain) else { return unreadable };
            // The head of a new segment names what was torn at the restart before it.
            if progress.open.is_none() {
                order.torn();
            }
        }
        Kind::Session if plain.len() == 16 => order.torn(),
        Kind::Session => return unreadable,
        Kind::Dump | Kind::Facts => {
            let facts = unpacker.facts(plain);
            let count = facts.map(|facts| facts.changes.len() as u64);
            return if count == Some(header.changes) { None } else { unreadable };
        }
        Kind::DumpEnd => {}
        Kind::Rewind => {
            let Some(progress) = Progress::decode(plain) else { return unreadable };
            order.rewound(&progress);
        }
        Kind::Part | Kind::Batch => {
            let ends = header.kind == Kind::Batch;
            let commit = unpacker.part(plain, ends, run);
            if ends || commit.is_none() {
                run.clear();
            }
            let Some(commit) = commit else { return Some("a batch does not decompress") };
            if ends {
                let committed = matches!(header.piece, Piece::Whole | Piece::Last);
                let fits = committed == commit.is_some();
                let wrong = (!fits).then_some("its commit does not fit its piece");
                return order.batch(header).or(wrong);
            }
        }
    }
    None
}

impl Order {
    /// What is wrong with a batch at this place.
    fn batch(&mut self, header: &FrameHeader) -> Option<&'static str> {
        let opened = follows(self.open, header.piece);
        let known = self.next.replace((header.batch + 1, header.first + header.changes));
        if !self.open {
            let begins = matches!(header.piece, Piece::First | Piece::Whole);
            self.open_first = begins.then_some(header.first);
        }
        self.open = matches!(header.piece, Piece::First | Piece::Middle);
        let (batch, first) = known?;
        if batch != header.batch {
            Some("batches are missing before this place")
        } else if first != header.first {
            Some("its sequence does not follow")
        } else {
            opened.is_none().then_some("it does not follow the transaction before it")
        }
    }

    /// The log goes on at an earlier point, with batches that are numbered on.
    fn rewound(&mut self, progress: &Progress) {
        (self.next, self.open) = (Some((progress.next_batch, progress.next_sequence)), false);
    }

    /// The open transaction is given up.
    fn torn(&mut self) {
        if self.open {
            self.next = self.next.and_then(|(batch, _)| Some((batch, self.open_first?)));
        }
        self.open = false;
    }
}

impl SegmentReport {
    /// Of a segment in which nothing was checked yet.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`].
    pub(crate) fn unread(window: &Window) -> Result<Self, JournalError> {
        let number = file_number(window.path()).unwrap_or_default();
        Ok(Self { number, bytes: window.file_bytes()?, ..Self::default() })
    }
}

impl fmt::Display for SegmentReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, frames, changes, .. } = self;
        let bytes = ByteSize(self.bytes);
        write!(f, "segment {number}  {bytes}  {frames} frames  {changes} changes  batches ")?;
        match (self.first_batch, self.last_batch) {
            (Some(first), Some(last)) => write!(f, "{first}–{last}"),
            _ => write!(f, "none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(piece: Piece, batch: u64, first: u64) -> FrameHeader {
        FrameHeader {
            kind: Kind::Batch,
            piece,
            payload_bytes: 1,
            frame: 1,
            nonce: 1,
            group: 1,
            batch,
            first,
            changes: 2,
            payload_crc: 0,
        }
    }

    #[test]
    fn a_torn_transaction_gives_back_the_sequences_that_were_seen_of_it() {
        let mut order = Order::default();
        assert_eq!(order.batch(&batch(Piece::First, 5, 10)), None);
        assert_eq!(order.batch(&batch(Piece::Middle, 6, 12)), None);
        order.torn();
        assert_eq!(order.batch(&batch(Piece::Whole, 7, 10)), None);
        assert!(order.batch(&batch(Piece::Whole, 8, 14)).is_some());
    }

    /// Where it began is in another segment: only there could be known what follows it.
    #[test]
    fn a_transaction_that_began_in_another_segment_and_was_torn_is_no_damage() {
        let mut order = Order::default();
        assert_eq!(order.batch(&batch(Piece::Middle, 6, 12)), None);
        order.torn();
        assert_eq!(order.batch(&batch(Piece::Whole, 7, 10)), None);
        assert!(order.batch(&batch(Piece::Whole, 9, 12)).is_some());
    }
}
