//! `lakehead journal check|show`: looks at the journal of a stopped box, and changes nothing.

use std::{collections::BTreeMap, fmt, path::Path};

use serde::Serialize;

use super::{
    JournalError, Piece,
    cipher::SegmentKey,
    pack::Unpacker,
    record::{FrameHeader, Kind},
    recover::{segment_files, survey},
    scan::{Bad, Item, Scan, Window, read_error},
    segment::file_number,
    tail::damaged,
    watermark::{Progress, follows},
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

/// Checks every frame's checksum and seal, and that batches follow one another.
///
/// # Errors
///
/// [`JournalError::Held`] while the box runs, [`JournalError::Key`], [`JournalError::Read`]. Damage
/// is no error here: it is what the report is for.
pub fn check(dir: &Path, key: &Secret) -> Result<CheckReport, JournalError> {
    let _hold = hold(dir)?;
    let files = segment_files(dir)?;
    let mut report = CheckReport { segments: vec![], damage: vec![], torn_bytes: 0 };
    let mut order = Order::default();
    for (place, path) in files.iter().enumerate() {
        let is_last = place + 1 == files.len();
        let segment = check_segment(path, key, is_last, &mut order, &mut report.damage)?;
        report.segments.push(segment);
    }
    match survey(dir, key.expose(), None) {
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
    let survey = survey(dir, key.expose(), None)?;
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

fn hold(dir: &Path) -> Result<disk::Hold, JournalError> {
    match disk::Hold::take(dir) {
        Ok(Some(hold)) => Ok(hold),
        Ok(None) => Err(JournalError::Held { path: dir.display().to_string() }),
        Err(why) => Err(read_error(dir, why)),
    }
}

/// Whether batches follow one another, over all segments.
#[derive(Default)]
struct Order {
    /// Number of the next batch and its first sequence; `None` before the first and after damage.
    next: Option<(u64, u64)>,
    open: bool,
    /// Where sequences go back to when the open transaction is torn.
    open_first: u64,
}

impl Order {
    /// What is wrong with a batch at this place.
    fn batch(&mut self, header: &FrameHeader) -> Option<&'static str> {
        let opened = follows(self.open, header.piece);
        let known = self.next.replace((header.batch + 1, header.first + header.changes));
        if !self.open {
            self.open_first = header.first;
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

    /// The open transaction is given up.
    fn torn(&mut self) {
        if self.open {
            self.next = self.next.map(|(batch, _)| (batch, self.open_first));
        }
        self.open = false;
    }
}

/// Checks one segment.
struct Checker<'a> {
    key: SegmentKey,
    unpacker: Unpacker,
    report: SegmentReport,
    order: &'a mut Order,
    /// The batch whose parts are coming.
    run: Vec<u8>,
}

impl Checker<'_> {
    /// What is wrong with a frame whose checksums match.
    fn frame(&mut self, header: &FrameHeader, payload: &mut [u8]) -> Option<&'static str> {
        self.report.frames += 1;
        let Some(plain) = self.key.open(header, payload) else {
            return Some("the seal of a frame does not open");
        };
        let unreadable = Some("a frame does not hold what its kind says");
        match header.kind {
            Kind::Progress => {
                let Some(progress) = Progress::decode(plain) else { return unreadable };
                // The head of a new segment names what was torn at the restart before it.
                if progress.open.is_none() {
                    self.order.torn();
                }
            }
            Kind::Session if plain.len() == 16 => self.order.torn(),
            Kind::Session => return unreadable,
            Kind::Dump | Kind::Facts => {
                let facts = self.unpacker.facts(plain);
                let count = facts.map(|facts| facts.changes.len() as u64);
                return if count == Some(header.changes) { None } else { unreadable };
            }
            Kind::DumpEnd => {}
            Kind::Part | Kind::Batch => return self.part(header, plain),
        }
        None
    }

    fn part(&mut self, header: &FrameHeader, plain: &[u8]) -> Option<&'static str> {
        let Some(commit) = self.unpacker.part(plain, header.kind == Kind::Batch, &mut self.run)
        else {
            self.run.clear();
            return Some("a batch does not decompress");
        };
        if header.kind == Kind::Part {
            return None;
        }
        self.run.clear();
        self.report.batches += 1;
        self.report.changes += header.changes;
        self.report.first_batch.get_or_insert(header.batch);
        self.report.last_batch = Some(header.batch);
        let ends = matches!(header.piece, Piece::Whole | Piece::Last);
        let wrong = (ends != commit.is_some()).then_some("its commit does not fit its piece");
        self.order.batch(header).or(wrong)
    }
}

fn check_segment(
    path: &Path,
    key: &Secret,
    is_last: bool,
    order: &mut Order,
    damage: &mut Vec<String>,
) -> Result<SegmentReport, JournalError> {
    let mut window = Window::open(path)?;
    let number = file_number(path).unwrap_or_default();
    let report = SegmentReport { number, bytes: window.file_bytes()?, ..SegmentReport::default() };
    let Ok(header) = window.header()? else {
        // The survey names it.
        *order = Order::default();
        return Ok(report);
    };
    let unpacker = Unpacker::new().map_err(|why| read_error(path, why))?;
    let key = SegmentKey::derive(key.expose(), &header.salt, header.number);
    let mut checker = Checker { key, unpacker, report, order, run: vec![] };
    let name = path.display().to_string();
    let mut scan = Scan::new(window)?;
    let mut gap: Option<Bad> = None;
    while let Some(item) = scan.next()? {
        let (header, offset) = match item {
            Item::Frame(header, offset) => (header, offset),
            Item::Bad(bad) => {
                checker.run.clear();
                gap = gap.or(Some(bad));
                continue;
            }
        };
        if let Some(bad) = gap.take() {
            // In the last segment it can be a torn tail: the survey knows.
            if !is_last {
                let first = checker.order.next.map_or(0, |(batch, _)| batch);
                damage.push(damaged(&name, &bad, first, header.batch).to_string());
            }
            *checker.order = Order::default();
        }
        let payload = scan.payload(&header, offset)?;
        if let Some(what) = checker.frame(&header, payload) {
            let to = offset + header.frame_bytes();
            let bad = Bad { from: offset, to, frame: header.frame, header: Some(header), what };
            damage.push(damaged(&name, &bad, 0, 0).to_string());
        }
    }
    if let Some(bad) = gap {
        if !is_last {
            let first = checker.order.next.map_or(0, |(batch, _)| batch);
            damage.push(damaged(&name, &bad, first, first + 1).to_string());
        }
        *checker.order = Order::default();
    }
    Ok(checker.report)
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
