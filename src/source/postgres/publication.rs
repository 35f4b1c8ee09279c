//! The publications on the server, and which tables are in them.
//!
//! **Invariant (P5):** a table whose old rows cannot be named is never in a publication that carries
//! UPDATE and DELETE: the server would refuse these statements to the customer. It goes into a second
//! publication, of inserts and truncates only. Where generated columns are among what names them, PostgreSQL 18 refuses
//! these statements unless the publication carries such columns: it is told to, once a table needs it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    catalog::{COMPUTED_SINCE, Computed, Listed, Listing, Refusal, identifier, literal},
    error::SourceError,
    name::Names,
    wire::Wire,
};
use crate::error::Cause;

/// Members of the publications, by their ids.
#[derive(Debug, Default)]
struct Members {
    main: Option<BTreeSet<u32>>,
    append: Option<BTreeSet<u32>>,
    /// Whether the main one carries stored generated columns.
    computed: bool,
}

/// What it takes to bring the publications to the tables.
#[derive(Debug, Default)]
pub(crate) struct Due {
    statements: Vec<String>,
    /// Tables of which more is published from then on: of those that were copied before changes may be missing.
    pub(crate) more: BTreeSet<u32>,
}

/// What brings the publications to the tables of `listing`. An operator's publication is only looked at:
/// tables that it lacks are taken out of the listing and put among the refused.
pub(crate) async fn due(
    wire: &mut Wire,
    names: &Names,
    listing: &mut Listing,
) -> Result<Due, SourceError> {
    refuse_unreadable(wire, listing).await?;
    let members = members(wire, names).await?;
    let Some(append) = &names.append else {
        taken_over(wire, names, members.main, listing).await?;
        return Ok(Due::default());
    };
    refuse_foreign(wire, &members, listing).await?;
    let (with, without): (BTreeMap<_, _>, BTreeMap<_, _>) =
        listing.tables.iter().partition(|(_, table)| table.identified);
    let ids = |tables: &BTreeMap<&u32, _>| tables.keys().map(|id| **id).collect::<BTreeSet<u32>>();
    let (mut statements, mut more, main) = (vec![], BTreeSet::new(), &names.publication);
    // Its inserts and truncates go on without a break.
    let was_whole = members.main.clone().unwrap_or_default();
    let kinds = [
        (main, members.main, ids(&with), "insert, update, delete, truncate"),
        (append, members.append, ids(&without), "insert, truncate"),
    ];
    let mut adds = vec![];
    for (name, present, wanted, operations) in kinds {
        let name = identifier(name);
        if present.is_none() {
            statements.push(format!("CREATE PUBLICATION {name} WITH (publish = '{operations}')"));
        }
        let present = present.unwrap_or_default();
        let quoted = |ids: Vec<&u32>| {
            let names = ids.iter().filter_map(|id| listing.tables.get(id));
            names.map(|table| format!("ONLY {}", table.quoted())).collect::<Vec<_>>()
        };
        let surplus: Vec<_> = present.difference(&wanted).collect();
        if !surplus.is_empty() {
            let tables = qualified(wire, &surplus).await?;
            if !tables.is_empty() {
                statements
                    .push(format!("ALTER PUBLICATION {name} DROP TABLE {}", tables.join(", ")));
            }
        }
        more.extend(wanted.difference(&present).filter(|id| !was_whole.contains(id)));
        let lacking = quoted(wanted.difference(&present).collect());
        if !lacking.is_empty() {
            adds.push(format!("ALTER PUBLICATION {name} ADD TABLE {}", lacking.join(", ")));
        }
    }
    let computed = listing.tables.values().any(|table| table.computed == Computed::Stored);
    if computed && !members.computed {
        let name = identifier(main);
        statements
            .push(format!("ALTER PUBLICATION {name} SET (publish_generated_columns = stored)"));
    }
    statements.extend(adds);
    Ok(Due { statements, more })
}

/// Brings the publications up to date.
pub(crate) async fn bring(wire: &mut Wire, names: &Names, due: &Due) -> Result<(), SourceError> {
    if due.statements.is_empty() {
        return Ok(());
    }
    // One query is one transaction.
    wire.query("bring the publication up to date", &due.statements.join("; ")).await?;
    tracing::info!(publication = names.publication, "brought the publication up to date");
    Ok(())
}

/// Takes out the tables that this role cannot read, if there are others.
async fn refuse_unreadable(wire: &mut Wire, listing: &mut Listing) -> Result<(), SourceError> {
    if listing.tables.values().all(|table| table.selectable) {
        return Ok(());
    }
    let rows = wire.query("ask for the role's name", "SELECT quote_ident(current_user)").await?;
    let role = rows.first().and_then(|row| row.optional(0)).unwrap_or_default();
    let (readable, unreadable): (BTreeMap<_, _>, BTreeMap<_, _>) =
        std::mem::take(&mut listing.tables).into_iter().partition(|(_, table)| table.selectable);
    listing.tables = readable;
    for table in unreadable.into_values() {
        let grant = format!("GRANT SELECT ON {} TO {role}", table.quoted());
        let why = format!("this role may not read it: {grant}");
        listing.refused.insert(table.qualified(), Refusal { cause: Cause::SourcePrivilege, why });
    }
    Ok(())
}

/// Takes out the tables that are not published and that this role may not publish, as an extension's often are. They
/// belong to others.
async fn refuse_foreign(
    wire: &mut Wire,
    members: &Members,
    listing: &mut Listing,
) -> Result<(), SourceError> {
    let kinds = [&members.main, &members.append];
    let published =
        |id: &u32| kinds.iter().any(|kind| kind.as_ref().is_some_and(|ids| ids.contains(id)));
    let lacking = listing.tables.keys().filter(|id| !published(id));
    let lacking: Vec<String> = lacking.map(ToString::to_string).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT oid, quote_ident(pg_get_userbyid(relowner)), quote_ident(current_user) FROM pg_class \
         WHERE oid IN ({}) AND NOT pg_has_role(relowner, 'USAGE')",
        lacking.join(",")
    );
    for row in wire.query("ask for owners", &sql).await? {
        let Some(table) = listing.tables.remove(&row.parse_as(0)?) else { continue };
        let (owner, role) = (row.text(1)?, row.text(2)?);
        let why = format!(
            "this role may not publish it, as it belongs to {owner}: GRANT {owner} TO {role}, ALTER TABLE {} OWNER TO another role that it is a member of, or exclude it",
            table.quoted()
        );
        listing.refused.insert(table.qualified(), Refusal { cause: Cause::SourcePrivilege, why });
    }
    Ok(())
}

async fn members(wire: &mut Wire, names: &Names) -> Result<Members, SourceError> {
    let append = names.append.as_deref().unwrap_or(&names.publication);
    let computed = if wire.version() >= COMPUTED_SINCE { "p.pubgencols = 's'" } else { "false" };
    let schemas = if wire.version() >= SCHEMAS_SINCE { SCHEMAS } else { "" };
    let pending = if wire.version() >= PENDING_SINCE { PENDING } else { "" };
    let both = format!("{}, {}", literal(&names.publication), literal(append));
    let sql = MEMBERS.replace("{computed}", computed).replace("{schemas}", schemas);
    let sql = sql.replace("{pending}", pending).replace("{names}", &both);
    let mut members = Members::default();
    for row in wire.query("read the publication", &sql).await? {
        let main = row.text(0)? == names.publication;
        members.computed |= main && row.flag(2);
        let known = if main { &mut members.main } else { &mut members.append };
        let known = known.get_or_insert_default();
        if row.optional(1).is_some() {
            known.insert(row.parse_as(1)?);
        }
    }
    Ok(members)
}

/// An operator's publication must carry whole tables and every operation.
async fn taken_over(
    wire: &mut Wire,
    names: &Names,
    present: Option<BTreeSet<u32>>,
    listing: &mut Listing,
) -> Result<(), SourceError> {
    let name = &names.publication;
    let wrong = |why: &str| SourceError::Publication { name: name.clone(), why: why.into() };
    let present =
        present.ok_or_else(|| wrong("it does not exist; make it, or leave it to lakehead"))?;
    let version = wire.version();
    let via_root = if version >= 130_000 { "p.pubviaroot" } else { "false" };
    let partial = match version >= 150_000 {
        true => {
            "EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND (r.prattrs IS NOT NULL OR r.prqual IS NOT NULL))"
        }
        false => "false",
    };
    let sql = format!(
        "SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, {via_root}, {partial} \
         FROM pg_publication p WHERE p.pubname = {}",
        literal(name)
    );
    let rows = wire.query("read the publication", &sql).await?;
    let row = rows.first().ok_or_else(|| wrong("it does not exist"))?;
    if !row.flag(0) {
        return Err(wrong("it does not publish insert, update, delete and truncate"));
    }
    if row.flag(1) {
        return Err(wrong(
            "it has publish_via_partition_root; the partitions themselves are copied",
        ));
    }
    if row.flag(2) {
        return Err(wrong("it has row filters or column lists; whole tables are copied"));
    }
    let (published, absent): (BTreeMap<_, _>, BTreeMap<_, _>) =
        std::mem::take(&mut listing.tables).into_iter().partition(|(id, _)| present.contains(id));
    listing.tables = published;
    let why = format!("it is not in the publication `{name}`, which the configuration names");
    let refusal = Refusal { cause: Cause::TableRefused, why };
    listing.refused.extend(absent.into_values().map(|table| (table.qualified(), refusal.clone())));
    // Their updates and deletes would come, and name no row.
    let unnamed = |table: &Listed| table.computed_key && !table.identified;
    for (_, table) in listing.tables.extract_if(.., |_, table| unnamed(table)) {
        let refusal = Refusal { cause: Cause::TableRefused, why: table.append_only() };
        listing.refused.insert(table.qualified(), refusal);
    }
    Ok(())
}

/// Names of tables that may not be in the listing.
async fn qualified(wire: &mut Wire, ids: &[&u32]) -> Result<Vec<String>, SourceError> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let sql = format!(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid IN ({})",
        ids.join(",")
    );
    let rows = wire.query("name tables", &sql).await?;
    rows.iter()
        .map(|row| Ok(format!("ONLY {}", super::catalog::quoted(row.text(0)?, row.text(1)?))))
        .collect()
}

/// The first version whose publications can name schemas.
const SCHEMAS_SINCE: u32 = 150_000;
const SCHEMAS: &str =
    "UNION SELECT s.pnpubid, c.oid FROM mine p JOIN pg_publication_namespace s ON s.pnpubid = p.oid
            JOIN pg_class c ON c.relnamespace = s.pnnspid WHERE c.relkind IN ('r', 'p')";
/// The first version that detaches partitions without a lock: one that is half way is not published.
const PENDING_SINCE: u32 = 140_000;
const PENDING: &str = "AND NOT i.inhdetachpending";
/// 0 publication, 1 a table in it, 2 whether it carries stored generated columns. A partitioned table stands for its
/// leaves. The server's own view of this waits, from PostgreSQL 16 on, for whoever has one of the tables for himself.
const MEMBERS: &str = "WITH RECURSIVE mine AS (SELECT * FROM pg_publication WHERE pubname IN ({names})),
    named (publication, id) AS (
        SELECT r.prpubid, r.prrelid FROM mine p JOIN pg_publication_rel r ON r.prpubid = p.oid
        {schemas}
        UNION SELECT p.oid, c.oid FROM mine p JOIN pg_class c ON p.puballtables AND c.relkind = 'r'
        UNION SELECT n.publication, i.inhrelid FROM named n
            JOIN pg_class c ON c.oid = n.id AND c.relkind = 'p' JOIN pg_inherits i ON i.inhparent = c.oid {pending})
    SELECT p.pubname, t.oid, {computed} FROM mine p
    LEFT JOIN (SELECT n.publication, c.oid FROM named n JOIN pg_class c ON c.oid = n.id
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384) t ON t.publication = p.oid";
