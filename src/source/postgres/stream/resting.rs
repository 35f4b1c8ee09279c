//! Definitions of tables that were altered at rest, recorded where the stream has come to.

use std::sync::Arc;

use super::{
    super::{at_rest, catalog, error::SourceError, relation::Relation},
    Stream,
};
use crate::{source::Table, units::Position};

impl Stream {
    /// The definitions that are to stand at `position`, where no transaction is open. To be called when none is held.
    pub(super) async fn at_rest(&mut self, position: Position) -> Result<Vec<Table>, SourceError> {
        let shared = Arc::clone(&self.line.shared);
        let mut news = shared.at_rest.take(position);
        if news.is_empty() {
            return Ok(news);
        }
        let described = catalog::describe(&mut self.sql, news.iter().map(|table| table.id));
        let described = self.line.meanwhile(described).await??;
        // One that was altered again may be altered behind this position: the next look at it tells.
        let is_still = |table: &Table| {
            described.get(&table.id).is_some_and(|known| known.table.same_shape(table))
        };
        news.retain(is_still);
        let mut definitions = vec![];
        for table in news {
            if !self.is_told(&table)? {
                tracing::info!(table = table.qualified(), "it was altered at rest");
                self.defined.insert(table.id, table.clone());
                definitions.push(table);
            }
        }
        Ok(definitions)
    }

    /// The definition that was recorded last of a table, if the stream describes it just so: what the catalog has may
    /// be that of a later statement.
    pub(super) fn told_before(&self, relation: &Relation) -> Result<Option<Table>, SourceError> {
        let told = self.told_last(relation.id)?;
        Ok(told.filter(|table| relation.is_that_of(table)))
    }

    /// Whether a table was recorded like that last.
    fn is_told(&self, table: &Table) -> Result<bool, SourceError> {
        let told = self.told_last(table.id)?;
        Ok(told.is_some_and(|told| told.same_shape(table)))
    }

    fn told_last(&self, id: u32) -> Result<Option<Table>, SourceError> {
        let told = self.defined.get(&id).or_else(|| self.described.get(&id));
        if told.is_some() || self.undefined.contains(&id) {
            return Ok(told.cloned());
        }
        Ok(at_rest::recorded(&*self.line.shared.facts, id)?)
    }
}
