//! Opens the journal's folder: finds the segments, where the log ends, and what it says.
//!
//! **Invariant (I9, I10):** recovering twice finds what recovering once found; a crash at any step of
//! it loses nothing. [`survey`] changes nothing; [`mend`] cuts what was never fsynced, and writes again
//! headers that are known from elsewhere. The last group is written again before it counts: after a
//! failed fsync its pages can be in memory only, and look clean (I6).
//!
//! Of closed segments only headers, lengths and the first frame are looked at; the others are checked
//! when read. Where segments are gone from the end and the index has seen them, its word counts:
//! **sled is never the only copy of a fact** by our doing, but it can be the last.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Batches, JournalError,
    catalogue::{Catalogue, Entry},
    cipher::SegmentKey,
    device::{Device, write_all},
    find::{Found, Place, find},
    record::{FactMap, SegmentHeader},
    scan::{Window, read_error},
    segment::{file_number, write_error},
    store::{Checkpoint, Image},
    tail::{Beside, Known, Tail, Verdict, read_tail},
    watermark::Progress,
};
use crate::source::ORIGIN_FACT;

/// What is in the folder.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) catalogue: Catalogue,
    pub(crate) progress: Progress,
    pub(crate) facts: FactMap,
    /// The last segment, if there is one and it may have a torn tail.
    pub(crate) last: Option<Last>,
    /// Headers that can be written again.
    pub(crate) headers: Vec<(PathBuf, SegmentHeader)>,
    /// Number of the next segment, and bytes of the one numbered one less.
    pub(crate) next: (u64, u64),
    /// What does not match, by its range.
    pub(crate) damage: Vec<JournalError>,
    /// What the index is worth.
    pub(crate) index: Verdict,
}

/// The last segment.
#[derive(Clone, Debug)]
pub(crate) struct Last {
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
    device: &dyn Device,
    dir: &Path,
    key: &[u8],
    image: Option<&Image>,
) -> Result<Survey, JournalError> {
    let Found { segments, mut damage, last_number } = find(device, dir, key, image)?;
    damage.extend(segments.windows(2).filter_map(|pair| other_length(&pair[0], &pair[1])));
    let held = segments.last().map_or(0, |place| place.number);
    let beyond = image.filter(|image| image.checkpoint.segment > held);
    let mut survey = Survey {
        catalogue: Catalogue::default(),
        progress: Progress::default(),
        facts: FactMap::new(),
        last: None,
        headers: rescued(&segments),
        next: (last_number + 1, 0),
        damage,
        index: Verdict::Behind,
    };
    segments.iter().for_each(|place| survey.catalogue.push(entry(place)));
    let tail = match beyond {
        Some(image) => beyond_log((device, dir), key, image, &segments, &mut survey.damage)?,
        None => end_of_log(device, key, image, &segments)?,
    };
    let Some((tail, is_open)) = tail else { return Ok(survey) };
    survey.damage.extend(tail.damage);
    (survey.progress, survey.facts, survey.index) = (tail.progress, tail.facts, tail.index);
    if let (Some(place), true) = (segments.last(), is_open) {
        survey.catalogue.grow(tail.end);
        let (path, file_bytes) = (place.path.clone(), place.bytes);
        let Tail { end, group_from, .. } = tail;
        survey.last = Some(Last { path, file_bytes, end, group_from });
        if place.number == last_number {
            survey.next.1 = tail.end;
        }
    }
    if let Some(image) = beyond {
        survey.next = (image.checkpoint.segment.max(last_number) + 1, 0);
    }
    Ok(survey)
}

/// What the last segment says, if there is one.
fn end_of_log(
    device: &dyn Device,
    key: &[u8],
    image: Option<&Image>,
    segments: &[Place],
) -> Result<Option<(Tail, bool)>, JournalError> {
    let Some((last, earlier)) = segments.split_last() else { return Ok(None) };
    let read =
        |beside| read_tail(Window::open(device, &last.path)?, opener(key, last, image), beside);
    let index = image.and_then(|image| index_of(image, last));
    let first_batch = last.header.map_or(0, |header| header.first_batch);
    let beside = Beside { index, first_batch, ..Beside::default() };
    let mut tail = read(beside);
    if let Err(JournalError::Damaged { .. }) = &tail
        && let Some(before) = before(device, key, image, last, earlier.last())
    {
        tail = read(Beside { before: Some((&before.progress, &before.facts)), ..beside });
    }
    let mut tail = tail?;
    if tail.index == Verdict::Behind
        && image.is_some_and(|image| image.checkpoint.segment == last.number && index.is_none())
    {
        tail.index = Verdict::Wrong("it is of another log");
    }
    Ok(Some((tail, true)))
}

/// The end of the segment before the last one: where the last one's head begins.
fn before(
    device: &dyn Device,
    key: &[u8],
    image: Option<&Image>,
    last: &Place,
    before: Option<&Place>,
) -> Option<Tail> {
    let before = before.filter(|before| {
        let whole = last.header.is_some_and(|header| header.previous_bytes == before.bytes);
        whole && !last.rescued && before.number + 1 == last.number
    })?;
    let index = image.and_then(|image| index_of(image, before));
    let beside = Beside { index, closed: true, ..Beside::default() };
    read_tail(Window::open(device, &before.path).ok()?, opener(key, before, image), beside).ok()
}

/// The index covers a segment that is gone: its word counts, if it is of this log.
fn beyond_log(
    (device, dir): (&dyn Device, &Path),
    key: &[u8],
    image: &Image,
    segments: &[Place],
    damage: &mut Vec<JournalError>,
) -> Result<Option<(Tail, bool)>, JournalError> {
    let Checkpoint { segment, progress, .. } = &image.checkpoint;
    let own = end_of_log(device, key, None, segments);
    let origin = match &own {
        Ok(Some((tail, _))) => tail.facts.get(ORIGIN_FACT),
        _ => image.facts.get(ORIGIN_FACT),
    };
    if origin != image.facts.get(ORIGIN_FACT) {
        return own.map(|own| {
            own.map(|(tail, is_open)| {
                (Tail { index: Verdict::Wrong("it is of another log"), ..tail }, is_open)
            })
        });
    }
    let next = match &own {
        Ok(Some((tail, _))) => tail.progress.next_batch,
        _ => progress.durable.batch + 1,
    };
    damage.push(JournalError::Damaged {
        path: dir.join(super::segment::file_name(*segment)).display().to_string(),
        from: 0,
        to: 0,
        batches: match next < progress.next_batch {
            true => Batches::Range(next, progress.next_batch - 1),
            false => Batches::None,
        },
        what: "its file is gone, and it was the last".into(),
    });
    let (progress, facts) = (progress.clone(), image.facts.clone());
    let tail =
        Tail { progress, facts, end: 0, group_from: 0, damage: vec![], index: Verdict::Agrees };
    Ok(Some((tail, false)))
}

fn index_of<'a>(image: &'a Image, place: &Place) -> Option<Known<'a>> {
    let Checkpoint { segment, salt, frame, progress, .. } = &image.checkpoint;
    let same = match place.header {
        Some(header) => header.salt == *salt,
        // Nothing opens the segment; that it is of this log nobody denies.
        None => true,
    };
    let known = Known { frame: *frame, progress, facts: &image.facts };
    (*segment == place.number && same).then_some(known)
}

/// What opens a segment. Where its own header does not say, the index does: what that does not open is
/// none of its frames.
fn opener(key: &[u8], place: &Place, image: Option<&Image>) -> Option<Arc<SegmentKey>> {
    let index = image.map(|Image { checkpoint, .. }| (checkpoint.segment, checkpoint.salt));
    let index = index.filter(|(segment, _)| *segment == place.number);
    let (number, salt) = place.header.map(|header| (header.number, header.salt)).or(index)?;
    Some(Arc::new(SegmentKey::derive(key, &salt, number)))
}

fn entry(place: &Place) -> Entry {
    let Place { number, path, bytes, header, .. } = place.clone();
    Entry { number, path, first_batch: header.map(|header| header.first_batch), bytes }
}

fn rescued(segments: &[Place]) -> Vec<(PathBuf, SegmentHeader)> {
    let rescued = segments.iter().filter(|place| place.rescued);
    rescued.filter_map(|place| Some((place.path.clone(), place.header?))).collect()
}

/// Writes headers again, cuts what was never fsynced off the last segment, and makes sure of its last group.
///
/// # Errors
///
/// [`JournalError::Write`] or [`JournalError::Read`]; it can be done again.
pub(crate) fn mend(device: &dyn Device, survey: &Survey) -> Result<(), JournalError> {
    for (path, header) in &survey.headers {
        let failed = |why| write_error(path, why);
        let file = device.open(path).map_err(failed)?;
        write_all(&*file, &header.encode(), 0).map_err(failed)?;
        file.sync().map_err(failed)?;
    }
    survey.last.as_ref().map_or(Ok(()), |last| mend_tail(device, last))
}

fn mend_tail(device: &dyn Device, last: &Last) -> Result<(), JournalError> {
    let failed = |why| write_error(&last.path, why);
    let file = device.open(&last.path).map_err(failed)?;
    file.cut(last.end).map_err(failed)?;
    let source = device.read(&last.path).map_err(|why| read_error(&last.path, why))?;
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
    for path in device.list(dir, "new").map_err(|why| read_error(dir, why))? {
        device.remove(&path).map_err(|why| write_error(&path, why))?;
    }
    Ok(())
}

/// Segment files, by number.
pub(crate) fn segment_files(device: &dyn Device, dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let files = device.list(dir, "log").map_err(|why| read_error(dir, why))?;
    Ok(files.into_iter().filter(|path| file_number(path).is_some()).collect())
}

/// Whether a closed segment has lost or gained bytes since its successor was made.
pub(crate) fn other_length(before: &Place, next: &Place) -> Option<JournalError> {
    let header = next.header.filter(|_| !next.rescued && before.number + 1 == next.number)?;
    length_damage(&entry(before), &header)
}

/// Whether a closed segment has lost or gained bytes since `next` was made.
pub(crate) fn length_damage(before: &Entry, next: &SegmentHeader) -> Option<JournalError> {
    if before.number + 1 != next.number || before.bytes == next.previous_bytes {
        return None;
    }
    let first = before.first_batch.unwrap_or(0);
    Some(JournalError::Damaged {
        path: before.path.display().to_string(),
        from: before.bytes.min(next.previous_bytes),
        to: before.bytes.max(next.previous_bytes),
        batches: Batches::Some(first, next.first_batch.saturating_sub(1)),
        what: format!("it was closed at {} bytes and has {}", next.previous_bytes, before.bytes),
    })
}

const REWRITE_BYTES: u64 = 4 << 20;
