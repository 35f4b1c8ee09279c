//! `lakehead journal check|show`: looks at the journal of a stopped box, and changes nothing.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Serialize;

pub use super::verify::SegmentReport;
use super::{
    JournalError,
    device::FileSystem,
    recover::{segment_files, survey},
    scan::{Window, read_error},
    verify::{Order, Verifier},
};
use crate::{
    config::Secret,
    disk,
    units::{ByteSize, Position},
};

/// What [`check`] found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct CheckReport {
    /// Each segment.
    pub segments: Vec<SegmentReport>,
    /// What does not match, by segment, bytes and batches; empty when all is well.
    pub damage: Vec<String>,
    /// Bytes at the end of the last segment that were never fsynced, and will be cut.
    pub torn_bytes: u64,
}

/// What [`show`] found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Number, first batch and bytes of each segment; the first batch is absent if the header is damaged.
    pub segments: Vec<(u64, Option<u64>, u64)>,
    /// The durable watermark: the last change.
    pub sequence: u64,
    /// The durable watermark: where its transaction ends in the source's log.
    pub position: Position,
    /// The durable watermark: the last batch.
    pub batch: u64,
    /// First batch of a transaction whose end has not come.
    pub open_since_batch: Option<u64>,
    /// Torn ranges of batches that are still held: first, last.
    pub torn: Vec<(u64, u64)>,
    /// Facts: key, and bytes of the value.
    pub facts: BTreeMap<String, u64>,
    /// Damage seen on the way; `check` looks everywhere.
    pub damage: Vec<String>,
}

/// Checks every frame's checksum and seal, and that batches follow one another. `progress` is told the
/// bytes read so far, and in all.
///
/// # Errors
///
/// [`JournalError::Held`] while the box runs, [`JournalError::Key`], [`JournalError::Read`]. Damage
/// is no error here: it is what the report is for.
pub fn check(
    dir: &Path,
    key: &Secret,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, JournalError> {
    let _hold = hold(dir)?;
    let files = segment_files(&FileSystem, dir)?;
    let mut read = Read { before: 0, all: 0, progress };
    for path in &files {
        read.all += path.metadata().map_err(|why| read_error(path, why))?.len();
    }
    let mut report = CheckReport { segments: vec![], damage: vec![], torn_bytes: 0 };
    let mut order = Order::default();
    for (place, path) in files.iter().enumerate() {
        let is_last = place + 1 == files.len();
        let segment = check_segment(path, key, is_last, &mut order, &mut report.damage, &mut read)?;
        read.before += segment.bytes;
        report.segments.push(segment);
    }
    match survey(&FileSystem, dir, key.expose(), None) {
        Ok(survey) => {
            report.damage.extend(survey.damage.iter().map(ToString::to_string));
            report.torn_bytes = survey.last.map_or(0, |last| last.file_bytes - last.end);
        }
        Err(error @ JournalError::Damaged { .. }) => report.damage.push(error.to_string()),
        Err(error) => return Err(error),
    }
    report.damage.sort();
    report.damage.dedup();
    Ok(report)
}

/// Says what the journal holds: segments, watermarks, the keys of its facts; no row, no value.
///
/// # Errors
///
/// [`JournalError::Held`] while the box runs, [`JournalError::Key`], [`JournalError::Read`],
/// [`JournalError::Damaged`] if facts were lost.
pub fn show(dir: &Path, key: &Secret) -> Result<Report, JournalError> {
    let _hold = hold(dir)?;
    let survey = survey(&FileSystem, dir, key.expose(), None)?;
    let entries = survey.catalogue.entries().iter();
    let durable = survey.progress.durable;
    let facts = survey.facts.iter();
    Ok(Report {
        segments: entries.map(|entry| (entry.number, entry.first_batch, entry.bytes)).collect(),
        sequence: durable.point.sequence.0,
        position: durable.point.position,
        batch: durable.batch,
        open_since_batch: survey.progress.open,
        torn: survey.progress.torn.ranges().to_vec(),
        facts: facts.map(|(key, value)| (key.clone(), value.len() as u64)).collect(),
        damage: survey.damage.iter().map(ToString::to_string).collect(),
    })
}

/// How much was read.
struct Read<'a> {
    /// Bytes of the segments before this one.
    before: u64,
    /// Bytes of all.
    all: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

fn check_segment(
    path: &Path,
    key: &Secret,
    is_last: bool,
    order: &mut Order,
    damage: &mut Vec<String>,
    read: &mut Read<'_>,
) -> Result<SegmentReport, JournalError> {
    let window = Window::open(&FileSystem, path)?;
    let unread = SegmentReport::unread(&window)?;
    let mut verifier = match Verifier::new(window, key, order) {
        Ok(verifier) => verifier,
        Err(error @ JournalError::Damaged { .. }) => {
            damage.push(error.to_string());
            return Ok(unread);
        }
        Err(error) => return Err(error),
    };
    while verifier.step()? {
        (read.progress)(read.before + verifier.offset(), read.all);
    }
    // In the last segment it can be a torn tail: the survey knows.
    let gaps = verifier.gaps.iter().filter(|_| !is_last);
    damage.extend(gaps.chain(&verifier.wrong).map(ToString::to_string));
    Ok(verifier.report)
}

fn hold(dir: &Path) -> Result<disk::Hold, JournalError> {
    match disk::Hold::take(dir) {
        Ok(Some(hold)) => Ok(hold),
        Ok(None) => Err(JournalError::Held { path: dir.display().to_string() }),
        Err(why) => Err(read_error(dir, why)),
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            writeln!(f, "{segment}")?;
        }
        if self.torn_bytes > 0 {
            let torn = ByteSize(self.torn_bytes);
            writeln!(f, "torn tail  {torn} that were never fsynced; the next start cuts them")?;
        }
        for damage in &self.damage {
            writeln!(f, "damaged    {damage}")?;
        }
        match self.damage.len() {
            0 => write!(f, "the journal is whole"),
            1 => write!(f, "1 place is damaged"),
            places => write!(f, "{places} places are damaged"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, position, batch, .. } = self;
        writeln!(f, "durable    through change {sequence} at {position}, batch {batch}")?;
        if let Some(open) = self.open_since_batch {
            writeln!(f, "open       a transaction since batch {open}; the next start drops it")?;
        }
        for (number, first, bytes) in &self.segments {
            let bytes = ByteSize(*bytes);
            match first {
                Some(first) => writeln!(f, "segment    {number}  {bytes}  from batch {first}")?,
                None => writeln!(f, "segment    {number}  {bytes}  damaged")?,
            }
        }
        for (from, to) in &self.torn {
            writeln!(f, "torn       batches {from}–{to}")?;
        }
        for damage in &self.damage {
            writeln!(f, "damaged    {damage}")?;
        }
        for (key, bytes) in &self.facts {
            writeln!(f, "fact       {key}  {}", ByteSize(*bytes))?;
        }
        write!(f, "{} facts", self.facts.len())
    }
}
