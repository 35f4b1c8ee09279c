//! Reads batches back from the segments, in order, on the reader's own file handles.
//!
//! **Invariant (I4):** only what is at or behind the durable watermark is read, and torn ranges are
//! passed over; so a `First` is given only when its `Last` is durable, and everything given is part
//! of a whole transaction. A damaged batch is an error that names its range, each time it is asked for.

use std::{sync::Arc, time::Duration};

use super::{
    Batch, Commit, JournalError, Piece, ReadBatches,
    catalogue::Entry,
    cipher::SegmentKey,
    keep::{Shared, Standing, lock},
    pack::Unpacker,
    record::{FRAME_HEADER_BYTES, FrameHeader, Kind, SEGMENT_HEADER_BYTES},
    recover::header_damage,
    scan::{Bad, Item, Scan, Window, read_error},
    tail::damaged,
};
use crate::units::Sequence;

/// One reader.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    /// Number of the next batch.
    next: u64,
    place: Option<Place>,
    unpacker: Option<Unpacker>,
    /// The commit that ends the transaction of which pieces are being read.
    ends: Option<Commit>,
}

/// Where the reader stands in a segment.
struct Place {
    number: u64,
    window: Window,
    key: SegmentKey,
    offset: u64,
    /// Number of the frame at `offset`.
    frame: u64,
}

/// What stands there.
enum Step {
    Frame(FrameHeader, u64),
    End,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, after_batch: u64) -> Self {
        Self { shared, next: after_batch + 1, place: None, unpacker: None, ends: None }
    }

    /// Reads batch `next`, which is durable and not torn.
    fn read(&mut self) -> Result<Batch, JournalError> {
        let mut place = match self.place.take() {
            Some(place) => place,
            None => self.locate()?,
        };
        let unpacker = match self.unpacker.take() {
            Some(unpacker) => unpacker,
            None => Unpacker::new().map_err(|why| read_error(place.window.path(), why))?,
        };
        let unpacker = self.unpacker.insert(unpacker);
        let mut bytes = vec![];
        loop {
            let (header, offset) = match place.step(&self.shared)? {
                Step::End => {
                    place = open_after(&self.shared, place.number, self.next)?;
                    continue;
                }
                Step::Frame(header, offset) => (header, offset),
            };
            if !header.kind.is_payload() || header.batch < self.next {
                continue;
            }
            if header.batch > self.next {
                return Err(place.missing(offset, self.next, header.batch));
            }
            let commit = place.open(&header, offset, unpacker, &mut bytes)?;
            if header.kind == Kind::Part {
                continue;
            }
            self.next += 1;
            self.place = Some(place);
            if header.piece == Piece::First {
                self.ends = self.find_end()?;
            }
            return Ok(Batch {
                number: header.batch,
                piece: header.piece,
                first: Sequence(header.first),
                changes: header.changes,
                commit,
                ends: self.ends.filter(|_| header.piece != Piece::Whole),
                bytes,
            });
        }
    }

    /// Looks ahead for the `Last` of the transaction whose `First` was just read, and reads its commit.
    /// Frame headers tell where it is; only that batch is opened a second time.
    fn find_end(&self) -> Result<Option<Commit>, JournalError> {
        let mut ahead = Self::new(self.shared.clone(), self.next - 1);
        let mut place = ahead.locate()?;
        loop {
            match place.step(&self.shared)? {
                Step::End => place = open_after(&self.shared, place.number, ahead.next)?,
                Step::Frame(header, _) => {
                    let last = header.kind.is_payload() && header.piece == Piece::Last;
                    if last && header.batch >= self.next {
                        ahead.next = header.batch;
                        return Ok(ahead.read()?.commit);
                    }
                }
            }
        }
    }

    fn locate(&self) -> Result<Place, JournalError> {
        let entry = lock(&self.shared.catalogue).locate(self.next).cloned();
        let opened = match entry {
            Some(entry) => open_place(&self.shared, &entry)?,
            None => None,
        };
        opened.ok_or_else(|| not_held(&self.shared, self.next))
    }
}

impl ReadBatches for Reader {
    fn next(&mut self, wait: Duration) -> Result<Option<Batch>, JournalError> {
        loop {
            match self.shared.standing(self.next, wait)? {
                Standing::Ahead => return Ok(None),
                Standing::Torn(end) => self.next = end + 1,
                Standing::Durable => break,
            }
        }
        let batch = self.read();
        if let Err(error @ JournalError::Damaged { .. }) = &batch {
            self.shared.show_damage(error);
        }
        batch.map(Some)
    }
}

impl Place {
    /// Goes past one frame, or says that the segment ends here.
    fn step(&mut self, shared: &Shared) -> Result<Step, JournalError> {
        let limit = match shared.synced_bytes(self.number) {
            Some(synced_bytes) => synced_bytes,
            None => self.window.file_bytes()?,
        };
        if self.offset >= limit {
            return Ok(Step::End);
        }
        let offset = self.offset;
        let bytes = self.window.at(offset, FRAME_HEADER_BYTES, limit)?;
        let header = match FrameHeader::decode(bytes.unwrap_or_default()) {
            Ok(header) if header.frame == self.frame && offset + header.frame_bytes() <= limit => {
                header
            }
            _ => return Err(self.damage(offset)?),
        };
        self.offset += header.frame_bytes();
        self.frame += 1;
        Ok(Step::Frame(header, offset))
    }

    /// Appends what the frame at `offset` holds of its batch. Gives the commit.
    fn open(
        &mut self,
        header: &FrameHeader,
        offset: u64,
        unpacker: &mut Unpacker,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Commit>, JournalError> {
        let limit = offset + header.frame_bytes();
        let payload_at = offset + FRAME_HEADER_BYTES as u64;
        let payload = self.window.at(payload_at, header.payload_len(), limit)?;
        let payload = payload.unwrap_or_default();
        let what = if crc32c::crc32c(payload) != header.payload_crc {
            "the checksum of a frame does not match"
        } else {
            match self
                .key
                .open(header, payload)
                .and_then(|plain| unpacker.part(plain, header.kind == Kind::Batch, bytes))
            {
                Some(commit) => return Ok(commit),
                None => "the seal of a frame does not open",
            }
        };
        let bad = Bad { from: offset, to: limit, frame: header.frame, header: Some(*header), what };
        Err(damaged(&self.window.path().display().to_string(), &bad, 0, 0))
    }

    /// Names the damage at `offset`: up to the next whole frame.
    fn damage(&self, offset: u64) -> Result<JournalError, JournalError> {
        let path = self.window.path();
        let mut window = Window::open(path)?;
        let mut before = window.header()?.map_or(0, |header| header.first_batch);
        let mut scan = Scan::new(window)?;
        let mut found: Option<Bad> = None;
        while let Some(item) = scan.next()? {
            match (item, &found) {
                (Item::Frame(header, _), Some(bad)) => {
                    return Ok(damaged(&path.display().to_string(), bad, before, header.batch));
                }
                (Item::Frame(header, _), None) if header.kind == Kind::Batch => {
                    before = header.batch + 1;
                }
                (Item::Bad(bad), None) if bad.to > offset => found = Some(bad),
                _ => {}
            }
        }
        let end = Bad {
            from: offset,
            to: offset,
            frame: self.frame,
            header: None,
            what: "a frame does not follow",
        };
        Ok(damaged(&path.display().to_string(), &found.unwrap_or(end), before, before + 1))
    }

    /// Batches from `first` on do not stand before `end`, as they should.
    fn missing(&self, offset: u64, first: u64, end: u64) -> JournalError {
        let what = "batches are missing before this place";
        let bad = Bad { from: offset, to: offset, frame: self.frame, header: None, what };
        damaged(&self.window.path().display().to_string(), &bad, first, end)
    }
}

/// Opens the segment after `number`, in which `next` is looked for.
fn open_after(shared: &Shared, mut number: u64, next: u64) -> Result<Place, JournalError> {
    loop {
        let entry = lock(&shared.catalogue).after(number).cloned();
        let Some(entry) = entry else { return Err(not_held(shared, next)) };
        if let Some(place) = open_place(shared, &entry)? {
            return Ok(place);
        }
        number = entry.number;
    }
}

/// `None`: it was unlinked meanwhile.
fn open_place(shared: &Shared, entry: &Entry) -> Result<Option<Place>, JournalError> {
    let mut window = match Window::open(&entry.path) {
        Ok(window) => window,
        Err(JournalError::Read { why, .. }) if why.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let header = window.header()?.map_err(|what| header_damage(&entry.path, what))?;
    let key = SegmentKey::derive(shared.key.expose(), &header.salt, header.number);
    let offset = SEGMENT_HEADER_BYTES as u64;
    Ok(Some(Place { number: entry.number, window, key, offset, frame: 0 }))
}

fn not_held(shared: &Shared, batch: u64) -> JournalError {
    JournalError::Damaged {
        path: shared.dir.display().to_string(),
        from: 0,
        to: 0,
        batches: format!("{batch}"),
        what: "no segment holds it: it was trimmed, or its segment is gone".into(),
    }
}
