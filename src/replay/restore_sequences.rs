//! The sequences of a restore, behind its rows: made, set, and given to the columns that take from them.
//!
//! While rows are on their way no column generates values and no sequence goes with a column: rows come with
//! theirs. What was set last is recorded, so that a restore that is run again moves only what moved in the lake.
//! What the target refuses is left out, and said.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ReplayError,
    plan::Plan,
    read::BATCH_BYTES,
    restore_not_null::alter_each,
    restore_rows::Restore,
    restore_target::{Target, refused},
    schema,
    sequences::{
        self, Chosen, Looks, add_identity, at_least, create, damaged, drop_identity, greatest, own,
        set, taken_from,
    },
};
use crate::{
    journal::{
        Column,
        generator::{Generator, Owner},
    },
    seal::Table,
};

impl Restore<'_> {
    /// Takes sequences from the columns of tables that are there, if rows of them will come.
    pub(super) async fn loosen_sequences(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        let there = self.target.objects().await?;
        let objects =
            plan.tables.values().flat_map(|table| table.rows.iter().chain(&table.repairs));
        let mut objects = objects.map(|rows| &rows.object);
        let news = self.applied.position < plan.end.position
            || objects.any(|object| there.get(&object.key) != Some(&object.sha256));
        let made = self.target.sequences().await?;
        if !news || made.is_empty() {
            return Ok(());
        }
        let tables = self.target.tables().await?;
        self.target.begin().await?;
        for generator in made.values() {
            let owner = generator.owner.as_ref();
            let table = owner.and_then(|owner| Some((owner, &tables.get(&owner.table_id)?.0)));
            let column = table.and_then(|(owner, table)| Some((table, column_of(table, owner)?)));
            let step = match column {
                Some((table, column)) if is_generated(generator, column) => {
                    // With identity it became NOT NULL, which its definition need not have said then.
                    let own = [column.name.clone()];
                    let is_told = column.not_null || table.key.contains(&column.name);
                    let drop = drop_identity(table, column);
                    match is_told {
                        true => drop,
                        false => format!("{drop}; {}", alter_each(table, &own, "DROP NOT NULL")),
                    }
                }
                _ => own(generator, None),
            };
            self.target.attempt(&step).await?;
        }
        self.target.loosened().await?;
        self.target.commit().await
    }

    /// Makes the sequences that the lake has at the plan's end.
    pub(super) async fn make_sequences(&mut self, plan: &Plan) -> Result<(), ReplayError> {
        let chosen = self.read_sequences(plan).await?;
        let tables: BTreeMap<u32, Table> =
            self.live.iter().map(|(id, live)| (*id, (*live.table).clone())).collect();
        let using = using(&tables);
        let made = self.target.sequences().await?;
        let mut identities = BTreeSet::new();
        self.drop_gone(&made, &chosen).await?;
        for some in chosen.chunks(AT_ONCE) {
            self.target.begin().await?;
            for one in some {
                let place = Place::of(one, &tables, &using);
                if !place.is_wanted {
                    continue;
                }
                if let Some((table, column)) = place.identity {
                    identities.insert((table.id, column.name.clone()));
                }
                if let Some(why) = self.make_sequence(one, &place, &made).await? {
                    let name = one.generator.qualified();
                    self.target.notes.push(format!("{name}: not as in the source: {why}"));
                }
                self.report.sequences += 1;
            }
            self.target.commit().await?;
        }
        self.tell_doubts(plan, &chosen, &using);
        self.set_defaults(&tables, &identities).await
    }

    /// Reads what was looked at.
    async fn read_sequences(&mut self, plan: &Plan) -> Result<Vec<Chosen>, ReplayError> {
        let mut looks = Looks::default();
        for rows in &plan.sequences.objects {
            let mut file = self.fetcher.rows(&rows.object, BATCH_BYTES).await?;
            while let Some(batch) = file.next_rows()? {
                for row in 0..batch.len() {
                    let taken = looks.take(&batch, row, plan.end.position);
                    taken.map_err(|why| damaged(&rows.object.key, &why))?;
                }
            }
        }
        Ok(looks.choose(plan.sequences.covers.is_some()))
    }

    /// Makes one as it is to be, unless it was made so before. `Some`: why it is not so.
    async fn make_sequence(
        &mut self,
        one: &Chosen,
        place: &Place<'_>,
        made: &BTreeMap<u32, Generator>,
    ) -> Result<Option<String>, ReplayError> {
        let generator = &one.generator;
        let before = made.get(&generator.id);
        let mut steps = vec![];
        if let Some((table, column)) = place.identity {
            if before == Some(generator) && self.target.is_tight(generator.id).await? {
                return Ok(None);
            }
            steps.push(add_identity(table, column, generator));
        } else {
            if let Some(before) =
                before.filter(|one| sequences::name(one) != sequences::name(generator))
            {
                self.target.attempt(&sequences::rename(before, generator)).await?;
            }
            if before != Some(generator) {
                steps.push(create(generator));
            }
            steps.push(own(generator, place.owner));
        }
        let mut stands = generator.stands;
        if (!one.certain || stands.is_none()) && !generator.cycle {
            let mut most = None;
            for query in place
                .columns
                .iter()
                .filter_map(|(table, column)| greatest(table, column, generator))
            {
                let found = self.target.number(&query).await?;
                most = most
                    .into_iter()
                    .chain(found)
                    .reduce(|one, other| if generator.is_beyond(one, other) { one } else { other });
            }
            stands = at_least(generator, most);
        }
        let to_be_set =
            before != Some(generator) || place.identity.is_some() || stands != generator.stands;
        if let Some(stands) = stands.filter(|_| to_be_set) {
            let moved = place.name(generator);
            steps.push(set(&moved, stands));
        }
        let why = self.target.attempt(&steps.join("; ")).await?;
        if why.is_none() {
            self.target.remember_sequence(generator).await?;
        }
        Ok(why)
    }

    /// Drops those that an earlier run made and that are gone.
    async fn drop_gone(
        &mut self,
        made: &BTreeMap<u32, Generator>,
        chosen: &[Chosen],
    ) -> Result<(), ReplayError> {
        let stays: BTreeSet<u32> = chosen.iter().map(|one| one.generator.id).collect();
        let gone: Vec<&Generator> = made.values().filter(|one| !stays.contains(&one.id)).collect();
        for some in gone.chunks(AT_ONCE) {
            self.target.begin().await?;
            for one in some {
                let drop = format!("DROP SEQUENCE IF EXISTS {} CASCADE", sequences::name(one));
                self.target.attempt(&drop).await?;
                self.target.forget_sequence(one.id).await?;
            }
            self.target.commit().await?;
        }
        Ok(())
    }

    /// Says which may stand behind a value that was taken from them: nothing in the lake tells.
    fn tell_doubts(&mut self, plan: &Plan, chosen: &[Chosen], using: &Using) {
        if plan.sequences.covers.is_some() {
            return;
        }
        let alone = chosen.iter().map(|one| &one.generator).filter(|generator| {
            generator.owner.is_none()
                && !using.contains_key(&(generator.schema.clone(), generator.name.clone()))
        });
        let names: Vec<String> = alone.map(Generator::qualified).collect();
        if let (Some(at), false) = (plan.sequences.before, names.is_empty()) {
            let (shown, more) = names.split_at(names.len().min(NAMES_SHOWN));
            let more =
                if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            self.target.notes.push(format!(
                "sequences were looked at last at {at}, before the end at {}, and no column says how far they went since: {}{more}",
                plan.end.position,
                shown.join(", ")
            ));
        }
    }

    /// Sets the defaults that take from sequences, and says which columns have none.
    async fn set_defaults(
        &mut self,
        tables: &BTreeMap<u32, Table>,
        identities: &BTreeSet<(u32, String)>,
    ) -> Result<(), ReplayError> {
        self.target.begin().await?;
        for (id, table) in tables {
            for column in &table.columns {
                let name = format!("{}.{}", table.qualified(), column.name);
                if is_identity(column) && !identities.contains(&(*id, column.name.clone())) {
                    let kind = column.generated.as_deref().unwrap_or_default();
                    self.target.notes.push(format!(
                        "{name}: not GENERATED {kind} AS IDENTITY: the lake has no sequence of its own for it"
                    ));
                }
                let Some(statement) = schema::sequence_default(table, column) else { continue };
                if let Some(why) = self.target.attempt(&statement).await? {
                    self.target.notes.push(format!(
                        "{name}: without its default, which takes from a sequence: {why}"
                    ));
                }
            }
        }
        self.target.commit().await
    }
}

/// Columns whose defaults take from a sequence, by its schema and name: tables by number, and columns by place.
type Using = BTreeMap<(String, String), Vec<(u32, usize)>>;

fn using(tables: &BTreeMap<u32, Table>) -> Using {
    let mut using = Using::new();
    for (id, table) in tables {
        for (at, column) in
            table.columns.iter().enumerate().filter(|(_, own)| own.generated.is_none())
        {
            if let Some(sequence) = column.default.as_deref().and_then(taken_from) {
                using.entry(sequence).or_default().push((*id, at));
            }
        }
    }
    using
}

/// What of the restore a sequence goes with.
struct Place<'a> {
    /// The identity column.
    identity: Option<(&'a Table, &'a Column)>,
    /// The column that owns it, if that is none.
    owner: Option<(&'a Table, &'a Column)>,
    /// All that take from it.
    columns: Vec<(&'a Table, &'a Column)>,
    /// Whether it is to be made: one that goes with a table which is not restored is not.
    is_wanted: bool,
}

impl<'a> Place<'a> {
    fn of(one: &Chosen, tables: &'a BTreeMap<u32, Table>, using: &Using) -> Self {
        let generator = &one.generator;
        let mut own = None;
        if let Some(owner) = &generator.owner
            && let Some(table) = tables.get(&owner.table_id)
        {
            own = column_of(table, owner).map(|column| (table, column));
        }
        let (identity, owner) = match own {
            Some((_, column)) if is_generated(generator, column) => (own, None),
            _ => (None, own),
        };
        let users = using.get(&(generator.schema.clone(), generator.name.clone()));
        let users = users.into_iter().flatten().filter_map(|(id, at)| {
            let table = tables.get(id)?;
            Some((table, table.columns.get(*at)?))
        });
        let columns: Vec<_> = own.into_iter().chain(users).collect();
        let is_wanted = generator.owner.is_none() || !columns.is_empty();
        Self { identity, owner, columns, is_wanted }
    }

    /// The sequence as it is called in the target.
    fn name(&self, generator: &Generator) -> Generator {
        let schema = self.identity.map_or(&generator.schema, |(table, _)| &table.schema);
        Generator { schema: schema.clone(), ..generator.clone() }
    }
}

fn column_of<'a>(table: &'a Table, owner: &Owner) -> Option<&'a Column> {
    table.columns.iter().find(|own| own.name == owner.column)
}

/// Whether it is its column's identity. That a column became one the stream says only with its table's next change.
fn is_generated(generator: &Generator, column: &Column) -> bool {
    let owner = generator.owner.as_ref();
    is_identity(column) || owner.is_some_and(|owner| owner.identity.is_some())
}

fn is_identity(column: &Column) -> bool {
    column.generated.is_some() && !column.is_computed()
}

impl Target<'_> {
    /// Sequences that were made, as they were set last.
    async fn sequences(&self) -> Result<BTreeMap<u32, Generator>, ReplayError> {
        let query = "SELECT definition FROM lakehead_restore.sequences WHERE source = $1";
        let rows = self.client.query(query, &[&self.source]).await;
        let rows = rows.map_err(|why| refused("read lakehead_restore.sequences", &why))?;
        let read = rows.iter().map(|row| {
            let generator: Generator = serde_json::from_str(row.get(0))
                .map_err(|why| ReplayError::object("lakehead_restore.sequences", why))?;
            Ok((generator.id, generator))
        });
        read.collect()
    }

    async fn remember_sequence(&self, generator: &Generator) -> Result<(), ReplayError> {
        let sql = "INSERT INTO lakehead_restore.sequences (source, id, definition, tight) VALUES ($1, $2, $3, true) \
            ON CONFLICT (source, id) DO UPDATE SET definition = EXCLUDED.definition, tight = true";
        let json = serde_json::to_string(generator).expect("a sequence is plain data");
        let done = self.client.execute(sql, &[&self.source, &i64::from(generator.id), &json]).await;
        done.map(drop).map_err(|why| refused("record a sequence", &why))
    }

    async fn forget_sequence(&self, id: u32) -> Result<(), ReplayError> {
        let sql = "DELETE FROM lakehead_restore.sequences WHERE source = $1 AND id = $2";
        let done = self.client.execute(sql, &[&self.source, &i64::from(id)]).await;
        done.map(drop).map_err(|why| refused("forget a sequence", &why))
    }

    /// Whether it was not taken from its column since it was made.
    async fn is_tight(&self, id: u32) -> Result<bool, ReplayError> {
        let sql = "SELECT tight FROM lakehead_restore.sequences WHERE source = $1 AND id = $2";
        let row = self.client.query_opt(sql, &[&self.source, &i64::from(id)]).await;
        let row = row.map_err(|why| refused("read lakehead_restore.sequences", &why))?;
        Ok(row.is_some_and(|row| row.get(0)))
    }

    /// Notes that none goes with its column any more.
    async fn loosened(&self) -> Result<(), ReplayError> {
        let sql = "UPDATE lakehead_restore.sequences SET tight = false WHERE source = $1";
        let done = self.client.execute(sql, &[&self.source]).await;
        done.map(drop).map_err(|why| refused("record sequences", &why))
    }

    /// A number, or NULL.
    async fn number(&self, query: &str) -> Result<Option<i64>, ReplayError> {
        let row = self.client.query_one(query, &[]).await;
        row.map(|row| row.get(0)).map_err(|why| refused("ask a column of a sequence", &why))
    }

    /// Runs statements that may fail without harm to the rows. `Some`: why they did, and nothing is done.
    pub(super) async fn attempt(&self, statements: &str) -> Result<Option<String>, ReplayError> {
        self.run("attempt a statement", "SAVEPOINT lakehead_attempt").await?;
        let why = self.run("it is refused", statements).await.err();
        if why.is_some() {
            self.run("attempt a statement", "ROLLBACK TO SAVEPOINT lakehead_attempt").await?;
        }
        self.run("attempt a statement", "RELEASE SAVEPOINT lakehead_attempt").await?;
        Ok(why.map(|why| why.to_string()))
    }
}

/// Made in one transaction, which locks each.
const AT_ONCE: usize = 100;
const NAMES_SHOWN: usize = 5;
