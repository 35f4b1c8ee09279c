//! Which objects say where sequences stood at a point. Pure.
//!
//! What is written of a look is what changed since the one before it, and all of them now and then. A look at the
//! point or behind it says of every sequence that nothing was taken from it up to the point beyond where it stands
//! there; with the looks before it, what did not change. Without one the last look is all there is.

use super::{plan::RowsObject, plan_own::own_rows};
use crate::{
    journal::{generator, own::OWN_SCHEMA},
    ledger::Entry,
    units::Position,
};

/// What a restore reads of sequences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequencesPlan {
    /// By position: from the last look at all of them on.
    pub objects: Vec<RowsObject>,
    /// The last look before the point, or at it.
    pub before: Option<Position>,
    /// The first look at the point or behind it.
    pub covers: Option<Position>,
}

/// For the state at `end`; of what was looked at from `floor` on, where the last gap ends.
pub(super) fn sequences(entries: &[Entry], end: Position, floor: Position) -> SequencesPlan {
    let looks = entries.iter().flat_map(|entry| &entry.fates.sequences);
    let looks = || looks.clone().filter(|look| look.position >= floor);
    let covers = looks().map(|look| look.position).filter(|at| *at >= end).min();
    let before = looks().map(|look| look.position).filter(|at| *at <= end).max();
    let whole = looks().filter(|look| look.whole && look.position <= end);
    let from = whole.map(|look| look.position).max().unwrap_or(floor);
    let last = covers.unwrap_or(end);
    let mut objects = own_rows(entries, generator::TABLE_NAME, &(from..=last));
    objects.sort_by(|one, other| {
        (one.position, &one.object.key).cmp(&(other.position, &other.object.key))
    });
    SequencesPlan { objects, before, covers }
}

pub(super) fn is_of_sequences(schema: &str, name: &str) -> bool {
    schema == OWN_SCHEMA && name == generator::TABLE_NAME
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        ledger::{EntryKind, EntryObject, Fates, Looked, SourceIdentity},
        units::Point,
    };

    /// A look at `position`, with rows or without.
    fn look(position: u64, whole: bool, rows: bool) -> Entry {
        let object = EntryObject {
            key: format!(
                "raw/erp/pg_lakehead.sequences/dt=2026-11-27/repair-{position:016X}-00000000-0123456789abcdef.parquet"
            ),
            bytes: 0,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
            version: None,
        };
        let name = "erp".into();
        Entry {
            previous: String::new(),
            entry: 1,
            source: SourceIdentity { name, system_identifier: String::new(), timeline: 1 },
            kind: EntryKind::Repair,
            from: Point::default(),
            to: Point::default(),
            tables: BTreeMap::new(),
            objects: if rows { vec![object] } else { vec![] },
            completes: BTreeMap::new(),
            fates: Fates {
                sequences: vec![Looked { position: Position(position), whole }],
                ..Fates::default()
            },
            lost: None,
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: "box".into(),
            at: String::new(),
        }
    }

    #[test]
    fn it_reads_from_the_last_whole_look_to_the_first_that_covers_the_end() {
        let entries = [
            look(10, true, true),
            look(20, false, true),
            look(30, true, true),
            look(40, false, true),
            look(50, false, false),
            look(60, false, true),
        ];
        let of = |end, floor| {
            let plan = sequences(&entries, Position(end), Position(floor));
            let objects: Vec<u64> = plan.objects.iter().map(|rows| rows.position.0).collect();
            (objects, plan.before.map(|at| at.0), plan.covers.map(|at| at.0))
        };
        assert_eq!(of(5, 0), (vec![10], None, Some(10)));
        assert_eq!(of(20, 0), (vec![10, 20], Some(20), Some(20)));
        assert_eq!(of(35, 0), (vec![30, 40], Some(30), Some(40)));
        assert_eq!(of(45, 0), (vec![30, 40], Some(40), Some(50)), "it says that nothing changed");
        assert_eq!(of(70, 0), (vec![30, 40, 60], Some(60), None));
        // Behind a gap what was looked at before it does not count.
        assert_eq!(of(70, 65), (vec![], None, None));
    }
}
