//! Definitions of tables that were altered at rest, recorded where the stream has come to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    super::{at_rest, error::SourceError, pgoutput::is_that_of, rewritten, wire::Wire},
    Stream,
};
use crate::{
    source::{Column, Table},
    units::Position,
};

impl Stream {
    /// The definitions that are to stand at `position`, where no transaction is open. To be called when none is held.
    pub(super) async fn at_rest(&mut self, position: Position) -> Result<Vec<Table>, SourceError> {
        let shared = Arc::clone(&self.line.shared);
        let tables = shared.at_rest.due_at(position);
        if tables.is_empty() {
            return Ok(vec![]);
        }
        let told_in = shared.at_rest.told_in(&tables);
        let sql = &mut self.sql;
        let asked = async {
            // What the stream told of last may be a moment ahead of what others see, or long, with a slow standby.
            let under_way = under_way(sql, told_in.keys()).await?;
            let early: BTreeSet<u32> =
                under_way.iter().filter_map(|xid| told_in.get(xid)).flatten().copied().collect();
            let tables: Vec<u32> = tables.into_iter().filter(|id| !early.contains(id)).collect();
            if tables.is_empty() {
                return Ok((tables, BTreeMap::new()));
            }
            let ids: Vec<String> = tables.iter().map(u32::to_string).collect();
            let parts = at_rest::parts(sql, &format!("t.oid IN ({})", ids.join(","))).await?;
            Ok::<_, SourceError>((tables, parts))
        };
        let (tables, parts) = self.line.meanwhile(asked).await??;
        let definitions = shared.at_rest.take(&tables, &parts);
        for table in &definitions {
            tracing::info!(table = table.qualified(), "it was altered at rest");
            self.defined.insert(table.id, table.clone());
        }
        Ok(definitions)
    }

    /// The definition that was told last, if this message describes its table just so: what the catalog has may be that
    /// of a later statement. Without one the columns had no numbers.
    pub(super) fn told_before(
        &self,
        table_id: u32,
        message: &[u8],
    ) -> Result<Option<Table>, SourceError> {
        let told = self.told(table_id)?;
        Ok(told.into_iter().find(|table| is_that_of(message, table)))
    }

    /// Notes of a table, which this message describes as the catalog does `now`, whether it may mean other columns: those
    /// of the definition that was told last are called so, too. One may have been dropped and made again since.
    pub(super) async fn doubt(&self, now: &Table, message: &[u8]) -> Result<(), SourceError> {
        let told = self.told(now.id)?.into_iter().next();
        let is_other = |then: &Table| {
            let other = |column: &Column| {
                let mut before = then.columns.iter().filter(|before| before.name == column.name);
                before.any(|before| before.number != column.number)
            };
            now.columns.iter().any(other)
        };
        if told.is_some_and(|then| is_other(&then) && is_that_of(message, &then)) {
            let table = now.qualified();
            tracing::warn!(
                table,
                "while the stream lagged behind a column was made again: which one a row has is not known"
            );
            rewritten::doubt(&*self.line.shared.facts, &BTreeSet::from([now.id])).await?;
        }
        Ok(())
    }

    /// What was told of a table, the last first, as far as columns had numbers.
    fn told(&self, table_id: u32) -> Result<Vec<Table>, SourceError> {
        let told = self.defined.get(&table_id).or_else(|| self.described.get(&table_id));
        let recorded = at_rest::recorded(&*self.line.shared.facts, table_id)?;
        let known = told.cloned().into_iter().chain(recorded.into_iter().flatten());
        Ok(known.filter(Table::is_numbered).collect())
    }
}

/// Those of these transactions of which others do not see yet that they have ended.
async fn under_way(
    sql: &mut Wire,
    xids: impl Iterator<Item = &u32>,
) -> Result<Vec<u32>, SourceError> {
    let xids: Vec<String> = xids.map(|xid| format!("'{xid}'")).collect();
    if xids.is_empty() {
        return Ok(vec![]);
    }
    let ask = format!(
        "SELECT DISTINCT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND granted AND transactionid::text IN ({})",
        xids.join(",")
    );
    let rows = sql.query("look whether transactions have ended", &ask).await?;
    rows.iter().map(|row| row.parse_as(0)).collect()
}
