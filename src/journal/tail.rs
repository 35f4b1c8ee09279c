//! Reads the last segment again: where it ends, and the state and facts at that place.
//!
//! **Invariant (I6, I9, I10):** what is cut is what was never fsynced. A bad frame whose later frames
//! belong to a later group commit had been fsynced, and so had all that the index covers: it is damage,
//! and stays. After a power cut the pages of one group reach the disk in any order, so a bad frame
//! followed by good ones of its own group is a torn tail.
//!
//! Batches that damage took are passed over here: whoever reads them meets the damage. Facts are not:
//! what follows says how many frames and batches are gone, so it is known when only batches are. Where
//! facts are, the index gives them back if it covers the place, and the segment before if the place is
//! the head; otherwise opening fails and names the range.

use std::sync::Arc;

use super::{
    Batches, JournalError,
    cipher::SegmentKey,
    pack::Unpacker,
    record::{
        BatchPrefix, FactMap, Fields, FrameHeader, Kind, SEGMENT_HEADER_BYTES, apply_facts,
        head_frames,
    },
    scan::{Bad, FOREIGN, Item, Scan, Window, read_error},
    watermark::Progress,
};
use crate::source::Piece;

/// What a segment says.
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
    /// It covers a part of the last segment, and agrees with it; or the log has lost what it covers.
    Agrees,
    /// It ends before the last segment, or is new.
    Behind,
    /// It is not of this log.
    Wrong(&'static str),
}

/// The state at one place of a segment, as somebody else remembers it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// Number of the first frame that it does not cover.
    pub(crate) frame: u64,
    pub(crate) progress: &'a Progress,
    pub(crate) facts: &'a FactMap,
}

/// What is known of a segment beside its frames.
#[derive(Clone, Copy, Default)]
pub(crate) struct Beside<'a> {
    /// The index, if it covers a part of this very segment.
    pub(crate) index: Option<Known<'a>>,
    /// The state at the end of the segment before.
    pub(crate) before: Option<(&'a Progress, &'a FactMap)>,
    /// Another segment was begun after it: all of it was fsynced.
    pub(crate) closed: bool,
    /// Number of the first batch that it can hold.
    pub(crate) first_batch: u64,
}

/// Reads a segment. `key`: `None` if nothing opens it.
///
/// # Errors
///
/// [`JournalError::Damaged`]: facts were lost. Or [`JournalError::Read`].
pub(crate) fn read_tail(
    window: Window,
    key: Option<Arc<SegmentKey>>,
    beside: Beside<'_>,
) -> Result<Tail, JournalError> {
    let path = window.path().display().to_string();
    let sealed = key.is_none();
    let mut scan = Scan::new(window, key)?;
    let unpacker = Unpacker::new().map_err(|why| read_error(scan.window.path(), why))?;
    let head =
        beside.before.map(|(progress, facts)| Known { frame: head_frames(facts), progress, facts });
    let mut replay = Replay {
        sealed,
        unpacker,
        index: beside.index,
        known: [head, beside.index],
        closed: beside.closed,
        first_batch: beside.first_batch,
        path,
        state: State { end: SEGMENT_HEADER_BYTES as u64, ..State::default() },
        gap: None,
        doubts: vec![],
        damage: vec![],
    };
    while let Some(item) = scan.next()? {
        match item {
            Item::Frame(header, offset) => {
                let held = scan.held(&header, offset)?;
                replay.frame(header, offset, held);
            }
            Item::Bad(bad) => replay.bad(bad),
        }
    }
    replay.finish()
}

struct Replay<'a> {
    /// Nothing opens the frames: their headers are all there is.
    sealed: bool,
    unpacker: Unpacker,
    index: Option<Known<'a>>,
    /// All that others remember.
    known: [Option<Known<'a>>; 2],
    closed: bool,
    first_batch: u64,
    path: String,
    state: State,
    /// A bad range, until the next good frame says what it took.
    gap: Option<Bad>,
    /// Bad ranges not yet known to have been fsynced.
    doubts: Vec<Doubt>,
    damage: Vec<JournalError>,
}

struct Doubt {
    bad: Bad,
    before: State,
    proven: bool,
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
    /// Whether the whole head was read, or is known from elsewhere.
    headed: bool,
    /// Where a batch begins whose last frame has not come.
    batch_from: Option<(u64, u64)>,
    /// The damage that took facts.
    lost: Option<Lost>,
    /// Whether damage took batches, and the first of them that nothing whole follows.
    hurt: bool,
    lost_from: Option<u64>,
    index: Option<Verdict>,
}

#[derive(Clone, Debug)]
struct Lost {
    bad: Bad,
    /// Number of the next batch before it.
    batch: u64,
}

impl Replay<'_> {
    fn frame(&mut self, header: FrameHeader, offset: u64, held: &[u8]) {
        if let Some(bad) = self.gap.take() {
            self.pass(&bad, &header);
        }
        self.settle(Some(&header));
        self.meet(header.frame);
        if header.group != self.state.group || header.frame == 0 {
            (self.state.group, self.state.group_from) = (header.group, offset);
        }
        let (state, to) = (&mut self.state, offset + header.frame_bytes());
        let applied = match self.sealed {
            true => None,
            false => state.apply(&header, offset, held, &mut self.unpacker),
        };
        if applied.is_none() {
            let what = "a frame does not hold what its kind says";
            let bad = Bad { from: offset, to, frame: header.frame, header: Some(header), what };
            if !self.sealed {
                self.damage.push(damaged(&self.path, &bad, 0, 0));
            }
            state.lose(&header, &bad);
        }
        // Behind damage frames can stand before others with lesser numbers.
        self.state.end = self.state.end.max(to);
        self.state.frame = header.frame + 1;
    }

    fn bad(&mut self, bad: Bad) {
        self.meet(bad.frame);
        // A segment has its name only once its head is fsynced.
        let proven = self.closed || bad.what == FOREIGN || !self.state.headed;
        let before = self.state.clone();
        self.doubts.push(Doubt { bad: bad.clone(), before, proven, next_batch: None });
        self.state.end = self.state.end.max(bad.to);
        self.state.frame = bad.frame;
        self.gap = Some(bad);
    }

    /// Goes past `bad` to `next`, the first good frame after it.
    fn pass(&mut self, bad: &Bad, next: &FrameHeader) {
        if next.frame == bad.frame {
            // The very frame that was looked for: what stands before it is no part of the log, and no
            // torn write.
            self.doubts.iter_mut().for_each(|doubt| doubt.proven |= doubt.bad == *bad);
            return;
        }
        let first = self.take(bad);
        self.remember(first..=next.frame);
        let state = &mut self.state;
        let frames = next.frame.saturating_sub(state.frame);
        let batches = next.batch.saturating_sub(state.progress.next_batch);
        if frames != batches {
            // Something else than batches of one frame each.
            state.lost.get_or_insert(Lost { bad: bad.clone(), batch: state.progress.next_batch });
        }
        if batches > 0 {
            state.lose_to(next.batch, next.first);
        }
    }

    /// Takes account of the frame whose header `bad` still shows, if it can stand here. Number of the
    /// next one.
    fn take(&mut self, bad: &Bad) -> u64 {
        self.state.batch_from = None;
        let next = self.state.progress.next_batch;
        if let Some(header) = bad.header.as_ref().filter(|header| header.batch == next) {
            self.state.lose(header, bad);
            self.state.frame = header.frame + 1;
        }
        self.state.frame
    }

    /// Takes the word of others for the state at one of `frames`, the last that one knows.
    fn remember(&mut self, frames: std::ops::RangeInclusive<u64>) {
        let known = self.known.into_iter().flatten().filter(|known| frames.contains(&known.frame));
        if let Some(known) = known.max_by_key(|known| known.frame) {
            self.state.adopt(&known);
            if self.index.is_some_and(|index| index.frame == known.frame) {
                self.state.index = Some(Verdict::Agrees);
            }
        }
    }

    /// A frame of a later group commit proves that a bad one before it had been fsynced; so does the
    /// index, and a later segment.
    fn settle(&mut self, header: Option<&FrameHeader>) {
        if let Some(header) = header {
            for doubt in &mut self.doubts {
                doubt.next_batch.get_or_insert(header.batch);
            }
        }
        let group = header.map_or(0, |header| header.group);
        let covered = self.index.map_or(0, |index| index.frame);
        let path = &self.path;
        let is_proven = |doubt: &&Doubt| doubt.proven || doubt.bad.frame < group.max(covered);
        let proven = self.doubts.iter().take_while(is_proven).count();
        for Doubt { bad, before, next_batch, .. } in self.doubts.drain(..proven) {
            let first = before.progress.next_batch.max(self.first_batch);
            let end = next_batch.unwrap_or(first);
            self.damage.push(damaged(path, &bad, first, end));
        }
    }

    /// Compares the index with the state at the place that it covers; where the log is damaged, takes
    /// the word of others.
    fn meet(&mut self, frame: u64) {
        if self.state.lost.is_some() || self.state.hurt {
            self.remember(frame..=frame);
        } else if let Some(index) = self.index.filter(|index| index.frame == frame) {
            let state = &mut self.state;
            let agrees = state.progress == *index.progress && state.facts == *index.facts;
            state.index = Some(match agrees {
                true => Verdict::Agrees,
                false => Verdict::Wrong("it holds other facts than the log"),
            });
        }
    }

    fn finish(mut self) -> Result<Tail, JournalError> {
        self.settle(None);
        if !self.doubts.is_empty() {
            self.state = self.doubts.swap_remove(0).before;
            self.gap = None;
        }
        if let Some(bad) = self.gap.take() {
            let batch = self.state.progress.next_batch;
            self.take(&bad);
            if self.state.frame == bad.frame || self.closed {
                // How many more frames there were is not known.
                self.state.lost.get_or_insert(Lost { bad, batch });
            }
        }
        self.meet(self.state.frame);
        self.reach_index();
        self.reach_head();
        let state = &mut self.state;
        if let Some((offset, frame)) = state.batch_from.take() {
            // The rest of the batch was never fsynced, so neither was its beginning.
            (state.end, state.frame) = (offset, frame);
        }
        state.group_from = state.group_from.min(state.end);
        if let Some(batch) = state.lost_from {
            state.progress.give_up(batch);
        }
        if let Some(Lost { bad, batch }) = &state.lost {
            return Err(damaged(&self.path, bad, *batch, *batch));
        }
        let verdict = match (self.index, state.index.take()) {
            (_, Some(verdict)) => verdict,
            (None, None) => Verdict::Behind,
            (Some(_), None) => Verdict::Wrong("it does not fit the log"),
        };
        let State { progress, facts, end, group_from, .. } = self.state;
        Ok(Tail { progress, facts, end, group_from, damage: self.damage, index: verdict })
    }

    /// Where the segment is gone within its head, the end of the one before is all there is.
    fn reach_head(&mut self) {
        if self.state.headed {
            return;
        }
        let State { end: from, frame, .. } = self.state;
        match self.known[0].filter(|_| !self.closed) {
            Some(before) => self.state.adopt(&before),
            None => {
                let what = "its head is gone";
                let bad = Bad { from, to: from, frame, header: None, what };
                self.state.lost.get_or_insert(Lost { bad, batch: 0 });
            }
        }
    }

    /// Where the index covers more than the segment still holds, its word is all there is.
    fn reach_index(&mut self) {
        let state = &mut self.state;
        let Some(index) = self.index.filter(|index| index.frame > state.frame) else { return };
        let (end, frame) = (state.end, state.frame);
        let what = "frames that had been fsynced are gone from its end";
        let gone = Bad { from: end, to: end, frame, header: None, what };
        let first = state.progress.next_batch.max(self.first_batch);
        let until = index.progress.next_batch;
        self.damage.push(damaged(&self.path, &gone, first, until));
        state.adopt(&index);
        state.index = Some(Verdict::Agrees);
    }
}

impl State {
    fn adopt(&mut self, known: &Known<'_>) {
        self.progress = known.progress.clone();
        self.facts = known.facts.clone();
        self.frame = known.frame;
        (self.lost, self.hurt, self.lost_from, self.batch_from) = (None, false, None, None);
        self.headed = true;
    }

    /// Goes past batches up to where the next one stands.
    fn lose_to(&mut self, batch: u64, first: u64) {
        self.lost_from.get_or_insert(self.progress.next_batch);
        self.progress.lose(batch, first);
        self.hurt = true;
    }

    /// Goes past a frame of which only the header is known.
    fn lose(&mut self, header: &FrameHeader, bad: &Bad) {
        self.batch_from = None;
        match header.kind {
            Kind::Batch => {
                let next = header.first.saturating_add(header.changes);
                self.lose_to(header.batch.saturating_add(1), next);
            }
            // Its batch ends in a later frame.
            Kind::Part => {}
            Kind::Session => {
                let _given_up = self.progress.tear();
            }
            Kind::Progress | Kind::Dump | Kind::DumpEnd | Kind::Facts | Kind::Rewind => {
                let batch = self.progress.next_batch;
                self.lost.get_or_insert(Lost { bad: bad.clone(), batch });
            }
        }
    }

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
            Kind::DumpEnd => {
                let whole = self.facts.len() as u64 == header.changes;
                (whole || self.lost.is_some()).then_some(())?;
                self.headed = true;
            }
            Kind::Part => self.batch_from = self.batch_from.or(Some((offset, header.frame))),
            Kind::Batch => {
                self.batch_from = None;
                let (prefix, _) = BatchPrefix::split(plain)?;
                if !self.hurt && matches!(header.piece, Piece::First | Piece::Whole) {
                    // What says that the transaction before it was given up may be lost.
                    let _given_up = self.progress.tear();
                }
                self.progress.lose(header.batch, header.first);
                self.progress.advance(header.piece, header.changes, prefix.commit);
                if prefix.commit.is_some() {
                    self.lost_from = None;
                }
            }
            Kind::Session => {
                let mut fields = Fields(plain);
                self.progress.torn((fields.u64()?, fields.u64()?));
            }
            Kind::Rewind => self.progress = Progress::decode(plain)?,
        }
        Some(())
    }
}

/// The error that names a bad range, which took batches from `first` to before `end` if its own
/// header does not say which.
pub(crate) fn damaged(path: &str, bad: &Bad, first: u64, end: u64) -> JournalError {
    let (first, end) = match bad.header.filter(|_| bad.what != FOREIGN) {
        Some(header) if header.kind.is_payload() => {
            (header.batch, end.max(header.batch.saturating_add(1)))
        }
        _ => (first, end),
    };
    let batches = match end.saturating_sub(first) {
        0 => Batches::None,
        _ => Batches::Range(first, end - 1),
    };
    let what = bad.what.into();
    JournalError::Damaged { path: path.into(), from: bad.from, to: bad.to, batches, what }
}
