//! From one version of a table to the next: the statements between two definitions. Pure.
//!
//! The stream does not say ALTER TABLE: only the columns before and after are known. What has the same number is the
//! same column, whatever it is called. Where numbers are not known, as of what the stream alone told, a column that
//! is gone where another of its type stands now, followed by the same columns as before, was renamed:
//! new columns come last in PostgreSQL. Of the last columns it is taken for renamed too if nothing
//! but the name differs. An added column has in the rows that are there what the source's catalog says; where it says nothing, its
//! plain default, which is what they got unless it was changed since.
//!
//! A column that becomes NOT NULL may have no value yet in rows that are there: the definition can be ahead of the
//! changes that give them one. So none of these statements says it of a column of which it was not said before.

use std::sync::Arc;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::{
    expression::{names_any, renamed},
    schema::{
        self, before, computed, is_of, list, plain_default, qualified, replica_identity,
        same_names, set_default, unique_columns,
    },
};
use crate::{
    journal::{Column, Identity},
    seal::Table,
};

/// One statement of those that make a table into another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alteration {
    /// The statement.
    pub sql: String,
    /// What is done if values that are there refuse it.
    pub otherwise: Option<Otherwise>,
}

/// What is done where rows that are there refuse a statement: what the source made of them is in no stream, or comes later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Otherwise {
    /// The statement; empty for none.
    pub sql: String,
    /// What that makes of the table, for people, unless it may be mended later.
    pub note: Option<String>,
    /// The column, which is not NOT NULL then.
    pub nullable: String,
}

impl From<String> for Alteration {
    fn from(sql: String) -> Self {
        Self { sql, otherwise: None }
    }
}

/// The statements that make `from` into what [`eased`] says, in order.
pub fn alter(from: &Table, to: &Table) -> Vec<Alteration> {
    let mut steps: Vec<Alteration> = vec![];
    if from.schema != to.schema {
        let schema = escape_identifier(&to.schema);
        steps.push(format!("ALTER TABLE {} SET SCHEMA {schema}", qualified(from)).into());
    }
    if from.name != to.name {
        let moved = Table { schema: to.schema.clone(), ..from.clone() };
        let name = escape_identifier(&to.name);
        steps.push(format!("ALTER TABLE {} RENAME TO {name}", qualified(&moved)).into());
    }
    let table = qualified(to);
    if from.identity == Identity::Index {
        // Behind all rows it is set again: until then its columns may be NULL.
        steps.push(format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT").into());
    }
    let kept = kept(from, to);
    let now = |name: &String| kept.iter().find(|(old, _)| old.name == *name);
    let differ = |before: &[String], after: &[String]| {
        let before: Option<Vec<String>> =
            before.iter().map(|name| Some(now(name)?.1.name.clone())).collect();
        before.is_none_or(|before| !same_names(&before, after))
    };
    let rekey = differ(&from.key, &to.key);
    if rekey && !from.key.is_empty() {
        steps.push(drop_constraint(to, "contype = 'p'").into());
    }
    let (unique_before, unique) = (unique_columns(from), unique_columns(to));
    let reindex = differ(&unique_before, &unique);
    if reindex && !unique_before.is_empty() {
        steps.push(
            drop_constraint(
                to,
                &format!("contype = 'u' AND {}", is_of("conrelid", "conkey", &unique_before)),
            )
            .into(),
        );
    }
    steps.extend(alter_columns(from, to, &kept));
    if rekey && !to.key.is_empty() {
        steps.push(format!("ALTER TABLE {table} ADD PRIMARY KEY ({})", list(&to.key)).into());
    }
    // Of a table with a key it is made behind all rows: those that are there may be in doubt.
    if !unique.is_empty() && to.key.is_empty() && (reindex || !from.key.is_empty()) {
        steps.push(schema::add_unique(to, &unique).into());
    }
    if from.identity != to.identity
        && (from.identity, to.identity) != (Identity::Index, Identity::Default)
    {
        steps.push(replica_identity(to).into());
    }
    steps
}

/// The statements for the columns: those that go, that stay, and that come.
fn alter_columns(from: &Table, to: &Table, kept: &[(&Column, &Column)]) -> Vec<Alteration> {
    let table = qualified(to);
    let stay: Vec<_> =
        kept.iter().filter(|(old, new)| !is_made_anew(from, to, old, new)).copied().collect();
    let stays = |old: &Column| stay.iter().any(|(own, _)| own.name == old.name);
    let gone = || from.columns.iter().filter(|old| !stays(old));
    let mut steps: Vec<Alteration> =
        freed(from, to, &stay, gone()).into_iter().map(Into::into).collect();
    // What is computed of another one would go with it.
    let computed_first = gone().filter(|old| computed(old).is_some());
    for old in computed_first.chain(gone().filter(|old| computed(old).is_none())) {
        let name = escape_identifier(&old.name);
        steps.push(format!("ALTER TABLE {table} DROP COLUMN {name} CASCADE").into());
    }
    steps.extend(renames(&table, &stay).into_iter().map(Into::into));
    let before =
        |new: &Column| stay.iter().find(|(_, after)| after.name == new.name).map(|(old, _)| *old);
    // Those that come keep their order. What another expression is computed of may be one of them.
    let mut columns: Vec<_> = to.columns.iter().map(|new| (before(new), new)).collect();
    columns.sort_by_key(|(old, new)| match old {
        Some(_) if computed(new).is_none() => 0,
        None => 1,
        Some(_) => 2,
    });
    let coming = |new: &Column| {
        let mut names = behind(to, &new.name);
        names.retain(|name| stay.iter().all(|(_, after)| after.name != *name));
        names
    };
    let mut computed_last = vec![];
    for (old, new) in columns {
        match (old, computed(new)) {
            (Some(old), _) => steps.extend(alter_column(from, to, old, new)),
            (None, Some(expression)) if names_any(expression, &coming(new)) => {
                let nothing = Column { default: Some("NULL".into()), ..new.clone() };
                steps.push(added(&table, &nothing));
                let name = escape_identifier(&new.name);
                let set = format!("ALTER COLUMN {name} SET EXPRESSION AS ({expression})");
                computed_last.push(format!("ALTER TABLE {table} {set}").into());
            }
            (None, _) => steps.push(added(&table, new)),
        }
    }
    steps.extend(computed_last);
    steps
}

/// The names of the columns that stand behind one.
fn behind<'a>(table: &'a Table, column: &str) -> Vec<&'a str> {
    let names = table.columns.iter().map(|own| own.name.as_str());
    names.skip_while(|own| *own != column).skip(1).collect()
}

/// What [`alter`] makes of `from`, unless rows refuse more: NOT NULL is only what was that before, or comes with a value.
pub fn eased(from: &Table, to: &Table) -> Table {
    let kept = kept(from, to);
    let holds = |new: &Column| match kept.iter().find(|(_, after)| after.name == new.name) {
        Some((old, _)) if !is_made_anew(from, to, old, new) => {
            is_not_null(from, old) && !is_recomputed(from, to, old, new)
        }
        _ => is_filled(new),
    };
    let ease = |column: &Column| {
        let not_null = column.not_null && (to.key.contains(&column.name) || holds(column));
        Column { not_null, ..column.clone() }
    };
    Table { columns: to.columns.iter().map(ease).collect(), ..to.clone() }
}

/// Says of columns whether they are NOT NULL.
pub fn set_not_null(table: &mut Table, names: &[String], not_null: bool) {
    let columns = table.columns.iter_mut().filter(|column| names.contains(&column.name));
    columns.for_each(|column| column.not_null = not_null);
}

/// Whether the target has a column NOT NULL: a version known from the stream alone does not say so of a key's.
fn is_not_null(table: &Table, column: &Column) -> bool {
    column.not_null || table.key.contains(&column.name)
}

/// The statement for a column that comes.
fn added(table: &str, new: &Column) -> Alteration {
    let filled = filled(new).filter(|_| computed(new).is_none());
    let default = filled.map(|value| format!(" DEFAULT {value}")).unwrap_or_default();
    let without = Column { not_null: false, ..new.clone() };
    let add = |column: &Column| {
        format!("ALTER TABLE {table} ADD COLUMN {}{default}", schema::column(column))
    };
    let (true, true) = (new.not_null, is_filled(new)) else { return add(&without).into() };
    let otherwise = Otherwise { sql: add(&without), note: None, nullable: new.name.clone() };
    Alteration { sql: add(new), otherwise: Some(otherwise) }
}

/// The columns that stay: each before and after. What has a number is the one that has it; the others go by their names.
fn kept<'a>(from: &'a Table, to: &'a Table) -> Vec<(&'a Column, &'a Column)> {
    let of_number = |table: &'a Table, number: Option<u16>| {
        number.and_then(|_| table.columns.iter().find(|own| own.number == number))
    };
    let guessed = guessed(from, to);
    let by_name = |old: &Column| {
        let after = guessed.iter().find(|(before, _)| *before == old.name);
        let name = after.map_or(old.name.as_str(), |(_, after)| after);
        let new = to.columns.iter().find(|new| new.name == name)?;
        let is_another =
            new.number.is_some() && (old.number.is_some() || of_number(from, new.number).is_some());
        (!is_another).then_some(new)
    };
    let now = |old: &Column| of_number(to, old.number).or_else(|| by_name(old));
    from.columns.iter().filter_map(|old| Some((old, now(old)?))).collect()
}

/// A version with the numbers that its columns had before, where it has none: for what comes after it.
pub fn numbered(from: &Table, to: &Arc<Table>) -> Arc<Table> {
    if to.is_numbered() {
        return Arc::clone(to);
    }
    let kept = kept(from, to);
    let mut numbered = (**to).clone();
    for (column, new) in numbered.columns.iter_mut().zip(&to.columns) {
        let old = kept.iter().find(|(_, after)| after.name == new.name);
        column.number = new.number.or(old.and_then(|(old, _)| old.number));
    }
    Arc::new(numbered)
}

/// The statements by which columns that stay get other names. One whose name another still has waits aside for it.
fn renames(table: &str, kept: &[(&Column, &Column)]) -> Vec<String> {
    let renamed = kept.iter().filter(|(old, new)| old.name != new.name);
    let is_taken = |name: &String| kept.iter().any(|(old, _)| old.name == *name);
    let (mut aside, mut plain, mut back) = (vec![], vec![], vec![]);
    for (at, (old, new)) in renamed.enumerate() {
        let [before, after] = [&old.name, &new.name].map(|name| escape_identifier(name));
        let rename =
            |before, after| format!("ALTER TABLE {table} RENAME COLUMN {before} TO {after}");
        match is_taken(&new.name) {
            true => {
                let between = escape_identifier(&format!("lakehead renamed {at}"));
                aside.push(rename(&before, &between));
                back.push(rename(&between, &after));
            }
            false => plain.push(rename(&before, &after)),
        }
    }
    [aside, plain, back].concat()
}

/// The statements for a column that stays.
fn alter_column(from: &Table, to: &Table, old: &Column, new: &Column) -> Vec<Alteration> {
    let (table, name) = (qualified(to), escape_identifier(&new.name));
    let retyped = old.source_type != new.source_type;
    let alter = format!("ALTER TABLE {table} ALTER COLUMN {name}");
    let mut steps: Vec<Alteration> = vec![];
    if let (Some(before), Some(after)) = (computed(old), computed(new)) {
        if retyped {
            steps.push(format!("{alter} TYPE {}", new.source_type).into());
        }
        if is_other(from, to, before, after) {
            steps.push(format!("{alter} SET EXPRESSION AS ({after})").into());
        }
    }
    if retyped && computed(new).is_none() {
        let as_type = &new.source_type;
        if old.default.is_some() && computed(old).is_none() {
            steps.push(format!("{alter} DROP DEFAULT").into());
        }
        let given_up = match old.not_null {
            true => format!("{alter} DROP NOT NULL, ALTER COLUMN {name} TYPE {as_type} USING NULL"),
            false => format!("{alter} TYPE {as_type} USING NULL"),
        };
        steps.push(Alteration {
            sql: format!("{alter} TYPE {as_type} USING {name}::text::{as_type}"),
            otherwise: Some(Otherwise {
                sql: given_up,
                note: Some(format!(
                    "values of the column {} do not read as {as_type}, and are NULL up to the next change of their \
                     rows: a statement made others of them, which are in no stream",
                    new.name
                )),
                nullable: new.name.clone(),
            }),
        });
    }
    if is_not_null(from, old) && !is_not_null(to, new) {
        steps.push(format!("{alter} DROP NOT NULL").into());
    }
    steps
}

/// Whether a column that stays is dropped and made anew: behind all others, as it may have been.
fn is_made_anew(from: &Table, to: &Table, old: &Column, new: &Column) -> bool {
    match (computed(old), computed(new)) {
        (None, None) => false,
        (Some(_), None) => is_anew(from, to, &new.name),
        (None, Some(_)) => true,
        // Any server can do that.
        (Some(_), Some(_)) => {
            is_recomputed(from, to, old, new) && !keeps_place(from, to, &new.name)
        }
    }
}

/// Whether a column that stays, and is computed, is so in another way, or as another type.
pub fn is_recomputed(from: &Table, to: &Table, old: &Column, new: &Column) -> bool {
    let (Some(before), Some(after)) = (computed(old), computed(new)) else { return false };
    old.source_type != new.source_type || is_other(from, to, before, after)
}

/// Whether an expression is not what it was, or computed of another column or type. Where only a column that it names has
/// another name, the target's server sees to that.
fn is_other(from: &Table, to: &Table, before: &str, after: &str) -> bool {
    let kept = kept(from, to);
    let mut others = retyped(&kept);
    let gone = from.columns.iter().filter(|own| kept.iter().all(|(old, _)| old.name != own.name));
    others.extend(gone.map(|own| own.name.as_str()));
    renamed(before, &kept) != after || names_any(before, &others)
}

/// Columns that are not computed, and whose types change: their names before.
fn retyped<'a>(kept: &[(&'a Column, &Column)]) -> Vec<&'a str> {
    let other = kept.iter().filter(|(old, new)| {
        old.source_type != new.source_type && computed(old).is_none() && computed(new).is_none()
    });
    other.map(|(old, _)| old.name.as_str()).collect()
}

/// The statements behind which columns that stay, and are computed in another way or no more, hold nothing up: no row
/// needs a value in them, and they are computed of no column that goes, or gets another type.
fn freed<'a>(
    from: &Table,
    to: &Table,
    stay: &[(&Column, &Column)],
    gone: impl Iterator<Item = &'a Column>,
) -> Vec<String> {
    let mut bound = retyped(stay);
    bound.extend(gone.map(|own| own.name.as_str()));
    let mut steps = vec![];
    for (old, new) in stay {
        let alter =
            format!("ALTER TABLE {} ALTER COLUMN {}", qualified(to), escape_identifier(&old.name));
        let Some(before) = computed(old) else { continue };
        if computed(new).is_none() {
            steps.push(format!("{alter} DROP EXPRESSION"));
        } else if is_recomputed(from, to, old, new) {
            if is_not_null(from, old) && !to.key.contains(&new.name) {
                steps.push(format!("{alter} DROP NOT NULL"));
            }
            if names_any(before, &bound) {
                steps.push(format!("{alter} SET EXPRESSION AS (NULL)"));
            }
        }
    }
    steps
}

/// What the rows that are there have in a column that is added.
fn filled(new: &Column) -> Option<String> {
    match before(new) {
        Some(value) => {
            let cast =
                |value| format!("{}::{}", escape_literal(value).trim_start(), new.source_type);
            value.map(cast)
        }
        None => plain_default(new).map(Into::into),
    }
}

/// Whether all rows that are there have a value in a column that is added.
fn is_filled(new: &Column) -> bool {
    computed(new).is_none() && filled(new).is_some()
}

/// Whether a column that had others behind it has none of them behind it any more.
fn is_anew(from: &Table, to: &Table, name: &str) -> bool {
    let was_last = from.columns.last().is_some_and(|last| last.name == name);
    !was_last && !keeps_place(from, to, name)
}

/// Whether a column has one behind it that was there before.
fn keeps_place(from: &Table, to: &Table, name: &str) -> bool {
    let after = behind(to, name);
    behind(from, name).iter().any(|own| after.contains(own))
}

/// Defaults that differ, or went with a type, as statements that may fail.
pub fn defaults(from: &Table, to: &Table) -> Vec<String> {
    let kept = kept(from, to);
    let changed = to.columns.iter().filter(|new| {
        let old = kept.iter().find(|(_, after)| after.name == new.name);
        old.is_none_or(|(old, _)| old.default != new.default || old.source_type != new.source_type)
    });
    let set = changed.filter_map(|column| set_default(to, column));
    set.chain(dropped_defaults(&kept, to)).collect()
}

/// Defaults that are no more. A version known from the stream alone says of none.
fn dropped_defaults(kept: &[(&Column, &Column)], to: &Table) -> Vec<String> {
    let says = |column: &Column| column.not_null || column.default.is_some();
    let gone = to.columns.iter().filter(|new| {
        let old = kept.iter().find(|(_, after)| after.name == new.name);
        new.default.is_none()
            && !new.is_computed()
            && match old {
                Some((old, _)) => {
                    old.source_type == new.source_type && plain_default(old).is_some()
                }
                None => new.before.is_some(),
            }
    });
    let drop = |column: &Column| {
        let name = escape_identifier(&column.name);
        format!("ALTER TABLE {} ALTER COLUMN {name} DROP DEFAULT", qualified(to))
    };
    if to.is_numbered() || to.columns.iter().any(says) { gone.map(drop).collect() } else { vec![] }
}

/// Columns that were renamed, as far as can be told without numbers: before and after.
fn guessed<'a>(from: &'a Table, to: &'a Table) -> Vec<(&'a str, &'a str)> {
    let stays = |name: &str, table: &Table| table.columns.iter().any(|column| column.name == name);
    let gone = from.columns.iter().enumerate().filter(|(_, old)| !stays(&old.name, to));
    let pairs = gone.filter_map(|(at, old)| {
        // Columns before it may have been dropped in the same step: count from what follows.
        let after: Vec<&str> = from.columns[at + 1..].iter().map(|c| c.name.as_str()).collect();
        let place = match after.iter().find(|name| stays(name, to)) {
            Some(next) => to.columns.iter().position(|new| new.name == **next)?.checked_sub(1)?,
            None => at,
        };
        let new = to.columns.get(place).filter(|new| !stays(&new.name, from))?;
        let plain = |column: &Column| Column {
            name: String::new(),
            identity: false,
            number: None,
            before: None,
            ..column.clone()
        };
        (plain(old) == plain(new)).then_some((old.name.as_str(), new.name.as_str()))
    });
    pairs.collect()
}

/// The constraint's name is not known here: the catalog of the target is asked.
fn drop_constraint(table: &Table, which: &str) -> String {
    let name = qualified(table).replace('\'', "''");
    schema::code_block(&format!(
        "DECLARE found name; BEGIN \
         SELECT conname INTO found FROM pg_catalog.pg_constraint \
         WHERE conrelid = '{name}'::regclass AND {which}; \
         IF found IS NOT NULL THEN EXECUTE pg_catalog.format('ALTER TABLE {} DROP CONSTRAINT %I', found); END IF; \
         END",
        name.replace('%', "%%")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        journal::Before,
        replay::sample::{column, table},
    };

    fn sqls(from: &Table, to: &Table) -> Vec<String> {
        alter(from, to).into_iter().map(|step| step.sql).collect()
    }

    fn abc() -> Table {
        let columns = ["a", "b", "c"].map(|name| column(name, "bigint", 20, -1));
        table("t", columns.into(), &["a"])
    }

    #[test]
    fn columns_are_added_dropped_retyped_and_renamed() {
        let from = abc();
        assert!(sqls(&from, &from).is_empty());
        let mut to = from.clone();
        to.columns.push(Column {
            default: Some("5".into()),
            not_null: true,
            ..column("d", "integer", 23, -1)
        });
        to.columns.remove(1);
        assert_eq!(
            sqls(&from, &to),
            [
                "ALTER TABLE \"public\".\"t\" DROP COLUMN \"b\" CASCADE",
                "ALTER TABLE \"public\".\"t\" ADD COLUMN \"d\" integer NOT NULL DEFAULT 5",
            ]
        );
        let mut to = from.clone();
        to.columns[1].name = "x".into();
        assert_eq!(sqls(&from, &to), ["ALTER TABLE \"public\".\"t\" RENAME COLUMN \"b\" TO \"x\""]);
        let mut to = from.clone();
        to.columns[1].source_type = "text".into();
        to.columns[1].not_null = true;
        assert_eq!(
            sqls(&from, &to),
            ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" TYPE text USING \"b\"::text::text"]
        );
    }

    #[test]
    fn an_added_column_holds_in_the_rows_before_what_the_catalog_says() {
        let from = abc();
        let added = |default: Option<&str>, before: Option<Before>, not_null| {
            let mut to = from.clone();
            let default = default.map(Into::into);
            let new = Column {
                default,
                before,
                not_null,
                number: Some(4),
                ..column("d", "text", 25, -1)
            };
            to.columns.push(new);
            let [add] = sqls(&from, &to).try_into().unwrap();
            (add.split_once("text").unwrap().1.to_owned(), defaults(&from, &to).len())
        };
        let value = || Some(Before::Value("it's".into()));
        assert_eq!(added(Some("'5'"), value(), false), (" DEFAULT 'it''s'::text".into(), 1));
        assert_eq!(added(Some("'5'"), Some(Before::Null), false), (String::new(), 1));
        assert_eq!(added(Some("'5'"), None, false), (" DEFAULT '5'".into(), 1));
        // Changes gave them values before it became NOT NULL.
        assert_eq!(added(Some("'5'"), Some(Before::Null), true), (String::new(), 1));
        let must = added(Some("'5'"), None, true);
        assert_eq!(must, (" NOT NULL DEFAULT '5'".into(), 1));
        // It was dropped since, and is dropped.
        assert_eq!(added(None, value(), false), (" DEFAULT 'it''s'::text".into(), 1));
        assert_eq!(added(None, None, false), (String::new(), 0));
    }

    #[test]
    fn what_rows_before_a_column_hold_is_no_difference() {
        let mut from = abc();
        from.columns[1].before = Some(Before::Null);
        let mut to = abc();
        assert!(sqls(&from, &to).is_empty());
        to.columns[1].name = "x".into();
        assert_eq!(sqls(&from, &to).len(), 1, "it was renamed");
    }

    #[test]
    fn a_column_that_is_dropped_and_made_again_is_another_one() {
        let mut from = abc();
        (1..).zip(&mut from.columns).for_each(|(n, column)| column.number = Some(n));
        let mut to = from.clone();
        let mut anew =
            Column { number: Some(4), default: Some("5".into()), ..to.columns.remove(0) };
        anew.not_null = true;
        to.columns.push(anew);
        let [drop_key, drop, add, key] = sqls(&from, &to).try_into().unwrap();
        assert!(drop_key.starts_with("DO 'DECLARE"));
        assert_eq!(drop, "ALTER TABLE \"public\".\"t\" DROP COLUMN \"a\" CASCADE");
        assert!(add.contains("ADD COLUMN \"a\" bigint NOT NULL DEFAULT 5"), "{add}");
        assert!(key.contains("ADD PRIMARY KEY (\"a\")"), "{key}");
        // Of a version that the stream alone told of the numbers are not known.
        from.columns.iter_mut().for_each(|column| column.number = None);
        assert!(sqls(&from, &to).is_empty());
    }

    #[test]
    fn a_default_that_is_no_more_is_dropped_if_the_catalog_says_so() {
        let mut from = abc();
        from.columns[1].default = Some("7".into());
        let mut to = abc();
        to.columns[0].not_null = false;
        assert!(defaults(&from, &to).is_empty(), "the stream alone does not say");
        to.columns[0].not_null = true;
        assert_eq!(
            defaults(&from, &to),
            ["ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" DROP DEFAULT"]
        );
    }

    #[test]
    fn a_computed_column_gets_another_expression_where_it_stands_or_is_made_anew() {
        let mut from = abc();
        for at in [1, 2] {
            from.columns[at].generated = Some("stored".into());
            from.columns[at].default = Some("a * 2".into());
        }
        let mut to = from.clone();
        to.columns[1].default = Some("a * 3".into());
        let table = "ALTER TABLE \"public\".\"t\"";
        let drop = format!("{table} ALTER COLUMN \"b\" DROP EXPRESSION");
        let mut plain = from.clone();
        plain.columns[1] = abc().columns[1].clone();
        assert_eq!(sqls(&from, &plain), [drop]);
        let anew = [
            format!("{table} DROP COLUMN \"b\" CASCADE"),
            format!("{table} ADD COLUMN \"b\" bigint GENERATED ALWAYS AS (a * 2) STORED"),
        ];
        assert_eq!(sqls(&plain, &from), anew);
        let set = format!("{table} ALTER COLUMN \"b\" SET EXPRESSION AS (a * 3)");
        assert_eq!(sqls(&from, &to), [set]);
        let mut to = from.clone();
        to.columns[2].source_type = "numeric".into();
        let anew = [
            format!("{table} DROP COLUMN \"c\" CASCADE"),
            format!("{table} ADD COLUMN \"c\" numeric GENERATED ALWAYS AS (a * 2) STORED"),
        ];
        assert_eq!(sqls(&from, &to), anew);
        // What was dropped and made anew stands behind the others.
        let mut to = from.clone();
        to.columns[1].default = Some("a * 3".into());
        to.columns.swap(1, 2);
        let anew = [
            format!("{table} DROP COLUMN \"b\" CASCADE"),
            format!("{table} ADD COLUMN \"b\" bigint GENERATED ALWAYS AS (a * 3) STORED"),
        ];
        assert_eq!(sqls(&from, &to), anew);
    }

    #[test]
    fn what_a_column_is_computed_of_comes_before_it_and_goes_behind_it() {
        let table = "ALTER TABLE \"public\".\"t\"";
        let mut from = abc();
        for at in [1, 2] {
            from.columns[at].generated = Some("stored".into());
            from.columns[at].default = Some("a * 2".into());
        }
        // It needs no value until all rows are there.
        let mut to = from.clone();
        to.columns.push(column("x", "bigint", 20, -1));
        to.columns[1].default = Some("x * 3".into());
        to.columns[1].not_null = true;
        let mut held = from.clone();
        held.columns[1].not_null = true;
        let wanted = [
            format!("{table} ALTER COLUMN \"b\" DROP NOT NULL"),
            format!("{table} ADD COLUMN \"x\" bigint"),
            format!("{table} ALTER COLUMN \"b\" SET EXPRESSION AS (x * 3)"),
        ];
        assert_eq!(sqls(&held, &to), wanted);
        assert_eq!(sqls(&from, &to), wanted[1..]);
        // One that comes before what it is computed of gets its expression behind that.
        let mut to = from.clone();
        to.columns.push(column("x", "bigint", 20, -1));
        to.columns[2].default = Some("x * 3".into());
        let anew = [
            format!("{table} DROP COLUMN \"c\" CASCADE"),
            format!("{table} ADD COLUMN \"c\" bigint GENERATED ALWAYS AS (NULL) STORED"),
            format!("{table} ADD COLUMN \"x\" bigint"),
            format!("{table} ALTER COLUMN \"c\" SET EXPRESSION AS (x * 3)"),
        ];
        assert_eq!(sqls(&from, &to), anew);
        // What is there already it may name at once, wherever that stands.
        let [_, second] = &from.columns[..2] else { panic!() };
        let ahead = Column { default: Some("c * 2".into()), ..second.clone() };
        let mut to = abc();
        to.columns[1] = ahead;
        let mut before = to.clone();
        before.columns.remove(1);
        let add = format!("{table} ADD COLUMN \"b\" bigint GENERATED ALWAYS AS (c * 2) STORED");
        assert_eq!(sqls(&before, &to), [add]);
        // Another column has the name of the one that it was computed of.
        let numbered = |numbers: [u16; 3]| {
            let mut table = from.clone();
            table.key.clear();
            for (column, number) in table.columns.iter_mut().zip(numbers) {
                column.number = Some(number);
            }
            table
        };
        let (was, mut is) = (numbered([1, 2, 3]), numbered([4, 2, 3]));
        is.columns.rotate_left(1);
        let mut steps = sqls(&was, &is);
        steps.retain(|step| step.contains("\"b\""));
        let of = |name: &str, how: &str| format!("{table} ALTER COLUMN \"{name}\" {how}");
        let [of_nothing, of_a] =
            ["NULL", "a * 2"].map(|of_what| format!("SET EXPRESSION AS ({of_what})"));
        assert_eq!(steps, [of("b", &of_nothing), of("b", &of_a)]);
        // It is computed of nothing while that gets another type.
        let mut to = from.clone();
        to.key.clear();
        let mut from = to.clone();
        from.columns.push(column("d", "text", 25, -1));
        to.columns.push(column("d", "text", 25, -1));
        to.columns[0].source_type = "numeric".into();
        let of = |name: &str, how: &str| format!("{table} ALTER COLUMN \"{name}\" {how}");
        assert_eq!(
            sqls(&from, &to),
            [
                of("b", "SET EXPRESSION AS (NULL)"),
                of("c", "SET EXPRESSION AS (NULL)"),
                of("a", "TYPE numeric USING \"a\"::text::numeric"),
                of("b", "SET EXPRESSION AS (a * 2)"),
                of("c", "SET EXPRESSION AS (a * 2)"),
            ]
        );
    }

    #[test]
    fn a_rename_is_told_from_a_drop_and_an_addition() {
        let from = abc();
        let mut to = from.clone();
        to.columns.remove(0);
        to.columns[0].name = "x".into();
        assert_eq!(guessed(&from, &to), [("b", "x")]);
        let mut to = from.clone();
        to.columns.remove(1);
        to.columns.push(column("x", "text", 25, -1));
        assert!(guessed(&from, &to).is_empty());
        let mut to = from.clone();
        to.columns[2] = column("x", "text", 25, -1);
        assert!(guessed(&from, &to).is_empty());
    }

    /// A column of the target, and of which of the source's it has the values.
    type Held = (String, u16);

    /// What the statements make of the target's columns.
    fn run(target: &mut Vec<Held>, steps: &[String], to: &Table) {
        let name = |quoted: &str| quoted.trim_matches('"').to_owned();
        for step in steps {
            let words: Vec<&str> = step.split(['"']).collect();
            let at = |wanted: &str| target.iter().position(|(own, _)| own == wanted);
            if step.contains(" RENAME COLUMN ") {
                let at = at(words[5]).unwrap_or_else(|| panic!("{step}: {target:?}"));
                target[at].0 = name(words[7]);
            } else if step.contains(" DROP COLUMN ") {
                let at = at(words[5]).unwrap_or_else(|| panic!("{step}: {target:?}"));
                target.remove(at);
            } else if step.contains(" ADD COLUMN ") {
                assert!(at(words[5]).is_none(), "{step}: {target:?}");
                // Its values are those of the source's column, if rows have some already.
                target.push((name(words[5]), 0));
            } else {
                assert!(step.starts_with("DO '") || step.contains("PRIMARY KEY"), "{step}");
            }
        }
        assert_eq!(target.len(), to.columns.len(), "{steps:?}: {target:?}");
    }

    #[test]
    fn whatever_is_known_of_versions_a_column_that_stays_keeps_its_values() {
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut source: Vec<Held> = (1..=3).map(|n| (format!("c{n}"), n)).collect();
            let of = |source: &[Held]| {
                let columns = source.iter().map(|(name, number)| Column {
                    number: Some(*number),
                    ..column(name, "bigint", 20, -1)
                });
                table("t", columns.collect(), &[])
            };
            let (mut live, mut target) = (Arc::new(of(&source)), source.clone());
            let mut last = 3;
            for _ in 0..6 {
                // What the stream alone tells has no numbers: names must do, where nothing comes for what goes.
                let (plain, drops) = (rng.bool(), rng.bool());
                for _ in 0..rng.u32(1..4) {
                    let at = rng.usize(0..=source.len());
                    // What the stream alone told of stays until its number is known.
                    let is_known = |at: usize| {
                        let own = |column: &&Column| column.name == source[at].0;
                        live.columns.iter().find(own).is_none_or(|own| own.number.is_some())
                    };
                    if !plain && (0..source.len()).any(|at| !is_known(at)) {
                        continue;
                    }
                    let what = if plain { 2 * u32::from(!drops) } else { rng.u32(0..3) };
                    match what {
                        0 if at < source.len() && source.len() > 1 => drop(source.remove(at)),
                        1 if at < source.len() && !plain => {
                            let other = rng.usize(0..source.len());
                            let name = source[other].0.clone();
                            source[other].0 = std::mem::replace(&mut source[at].0, name);
                        }
                        _ if plain && drops => {}
                        _ => {
                            last += 1;
                            let names = [format!("c{last}"), "c1".into()];
                            let free = |name: &&String| source.iter().all(|(own, _)| own != *name);
                            let reused = names[1..].iter().find(|name| !plain && free(name));
                            source.push((reused.unwrap_or(&names[0]).clone(), last));
                        }
                    }
                }
                let mut to = of(&source);
                if plain {
                    to.columns.iter_mut().for_each(|column| column.number = None);
                }
                let to = numbered(&live, &Arc::new(to));
                run(&mut target, &sqls(&live, &to), &to);
                // Rows of the source have values in new columns from now on: those of the lake.
                for (name, held) in &mut target {
                    let (_, number) = source.iter().find(|(own, _)| own == name).unwrap();
                    assert!(*held == 0 || held == number, "{seed}: {name} {source:?}");
                    *held = *number;
                }
                live = to;
            }
        }
    }

    #[test]
    fn nothing_is_told_not_null_that_was_not() {
        let from = abc();
        let mut to = from.clone();
        to.columns[1].not_null = true;
        let lone = Column { not_null: true, ..column("d", "text", 25, -1) };
        to.columns.push(lone.clone());
        to.columns.push(Column { name: "e".into(), default: Some("5".into()), ..lone });
        let [d, e] = alter(&from, &to).try_into().unwrap();
        let table = "ALTER TABLE \"public\".\"t\"";
        assert_eq!(d, format!("{table} ADD COLUMN \"d\" text").into());
        assert_eq!(e.sql, format!("{table} ADD COLUMN \"e\" text NOT NULL DEFAULT 5"));
        let otherwise = e.otherwise.unwrap();
        assert_eq!(otherwise.sql, format!("{table} ADD COLUMN \"e\" text DEFAULT 5"));
        let eased = eased(&from, &to);
        let not_null: Vec<bool> = eased.columns.iter().map(|column| column.not_null).collect();
        assert_eq!(not_null, [true, false, false, false, true]);
    }

    /// A table of some columns, a few of which are computed of others.
    fn some(rng: &mut fastrand::Rng) -> Table {
        let numbers: Vec<u16> = (1..=5).filter(|_| rng.u8(0..4) > 0).collect();
        let columns = numbers.iter().map(|number| {
            let source_type = ["bigint", "text"][rng.usize(0..2)];
            let default = rng.bool().then(|| ["5", "6"][rng.usize(0..2)].to_owned());
            let of = column(&format!("c{number}"), source_type, 20, -1);
            Column { number: Some(*number), not_null: rng.bool(), default, ..of }
        });
        let mut made = Table { columns: columns.collect(), ..table("t", vec![], &[]) };
        let (computed, plain): (Vec<usize>, Vec<usize>) =
            (0..made.columns.len()).partition(|_| rng.u8(0..3) == 0);
        for at in computed {
            let of = plain.get(rng.usize(0..5)).map(|at| made.columns[*at].name.clone());
            made.columns[at].generated = Some("stored".into());
            made.columns[at].default = Some(of.unwrap_or("5".into()));
        }
        let mut named = made.columns.iter().filter(|own| own.generated.is_none());
        made.key.extend(named.next().filter(|_| rng.bool()).map(|own| own.name.clone()));
        // The stream alone does not say it of the key.
        let is_told = rng.bool();
        for own in made.columns.iter_mut().filter(|own| made.key.contains(&own.name)) {
            own.not_null = is_told;
        }
        made
    }

    /// What a server says to statements: of each column, by its name, whether it is NOT NULL and what it is computed of.
    #[derive(Debug)]
    struct Server(BTreeMap<String, (bool, Option<String>)>);

    impl Server {
        fn new(table: &Table) -> Self {
            let of = |own: &Column| (is_not_null(table, own), computed(own).map(Into::into));
            Self(table.columns.iter().map(|own| (own.name.clone(), of(own))).collect())
        }

        fn run(&mut self, step: &str) {
            assert!(!step.contains("SET NOT NULL"), "{step}");
            let name = step.split('"').nth(5).unwrap_or_default().to_owned();
            let of = |text: &str| text.split(['(', ')']).next().unwrap().to_owned();
            let names = |server: &Self, expression: &String| {
                assert!(!expression.starts_with('c') || server.0[expression].1.is_none(), "{step}");
            };
            if let Some((_, how)) = step.split_once(" ADD COLUMN ") {
                let expression = how.split_once(" AS (").map(|(_, expression)| of(expression));
                expression.iter().for_each(|expression| names(self, expression));
                let there = self.0.insert(name, (how.contains(" NOT NULL"), expression));
                assert!(there.is_none(), "{step}");
            } else if step.contains(" DROP COLUMN ") {
                self.assert_free(&name, step);
                self.0.remove(&name).unwrap();
            } else if step.contains(" TYPE ") {
                self.assert_free(&name, step);
            } else if let Some((_, expression)) = step.split_once(" SET EXPRESSION AS (") {
                let expression = of(expression);
                names(self, &expression);
                // Rows lack what it is computed of.
                assert!(!self.0[&name].0, "{step}");
                self.0.get_mut(&name).unwrap().1 = Some(expression);
            } else if step.contains(" DROP EXPRESSION") {
                self.0.get_mut(&name).unwrap().1 = None;
            } else if step.contains(" DROP NOT NULL") || step.contains(" ADD PRIMARY KEY ") {
                self.0.get_mut(&name).unwrap().0 = step.contains(" ADD PRIMARY KEY ");
            }
        }

        fn assert_free(&self, name: &str, step: &str) {
            let named = self.0.values().find(|(_, of)| of.as_deref() == Some(name));
            assert!(named.is_none(), "{step}: {self:?}");
        }
    }

    #[test]
    fn a_table_is_eased_to_what_its_statements_make_of_it() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (from, to) = (some(&mut rng), some(&mut rng));
            let (mut server, steps) = (Server::new(&from), sqls(&from, &to));
            steps.iter().for_each(|step| server.run(step));
            let wanted = Server::new(&eased(&from, &to));
            assert_eq!(server.0, wanted.0, "{seed}: {steps:?}");
        }
    }

    #[test]
    fn what_names_old_rows_comes_and_goes_with_its_index() {
        let named_by = |names: &[&str], identity| {
            let mut table = abc();
            table.identity = identity;
            for column in &mut table.columns {
                column.identity = names.contains(&column.name.as_str());
            }
            table
        };
        let table = "ALTER TABLE \"public\".\"t\"";
        let plain = named_by(&["a"], Identity::Default);
        let by_bc = named_by(&["b", "c"], Identity::Index);
        let unique = format!("{table} ADD UNIQUE (\"b\", \"c\")");
        let of_identity = |how: &str| format!("{table} REPLICA IDENTITY {how}");
        // Rows with a key may be in doubt yet.
        assert_eq!(sqls(&plain, &by_bc), [of_identity("DEFAULT")]);
        let keyless = |table: &Table| Table { key: vec![], ..table.clone() };
        let [made, default] = sqls(&keyless(&plain), &keyless(&by_bc)).try_into().unwrap();
        assert!(made.contains(&unique), "{made}");
        assert_eq!(default, of_identity("DEFAULT"));
        // It may not be there yet where the key goes.
        let [_, drop, made] = sqls(&by_bc, &keyless(&by_bc)).try_into().unwrap();
        assert!(drop.contains("contype = ''p''") && made.contains(&unique), "{drop}: {made}");
        // Its columns have other names, and that is all.
        let mut renamed = by_bc.clone();
        renamed.columns[1].name = "x".into();
        assert_eq!(sqls(&by_bc, &renamed).len(), 2);
        // The key's columns are unique anyway.
        let by_a = named_by(&["a"], Identity::Index);
        let [first, drop] = sqls(&by_bc, &by_a).try_into().unwrap();
        assert_eq!(first, of_identity("DEFAULT"));
        assert!(drop.contains("contype = ''u''") && drop.contains("IN (''b'', ''c'')"), "{drop}");
        let [_, drop, full] = sqls(&by_bc, &named_by(&[], Identity::Full)).try_into().unwrap();
        assert!(drop.starts_with("DO 'DECLARE"), "{drop}");
        assert_eq!(full, of_identity("FULL"));
        let [_, drop, unique] = sqls(&by_a, &keyless(&by_a)).try_into().unwrap();
        assert!(drop.contains("contype = ''p''"), "{drop}");
        assert!(unique.contains("ADD UNIQUE (\"a\")"), "{unique}");
    }

    #[test]
    fn an_expression_whose_columns_have_other_names_is_the_same() {
        // It keeps its place, and no server is asked for another expression.
        let mut from = abc();
        from.columns[1].generated = Some("stored".into());
        from.columns[1].default = Some("(a * 2)".into());
        (1..).zip(&mut from.columns).for_each(|(n, column)| column.number = Some(n));
        let mut to = from.clone();
        to.columns[0].name = "aa".into();
        to.key = vec!["aa".into()];
        to.columns[1].default = Some("(aa * 2)".into());
        let [rename] = sqls(&from, &to).try_into().unwrap();
        assert!(rename.ends_with("RENAME COLUMN \"a\" TO \"aa\""), "{rename}");
    }

    #[test]
    fn a_column_that_the_stream_alone_told_of_takes_nothing_from_the_others() {
        let mut from = abc();
        (1..).zip(&mut from.columns).for_each(|(n, column)| column.number = Some(n));
        let mut to = abc();
        to.columns.push(column("d", "text", 25, -1));
        let [add] = sqls(&from, &to).try_into().unwrap();
        let to = numbered(&from, &Arc::new(to));
        assert_eq!(sqls(&from, &to), [add]);
        let numbers: Vec<_> = to.columns.iter().map(|column| column.number).collect();
        assert_eq!(numbers, [Some(1), Some(2), Some(3), None]);
        let [drop] = sqls(&to, &from).try_into().unwrap();
        assert!(drop.contains("DROP COLUMN \"d\""), "{drop}");
    }

    #[test]
    fn columns_that_have_numbers_are_the_same_whatever_they_are_called() {
        let mut from = abc();
        (1..).zip(&mut from.columns).for_each(|(n, column)| column.number = Some(n));
        // RENAME a TO aa; ADD a.
        let mut to = from.clone();
        to.columns[0].name = "aa".into();
        to.key = vec!["aa".into()];
        to.columns.push(Column { number: Some(4), ..column("a", "text", 25, -1) });
        let table = "ALTER TABLE \"public\".\"t\"";
        let rename = format!("{table} RENAME COLUMN \"a\" TO \"aa\"");
        assert_eq!(sqls(&from, &to), [rename, format!("{table} ADD COLUMN \"a\" text")]);
        // b and c change their names; another type in the same step.
        let mut to = from.clone();
        to.columns[1].name = "c".into();
        to.columns[2].name = "b".into();
        to.columns[2].source_type = "text".into();
        let rename = |before: &str, after: &str| {
            format!("{table} RENAME COLUMN \"{before}\" TO \"{after}\"")
        };
        let between = ["lakehead renamed 0", "lakehead renamed 1"];
        let [one, two] = between;
        let wanted = [rename("b", one), rename("c", two), rename(one, "c"), rename(two, "b")];
        let found = sqls(&from, &to);
        assert_eq!(found[..4], wanted);
        assert_eq!(
            found[4],
            format!("{table} ALTER COLUMN \"b\" TYPE text USING \"b\"::text::text")
        );
        // DROP b; RENAME c TO b.
        let mut to = from.clone();
        to.columns.remove(1);
        to.columns[1].name = "b".into();
        let drop = format!("{table} DROP COLUMN \"b\" CASCADE");
        assert_eq!(sqls(&from, &to), [drop, rename("c", "b")]);
    }

    #[test]
    fn a_table_moves_and_its_key_changes() {
        let from = abc();
        let mut to = from.clone();
        to.schema = "s".into();
        to.name = "u".into();
        to.key = vec!["b".into()];
        let steps = sqls(&from, &to);
        assert_eq!(steps[0], "ALTER TABLE \"public\".\"t\" SET SCHEMA \"s\"");
        assert_eq!(steps[1], "ALTER TABLE \"s\".\"t\" RENAME TO \"u\"");
        assert!(steps[2].contains("DROP CONSTRAINT"));
        assert_eq!(steps[3], "ALTER TABLE \"s\".\"u\" ADD PRIMARY KEY (\"b\")");
    }
}
