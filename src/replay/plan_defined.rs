//! Which definition of a table an object goes with, and those that go with no row: what statements made of them. Pure.

use std::sync::Arc;

use super::{ReplayError, key::Name, plan::Definitions, plan_names::Seen};
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
