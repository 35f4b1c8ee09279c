//! From one version of a table to the next: the statements between two definitions. Pure.
//!
//! The stream does not say ALTER TABLE: only the columns before and after are known. A column that
//! is gone where another of its type stands now, followed by the same columns as before, was renamed:
//! new columns come last in PostgreSQL. Of the last columns it is taken for renamed too if nothing
//! but the name differs. Where columns have numbers, one of the same name and another number was dropped and made
//! again. An added column has in the rows that are there what the source's catalog says; where it says nothing, its
//! plain default, which is what they got unless it was changed since.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::schema::{self, column, computed, plain_default, qualified, same_names, set_default};
use crate::{
    journal::{Before, Column},
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

/// What is done where rows that are there refuse a statement: what the source made of them is in no stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Otherwise {
    /// The statement; empty for none.
    pub sql: String,
    /// What that makes of the table, for people.
    pub note: String,
}

impl From<String> for Alteration {
    fn from(sql: String) -> Self {
        Self { sql, otherwise: None }
    }
}

/// The statements that make `from` into `to`, in order.
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
    let replaced =
        |name: &String| to.columns.iter().any(|new| new.name == *name && is_another(from, new));
    let rekey = !same_names(&from.key, &to.key) || to.key.iter().any(replaced);
    if rekey && !from.key.is_empty() {
        steps.push(drop_primary_key(to).into());
    }
    let renamed = renames(from, to);
    for old in &from.columns {
        let (before, after) = (escape_identifier(&old.name), escape_identifier(now(&renamed, old)));
        let stays = |new: &Column| new.name == old.name && !is_another(from, new);
        if before != after {
            steps.push(format!("ALTER TABLE {table} RENAME COLUMN {before} TO {after}").into());
        } else if !to.columns.iter().any(stays) {
            steps.push(format!("ALTER TABLE {table} DROP COLUMN {before} CASCADE").into());
        }
    }
    for new in &to.columns {
        let was = |old: &&Column| {
            now(&renamed, old) == new.name && (old.name != new.name || !is_another(from, new))
        };
        match from.columns.iter().find(was) {
            Some(old) => steps.extend(alter_column(from, to, old, new)),
            None => {
                steps.push(added(&table, new));
            }
        }
    }
    if rekey && !to.key.is_empty() {
        let key: Vec<String> = to.key.iter().map(|name| escape_identifier(name)).collect();
        steps.push(format!("ALTER TABLE {table} ADD PRIMARY KEY ({})", key.join(", ")).into());
    }
    steps
}

/// The statement for a column that comes.
fn added(table: &str, new: &Column) -> Alteration {
    let filled = filled(new).filter(|_| computed(new).is_none());
    let default = filled.map(|value| format!(" DEFAULT {value}")).unwrap_or_default();
    let without = Column { not_null: false, ..new.clone() };
    let add = |column: &Column| {
        format!("ALTER TABLE {table} ADD COLUMN {}{default}", schema::column(column))
    };
    let otherwise = new.not_null.then(|| Otherwise {
        sql: add(&without),
        note: format!("rows lack a value in the column {}, which is NOT NULL", new.name),
    });
    Alteration { sql: add(new), otherwise }
}

/// Whether a column is another one than that of its name before: it was dropped, and made again.
fn is_another(from: &Table, new: &Column) -> bool {
    let old = from.columns.iter().find(|old| old.name == new.name);
    let numbers = old.and_then(|old| Some((old.number?, new.number?)));
    numbers.is_some_and(|(old, new)| old != new)
}

/// What a column of the old version is called in the new one.
fn now<'a>(renamed: &[(&str, &'a str)], old: &'a Column) -> &'a str {
    let new = renamed.iter().find(|(before, _)| *before == old.name);
    new.map_or(old.name.as_str(), |(_, after)| after)
}

/// The statements for a column that stays.
fn alter_column(from: &Table, to: &Table, old: &Column, new: &Column) -> Vec<Alteration> {
    let (table, name) = (qualified(to), escape_identifier(&new.name));
    let retyped = old.source_type != new.source_type;
    let alter = format!("ALTER TABLE {table} ALTER COLUMN {name}");
    let anew = || -> Vec<Alteration> {
        let add = format!("ALTER TABLE {table} ADD COLUMN {}", column(new));
        vec![format!("ALTER TABLE {table} DROP COLUMN {name} CASCADE").into(), add.into()]
    };
    let mut steps: Vec<Alteration> = vec![];
    match (computed(old), computed(new)) {
        (None, None) => {}
        // Dropped and made anew, a column stands behind all that stay.
        (Some(_), None) if is_anew(from, to, &new.name) => {
            let default = filled(new).map(|value| format!(" DEFAULT {value}"));
            let mut steps: Vec<Alteration> = anew();
            steps[1].sql.push_str(&default.unwrap_or_default());
            return steps;
        }
        (Some(_), None) => steps.push(format!("{alter} DROP EXPRESSION").into()),
        (None, Some(_)) => return anew(),
        (Some(before), Some(after)) => {
            let changed = retyped || before != after;
            if changed && !keeps_place(from, to, &new.name) {
                // It was dropped and made anew, or may have been; any server can do that.
                return anew();
            }
            if retyped {
                steps.push(format!("{alter} TYPE {}", new.source_type).into());
            }
            if before != after {
                steps.push(format!("{alter} SET EXPRESSION AS ({after})").into());
            }
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
                note: format!(
                    "values of the column {} do not read as {as_type}, and are NULL up to the next change of their \
                     rows: a statement made others of them, which are in no stream",
                    new.name
                ),
            }),
        });
    }
    // A version known from the stream alone does not say NOT NULL: a key's columns have it anyway.
    if old.not_null != new.not_null && !to.key.contains(&new.name) {
        let what = if new.not_null { "SET" } else { "DROP" };
        let note = format!("rows lack a value in the column {}, which is NOT NULL", new.name);
        let otherwise = new.not_null.then(|| Otherwise { sql: String::new(), note });
        steps.push(Alteration { sql: format!("{alter} {what} NOT NULL"), otherwise });
    }
    steps
}

/// What the rows that are there have in a column that is added.
fn filled(new: &Column) -> Option<String> {
    match &new.before {
        Some(Before::Value(value)) => {
            Some(format!("{}::{}", escape_literal(value).trim_start(), new.source_type))
        }
        // Of one that is NOT NULL there were no rows before.
        Some(Before::Null) if !new.not_null => None,
        Some(Before::Null) | None => plain_default(new).map(Into::into),
    }
}

/// Whether a column that had others behind it has none of them behind it any more.
fn is_anew(from: &Table, to: &Table, name: &str) -> bool {
    let was_last = from.columns.last().is_some_and(|last| last.name == name);
    !was_last && !keeps_place(from, to, name)
}

/// Whether a column has one behind it that was there before.
fn keeps_place(from: &Table, to: &Table, name: &str) -> bool {
    let behind = |table: &Table| {
        let names = table.columns.iter().map(|column| column.name.clone());
        names.skip_while(|own| own != name).skip(1).collect::<Vec<_>>()
    };
    let after = behind(to);
    behind(from).iter().any(|own| after.contains(own))
}

/// Defaults that differ, or went with a type, as statements that may fail.
pub fn defaults(from: &Table, to: &Table) -> Vec<String> {
    let changed = to.columns.iter().filter(|new| {
        let old = from.columns.iter().find(|old| old.name == new.name);
        is_another(from, new)
            || old
                .is_none_or(|old| old.default != new.default || old.source_type != new.source_type)
    });
    let set = changed.filter_map(|column| set_default(to, column));
    set.chain(dropped_defaults(from, to)).collect()
}

/// Defaults that are no more. A version known from the stream alone says of none.
fn dropped_defaults(from: &Table, to: &Table) -> Vec<String> {
    let says = |column: &Column| column.not_null || column.default.is_some();
    let gone = to.columns.iter().filter(|new| {
        let old = from.columns.iter().find(|old| old.name == new.name);
        new.default.is_none()
            && new.generated.is_none()
            && match old.filter(|_| !is_another(from, new)) {
                Some(old) => old.source_type == new.source_type && plain_default(old).is_some(),
                None => new.before.is_some(),
            }
    });
    let drop = |column: &Column| {
        let name = escape_identifier(&column.name);
        format!("ALTER TABLE {} ALTER COLUMN {name} DROP DEFAULT", qualified(to))
    };
    if to.is_numbered() || to.columns.iter().any(says) { gone.map(drop).collect() } else { vec![] }
}

/// Columns that were renamed: before and after.
fn renames<'a>(from: &'a Table, to: &'a Table) -> Vec<(&'a str, &'a str)> {
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
            before: None,
            ..column.clone()
        };
        (plain(old) == plain(new)).then_some((old.name.as_str(), new.name.as_str()))
    });
    pairs.collect()
}

/// The constraint's name is not known here: the catalog of the target is asked.
fn drop_primary_key(table: &Table) -> String {
    let name = qualified(table).replace('\'', "''");
    format!(
        "DO $$ DECLARE found name; BEGIN \
         SELECT conname INTO found FROM pg_catalog.pg_constraint \
         WHERE conrelid = '{name}'::regclass AND contype = 'p'; \
         IF found IS NOT NULL THEN EXECUTE pg_catalog.format('ALTER TABLE {} DROP CONSTRAINT %I', found); END IF; \
         END $$",
        name.replace('%', "%%")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{column, table};

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
            [
                "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" TYPE text USING \"b\"::text::text",
                "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"b\" SET NOT NULL",
            ]
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
        // Nothing is NULL where nothing may be.
        let must = added(Some("'5'"), Some(Before::Null), true);
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
        assert!(drop_key.starts_with("DO $$"));
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
    fn a_rename_is_told_from_a_drop_and_an_addition() {
        let from = abc();
        let mut to = from.clone();
        to.columns.remove(0);
        to.columns[0].name = "x".into();
        assert_eq!(renames(&from, &to), [("b", "x")]);
        let mut to = from.clone();
        to.columns.remove(1);
        to.columns.push(column("x", "text", 25, -1));
        assert!(renames(&from, &to).is_empty());
        let mut to = from.clone();
        to.columns[2] = column("x", "text", 25, -1);
        assert!(renames(&from, &to).is_empty());
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
