//! What of a table counts that was copied before a gap. Pure.
//!
//! Behind a gap a table is either read anew, and nothing of before counts; or it is compared with the database, and
//! the rows that differ are read by their keys: then the ledger says from where on it is as the database has it
//! (`repaired`), and all of before counts on. What is said covers all gaps before it, back to where the table was read
//! anew.

use std::collections::BTreeMap;

use super::{
    key::{Content, parse},
    plan::{Definitions, definition},
};
use crate::{
    ledger::{Entry, EntryKind},
    units::{Point, Position},
};

/// The gaps before a point, and what was repaired behind them by then.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Places of their entries, and where they end.
    gaps: Vec<(usize, Point)>,
    /// By table: places of the entries that say so, and from where on it is repaired.
    repaired: BTreeMap<u32, Vec<(usize, Position)>>,
    /// By table: places of the entries of its snapshots, and where these stand.
    read: BTreeMap<u32, Vec<(usize, Position)>>,
    /// By table: from where on it is repaired, behind the point.
    later: BTreeMap<u32, Position>,
    /// Whether all are taken for repaired.
    closed: bool,
}

impl Gaps {
    /// Of the whole ledger, for the state at `bound`. `closed`: as if each table were repaired.
    pub(super) fn of(
        entries: &[Entry],
        known: &Definitions,
        bound: Position,
        closed: bool,
    ) -> Self {
        let mut found = Self { closed, ..Self::default() };
        for (at, entry) in entries.iter().enumerate() {
            match entry.kind {
                EntryKind::Gap if entry.from.position < bound => found.gaps.push((at, entry.to)),
                EntryKind::Snapshot => found.look_at_rows(at, entry, known),
                _ => {}
            }
            for (qualified, repaired) in &entry.fates.repaired {
                let named = known.iter().find(|((name, version), _)| {
                    *version == repaired.version && name.qualified() == *qualified
                });
                let Some((_, table)) = named else { continue };
                match repaired.position <= bound {
                    true => {
                        let said = found.repaired.entry(table.id).or_default();
                        said.push((at, repaired.position));
                    }
                    false => drop(found.later.entry(table.id).or_insert(repaired.position)),
                }
            }
        }
        found
    }

    fn look_at_rows(&mut self, at: usize, entry: &Entry, known: &Definitions) {
        for object in &entry.objects {
            let Some((name, Content::Rows { position })) = parse(&object.key) else { continue };
            if let Ok(table) = definition(entry, Some(object), &name, known) {
                self.read.entry(table.id).or_default().push((at, position));
            }
        }
    }

    /// Where the log goes on behind the last gap, and the place of the first entry behind it.
    pub(super) fn last(&self) -> (usize, Point) {
        self.gaps.last().map_or((0, Point::default()), |(at, to)| (at + 1, *to))
    }

    /// The place of the first entry whose changes of the table count, and the position from which on its rows do.
    pub(super) fn counts(&self, table: u32) -> (usize, Position) {
        let open = self.gaps.iter().rev().find(|gap| !self.is_bridged(table, gap));
        open.map_or((0, Position(0)), |(at, to)| (at + 1, to.position))
    }

    /// Whether the table was repaired behind a gap, and not read anew instead.
    fn is_bridged(&self, table: u32, (gap, to): &(usize, Point)) -> bool {
        // One that stands before the gap was said late: it is of an earlier one.
        let said = self.repaired.get(&table).into_iter().flatten();
        let said = said.filter(|(at, position)| at > gap && *position >= to.position);
        let said = said.map(|(at, _)| *at).chain(self.closed.then_some(usize::MAX)).next();
        let read = |said: usize| {
            let mut rows = self.read.get(&table).into_iter().flatten();
            rows.any(|(at, position)| *at < said && *position >= to.position)
        };
        said.is_some_and(|said| !read(said))
    }

    /// From where on the table is repaired, if that is behind the point.
    pub(super) fn later(&self, table: u32) -> Option<Position> {
        self.later.get(&table).copied()
    }

    /// After the first position and up to the second one, changes of the table may find rows that are not there,
    /// and the other way round: those of each run of gaps, and of the repair behind it.
    pub(super) fn doubtful(&self, table: u32) -> Vec<(Position, Position)> {
        let (mut ranges, mut from) = (vec![], 0);
        for (at, position) in self.repaired.get(&table).into_iter().flatten() {
            let mut gaps = self.gaps.iter();
            let first =
                gaps.find(|(gap, to)| (from..*at).contains(gap) && to.position <= *position);
            ranges.extend(first.map(|(_, to)| (to.position, *position)));
            from = *at;
        }
        ranges
    }
}
