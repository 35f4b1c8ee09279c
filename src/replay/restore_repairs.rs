//! Rows that were read again, on their way into a restore: each is due at its position. Pure.
//!
//! At its position, after all changes up to it and before the first one behind it, the row is exactly what was
//! read. An earlier restore may have gone beyond a position before the ledger had what was read there: then the
//! table takes its changes from there on again, which converge, and nothing is committed before they are back
//! where the target stands.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::plan::{Plan, RowsObject};
use crate::{ledger::EntryObject, units::Position};

/// What is still to be applied.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    due: VecDeque<(u32, RowsObject)>,
    /// Tables that take the changes behind a position again.
    again: BTreeMap<u32, Position>,
    /// Where the target stood in the beginning.
    stood: Position,
}

impl Repairs {
    /// Those of the plan's objects that are not `there` yet, of `tables` that can take them, for a target
    /// that stands at `stood`.
    pub(super) fn new(
        plan: &Plan,
        there: &HashMap<String, String>,
        tables: impl Fn(u32) -> bool,
        stood: Position,
    ) -> Self {
        let (mut due, mut again) = (vec![], BTreeMap::<u32, Position>::new());
        for (id, table) in plan.tables.iter().filter(|(id, _)| tables(**id)) {
            for rows in &table.repairs {
                if there.get(&rows.object.key) == Some(&rows.object.sha256) {
                    continue;
                }
                if rows.position < stood {
                    let from = again.entry(*id).or_insert(rows.position);
                    *from = rows.position.min(*from);
                }
                due.push((*id, rows.clone()));
            }
        }
        due.sort_by_key(|(_, rows)| rows.position);
        Self { due: due.into(), again, stood }
    }

    /// The next object that stands before `position`, with its table.
    pub(super) fn next_before(&mut self, position: Position) -> Option<(u32, EntryObject)> {
        let (id, rows) = self.due.pop_front_if(|(_, rows)| rows.position < position)?;
        Some((id, rows.object))
    }

    /// Tables that take changes again.
    pub(super) fn tables(&self) -> impl Iterator<Item = u32> {
        self.again.keys().copied()
    }

    /// Where changes are read from: the target's place, or before it.
    pub(super) fn begin(&self, stands: Position) -> Position {
        self.again.values().copied().fold(stands, Position::min)
    }

    /// Whether the table takes a change again that the target has.
    pub(super) fn takes_again(&self, table: u32, position: Position) -> bool {
        let from = self.again.get(&table);
        from.is_some_and(|from| *from < position && position <= self.stood)
    }

    /// Whether the target may be committed here.
    pub(super) fn may_commit(&self, at: Position) -> bool {
        self.again.is_empty() || at >= self.stood
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::plan::TablePlan;

    fn object(key: &str) -> EntryObject {
        EntryObject {
            key: key.into(),
            bytes: 0,
            sha256: "s".into(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
            version: None,
        }
    }

    fn plan(repairs: &[(u32, u64, &str)]) -> Plan {
        let mut plan = Plan::default();
        for (table, position, key) in repairs {
            let rows = RowsObject { position: Position(*position), object: object(key) };
            plan.tables.entry(*table).or_insert_with(TablePlan::default).repairs.push(rows);
        }
        plan
    }

    fn keys(repairs: &mut Repairs, before: u64) -> Vec<String> {
        let next = || repairs.next_before(Position(before)).map(|(_, object)| object.key);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn rows_are_due_in_order_before_the_first_change_behind_them() {
        let plan = plan(&[(1, 30, "b"), (2, 20, "a"), (3, 5, "other"), (1, 40, "c")]);
        let there = HashMap::new();
        let mut repairs = Repairs::new(&plan, &there, |id| id != 3, Position(0));
        assert_eq!(keys(&mut repairs, 20), [""; 0]);
        assert_eq!(keys(&mut repairs, 31), ["a", "b"]);
        assert_eq!(keys(&mut repairs, 40), [""; 0]);
        assert_eq!(keys(&mut repairs, 99), ["c"]);
        assert!(repairs.may_commit(Position(1)) && !repairs.takes_again(1, Position(35)));
        assert_eq!(repairs.begin(Position(7)), Position(7));
    }

    #[test]
    fn a_table_behind_whose_place_rows_were_read_takes_its_changes_again() {
        let plan = plan(&[(1, 30, "b"), (1, 20, "a"), (2, 60, "c"), (2, 10, "done")]);
        let there = HashMap::from([("done".into(), "s".into())]);
        let repairs = Repairs::new(&plan, &there, |_| true, Position(50));
        assert_eq!(repairs.tables().collect::<Vec<_>>(), [1]);
        assert_eq!(repairs.begin(Position(50)), Position(20));
        let again = |at| repairs.takes_again(1, Position(at));
        assert!(!again(20) && again(21) && again(50) && !again(51));
        assert!(!repairs.takes_again(2, Position(30)));
        assert!(!repairs.may_commit(Position(49)) && repairs.may_commit(Position(50)));
    }

    #[test]
    fn what_was_read_where_the_target_stands_is_simply_due() {
        let plan = plan(&[(1, 50, "a")]);
        let mut repairs = Repairs::new(&plan, &HashMap::new(), |_| true, Position(50));
        assert_eq!(repairs.tables().count(), 0);
        assert_eq!(keys(&mut repairs, 51), ["a"]);
    }
}
