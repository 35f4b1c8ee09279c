//! Which table a name is of: of several that had it, one after the other, the last. Pure.
//!
//! The ledger's order does not tell: a table is read when it is found, and the changes of the one that had its name
//! before may still lie in the journal then, and come to the ledger after its rows.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::Position;

/// A table that was dropped, excluded or unreadable, and of which the lake has no whole state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Away {
    /// `schema.table`.
    pub table: String,
    /// The entry with which it left.
    pub entry: u64,
    /// Whether what was read of it stands before a gap; else its snapshot was not complete.
    pub before_gap: bool,
}

impl Away {
    /// Why nothing of it is restored.
    pub fn why(&self) -> String {
        let why = match self.before_gap {
            true => "and what was read of it stands before a gap",
            false => "before its snapshot was complete",
        };
        format!("it left (entry {}), {why}", self.entry)
    }
}

/// Where a table was seen to have a name: at one position, or somewhere within an epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Seen {
    from: Position,
    pub(super) to: Position,
    /// The first change of the object that says so; 0 for rows that were read.
    pub(super) change: u64,
}

impl Seen {
    /// In a snapshot.
    pub(super) fn at(position: Position) -> Self {
        Self { from: position, to: position, change: 0 }
    }

    /// In changes.
    pub(super) fn within(from: Position, to: Position, change: u64) -> Self {
        Self { from, to, change }
    }
}

/// The tables that were seen under each name, and where last.
#[derive(Debug, Default)]
pub(super) struct Holders(BTreeMap<String, BTreeMap<u32, Seen>>);

impl Holders {
    /// Takes note of a table's name.
    pub(super) fn saw(&mut self, name: String, table: u32, seen: Seen) {
        let known = self.0.entry(name).or_default().entry(table).or_default();
        if (seen.to, seen.from, seen.change) >= (known.to, known.from, known.change) {
            *known = seen;
        }
    }

    /// The last table of each name that is `wanted`. One that `left` has none that another has.
    pub(super) fn alive(
        &self,
        wanted: impl Fn(&String) -> bool,
        left: impl Fn(u32) -> bool,
    ) -> BTreeSet<u32> {
        let names = self.0.iter().filter(|(name, _)| wanted(name));
        let last = names.filter_map(|(_, tables)| {
            let all = tables.iter().map(|(id, seen)| (*id, *seen, left(*id)));
            all.reduce(|one, other| if is_later(other, one) { other } else { one })
        });
        last.map(|(id, ..)| id).collect()
    }
}

/// Whether `one` had the name after `other`.
fn is_later(one: (u32, Seen, bool), other: (u32, Seen, bool)) -> bool {
    let ((id, seen, left), (other_id, before, other_left)) = (one, other);
    if left != other_left {
        return other_left;
    }
    if (seen.from, seen.to) == (before.from, before.to) && seen.change != before.change {
        return seen.change > before.change;
    }
    match (seen.from >= before.to, before.from >= seen.to) {
        (true, false) => true,
        (false, true) => false,
        // Numbers are given in order, but for once in four billion.
        _ => id > other_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Seen = Seen { from: Position(55), to: Position(55), change: 0 };

    fn within(from: u64, to: u64, change: u64) -> Seen {
        Seen::within(Position(from), Position(to), change)
    }

    /// Who has the name, of table 1 and 2.
    fn last(one: Seen, other: Seen, left: &[u32]) -> u32 {
        let mut holders = Holders::default();
        holders.saw("t".into(), 1, one);
        holders.saw("t".into(), 2, other);
        let alive = holders.alive(|_| true, |id| left.contains(&id));
        assert_eq!(alive.len(), 1);
        alive.first().copied().unwrap()
    }

    #[test]
    fn a_table_that_was_read_ahead_of_the_stream_keeps_its_name() {
        // Behind it in the ledger, the changes of the one before it, earlier or in the same epoch.
        assert_eq!(last(within(40, 50, 7), READ, &[]), 2);
        assert_eq!(last(within(50, 60, 7), READ, &[]), 2);
        assert_eq!(last(READ, within(50, 60, 7), &[]), 2, "made since");
        assert_eq!(last(READ, within(50, 60, 7), &[2]), 1, "it left");
        assert_eq!(last(READ, within(40, 50, 7), &[]), 1);
    }

    #[test]
    fn of_two_in_one_epoch_the_one_with_the_later_changes_has_the_name() {
        assert_eq!(last(within(50, 60, 9), within(50, 60, 7), &[]), 1);
        assert_eq!(last(within(50, 60, 7), within(50, 60, 9), &[]), 2);
        assert_eq!(last(within(50, 60, 7), within(50, 60, 9), &[1, 2]), 2);
        assert_eq!(last(within(60, 70, 1), within(50, 60, 9), &[]), 1);
    }

    #[test]
    fn a_renamed_table_keeps_its_new_name_alone() {
        let mut holders = Holders::default();
        holders.saw("a".into(), 1, Seen::at(Position(10)));
        holders.saw("b".into(), 1, within(10, 20, 3));
        holders.saw("a".into(), 2, within(20, 30, 5));
        assert_eq!(holders.alive(|_| true, |_| false), BTreeSet::from([1, 2]));
        assert_eq!(holders.alive(|name| name != "b", |_| false), BTreeSet::from([2]));
    }
}
