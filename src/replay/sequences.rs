//! Sequences of a restore: where each is to stand, and the statements that make them. Pure.
//!
//! **Invariant:** none stands behind a value that a row of the restore took from it. It is so without more where no
//! look at or behind the end found it changed: then it stands as in the source. Where it changed in between, or
//! nobody has looked since, the columns that take from it are asked as well.

use std::collections::BTreeMap;

use super::{
    ReplayError,
    read::{Field, Rows},
    schema::{create_schema, identifier, qualified},
};
use crate::{
    journal::{
        Column, Op, Value,
        generator::{Generator, Owner, Stands},
    },
    seal::Table,
    units::Position,
};

/// A sequence to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Chosen {
    pub(super) generator: Generator,
    /// Whether it stands as in the source, for certain.
    pub(super) certain: bool,
}

/// What was looked at: by schema and name.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// At the end, or before it.
    held: BTreeMap<(String, String), Generator>,
    /// Behind it; `None`: it is gone there.
    ahead: BTreeMap<(String, String), Option<Generator>>,
}

impl Looks {
    /// Takes a row of the lake's table, in the order of positions.
    ///
    /// # Errors
    ///
    /// It is none: what is wrong with it.
    pub(super) fn take(&mut self, rows: &Rows, row: usize, end: Position) -> Result<(), String> {
        let meta = rows.meta(row);
        let read = Read { rows, row };
        let key = (read.text("schemaname")?, read.text("sequencename")?);
        let now = match meta.op {
            Op::Delete => None,
            _ => Some(read.generator()?),
        };
        match (meta.position <= end, now) {
            (true, Some(generator)) => drop(self.held.insert(key, generator)),
            (true, None) => drop(self.held.remove(&key)),
            (false, now) => drop(self.ahead.insert(key, now)),
        }
        Ok(())
    }

    /// The sequences at the end. `covered`: a look at it or behind it was taken.
    pub(super) fn choose(self, covered: bool) -> Vec<Chosen> {
        let Self { held, mut ahead } = self;
        let mut chosen: Vec<Chosen> = held
            .into_iter()
            .map(|(key, generator)| match ahead.remove(&key) {
                None => Chosen { generator, certain: covered },
                Some(Some(next)) if next.id == generator.id => {
                    Chosen { generator: farther(&generator, next), certain: false }
                }
                Some(_) => Chosen { generator, certain: false },
            })
            .collect();
        // Made, or renamed, between the two looks: whether before the end is not known.
        for next in ahead.into_values().flatten() {
            if chosen.iter().all(|one| one.generator.id != next.id) {
                chosen.push(Chosen { generator: next, certain: false });
            }
        }
        chosen
    }
}

/// Of two looks at one sequence, with the end between them: as the later one says, where it is not set back.
fn farther(held: &Generator, next: Generator) -> Generator {
    let fits = |stands: &Stands| (next.min..=next.max).contains(&stands.last);
    match (held.stands.filter(fits), next.stands) {
        (Some(one), Some(other)) if !next.cycle && next.is_beyond(one.last, other.last) => {
            Generator { stands: Some(one), ..next }
        }
        (one, None) => Generator { stands: one, ..next },
        _ => next,
    }
}

/// As it is to stand, if columns that take from it hold values up to `greatest`, in its direction.
pub(super) fn at_least(generator: &Generator, greatest: Option<i64>) -> Option<Stands> {
    let Some(greatest) = greatest else { return generator.stands };
    let taken = Stands { last: greatest, called: true };
    match generator.stands {
        Some(stands) if generator.is_beyond(stands.last, greatest) => Some(stands),
        Some(stands) if stands.last == greatest && stands.called => Some(stands),
        _ => Some(taken),
    }
}

/// A row of the lake's table.
struct Read<'a> {
    rows: &'a Rows,
    row: usize,
}

impl Read<'_> {
    fn field(&self, name: &str) -> Result<Field<'_>, String> {
        let at = self.rows.names().position(|own| own == name);
        let at = at.ok_or_else(|| format!("it has no column `{name}`"))?;
        Ok(self.rows.field(self.row, at))
    }

    fn optional_text(&self, name: &str) -> Result<Option<String>, String> {
        match self.field(name)? {
            Field::Value(Value::Text(text) | Value::Exact(text)) => Ok(Some(text.into_owned())),
            Field::Value(Value::Null) => Ok(None),
            _ => Err(format!("`{name}` is no text")),
        }
    }

    fn text(&self, name: &str) -> Result<String, String> {
        self.optional_text(name)?.ok_or_else(|| format!("`{name}` is NULL"))
    }

    fn optional_int(&self, name: &str) -> Result<Option<i64>, String> {
        match self.field(name)? {
            Field::Value(Value::Int(int)) => Ok(Some(int)),
            Field::Value(Value::Null) => Ok(None),
            _ => Err(format!("`{name}` is no number")),
        }
    }

    fn int(&self, name: &str) -> Result<i64, String> {
        self.optional_int(name)?.ok_or_else(|| format!("`{name}` is NULL"))
    }

    fn id(&self, name: &str) -> Result<u32, String> {
        u32::try_from(self.int(name)?).map_err(|_| format!("`{name}` is no number of an object"))
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        match self.field(name)? {
            Field::Value(Value::Boolean(flag)) => Ok(flag),
            _ => Err(format!("`{name}` is neither true nor false")),
        }
    }

    fn generator(&self) -> Result<Generator, String> {
        let stands = match self.optional_int("last_value")? {
            None => None,
            Some(last) => Some(Stands { last, called: self.flag("is_called")? }),
        };
        let owner = match self.optional_int("owner_id")? {
            None => None,
            Some(_) => Some(Owner {
                table_id: self.id("owner_id")?,
                schema: self.text("owner_schema")?,
                table: self.text("owner_table")?,
                column: self.text("owner_column")?,
                identity: self.optional_text("identity")?,
            }),
        };
        let increment = self.int("increment_by")?;
        if increment == 0 {
            return Err("`increment_by` is 0".into());
        }
        Ok(Generator {
            id: self.id("sequence_id")?,
            schema: self.text("schemaname")?,
            name: self.text("sequencename")?,
            data_type: self.text("data_type")?,
            start: self.int("start_value")?,
            min: self.int("min_value")?,
            max: self.int("max_value")?,
            increment,
            cycle: self.flag("cycle")?,
            cache: self.int("cache_size")?,
            stands,
            owner,
        })
    }
}

/// Its name, qualified and quoted.
pub(super) fn name(generator: &Generator) -> String {
    format!("{}.{}", identifier(&generator.schema), identifier(&generator.name))
}

/// Makes one that is not an identity column's, or makes one that is there so.
pub(super) fn create(generator: &Generator) -> String {
    let (name, options) = (name(generator), options(generator));
    let data_type = match generator.data_type.as_str() {
        small @ ("smallint" | "integer") => small,
        _ => "bigint",
    };
    format!(
        "{}; CREATE SEQUENCE IF NOT EXISTS {name}; ALTER SEQUENCE {name} AS {data_type} {options} RESTART WITH {}",
        create_schema(&generator.schema),
        generator.start
    )
}

/// Has a column generate its values; one that does so already begins anew.
pub(super) fn add_identity(table: &Table, column: &Column, generator: &Generator) -> String {
    let (alter, options) = (alter(table, column), options(generator));
    let said = generator.owner.as_ref().and_then(|owner| owner.identity.as_deref());
    let kind = match said.or(column.generated.as_deref()) {
        Some("always") => "ALWAYS",
        _ => "BY DEFAULT",
    };
    // It lies in its table's schema, whatever that is called by now.
    let name = format!("{}.{}", identifier(&table.schema), identifier(&generator.name));
    format!(
        "{alter} SET NOT NULL; {}; {alter} ADD GENERATED {kind} AS IDENTITY (SEQUENCE NAME {name} {options})",
        drop_identity(table, column)
    )
}

/// Has a column generate no values any more.
pub(super) fn drop_identity(table: &Table, column: &Column) -> String {
    format!("{} DROP IDENTITY IF EXISTS", alter(table, column))
}

/// Has it go with its column, or with none.
pub(super) fn own(generator: &Generator, column: Option<(&Table, &Column)>) -> String {
    let by = match column {
        None => "NONE".into(),
        Some((table, column)) => format!("{}.{}", qualified(table), identifier(&column.name)),
    };
    format!("ALTER SEQUENCE {} OWNED BY {by}", name(generator))
}

/// Sets where it stands.
pub(super) fn set(generator: &Generator, stands: Stands) -> String {
    let name = postgres_protocol::escape::escape_literal(&name(generator));
    format!("SELECT pg_catalog.setval({name}, {}, {})", stands.last, stands.called)
}

/// Gives one that is there the name that it has now.
pub(super) fn rename(before: &Generator, now: &Generator) -> String {
    let moved = Generator { schema: now.schema.clone(), ..before.clone() };
    let mut steps = vec![create_schema(&now.schema)];
    if before.schema != now.schema {
        let schema = identifier(&now.schema);
        steps.push(format!("ALTER SEQUENCE {} SET SCHEMA {schema}", name(before)));
    }
    if before.name != now.name {
        steps.push(format!("ALTER SEQUENCE {} RENAME TO {}", name(&moved), identifier(&now.name)));
    }
    steps.join("; ")
}

/// The greatest value of a column, or the smallest for a sequence that goes down; of those that leave it room to go on.
/// `None`: the column holds no such numbers.
pub(super) fn greatest(table: &Table, column: &Column, generator: &Generator) -> Option<String> {
    if !matches!(column.source_type.as_str(), "smallint" | "integer" | "bigint") {
        return None;
    }
    let (min, max) = (generator.min, generator.max);
    let (extreme, least, most) = match generator.increment < 0 {
        true => ("min", min.saturating_add(1), max),
        false => ("max", min, max.saturating_sub(1)),
    };
    let name = identifier(&column.name);
    Some(format!(
        "SELECT pg_catalog.{extreme}({name})::int8 FROM ONLY {} WHERE {name} BETWEEN '{least}'::int8 AND '{most}'::int8",
        qualified(table)
    ))
}

/// The sequence that a default takes from, if it is nothing else: schema and name.
pub(super) fn taken_from(expression: &str) -> Option<(String, String)> {
    let literal = expression.strip_prefix("nextval('")?.strip_suffix("'::regclass)")?;
    let text = literal.replace("''", "'");
    let (schema, rest) = part(&text)?;
    let (name, rest) = part(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some((schema, name))
}

/// The first part of a qualified name, quoted or not, and what follows it.
fn part(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let (mut name, mut signs) = (String::new(), quoted.char_indices().peekable());
    while let Some((at, sign)) = signs.next() {
        if sign == '"' && signs.next_if(|(_, next)| *next == '"').is_none() {
            return Some((name, &quoted[at + 1..]));
        }
        name.push(sign);
    }
    None
}

fn alter(table: &Table, column: &Column) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {}", qualified(table), identifier(&column.name))
}

fn options(generator: &Generator) -> String {
    let Generator { start, min, max, increment, cache, .. } = generator;
    let cycle = if generator.cycle { "CYCLE" } else { "NO CYCLE" };
    format!(
        "INCREMENT BY {increment} MINVALUE {min} MAXVALUE {max} START WITH {start} CACHE {cache} {cycle}"
    )
}

/// A row of the lake's table that is none.
pub(super) fn damaged(key: &str, why: &str) -> ReplayError {
    ReplayError::object(key, format!("a sequence: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{journal::generator::sample::generator, replay::sample};

    fn key(name: &str) -> (String, String) {
        ("public".into(), name.into())
    }

    fn standing(one: &Chosen) -> (i64, bool) {
        (one.generator.stands.unwrap().last, one.certain)
    }

    #[test]
    fn one_that_did_not_change_up_to_a_look_behind_the_end_stands_for_certain() {
        let looks = |ahead: Vec<(&str, Option<Generator>)>| Looks {
            held: BTreeMap::from([(key("s"), generator(1, "s", 10))]),
            ahead: ahead.into_iter().map(|(name, one)| (key(name), one)).collect(),
        };
        let one = |looks: Looks, covered| standing(&looks.choose(covered)[0]);
        assert_eq!(one(looks(vec![]), true), (10, true));
        assert_eq!(one(looks(vec![]), false), (10, false));
        assert_eq!(one(looks(vec![("s", Some(generator(1, "s", 15)))]), true), (15, false));
        // It was set back, or is gone, or another one has its name.
        assert_eq!(one(looks(vec![("s", Some(generator(1, "s", 3)))]), true), (10, false));
        assert_eq!(one(looks(vec![("s", None)]), true), (10, false));
        assert_eq!(one(looks(vec![("s", Some(generator(2, "s", 99)))]), true), (10, false));
        let more = looks(vec![("fresh", Some(generator(3, "fresh", 1)))]).choose(true);
        assert_eq!(more.len(), 2);
        let renamed = looks(vec![("s", None), ("z", Some(generator(1, "z", 12)))]).choose(true);
        assert_eq!((renamed.len(), standing(&renamed[0])), (1, (10, false)));
    }

    #[test]
    fn a_sequence_is_never_behind_its_columns() {
        let up = generator(1, "s", 10);
        let last =
            |one: &Generator, greatest| at_least(one, greatest).map(|at| (at.last, at.called));
        assert_eq!(last(&up, None), Some((10, true)));
        assert_eq!(last(&up, Some(9)), Some((10, true)));
        assert_eq!(last(&up, Some(11)), Some((11, true)));
        let fresh = Generator { stands: Some(Stands { last: 10, called: false }), ..up.clone() };
        assert_eq!(last(&fresh, Some(10)), Some((10, true)));
        assert_eq!(last(&fresh, Some(9)), Some((10, false)));
        let down = Generator { increment: -1, min: -100, max: -1, ..generator(1, "s", -10) };
        assert_eq!(last(&down, Some(-9)), Some((-10, true)));
        assert_eq!(last(&down, Some(-11)), Some((-11, true)));
        let unread = Generator { stands: None, ..up };
        assert_eq!((last(&unread, None), last(&unread, Some(7))), (None, Some((7, true))));
    }

    #[test]
    fn the_statements_quote_and_say_all() {
        let one = Generator {
            increment: -2,
            min: i64::MIN,
            max: -1,
            start: -1,
            cycle: true,
            cache: 5,
            data_type: "integer".into(),
            ..generator(1, "o\"d'd", -7)
        };
        assert_eq!(
            create(&one),
            "CREATE SCHEMA IF NOT EXISTS \"public\"; CREATE SEQUENCE IF NOT EXISTS \"public\".\"o\"\"d'd\"; ALTER SEQUENCE \"public\".\"o\"\"d'd\" AS integer INCREMENT BY -2 MINVALUE -9223372036854775808 MAXVALUE -1 START WITH -1 CACHE 5 CYCLE RESTART WITH -1"
        );
        assert_eq!(
            set(&one, one.stands.unwrap()),
            "SELECT pg_catalog.setval('\"public\".\"o\"\"d''d\"', -7, true)"
        );
        let mut id = sample::column("id", "integer", 23, -1);
        id.generated = Some("always".into());
        let table = sample::table("t", vec![id.clone()], &["id"]);
        assert!(add_identity(&table, &id, &one).contains("DROP IDENTITY IF EXISTS; ALTER TABLE \"public\".\"t\" ALTER COLUMN \"id\" ADD GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME \"public\".\"o\"\"d'd\" INCREMENT"));
        assert!(greatest(&table, &id, &one).unwrap().contains("min(\"id\")"));
        assert_eq!(greatest(&table, &sample::column("n", "text", 25, -1), &one), None);
        let now = Generator { schema: "s".into(), name: "n".into(), ..one.clone() };
        assert!(
            rename(&one, &now)
                .ends_with("SET SCHEMA \"s\"; ALTER SEQUENCE \"s\".\"o\"\"d'd\" RENAME TO \"n\"")
        );
    }

    #[test]
    fn the_sequence_of_a_default_is_found_in_it() {
        let found = |text| taken_from(text).map(|(schema, name)| format!("{schema}|{name}"));
        assert_eq!(found("nextval('public.t_id_seq'::regclass)").unwrap(), "public|t_id_seq");
        assert_eq!(
            found("nextval('\"Büro\".\"o\"\"d''d.x\"'::regclass)").unwrap(),
            "Büro|o\"d'd.x"
        );
        assert_eq!(found("nextval('s'::regclass)"), None);
        assert_eq!(found("('A'::text || nextval('public.s'::regclass))"), None);
        assert_eq!(found("nextval('\"public.s'::regclass)"), None);
    }
}
