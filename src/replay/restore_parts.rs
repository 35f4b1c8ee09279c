//! The parts of snapshots of a restore, on their way into their tables.

use super::{
    Progress, ReplayError,
    plan::{Plan, RowsObject},
    read::BATCH_BYTES,
    restore_not_null::lacked,
    restore_repairs::Repairs,
    restore_rows::{Amounts, Restore, changes_of, rows_of},
    restore_target::Loading,
    restore_values::{Place, is_named_by, places, print},
};

impl Restore<'_> {
    /// Loads the objects of snapshots that are not in yet.
    pub(super) async fn load_snapshots(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        let there = self.target.objects().await?;
        let stood = self.applied.position;
        let converges = |id| self.live.get(&id).is_some_and(|live| live.shape.converges());
        self.repairs = Repairs::new(plan, &there, converges, stood);
        for id in self.repairs.tables() {
            if let Some(live) = self.live.get_mut(&id) {
                live.last_snapshot = live.last_snapshot.max(stood);
            }
        }
        let objects = plan.tables.values().flat_map(|table| &table.rows);
        self.all = Amounts {
            rows: objects.map(|rows| rows_of(&rows.object)).sum(),
            changes: self.missing(plan).map(changes_of).sum(),
        };
        for (id, planned) in &plan.tables {
            for rows in &planned.rows {
                let beside = rows.position != planned.first || planned.first != planned.last;
                if there.get(&rows.object.key) != Some(&rows.object.sha256) {
                    self.load(*id, rows, beside).await?;
                } else {
                    self.done.rows += rows_of(&rows.object);
                }
            }
        }
        Ok(())
    }

    async fn load(&mut self, id: u32, rows: &RowsObject, beside: bool) -> Result<(), ReplayError> {
        let mut file = self.fetcher.rows(&rows.object, BATCH_BYTES).await?;
        let table = self.live[&id].table.qualified();
        self.target.begin().await?;
        let version = file.version().and_then(|version| self.versions.get(&(id, version)));
        let version = version.unwrap_or(&self.live[&id].table).clone();
        let mut loading: Option<(Loading, Vec<usize>, Vec<Place>)> = None;
        while let Some(batch) = file.next_rows()? {
            let (loading, columns, from) = match &mut loading {
                Some(begun) => begun,
                none => {
                    let places = places(&self.live[&id].table, &version, &batch);
                    let lacked = lacked(&self.live[&id].table, &version, &places);
                    self.loosen(id, &lacked).await?;
                    let told = places.into_iter().enumerate();
                    let told = told.filter(|(_, from)| from.at.is_some() || from.before.is_some());
                    let (columns, from): (Vec<_>, Vec<_>) = told.unzip();
                    let shape = &self.live[&id].shape;
                    let begun = self.target.copy_in(shape, &columns, beside).await?;
                    none.insert((begun, columns, from))
                }
            };
            let shape = &self.live[&id].shape;
            let mut text = String::new();
            for row in 0..batch.len() {
                for (at, from) in from.iter().enumerate() {
                    let Some(column) = from.at else {
                        loading.value(at == 0, from.before.as_ref().and_then(Option::as_deref));
                        continue;
                    };
                    text.clear();
                    let named = is_named_by(shape, columns[at]);
                    let repaired = &mut self.report.repaired_values;
                    let null = !print((&batch, row, column), named, &mut text, repaired);
                    loading.value(at == 0, (!null).then_some(text.as_str()));
                }
                loading.end_row().await?;
            }
            self.done.rows += batch.len() as u64;
            let (done, all, changes) = (self.done.rows, self.all.rows, self.all.changes);
            (self.progress)(Progress::Snapshot { table: table.clone(), done, all, changes });
        }
        match loading {
            Some((loading, columns, _)) => {
                let (shape, object) = (&self.live[&id].shape, &rows.object);
                let loaded = self.target.loaded(loading, shape, &columns, beside, object);
                self.report.snapshot_rows += loaded.await?;
            }
            // No rows: the snapshot of an empty table.
            None => self.target.record_object(&rows.object, 0).await?,
        }
        self.target.commit().await?;
        self.keep();
        Ok(())
    }
}
