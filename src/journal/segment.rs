//! The segment that is written to: frames gathered in memory, written, then synced together.
//!
//! **Invariant (I6, I7):** nothing here counts as durable before [`Segment::sync`] answered, and the
//! segment's name not before its head was synced. The layout stands in [`record`].

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    JournalError,
    cipher::SegmentKey,
    device::{Device, DeviceFile, is_full, write_all},
    pack::Packer,
    record::{self, FactMap, FrameHeader, Kind, SegmentHeader},
    watermark::Progress,
};
use crate::{config::Secret, source::Piece};

/// The open segment.
pub(crate) struct Segment {
    file: Box<dyn DeviceFile>,
    path: PathBuf,
    header: SegmentHeader,
    key: SegmentKey,
    /// Bytes written or gathered.
    end: u64,
    /// Number of the next frame, and of the first of the group.
    frame: u64,
    group: u64,
    nonce: u64,
    /// Frames not yet written.
    gathered: Vec<u8>,
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label {
    pub(crate) kind: Kind,
    pub(crate) piece: Piece,
    pub(crate) batch: u64,
    pub(crate) first: u64,
    pub(crate) changes: u64,
}

/// A place to which the segment can be cut back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    end: u64,
    frame: u64,
}

/// What a new segment begins with.
pub(crate) struct Head<'a> {
    pub(crate) number: u64,
    pub(crate) previous_bytes: u64,
    pub(crate) progress: &'a Progress,
    pub(crate) facts: &'a FactMap,
}

/// Written at once, at most.
const WRITE_BYTES: usize = 4 << 20;

impl Segment {
    /// Makes the segment, its head durable.
    ///
    /// # Errors
    ///
    /// [`JournalError::Full`], and nothing is left of it; or [`JournalError::Write`].
    pub(crate) fn create(
        device: &dyn Device,
        dir: &Path,
        key: &Secret,
        head: &Head<'_>,
        packer: &mut Packer,
    ) -> Result<Self, JournalError> {
        let path = dir.join(file_name(head.number));
        let young = path.with_extension("new");
        let made = Self::create_young(device, &young, key, head, packer);
        let made = made.and_then(|segment| {
            device.rename(&young, &path).map_err(|why| write_error(&path, why))?;
            Ok(Self { path, ..segment })
        });
        if made.is_err() {
            // What is left is removed at the next start at the latest.
            let _ignored = device.remove(&young);
        }
        made
    }

    fn create_young(
        device: &dyn Device,
        path: &Path,
        key: &Secret,
        head: &Head<'_>,
        packer: &mut Packer,
    ) -> Result<Self, JournalError> {
        let mut salt = [0; 32];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| {
            write_error(path, io::Error::other("the system gives no random numbers"))
        })?;
        let header = SegmentHeader {
            number: head.number,
            first_batch: head.progress.next_batch,
            previous_bytes: head.previous_bytes,
            salt,
        };
        let file = device.create(path).map_err(|why| write_error(path, why))?;
        let mut segment = Self {
            file,
            path: path.to_owned(),
            header,
            key: SegmentKey::derive(key.expose(), &salt, head.number),
            end: record::SEGMENT_HEADER_BYTES as u64,
            frame: 0,
            group: 0,
            nonce: 0,
            gathered: header.encode().to_vec(),
        };
        segment.push_head(head, packer)?;
        segment.sync()?;
        Ok(segment)
    }

    fn push_head(&mut self, head: &Head<'_>, packer: &mut Packer) -> Result<(), JournalError> {
        self.push(Label::control(Kind::Progress, head.progress, 0), &head.progress.encode())?;
        for (plain, facts) in record::dumps(head.facts) {
            let packed = packer.facts(&plain).map_err(|why| write_error(&self.path, why))?;
            self.push(Label::control(Kind::Dump, head.progress, facts), &packed)?;
        }
        let all = head.facts.len() as u64;
        self.push(Label::control(Kind::DumpEnd, head.progress, all), &[])
    }

    /// Begins a group commit.
    pub(crate) fn begin(&mut self) -> Mark {
        self.group = self.frame;
        Mark { end: self.end, frame: self.frame }
    }

    /// Adds a frame to the group.
    ///
    /// # Errors
    ///
    /// [`JournalError::Full`]: cut back to the group's mark. Or [`JournalError::Write`].
    pub(crate) fn push(&mut self, label: Label, plain: &[u8]) -> Result<(), JournalError> {
        let header = FrameHeader {
            kind: label.kind,
            piece: label.piece,
            payload_bytes: 0,
            frame: self.frame,
            nonce: self.nonce,
            group: self.group,
            batch: label.batch,
            first: label.first,
            changes: label.changes,
            payload_crc: 0,
        };
        let before = self.gathered.len();
        self.key.seal(header, plain, &mut self.gathered);
        self.nonce += 1;
        self.frame += 1;
        self.end += (self.gathered.len() - before) as u64;
        if self.gathered.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// Writes the group, and syncs it.
    ///
    /// # Errors
    ///
    /// [`JournalError::Full`] before any sync: cut back to the group's mark. Or [`JournalError::Write`]:
    /// nothing since the last sync counts, and trying again proves nothing.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        self.write()?;
        // A device that is full at this point has dropped pages: as bad as any other failure.
        self.file.sync().map_err(|why| failed(&self.path, why))
    }

    fn write(&mut self) -> Result<(), JournalError> {
        let offset = self.end - self.gathered.len() as u64;
        write_all(&*self.file, &self.gathered, offset)
            .map_err(|why| write_error(&self.path, why))?;
        self.gathered.clear();
        self.gathered.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }

    /// Takes back all since `mark`. The nonces stay used.
    ///
    /// # Errors
    ///
    /// [`JournalError::Write`].
    pub(crate) fn cut(&mut self, mark: Mark) -> Result<(), JournalError> {
        self.gathered.clear();
        self.file.cut(mark.end).map_err(|why| failed(&self.path, why))?;
        self.file.sync().map_err(|why| failed(&self.path, why))?;
        (self.end, self.frame) = (mark.end, mark.frame);
        Ok(())
    }

    /// Reserves room for the whole segment; what cannot be reserved is found out when writing.
    pub(crate) fn reserve(&self, bytes: u64) {
        let _best_effort = self.file.reserve(bytes);
    }

    /// Gives back what was reserved and not used.
    pub(crate) fn close(self) {
        let _best_effort = self.file.cut(self.end);
    }

    /// Bytes in the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.end
    }

    /// Number of the next frame.
    pub(crate) fn frame(&self) -> u64 {
        self.frame
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Label {
    /// Of a frame without rows.
    pub(crate) fn control(kind: Kind, progress: &Progress, facts: u64) -> Self {
        Self {
            kind,
            piece: Piece::Whole,
            batch: progress.next_batch,
            first: progress.next_sequence,
            changes: facts,
        }
    }
}

/// The name of segment `number`.
pub(crate) fn file_name(number: u64) -> String {
    format!("seg-{number:020}.log")
}

/// The number in a segment's name.
pub(crate) fn file_number(path: &Path) -> Option<u64> {
    let digits = path.file_stem()?.to_str()?.strip_prefix("seg-")?;
    let plain = digits.len() == 20 && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

/// A failed write: full, or broken.
pub(crate) fn write_error(path: &Path, why: io::Error) -> JournalError {
    if is_full(&why) {
        JournalError::Full { path: path.display().to_string() }
    } else {
        failed(path, why)
    }
}

fn failed(path: &Path, why: io::Error) -> JournalError {
    JournalError::Write { path: path.display().to_string(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_goes_by_one_name_only() {
        assert_eq!(file_number(Path::new(&file_name(7))), Some(7));
        assert_eq!(file_number(Path::new("seg-+0000000000000000007.log")), None);
        assert_eq!(file_number(Path::new("seg-7.log")), None);
    }
}
