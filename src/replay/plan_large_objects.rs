//! Which objects hold the large objects at a point. Pure.
//!
//! A look at the point or behind it says that all that were committed up to the point are there; what was committed
//! behind the point may be there too. Without one, those that are younger than the last look are missing.

use super::{plan::RowsObject, plan_own::own_rows};
use crate::{
    journal::{large_object, own::OWN_SCHEMA},
    ledger::Entry,
    units::Position,
};

/// What a restore reads of large objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LargeObjectsPlan {
    /// In the order in which they were read: from the last look at all of them on.
    pub objects: Vec<RowsObject>,
    /// The last look before the point, or at it.
    pub before: Option<Position>,
    /// The first look at the point or behind it.
    pub covers: Option<Position>,
}

/// For the state at `end`; of what was read from `floor` on, where the last gap ends.
pub(super) fn large_objects(entries: &[Entry], end: Position, floor: Position) -> LargeObjectsPlan {
    let looks = entries.iter().flat_map(|entry| &entry.fates.large_objects);
    let looks = || looks.clone().filter(|look| look.position >= floor);
    let covers = looks().map(|look| look.position).filter(|at| *at >= end).min();
    let before = looks().map(|look| look.position).filter(|at| *at <= end).max();
    let whole = looks().filter(|look| look.position <= end).filter_map(|look| look.from);
    let from = whole.max().unwrap_or(floor).max(floor);
    let last = covers.unwrap_or(Position(u64::MAX));
    let mut objects = own_rows(entries, large_object::TABLE_NAME, &(from..=last));
    objects.sort_by(|one, other| order(one).cmp(&order(other)));
    LargeObjectsPlan { objects, before, covers }
}

pub(super) fn is_of_large_objects(schema: &str, name: &str) -> bool {
    schema == OWN_SCHEMA && name == large_object::TABLE_NAME
}

/// Position, and what the key's last part says: number of the chunk, and of its part. Whatever the day.
fn order(rows: &RowsObject) -> (Position, &str) {
    (rows.position, rows.object.key.rsplit('/').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        ledger::{EntryKind, EntryObject, Fates, LookedFor, SourceIdentity},
        units::Point,
    };

    /// Rows at `position`, and a look there, from a position on or of what is new.
    fn entry(day: u32, position: u64, chunk: u32, look: Option<Option<u64>>) -> Entry {
        let key = format!(
            "raw/erp/pg_lakehead.large_objects/dt=2026-11-{day:02}/repair-{position:016X}-{chunk:08}-0123456789abcdef.parquet"
        );
        let object = EntryObject {
            key,
            bytes: 0,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
            version: None,
        };
        let look =
            look.map(|from| LookedFor { position: Position(position), from: from.map(Position) });
        let name = "erp".into();
        Entry {
            previous: String::new(),
            entry: 1,
            source: SourceIdentity { name, system_identifier: String::new(), timeline: 1 },
            kind: EntryKind::Repair,
            from: Point::default(),
            to: Point::default(),
            tables: BTreeMap::new(),
            objects: vec![object],
            completes: BTreeMap::new(),
            fates: Fates { large_objects: look.into_iter().collect(), ..Fates::default() },
            lost: None,
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: "box".into(),
            at: String::new(),
        }
    }

    #[test]
    fn it_reads_from_the_last_whole_look_to_the_first_that_covers_the_end_in_order() {
        let entries = [
            entry(2, 10, 1, None),
            entry(3, 10, 0, None),
            entry(3, 20, 2, Some(Some(10))),
            entry(3, 30, 3, Some(None)),
            entry(4, 40, 0, None),
            entry(4, 50, 1, Some(Some(40))),
            entry(4, 60, 2, None),
        ];
        let of = |end, floor| {
            let plan = large_objects(&entries, Position(end), Position(floor));
            let objects: Vec<u64> = plan.objects.iter().map(|rows| rows.position.0).collect();
            (objects, plan.before.map(|at| at.0), plan.covers.map(|at| at.0))
        };
        assert_eq!(of(5, 0), (vec![10, 10, 20], None, Some(20)));
        assert_eq!(of(25, 0), (vec![10, 10, 20, 30], Some(20), Some(30)));
        assert_eq!(of(50, 0), (vec![40, 50], Some(50), Some(50)));
        assert_eq!(of(70, 0), (vec![40, 50, 60], Some(50), None));
        assert_eq!(of(70, 55), (vec![60], None, None), "behind a gap");
        let plan = large_objects(&entries, Position(5), Position(0));
        let days: Vec<bool> =
            plan.objects.iter().map(|rows| rows.object.key.contains("-11-02/")).collect();
        assert_eq!(days, [false, true, false], "the chunk's number counts, and not its day");
    }
}
