//! Reads the frames of a segment one after the other, and finds the next whole one after damage.
//!
//! **Invariant (I10):** nothing is passed over in silence: what is no frame is given as [`Item::Bad`],
//! with its range.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    JournalError,
    record::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, SEGMENT_HEADER_BYTES, SegmentHeader},
};
use crate::disk;

/// A segment's file, read through a window that is moved forward.
pub(crate) struct Window {
    file: File,
    path: PathBuf,
    bytes: Vec<u8>,
    start: u64,
}

/// Read at once beyond what was asked for.
const AHEAD_BYTES: usize = 256 << 10;

/// A window larger than this is given back once it is moved.
const KEPT_BYTES: usize = 8 << 20;

impl Window {
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let file = File::open(path).map_err(|why| read_error(path, why))?;
        Ok(Self { file, path: path.to_owned(), bytes: vec![], start: 0 })
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
                if !self.fill(offset, ahead.min(length.max(AHEAD_BYTES)))? {
                    return Ok(None);
                }
                0
            }
        };
        Ok(self.bytes.get_mut(place..place + length))
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
        let metadata = self.file.metadata().map_err(|why| read_error(&self.path, why))?;
        Ok(metadata.len())
    }

    /// The segment's header, or what is wrong with it.
    pub(crate) fn header(&mut self) -> Result<Result<SegmentHeader, &'static str>, JournalError> {
        let limit = self.file_bytes()?;
        let bytes = self.at(0, SEGMENT_HEADER_BYTES, limit)?;
        Ok(SegmentHeader::decode(bytes.unwrap_or_default()))
    }

    /// What is read next comes from the device, not from memory.
    ///
    /// # Errors
    ///
    /// [`JournalError::Read`].
    pub(crate) fn forget(&mut self) -> Result<(), JournalError> {
        self.bytes.clear();
        disk::forget(&self.file).map_err(|why| read_error(&self.path, why))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// All frames of one segment.
pub(crate) struct Scan {
    pub(crate) window: Window,
    limit: u64,
    offset: u64,
    /// Number of the next frame.
    expected: u64,
}

/// What stands at one place of a segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Item {
    /// A frame whose checksums match. Its payload: [`Scan::payload`].
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
    /// That frame's header, if it is whole and only the payload is not.
    pub(crate) header: Option<FrameHeader>,
    /// What does not match.
    pub(crate) what: &'static str,
}

impl Scan {
    /// Begins after the header.
    pub(crate) fn new(window: Window) -> Result<Self, JournalError> {
        let limit = window.file_bytes()?;
        Ok(Self { window, limit, offset: SEGMENT_HEADER_BYTES as u64, expected: 0 })
    }

    /// The next item; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, JournalError> {
        if self.offset >= self.limit {
            return Ok(None);
        }
        let (header, what) = match self.frame_at(self.offset)? {
            Ok(header) => {
                let offset = self.offset;
                self.offset += header.frame_bytes();
                self.expected = header.frame + 1;
                return Ok(Some(Item::Frame(header, offset)));
            }
            Err(found) => found,
        };
        let bad = Bad { from: self.offset, to: self.limit, frame: self.expected, header, what };
        self.offset = match self.resume(&bad)? {
            Some((offset, frame)) => {
                // The good frame is read again by the next call: it may have any number from here on.
                self.expected = frame;
                offset
            }
            None => self.limit,
        };
        Ok(Some(Item::Bad(Bad { to: self.offset, ..bad })))
    }

    /// First byte of the next item.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The payload of the frame given last.
    pub(crate) fn payload(
        &mut self,
        header: &FrameHeader,
        offset: u64,
    ) -> Result<&mut [u8], JournalError> {
        let offset = offset + FRAME_HEADER_BYTES as u64;
        let payload = self.window.at(offset, header.payload_len(), self.limit)?;
        Ok(payload.expect("the scan has read this frame"))
    }

    /// The frame at `offset` with all its checksums, or what is wrong with it.
    fn frame_at(
        &mut self,
        offset: u64,
    ) -> Result<Result<FrameHeader, (Option<FrameHeader>, &'static str)>, JournalError> {
        let Some(bytes) = self.window.at(offset, FRAME_HEADER_BYTES, self.limit)? else {
            return Ok(Err((None, "a frame's header is cut short")));
        };
        let header = match FrameHeader::decode(bytes) {
            Ok(header) if header.frame == self.expected => header,
            Ok(_) => return Ok(Err((None, "a frame's number does not follow"))),
            Err(what) => return Ok(Err((None, what))),
        };
        let frame_bytes = FRAME_HEADER_BYTES + header.payload_len();
        Ok(match self.window.at(offset, frame_bytes, self.limit)? {
            None => Err((Some(header), "a frame is cut short")),
            Some(frame) if crc32c::crc32c(&frame[FRAME_HEADER_BYTES..]) == header.payload_crc => {
                Ok(header)
            }
            Some(_) => Err((Some(header), "the checksum of a frame does not match")),
        })
    }

    /// Where the next whole frame begins after `bad`, and its number.
    fn resume(&mut self, bad: &Bad) -> Result<Option<(u64, u64)>, JournalError> {
        let mut offset = bad.from + 1;
        if let Some(header) = bad.header {
            // Only the payload is bad: whatever looks like a frame inside it is not one.
            offset = bad.from + header.frame_bytes();
        }
        loop {
            let ahead = self.limit.saturating_sub(offset).min(AHEAD_BYTES as u64);
            let length = usize::try_from(ahead).expect("bounded by AHEAD_BYTES");
            let Some(bytes) = self.window.at(offset, length, self.limit)? else { return Ok(None) };
            if length < FRAME_HEADER_BYTES {
                return Ok(None);
            }
            let Some(place) = bytes.windows(4).position(|four| four == FRAME_MAGIC) else {
                offset += ahead - 3;
                continue;
            };
            offset += place as u64;
            if let Some(frame) = self.whole_frame_after(offset, bad.frame)? {
                return Ok(Some((offset, frame)));
            }
            offset += 1;
        }
    }

    /// The number of the whole frame at `offset`, if there is one that can follow frame `after`.
    fn whole_frame_after(&mut self, offset: u64, after: u64) -> Result<Option<u64>, JournalError> {
        let bytes = self.window.at(offset, FRAME_HEADER_BYTES, self.limit)?;
        let Ok(header) = FrameHeader::decode(bytes.unwrap_or_default()) else { return Ok(None) };
        if header.frame < after {
            return Ok(None);
        }
        self.expected = header.frame;
        let whole = self.frame_at(offset)?.is_ok();
        self.expected = after;
        Ok(whole.then_some(header.frame))
    }
}

/// A failed read.
pub(crate) fn read_error(path: &Path, why: io::Error) -> JournalError {
    JournalError::Read { path: path.display().to_string(), why }
}
