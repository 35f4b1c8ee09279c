//! The tables of a restore, before their rows: those that are not there are made, those that are stale are
//! made again.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    ReplayError,
    plan::Plan,
    restore_rows::{Live, Restore},
};
use crate::{seal::Table, units::Position};

impl Restore<'_> {
    /// Makes the tables that are not there, and drops those that others of the same name replace, or that
    /// were read anew since.
    pub(super) async fn make_tables(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        self.target.grow_enums().await?;
        self.target.begin_types().await?;
        let mut there = self.target.tables().await?;
        let wanted = plan.tables.values().filter_map(|table| table.definition.as_ref());
        let names: Vec<String> = wanted.map(|table| plan.called(table).qualified()).collect();
        let stale = |id: &u32, table: &Table, anew: Position| match plan.tables.get(id) {
            Some(planned) => planned.anew != anew,
            None => names.contains(&table.qualified()),
        };
        let stale: Vec<_> =
            there.extract_if(.., |id, (table, anew)| stale(id, table, *anew)).collect();
        self.refuse_passed(plan, |id| there.contains_key(&id))?;
        for (id, (table, _)) in stale {
            self.target.drop_table(&table).await?;
            self.lacking.remove(&id);
        }
        self.target.reorder_enums().await?;
        self.rename(plan, &mut there).await?;
        for (id, planned) in &plan.tables {
            let definition = match (there.remove(id), &planned.definition) {
                (Some((table, _)), _) => Arc::new(table),
                (None, Some(definition)) => {
                    let definition = plan.called(definition);
                    let at = (planned.anew, planned.told);
                    self.target.create(&definition, at).await?;
                    definition
                }
                (None, None) => continue,
            };
            self.live.insert(*id, Live::new(definition, planned));
        }
        Ok(())
    }

    /// Gives tables that are there the names that they have in the end; one may have that of another one.
    async fn rename(
        &mut self,
        plan: &Plan,
        there: &mut BTreeMap<u32, (Table, Position)>,
    ) -> Result<(), ReplayError> {
        let mut renamed = vec![];
        for (table, _) in there.values_mut() {
            let now = plan.called(&Arc::new(table.clone()));
            if now.qualified() != table.qualified() {
                let before = std::mem::replace(table, (*now).clone());
                renamed.push((before, now));
            }
        }
        if renamed.is_empty() {
            return Ok(());
        }
        self.target.begin().await?;
        let aside =
            |table: &Table| Table { name: format!("lakehead_{}", table.id), ..table.clone() };
        for (before, _) in &renamed {
            self.target.alter((before, &aside(before)), Position(0)).await?;
        }
        for (before, now) in &renamed {
            self.target.alter((&aside(before), now), Position(0)).await?;
        }
        self.target.commit().await
    }

    /// Refuses tables that are still to be made and whose changes an earlier run has gone past: it left
    /// them out, or they were read anew.
    fn refuse_passed(
        &self,
        plan: &Plan,
        is_there: impl Fn(u32) -> bool,
    ) -> Result<(), ReplayError> {
        let at = self.applied.position;
        let passed = plan.epochs.iter().filter(|epoch| epoch.from.position < at);
        for (epoch, track) in
            passed.flat_map(|epoch| epoch.tracks.iter().map(move |of| (epoch, of)))
        {
            let planned = plan.tables.get(&track.table).filter(|_| !is_there(track.table));
            if planned.is_some_and(|planned| epoch.to.position > planned.first) {
                let table = planned.and_then(|planned| planned.definition.as_ref());
                let table = table.map(|table| plan.called(table).qualified()).unwrap_or_default();
                return Err(ReplayError::Passed { table, at });
            }
        }
        Ok(())
    }
}
