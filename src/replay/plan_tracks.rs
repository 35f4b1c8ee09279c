//! The objects of one epoch, a track for each table. Pure.

use std::collections::BTreeMap;

use super::{
    ReplayError,
    key::{Content, parse},
    merge::Track,
    plan::{Definitions, definition},
};
use crate::ledger::{Entry, EntryObject};

/// The objects of an entry of changes, by table.
///
/// # Errors
///
/// [`ReplayError::Missing`] names a definition.
pub fn tracks(entry: &Entry, known: &Definitions) -> Result<Vec<Track>, ReplayError> {
    let mut tracks: BTreeMap<u32, Vec<Placed>> = BTreeMap::new();
    for object in &entry.objects {
        let Some((name, Content::Changes { from, part })) = parse(&object.key) else { continue };
        let table = definition(entry, Some(object), &name, known)?;
        let placed = Placed { from, part, version: table.version, object: object.clone() };
        tracks.entry(table.id).or_default().push(placed);
    }
    let tracks = tracks.into_iter().map(|(table, mut objects)| {
        objects.sort_by_key(|placed| (placed.from, placed.part));
        // The last one's: what the table is at the epoch's end.
        let version = objects.last().map_or(0, |placed| placed.version);
        let objects = objects.into_iter().map(|placed| placed.object).collect();
        Track { table, version, objects }
    });
    Ok(tracks.collect())
}

/// An object of changes, with its first `_sequence` and its part.
struct Placed {
    from: u64,
    part: u32,
    version: u32,
    object: EntryObject,
}
