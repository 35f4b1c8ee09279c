//! Versions of tables' schemas: each distinct shape of a table has a number, for good.
//!
//! Facts: `seal/table/<table id, 10 digits>/<version, 10 digits>`, each a [`Table`] with its version. A
//! version's fact is recorded together with the group of its object `_schema/…/<version>.json` (the
//! [`Table`] as JSON), before any group that uses it.
//!
//! `seal/taken/<qualified name>`: the greatest number under which a lost box left an object that no entry
//! of the ledger names. What it describes is not known here; the number is not given again.
//!
//! **Invariant:** no two shapes have one version under one name, also when a table is dropped and made
//! again under its name: the number stands in an object's key, and what stands under a key never changes.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::Write,
    sync::Arc,
};

use super::{
    Object, SealError, Table,
    object::{Draft, Maker},
};
use crate::{
    facts::{self, FactBatch, Facts},
    journal::fate::{VERSION_FACTS, version_facts},
};

/// All versions that were ever given.
#[derive(Debug, Default)]
pub(super) struct Versions {
    known: BTreeMap<u32, Vec<Arc<Table>>>,
    /// Qualified name, and the greatest number that others took.
    taken: BTreeMap<String, u32>,
}

impl Versions {
    /// Reads the facts.
    pub(super) fn load(facts: &dyn Facts) -> Result<Self, SealError> {
        let mut versions = Self::default();
        for (_, table) in facts::read_all::<Table>(facts, VERSION_FACTS)? {
            versions.learn(Arc::new(table));
        }
        for (key, version) in facts::read_all::<u32>(facts, TAKEN_FACTS)? {
            versions.taken.insert(key[TAKEN_FACTS.len()..].to_owned(), version);
        }
        Ok(versions)
    }

    /// The version that has `table`'s shape.
    pub(super) fn find(&self, table: &Table) -> Option<&Arc<Table>> {
        let known = self.known.get(&table.id)?;
        known.iter().find(|version| version.same_shape(table))
    }

    /// The version of the table that was learned last.
    pub(super) fn last(&self, table_id: u32) -> Option<Arc<Table>> {
        self.known.get(&table_id)?.last().cloned()
    }

    /// The version of that number, of whichever table had the name with it.
    pub(super) fn named(&self, qualified: &str, version: u32) -> Option<Arc<Table>> {
        let mut all = self.known.values().flatten();
        all.find(|table| table.version == version && table.qualified() == qualified).cloned()
    }

    /// `table` with the next free number. It counts only when [`Versions::learn`]ed.
    pub(super) fn number(&self, table: &Table) -> Arc<Table> {
        let same = |known: &&Arc<Table>| {
            known.id == table.id || (known.schema == table.schema && known.name == table.name)
        };
        let last = self.known.values().flatten().filter(same).map(|known| known.version).max();
        let last = last.max(self.taken.get(&table.qualified()).copied());
        Arc::new(Table { version: last.unwrap_or(0) + 1, ..table.clone() })
    }

    /// Remembers a version whose fact is durable.
    pub(super) fn learn(&mut self, table: Arc<Table>) {
        match self.known.entry(table.id) {
            Entry::Vacant(vacant) => drop(vacant.insert(vec![table])),
            Entry::Occupied(mut known) => known.get_mut().push(table),
        }
    }
}

/// Adds the fact of a version.
pub fn put_version(batch: &mut FactBatch, table: &Table) {
    batch.put(format!("{}{:010}", version_facts(table.id), table.version), table);
}

/// Adds the fact that the numbers of `qualified` up to `version` are taken.
pub fn put_taken(batch: &mut FactBatch, qualified: &str, version: u32) {
    batch.put(format!("{TAKEN_FACTS}{qualified}"), &version);
}

/// Makes the object of a version; of one that is `lost`, whose key says nothing of its content, the very same.
pub(super) fn draft(
    maker: &Maker,
    table: &Table,
    lost: Option<&Object>,
) -> Result<Draft, SealError> {
    let mut json = serde_json::to_vec_pretty(table).expect("a table is plain data");
    json.push(b'\n');
    let mut sink = match lost {
        Some(lost) => maker.sink_again(lost)?,
        None => maker.sink(&table.qualified())?,
    };
    sink.write_all(&json).map_err(|why| sink.failed(why))?;
    let key = |_: &str| match lost {
        Some(lost) => lost.key.clone(),
        None => maker.keys.schema(&maker.source, table),
    };
    let draft = sink.finish(table, BTreeMap::new(), key)?;
    match lost.filter(|lost| lost.sha256 != draft.object.sha256) {
        // S3 may have it, though no answer came.
        Some(lost) => Err(SealError::Spool {
            path: lost.spool.clone(),
            what: "its schema would be described by other bytes now",
        }),
        None => Ok(draft),
    }
}

const TAKEN_FACTS: &str = "seal/taken/";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{facts::MemoryFacts, seal::memory::table};

    fn give(versions: &mut Versions, facts: &MemoryFacts, table: &Table) -> u32 {
        if let Some(known) = versions.find(table) {
            return known.version;
        }
        let numbered = versions.number(table);
        let mut batch = FactBatch::default();
        put_version(&mut batch, &numbered);
        facts.record_blocking(batch).unwrap();
        versions.learn(Arc::clone(&numbered));
        numbered.version
    }

    #[test]
    fn a_shape_keeps_its_number_across_restarts_and_returns() {
        let facts = MemoryFacts::default();
        let mut versions = Versions::load(&facts).unwrap();
        let (plain, mut changed) = (table(7, "t"), table(7, "t"));
        changed.columns[0].not_null = !changed.columns[0].not_null;
        assert_eq!(give(&mut versions, &facts, &plain), 1);
        assert_eq!(give(&mut versions, &facts, &changed), 2);
        assert_eq!(give(&mut versions, &facts, &plain), 1);
        let mut again = Versions::load(&facts).unwrap();
        assert_eq!(give(&mut again, &facts, &changed), 2);
        assert_eq!(give(&mut again, &facts, &plain), 1);
    }

    #[test]
    fn a_number_that_a_lost_box_left_in_the_lake_is_not_given_again() {
        let facts = MemoryFacts::default();
        let mut batch = FactBatch::default();
        put_version(&mut batch, &Table { version: 1, ..table(7, "t") });
        put_taken(&mut batch, "public.t", 3);
        facts.record_blocking(batch).unwrap();
        let mut versions = Versions::load(&facts).unwrap();
        let mut changed = table(7, "t");
        changed.columns[0].not_null = !changed.columns[0].not_null;
        assert_eq!(give(&mut versions, &facts, &table(7, "t")), 1);
        assert_eq!(give(&mut versions, &facts, &changed), 4);
    }

    #[test]
    fn a_table_made_again_under_its_name_takes_no_old_number() {
        let facts = MemoryFacts::default();
        let mut versions = Versions::default();
        assert_eq!(give(&mut versions, &facts, &table(7, "t")), 1);
        assert_eq!(give(&mut versions, &facts, &table(8, "t")), 2);
        assert_eq!(give(&mut versions, &facts, &table(9, "u")), 1);
        assert_eq!(give(&mut versions, &facts, &table(9, "t")), 3);
    }
}
