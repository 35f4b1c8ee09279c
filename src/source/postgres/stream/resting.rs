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
    source::{Column, Identity, Table},
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

    /// The table that a message describes: what the catalog says of it, if that is just so. Else the definition that was
    /// told last, if it is so: what the catalog has `now` may be that of a later statement. Without one the columns had no
    /// numbers.
    pub(super) async fn meant(
        &self,
        (table_id, message): (u32, &[u8]),
        now: Option<Table>,
        is_now: bool,
    ) -> Result<Option<Table>, SourceError> {
        let told = self.told(table_id)?;
        let is_it = |table: &&Table| is_that_of(message, table);
        let is_now = is_now && now.as_ref().is_some_and(|now| is_it(&now));
        let depth = if is_now { 1 } else { told.len() };
        let then = told.iter().take(depth).find(is_it);
        if let (Some(now), Some(then)) = (&now, then) {
            self.doubt(now, then).await?;
        }
        let rekeyed = now.as_ref().zip(told.first());
        let is_rekeyed = rekeyed.is_some_and(|(now, told)| key_of(now) != key_of(told));
        let mut meant = if is_now { now } else { then.cloned() };
        let is_unsaid = |table: &&mut Table| table.identity != Identity::Default;
        if let Some(table) = meant.as_mut().filter(is_unsaid).filter(|_| is_rekeyed) {
            // The message does not say by which key its rows are, so they go by all that names them until it is known:
            // before the key came they may lack it, or have it twice.
            table.key.clear();
        }
        Ok(meant)
    }

    /// Notes of a table whether a message may mean other columns than those that had these names `then`: one of them was
    /// dropped since, and made again, and nobody knows on which side of that the message stands.
    async fn doubt(&self, now: &Table, then: &Table) -> Result<(), SourceError> {
        let is_remade = |column: &&Column| {
            let mut before = then.columns.iter();
            before.any(|before| before.name == column.name)
                && then.columns.iter().all(|before| before.number != column.number)
        };
        let remade = now.columns.iter().filter(is_remade);
        let Some(number) = remade.filter_map(|column| column.number).max() else { return Ok(()) };
        if rewritten::doubt_remade(&*self.line.shared.facts, now.id, number).await? {
            let table = now.qualified();
            tracing::warn!(
                table,
                "a column was made again: which one changes before that mean is not known"
            );
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

/// The numbers of a key's columns.
fn key_of(table: &Table) -> BTreeSet<Option<u16>> {
    let columns = table.columns.iter().filter(|column| table.key.contains(&column.name));
    columns.map(|column| column.number).collect()
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
