//! What of a plan comes from tables of ours: sequences and large objects; and which tables are a restore's own. Pure.

use std::ops::RangeInclusive;

use super::{
    key::{Content, Name, parse},
    plan::{Definitions, Plan, RowsObject},
    plan_large_objects::{is_of_large_objects, large_objects},
    plan_sequences::{is_of_sequences, sequences},
};
use crate::{
    journal::own::{OWN_SCHEMA, RESTORE_SCHEMA},
    ledger::Entry,
    units::Position,
};

/// Whether a table is what a restore keeps in the database that it fills. Older firmware copied these, where the source
/// was restored itself; in a target they would be in the way of its own.
pub(super) fn is_reserved(name: Option<&Name>) -> bool {
    name.is_some_and(|name| name.schema == RESTORE_SCHEMA)
}

/// Adds to `plan` what the lake has of them at its end, but for what is to be left out. What was looked at before
/// `floor` does not count.
pub(super) fn take_own(
    plan: &mut Plan,
    entries: &[Entry],
    definitions: &Definitions,
    except: &[String],
    floor: Position,
) {
    let wanted = |is_own: fn(&str, &str) -> bool| {
        let own = definitions.keys().find(|(name, _)| is_own(&name.schema, &name.table));
        own.is_some_and(|(name, _)| !except.contains(&name.qualified()))
    };
    let end = plan.end.position;
    if wanted(is_of_sequences) {
        plan.sequences = sequences(entries, end, floor);
    }
    if wanted(is_of_large_objects) {
        plan.large_objects = large_objects(entries, end, floor);
    }
}

/// What was read of one of these tables within these positions, in no order.
pub(super) fn own_rows(
    entries: &[Entry],
    table: &str,
    within: &RangeInclusive<Position>,
) -> Vec<RowsObject> {
    let rows = entries.iter().flat_map(|entry| &entry.objects).filter_map(|object| {
        let (name, content) = parse(&object.key)?;
        let is_own = name.schema == OWN_SCHEMA && name.table == table;
        match content {
            Content::Rows { position } if is_own && within.contains(&position) => {
                Some(RowsObject { position, object: object.clone() })
            }
            _ => None,
        }
    });
    rows.collect()
}
