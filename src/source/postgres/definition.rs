//! The statements that create the types a table uses and a fresh database lacks.
//!
//! **Invariant:** a type comes after all that its statement names.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    catalog::{FIRST_USER_ID, identifier, quoted},
    error::SourceError,
    labels::{create_enum, labels},
    message::{TextRow, unknown},
    wire::Wire,
};
use crate::source::{Attribute, Domain, TypeDefinition};

/// Types, with all that they are made of.
#[derive(Debug, Default)]
pub(crate) struct Types(BTreeMap<u32, Type>);

#[derive(Debug)]
struct Type {
    name: String,
    kind: Kind,
    output: String,
    /// The extension that brings it: its name and schema.
    extension: Option<(String, String)>,
}

#[derive(Debug)]
enum Kind {
    /// Made in C, or a row of a table: cannot be created by a statement of its own.
    Given,
    Array {
        element: u32,
    },
    Enum {
        labels: Vec<String>,
    },
    Domain {
        base: u32,
        modifier: i32,
        parts: Domain,
    },
    Composite {
        /// Each with its type's number.
        attributes: Vec<(Attribute, u32)>,
    },
    Range {
        subtype: u32,
        /// The options in parentheses.
        options: String,
    },
    Multirange {
        range: u32,
    },
}

impl Types {
    /// Loads `wanted`, and all that they are made of, but what is there.
    pub(crate) async fn load(
        &mut self,
        wire: &mut Wire,
        wanted: Vec<u32>,
    ) -> Result<(), SourceError> {
        let types = &mut self.0;
        let mut missing: BTreeSet<u32> =
            wanted.into_iter().filter(|id| !types.contains_key(id)).collect();
        while !missing.is_empty() {
            let ids: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let rows = wire.query("read types", &TYPES.replace("{ids}", &ids.join(","))).await?;
            let found = rows.len();
            if types.len() + found > TYPES_MAX {
                return Err(unknown("types", "more of them than there can be"));
            }
            for row in &rows {
                let id = row.parse_as(0)?;
                let parsed = parse(row, wire).await?;
                types.insert(id, parsed);
            }
            let named = types.values().flat_map(Type::parts);
            missing = named.filter(|id| !types.contains_key(id)).collect();
            if found == 0 {
                break;
            }
        }
        Ok(())
    }

    /// The type below all domains, with the modifier in force.
    pub(crate) fn base(&self, mut id: u32, mut modifier: i32) -> (u32, i32) {
        // No further than there are types: a server may say that a domain is one over itself.
        for _ in 0..self.0.len() {
            match self.0.get(&id).map(|known| &known.kind) {
                Some(Kind::Domain { base, modifier: of_base, .. }) => {
                    (id, modifier) = (*base, *of_base);
                }
                _ => break,
            }
        }
        (id, modifier)
    }

    /// The function that prints a type's values, as SQL spells it. `None` for a domain: the output
    /// function of its base may not take it (`enum_out` takes no domain over an enum).
    pub(crate) fn output(&self, id: u32) -> Option<String> {
        match self.0.get(&id) {
            None => Some("pg_catalog.unknownout".into()),
            Some(Type { kind: Kind::Domain { .. }, .. }) => None,
            Some(known) => Some(known.output.clone()),
        }
    }

    /// Whether an enum is among what a type is made of.
    pub(crate) fn has_labels(&self, id: u32) -> bool {
        let (mut seen, mut ahead) = (BTreeSet::from([id]), vec![id]);
        while let Some(known) = ahead.pop().map(|id| self.0.get(&id)) {
            match known.map(|known| &known.kind) {
                Some(Kind::Enum { .. }) => return true,
                _ => ahead
                    .extend(known.into_iter().flat_map(Type::parts).filter(|id| seen.insert(*id))),
            }
        }
        false
    }

    /// What has to be created for `used`, in an order in which it can be.
    pub(crate) fn definitions(&self, used: &[u32]) -> Vec<TypeDefinition> {
        let (mut seen, mut ordered) = (BTreeSet::new(), vec![]);
        // Each type twice: its parts are ahead of it the second time. Not by recursion: domains can be thousands deep.
        let mut ahead: Vec<_> = used.iter().rev().map(|id| (*id, false)).collect();
        while let Some((id, is_behind_parts)) = ahead.pop() {
            let Some(known) = self.0.get(&id).filter(|_| id >= FIRST_USER_ID) else { continue };
            if is_behind_parts {
                ordered.extend(known.definition(id));
            } else if seen.insert(id) {
                ahead.push((id, true));
                if known.extension.is_none() {
                    ahead.extend(known.parts().into_iter().rev().map(|part| (part, false)));
                }
            }
        }
        // Several types of one extension come with it once.
        let mut created = BTreeSet::new();
        ordered.retain(|definition: &TypeDefinition| created.insert(definition.create.clone()));
        ordered
    }
}

impl Type {
    /// What creates it, if it has to be created.
    fn definition(&self, id: u32) -> Option<TypeDefinition> {
        let mut definition = TypeDefinition::new(id, self.name.clone(), self.create()?);
        match &self.kind {
            Kind::Enum { labels } => definition.labels = Some(labels.clone()),
            Kind::Domain { parts, .. } if self.extension.is_none() => {
                definition.domain = Some(parts.clone());
            }
            Kind::Composite { attributes } => {
                let attributes = attributes.iter().map(|(attribute, _)| attribute.clone());
                definition.attributes = Some(attributes.collect());
            }
            _ => {}
        }
        Some(definition)
    }

    /// The types that it is made of.
    fn parts(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Given | Kind::Enum { .. } => vec![],
            Kind::Array { element: part }
            | Kind::Domain { base: part, .. }
            | Kind::Range { subtype: part, .. }
            | Kind::Multirange { range: part } => vec![*part],
            Kind::Composite { attributes } => attributes.iter().map(|(_, id)| *id).collect(),
        }
    }

    fn create(&self) -> Option<String> {
        let name = &self.name;
        if let Some((extension, schema)) = &self.extension {
            return Some(create_extension(extension, schema));
        }
        match &self.kind {
            Kind::Given | Kind::Array { .. } | Kind::Multirange { .. } => None,
            Kind::Enum { labels } => Some(create_enum(name, labels)),
            Kind::Domain { parts, .. } => Some(create_domain(name, parts)),
            Kind::Composite { attributes } => {
                let spelt = |(own, _): &(Attribute, u32)| {
                    format!("{} {}", identifier(&own.name), own.source_type)
                };
                let attributes = attributes.iter().map(spelt).collect::<Vec<_>>().join(", ");
                Some(format!("CREATE TYPE {name} AS ({attributes})"))
            }
            Kind::Range { options, .. } => Some(format!("CREATE TYPE {name} AS RANGE ({options})")),
        }
    }
}

fn create_domain(name: &str, parts: &Domain) -> String {
    let Domain { base, default, not_null, checks } = parts;
    let mut create = format!("CREATE DOMAIN {name} AS {base}");
    if let Some(default) = default {
        create += &format!(" DEFAULT {default}");
    }
    if *not_null {
        create += " NOT NULL";
    }
    for (check, condition) in checks.iter().filter(|(_, condition)| is_valid(condition)) {
        create += &format!(" CONSTRAINT {} {condition}", identifier(check));
    }
    create
}

/// Whether all values keep to a constraint; one of which that is not known cannot be made with the domain.
fn is_valid(condition: &str) -> bool {
    !condition.ends_with(" NOT VALID")
}

/// Makes an extension where it is not.
fn create_extension(extension: &str, schema: &str) -> String {
    let (extension, schema) = (identifier(extension), identifier(schema));
    format!("CREATE EXTENSION IF NOT EXISTS {extension} SCHEMA {schema}")
}

/// Of the tables that come with an extension: their row types, which come with it as well.
pub(crate) async fn given(
    wire: &mut Wire,
    tables: &str,
) -> Result<BTreeMap<u32, TypeDefinition>, SourceError> {
    let rows = wire.query("look for tables of extensions", &GIVEN.replace("{ids}", tables)).await?;
    let given = rows.iter().map(|row| {
        let name = quoted(row.text(2)?, row.text(3)?);
        let create = create_extension(row.text(4)?, row.text(5)?);
        Ok((row.parse_as(0)?, TypeDefinition::new(row.parse_as(1)?, name, create)))
    });
    given.collect()
}

async fn parse(row: &TextRow, wire: &mut Wire) -> Result<Type, SourceError> {
    let id: u32 = row.parse_as(0)?;
    let output = row.text(4)?.to_owned();
    let name = quoted(row.text(1)?, row.text(2)?);
    let extension = row.optional(5).zip(row.optional(6));
    let extension = extension.map(|(name, schema)| (name.to_owned(), schema.to_owned()));
    let kind = match row.text(3)? {
        "A" => Kind::Array { element: row.parse_as(7)? },
        "d" => domain(row, wire).await?,
        _ if id < FIRST_USER_ID || extension.is_some() => Kind::Given,
        "e" => {
            let labels = labels(wire, &BTreeSet::from([id])).await?.remove(&id);
            Kind::Enum { labels: labels.unwrap_or_default() }
        }
        "c" => composite(id, wire).await?,
        "r" => range(id, wire).await?,
        "m" => {
            let sql = format!("SELECT rngtypid FROM pg_range WHERE rngmultitypid = {id}");
            let rows = wire.query("read a multirange", &sql).await?;
            rows.first().map_or(Ok(Kind::Given), |row| {
                row.parse_as(0).map(|range| Kind::Multirange { range })
            })?
        }
        _ => Kind::Given,
    };
    Ok(Type { name, kind, output, extension })
}

async fn domain(row: &TextRow, wire: &mut Wire) -> Result<Kind, SourceError> {
    let id: u32 = row.parse_as(0)?;
    let mut base = row.text(10)?.to_owned();
    if let Some(collation) = row.optional(13) {
        base += &format!(" COLLATE {collation}");
    }
    let sql = format!(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint \
         WHERE contypid = {id} AND contype = 'c' ORDER BY conname"
    );
    let mut checks = BTreeMap::new();
    for check in wire.query("read a domain", &sql).await? {
        checks.insert(check.text(0)?.to_owned(), check.text(1)?.to_owned());
    }
    let default = row.optional(12).map(Into::into);
    let parts = Domain { base, default, not_null: row.flag(11), checks };
    Ok(Kind::Domain { base: row.parse_as(8)?, modifier: row.parse_as(9)?, parts })
}

async fn composite(id: u32, wire: &mut Wire) -> Result<Kind, SourceError> {
    // The row type of a table comes with the table.
    let sql = format!(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnum, a.atttypmod \
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
         WHERE c.reltype = {id} AND c.relkind = 'c' AND a.attnum > 0 AND NOT a.attisdropped \
         ORDER BY a.attnum"
    );
    let rows = wire.query("read a composite type", &sql).await?;
    let attribute = |row: &TextRow| {
        let (name, source_type) = (row.text(0)?.to_owned(), row.text(1)?.to_owned());
        let (number, type_id) = (row.parse_as(3)?, row.parse_as(2)?);
        let type_modifier = row.parse_as(4)?;
        Ok((Attribute { name, source_type, number, type_id, type_modifier }, type_id))
    };
    let attributes = rows.iter().map(attribute).collect::<Result<Vec<_>, SourceError>>()?;
    Ok(if attributes.is_empty() { Kind::Given } else { Kind::Composite { attributes } })
}

async fn range(id: u32, wire: &mut Wire) -> Result<Kind, SourceError> {
    let multirange = match wire.version() >= 140_000 {
        true => "m.typname, (SELECT nspname FROM pg_namespace WHERE oid = m.typnamespace)",
        false => "NULL, NULL",
    };
    let join = match wire.version() >= 140_000 {
        true => "LEFT JOIN pg_type m ON m.oid = r.rngmultitypid",
        false => "",
    };
    let sql = format!(
        "SELECT r.rngsubtype, format_type(r.rngsubtype, -1), \
         CASE WHEN NOT o.opcdefault THEN quote_ident(n.nspname) || '.' || quote_ident(o.opcname) END, \
         CASE WHEN r.rngcollation <> 0 AND r.rngcollation <> s.typcollation \
         THEN r.rngcollation::regcollation::text END, {multirange} \
         FROM pg_range r JOIN pg_type s ON s.oid = r.rngsubtype \
         JOIN pg_opclass o ON o.oid = r.rngsubopc JOIN pg_namespace n ON n.oid = o.opcnamespace \
         {join} WHERE r.rngtypid = {id}"
    );
    // `regcollation` came with version 13.
    let sql = match wire.version() >= 130_000 {
        true => sql,
        false => sql.replace("r.rngcollation::regcollation::text", "NULL"),
    };
    let rows = wire.query("read a range type", &sql).await?;
    let Some(row) = rows.first() else {
        return Ok(Kind::Given);
    };
    let mut options = format!("SUBTYPE = {}", row.text(1)?);
    if let Some(class) = row.optional(2) {
        options += &format!(", SUBTYPE_OPCLASS = {class}");
    }
    if let Some(collation) = row.optional(3) {
        options += &format!(", COLLATION = {collation}");
    }
    if let Some((name, schema)) = row.optional(4).zip(row.optional(5)) {
        options += &format!(", MULTIRANGE_TYPE_NAME = {}", quoted(schema, name));
    }
    Ok(Kind::Range { subtype: row.parse_as(0)?, options })
}

/// A server that has more is none.
const TYPES_MAX: usize = 1_000_000;
/// 0 table, 1 its row type, 2 its schema, 3 name, 4 extension, 5 its schema.
const GIVEN: &str = "SELECT c.oid, c.reltype, n.nspname, c.relname, x.extname,
    (SELECT nspname FROM pg_namespace WHERE oid = x.extnamespace)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    AND d.refclassid = 'pg_extension'::regclass
    JOIN pg_extension x ON x.oid = d.refobjid WHERE c.oid IN ({ids})";

/// 0 id, 1 schema, 2 name, 3 kind (`A` for a true array), 4 output function, 5 extension, 6 its schema,
/// 7 element, 8 base, 9 its modifier, 10 base as printed, 11 not null, 12 default, 13 collation.
const TYPES: &str = "SELECT t.oid, n.nspname, t.typname,
    CASE WHEN EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid) THEN 'A' ELSE t.typtype::text END,
    t.typoutput::regproc, x.extname, (SELECT nspname FROM pg_namespace WHERE oid = x.extnamespace),
    t.typelem, t.typbasetype, t.typtypmod, format_type(t.typbasetype, t.typtypmod), t.typnotnull,
    coalesce(pg_get_expr(t.typdefaultbin, 0), quote_literal(t.typdefault)),
    CASE WHEN t.typtype = 'd' AND t.typcollation <> 0 AND t.typcollation <> b.typcollation
    THEN (SELECT quote_ident(k.nspname) || '.' || quote_ident(o.collname) FROM pg_collation o
    JOIN pg_namespace k ON k.oid = o.collnamespace WHERE o.oid = t.typcollation) END
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    LEFT JOIN pg_type b ON b.oid = t.typbasetype
    LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
    AND d.refclassid = 'pg_extension'::regclass
    LEFT JOIN pg_extension x ON x.oid = d.refobjid WHERE t.oid IN ({ids})";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::labels::relabel;

    fn made(name: &str, kind: Kind) -> Type {
        Type { name: name.into(), kind, output: "f".into(), extension: None }
    }

    fn attribute(name: &str, source_type: &str, id: u32) -> (Attribute, u32) {
        let (name, source_type) = (name.into(), source_type.into());
        (Attribute { name, source_type, number: 1, type_id: id, type_modifier: -1 }, id)
    }

    fn domain(base: u32, modifier: i32, printed: &str) -> Kind {
        let parts = Domain { base: printed.into(), ..Domain::default() };
        Kind::Domain { base, modifier, parts }
    }

    #[test]
    fn a_domain_is_made_of_its_parts() {
        let checks =
            [("odd name", "CHECK ((VALUE > 0))"), ("new", "CHECK ((VALUE > 1)) NOT VALID")];
        let checks = checks.map(|(name, check)| (name.to_owned(), check.to_owned())).into();
        let parts =
            Domain { base: "integer".into(), default: Some("7".into()), not_null: true, checks };
        assert_eq!(
            create_domain("public.d", &parts),
            "CREATE DOMAIN public.d AS integer DEFAULT 7 NOT NULL CONSTRAINT \"odd name\" CHECK ((VALUE > 0))"
        );
    }

    #[test]
    fn a_domain_over_ever_so_many_domains_is_read_as_any() {
        const DEPTH: u32 = 20_000;
        let one = |n: u32| (20_000 + n, made("d", domain(19_999 + n, -1, "d")));
        let mut types: BTreeMap<u32, Type> = (0..DEPTH).map(one).collect();
        types.insert(19_999, made("mood", Kind::Enum { labels: vec![] }));
        let (types, last) = (Types(types), 19_999 + DEPTH);
        assert_eq!(types.base(last, -1), (19_999, -1));
        assert!(types.has_labels(last));
        let made = types.definitions(&[last]);
        assert_eq!(made.first().map(|first| first.name.as_str()), Some("mood"));
        let one = |id, base| (id, self::made("d", domain(base, 7, "d")));
        let circle = Types(BTreeMap::from([one(20_000, 20_001), one(20_001, 20_000)]));
        assert_eq!(circle.base(20_000, -1), (20_000, 7));
        assert!(!circle.has_labels(20_000));
        assert!(!circle.definitions(&[20_000]).is_empty());
    }

    #[test]
    fn a_type_comes_after_all_that_it_is_made_of() {
        let extension = Some(("hstore".into(), "public".into()));
        let types = Types(BTreeMap::from([
            (20_000, made("pairs", Kind::Array { element: 20_001 })),
            (
                20_001,
                made(
                    "pair",
                    Kind::Composite {
                        attributes: vec![
                            attribute("left", "d", 20_003),
                            attribute("n", "integer", 23),
                            attribute("h", "hstore", 20_004),
                        ],
                    },
                ),
            ),
            (20_002, made("mood", Kind::Enum { labels: vec!["it's".into()] })),
            (20_003, made("d", domain(20_002, -1, "mood"))),
            (20_004, Type { extension: extension.clone(), ..made("hstore", Kind::Given) }),
            (20_005, Type { extension, ..made("ghstore", Kind::Given) }),
        ]));
        let made = types.definitions(&[20_000, 23, 20_005, 20_000]);
        let creates: Vec<_> = made.iter().map(|definition| definition.create.as_str()).collect();
        assert_eq!(
            creates,
            [
                "CREATE TYPE mood AS ENUM ('it''s')",
                "CREATE DOMAIN d AS mood",
                "CREATE EXTENSION IF NOT EXISTS \"hstore\" SCHEMA \"public\"",
                "CREATE TYPE pair AS (\"left\" d, \"n\" integer, \"h\" hstore)",
            ]
        );
    }

    #[test]
    fn an_enum_is_found_in_whatever_holds_it_and_takes_new_labels() {
        let mood = Kind::Enum { labels: vec!["sad".into()] };
        let attributes = vec![attribute("m", "moods", 20_000)];
        let types = Types(BTreeMap::from([
            (20_000, made("moods", Kind::Array { element: 20_001 })),
            (20_001, made("mood", mood)),
            (20_002, made("pair", Kind::Composite { attributes })),
        ]));
        assert_eq!(
            [20_000, 20_001, 20_002, 23].map(|id| types.has_labels(id)),
            [true, true, true, false]
        );
        let mut definitions = types.definitions(&[20_002]);
        let gone = BTreeMap::from([(7, vec!["x".to_owned()])]);
        assert!(!relabel(&mut definitions, &gone));
        let now = BTreeMap::from([(20_001, vec!["sad".to_owned(), "it's".to_owned()])]);
        assert!(relabel(&mut definitions, &now) && !relabel(&mut definitions, &now));
        assert_eq!(definitions[0].create, "CREATE TYPE mood AS ENUM ('sad', 'it''s')");
        assert_eq!(definitions[0].labels.as_deref(), Some(&["sad".into(), "it's".into()][..]));
    }

    #[test]
    fn a_domain_over_a_domain_has_the_last_ones_base() {
        let types = Types(BTreeMap::from([
            (20_000, made("a", domain(20_001, -1, "b"))),
            (20_001, made("b", domain(1700, 786_438, "numeric(12,2)"))),
        ]));
        assert_eq!(types.base(20_000, -1), (1700, 786_438));
        assert_eq!(types.base(23, 7), (23, 7));
    }
}
