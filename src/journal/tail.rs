//! Reads the last segment again: where it ends, and the state and facts at that place.
//!
//! **Invariant (I6, I9, I10):** what is cut is what was never fsynced. A bad frame whose later frames
//! belong to a later group commit had been fsynced: it is damage, and stays. After a power cut the
//! pages of one group reach the disk in any order, so a bad frame followed by good ones of its own
//! group is a torn tail. Where damage took facts, the index beside the log gives them back if it
//! covers the place; otherwise opening fails and names the range.

use super::{
    JournalError,
    cipher::SegmentKey,
    pack::Unpacker,
    record::{
        BatchPrefix, FactMap, Fields, FrameHeader, Kind, SEGMENT_HEADER_BYTES, SegmentHeader,
        apply_facts,
    },
    scan::{Bad, Item, Scan, Window, read_error},
    store::Image,
    watermark::Progress,
};
use crate::source::Piece;

/// What the last segment says.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) progress: Progress,
    pub(crate) facts: FactMap,
    /// Where the good bytes end; what follows was never fsynced.
    pub(crate) end: u64,
    /// Where the last group commit begins: all before was fsynced.
    pub(crate) group_from: u64,
    /// Damaged ranges, which stay.
    pub(crate) damage: Vec<JournalError>,
    /// What the index is worth.
    pub(crate) index: Verdict,
}

/// What the index is worth beside the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It covers a part of the last segment, and agrees with it.
    Agrees,
    /// It ends before the last segment, or is new.
    Behind,
    /// It is not of this log.
    Wrong(&'static str),
}

/// Reads the last segment.
///
/// # Errors
///
/// [`JournalError::Key`]; or [`JournalError::Damaged`]: facts were lost.
pub(crate) fn read_tail(
    mut window: Window,
    key: &[u8],
    image: Option<&Image>,
) -> Result<Tail, JournalError> {
    let path = window.path().display().to_string();
    let header = window.header()?.map_err(|what| JournalError::Damaged {
        path: path.clone(),
        from: 0,
        to: 0,
        batches: "unknown".into(),
        what: what.into(),
    })?;
    let mut scan = Scan::new(window)?;
    let unpacker = Unpacker::new().map_err(|why| read_error(scan.window.path(), why))?;
    let mut replay = Replay {
        key: SegmentKey::derive(key, &header.salt, header.number),
        unpacker,
        image: image.filter(|image| {
            image.checkpoint.segment == header.number && image.checkpoint.salt == header.salt
        }),
        path,
        state: State { end: SEGMENT_HEADER_BYTES as u64, ..State::default() },
        doubts: vec![],
        damage: vec![],
    };
    while let Some(item) = scan.next()? {
        match item {
            Item::Frame(header, offset) => {
                let payload = scan.payload(&header, offset)?;
                replay.frame(header, offset, payload)?;
            }
            Item::Bad(bad) => replay.bad(&bad),
        }
    }
    replay.finish(&header, image)
}

struct Replay<'a> {
    key: SegmentKey,
    unpacker: Unpacker,
    image: Option<&'a Image>,
    path: String,
    state: State,
    /// Bad ranges not yet known to have been fsynced.
    doubts: Vec<Doubt>,
    damage: Vec<JournalError>,
}

struct Doubt {
    bad: Bad,
    before: State,
    /// Number of the next batch, as the first good frame after it says.
    next_batch: Option<u64>,
}

#[derive(Clone, Default)]
struct State {
    progress: Progress,
    facts: FactMap,
    end: u64,
    group: u64,
    group_from: u64,
    frame: u64,
    /// Where a batch begins whose last frame has not come.
    batch_from: Option<(u64, u64)>,
    /// First byte of damage that took facts, or the commit that the watermark stands at.
    lost: Option<u64>,
    lost_commit: Option<u64>,
    index: Option<Verdict>,
}

impl Replay<'_> {
    fn frame(
        &mut self,
        header: FrameHeader,
        offset: u64,
        payload: &mut [u8],
    ) -> Result<(), JournalError> {
        self.settle(&header);
        self.meet_index(header.frame);
        if header.group != self.state.group || header.frame == 0 {
            (self.state.group, self.state.group_from) = (header.group, offset);
        }
        let opened = self.key.open(&header, payload);
        if opened.is_none() && header.frame == 0 {
            return Err(JournalError::Key { path: self.path.clone() });
        }
        let state = &mut self.state;
        let applied =
            opened.and_then(|plain| state.apply(&header, offset, plain, &mut self.unpacker));
        let to = offset + header.frame_bytes();
        if applied.is_none() {
            // It was written whole, so it is no torn tail.
            let what = "the seal of a frame does not open";
            let bad = Bad { from: offset, to, frame: header.frame, header: Some(header), what };
            self.damage.push(damaged(&self.path, &bad, 0, 0));
            self.lose(&bad);
        }
        self.state.end = to;
        self.state.frame = header.frame + 1;
        Ok(())
    }

    fn bad(&mut self, bad: &Bad) {
        self.meet_index(bad.frame);
        self.doubts.push(Doubt { bad: bad.clone(), before: self.state.clone(), next_batch: None });
        self.lose(bad);
        self.state.end = bad.to;
        self.state.frame = bad.frame + 1;
    }

    /// Goes on behind `bad`, remembering what it took.
    fn lose(&mut self, bad: &Bad) {
        let state = &mut self.state;
        state.batch_from = None;
        match bad.header.filter(|header| header.kind.is_payload()) {
            Some(header) if header.kind == Kind::Batch => {
                state.progress.resume(header.batch, header.first, header.piece);
                state.progress.advance(header.piece, header.changes, None);
                if matches!(header.piece, Piece::Whole | Piece::Last) {
                    state.lost_commit = Some(bad.from);
                }
            }
            Some(_) => {}
            None => state.lost = state.lost.or(Some(bad.from)),
        }
    }

    /// A frame of a later group commit proves that a bad one before it had been fsynced.
    fn settle(&mut self, header: &FrameHeader) {
        for doubt in &mut self.doubts {
            doubt.next_batch.get_or_insert(header.batch);
        }
        let proven = self.doubts.iter().take_while(|doubt| doubt.bad.frame < header.group).count();
        for Doubt { bad, before, next_batch } in self.doubts.drain(..proven) {
            let end = next_batch.unwrap_or(header.batch);
            self.damage.push(damaged(&self.path, &bad, before.progress.next_batch, end));
        }
    }

    /// Compares the index with the state at the place that it covers; where the log is damaged,
    /// takes the index's word.
    fn meet_index(&mut self, frame: u64) {
        let Some(image) = self.image.filter(|image| image.checkpoint.frame == frame) else {
            return;
        };
        let state = &mut self.state;
        if state.lost.is_some() || state.lost_commit.is_some() {
            state.progress = image.checkpoint.progress.clone();
            state.facts = image.facts.clone();
            (state.lost, state.lost_commit) = (None, None);
        } else if state.progress != image.checkpoint.progress || state.facts != image.facts {
            state.index = Some(Verdict::Wrong("it holds other facts than the log"));
            return;
        }
        state.index = Some(Verdict::Agrees);
    }

    fn finish(
        mut self,
        header: &SegmentHeader,
        index: Option<&Image>,
    ) -> Result<Tail, JournalError> {
        if !self.doubts.is_empty() {
            self.state = self.doubts.swap_remove(0).before;
        }
        self.meet_index(self.state.frame);
        let state = &mut self.state;
        if let Some((offset, frame)) = state.batch_from.take() {
            // The rest of the batch was never fsynced, so neither was its beginning.
            (state.end, state.frame) = (offset, frame);
        }
        state.group_from = state.group_from.min(state.end);
        if let Some(lost) = state.lost.or(state.lost_commit) {
            let is_lost = |error: &JournalError| matches!(error, JournalError::Damaged { from, .. } if *from == lost);
            let place = self.damage.iter().position(is_lost);
            return Err(self.damage.swap_remove(place.expect("what was lost is damage by now")));
        }
        let verdict = match (index, state.index.take()) {
            (_, Some(verdict)) => verdict,
            (None, None) => Verdict::Behind,
            (Some(index), None) if index.checkpoint.segment < header.number => Verdict::Behind,
            (Some(_), None) if self.image.is_none() => Verdict::Wrong("it is of another log"),
            (Some(index), None) => {
                let what = "frames that had been fsynced are gone from its end";
                let (end, frame) = (state.end, state.frame);
                let gone = Bad { from: end, to: end, frame, header: None, what };
                let until = index.checkpoint.progress.next_batch;
                self.damage.push(damaged(&self.path, &gone, state.progress.next_batch, until));
                Verdict::Wrong("it covers more than the log holds")
            }
        };
        let State { progress, facts, end, group_from, .. } = self.state;
        Ok(Tail { progress, facts, end, group_from, damage: self.damage, index: verdict })
    }
}

impl State {
    /// `None`: the plaintext is not of its kind.
    fn apply(
        &mut self,
        header: &FrameHeader,
        offset: u64,
        plain: &[u8],
        unpacker: &mut Unpacker,
    ) -> Option<()> {
        match header.kind {
            Kind::Progress => {
                self.progress = Progress::decode(plain)?;
                self.facts.clear();
            }
            Kind::Dump | Kind::Facts => apply_facts(&mut self.facts, unpacker.facts(plain)?),
            Kind::DumpEnd => (self.facts.len() as u64 == header.changes).then_some(())?,
            Kind::Part => self.batch_from = self.batch_from.or(Some((offset, header.frame))),
            Kind::Batch => {
                self.batch_from = None;
                let (prefix, _) = BatchPrefix::split(plain)?;
                self.progress.resume(header.batch, header.first, header.piece);
                self.progress.advance(header.piece, header.changes, prefix.commit);
                if prefix.commit.is_some() {
                    self.lost_commit = None;
                }
            }
            Kind::Session => {
                let mut fields = Fields(plain);
                self.progress.torn((fields.u64()?, fields.u64()?));
            }
        }
        Some(())
    }
}

/// The error that names a bad range, which took batches from `first` to before `end` if its own
/// header does not say which.
pub(crate) fn damaged(path: &str, bad: &Bad, first: u64, end: u64) -> JournalError {
    let (first, end) = match bad.header {
        Some(header) if header.kind.is_payload() => (header.batch, header.batch.saturating_add(1)),
        Some(_) => (0, 0),
        None => (first, end),
    };
    let batches = match end.saturating_sub(first) {
        0 => "none".into(),
        1 => format!("{first}"),
        _ => format!("{first}–{}", end - 1),
    };
    let what = bad.what.into();
    JournalError::Damaged { path: path.into(), from: bad.from, to: bad.to, batches, what }
}
