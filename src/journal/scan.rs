//! Reads the frames of a segment one after the other, and finds the next whole one after damage.
//!
//! **Invariant (I10):** nothing is passed over in silence: what is no frame is given as [`Item::Bad`],
//! with its range.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    JournalError,
    cipher::SegmentKey,
    device::{Device, ReadAt},
    record::{
        FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
        TAG_BYTES,
    },
};

/// A segment's file, read through a window that is moved forward.
pub(crate) struct Window {
    file: Box<dyn ReadAt>,
    path: PathBuf,
    bytes: Vec<u8>,
    start: u64,
    /// Read at once beyond what was asked for.
    ahead: usize,
}

/// Read at once by one who reads on.
const AHEAD_BYTES: usize = 256 << 10;

/// Read at once by one who only looks at the beginning.
const PROBE_BYTES: usize = 4 << 10;

/// A window larger than this is given back once it is moved.
const KEPT_BYTES: usize = 8 << 20;

impl Window {
    pub(crate) fn open(device: &dyn Device, path: &Path) -> Result<Self, JournalError> {
        let file = device.read(path).map_err(|why| read_error(path, why))?;
        Ok(Self { file, path: path.to_owned(), bytes: vec![], start: 0, ahead: AHEAD_BYTES })
    }

    /// For one who only looks at the beginning.
    pub(crate) fn probe(device: &dyn Device, path: &Path) -> Result<Self, JournalError> {
        Ok(Self { ahead: PROBE_BYTES, ..Self::open(device, path)? })
    }

    /// `length` bytes from `offset` on; `None` if they reach beyond `limit`. They may be changed by
    /// the caller, who then asks for them no more.
    pub(crate) fn at(
        &mut self,
        offset: u64,
        length: usize,
        limit: u64,
    ) -> Result<Option<&mut [u8]>, JournalError> {
        if offset.saturating_add(length as u64) > limit {
            return Ok(None);
        }
        let place = offset.checked_sub(self.start).and_then(|place| usize::try_from(place).ok());
        let place = match place {
            Some(place) if place.saturating_add(length) <= self.bytes.len() => place,
            _ => {
                let ahead = usize::try_from(limit - offset).unwrap_or(usize::MAX);
                if !self.fill(offset, ahead.min(length.max(self.ahead)))? {
                    return Ok(None);
                }
                0
            }
        };
        Ok(self.bytes.get_mut(place..place + length))
    }

    /// Some bytes from `offset` on, at least `least` of them; `None` if there are fewer up to `limit`.
    fn some(
        &mut self,
        offset: u64,
        least: usize,
        limit: u64,
    ) -> Result<Option<&mut [u8]>, JournalError> {
        let held = (self.start + self.bytes.len() as u64).min(limit);
        let here = if offset < self.start { 0 } else { held.saturating_sub(offset) };
        let ahead = limit.saturating_sub(offset).min(self.ahead as u64);
        let length = if here >= least as u64 { here } else { ahead };
        let length = usize::try_from(length).expect("bounded by the window");
        if length < least { Ok(None) } else { self.at(offset, length, limit) }
    }

    /// Whether the file had all the bytes.
    fn fill(&mut self, offset: u64, length: usize) -> Result<bool, JournalError> {
        if self.bytes.capacity() > KEPT_BYTES && length <= KEPT_BYTES {
            self.bytes = vec![];
        }
        self.bytes.resize(length, 0);
        self.start = offset;
        match self.file.read_exact_at(&mut self.bytes, offset) {
            Ok(()) => Ok(true),
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => {
                self.bytes.clear();
                Ok(false)
            }
            Err(why) => Err(read_error(&self.path, why)),
        }
    }

    pub(crate) fn file_bytes(&self) -> Result<u64, JournalError> {
        self.file.length().map_err(|why| read_error(&self.path, why))
    }

    /// The segment's header, or what is wrong with it.
    pub(crate) fn header(&mut self) -> Result<Result<SegmentHeader, &'static str>, JournalError> {
        let limit = self.file_bytes()?;
        let bytes = self.at(0, SEGMENT_HEADER_BYTES, limit)?;
        Ok(SegmentHeader::decode(bytes.unwrap_or_default()))
    }

    /// What is read next comes from the file: what is here was changed.
    fn reread(&mut self) {
        self.bytes.clear();
    }

    /// What is read next comes from the device, not from memory.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`].
    pub(crate) fn forget(&mut self) -> Result<(), JournalError> {
        self.bytes.clear();
        self.file.forget().map_err(|why| read_error(&self.path, why))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// All frames of one segment, by number. Behind damage they are taken wherever they stand.
pub(crate) struct Scan {
    pub(crate) window: Window,
    /// Frames count only if it opens them; without it, if their checksums match.
    key: Option<Arc<SegmentKey>>,
    limit: u64,
    /// All before was given.
    offset: u64,
    /// Number of the next frame.
    expected: u64,
    /// Behind damage: what is whole behind it.
    gathered: Option<Gathered>,
}

/// The whole frames behind damage.
#[derive(Default)]
struct Gathered {
    /// Number and offset, the next one last.
    frames: Vec<(u64, u64)>,
    /// Up to where they were looked for.
    limit: u64,
}

/// What stands at one place of a segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Item {
    /// A whole frame. What it holds: [`Scan::held`].
    Frame(FrameHeader, u64),
    /// Bytes that are none.
    Bad(Bad),
}

/// A range of bytes that hold no whole frames.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Bad {
    /// First bad byte.
    pub(crate) from: u64,
    /// First good byte after it, or the end of the file.
    pub(crate) to: u64,
    /// Number of the frame that should have begun here.
    pub(crate) frame: u64,
    /// That frame's header, if it is whole and only the payload is not. Nothing proves that it
    /// belongs here.
    pub(crate) header: Option<FrameHeader>,
    /// What does not match.
    pub(crate) what: &'static str,
}

/// A whole frame of another key: it was written as it is, and is no torn write.
pub(crate) const FOREIGN: &str = "the seal of a frame does not open";

impl Scan {
    /// Begins after the header. With `key`, what it gives is proven, and open.
    pub(crate) fn new(window: Window, key: Option<Arc<SegmentKey>>) -> Result<Self, JournalError> {
        let limit = window.file_bytes()?;
        let offset = SEGMENT_HEADER_BYTES as u64;
        Ok(Self { window, key, limit, offset, expected: 0, gathered: None })
    }

    /// The segment has grown, or is to be read so far only.
    pub(crate) fn read_until(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// The first whole frame from here on, and where it is.
    pub(crate) fn first_frame(&mut self) -> Result<Option<(FrameHeader, u64)>, JournalError> {
        while let Some(item) = self.next()? {
            if let Item::Frame(header, offset) = item {
                return Ok(Some((header, offset)));
            }
        }
        Ok(None)
    }

    /// The next item; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, JournalError> {
        loop {
            if let Some(gathered) = &self.gathered {
                let (next, limit) = (gathered.frames.last().copied(), gathered.limit);
                match self.gathered(next, limit)? {
                    Some(item) => return Ok(Some(item)),
                    None => self.gathered = None,
                }
            }
            if self.offset >= self.limit {
                return Ok(None);
            }
            match self.frame_at(self.offset, self.expected)? {
                Ok(header) => return Ok(Some(self.give(header, self.offset))),
                Err((header, _)) => self.gather(header)?,
            }
        }
    }

    /// As [`Scan::next`], but of a frame that stands where it should only the header is looked at:
    /// [`Scan::prove`] looks at the rest.
    pub(crate) fn skim(&mut self) -> Result<Option<Item>, JournalError> {
        if self.gathered.is_none() && self.offset < self.limit {
            let bytes = self.window.at(self.offset, FRAME_HEADER_BYTES, self.limit)?;
            let header = FrameHeader::decode(bytes.unwrap_or_default()).ok().filter(|header| {
                header.frame == self.expected && self.offset + header.frame_bytes() <= self.limit
            });
            if let Some(header) = header {
                return Ok(Some(self.give(header, self.offset)));
            }
        }
        self.next()
    }

    /// Whether the frame that [`Scan::skim`] gave last is proven; then it is open. If not, what is
    /// given next is what stands in its place.
    pub(crate) fn prove(
        &mut self,
        header: &FrameHeader,
        offset: u64,
    ) -> Result<bool, JournalError> {
        if self.gathered.is_some() {
            return Ok(true);
        }
        let proven = self.frame_at(offset, header.frame)?.is_ok();
        if !proven {
            (self.offset, self.expected) = (offset, header.frame);
            self.gather(Some(*header))?;
        }
        Ok(proven)
    }

    fn give(&mut self, header: FrameHeader, offset: u64) -> Item {
        self.offset = self.offset.max(offset + header.frame_bytes());
        self.expected = header.frame + 1;
        Item::Frame(header, offset)
    }

    /// The next item of what was gathered; `None` at its end.
    fn gathered(
        &mut self,
        next: Option<(u64, u64)>,
        limit: u64,
    ) -> Result<Option<Item>, JournalError> {
        let (frame, offset) = match next {
            Some(next) => next,
            None if self.offset < limit => (self.expected, limit),
            None => return Ok(None),
        };
        if frame != self.expected || offset > self.offset {
            let (header, what) = match self.frame_at(self.offset, self.expected)? {
                Err(found) => found,
                Ok(_) => (None, "a frame's number does not follow"),
            };
            self.window.reread();
            let (from, to) = (self.offset, self.offset.max(offset));
            let bad = Bad { from, to, frame: self.expected, header, what };
            (self.offset, self.expected) = (to, frame);
            return Ok(Some(Item::Bad(bad)));
        }
        let Some(gathered) = &mut self.gathered else { return Ok(None) };
        gathered.frames.pop();
        // It was whole a moment ago; if it is not any more, it is passed over as bytes of no frame.
        Ok(match self.frame_at(offset, frame)? {
            Ok(header) => Some(self.give(header, offset)),
            Err(_) => Some(Item::Bad(self.vanished(offset, frame))),
        })
    }

    fn vanished(&mut self, offset: u64, frame: u64) -> Bad {
        self.expected = frame + 1;
        let what = "a frame changed while it was read";
        Bad { from: offset, to: offset + 1, frame, header: None, what }
    }

    /// First byte of the next item.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// What the frame given last holds: with a key its plaintext, else its payload. To be asked once.
    pub(crate) fn held(
        &mut self,
        header: &FrameHeader,
        offset: u64,
    ) -> Result<&mut [u8], JournalError> {
        let offset = offset + FRAME_HEADER_BYTES as u64;
        let bytes = header.payload_len() - if self.key.is_some() { TAG_BYTES } else { 0 };
        let held = self.window.at(offset, bytes, self.limit)?;
        Ok(held.expect("the scan has read this frame"))
    }

    /// The frame at `offset`, whole, proven and open, or what is wrong with it.
    fn frame_at(
        &mut self,
        offset: u64,
        expected: u64,
    ) -> Result<Result<FrameHeader, (Option<FrameHeader>, &'static str)>, JournalError> {
        let Some(bytes) = self.window.at(offset, FRAME_HEADER_BYTES, self.limit)? else {
            return Ok(Err((None, "a frame's header is cut short")));
        };
        let header = match FrameHeader::decode(bytes) {
            Ok(header) if header.frame == expected => header,
            Ok(_) => return Ok(Err((None, "a frame's number does not follow"))),
            Err(what) => return Ok(Err((None, what))),
        };
        let frame_bytes = FRAME_HEADER_BYTES + header.payload_len();
        let Some(frame) = self.window.at(offset, frame_bytes, self.limit)? else {
            return Ok(Err((Some(header), "a frame is cut short")));
        };
        let payload = &mut frame[FRAME_HEADER_BYTES..];
        if crc32c::crc32c(payload) != header.payload_crc {
            return Ok(Err((Some(header), "the checksum of a frame does not match")));
        }
        let opens = self.key.as_ref().is_none_or(|key| key.open(&header, payload).is_some());
        if !opens {
            self.window.reread();
            return Ok(Err((Some(header), FOREIGN)));
        }
        Ok(Ok(header))
    }

    /// Looks for all whole frames from here on that can still come. `header`: of the frame here, which
    /// is bad.
    fn gather(&mut self, header: Option<FrameHeader>) -> Result<(), JournalError> {
        let mut offset = self.offset;
        if let (None, Some(header)) = (&self.key, header) {
            // Whatever looks like a frame inside a payload is not one, and nothing else tells.
            offset = self.offset + header.frame_bytes();
        }
        let mut frames = vec![];
        while let Some(place) = self.find_magic(offset)? {
            offset = place + 1;
            let Some(frame) = self.frame_number(place)?.filter(|frame| *frame >= self.expected)
            else {
                continue;
            };
            if let Ok(header) = self.frame_at(place, frame)? {
                self.window.reread();
                frames.push((frame, place));
                offset = place + header.frame_bytes();
            }
        }
        // Of copies the first one counts.
        frames.sort_unstable();
        frames.dedup_by_key(|(frame, _)| *frame);
        frames.reverse();
        self.gathered = Some(Gathered { frames, limit: self.limit });
        Ok(())
    }

    /// Where a frame may begin at or after `offset`.
    fn find_magic(&mut self, mut offset: u64) -> Result<Option<u64>, JournalError> {
        while let Some(bytes) = self.window.some(offset, FRAME_HEADER_BYTES, self.limit)? {
            match find(bytes) {
                Some(place) => return Ok(Some(offset + place as u64)),
                None => offset += bytes.len() as u64 - 3,
            }
        }
        Ok(None)
    }

    /// The number in the header at `place`, if one is there.
    fn frame_number(&mut self, place: u64) -> Result<Option<u64>, JournalError> {
        let bytes = self.window.at(place, FRAME_HEADER_BYTES, self.limit)?;
        let header = FrameHeader::decode(bytes.unwrap_or_default());
        Ok(header.ok().map(|header| header.frame))
    }
}

/// The first place of a frame's magic.
fn find(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let found = from + bytes.get(from..)?.iter().position(|byte| *byte == FRAME_MAGIC[0])?;
        if bytes[found..].starts_with(&FRAME_MAGIC) {
            return Some(found);
        }
        from = found + 1;
    }
}

/// A failed read.
pub(crate) fn read_error(path: &Path, why: io::Error) -> JournalError {
    JournalError::Read { path: path.display().to_string(), why }
}
