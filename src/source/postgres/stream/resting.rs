//! Definitions of tables that were altered at rest, recorded where the stream has come to.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{at_rest, error::SourceError, pgoutput::is_that_of},
    Stream,
};
use crate::{source::Table, units::Position};

impl Stream {
    /// The definitions that are to stand at `position`, where no transaction is open. To be called when none is held.
    pub(super) async fn at_rest(&mut self, position: Position) -> Result<Vec<Table>, SourceError> {
        let shared = Arc::clone(&self.line.shared);
        let tables = shared.at_rest.due_at(position);
        if tables.is_empty() {
            return Ok(vec![]);
        }
        let xids = shared.at_rest.told_in(&tables);
        let ids: Vec<String> = tables.iter().map(u32::to_string).collect();
        let which = format!("t.oid IN ({})", ids.join(","));
        let sql = &mut self.sql;
        let asked = async {
            // What the stream told of last may be a moment ahead of what others see, or long, with a slow standby.
            match is_under_way(sql, &xids).await? {
                true => Ok(None),
                false => at_rest::parts(sql, &which).await.map(Some),
            }
        };
        let Some(parts) = self.line.meanwhile(asked).await?? else { return Ok(vec![]) };
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
        let told = self.defined.get(&table_id).or_else(|| self.described.get(&table_id));
        let recorded = at_rest::recorded(&*self.line.shared.facts, table_id)?;
        let mut known = told.cloned().into_iter().chain(recorded.into_iter().flatten());
        Ok(known.find(|table| table.is_numbered() && is_that_of(message, table)))
    }
}

/// Whether others do not see yet that one of these transactions has ended.
async fn is_under_way(sql: &mut super::Wire, xids: &BTreeSet<u32>) -> Result<bool, SourceError> {
    let xids: Vec<String> = xids.iter().map(|xid| format!("'{xid}'")).collect();
    if xids.is_empty() {
        return Ok(false);
    }
    let ask = format!(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND granted AND transactionid::text IN ({}))",
        xids.join(",")
    );
    let rows = sql.query("look whether transactions have ended", &ask).await?;
    Ok(rows.first().is_some_and(|row| row.flag(0)))
}
