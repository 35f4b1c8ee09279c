//! The types of a restore: made where they are not there, and brought to what they are to be.
//!
//! `lakehead_restore.types` holds each domain and composite type that a restore made, as it is now, what it is to be, and
//! the position at which that was told. **Invariant:** a type goes from one definition to one that was told later, and
//! never back.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ReplayError,
    labels::{self, Labels},
    plan::{Definitions, definitions},
    restore_rows::Restore,
    restore_target::{Target, refused},
    schema,
    types::{self, Parts},
};
use crate::{
    journal::{Attribute, Domain, TypeDefinition},
    ledger::Entry,
    seal::Table,
    units::{Position, UnitError},
};

/// What a restore knows of types.
#[derive(Debug)]
pub(super) struct Types {
    /// What every enum is to have.
    labels: Labels,
    /// What the ledger says.
    parts: Parts,
    /// Domains to whose constraints rows did not keep: they are made behind the rows.
    lax: Lax,
    /// Those that restores made.
    made: BTreeMap<String, Made>,
}

/// Domains whose constraints wait until all rows are there.
#[derive(Clone, Debug, Default)]
pub(super) struct Lax {
    names: BTreeSet<String>,
    all: bool,
}

impl Lax {
    /// Rows do not keep to a domain: the server names the outer one of several. False: it does without already.
    pub(super) fn insert(&mut self, domain: String) -> bool {
        self.names.insert(domain) || !std::mem::replace(&mut self.all, true)
    }

    fn has(&self, domain: &str) -> bool {
        self.all || self.names.contains(domain)
    }
}

/// A type that a restore made.
#[derive(Clone, Debug)]
struct Made {
    at: Position,
    now: TypeDefinition,
    wanted: TypeDefinition,
}

impl Types {
    /// What the ledger says. `lax`: domains to whose constraints rows did not keep.
    pub(super) fn new(entries: &[Entry], known: &Definitions, lax: Lax) -> Self {
        let objects = definitions(entries);
        let named = objects.iter().map(|(name, version, _)| known.get(&(name.clone(), *version)));
        let tables: Vec<&Table> = named.flatten().map(AsRef::as_ref).collect();
        let labels = labels::labels(tables.iter().copied());
        Self { labels, parts: Parts::of(tables.into_iter()), lax, made: BTreeMap::new() }
    }
}

impl Restore<'_> {
    /// Makes of domains what they are to be, behind all rows. What these refuse is said.
    pub(super) async fn tighten_domains(&mut self) -> Result<(), ReplayError> {
        let target = &mut self.target;
        for (name, made) in target.types.made.clone() {
            let Some((from, to)) = made.now.domain.as_ref().zip(made.wanted.domain.as_ref()) else {
                continue;
            };
            let (steps, mut domain) = types::loosened(&name, from, to);
            let tightenings = types::tightened(&name, &domain, to);
            if steps.is_empty() && tightenings.is_empty() {
                continue;
            }
            target.begin().await?;
            if !target.alter_type(&name, Some(steps)).await? {
                target.commit().await?;
                continue;
            }
            for step in tightenings {
                if target.tighten(&name, &step).await? {
                    domain = types::with(domain, &step);
                }
            }
            let now = TypeDefinition { domain: Some(domain), ..made.now.clone() };
            target.remember_type(Made { now, ..made }).await?;
            target.commit().await?;
        }
        Ok(())
    }
}

impl Target<'_> {
    /// Reads which types restores made, and takes from domains what rows did not keep to.
    pub(super) async fn begin_types(&mut self) -> Result<(), ReplayError> {
        self.read_types().await?;
        let mut names = self.types.lax.names.clone();
        for name in self.types.lax.names.clone() {
            names.extend(self.below(&name).await?);
        }
        let made = self.types.made.keys().filter(|_| self.types.lax.all);
        names.extend(made.cloned());
        for name in names {
            self.begin().await?;
            let made = match self.types.made.get(&name).cloned() {
                Some(made) => Some(made),
                None => self.there(&name).await?.map(|there| Made {
                    at: Position(0),
                    now: there.clone(),
                    wanted: there,
                }),
            };
            if let Some((made, from)) = made.and_then(|of| Some((of.clone(), of.now.domain?))) {
                let (steps, left) = types::loosened(&name, &from, &Domain::default());
                self.run(&format!("alter domain {name}"), &steps.join("; ")).await?;
                let now = TypeDefinition { domain: Some(left), ..made.now.clone() };
                self.remember_type(Made { now, ..made }).await?;
            }
            self.commit().await?;
        }
        Ok(())
    }

    /// The domains that a domain is made of.
    async fn below(&self, name: &str) -> Result<Vec<String>, ReplayError> {
        let rows = self.client.query(BELOW, &[&name]).await;
        let rows = rows.map_err(|why| refused(&format!("look at domain {name}"), &why))?;
        let name = |at: usize, row: &tokio_postgres::Row| schema::identifier(row.get(at));
        Ok(rows.iter().map(|row| format!("{}.{}", name(0, row), name(1, row))).collect())
    }

    /// Gives the enums that are there the labels that they lack. Outside of transactions: a label can be
    /// used once it is committed.
    pub(super) async fn grow_enums(&self) -> Result<(), ReplayError> {
        for (name, wanted) in &self.types.labels {
            let Some(there) = self.labels_of(name).await? else { continue };
            for step in labels::add(name, &there, wanted) {
                self.run(&format!("add labels to {name}"), &step).await?;
            }
        }
        Ok(())
    }

    /// Takes away enums whose labels stand in another order than they are to, as they were made anew in the source: they
    /// are made again with the first table that uses them. What still uses one keeps it, which is said.
    pub(super) async fn reorder_enums(&mut self) -> Result<(), ReplayError> {
        self.begin().await?;
        for (name, wanted) in self.types.labels.clone() {
            let there = self.labels_of(&name).await?.unwrap_or_default();
            if !labels::are_in_order(&there, &wanted)
                && self.attempt(&format!("DROP TYPE {name}")).await?.is_some()
            {
                self.notes.push(format!("{name}: its labels stand in the order that they had"));
            }
        }
        self.commit().await
    }

    /// The labels of an enum that is there, in order.
    async fn labels_of(&self, name: &str) -> Result<Option<Vec<String>>, ReplayError> {
        let there = self.client.query_opt(LABELS, &[&name]).await;
        let there = there.map_err(|why| refused(&format!("read the labels of {name}"), &why))?;
        Ok(there.map(|there| there.get::<_, Option<_>>(0).unwrap_or_default()))
    }

    /// Makes the types that a table uses where they are not there, and brings those that are there to what the table says
    /// of them `at` a position. Within the transaction.
    pub(super) async fn make_types(
        &mut self,
        table: &Table,
        at: Position,
    ) -> Result<(), ReplayError> {
        // What holds values of others may be kept from changing by what those have to be.
        for wanted in table.types.iter().filter(|wanted| wanted.domain.is_some()) {
            self.follow(wanted, at).await?;
        }
        for wanted in &table.types {
            let doing = format!("create type {}", wanted.name);
            let row = self.client.query_one("SELECT to_regtype($1) IS NULL", &[&wanted.name]).await;
            let is_there = !row.map_err(|why| refused(&doing, &why))?.get::<_, bool>(0);
            if is_there && (wanted.domain.is_some() || !self.follow(wanted, at).await?) {
                continue;
            }
            if let Some(schema) = schema::schema_of(&wanted.name) {
                self.run(&doing, &schema::create_schema(&schema)).await?;
            }
            let now = self.make_type(&doing, wanted).await?;
            if now.domain.is_some() || now.attributes.is_some() {
                let wanted = match wanted.domain.is_some() || wanted.attributes.is_some() {
                    true => wanted.clone(),
                    false => now.clone(),
                };
                self.remember_type(Made { at, now, wanted }).await?;
            }
        }
        Ok(())
    }

    /// Makes a type. What it is then.
    async fn make_type(
        &mut self,
        doing: &str,
        wanted: &TypeDefinition,
    ) -> Result<TypeDefinition, ReplayError> {
        let kept = !self.types.lax.has(&wanted.name);
        let begun = self.types.parts.begun(wanted, kept);
        if let Some(labels) = self.types.labels.get(&wanted.name) {
            self.run(doing, &labels::create(&wanted.name, labels)).await?;
            return Ok(begun);
        }
        let bare = self.types.parts.begun(wanted, false);
        // A constraint may name what is not there.
        if bare != begun && self.attempt(&begun.create).await?.is_some() {
            self.run(doing, &bare.create).await?;
            return Ok(bare);
        }
        if bare == begun {
            self.run(doing, &schema::create_type(&begun.create)).await?;
        }
        Ok(begun)
    }

    /// Brings a type that is there to what is told of it `at` a position. True: it is another one, and was taken away.
    async fn follow(&mut self, wanted: &TypeDefinition, at: Position) -> Result<bool, ReplayError> {
        if wanted.domain.is_none() && wanted.attributes.is_none() {
            return Ok(false);
        }
        let name = &wanted.name;
        let Some(there) = self.there(name).await? else { return Ok(false) };
        let unknown = Made { at, now: there.clone(), wanted: wanted.clone() };
        let made = self.types.made.get(name).cloned().unwrap_or(unknown);
        if at < made.at || (made.now == *wanted && made.wanted == *wanted) {
            return Ok(false);
        }
        let mut now = made.now;
        match (&now.domain, &wanted.domain, &now.attributes, &wanted.attributes) {
            (Some(from), Some(to), ..) => {
                let (steps, left) = types::loosened(name, from, to);
                if self.alter_type(name, Some(steps)).await? {
                    now.domain = Some(left);
                }
            }
            (_, _, Some(_), Some(_)) if ![UNKNOWN, wanted.id].contains(&now.id) => {
                if self.attempt(&format!("DROP TYPE {name}")).await?.is_none() {
                    return Ok(true);
                }
                self.notes.push(format!(
                    "{name}: it was made anew, and a table still uses the one of before: that stays"
                ));
            }
            (_, _, Some(from), Some(to)) => {
                let names = |of: &[Attribute]| of.iter().map(|own| own.name.clone()).collect();
                let there: &[Attribute] = there.attributes.as_deref().unwrap_or_default();
                let (known, found): (Vec<_>, Vec<_>) = (names(from), names(there));
                // Another source may have altered it meanwhile.
                let steps = match now.id == wanted.id && known == found {
                    true => Some(types::altered(name, from, to)),
                    false => types::adapted(name, there, to),
                };
                if self.alter_type(name, steps).await? {
                    now = wanted.clone();
                }
            }
            _ => return Ok(false),
        }
        self.remember_type(Made { at, now, wanted: wanted.clone() }).await?;
        Ok(false)
    }

    /// Makes a type what it is to be now. False: it stays what it is, which is said. `steps`: `None` if it must.
    async fn alter_type(
        &mut self,
        name: &str,
        steps: Option<Vec<String>>,
    ) -> Result<bool, ReplayError> {
        let why = match steps {
            Some(steps) => self.attempt(&steps.join("; ")).await?,
            None => Some("it is not what a restore of this source made".into()),
        };
        self.notes.extend(why.iter().map(|why| format!("{name}: it stays as it is: {why}")));
        Ok(why.is_none())
    }

    /// Gives a domain something. Whether its values let it.
    async fn tighten(&mut self, name: &str, step: &types::Tightening) -> Result<bool, ReplayError> {
        let Some(why) = self.attempt(&step.sql).await? else { return Ok(true) };
        // Not supported: its values are parts of others.
        if let Some(unchecked) = step.unchecked.as_ref().filter(|_| why.ends_with("(0A000)"))
            && self.attempt(unchecked).await?.is_none()
        {
            self.notes.push(format!("{name}: {} is not validated: {why}", step.what));
            return Ok(true);
        }
        self.notes.push(format!("{name}: left out: {}: {why}", step.what));
        Ok(false)
    }

    /// A domain or composite type that is there and of which nothing is recorded, as the catalog has it. Within the
    /// transaction.
    async fn there(&self, name: &str) -> Result<Option<TypeDefinition>, ReplayError> {
        let doing = format!("look at type {name}");
        // As the source prints.
        self.run(&doing, "SET LOCAL search_path = ''").await?;
        let rows = self.client.query(THERE, &[&name]).await.map_err(|why| refused(&doing, &why))?;
        self.run(&doing, "SET LOCAL search_path = pg_catalog, public").await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let mut there = TypeDefinition::new(UNKNOWN, name.to_owned(), String::new());
        let named = rows.iter().filter_map(|row| {
            Some((row.get::<_, Option<String>>(3)?, row.get::<_, Option<String>>(4)?))
        });
        match first.get::<_, bool>(0) {
            true => {
                let (not_null, default) = (first.get(1), first.get(2));
                let checks = named.collect();
                there.domain = Some(Domain { base: String::new(), default, not_null, checks });
            }
            false => {
                let attributes = (1..).zip(named);
                let attributes = attributes.map(|(number, (name, source_type))| Attribute {
                    name,
                    source_type,
                    number,
                    type_id: UNKNOWN,
                    type_modifier: -1,
                });
                there.attributes = Some(attributes.collect());
            }
        }
        Ok(Some(there))
    }

    /// Reads which types restores made.
    async fn read_types(&mut self) -> Result<(), ReplayError> {
        let query =
            "SELECT position, definition, wanted FROM lakehead_restore.types WHERE source = $1";
        let rows = self.client.query(query, &[&self.source]).await;
        let rows = rows.map_err(|why| refused("read lakehead_restore.types", &why))?;
        let damaged = |why: String| ReplayError::object("lakehead_restore.types", why);
        let read = |json: &str| -> Result<TypeDefinition, ReplayError> {
            serde_json::from_str(json).map_err(|why| damaged(why.to_string()))
        };
        let made = rows.iter().map(|row| {
            let at = row.get::<_, &str>(0).parse();
            let at = at.map_err(|why: UnitError| damaged(why.to_string()))?;
            let (now, wanted) = (read(row.get(1))?, read(row.get(2))?);
            Ok((now.name.clone(), Made { at, now, wanted }))
        });
        self.types.made = made.collect::<Result<_, ReplayError>>()?;
        Ok(())
    }

    /// Records a type as it is now, within the transaction.
    async fn remember_type(&mut self, made: Made) -> Result<(), ReplayError> {
        let sql = "INSERT INTO lakehead_restore.types (source, name, position, definition, wanted) \
            VALUES ($1, $2, $3, $4, $5) ON CONFLICT (source, name) \
            DO UPDATE SET position = EXCLUDED.position, definition = EXCLUDED.definition, wanted = EXCLUDED.wanted";
        let json = |of: &TypeDefinition| serde_json::to_string(of).expect("a type is plain data");
        let (at, now, wanted) = (made.at.to_string(), json(&made.now), json(&made.wanted));
        let name = made.now.name.clone();
        let done = self.client.execute(sql, &[&self.source, &name, &at, &now, &wanted]).await;
        done.map_err(|why| refused("record a type", &why))?;
        self.types.made.insert(name, made);
        Ok(())
    }
}

/// Of a type that is there, and of which the source's number is not known.
const UNKNOWN: u32 = 0;
/// The labels of an enum, in order.
const LABELS: &str = "SELECT (SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid) \
    FROM pg_type t WHERE t.oid = to_regtype($1) AND t.typtype = 'e'";
const BELOW: &str = "WITH RECURSIVE below AS (SELECT typbasetype AS id FROM pg_type WHERE oid = to_regtype($1) AND typtype = 'd' \
    UNION SELECT t.typbasetype FROM pg_type t JOIN below b ON t.oid = b.id WHERE t.typtype = 'd') \
    SELECT n.nspname::text, t.typname::text FROM below b JOIN pg_type t ON t.oid = b.id AND t.typtype = 'd' \
    JOIN pg_namespace n ON n.oid = t.typnamespace";
/// 0 whether it is a domain, 1 NOT NULL, 2 default, 3 name and 4 text of a constraint or attribute.
const THERE: &str = "SELECT t.typtype = 'd', t.typnotnull, coalesce(pg_get_expr(t.typdefaultbin, 0), quote_literal(t.typdefault)), \
    coalesce(c.conname, a.attname)::text, coalesce(pg_get_constraintdef(c.oid), format_type(a.atttypid, a.atttypmod)) \
    FROM pg_type t LEFT JOIN pg_constraint c ON c.contypid = t.oid AND c.contype = 'c' \
    LEFT JOIN pg_class r ON r.oid = t.typrelid AND r.relkind = 'c' \
    LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped \
    WHERE t.oid = to_regtype($1) AND (t.typtype = 'd' OR r.oid IS NOT NULL) ORDER BY a.attnum";
