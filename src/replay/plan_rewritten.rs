//! Tables that a restore has between a statement which changed values of theirs, that no change tells, and the reading
//! anew which found them. Pure.

use super::plan::{Definitions, Plan};
use crate::{ledger::Entry, units::Position};

/// Where a table's values may be those of before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rewritten {
    /// The statement came behind this position.
    pub since: Position,
    /// Here it was read anew.
    pub anew: Position,
}

impl Rewritten {
    /// What of the table is in doubt, for people.
    pub fn doubt(&self, table: &str) -> String {
        let Self { since, anew } = self;
        format!(
            "{table}: behind {since} a statement changed values of it that are in no stream, and it was read anew at \
             {anew}: columns that it gave, or gave another type, or whose type it made another, may hold in older rows \
             what was there before"
        )
    }
}

/// Adds to `plan` which of its tables are in doubt at its end, by the whole ledger; nothing of behind `bound` counts.
pub(super) fn take_rewritten(
    plan: &mut Plan,
    entries: &[Entry],
    known: &Definitions,
    bound: Position,
) {
    for entry in entries {
        for (qualified, since) in &entry.fates.rewritten {
            let Some(anew) = entry.fates.anew.get(qualified).copied() else { continue };
            // A part may be empty: then its entry names no version.
            let version = entry.tables.get(qualified);
            let mut named = known.iter();
            let named = named.rfind(|((name, of), _)| {
                version.is_none_or(|version| version == of) && name.qualified() == *qualified
            });
            let Some((_, table)) = named else { continue };
            if *since >= plan.end.position || anew <= bound {
                continue;
            }
            if let Some(planned) = plan.tables.get_mut(&table.id) {
                // That it left says less.
                planned.left = None;
                plan.rewritten.entry(table.id).or_insert(Rewritten { since: *since, anew });
            }
        }
    }
}
