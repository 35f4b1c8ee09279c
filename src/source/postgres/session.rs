//! Opens a session: connects, sees to the publication and the slot, verifies that the server
//! continues what this box holds.
//!
//! Facts: [`ORIGIN_FACT`] when the slot is made; `source/intent` (the slot's name) from before that
//! until then, so that a slot made by a start that was cut short is known as ours; `source/allowed`
//! (a position), see `confirm.rs`.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU64},
};

use super::{
    catalog::{self, Listing},
    connect::Target,
    error::SourceError,
    login::Purpose,
    name::Names,
    origin::{self, Continues},
    pattern::Patterns,
    publication, slot,
    url::Url,
    wire::Wire,
};
use crate::{
    clock::Clock,
    config,
    error::Cause,
    facts::{self, FactBatch, Facts},
    source::{Durable, Keep, ORIGIN_FACT, Origin},
    telemetry::board::SourceBoard,
    units::Position,
};

/// What all tasks of one source share.
pub(crate) struct Shared {
    pub(crate) config: config::Source,
    pub(crate) url: Url,
    pub(crate) patterns: Patterns,
    pub(crate) names: Names,
    pub(crate) facts: Arc<dyn Facts>,
    pub(crate) keep: Arc<dyn Keep>,
    pub(crate) board: SourceBoard,
    pub(crate) clock: Arc<dyn Clock>,
    /// The end of the server's log, as last asked.
    pub(crate) log_end: AtomicU64,
}

/// A session that can begin to stream.
pub(crate) struct Session {
    /// For START_REPLICATION.
    pub(crate) wire: Wire,
    /// For questions to the catalog.
    pub(crate) sql: Wire,
    pub(crate) durable: Durable,
    /// What the slot holds confirmed.
    pub(crate) confirmed: Position,
    /// Whether all columns of all tables are read in binary form.
    pub(crate) binary: bool,
    /// The snapshot, if the slot was made just now.
    pub(crate) fresh: Option<Fresh>,
}

/// A snapshot, and the tables whose changes after it are all in the stream.
pub(crate) struct Fresh {
    pub(crate) held: slot::Held,
    pub(crate) tables: BTreeSet<u32>,
}

/// Opens a session.
pub(crate) async fn open(shared: &Shared) -> Result<Session, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let mut sql = target.open(Purpose::Sql).await?;
    let version = sql.parameters.get("server_version").cloned().unwrap_or_default();
    shared.board.write(|status| status.server_version = version);
    let rows = sql.query("read wal_level", "SHOW wal_level").await?;
    match rows.first().and_then(|row| row.optional(0)).unwrap_or_default() {
        "logical" => {}
        other => return Err(SourceError::WalLevel(other.into())),
    }
    let origin: Option<Origin> = facts::read(&*shared.facts, ORIGIN_FACT)?;
    let listing = tables(shared, &mut sql).await?;
    if listing.tables.is_empty() && origin.is_none() {
        return Err(SourceError::NoTables(shared.patterns.to_string()));
    }
    let mut wire = target.open(Purpose::Replication).await?;
    let server = slot::identify(&mut wire).await?;
    let durable = shared.keep.session().await?;
    let found = slot::look(&mut sql, &shared.names.slot).await?;
    let (confirmed, fresh) = match origin {
        Some(origin) => {
            let held = origin::Held { durable: durable.point.position, allowed: allowed(shared)? };
            if let Continues::NewTimeline(timeline) =
                origin::check(&origin, &server, found.as_ref(), held)?
            {
                tracing::warn!(timeline, "a standby was promoted; the slot continues");
                record(shared, &Origin { timeline, ..origin }).await?;
            }
            (found.and_then(|slot| slot.confirmed).unwrap_or_default(), None)
        }
        None => {
            let ids = listing.tables.keys().copied().collect();
            begin(shared, &target, &mut sql, &server, found, durable, ids).await?
        }
    };
    let described = catalog::describe(&mut sql, listing.tables.keys().copied()).await?;
    let binary = described.values().all(catalog::Described::renders_binary);
    Ok(Session { wire, sql, durable, confirmed, binary, fresh })
}

/// Lists the tables and brings the publications to them; raises or takes down the alarm `tables`.
pub(crate) async fn tables(shared: &Shared, sql: &mut Wire) -> Result<Listing, SourceError> {
    let mut listing = catalog::list(sql, &shared.patterns).await?;
    publication::sync(sql, &shared.names, &mut listing).await?;
    let refused = listing.refused.iter().map(|(table, why)| format!("{table}: {why}"));
    let append = listing.tables.values().filter(|table| !table.identified).map(|table| {
        format!(
            "{}: only inserts and truncates are captured, as nothing names its old rows: \
             ALTER TABLE {} REPLICA IDENTITY FULL",
            table.qualified(),
            table.quoted()
        )
    });
    let told: Vec<String> = refused.chain(append).collect();
    match told.is_empty() {
        true => shared.board.calm(TABLES_ALARM),
        false => {
            let (what, now) = (told.join("; "), shared.clock.wall());
            shared.board.alarm(TABLES_ALARM, Cause::TableRefused, &what, now);
        }
    }
    Ok(listing)
}

/// The first session: makes the slot, or takes an operator's over, and records the origin.
async fn begin(
    shared: &Shared,
    target: &Target,
    sql: &mut Wire,
    server: &origin::Server,
    found: Option<origin::Slot>,
    durable: Durable,
    tables: BTreeSet<u32>,
) -> Result<(Position, Option<Fresh>), SourceError> {
    let names = &shared.names;
    if durable != Durable::default() {
        return Err(SourceError::Gap(format!(
            "the journal holds changes up to {}, but not which slot they came from",
            durable.point.position
        )));
    }
    let origin = |consistent_point| Origin {
        system_identifier: server.system_identifier.clone(),
        timeline: server.timeline,
        database: server.database.clone(),
        slot: names.slot.clone(),
        publication: names.publication.clone(),
        consistent_point,
    };
    if let Some(slot) = found {
        if names.slot_given {
            let point = slot.confirmed.unwrap_or_default();
            let origin = origin(point);
            // Its snapshot is taken later, and stands at a position of its own.
            origin::check(&origin, server, Some(&slot), origin::Held::default())?;
            record(shared, &origin).await?;
            return Ok((point, None));
        }
        let intent: Option<String> = facts::read(&*shared.facts, INTENT_FACT)?;
        if intent.as_ref() != Some(&names.slot) || slot.active {
            return Err(SourceError::Gap(format!(
                "the replication slot `{0}` exists, and this box did not make it: continue the chain of the box that did with `lakehead adopt`, or, if nobody needs it, SELECT pg_drop_replication_slot('{0}')",
                names.slot
            )));
        }
        slot::drop_slot(sql, &names.slot).await?;
    }
    let mut intent = FactBatch::default();
    shared.facts.record(std::mem::take(intent.put(INTENT_FACT, &names.slot))).await?;
    let maker = target.open(Purpose::Replication).await?;
    tracing::info!("making the replication slot; transactions that are open now are waited for");
    let held = slot::create(maker, &names.slot, false, shared.clock.wall()).await?;
    record(shared, &origin(held.position)).await?;
    Ok((held.position, Some(Fresh { held, tables })))
}

async fn record(shared: &Shared, origin: &Origin) -> Result<(), SourceError> {
    let mut batch = FactBatch::default();
    batch.put(ORIGIN_FACT, origin).delete(INTENT_FACT);
    Ok(shared.facts.record(batch).await?)
}

/// The greatest position beyond the journal's that was ever allowed to be confirmed.
fn allowed(shared: &Shared) -> Result<Position, SourceError> {
    Ok(facts::read(&*shared.facts, ALLOWED_FACT)?.unwrap_or_default())
}

/// Key of the position that may be confirmed beyond the journal's; see `confirm.rs`.
pub(crate) const ALLOWED_FACT: &str = "source/allowed";
/// Key of the name of a slot that is about to be made.
const INTENT_FACT: &str = "source/intent";
/// The alarm that names tables which cannot be copied, or not wholly.
const TABLES_ALARM: &str = "tables";
