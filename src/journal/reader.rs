//! Reads batches back from the segments, in order, on the reader's own file handles.
//!
//! **Invariant (I4):** only what is at or behind the durable watermark is read, and torn ranges are
//! passed over; so a `First` is given only when its `Last` is durable, and everything given is part
//! of a whole transaction. A damaged batch is an error that names its range, each time it is asked for,
//! until the log goes on before it. Who follows the writer is given a batch that is still in memory ([`super::recent`])
//! whatever becomes of its frames.

use std::{sync::Arc, time::Duration};

use super::{
    Batch, Batches, Commit, JournalError, Piece, ReadBatches,
    catalogue::Entry,
    cipher::SegmentKey,
    device::Device,
    find::header_damage,
    keep::{Shared, Standing, lock},
    pack::Unpacker,
    record::{FrameHeader, Kind},
    scan::{Bad, Item, Scan, Window, read_error},
    tail::damaged,
};
use crate::{
    heap::large::{self, Held, LARGE_BYTES},
    units::Sequence,
};

/// One reader.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    /// Number of the next batch.
    next: u64,
    place: Option<Place>,
    unpacker: Option<Unpacker>,
    /// The commit that ends the transaction of which pieces are being read.
    ends: Option<Commit>,
    /// Pieces of a transaction were given, and its end was not.
    is_open: bool,
    /// The batch that was given last is a large one.
    large: Option<Held<'static>>,
    /// The last batches are taken as they came.
    follows: bool,
}

/// Where the reader stands in a segment.
struct Place {
    device: Arc<dyn Device>,
    number: u64,
    scan: Scan,
    key: Arc<SegmentKey>,
    /// The last damage that was passed.
    bad: Option<Bad>,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, after_batch: u64) -> Self {
        let next = after_batch + 1;
        let (place, unpacker, ends, large) = (None, None, None, None);
        Self { shared, next, place, unpacker, ends, is_open: false, large, follows: false }
    }

    /// The one who reads behind the writer.
    pub(crate) fn following(shared: Arc<Shared>, after_batch: u64) -> Self {
        Self { follows: true, ..Self::new(shared, after_batch) }
    }

    /// Batch `next`, which is durable and not torn, as it came.
    fn take(&mut self) -> Option<Batch> {
        if !self.follows || self.is_open || self.shared.is_lost(self.next) {
            return None;
        }
        let batch = lock(&self.shared.recent).take(self.next)?;
        // A segment that is not read from must not keep its room.
        self.close();
        self.next += 1;
        Some(batch)
    }

    /// Reads batch `next`, which is durable and not torn.
    fn read(&mut self) -> Result<Batch, JournalError> {
        let mut place = match self.place.take() {
            Some(place) => place,
            None => self.locate()?,
        };
        let unpacker = match self.unpacker.take() {
            Some(unpacker) => unpacker,
            None => Unpacker::new().map_err(|why| read_error(place.scan.window.path(), why))?,
        };
        let unpacker = self.unpacker.insert(unpacker);
        let mut bytes = vec![];
        loop {
            let Some((header, offset)) = place.find(&self.shared, self.next)? else {
                place = open_after(&self.shared, place.number, self.next)?;
                bytes.clear();
                continue;
            };
            if !place.scan.prove(&header, offset)? {
                bytes.clear();
                continue;
            }
            if header.batch > self.next {
                return Err(place.missing(offset, self.next, header.batch)?);
            }
            let commit = place.open(&header, offset, unpacker, &mut bytes, &mut self.large)?;
            if header.kind == Kind::Part {
                continue;
            }
            self.next += 1;
            self.place = Some(place);
            if header.piece == Piece::First {
                let ends = self.find_end();
                if ends.is_err() {
                    // It is no use without its end: it is asked for again, and refused again.
                    self.next -= 1;
                    self.place = None;
                }
                self.ends = ends?;
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
            let Some((header, offset)) = place.find(&self.shared, ahead.next)? else {
                place = open_after(&self.shared, place.number, ahead.next)?;
                continue;
            };
            if header.batch > ahead.next {
                if place.scan.prove(&header, offset)? {
                    return Err(place.missing(offset, ahead.next, header.batch)?);
                }
            } else if header.kind == Kind::Batch {
                if header.piece == Piece::Last {
                    return Ok(ahead.read()?.commit);
                }
                ahead.next += 1;
            }
        }
    }

    /// Closes the segment if it was unlinked meanwhile: its room returns only then, and on a full disk
    /// no batch may come before it has.
    fn close(&mut self) {
        let gone = |place: &Place| !lock(&self.shared.catalogue).holds(place.number);
        if self.place.as_ref().is_some_and(gone) {
            self.place = None;
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
        self.let_go();
        loop {
            match self.shared.standing(self.next, wait)? {
                Standing::Ahead => {
                    self.close();
                    return Ok(None);
                }
                Standing::Torn(_) if self.is_open => {
                    self.is_open = false;
                    let what = "the log went back to before the transaction of which it is a part";
                    return Err(nowhere(&self.shared, self.next, what));
                }
                Standing::Torn(end) => self.next = end + 1,
                Standing::Durable => break,
            }
        }
        if let Some(batch) = self.take() {
            return Ok(Some(batch));
        }
        let number = self.next;
        let batch = self.read();
        match &batch {
            Ok(_) if self.shared.is_lost(number) => {
                (self.next, self.place) = (number, None);
                Err(nowhere(&self.shared, number, "it could not be read before"))
            }
            Ok(read) => {
                self.is_open = matches!(read.piece, Piece::First | Piece::Middle);
                batch.map(Some)
            }
            Err(error @ JournalError::Damaged { .. }) => {
                self.shared.lose(number);
                self.shared.show_damage(error);
                batch.map(Some)
            }
            Err(_) => batch.map(Some),
        }
    }

    fn let_go(&mut self) {
        self.large = None;
    }
}

impl Place {
    /// Goes to the next frame of rows of batch `next` or a later one. `None`: the segment ends here,
    /// or `next` is one that a later segment can hold. If this one has it, too, its tail was to be cut.
    fn find(
        &mut self,
        shared: &Shared,
        next: u64,
    ) -> Result<Option<(FrameHeader, u64)>, JournalError> {
        let limit = match shared.synced_bytes(self.number) {
            Some(synced_bytes) => synced_bytes,
            None => self.scan.window.file_bytes()?,
        };
        self.scan.read_until(limit);
        let later = lock(&shared.catalogue).first_after(self.number);
        if later.is_some_and(|first| first <= next) {
            return Ok(None);
        }
        loop {
            match self.scan.skim()? {
                Some(Item::Frame(header, offset)) => {
                    if header.kind.is_payload() && header.batch >= next {
                        return Ok(Some((header, offset)));
                    }
                    if header.batch > next && self.scan.prove(&header, offset)? {
                        return Err(self.missing(offset, next, header.batch)?);
                    }
                }
                Some(Item::Bad(bad)) => self.bad = Some(bad),
                None => break,
            }
        }
        match &self.bad {
            // What is looked for may have stood in it.
            Some(bad) => Err(self.name(bad, next, next + 1)?),
            None => Ok(None),
        }
    }

    /// Appends what the frame at `offset` holds of its batch. Gives the commit.
    fn open(
        &mut self,
        header: &FrameHeader,
        offset: u64,
        unpacker: &mut Unpacker,
        bytes: &mut Vec<u8>,
        large: &mut Option<Held<'static>>,
    ) -> Result<Option<Commit>, JournalError> {
        let held = self.scan.held(header, offset)?;
        if large.is_none()
            && let Some(whole) = Unpacker::run_bytes(held).filter(|whole| *whole > LARGE_BYTES)
        {
            *large = Some(large::take_out(whole));
        }
        if let Some(commit) = unpacker.part(held, header.kind == Kind::Batch, bytes) {
            return Ok(commit);
        }
        let (to, what) =
            (offset + header.frame_bytes(), "a frame does not hold what its kind says");
        let bad = Bad { from: offset, to, frame: header.frame, header: Some(*header), what };
        match self.bad.clone() {
            // Its first part was lost.
            Some(before) if before.to <= offset => {
                Err(self.name(&before, header.batch, header.batch + 1)?)
            }
            _ => Err(self.name(&bad, header.batch, header.batch + 1)?),
        }
    }

    /// Batches from `first` on do not stand before `end`, as they should.
    fn missing(&self, offset: u64, first: u64, end: u64) -> Result<JournalError, JournalError> {
        let what = "batches are missing before this place";
        let gap = Bad { from: offset, to: offset, frame: 0, header: None, what };
        self.name(self.bad.as_ref().unwrap_or(&gap), first, end)
    }

    /// The error that names damage which took batches from `first` to before `end`, with all that it
    /// took: `check` names it in the same words.
    fn name(&self, bad: &Bad, first: u64, end: u64) -> Result<JournalError, JournalError> {
        let path = self.scan.window.path();
        let shown = path.display().to_string();
        let mut scan = Scan::new(Window::open(&*self.device, path)?, Some(self.key.clone()))?;
        let mut before = None;
        let mut found = false;
        while let Some(item) = scan.next()? {
            match item {
                Item::Frame(header, _) if found => {
                    let before = before.unwrap_or(first);
                    return Ok(damaged(&shown, bad, before, header.batch.max(end)));
                }
                Item::Frame(header, _) if header.kind == Kind::Batch => {
                    before = Some(header.batch + 1);
                }
                Item::Frame(header, _) => before = Some(header.batch),
                Item::Bad(other) => found |= other == *bad,
            }
        }
        Ok(damaged(&shown, bad, if found { before.unwrap_or(first) } else { first }, end))
    }
}

/// Opens the segment after `number`, in which `next` is looked for. One that nothing opens is passed
/// over if `next` cannot be in it.
fn open_after(shared: &Shared, mut number: u64, next: u64) -> Result<Place, JournalError> {
    loop {
        let (entry, later) = {
            let catalogue = lock(&shared.catalogue);
            let entry = catalogue.after(number).cloned();
            let later = entry.as_ref().and_then(|entry| catalogue.first_after(entry.number));
            (entry, later)
        };
        let Some(entry) = entry else { return Err(not_held(shared, next)) };
        match open_place(shared, &entry) {
            Ok(Some(place)) => return Ok(place),
            Ok(None) => {}
            Err(JournalError::Damaged { .. }) if later.is_some_and(|first| first <= next) => {}
            Err(error) => return Err(error),
        }
        number = entry.number;
    }
}

/// `None`: it was unlinked meanwhile.
fn open_place(shared: &Shared, entry: &Entry) -> Result<Option<Place>, JournalError> {
    let mut window = match Window::open(&*shared.device, &entry.path) {
        Ok(window) => window,
        Err(JournalError::Read { why, .. }) if why.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let damaged = |what| header_damage(&entry.path, what, Batches::Segment);
    let header = window.header()?.map_err(damaged)?;
    let key = Arc::new(SegmentKey::derive(shared.key.expose(), &header.salt, header.number));
    let scan = Scan::new(window, Some(key.clone()))?;
    let device = Arc::clone(&shared.device);
    Ok(Some(Place { device, number: entry.number, scan, key, bad: None }))
}

fn not_held(shared: &Shared, batch: u64) -> JournalError {
    nowhere(shared, batch, "no segment holds it: it was trimmed, or its segment is gone")
}

fn nowhere(shared: &Shared, batch: u64, what: &str) -> JournalError {
    JournalError::Damaged {
        path: shared.dir.display().to_string(),
        from: 0,
        to: 0,
        batches: Batches::Range(batch, batch),
        what: what.into(),
    }
}
