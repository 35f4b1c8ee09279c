//! Which definition of a table an object goes with, and those that go with no row: what statements made of them. Pure.

use std::sync::Arc;

use super::{
    ReplayError,
    key::{Content, Name, parse},
    merge::Track,
    plan::{Definitions, Epoch},
    plan_names::Seen,
};
use crate::{
    ledger::{Defined, Entry, EntryObject},
    seal::Table,
    units::{Position, Sequence},
};

/// A table is at this version from here on.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The table's id.
    pub table: u32,
    /// The version of its schema.
    pub version: u32,
    /// The position of the transaction that made it.
    pub position: Position,
    /// Behind this change.
    pub sequence: Sequence,
}

impl Epoch {
    /// The version that a table has at the epoch's end, whose snapshot stands at `snapshot`: that of its last rows,
    /// or that of a definition behind them. `None`: neither is in the epoch.
    pub(super) fn version_at_end(&self, table: u32, snapshot: Position) -> Option<u32> {
        let is_behind = self.to.position > snapshot;
        let track = self.tracks.iter().find(|track| is_behind && track.table == table);
        let begins = |track: &Track| match parse(&track.objects.last()?.key)? {
            (_, Content::Changes { from, .. }) => Some(from),
            _ => None,
        };
        let defined = self.defined.iter().rfind(|of| of.table == table && of.position > snapshot);
        match (track, defined) {
            // Rows of another version begin another object.
            (Some(track), Some(defined))
                if begins(track).is_some_and(|from| from > defined.sequence.0) =>
            {
                Some(track.version)
            }
            (_, Some(defined)) => Some(defined.version),
            (track, None) => track.map(|track| track.version),
        }
    }
}

/// The name that a table has from there on, and its version.
type Told<'a> = (&'a Name, &'a Arc<Table>, Definition);

/// What an entry of changes says, up to `bound`.
///
/// # Errors
///
/// [`ReplayError::Missing`] names a definition.
pub(super) fn defined<'a>(
    entry: &'a Entry,
    known: &'a Definitions,
    bound: Position,
) -> Result<Vec<Told<'a>>, ReplayError> {
    let within = entry.fates.defined.iter().filter(|defined| defined.position <= bound);
    let found = within.map(|defined| {
        let Defined { table, version, position, sequence } = defined;
        let named = |((name, of), _): &(&(Name, u32), &Arc<Table>)| {
            of == version && name.qualified() == *table
        };
        let ((name, _), known) = known.iter().find(named).ok_or_else(|| ReplayError::Missing {
            key: format!("_schema/…/{table}/{version}.json (entry {})", entry.entry),
        })?;
        let (position, sequence) = (*position, *sequence);
        let definition = Definition { table: known.id, version: *version, position, sequence };
        Ok((name, known, definition))
    });
    found.collect()
}

/// Where a table was seen to be called so: by statements as by the changes behind them.
pub(super) fn seen(entry: &Entry, definition: &Definition) -> Seen {
    Seen::within(entry.from.position, entry.to.position, definition.sequence.0 + 1)
}

/// The version of a table under which an `object` of it was written, or the last in the entry.
pub(super) fn definition(
    entry: &Entry,
    object: Option<&EntryObject>,
    name: &Name,
    known: &Definitions,
) -> Result<Arc<Table>, ReplayError> {
    let qualified = name.qualified();
    let version = object.and_then(|object| object.version);
    let version = version.or_else(|| entry.tables.get(&qualified).copied());
    let table = version.and_then(|version| known.get(&(name.clone(), version)));
    table.cloned().ok_or_else(|| ReplayError::Missing {
        key: format!("_schema/…/{qualified}/{}.json (entry {})", version.unwrap_or(0), entry.entry),
    })
}
