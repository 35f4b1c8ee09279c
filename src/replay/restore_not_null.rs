//! NOT NULL in a restore: a column in which a row lacks a value does without until all rows are there.
//!
//! A definition may be ahead of the changes that give rows their values, and of parts of a snapshot that were read
//! before it. **Invariant:** the recorded definition of a table says NOT NULL of no column that is not so in the
//! target; which others are to be so in the end, the lake's version of it says. What cannot be then is said.

use std::sync::Arc;

use postgres_protocol::escape::escape_identifier;

use super::{
    ReplayError,
    apply::{Change, RowKey, Shape},
    evolve::{is_recomputed, set_not_null},
    expression::names_any,
    restore_rows::Restore,
    restore_target::{Target, applying, parameters, refused},
    restore_values::Place,
    schema::{computed, identity_index, qualified, replica_identity, same_column},
};
use crate::{
    journal::{Column, Identity, Op},
    seal::Table,
};

impl Restore<'_> {
    /// Lets columns of a table be NULL, within the transaction.
    pub(super) async fn loosen(&mut self, id: u32, names: &[String]) -> Result<(), ReplayError> {
        let Some(live) = self.live.get_mut(&id).filter(|_| !names.is_empty()) else {
            return Ok(());
        };
        let doing = format!("alter table {}", live.table.qualified());
        if live.table.identity == Identity::Index {
            // No column of an index that names old rows can be NULL.
            self.target.run(&doing, &replica_identity(&live.table)).await?;
        }
        self.target.run(&doing, &alter_each(&live.table, names, "DROP NOT NULL")).await?;
        let mut table = (*live.table).clone();
        set_not_null(&mut table, names, false);
        self.target.remember(&table).await?;
        live.shape = Shape::new(&table);
        live.table = Arc::new(table);
        Ok(())
    }

    /// Makes of the tables, behind their rows, what these refused before. What they still refuse is said.
    pub(super) async fn tighten(&mut self) -> Result<(), ReplayError> {
        for (id, live) in &mut self.live {
            let Some(wanted) = self.versions.get(&(*id, live.table.version)) else { continue };
            let (mut table, waits) = ((*live.table).clone(), waits(&live.table, wanted));
            let index = identity_index(&table);
            if waits.is_empty() && index.is_none() {
                continue;
            }
            self.target.begin().await?;
            self.target.set_not_null(&mut table, &waits).await?;
            if let Some(why) = self.target.attempt(&index.unwrap_or_default()).await? {
                let name = table.qualified();
                self.target.notes.push(format!("{name}: no index names its old rows: {why}"));
            }
            self.target.remember(&table).await?;
            self.target.commit().await?;
            live.shape = Shape::new(&table);
            live.table = Arc::new(table);
        }
        Ok(())
    }
}

impl Target<'_> {
    /// Inserts rows that were not there, whose columns that are not said get their defaults; where these do not do here,
    /// none, which is said.
    pub(super) async fn insert(
        &mut self,
        table: &str,
        sql: &str,
        values: &[Vec<Option<String>>],
    ) -> Result<Vec<RowKey>, ReplayError> {
        let (doing, statement) = (applying(table), self.prepared(table, sql).await?);
        self.run(&doing, "SAVEPOINT lakehead_insert").await?;
        let rows = self.client.query(&statement, &parameters(values)).await;
        let rows = match rows {
            Err(why) if why.as_db_error().is_some() => {
                let why = refused(&doing, &why);
                if matches!(why, ReplayError::Domain { .. }) {
                    return Err(why);
                }
                self.run(&doing, "ROLLBACK TO SAVEPOINT lakehead_insert").await?;
                let note = format!("{table}: rows of which not all is known are left out: {why}");
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                vec![]
            }
            rows => rows.map_err(|why| refused(&doing, &why))?,
        };
        self.run(&doing, "RELEASE SAVEPOINT lakehead_insert").await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// All at once, which reads the table once; else each that can be.
    async fn set_not_null(
        &mut self,
        table: &mut Table,
        names: &[String],
    ) -> Result<(), ReplayError> {
        if names.is_empty() {
            return Ok(());
        }
        if self.attempt(&alter_each(table, names, "SET NOT NULL")).await?.is_none() {
            set_not_null(table, names, true);
            return Ok(());
        }
        for name in names.chunks(1) {
            match self.attempt(&alter_each(table, name, "SET NOT NULL")).await? {
                None => set_not_null(table, name, true),
                Some(_) => self.notes.push(format!(
                    "{}: rows lack a value in the column {}, which is NOT NULL",
                    table.qualified(),
                    name.concat()
                )),
            }
        }
        Ok(())
    }
}

/// Columns that are NOT NULL, and in which the row that a change writes may lack a value.
pub(super) fn lacks(table: &Table, shape: &Shape, change: &Change) -> Vec<String> {
    // A change of a row leaves out what stays as it is.
    let is_row = matches!(change.op, Op::Insert | Op::Repair | Op::Snapshot);
    if matches!(change.op, Op::Delete | Op::Truncate) {
        return vec![];
    }
    let given = shape.columns.iter().zip(&change.values);
    let lacking: Vec<_> = given
        .filter(|(_, value)| value.as_ref().map_or(is_row, Option::is_none))
        .map(|(column, _)| column)
        .collect();
    if lacking.is_empty() {
        return vec![];
    }
    // What is computed of what is not there may not be there either.
    let names: Vec<&str> = lacking.iter().map(|column| column.name.as_str()).collect();
    let follows = |own: &&Column| {
        own.not_null && computed(own).is_some_and(|expression| names_any(expression, &names))
    };
    let lacked = lacking.iter().filter(|column| column.not_null).map(|column| &column.name);
    let lacked = lacked.chain(table.columns.iter().filter(follows).map(|own| &own.name));
    lacked.filter(|name| !table.key.contains(name)).cloned().collect()
}

/// Columns of `table` that are NOT NULL, and in which rows of a file may lack a value: those of another version of it,
/// whose values come from `places`.
pub(super) fn lacked(table: &Table, version: &Table, places: &[Place]) -> Vec<String> {
    let mut places = places.iter();
    let lacked = table.columns.iter().filter(|own| {
        let place = if computed(own).is_none() { places.next() } else { None };
        let has = |same: &Column| same.not_null || version.key.contains(&same.name);
        let is_there = same_column(version, own)
            .is_some_and(|same| has(same) && !is_recomputed(version, table, same, own));
        let is_told = is_there && place.is_none_or(|place| place.at.is_some());
        let is_filled = place.is_some_and(|place| matches!(place.before, Some(Some(_))));
        own.not_null && !is_told && !is_filled && !table.key.contains(&own.name)
    });
    lacked.map(|own| own.name.clone()).collect()
}

/// Columns that are to be NOT NULL, and are not.
fn waits(table: &Table, wanted: &Table) -> Vec<String> {
    let is_not = |name: &String| {
        let own = table.columns.iter().find(|own| own.name == *name);
        own.is_some_and(|own| !own.not_null)
    };
    let wanted =
        wanted.columns.iter().filter(|own| own.not_null && !wanted.key.contains(&own.name));
    wanted.map(|column| column.name.clone()).filter(is_not).collect()
}

/// One statement for all these columns.
pub(super) fn alter_each(table: &Table, names: &[String], how: &str) -> String {
    let each = names.iter().map(|name| format!("ALTER COLUMN {} {how}", escape_identifier(name)));
    format!("ALTER TABLE {} {}", qualified(table), each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{column, table};

    fn sample() -> Table {
        let mut table =
            table("t", ["k", "a", "b"].map(|name| column(name, "text", 25, -1)).into(), &["k"]);
        table.columns[1].not_null = true;
        table
    }

    #[test]
    fn a_change_that_leaves_a_value_out_lacks_it_only_in_a_row_that_comes() {
        let mut table = sample();
        let shape = Shape::new(&table);
        let lacked = |table: &Table, op, a: Option<Option<&str>>| {
            let a = a.map(|a| a.map(Into::into));
            let values = vec![Some(Some("1".into())), a, Some(None)];
            lacks(table, &shape, &Change { op, values, old: vec![] })
        };
        let of_none = [""; 0];
        assert_eq!(lacked(&table, Op::Insert, Some(Some("a"))), of_none);
        for op in [Op::Insert, Op::Repair] {
            assert_eq!(lacked(&table, op, None), ["a"]);
            assert_eq!(lacked(&table, op, Some(None)), ["a"]);
        }
        assert_eq!(lacked(&table, Op::Update, None), of_none);
        assert_eq!(lacked(&table, Op::Update, Some(None)), ["a"]);
        assert_eq!(lacked(&table, Op::Delete, Some(None)), of_none);
        let twice = Column {
            not_null: true,
            generated: Some("stored".into()),
            default: Some("b || b".into()),
            ..column("g", "text", 25, -1)
        };
        table.columns.push(twice);
        assert_eq!(lacked(&table, Op::Insert, Some(Some("a"))), ["g"], "b is NULL");
    }

    #[test]
    fn rows_of_another_version_lack_what_it_does_not_say_to_be_there() {
        let now = sample();
        let place = |at: Option<usize>, before: Option<Option<&str>>| Place {
            at,
            name: None,
            before: before.map(|value| value.map(Into::into)),
        };
        let of = |version: &Table, of_a| {
            lacked(&now, version, &[place(Some(0), None), of_a, place(Some(2), None)])
        };
        assert_eq!(of(&now, place(Some(1), None)), [""; 0]);
        let mut before = sample();
        before.columns[1].not_null = false;
        assert_eq!(of(&before, place(Some(1), None)), ["a"]);
        before.columns.remove(1);
        assert_eq!(of(&before, place(None, None)), ["a"]);
        assert_eq!(of(&before, place(None, Some(None))), ["a"]);
        assert_eq!(of(&before, place(None, Some(Some("a")))), [""; 0]);
    }

    #[test]
    fn what_waits_is_what_the_lake_says_and_the_target_does_not() {
        let (wanted, mut table) = (sample(), sample());
        assert!(waits(&table, &wanted).is_empty());
        set_not_null(&mut table, &["a".into()], false);
        assert_eq!(waits(&table, &wanted), ["a"]);
    }
}
