//! Changes as few statements of SQL. Pure.
//!
//! Between two commits the order across tables does not matter (the target has no foreign keys or triggers). Of a table
//! with a key only the last state of each key counts: puts, patches (updates whose unchanged columns the server left
//! out) and deletes, each as one statement over arrays of text. A table without a key, or whose old rows are named by
//! other columns than its primary key, takes its changes one by one in order; there only inserts are grouped.
//!
//! **Invariant:** after [`Pending::steps`] the table is as after its changes one by one.

use std::collections::{HashMap, hash_map::Entry};

use postgres_protocol::escape::escape_identifier;

use super::schema;
use crate::{
    journal::{Identity, Op},
    seal::Table,
};

/// A value of a change: `None` where the row does not say it, else the text or NULL.
pub type Slot = Option<Option<String>>;

/// A row's key, as text.
pub type RowKey = Vec<Option<String>>;

/// A change, its values in the order of [`Shape::columns`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// `I`, `U`, `D`, `T`; or `R`, a whole row as it was then.
    pub op: Op,
    /// The new row; of a delete the old one; of a truncate empty.
    pub values: Vec<Slot>,
    /// What names the old row, if it is not in `values`; else empty.
    pub old: Vec<Slot>,
}

/// A table of the target, as statements need it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Qualified and quoted.
    pub name: String,
    /// Those that are given values.
    pub columns: Vec<ShapeColumn>,
    /// What names a row.
    pub matching: Matching,
}

/// A column of the target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShapeColumn {
    /// As the catalog spells it.
    pub name: String,
    /// As SQL spells it.
    pub type_name: String,
    /// NOT NULL.
    pub not_null: bool,
    /// Whether a row cannot be there that does not say it.
    pub needed: bool,
}

/// What names a row of the target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Matching {
    /// These columns, which are unique: changes are compacted by them.
    Key(Vec<usize>),
    /// These columns, but others are unique too: changes are applied in order.
    Ordered(Vec<usize>),
    /// All columns together; of equal rows any.
    Whole,
}

/// One statement. Its parameters are arrays of text, one for each column, all of `rows` elements.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Step {
    /// The statement.
    pub sql: String,
    /// Its parameters.
    pub parameters: Vec<Vec<Option<String>>>,
    /// Rows that it is to touch; `None` if any number is well.
    pub rows: Option<usize>,
    /// With the same parameters, if it touched them all.
    pub then: Option<String>,
    /// With the same parameters, if it touched none.
    pub instead: Option<String>,
    /// The same, if it touched fewer, and nothing else did: inserts what was not there; gives keys as arrays of text.
    pub insert: Option<String>,
}

/// Changes of one table that are not in the target yet.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    truncate: bool,
    rows: HashMap<RowKey, Net>,
    ordered: Vec<Change>,
}

/// What becomes of a row.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Net {
    Delete,
    /// It is this row, whether it was there or not.
    Put(Vec<Slot>),
    /// It is there, and gets these values.
    Patch(Vec<Slot>),
}

impl Shape {
    /// The shape of a table as it is made by [`schema::create_table`].
    pub fn new(table: &Table) -> Self {
        let given = table.columns.iter().filter(|column| schema::computed(column).is_none());
        let columns: Vec<ShapeColumn> = given
            .map(|column| ShapeColumn {
                name: column.name.clone(),
                type_name: column.source_type.clone(),
                not_null: column.not_null,
                needed: column.not_null && schema::plain_default(column).is_none(),
            })
            .collect();
        let places = |names: &[String]| {
            let place = |name: &String| columns.iter().position(|column| column.name == *name);
            names.iter().filter_map(place).collect::<Vec<_>>()
        };
        let index = schema::identity_columns(table);
        let matching = match table.identity {
            Identity::Index if table.key.is_empty() || schema::same_names(&index, &table.key) => {
                Matching::Key(places(&index))
            }
            Identity::Index => Matching::Ordered(places(&index)),
            _ if !table.key.is_empty() => Matching::Key(places(&table.key)),
            _ => Matching::Whole,
        };
        Self { name: schema::qualified(table), columns, matching }
    }

    /// Whether changes converge on rows that are ahead of them: if a row's name is all that is unique about it.
    pub fn converges(&self) -> bool {
        matches!(self.matching, Matching::Key(_))
    }
}

impl Change {
    /// The old row's key and the new row's, if the table is named by one.
    pub fn keys(&self, shape: &Shape) -> Option<(RowKey, RowKey)> {
        let Matching::Key(key) = &shape.matching else { return None };
        let old = if self.old.is_empty() { &self.values } else { &self.old };
        Some((key_of(key, old), key_of(key, &self.values)))
    }

    /// Whether it says every value of the new row.
    pub fn is_whole(&self) -> bool {
        self.op == Op::Repair || self.values.iter().all(Option::is_some)
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        let text = self.values.iter().chain(&self.old).flatten().flatten().map(String::len);
        text.sum::<usize>() + 24 * (self.values.len() + self.old.len())
    }
}

impl Pending {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.truncate && self.rows.is_empty() && self.ordered.is_empty()
    }

    /// Adds a change.
    ///
    /// # Errors
    ///
    /// Gives it back if it must be applied alone, by [`alone`], after all that is pending: its key
    /// changed, and values that it leaves out are in the target only.
    pub fn take(&mut self, shape: &Shape, change: Change) -> Result<(), Change> {
        if change.op == Op::Truncate {
            *self = Self { truncate: true, ..Self::default() };
            return Ok(());
        }
        let Matching::Key(_) = &shape.matching else {
            self.ordered.push(change);
            return Ok(());
        };
        let (old_key, new_key) = change.keys(shape).expect("the table is named by its key");
        match change.op {
            Op::Delete => drop(self.rows.insert(old_key, Net::Delete)),
            Op::Update if old_key != new_key => return self.rekey(old_key, new_key, change),
            Op::Update => self.update(new_key, change.values),
            _ => drop(self.rows.insert(new_key, Net::Put(change.values))),
        }
        Ok(())
    }

    fn update(&mut self, key: RowKey, mut values: Vec<Slot>) {
        let whole = values.iter().all(Option::is_some);
        match self.rows.entry(key) {
            Entry::Vacant(vacant) => {
                let net =
                    if whole || self.truncate { Net::Put(values) } else { Net::Patch(values) };
                vacant.insert(net);
            }
            Entry::Occupied(mut known) => {
                let net = match known.get_mut() {
                    Net::Put(before) => {
                        fill(&mut values, before);
                        Net::Put(values)
                    }
                    Net::Patch(before) => {
                        fill(&mut values, before);
                        Net::Patch(values)
                    }
                    Net::Delete => Net::Put(values),
                };
                known.insert(net);
            }
        }
    }

    fn rekey(&mut self, old: RowKey, new: RowKey, mut change: Change) -> Result<(), Change> {
        let whole = change.is_whole();
        match self.rows.get_mut(&old) {
            Some(Net::Put(before)) => fill(&mut change.values, before),
            _ if whole || self.truncate => {}
            _ => return Err(change),
        }
        self.rows.insert(old, Net::Delete);
        self.rows.insert(new, Net::Put(change.values));
        Ok(())
    }

    /// The statements that bring all of it into the target.
    pub fn steps(self, shape: &Shape) -> Vec<Step> {
        let mut steps = vec![];
        if self.truncate {
            steps.push(Step { sql: format!("TRUNCATE {}", shape.name), ..Step::default() });
        }
        if let Matching::Key(key) = &shape.matching {
            let mut deletes = vec![];
            let mut groups: HashMap<(bool, Vec<bool>), Vec<Vec<Slot>>> = HashMap::new();
            for (name, net) in self.rows {
                match net {
                    Net::Delete => deletes.push(name),
                    Net::Put(values) => {
                        groups.entry((true, said(&values))).or_default().push(values);
                    }
                    Net::Patch(values) => {
                        groups.entry((false, said(&values))).or_default().push(values);
                    }
                }
            }
            if !deletes.is_empty() {
                steps.push(delete(shape, key, deletes));
            }
            for ((put, said), rows) in groups {
                steps.push(if put {
                    upsert(shape, key, &said, rows)
                } else {
                    patch(shape, key, &said, rows)
                });
            }
            return steps;
        }
        let mut inserts: Vec<Vec<Slot>> = vec![];
        for change in self.ordered {
            let grouped = inserts.first().is_none_or(|first| said(first) == said(&change.values));
            if !inserts.is_empty() && (change.op != Op::Insert || !grouped) {
                steps.push(insert(shape, std::mem::take(&mut inserts)));
            }
            match change.op {
                Op::Insert => inserts.push(change.values),
                _ => steps.push(alone(shape, change)),
            }
        }
        if !inserts.is_empty() {
            steps.push(insert(shape, inserts));
        }
        steps
    }
}

/// The statement of one update or delete.
pub fn alone(shape: &Shape, change: Change) -> Step {
    let Change { op, values, old } = change;
    let renamed = !old.is_empty();
    let old = if renamed { old } else { values.clone() };
    let told = if op == Op::Delete { vec![] } else { said(&values) };
    let first = count(&told);
    let table = &shape.name;
    let (named, found) = match &shape.matching {
        Matching::Key(columns) | Matching::Ordered(columns) => {
            (columns.clone(), equal(shape, columns, first))
        }
        Matching::Whole => {
            let named: Vec<usize> = (0..old.len()).filter(|at| old[*at].is_some()).collect();
            let same = same_text(shape, &named, first);
            (named, format!("t.ctid = (SELECT x.ctid FROM {table} x WHERE {same} LIMIT 1)"))
        }
    };
    let key = named.iter().map(|at| vec![old[*at].clone().flatten()]);
    if op == Op::Delete {
        let parameters: Vec<_> = key.collect();
        let sql = format!("DELETE FROM {table} t USING {} WHERE {found}", source(parameters.len()));
        return Step { sql, parameters, rows: Some(1), ..Step::default() };
    }
    let mut parameters = columns_of(&told, vec![values]);
    parameters.extend(key);
    let from = source(parameters.len());
    let set = assignments(shape, &told, &[]);
    let update = format!("UPDATE {table} t SET {set} FROM {from} WHERE {found}");
    // Where nothing says which row it was, one that does not look so already may be there all the same.
    let is_named = renamed || op != Op::Update || shape.matching != Matching::Whole;
    let insert = (is_named && can_insert(shape, &told)).then(|| {
        let (names, casts) = (names(shape, &told), casts(shape, &told));
        let key = returning(shape);
        format!("INSERT INTO {table} ({names}) SELECT {casts} FROM {from} {key}")
    });
    let (Matching::Key(key), true) = (&shape.matching, renamed) else {
        return Step { sql: update, parameters, rows: Some(1), insert, ..Step::default() };
    };
    // Where rows are ahead of the changes the new key may be there already, and the old one still.
    let there = equal_told(shape, key, &told);
    let sql = format!("UPDATE {table} t SET {set} FROM {from} WHERE {there}");
    let then = Some(format!("DELETE FROM {table} t USING {from} WHERE {found}"));
    Step { sql, parameters, rows: Some(1), then, instead: Some(update), insert }
}

/// `INSERT … ON CONFLICT (key) DO UPDATE` from another relation of the same columns, for snapshots.
pub fn merge_from(shape: &Shape, key: &[usize], columns: &[usize], relation: &str) -> String {
    let list = |at: &usize| escape_identifier(&shape.columns[*at].name);
    let names = columns.iter().map(list).collect::<Vec<_>>().join(", ");
    let conflict = on_conflict(shape, key, columns);
    format!("INSERT INTO {} ({names}) SELECT {names} FROM {relation} {conflict}", shape.name)
}

fn insert(shape: &Shape, rows: Vec<Vec<Slot>>) -> Step {
    let told = rows.first().map(|row| said(row)).unwrap_or_default();
    let count = rows.len();
    if !told.contains(&true) {
        let table = &shape.name;
        let sql = format!("INSERT INTO {table} SELECT FROM pg_catalog.generate_series(1, {count})");
        return Step { sql, ..Step::default() };
    }
    let parameters = columns_of(&told, rows);
    let sql = format!(
        "INSERT INTO {} ({}) SELECT {} FROM {}",
        shape.name,
        names(shape, &told),
        casts(shape, &told),
        source(parameters.len())
    );
    Step { sql, parameters, rows: Some(count), ..Step::default() }
}

fn upsert(shape: &Shape, key: &[usize], told: &[bool], rows: Vec<Vec<Slot>>) -> Step {
    let mut step = insert(shape, rows);
    let columns: Vec<usize> = (0..told.len()).filter(|at| told[*at]).collect();
    step.sql = format!("{} {}", step.sql, on_conflict(shape, key, &columns));
    step
}

fn patch(shape: &Shape, key: &[usize], told: &[bool], rows: Vec<Vec<Slot>>) -> Step {
    let count = rows.len();
    let parameters = columns_of(told, rows);
    let from = source(parameters.len());
    let matched = equal_told(shape, key, told);
    let table = &shape.name;
    let sets = assignments(shape, told, key);
    if sets.is_empty() {
        return Step { sql: format!("SELECT FROM {table} LIMIT 0"), ..Step::default() };
    }
    let sql = format!("UPDATE {table} t SET {sets} FROM {from} WHERE {matched}");
    let insert = can_insert(shape, told).then(|| {
        let (names, casts) = (names(shape, told), casts(shape, told));
        format!("INSERT INTO {table} ({names}) SELECT {casts} FROM {from} WHERE NOT EXISTS (SELECT FROM {table} t WHERE {matched}) {}", returning(shape))
    });
    Step { sql, parameters, rows: Some(count), insert, ..Step::default() }
}

fn delete(shape: &Shape, key: &[usize], names: Vec<Vec<Option<String>>>) -> Step {
    let mut parameters = vec![vec![]; key.len()];
    for name in names {
        parameters.iter_mut().zip(name).for_each(|(column, value)| column.push(value));
    }
    let found = equal(shape, key, 0);
    let sql = format!("DELETE FROM {} t USING {} WHERE {found}", shape.name, source(key.len()));
    Step { sql, parameters, ..Step::default() }
}

fn on_conflict(shape: &Shape, key: &[usize], columns: &[usize]) -> String {
    let name = |at: &usize| escape_identifier(&shape.columns[*at].name);
    let key = key.iter().map(name).collect::<Vec<_>>().join(", ");
    let sets = columns.iter().map(|at| format!("{0} = EXCLUDED.{0}", name(at)));
    format!("ON CONFLICT ({key}) DO UPDATE SET {}", sets.collect::<Vec<_>>().join(", "))
}

/// The key of an inserted row, as it prints; without one an empty array.
fn returning(shape: &Shape) -> String {
    let key = if let Matching::Key(key) = &shape.matching { &key[..] } else { &[] };
    let text = |at: &usize| {
        format!("pg_catalog.format('%s', {})", escape_identifier(&shape.columns[*at].name))
    };
    format!("RETURNING ARRAY[{}]::text[]", key.iter().map(text).collect::<Vec<_>>().join(", "))
}

/// `t.k = u.c<first>::type AND …`
fn equal(shape: &Shape, columns: &[usize], first: usize) -> String {
    let equal = columns.iter().enumerate().map(|(at, column)| {
        let column = &shape.columns[*column];
        format!("t.{} = u.c{}::{}", escape_identifier(&column.name), first + at, column.type_name)
    });
    equal.collect::<Vec<_>>().join(" AND ")
}

/// `t.k = u.c<its place among the told>::type AND …`
fn equal_told(shape: &Shape, columns: &[usize], told: &[bool]) -> String {
    let equal = columns.iter().map(|at| {
        let (column, place) = (&shape.columns[*at], count(&told[..*at]));
        format!("t.{} = u.c{place}::{}", escape_identifier(&column.name), column.type_name)
    });
    equal.collect::<Vec<_>>().join(" AND ")
}

/// Whether the row `x` prints as the parameters from `u.c<first>` on: not every type has an equality,
/// and equal values may differ (1.0 and 1.00). A row of NULLs IS NULL and prints all the same.
fn same_text(shape: &Shape, columns: &[usize], first: usize) -> String {
    let same = columns.iter().enumerate().map(|(at, column)| {
        let name = escape_identifier(&shape.columns[*column].name);
        let text = format!(
            "CASE WHEN x.{name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', x.{name}) END"
        );
        format!("{text} IS NOT DISTINCT FROM u.c{}", first + at)
    });
    std::iter::once("true".to_owned()).chain(same).collect::<Vec<_>>().join(" AND ")
}

/// The parameters as a relation `u(c0, c1, …)` of text.
fn source(columns: usize) -> String {
    if columns == 0 {
        return "(SELECT) AS u".into();
    }
    let arrays = (1..=columns).map(|at| format!("${at}::text[]")).collect::<Vec<_>>().join(", ");
    let names = (0..columns).map(|at| format!("c{at}")).collect::<Vec<_>>().join(", ");
    format!("unnest({arrays}) AS u({names})")
}

fn names(shape: &Shape, told: &[bool]) -> String {
    let told = shape.columns.iter().zip(told).filter(|(_, told)| **told);
    told.map(|(column, _)| escape_identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

fn casts(shape: &Shape, told: &[bool]) -> String {
    let told = shape.columns.iter().zip(told).filter(|(_, told)| **told).enumerate();
    told.map(|(at, (column, _))| format!("u.c{at}::{}", column.type_name))
        .collect::<Vec<_>>()
        .join(", ")
}

fn assignments(shape: &Shape, told: &[bool], but: &[usize]) -> String {
    let told = shape.columns.iter().enumerate().filter(|(at, _)| told[*at]).enumerate();
    let wanted = told.filter(|(_, (column, _))| !but.contains(column));
    let set = wanted.map(|(at, (_, column))| {
        format!("{} = u.c{at}::{}", escape_identifier(&column.name), column.type_name)
    });
    set.collect::<Vec<_>>().join(", ")
}

/// Whether a row of only these columns can be inserted.
fn can_insert(shape: &Shape, told: &[bool]) -> bool {
    shape.columns.iter().zip(told).all(|(column, told)| *told || !column.needed)
}

/// Turns rows into columns, leaving out what none of them says.
fn columns_of(told: &[bool], rows: Vec<Vec<Slot>>) -> Vec<Vec<Option<String>>> {
    let mut columns = vec![Vec::with_capacity(rows.len()); count(told)];
    for row in rows {
        let values = row.into_iter().flatten();
        columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
    }
    columns
}

fn fill(values: &mut [Slot], before: &mut [Slot]) {
    for (value, before) in values.iter_mut().zip(before) {
        if value.is_none() {
            *value = before.take();
        }
    }
}

fn said(values: &[Slot]) -> Vec<bool> {
    values.iter().map(Option::is_some).collect()
}

fn count(told: &[bool]) -> usize {
    told.iter().filter(|told| **told).count()
}

/// The key in a row's values.
pub fn key_of(key: &[usize], values: &[Slot]) -> Vec<Option<String>> {
    key.iter().map(|at| values.get(*at).cloned().flatten().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::replay::sample::{column, table};

    type Row = Vec<Option<String>>;

    /// A table of the target, and enough of SQL to run the statements of a keyed [`Shape`].
    #[derive(Debug, Default, PartialEq)]
    struct Model(BTreeMap<String, Row>);

    impl Model {
        fn run(&mut self, shape: &Shape, step: &Step) {
            let mut run = |sql: &str| self.statement(shape, sql, &step.parameters);
            let wanted = step.rows.unwrap_or(0);
            let mut touched = run(&step.sql);
            if touched == wanted {
                step.then.as_ref().map(|sql| run(sql));
            } else if touched == 0 {
                touched = step.instead.as_ref().map_or(0, |sql| run(sql));
            }
            if touched < wanted {
                step.insert.as_ref().map(|sql| run(sql));
            }
        }

        fn statement(&mut self, shape: &Shape, sql: &str, parameters: &[Row]) -> usize {
            let rows = parameters.first().map_or(0, Vec::len);
            let place =
                |name: &str| shape.columns.iter().position(|c| sql_name(&c.name) == name).unwrap();
            if sql.starts_with("TRUNCATE") {
                self.0.clear();
            }
            let key_at = sql.find("t.\"k\" = u.c").map(|at| number(&sql[at + 11..]));
            let mut touched = 0;
            for row in (0..rows).collect::<Vec<_>>() {
                let value = |at: usize| parameters[at][row].clone();
                if sql.starts_with("DELETE") {
                    touched +=
                        usize::from(self.0.remove(&value(key_at.unwrap()).unwrap()).is_some());
                } else if sql.starts_with("INSERT") {
                    let names = sql.split(['(', ')']).nth(1).unwrap().split(", ").map(place);
                    let told: Vec<(usize, Option<String>)> =
                        names.zip(0..).map(|(to, at)| (to, value(at))).collect();
                    let key = told.iter().find(|(to, _)| *to == 0).unwrap().1.clone().unwrap();
                    assert!(
                        sql.contains("ON CONFLICT")
                            || sql.contains("NOT EXISTS")
                            || !self.0.contains_key(&key)
                    );
                    if sql.contains("NOT EXISTS") && self.0.contains_key(&key) {
                        continue;
                    }
                    let target =
                        self.0.entry(key).or_insert_with(|| vec![None; shape.columns.len()]);
                    told.into_iter().for_each(|(to, value)| target[to] = value);
                } else if sql.starts_with("UPDATE") {
                    let sets = sql.split(" SET ").nth(1).unwrap().split(" FROM ").next().unwrap();
                    let Some(mut found) = self.0.remove(&value(key_at.unwrap()).unwrap()) else {
                        continue;
                    };
                    for set in sets.split(", ") {
                        let (name, from) = set.split_once(" = u.c").unwrap();
                        found[place(name)] = value(number(from));
                    }
                    assert!(self.0.insert(found[0].clone().unwrap(), found).is_none());
                    touched += 1;
                }
            }
            touched
        }

        /// What the source did.
        fn change(&mut self, change: &Change) {
            let key = |values: &[Slot]| values[0].clone().flatten().unwrap();
            match change.op {
                Op::Truncate => self.0.clear(),
                Op::Delete => drop(self.0.remove(&key(&change.values))),
                Op::Insert => {
                    let row = change.values.iter().map(|slot| slot.clone().flatten()).collect();
                    self.0.insert(key(&change.values), row);
                }
                _ => {
                    let old =
                        if change.old.is_empty() { key(&change.values) } else { key(&change.old) };
                    let mut row = self.0.remove(&old).unwrap();
                    for (value, slot) in row.iter_mut().zip(&change.values) {
                        if let Some(told) = slot {
                            *value = told.clone();
                        }
                    }
                    self.0.insert(key(&change.values), row);
                }
            }
        }
    }

    fn sql_name(name: &str) -> String {
        escape_identifier(name)
    }

    fn number(text: &str) -> usize {
        text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    }

    fn shape() -> Shape {
        let columns = vec![
            column("k", "text", 25, -1),
            column("a", "text", 25, -1),
            column("b", "text", 25, -1),
        ];
        Shape::new(&table("t", columns, &["k"]))
    }

    fn text(value: impl ToString) -> Slot {
        Some(Some(value.to_string()))
    }

    proptest! {
        #[test]
        fn a_batch_is_as_its_changes_one_by_one(
            moves in prop::collection::vec((0u8..12, 0u8..5, 0u8..5, any::<bool>(), any::<bool>()), 1..60),
            flushes in prop::collection::vec(0usize..8, 1..12),
        ) {
            let shape = shape();
            let (mut source, mut target) = (Model::default(), Model::default());
            let mut pending = Pending::default();
            let mut flushes = flushes.iter().cycle();
            let mut left = *flushes.next().unwrap();
            for (serial, (kind, key, other, a, b)) in moves.into_iter().enumerate() {
                let there = source.0.contains_key(&key.to_string());
                let slots = |key: u8| vec![text(key), a.then(|| Some(format!("a{serial}"))), b.then_some(None)];
                let change = match kind {
                    0 => Change { op: Op::Truncate, values: vec![], old: vec![] },
                    1..=3 if !there => Change { op: Op::Insert, values: vec![text(key), text(serial), text("b")], old: vec![] },
                    4..=6 if there => Change { op: Op::Update, values: slots(key), old: vec![] },
                    7..=8 if there && !source.0.contains_key(&other.to_string()) => {
                        Change { op: Op::Update, values: slots(other), old: vec![text(key), None, None] }
                    }
                    9 if there => Change { op: Op::Delete, values: vec![text(key), Some(None), Some(None)], old: vec![] },
                    _ => continue,
                };
                source.change(&change);
                if let Err(change) = pending.take(&shape, change) {
                    let held = std::mem::take(&mut pending);
                    held.steps(&shape).iter().for_each(|step| target.run(&shape, step));
                    target.run(&shape, &alone(&shape, change));
                }
                if left == 0 {
                    let held = std::mem::take(&mut pending);
                    held.steps(&shape).iter().for_each(|step| target.run(&shape, step));
                    prop_assert_eq!(&target, &source);
                    left = *flushes.next().unwrap();
                }
                left = left.saturating_sub(1);
            }
            pending.steps(&shape).iter().for_each(|step| target.run(&shape, step));
            prop_assert_eq!(target, source);
        }
    }

    #[test]
    fn a_change_of_key_converges_where_the_new_row_is_there_already() {
        let shape = shape();
        let row =
            |key: &str, a: &str| (key.to_owned(), vec![Some(key.into()), Some(a.into()), None]);
        let change = || Change {
            op: Op::Update,
            values: vec![text(2), None, text("b")],
            old: vec![text(1), None, None],
        };
        let expected = |a: &str| {
            Model([("2".into(), vec![Some("2".into()), Some(a.into()), Some("b".into())])].into())
        };
        for rows in [vec![row("1", "old"), row("2", "new")], vec![row("2", "new")]] {
            let mut ahead = Model(rows.into_iter().collect());
            ahead.run(&shape, &alone(&shape, change()));
            assert_eq!(ahead, expected("new"));
        }
        let mut behind = Model([row("1", "old")].into());
        behind.run(&shape, &alone(&shape, change()));
        assert_eq!(behind, expected("old"));
    }

    #[test]
    fn a_table_without_a_key_keeps_the_order_and_groups_inserts() {
        let columns = vec![column("a", "integer", 23, -1), column("b", "json", 114, -1)];
        let shape = Shape::new(&Table { identity: Identity::Full, ..table("t", columns, &[]) });
        assert!(!shape.converges());
        let mut pending = Pending::default();
        let row = |a: u8| vec![text(a), Some(None)];
        for op in [Op::Insert, Op::Insert, Op::Delete, Op::Insert] {
            pending.take(&shape, Change { op, values: row(1), old: vec![] }).unwrap();
        }
        let change = Change { op: Op::Update, values: vec![text(2), None], old: row(1) };
        pending.take(&shape, change).unwrap();
        let steps = pending.steps(&shape);
        let words: Vec<_> = steps.iter().map(|step| (&step.sql[..6], step.rows)).collect();
        assert_eq!(
            words,
            [("INSERT", Some(2)), ("DELETE", Some(1)), ("INSERT", Some(1)), ("UPDATE", Some(1))]
        );
        assert_eq!(steps[3].parameters.len(), 3);
        assert!(
            steps[3].sql.contains("LIMIT 1") && steps[3].sql.contains("IS NOT DISTINCT FROM u.c2")
        );
    }

    #[test]
    fn a_row_that_lacks_a_needed_value_is_not_inserted() {
        let columns = ["k", "a", "b"].map(|name| column(name, "text", 25, -1));
        let mut table = table("t", columns.into(), &["k"]);
        let inserts = |table: &Table| {
            let values = vec![text(1), None, text("b")];
            let mut pending = Pending::default();
            let change = Change { op: Op::Update, values, old: vec![] };
            pending.take(&Shape::new(table), change).unwrap();
            pending.steps(&Shape::new(table))[0].insert.is_some()
        };
        assert!(inserts(&table));
        table.columns[1].not_null = true;
        assert!(!inserts(&table));
        table.columns[1].default = Some("''".into());
        assert!(inserts(&table));
    }
}
