//! Opens the journal's folder: finds the segments, where the log ends, and what it says.
//!
//! **Invariant (I9, I10):** recovering twice finds what recovering once found; a crash at any step of
//! it loses nothing. [`survey`] changes nothing; [`mend`] cuts what was never fsynced. The last group
//! is written again before it counts: after a failed fsync its pages can be in memory only, and look
//! clean (I6).
//!
//! Of closed segments only headers and lengths are looked at; their frames are checked when read.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    JournalError,
    catalogue::{Catalogue, Entry},
    device::{Device, write_all},
    record::{FactMap, SegmentHeader},
    scan::{Window, read_error},
    segment::{file_number, write_error},
    store::Image,
    tail::{Verdict, read_tail},
    watermark::Progress,
};
use crate::disk;

/// What is in the folder.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) catalogue: Catalogue,
    pub(crate) progress: Progress,
    pub(crate) facts: FactMap,
    /// The last segment, if there is one.
    pub(crate) last: Option<Last>,
    /// What does not match, by its range.
    pub(crate) damage: Vec<JournalError>,
    /// What the index is worth.
    pub(crate) index: Verdict,
}

/// The last segment.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    pub(crate) number: u64,
    pub(crate) path: PathBuf,
    pub(crate) file_bytes: u64,
    /// Where its good bytes end.
    pub(crate) end: u64,
    /// Where its last group begins.
    pub(crate) group_from: u64,
}

/// Looks at the folder. `image`: what the index holds.
///
/// # Errors
///
/// [`JournalError::Key`], [`JournalError::Read`], or [`JournalError::Damaged`]: facts were lost.
pub(crate) fn survey(
    dir: &Path,
    key: &[u8],
    image: Option<&Image>,
) -> Result<Survey, JournalError> {
    let mut catalogue = Catalogue::default();
    let mut damage = vec![];
    let mut before: Option<Entry> = None;
    for path in segment_files(dir)? {
        let Some(number) = file_number(&path) else { continue };
        let mut window = Window::open(&path)?;
        let bytes = window.file_bytes()?;
        let header = match window.header()? {
            Ok(header) if header.number == number => Ok(header),
            Ok(_) => Err("its header has another number than its name"),
            Err(what) => Err(what),
        };
        match &header {
            Ok(header) => damage.extend(other_length(before.as_ref(), header)),
            Err(what) => damage.push(header_damage(&path, what)),
        }
        let first_batch = header.ok().map(|header| header.first_batch);
        let entry = Entry { number, path, first_batch, bytes };
        before = Some(entry.clone());
        catalogue.push(entry);
    }
    let Some(entry) = before else { return Ok(nothing(image)) };
    if entry.first_batch.is_none() {
        return Err(damage.pop().expect("a header that does not read is damage"));
    }
    let tail = read_tail(Window::open(&entry.path)?, key, image)?;
    damage.extend(tail.damage);
    catalogue.grow(tail.end);
    let last = Last {
        number: entry.number,
        path: entry.path,
        file_bytes: entry.bytes,
        end: tail.end,
        group_from: tail.group_from,
    };
    Ok(Survey {
        catalogue,
        progress: tail.progress,
        facts: tail.facts,
        last: Some(last),
        damage,
        index: tail.index,
    })
}

/// Cuts what was never fsynced off the last segment, and makes sure of its last group.
///
/// # Errors
///
/// [`JournalError::Write`] or [`JournalError::Read`]; it can be done again.
pub(crate) fn mend(device: &dyn Device, last: &Last) -> Result<(), JournalError> {
    let failed = |why| write_error(&last.path, why);
    let file = device.open(&last.path).map_err(failed)?;
    file.cut(last.end).map_err(failed)?;
    let source = fs::File::open(&last.path).map_err(|why| read_error(&last.path, why))?;
    let mut bytes = vec![];
    let mut offset = last.group_from;
    while offset < last.end {
        let length = (last.end - offset).min(REWRITE_BYTES);
        bytes.resize(usize::try_from(length).map_err(io::Error::other).map_err(failed)?, 0);
        source.read_exact_at(&mut bytes, offset).map_err(|why| read_error(&last.path, why))?;
        write_all(&*file, &bytes, offset).map_err(failed)?;
        offset += length;
    }
    file.sync().map_err(failed)
}

/// Removes segments that were never finished.
///
/// # Errors
///
/// The folder cannot be changed.
pub(crate) fn remove_young(device: &dyn Device, dir: &Path) -> Result<(), JournalError> {
    for path in disk::list(dir, "new").map_err(|why| read_error(dir, why))? {
        device.remove(&path).map_err(|why| write_error(&path, why))?;
    }
    Ok(())
}

/// Segment files, by number.
pub(crate) fn segment_files(dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let files = disk::list(dir, "log").map_err(|why| read_error(dir, why))?;
    Ok(files.into_iter().filter(|path| file_number(path).is_some()).collect())
}

fn nothing(image: Option<&Image>) -> Survey {
    let index = match image {
        Some(_) => Verdict::Wrong("its log is gone"),
        None => Verdict::Behind,
    };
    Survey {
        catalogue: Catalogue::default(),
        progress: Progress::default(),
        facts: FactMap::new(),
        last: None,
        damage: vec![],
        index,
    }
}

/// Whether a closed segment has lost or gained bytes since its successor was made.
pub(crate) fn other_length(before: Option<&Entry>, next: &SegmentHeader) -> Option<JournalError> {
    let before = before.filter(|before| before.number + 1 == next.number)?;
    if before.bytes == next.previous_bytes {
        return None;
    }
    let first = before.first_batch.unwrap_or(0);
    Some(JournalError::Damaged {
        path: before.path.display().to_string(),
        from: before.bytes.min(next.previous_bytes),
        to: before.bytes.max(next.previous_bytes),
        batches: format!("some of {first}–{}", next.first_batch.saturating_sub(1)),
        what: format!("it was closed at {} bytes and has {}", next.previous_bytes, before.bytes),
    })
}

/// A segment whose header does not read.
pub(crate) fn header_damage(path: &Path, what: &str) -> JournalError {
    JournalError::Damaged {
        path: path.display().to_string(),
        from: 0,
        to: super::record::SEGMENT_HEADER_BYTES as u64,
        batches: "all of this segment".into(),
        what: what.into(),
    }
}

const REWRITE_BYTES: u64 = 4 << 20;
