//! The chain in the lake, judged as it grows: by the real verifier, and row by row by the database's log.
//!
//! Sequence *n* of a source is the *n*th change to its tables after its slot began. So what may stand in the
//! lake is known exactly, but for one thing: after a fail-over that lost transactions two logs exist, and a
//! box that holds lost ones must stop. The chain therefore has to follow *one* of the timelines, whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{bucket::Who, latest::Latest, oracle::View, server::ModelServer, timeline::Timeline};
use crate::{
    ledger::{
        Entry, EntryKind, PublicKey,
        entry::{self, Lines},
        verify::Verifier,
    },
    units::{Point, Position},
};

/// The chain so far.
pub(crate) struct Chain {
    verifier: Verifier,
    owner: Option<Who>,
    reached: Point,
    /// Where the changes begin that come after the last gap, and how many came before it.
    begins: (Position, u64),
    latest: Latest,
    /// Timelines that it may be of, and how many were looked at.
    alive: BTreeSet<usize>,
    known: usize,
}

/// The invariant that is broken, and what was seen.
type Broken = (&'static str, String);

impl Chain {
    pub(crate) fn new(keys: &[PublicKey]) -> Self {
        Self {
            verifier: Verifier::new(PREFIX, SOURCE, keys, None),
            owner: None,
            reached: Point::default(),
            begins: (Position(0), 0),
            latest: Latest::default(),
            alive: BTreeSet::new(),
            known: 0,
        }
    }

    /// How far it covers what `who` holds.
    pub(crate) fn reached_by(&self, who: Who) -> Position {
        if self.owner == Some(who) { self.reached.position } else { Position(0) }
    }

    pub(crate) fn owner(&self) -> Option<Who> {
        self.owner
    }

    /// An object is stored: if it is an entry, it is judged.
    pub(crate) fn landed(
        &mut self,
        bucket: &BTreeMap<String, Bytes>,
        who: Who,
        key: &str,
        body: &[u8],
        views: &[View],
        server: &ModelServer,
    ) -> Result<(), Broken> {
        let Some((SOURCE, number)) = entry::parse_key(PREFIX, key) else { return Ok(()) };
        self.i23_each_entry_continues_the_chain(number, body)?;
        let entry = Lines::split(body).and_then(|lines| lines.entry().ok());
        let entry = entry.ok_or_else(|| ("I23", "is no entry".into()))?;
        i2_what_an_entry_names_is_there(bucket, &entry, views.len())?;
        let owner = views.iter().position(|view| view.appliance == entry.appliance).unwrap_or(who);
        if self.owner.is_some_and(|known| known != owner) {
            return Err(("I23", "two boxes write one chain".into()));
        }
        if self.owner.replace(owner).is_none() {
            let (position, timeline) = views[owner].began;
            self.begin((position, 0), timeline);
        }
        self.latest.hear(&entry);
        match entry.kind {
            EntryKind::Changes => {
                let rows = rows_of(bucket, &entry)?;
                self.i11_rows_are_those_of_the_log(&entry, &rows, server)?;
                self.take(rows.iter().map(|(sequence, row)| (*sequence, row)))?;
                self.reached = entry.to;
            }
            EntryKind::Gap => self.gap_says_what_is_lost(&entry, &views[owner])?,
            EntryKind::Snapshot | EntryKind::Repair => {
                let rows = lines_of(bucket, &entry)?;
                self.take(rows.iter().map(|(sequence, row)| (*sequence, row)))?;
            }
            EntryKind::Schema | EntryKind::Fence => {}
        }
        Ok(())
    }

    /// Changes come from here on, of this timeline.
    fn begin(&mut self, begins: (Position, u64), timeline: usize) {
        self.begins = begins;
        self.alive = BTreeSet::from([timeline]);
        self.known = timeline + 1;
    }

    fn take<'a>(&mut self, rows: impl Iterator<Item = (u64, &'a String)>) -> Result<(), Broken> {
        for (sequence, row) in rows {
            if !self.latest.take(sequence, row) {
                return Err(("I11", format!("holds {row:?}")));
            }
        }
        Ok(())
    }

    /// DESIGN §4: a gap joins what was before it, ends where the box went on, and holds nothing. What comes
    /// behind it is every change from there on.
    fn gap_says_what_is_lost(&mut self, entry: &Entry, view: &View) -> Result<(), Broken> {
        let Some(timeline) = view.passes.get(&entry.to.position) else {
            return Err(("GAP", format!("ends at {}, where nobody went on", entry.to.position)));
        };
        let still = entry.from.sequence == entry.to.sequence && entry.objects.is_empty();
        if !still || entry.lost.is_none() {
            return Err(("GAP", "holds changes, or does not say what is lost".into()));
        }
        self.begin((entry.to.position, entry.to.sequence.0), *timeline);
        self.latest.pass(entry.to.position);
        self.reached = entry.to;
        Ok(())
    }

    /// I23: entry n continues n-1, signed, without gaps.
    fn i23_each_entry_continues_the_chain(
        &mut self,
        number: u64,
        body: &[u8],
    ) -> Result<(), Broken> {
        match self.verifier.accept(number, body) {
            true => Ok(()),
            false => Err(("I23", "does not continue the chain".into())),
        }
    }

    /// I4, I11, I12, I17: the rows are those of the log, each once, in commit order, whole transactions.
    fn i11_rows_are_those_of_the_log(
        &mut self,
        entry: &Entry,
        rows: &BTreeMap<u64, String>,
        server: &ModelServer,
    ) -> Result<(), Broken> {
        let (from, to) = (entry.from.sequence.0, entry.to.sequence.0);
        let begins = self.begins;
        let since = usize::try_from(from.saturating_sub(begins.1)).unwrap_or(usize::MAX);
        let dense = rows.keys().copied().eq(from + 1..=to);
        if !dense {
            let found: Vec<_> = rows.keys().collect();
            return Err(("I17", format!("sequences {found:?} for {from} to {to}")));
        }
        server.with(|server| {
            let timelines = server.timelines();
            for (index, timeline) in timelines.iter().enumerate().skip(self.known) {
                let before = offset(timeline, begins.0).saturating_add(since);
                let same = |other: &usize| {
                    let ours = timelines[*other].changes.get(..before);
                    let theirs = timeline.changes.get(..before);
                    ours.is_some() && ours == theirs
                };
                if self.alive.iter().any(same) {
                    self.alive.insert(index);
                }
            }
            self.known = timelines.len();
            let mut why = String::new();
            self.alive.retain(|index| {
                let differs = differs(&timelines[*index], entry, rows, begins);
                why = differs.clone().unwrap_or_default();
                differs.is_none()
            });
            match self.alive.is_empty() {
                true => Err(("I11", why)),
                false => Ok(()),
            }
        })
    }

    /// Whether every change of the timeline in force is in it.
    pub(crate) fn complete(&self, views: &[View], server: &ModelServer) -> Result<Who, String> {
        let owner = self.owner.ok_or("the chain is empty")?;
        if let Some(fact) = views[owner].owes() {
            return Err(format!("{fact} is not done with"));
        }
        let (begins, before) = self.begins;
        server.with(|server| {
            let last = server.timelines().len() - 1;
            let timeline = server.timeline();
            let all = timeline.changes.len() - offset(timeline, begins);
            let here = usize::try_from(self.reached.sequence.0.saturating_sub(before));
            let here = here.unwrap_or(usize::MAX);
            // A timeline that branched since the last entry has what was there before.
            let follows = self.alive.contains(&last) || self.known <= last;
            match follows && here == all {
                true => self.latest.compare(timeline).map(|()| owner),
                false => Err(format!(
                    "{here} of {all} changes are in the ledger, at {}",
                    self.reached.position
                )),
            }
        })
    }
}

/// I2, I8: an entry is written after all its objects, which are what it says. Not judged, as the README's
/// limitations say: what a schema holds where another of `boxes` may have given the same number.
fn i2_what_an_entry_names_is_there(
    bucket: &BTreeMap<String, Bytes>,
    entry: &Entry,
    boxes: usize,
) -> Result<(), Broken> {
    for object in &entry.objects {
        let Some(bytes) = bucket.get(&object.key) else {
            return Err(("I2", format!("names {}, which is not there", object.key)));
        };
        if boxes > 1 && is_definition(&object.key) {
            continue;
        }
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        if bytes.len() as u64 != object.bytes || hex::encode(sha256) != object.sha256 {
            return Err(("I18", format!("names {}, which is something else", object.key)));
        }
    }
    Ok(())
}

/// The lines of an entry's objects by their sequence, without it.
fn rows_of(
    bucket: &BTreeMap<String, Bytes>,
    entry: &Entry,
) -> Result<BTreeMap<u64, String>, Broken> {
    let mut rows = BTreeMap::new();
    for (sequence, row) in lines_of(bucket, entry)? {
        if rows.insert(sequence, row).is_some() {
            return Err(("I17", format!("sequence {sequence} stands there twice")));
        }
    }
    Ok(rows)
}

/// Whether a key is that of a table's definition.
fn is_definition(key: &str) -> bool {
    key.contains("/_schema/")
}

/// The lines of an entry's objects: the sequence, and the rest.
fn lines_of(bucket: &BTreeMap<String, Bytes>, entry: &Entry) -> Result<Vec<(u64, String)>, Broken> {
    let mut rows = vec![];
    // Only among rows of snapshots may be definitions.
    let may_define = entry.kind == EntryKind::Snapshot;
    for object in &entry.objects {
        if may_define && is_definition(&object.key) {
            continue;
        }
        let bytes = bucket.get(&object.key).cloned().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut count = 0;
        for line in text.lines() {
            let parsed = line.split_once(' ').and_then(|(op, rest)| {
                let (sequence, rest) = rest.split_once(' ')?;
                Some((sequence.parse().ok()?, format!("{op} {rest}")))
            });
            let Some((sequence, row)) = parsed else {
                return Err(("I11", format!("{} holds {line:?}", object.key)));
            };
            count += 1;
            rows.push((sequence, row));
        }
        if count != object.rows.values().sum::<u64>() {
            return Err(("I11", format!("{} has {count} rows, not those it says", object.key)));
        }
    }
    Ok(rows)
}

/// How the timeline differs from what the entry says.
fn differs(
    timeline: &Timeline,
    entry: &Entry,
    rows: &BTreeMap<u64, String>,
    (begins, before): (Position, u64),
) -> Option<String> {
    let offset = offset(timeline, begins);
    for (sequence, row) in rows {
        let index = offset + usize::try_from(sequence - before).unwrap_or(usize::MAX) - 1;
        match timeline.changes.get(index) {
            Some(change) if change.text == *row => {}
            Some(change) => {
                let (row, text) = (brief(row), brief(&change.text));
                return Some(format!("row {sequence} is {row:?}, the log has {text:?}"));
            }
            None => return Some(format!("row {sequence} is {:?}, the log has none", brief(row))),
        }
    }
    let through = timeline.changes.partition_point(|change| change.position <= entry.to.position);
    let through = u64::try_from(through.saturating_sub(offset)).unwrap_or(u64::MAX);
    (through + before != entry.to.sequence.0).then(|| {
        let (sequence, at) = (entry.to.sequence.0, entry.to.position);
        format!(
            "ends at change {sequence} and {at}, where the log has {through} changes after {before}"
        )
    })
}

/// Changes before a slot began.
fn offset(timeline: &Timeline, consistent: Position) -> usize {
    timeline.changes.partition_point(|change| change.begins < consistent)
}

fn brief(text: &str) -> &str {
    text.get(..80).unwrap_or(text)
}

/// The prefix and the source of every run.
pub(crate) const PREFIX: &str = "raw";
pub(crate) const SOURCE: &str = "erp";
