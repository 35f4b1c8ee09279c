//! What a group says of tables beside the rows that it holds.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::Table;
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    journal::{
        Sight,
        fate::{FATE_FACTS, Fate, anew_fact, fate_fact, fated_table, rewritten_fact},
    },
    units::{Position, Sequence},
};

/// Tables by qualified name; with a version of its schema, as a name alone may be that of several tables,
/// one after the other.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Fates {
    /// All their rows are in the lake with this group, with all their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub whole: BTreeMap<String, u32>,
    /// They are not copied any more: what is here of them later counts only if they are read anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<String, u32>,
    /// They had left and are back: rows of them that were read before this position count no more. That of
    /// the name's version with this group.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub anew: BTreeMap<String, Position>,
    /// Of those that are read anew: behind this position a statement changed values of them that are in no stream.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewritten: BTreeMap<String, Position>,
    /// Their rows from before a gap count on: those that differed from the database behind it were read by their
    /// keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub repaired: BTreeMap<String, Repaired>,
    /// Looks at the sequence generators: with this group the lake has them as they were there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sequences: Vec<Looked>,
    /// Definitions that no row brought: what statements left, and what was found to be altered, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub defined: Vec<Defined>,
    /// Looks at the large objects: with this group the lake has all that were committed up to there and could be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_objects: Vec<LookedFor>,
}

/// A table has another definition from here on, whether rows follow or not.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Defined {
    /// Its qualified name.
    pub table: String,
    /// The version of its schema.
    pub version: u32,
    /// The position of the transaction of the statement, or behind which it was found.
    pub position: Position,
    /// Behind this change.
    pub sequence: Sequence,
}

/// A look at the large objects.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct LookedFor {
    /// All that were committed up to here are in the lake.
    pub position: Position,
    /// If all were read, and not only those that were new: what was read from this position on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Position>,
}

/// A look at the sequence generators.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Looked {
    /// Where the log ended before it.
    pub position: Position,
    /// Whether all of them were written, and not only those that had changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
}

/// A table that was compared with the database behind a gap, and repaired by the keys of its rows.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Repaired {
    /// A version of its schema.
    pub version: u32,
    /// From here on it is as the database has it.
    pub position: Position,
}

impl Fates {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
            && self.left.is_empty()
            && self.anew.is_empty()
            && self.rewritten.is_empty()
            && self.repaired.is_empty()
            && self.sequences.is_empty()
            && self.defined.is_empty()
            && self.large_objects.is_empty()
    }

    /// Adds a table. False: another one of its name is there.
    pub(super) fn add(&mut self, fate: Fate, table: &Table) -> bool {
        let (name, version) = (table.qualified(), table.version);
        match fate {
            Fate::Whole => put(&mut self.whole, name, version),
            Fate::Left => put(&mut self.left, name, version),
            Fate::Repaired(position) => {
                put(&mut self.repaired, name, Repaired { version, position })
            }
        }
    }
}

/// False: the name is there.
fn put<T>(said: &mut BTreeMap<String, T>, name: String, what: T) -> bool {
    match said.entry(name) {
        Entry::Vacant(place) => {
            place.insert(what);
            true
        }
        Entry::Occupied(_) => false,
    }
}

/// What a look says, which stands at `position`.
pub(super) fn seen(of: Sight, position: Position) -> Fates {
    match of {
        Sight::Sequences { whole } => {
            Fates { sequences: vec![Looked { position, whole }], ..Fates::default() }
        }
        Sight::LargeObjects => Fates::default(),
        Sight::LargeObjectsEnd { from } => {
            Fates { large_objects: vec![LookedFor { position, from }], ..Fates::default() }
        }
    }
}

/// What the first part of a reading anew says, which stands at `position`: that the table had left goes with
/// it, if no epoch has said so.
pub(super) fn begun_anew(
    facts: &dyn Facts,
    table: &Table,
    position: Position,
    said: &mut FactBatch,
) -> Result<Fates, FactDamaged> {
    let (mut fates, anew) = (Fates::default(), anew_fact(table.id));
    if facts.get(&anew).is_some() {
        let (name, rewritten) = (table.qualified(), rewritten_fact(table.id));
        if let Some(since) = facts::read(facts, &rewritten)? {
            fates.rewritten.insert(name.clone(), since);
            said.delete(rewritten);
        }
        fates.anew.insert(name, position);
        said.delete(anew).delete(fate_fact(table.id, Fate::Left));
    }
    Ok(fates)
}

/// What the source asked to be said, and the facts that go with that. What cannot be said yet stays: of a
/// table that the lake does not know, or of another one of the same name.
pub(super) fn due(
    facts: &dyn Facts,
    last_version: impl Fn(u32) -> Option<Arc<Table>>,
) -> Result<(Fates, FactBatch), FactDamaged> {
    let (mut fates, mut said) = (Fates::default(), FactBatch::default());
    for (key, fate) in facts::read_all::<Fate>(facts, FATE_FACTS)? {
        let Some(table) = fated_table(&key).and_then(&last_version) else { continue };
        if fates.add(fate, &table) {
            said.delete(key);
        }
    }
    Ok((fates, said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::MemoryFacts,
        journal::fate::fate_fact,
        seal::memory::{Bench, Log, NOON, change, epochs, relation, table},
    };

    #[test]
    fn the_epoch_that_is_cut_next_says_it() {
        let bench = Bench::new();
        let (key, mut asked) = (fate_fact(7, Fate::Left), FactBatch::default());
        asked.put(&*key, &Fate::Left);
        bench.facts().record_blocking(asked).unwrap();
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(7, "t")), change(b'I', 7, &["1", "n"])]]);
        for _ in 0..7 {
            log.whole(NOON, &[&[change(b'I', 7, &["1", "n"])]]);
        }
        let groups = bench.run(log.batches).unwrap();
        let left: Vec<_> = epochs(&groups).iter().map(|epoch| epoch.fates.left.len()).collect();
        assert!(
            left.len() > 1 && left[0] == 1 && left[1..].iter().all(|said| *said == 0),
            "{left:?}"
        );
        assert_eq!(bench.facts().get(&key), None);
    }

    #[test]
    fn a_reading_anew_is_said_by_its_first_part_and_takes_the_leaving_with_it() {
        let (facts, mut asked) = (MemoryFacts::default(), FactBatch::default());
        asked.put(anew_fact(7), &true).put(fate_fact(7, Fate::Left), &Fate::Left);
        asked.put(rewritten_fact(7), &Position(40));
        facts.record_blocking(asked).unwrap();
        let say = |id| {
            let mut said = FactBatch::default();
            let fates = begun_anew(&facts, &table(id, "t"), Position(50), &mut said).unwrap();
            facts.record_blocking(said).unwrap();
            fates
        };
        let at = |position| BTreeMap::from([("public.t".to_owned(), Position(position))]);
        assert!(say(8).is_empty());
        assert_eq!(say(7), Fates { anew: at(50), rewritten: at(40), ..Fates::default() });
        assert!(say(7).is_empty());
        assert_eq!(facts.scan("seal/").len(), 0);
    }

    #[test]
    fn what_is_asked_is_said_once_and_what_cannot_be_said_waits() {
        let (facts, mut asked) = (MemoryFacts::default(), FactBatch::default());
        for (id, fate) in [(7, Fate::Whole), (7, Fate::Left), (8, Fate::Left), (9, Fate::Left)] {
            asked.put(fate_fact(id, fate), &fate);
        }
        facts.record_blocking(asked).unwrap();
        // Two of one name; of the third nothing was ever sealed.
        let last = |id| {
            let version = match id {
                7 => 2,
                8 => 3,
                _ => return None,
            };
            Some(Arc::new(Table { version, ..table(id, "t") }))
        };
        let say = || {
            let (fates, said) = due(&facts, last).unwrap();
            facts.record_blocking(said).unwrap();
            fates
        };
        let one = |version| BTreeMap::from([("public.t".to_owned(), version)]);
        assert_eq!(say(), Fates { whole: one(2), left: one(2), ..Fates::default() });
        assert_eq!(say(), Fates { left: one(3), ..Fates::default() });
        assert!(say().is_empty());
        assert_eq!(facts.scan(FATE_FACTS).len(), 1);
    }
}
