//! The labels of enums, over all versions of the tables that use them. Pure.
//!
//! A label can be added to an enum, and none taken away, so the longest list is the latest, in the order
//! in force last. An enum is made with all labels of the ledger: whatever version a row was written
//! under, its label is there.

use std::collections::BTreeMap;

use postgres_protocol::escape::escape_literal;

use crate::seal::Table;

/// Labels in order, by the type's name as SQL spells it.
pub type Labels = BTreeMap<String, Vec<String>>;

/// The labels of all enums that `tables` use.
pub fn labels<'a>(tables: impl Iterator<Item = &'a Table>) -> Labels {
    let mut lists: BTreeMap<&str, Vec<&Vec<String>>> = BTreeMap::new();
    for definition in tables.flat_map(|table| &table.types) {
        if let Some(labels) = &definition.labels {
            lists.entry(&definition.name).or_default().push(labels);
        }
    }
    let united = lists.into_iter().map(|(name, mut lists)| {
        lists.sort_by_key(|labels| std::cmp::Reverse(labels.len()));
        let mut united: Vec<String> = vec![];
        for label in lists.into_iter().flatten() {
            if !united.contains(label) {
                united.push(label.clone());
            }
        }
        (name.to_owned(), united)
    });
    united.collect()
}

/// Makes an enum.
pub fn create(name: &str, labels: &[String]) -> String {
    let labels: Vec<String> = labels.iter().map(|label| escape_literal(label)).collect();
    format!("CREATE TYPE {name} AS ENUM ({})", labels.join(", "))
}

/// The statements that give an enum with the labels `there` those that it lacks, each in its place. Each
/// is to be committed before a row uses the label.
pub fn add(name: &str, there: &[String], wanted: &[String]) -> Vec<String> {
    let mut steps = vec![];
    for (at, label) in wanted.iter().enumerate().filter(|(_, label)| !there.contains(label)) {
        let place = match at.checked_sub(1).and_then(|before| wanted.get(before)) {
            // It is there, or was added just now.
            Some(before) => format!(" AFTER {}", escape_literal(before)),
            None => match there.first() {
                Some(first) => format!(" BEFORE {}", escape_literal(first)),
                None => String::new(),
            },
        };
        let label = escape_literal(label);
        steps.push(format!("ALTER TYPE {name} ADD VALUE IF NOT EXISTS {label}{place}"));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::TypeDefinition, replay::sample::table};

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(String::from).collect()
    }

    fn using(labels: &str) -> Table {
        let labels = Some(list(labels));
        let mood = TypeDefinition { id: 7, name: "mood".into(), create: String::new(), labels };
        Table { types: vec![mood], ..table("t", vec![], &[]) }
    }

    #[test]
    fn an_enum_has_the_labels_of_all_versions_in_the_last_order() {
        let versions = [using("a c"), using("z a b c"), using("a gone c")];
        assert_eq!(labels(versions.iter())["mood"], list("z a b c gone"));
        assert_eq!(create("mood", &list("a it's")), "CREATE TYPE mood AS ENUM ('a', 'it''s')");
    }

    #[test]
    fn labels_that_are_lacking_are_added_in_their_place() {
        let steps = add("mood", &list("a c"), &list("z a b x c"));
        assert_eq!(
            steps,
            [
                "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'z' BEFORE 'a'",
                "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'b' AFTER 'a'",
                "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'x' AFTER 'b'",
            ]
        );
        assert!(add("mood", &list("a c"), &list("a c")).is_empty());
        assert_eq!(add("mood", &[], &list("a")), ["ALTER TYPE mood ADD VALUE IF NOT EXISTS 'a'"]);
    }
}
