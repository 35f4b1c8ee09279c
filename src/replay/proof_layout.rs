//! What of a table can be compared with the database, and of which rows. Pure.
//!
//! The lake has a row as it was when it was written: columns that came later stand in the definition only, a value
//! of a type that changed since is printed otherwise now. What the database has of such a value *may* differ
//! although nothing is wrong: it is compared, and if it differs, said to be unknown.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    apply::{Matching, Shape},
    schema::{computed, same_column},
};
use crate::{
    journal::{Column, TypeDefinition},
    seal::Table,
};

/// The columns of a table as they are kept while its state is made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Layout {
    /// Names, in the order of the lake's last definition; without those that the database computes.
    pub(super) columns: Vec<String>,
    /// Their numbers: one of the same name may be another.
    numbers: Vec<Option<u16>>,
    /// What names a row; empty: all its columns together.
    pub(super) key: Vec<String>,
}

/// What is compared of a table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Scope {
    /// Names.
    pub(super) columns: Vec<String>,
    /// Columns that are not, and why.
    pub(super) left_out: BTreeMap<String, String>,
    /// Whether the lake is not told of updates and deletes.
    pub(super) appends: bool,
}

impl Layout {
    /// Of a table of the lake, by its last definition.
    pub(super) fn new(last: &Table) -> Self {
        let own = last.columns.iter().filter(|column| computed(column).is_none());
        let own = own.filter(|column| !is_computed(column));
        let (columns, numbers) = own.map(|column| (column.name.clone(), column.number)).unzip();
        Self { columns, numbers, key: key(last) }
    }

    /// `Err`: rows that were written under `version` are named otherwise than by `last`, and how.
    pub(super) fn names_rows_of(&self, version: &Table, last: &Table) -> Result<(), String> {
        let before = key(version);
        let named = version.columns.iter().filter(|column| before.contains(&column.name));
        let same: BTreeSet<&String> = named
            .map(|column| same_column(last, column).map_or(&column.name, |own| &own.name))
            .collect();
        match same == self.key.iter().collect() {
            true => Ok(()),
            false => Err(format!(
                "its rows were named by ({}) before, and are by ({}) now",
                before.join(", "),
                self.key.join(", ")
            )),
        }
    }

    /// What can be compared with `source`. `Err`: nothing, and why.
    pub(super) fn scope(
        &self,
        last: &Table,
        source: &Table,
        identified: bool,
    ) -> Result<Scope, String> {
        let mut scope = Scope { appends: !identified, ..Scope::default() };
        for column in &last.columns {
            let there = same_column(source, column).filter(|own| own.name == column.name);
            let why = match there {
                None => "the database has it no more; no change since",
                Some(there) if is_computed(column) || is_computed(there) => {
                    "computed by the database, not copied"
                }
                Some(_) => {
                    scope.columns.push(column.name.clone());
                    continue;
                }
            };
            scope.left_out.insert(column.name.clone(), why.into());
        }
        let news = source.columns.iter();
        let news = news.filter(|own| !last.columns.iter().any(|column| column.name == own.name));
        for column in news {
            let why = match is_computed(column) {
                true => "computed by the database, not copied",
                false => "the lake has not heard of it: no change since it came",
            };
            scope.left_out.insert(column.name.clone(), why.into());
        }
        let keys = key(source);
        let same = keys.iter().collect::<BTreeSet<_>>() == self.key.iter().collect();
        if !same || !self.key.iter().all(|name| scope.columns.contains(name)) {
            return Err(format!(
                "its rows are named by ({}) in the database, and by ({}) in the lake",
                keys.join(", "),
                self.key.join(", ")
            ));
        }
        match scope.columns.is_empty() && !last.columns.is_empty() {
            true => Err("it has no column that can be compared".into()),
            false => Ok(scope),
        }
    }
}

/// Whether a row that was written under `version` may have another value in this column of `source` although
/// nothing is wrong.
pub(super) fn is_unsure(version: &Table, source: &Table, name: &str) -> bool {
    let now = source.columns.iter().find(|column| column.name == name);
    let then = now.and_then(|now| Some((same_column(version, now)?, now)));
    let Some((then, now)) = then else { return true };
    NAMES_OF_OBJECTS.contains(&now.type_id)
        || !prints_alike(then, now)
        || (is_own_type(now) && types_changed(&version.types, &source.types))
}

fn key(table: &Table) -> Vec<String> {
    let shape = Shape::new(table);
    match &shape.matching {
        Matching::Key(key) | Matching::Ordered(key) => {
            key.iter().filter_map(|at| shape.columns.get(*at)).map(|own| own.name.clone()).collect()
        }
        Matching::Whole => vec![],
    }
}

fn is_computed(column: &Column) -> bool {
    column.is_computed()
}

/// Whether a value that is kept when one type becomes the other prints the same.
fn prints_alike(then: &Column, now: &Column) -> bool {
    let scale = |column: &Column| (column.type_modifier - 4) & 0xFFFF;
    let both = |types: &[u32]| types.contains(&then.type_id) && types.contains(&now.type_id);
    let same = (then.type_id, then.type_modifier) == (now.type_id, now.type_modifier);
    let bounded = then.type_modifier >= 0 && now.type_modifier >= 0;
    (same && then.source_type == now.source_type)
        || both(&[TEXT, VARCHAR])
        || (both(&[NUMERIC]) && bounded && scale(then) == scale(now))
}

fn is_own_type(column: &Column) -> bool {
    column.type_id >= FIRST_USER_ID || column.source_type.contains('.')
}

/// Whether a type is not what it was, other than that an enum has more labels.
fn types_changed(then: &[TypeDefinition], now: &[TypeDefinition]) -> bool {
    !then.iter().all(|then| {
        let now = now.iter().find(|now| now.name == then.name);
        now.is_some_and(|now| match (&then.labels, &now.labels) {
            (Some(then), Some(now)) => then.iter().all(|label| now.contains(label)),
            _ => then.create == now.create,
        })
    })
}

const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
/// Numbers below it are the server's own.
const FIRST_USER_ID: u32 = 16_384;
/// `reg…` and `aclitem`, and arrays of them, print names of other objects, which can be renamed.
const NAMES_OF_OBJECTS: [u32; 24] = [
    24, 1008, 1034, 1033, 2202, 2207, 2203, 2208, 2204, 2209, 2205, 2210, 2206, 2211, 3734, 3735,
    3769, 3770, 4089, 4090, 4096, 4097, 4191, 4192,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::{column, table};

    fn sample() -> Table {
        let columns = vec![
            column("id", "bigint", 20, -1),
            column("note", "character varying(9)", 1043, 13),
            column("cost", "numeric(8,2)", 1700, (8 << 16 | 2) + 4),
        ];
        table("t", columns, &["id"])
    }

    #[test]
    fn a_column_is_known_by_its_number() {
        let numbered = |names: [(&str, u16); 3]| {
            let mut table = sample();
            for (column, (name, number)) in table.columns.iter_mut().zip(names) {
                (column.name, column.number) = (name.into(), Some(number));
            }
            table.key = vec![names[0].0.into()];
            table
        };
        let then = numbered([("id", 1), ("note", 2), ("cost", 3)]);
        let last = numbered([("key", 1), ("text", 2), ("cost", 4)]);
        let layout = Layout::new(&last);
        assert_eq!(layout.names_rows_of(&then, &last), Ok(()));
        assert!(!is_unsure(&then, &last, "text") && is_unsure(&then, &last, "cost"));
        let now = numbered([("key", 1), ("cost", 2), ("text", 5)]);
        let scope = layout.scope(&last, &now, true).unwrap();
        assert_eq!((scope.columns, scope.left_out.len()), (vec!["key".to_owned()], 2));
    }

    #[test]
    fn what_only_one_side_has_is_left_out_and_said() {
        let (lake, mut source) = (sample(), sample());
        source.columns[2].name = "price".into();
        let layout = Layout::new(&lake);
        let scope = layout.scope(&lake, &source, true).unwrap();
        assert_eq!(scope.columns, ["id", "note"]);
        let out: Vec<_> =
            scope.left_out.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        assert!(out[0].starts_with("cost: the database has it no more"), "{out:?}");
        assert!(out[1].starts_with("price: the lake has not heard"), "{out:?}");
        let mut computed = sample();
        computed.columns[1].generated = Some("stored".into());
        let layout = Layout::new(&computed);
        assert_eq!(layout.columns, ["id", "cost"]);
    }

    #[test]
    fn a_table_whose_rows_are_named_otherwise_is_not_compared() {
        let (lake, mut other) = (sample(), sample());
        other.key = vec!["note".into()];
        other.columns[0].identity = false;
        other.columns[1].identity = true;
        let layout = Layout::new(&lake);
        let said = layout.names_rows_of(&other, &lake).unwrap_err();
        assert!(said.contains("(note) before, and are by (id) now"), "{said}");
        assert!(layout.scope(&lake, &other, true).is_err());
    }

    #[test]
    fn a_value_is_unsure_where_its_type_may_print_it_otherwise() {
        let source = sample();
        let unsure = |change: &dyn Fn(&mut Table), name: &str| {
            let mut then = sample();
            change(&mut then);
            is_unsure(&then, &source, name)
        };
        assert!(!unsure(&|_| {}, "note"));
        assert!(unsure(&|then| then.columns.truncate(1), "note"));
        // Widened, not rewritten.
        assert!(!unsure(&|then| then.columns[1] = column("note", "text", 25, -1), "note"));
        let numeric = |digits: i32, scale: i32| {
            let of = format!("numeric({digits},{scale})");
            column("cost", &of, 1700, (digits << 16 | scale) + 4)
        };
        assert!(!unsure(&|then| then.columns[2] = numeric(6, 2), "cost"));
        assert!(unsure(&|then| then.columns[2] = numeric(8, 3), "cost"));
        assert!(unsure(&|then| then.columns[2] = column("cost", "integer", 23, -1), "cost"));
        // Made again under its name, and not.
        let mut numbered = sample();
        numbered.columns[1].number = Some(4);
        let unsure = |number| {
            let mut then = sample();
            then.columns[1].number = number;
            is_unsure(&then, &numbered, "note")
        };
        assert_eq!([Some(2), Some(4), None].map(unsure), [true, false, false]);
        let mut of = sample();
        of.columns[1] = column("note", "regclass", 2205, -1);
        assert!(is_unsure(&of, &of, "note"));
    }

    #[test]
    fn an_enum_may_grow_and_may_not_be_renamed() {
        let list = |labels: &[&str]| {
            let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
            let mood = TypeDefinition::new(9, "public.mood".into(), String::new());
            vec![TypeDefinition { labels, ..mood }]
        };
        assert!(!types_changed(&list(&["a"]), &list(&["b", "a"])));
        assert!(types_changed(&list(&["a"]), &list(&["b"])));
        assert!(types_changed(&list(&["a"]), &[]));
        assert!(!types_changed(&[], &list(&["a"])));
    }
}
