//! The labels of enums, over all versions of the tables that use them. Pure.
//!
//! An enum is made with all labels of the ledger: whatever version a row was written under, its label is there. They
//! stand in the order in force last; those that have another name since, or went with an enum that was made anew, behind
//! the label that was before them.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_literal;

use crate::seal::Table;

/// Labels in order, by the type's name as SQL spells it.
pub type Labels = BTreeMap<String, Vec<String>>;

/// The labels of all enums that `tables` use, whose definitions are in the order of the ledger.
pub fn labels<'a>(tables: impl Iterator<Item = &'a Table>) -> Labels {
    let tables: Vec<&Table> = tables.collect();
    let enums = || tables.iter().flat_map(|table| &table.types).filter(|of| of.labels.is_some());
    // One may have had several names: all of them are there, for rows that were written under each.
    let mut names: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for definition in enums() {
        names.entry(definition.id).or_default().insert(&definition.name);
    }
    let mut lists: BTreeMap<&str, Vec<&Vec<String>>> = BTreeMap::new();
    for definition in enums() {
        let Some(labels) = &definition.labels else { continue };
        for name in &names[&definition.id] {
            let lists = lists.entry(name).or_default();
            if lists.last() != Some(&labels) {
                lists.push(labels);
            }
        }
    }
    lists.into_iter().map(|(name, lists)| (name.to_owned(), united(&lists))).collect()
}

/// The last list, with what only others have, each behind the label that is before it there.
fn united(lists: &[&Vec<String>]) -> Vec<String> {
    let Some((last, others)) = lists.split_last() else { return vec![] };
    let mut united = (*last).clone();
    for labels in others.iter().rev() {
        let mut place = 0;
        for label in *labels {
            match united.iter().position(|known| known == label) {
                Some(at) => place = at + 1,
                None => {
                    united.insert(place, label.clone());
                    place += 1;
                }
            }
        }
    }
    united
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

/// Whether labels that are there stand in the order in which they are wanted.
pub fn are_in_order(there: &[String], wanted: &[String]) -> bool {
    let places = there.iter().filter_map(|label| wanted.iter().position(|known| known == label));
    places.is_sorted()
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
        let mood = TypeDefinition::new(7, "mood".into(), String::new());
        Table { types: vec![TypeDefinition { labels, ..mood }], ..table("t", vec![], &[]) }
    }

    #[test]
    fn an_enum_has_the_labels_of_all_versions_in_the_last_order() {
        for (versions, expected) in [
            (&["a c", "z a b c"][..], "z a b c"),
            // The definition of another table, which has not heard of all.
            (&["a c", "z a b c", "a c"], "z a b c"),
            // Another name; made anew with fewer, in another order.
            (&["a b c", "z b c"], "a z b c"),
            (&["a b c", "c a"], "c a b"),
        ] {
            let versions: Vec<Table> = versions.iter().map(|labels| using(labels)).collect();
            assert_eq!(labels(versions.iter())["mood"], list(expected));
        }
        assert_eq!(create("mood", &list("a it's")), "CREATE TYPE mood AS ENUM ('a', 'it''s')");
    }

    #[test]
    fn an_order_may_have_gaps() {
        let is = |there, wanted| are_in_order(&list(there), &list(wanted));
        assert!(is("a c", "a b c") && is("a x c", "a c") && is("", "a"));
        assert!(!is("c a", "a b c"));
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
