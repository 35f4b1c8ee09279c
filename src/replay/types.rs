//! Domains and composite types, over all versions of the tables that use them. Pure.
//!
//! They can become others while no table does: a domain gets or loses what its values have to be, a composite type
//! gets, loses or renames attributes. What values have to be may be ahead of the rows, or behind them: a domain is made
//! with what all its definitions say, and becomes what it is to be once all rows are there.

use std::collections::BTreeMap;

use postgres_protocol::escape::escape_identifier;

use crate::{
    journal::{Attribute, Domain, TypeDefinition},
    seal::Table,
};

/// What definitions of types say in parts, as those of an older firmware do not: by the type's number.
#[derive(Debug, Default)]
pub(super) struct Parts {
    domains: BTreeMap<u32, Domain>,
    /// With the statement that makes it so.
    composites: BTreeMap<(u32, String), Vec<Attribute>>,
}

impl Parts {
    /// Of a domain what all its definitions say.
    pub(super) fn of<'a>(tables: impl Iterator<Item = &'a Table>) -> Self {
        let mut parts = Self::default();
        for definition in tables.flat_map(|table| &table.types) {
            let (id, create) = (definition.id, &definition.create);
            if let Some(attributes) = &definition.attributes {
                parts.composites.insert((id, create.clone()), attributes.clone());
            }
            let Some(domain) = &definition.domain else { continue };
            match parts.domains.get_mut(&id) {
                None => drop(parts.domains.insert(id, domain.clone())),
                Some(known) => {
                    known.not_null &= domain.not_null;
                    known.checks.retain(|_, check| has(domain, check));
                }
            }
        }
        parts
    }

    /// A definition with its parts, if any definition of its type tells them.
    fn complete(&self, definition: &TypeDefinition) -> TypeDefinition {
        let mut complete = definition.clone();
        if complete.domain.is_none() {
            complete.domain = self.domains.get(&complete.id).cloned();
        }
        if complete.attributes.is_none() {
            let of = (complete.id, complete.create.clone());
            complete.attributes = self.composites.get(&of).cloned();
        }
        complete
    }

    /// A definition as it is made first: of a domain with no more of what its values have to be than all its definitions
    /// say, if that is to be `kept` at all.
    pub(super) fn begun(&self, definition: &TypeDefinition, kept: bool) -> TypeDefinition {
        let complete = self.complete(definition);
        let Some(domain) = &complete.domain else { return complete };
        let always = self.domains.get(&complete.id).filter(|_| kept);
        // Such a one as is not valid comes by ALTER DOMAIN only.
        let is_begun = |check: &String| {
            always.is_some_and(|always| has(always, check)) && !check.ends_with(NOT_VALID)
        };
        let checks = domain.checks.iter().filter(|(_, check)| is_begun(check));
        let begun = Domain {
            base: domain.base.clone(),
            default: None,
            not_null: domain.not_null && always.is_some_and(|always| always.not_null),
            checks: checks.map(|(name, check)| (name.clone(), check.clone())).collect(),
        };
        let mut create = format!("CREATE DOMAIN {} AS {}", complete.name, begun.base);
        if begun.not_null {
            create.push_str(" NOT NULL");
        }
        for (name, check) in &begun.checks {
            create.push_str(&format!(" CONSTRAINT {} {check}", escape_identifier(name)));
        }
        TypeDefinition { create, domain: Some(begun), ..complete }
    }
}

/// Whether a domain has a constraint, whatever it is called.
fn has(domain: &Domain, check: &str) -> bool {
    domain.checks.values().any(|own| own == check)
}

/// The statements that take from a domain what its values do not have to be any more, and give others the names that
/// they have now; and what the domain is then.
pub(super) fn loosened(name: &str, from: &Domain, to: &Domain) -> (Vec<String>, Domain) {
    let (mut steps, mut left) = (vec![], Domain { checks: BTreeMap::new(), ..from.clone() });
    let stays = |check: &str, condition: &str| {
        to.checks.get(check).is_some_and(|wanted| wanted == condition)
    };
    for (check, condition) in &from.checks {
        let quoted = escape_identifier(check);
        if stays(check, condition) {
            left.checks.insert(check.clone(), condition.clone());
            continue;
        }
        let is_free = |wanted: &String| {
            !from.checks.contains_key(wanted) && !left.checks.contains_key(wanted)
        };
        let mut same = to.checks.iter().filter(|(_, wanted)| *wanted == condition);
        match same.find(|(wanted, _)| is_free(wanted)) {
            Some((wanted, _)) => {
                let new = escape_identifier(wanted);
                steps.push(format!("ALTER DOMAIN {name} RENAME CONSTRAINT {quoted} TO {new}"));
                left.checks.insert(wanted.clone(), condition.clone());
            }
            None => {
                steps.push(format!("ALTER DOMAIN {name} DROP CONSTRAINT IF EXISTS {quoted}"));
            }
        }
    }
    if from.not_null && !to.not_null {
        steps.push(format!("ALTER DOMAIN {name} DROP NOT NULL"));
        left.not_null = false;
    }
    (steps, left)
}

/// A statement that may be refused, and what the domain is once it is not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Tightening {
    /// The statement.
    pub(super) sql: String,
    /// What does where rows that are there cannot be looked at, as something else holds the domain: an array, a composite.
    pub(super) unchecked: Option<String>,
    /// What it gives, for people.
    pub(super) what: String,
    /// The domain then, but for the other statements.
    pub(super) gives: Domain,
}

/// The statements that give a domain what it lacks.
pub(super) fn tightened(name: &str, from: &Domain, to: &Domain) -> Vec<Tightening> {
    let mut steps = vec![];
    let none = Domain::default();
    if from.default != to.default {
        let (sql, what) = match &to.default {
            Some(default) => (format!("SET DEFAULT {default}"), format!("DEFAULT {default}")),
            None => ("DROP DEFAULT".into(), "no default".into()),
        };
        let gives = Domain { default: to.default.clone(), ..none.clone() };
        let sql = format!("ALTER DOMAIN {name} {sql}");
        steps.push(Tightening { sql, unchecked: None, what, gives });
    }
    if to.not_null && !from.not_null {
        let gives = Domain { not_null: true, ..none };
        let sql = format!("ALTER DOMAIN {name} SET NOT NULL");
        steps.push(Tightening { sql, unchecked: None, what: "NOT NULL".into(), gives });
    }
    for (check, condition) in
        to.checks.iter().filter(|(check, _)| !from.checks.contains_key(*check))
    {
        let sql =
            format!("ALTER DOMAIN {name} ADD CONSTRAINT {} {condition}", escape_identifier(check));
        let checks = BTreeMap::from([(check.clone(), condition.clone())]);
        let gives = Domain { checks, ..Domain::default() };
        let unchecked = (!condition.ends_with(NOT_VALID)).then(|| format!("{sql}{NOT_VALID}"));
        steps.push(Tightening { sql, unchecked, what: condition.clone(), gives });
    }
    steps
}

/// A domain with what a statement gave it.
pub(super) fn with(mut domain: Domain, step: &Tightening) -> Domain {
    let gives = &step.gives;
    if gives.checks.is_empty() && !gives.not_null {
        domain.default.clone_from(&gives.default);
    }
    domain.not_null |= gives.not_null;
    domain.checks.extend(gives.checks.clone());
    domain
}

/// The statements that make the attributes of a composite type others, known by their numbers. The type of one may have
/// another name since: then it stays what it is.
pub(super) fn altered(name: &str, from: &[Attribute], to: &[Attribute]) -> Vec<String> {
    let now = |old: &Attribute| to.iter().find(|new| new.number == old.number);
    let stay: Vec<_> = from.iter().filter_map(|old| Some((old, now(old)?))).collect();
    let gone = from.iter().filter(|old| now(old).is_none());
    let mut steps: Vec<String> = gone.map(|old| alter(name, "DROP", old, "")).collect();
    steps.extend(renamed(name, &stay));
    let is_retyped = |(old, new): &&(&Attribute, &Attribute)| {
        (old.type_id, old.type_modifier) != (new.type_id, new.type_modifier)
    };
    let retyped = stay.iter().filter(is_retyped);
    steps.extend(
        retyped.map(|(_, new)| alter(name, "ALTER", new, &format!(" TYPE {}", new.source_type))),
    );
    let come = to.iter().filter(|new| stay.iter().all(|(_, own)| own.number != new.number));
    steps.extend(come.map(|new| alter(name, "ADD", new, &format!(" {}", new.source_type))));
    steps
}

/// [`altered`] of a type that nobody knows to be the same: nothing is taken from it. `None`: it would have to be.
pub(super) fn adapted(name: &str, there: &[Attribute], to: &[Attribute]) -> Option<Vec<String>> {
    let stay: Vec<_> = there.iter().zip(to).collect();
    let fits =
        there.len() <= to.len() && stay.iter().all(|(old, new)| old.source_type == new.source_type);
    let mut steps = renamed(name, &stay);
    let come = to.iter().skip(there.len());
    steps.extend(come.map(|new| alter(name, "ADD", new, &format!(" {}", new.source_type))));
    fits.then_some(steps)
}

/// The statements by which attributes that stay get other names. One may have the name of another one that stays.
fn renamed(name: &str, stay: &[(&Attribute, &Attribute)]) -> Vec<String> {
    let renamed = || stay.iter().filter(|(old, new)| old.name != new.name);
    let is_taken = |name: &str| stay.iter().any(|(old, _)| old.name == name);
    let aside =
        |new: &Attribute| Attribute { name: format!("lakehead_{}", new.number), ..new.clone() };
    let mut steps = vec![];
    for (old, new) in renamed() {
        let to = if is_taken(&new.name) { aside(new) } else { (*new).clone() };
        steps.push(alter(name, "RENAME", old, &format!(" TO {}", escape_identifier(&to.name))));
    }
    for (_, new) in renamed().filter(|(_, new)| is_taken(&new.name)) {
        let to = escape_identifier(&new.name);
        steps.push(alter(name, "RENAME", &aside(new), &format!(" TO {to}")));
    }
    steps
}

fn alter(name: &str, how: &str, what: &Attribute, more: &str) -> String {
    format!("ALTER TYPE {name} {how} ATTRIBUTE {}{more}", escape_identifier(&what.name))
}

const NOT_VALID: &str = " NOT VALID";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::sample::table;

    fn domain(not_null: bool, default: Option<&str>, checks: &[(&str, &str)]) -> Domain {
        let checks = checks.iter().map(|(name, check)| ((*name).into(), (*check).into())).collect();
        Domain { base: "text".into(), default: default.map(Into::into), not_null, checks }
    }

    #[test]
    fn a_domain_is_loosened_before_rows_and_tightened_behind_them() {
        let from = domain(true, Some("'a'"), &[("long", "CHECK (x)"), ("odd", "CHECK (y)")]);
        let to = domain(false, None, &[("odd", "CHECK (z)"), ("new", "CHECK (n)")]);
        let (steps, left) = loosened("d", &from, &to);
        assert_eq!(
            steps,
            [
                "ALTER DOMAIN d DROP CONSTRAINT IF EXISTS \"long\"",
                "ALTER DOMAIN d DROP CONSTRAINT IF EXISTS \"odd\"",
                "ALTER DOMAIN d DROP NOT NULL"
            ]
        );
        assert_eq!(left, domain(false, Some("'a'"), &[]));
        let tightenings = tightened("d", &left, &to);
        let sql: Vec<_> = tightenings.iter().map(|step| step.sql.as_str()).collect();
        assert_eq!(
            sql,
            [
                "ALTER DOMAIN d DROP DEFAULT",
                "ALTER DOMAIN d ADD CONSTRAINT \"new\" CHECK (n)",
                "ALTER DOMAIN d ADD CONSTRAINT \"odd\" CHECK (z)",
            ]
        );
        assert_eq!(tightenings.iter().fold(left, with), to);
        assert!(tightened("d", &to, &to).is_empty() && loosened("d", &to, &to).0.is_empty());
        let named = domain(false, None, &[("odd", "CHECK (z)"), ("other", "CHECK (n)")]);
        let renamed = "ALTER DOMAIN d RENAME CONSTRAINT \"new\" TO \"other\"";
        assert_eq!(loosened("d", &to, &named), (vec![renamed.into()], named));
        let strict = domain(true, Some("1"), &[]);
        let steps = tightened("d", &domain(false, None, &[]), &strict);
        assert_eq!(steps.iter().fold(domain(false, None, &[]), with), strict);
    }

    /// Each with its name, type and number; of a type that has another name since `now` follows.
    fn attributes(text: &str) -> Vec<Attribute> {
        let one = |text: &str| {
            let words: Vec<&str> = text.split(':').collect();
            let type_id = u32::try_from(words[1].len()).unwrap();
            let source_type = words.get(3).unwrap_or(&words[1]).to_string();
            let (name, number) = (words[0].to_owned(), words[2].parse().unwrap());
            Attribute { name, source_type, number, type_id, type_modifier: -1 }
        };
        text.split_whitespace().map(one).collect()
    }

    fn short(steps: Vec<String>) -> Vec<String> {
        steps
            .iter()
            .map(|step| step.replace("ALTER TYPE p ", "").replace("ATTRIBUTE ", ""))
            .collect()
    }

    #[test]
    fn attributes_come_go_and_get_other_names_and_types() {
        let from = attributes("a:int:1 b:text:2 c:int:3");
        for (to, steps) in [
            ("a:int:1 b:text:2 c:int:3", &[][..]),
            ("a:int:1 c:int:3 d:int:4", &["DROP \"b\"", "ADD \"d\" int"]),
            ("a:int:1 n:text:2 c:int:3", &["RENAME \"b\" TO \"n\""]),
            (
                "c:int:1 b:text:2 a:int:3",
                &[
                    "RENAME \"a\" TO \"lakehead_1\"",
                    "RENAME \"c\" TO \"lakehead_3\"",
                    "RENAME \"lakehead_1\" TO \"c\"",
                    "RENAME \"lakehead_3\" TO \"a\"",
                ],
            ),
            // Its type has another name.
            ("a:int:1:away.int b:text:2 c:int:3", &[]),
            (
                "a:bigint:1 n:text:2",
                &["DROP \"c\"", "RENAME \"b\" TO \"n\"", "ALTER \"a\" TYPE bigint"],
            ),
        ] {
            assert_eq!(short(altered("p", &from, &attributes(to))), steps, "{to}");
        }
    }

    #[test]
    fn of_a_type_that_may_be_another_one_nothing_is_taken() {
        let there = attributes("a:int:1 b:text:2");
        let of = |to: &str| adapted("p", &there, &attributes(to)).map(short);
        assert_eq!(of("a:int:4 b:text:7"), Some(vec![]));
        let more = ["RENAME \"a\" TO \"n\"", "ADD \"c\" int"].map(String::from);
        assert_eq!(of("n:int:4 b:text:7 c:int:9"), Some(more.into()));
        assert_eq!(of("a:int:1"), None);
        assert_eq!(of("a:int:1 b:int:2"), None);
    }

    #[test]
    fn a_domain_is_made_with_what_all_its_definitions_say() {
        let using = |domain: Option<Domain>| {
            let of = TypeDefinition::new(9, "public.d".into(), "CREATE DOMAIN … NOT NULL".into());
            Table { types: vec![TypeDefinition { domain, ..of }], ..table("t", vec![], &[]) }
        };
        let late = ("late", "CHECK (l) NOT VALID");
        let of = |default, d| domain(true, default, &[("c", "CHECK (x)"), ("d", d), late]);
        let one = using(Some(of(Some("1"), "CHECK (y)")));
        let two = using(Some(of(None, "CHECK (z)")));
        let old = using(None);
        let parts = Parts::of([&one, &two, &old].into_iter());
        for of in [&one, &old] {
            let made = parts.begun(&of.types[0], true);
            assert_eq!(
                made.create,
                "CREATE DOMAIN public.d AS text NOT NULL CONSTRAINT \"c\" CHECK (x)"
            );
            assert_eq!(made.domain, Some(domain(true, None, &[("c", "CHECK (x)")])));
            let bare = parts.begun(&of.types[0], false);
            assert_eq!(bare.create, "CREATE DOMAIN public.d AS text");
            assert_eq!(bare.domain, Some(domain(false, None, &[])));
        }
        let of_no_parts = Parts::default().begun(&old.types[0], true);
        assert_eq!(of_no_parts, old.types[0]);
    }
}
