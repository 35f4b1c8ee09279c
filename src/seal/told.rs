//! Which definition of each table the lake was told last, in the order of the changes: by rows, or by a definition that
//! stands alone. The source goes by it (`source/fate.rs`).
//!
//! **Invariant:** the facts are those of the end of the last recorded epoch.

use std::collections::{BTreeMap, BTreeSet};

use super::SealError;
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    journal::fate::{By, TOLD_FACTS, told_by, told_fact},
};

/// Versions by table.
#[derive(Debug, Default)]
pub(super) struct Told {
    versions: BTreeMap<u32, u32>,
    /// Those that the facts lack.
    news: BTreeMap<u32, u32>,
    /// Tables of which a definition came alone: it counts, whatever parts had said.
    alone: BTreeSet<u32>,
}

impl Told {
    /// Reads the facts.
    pub(super) fn load(facts: &dyn Facts) -> Result<Self, SealError> {
        let all = facts::read_all::<u32>(facts, TOLD_FACTS)?.into_iter();
        let by_changes =
            all.filter_map(|(key, version)| Some((told_by(&key, By::Changes)?, version)));
        Ok(Self { versions: by_changes.collect(), ..Self::default() })
    }

    /// Rows of this version come. False: it is the one that was told last.
    pub(super) fn tell(&mut self, table_id: u32, version: u32) -> bool {
        let is_news = self.versions.insert(table_id, version) != Some(version);
        if is_news {
            self.news.insert(table_id, version);
        }
        is_news
    }

    /// A definition comes alone. False: the lake has been told it last, by changes and by parts of a snapshot.
    pub(super) fn tell_alone(
        &mut self,
        facts: &dyn Facts,
        (table_id, version): (u32, u32),
    ) -> Result<bool, FactDamaged> {
        let by_parts: Option<u32> = facts::read(facts, &told_fact(table_id, By::Parts))?;
        let is_known = self.alone.contains(&table_id) || by_parts.is_none_or(|of| of == version);
        if !self.tell(table_id, version) && is_known {
            return Ok(false);
        }
        self.alone.insert(table_id);
        Ok(true)
    }

    /// Adds the facts, for an epoch that is recorded.
    pub(super) fn record(&self, batch: &mut FactBatch) {
        for (table_id, version) in &self.news {
            batch.put(told_fact(*table_id, By::Changes), version);
        }
        for table_id in &self.alone {
            batch.delete(told_fact(*table_id, By::Parts));
        }
    }

    /// The epoch was recorded.
    pub(super) fn recorded(&mut self) {
        self.news.clear();
        self.alone.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::MemoryFacts;

    #[test]
    fn what_was_told_last_is_known_once_its_epoch_is_recorded() {
        let facts = MemoryFacts::default();
        let mut told = Told::load(&facts).unwrap();
        assert!(told.tell(7, 1) && !told.tell(7, 1) && told.tell(7, 2) && told.tell(7, 1));
        assert!(told.tell(8, 4));
        assert!(Told::load(&facts).unwrap().tell(7, 1), "nothing was recorded");
        let mut batch = FactBatch::default();
        told.record(&mut batch);
        batch.put(told_fact(9, By::Parts), &3);
        facts.record_blocking(batch).unwrap();
        told.recorded();
        let mut none = FactBatch::default();
        told.record(&mut none);
        assert!(none.changes.is_empty());
        let mut again = Told::load(&facts).unwrap();
        assert!(!again.tell(7, 1) && !again.tell(8, 4) && again.tell(9, 3));
    }

    #[test]
    fn a_definition_that_comes_alone_is_told_once_and_counts_behind_parts_of_another() {
        let facts = MemoryFacts::default();
        let mut told = Told::default();
        let mut alone = |facts: &MemoryFacts, version| {
            let is_news = told.tell_alone(facts, (7, version)).unwrap();
            let mut batch = FactBatch::default();
            told.record(&mut batch);
            facts.record_blocking(batch).unwrap();
            told.recorded();
            is_news
        };
        let parts = |version: u32| {
            let mut batch = FactBatch::default();
            batch.put(told_fact(7, By::Parts), &version);
            facts.record_blocking(batch).unwrap();
        };
        parts(1);
        assert!(alone(&facts, 2) && !alone(&facts, 2));
        // Parts that were read later.
        parts(1);
        assert!(alone(&facts, 2) && !alone(&facts, 2));
        parts(2);
        assert!(!alone(&facts, 2) && alone(&facts, 1));
    }
}
