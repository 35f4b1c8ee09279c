//! Opens a session: connects, sees to the publication and the slot, verifies that the server
//! continues what this box holds.
//!
//! Facts: [`ORIGIN_FACT`] when the slot is made; `source/intent` (the slot's name) from before that
//! until then, so that a slot made by a start that was cut short is known as ours.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Mutex;

use super::{
    aside::Aside,
    at_rest::AtRest,
    batch::Sizes,
    belief::{self, Belief},
    bridge,
    catalog::{self, Listing, Refusal},
    connect::Target,
    error::SourceError,
    login::Purpose,
    message::cut,
    name::Names,
    origin::{self, Break, Continues},
    pace::Pacer,
    pattern::Patterns,
    publication, reach, rewritten, slot,
    snapshot::plan_fact,
    url::Url,
    waiting,
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
    /// Where transactions in progress are laid aside.
    pub(crate) aside: Aside,
    pub(crate) clock: Arc<dyn Clock>,
    /// The end of the server's log, as last asked.
    pub(crate) log_end: AtomicU64,
    /// How much of its log the server keeps for a slot at most, as last asked.
    pub(crate) keeps_bytes_max: AtomicU64,
    /// The server refuses connections because it shuts down; it waits for the stream to leave.
    pub(crate) server_leaves: AtomicBool,
    /// Gaps that were gone past: what was begun to be read before counts no more.
    pub(crate) gaps: AtomicU64,
    /// Where an order to repair tables is laid.
    pub(crate) order_file: PathBuf,
    /// How runs are cut.
    pub(crate) sizes: Sizes,
    /// How fast snapshots are read.
    pub(crate) pacer: Pacer,
    /// Held while the server is judged, and while it is noted what is read of it.
    pub(crate) judging: Mutex<()>,
    pub(crate) at_rest: AtRest,
}

impl Shared {
    /// How much of its log the server keeps for a slot at most, if it has a limit.
    pub(crate) fn keeps_bytes_max(&self) -> Option<u64> {
        Some(self.keeps_bytes_max.load(Ordering::Relaxed)).filter(|bytes| *bytes < u64::MAX)
    }
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
    /// What of it shows that it is the server that was followed.
    pub(crate) belief: Belief,
    /// The snapshot, if the slot was made just now.
    pub(crate) fresh: Option<Fresh>,
}

/// A snapshot, and the tables whose changes after it are all in the stream.
pub(crate) struct Fresh {
    pub(crate) held: slot::Held,
    /// Of the server that it was taken on.
    pub(crate) timeline: u32,
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
        other => return Err(SourceError::WalLevel(cut(other))),
    }
    let started = belief::started(&mut sql).await?;
    let mut wire = target.open(Purpose::Replication).await?;
    // What is read from here on is not ahead of a log's end that was looked at before.
    let turn = shared.judging.lock().await;
    let server = slot::identify(&mut wire).await?;
    let found = slot::look(&mut sql, &shared.names.slot).await?;
    let mut durable = shared.keep.session().await?;
    let in_use = found.as_ref().is_some_and(|slot| slot.active);
    // Nothing is changed on a server, or for a slot, that is not ours.
    let judged = judge(shared, &server, found.as_ref(), durable).await;
    let standing = match waiting::explain(&mut sql, judged).await? {
        Ok(standing) => standing,
        Err((origin, broken)) => {
            let anew = Box::pin(bridge::anew(shared, &mut sql, &server, found.as_ref()));
            let stood = (origin, durable);
            Standing::Continues(bridge::go_past(shared, &server, stood, broken, anew).await?)
        }
    };
    drop(turn);
    if let Standing::Continues(confirmed) = standing
        && let Some(whole) = shared.keep.whole().await?
    {
        durable = go_back(shared, whole, confirmed, in_use).await?;
    }
    if let (Standing::Continues(_), Some(slot), false) =
        (&standing, &found, shared.names.slot_given)
    {
        slot::ready_for_failover(&mut wire, &shared.names.slot, slot).await?;
    }
    let listing = tables(shared, &mut sql).await?;
    let tables: BTreeSet<u32> = listing.tables.keys().copied().collect();
    let (confirmed, fresh) = match standing {
        Standing::Continues(confirmed) => (confirmed, None),
        Standing::New { .. } if tables.is_empty() => {
            return Err(nothing_to_copy(shared, listing));
        }
        Standing::New { leftover } => {
            if leftover {
                slot::drop_slot(&mut sql, &shared.names.slot).await?;
            }
            let held = make(shared, &target, &server).await?;
            (held.position, Some(Fresh { held, timeline: server.timeline, tables }))
        }
    };
    let described = catalog::describe(&mut sql, listing.tables.keys().copied()).await?;
    let binary = described.values().all(catalog::Described::renders_binary);
    let belief = belief::judge(&*shared.facts, durable, confirmed, started)?;
    Ok(Session { wire, sql, durable, confirmed, binary, belief, fresh })
}

/// Lists the tables and brings the publications to them; raises or takes down the alarm `tables`.
pub(crate) async fn tables(shared: &Shared, sql: &mut Wire) -> Result<Listing, SourceError> {
    let mut attempts = LIST_ATTEMPTS;
    let listing = loop {
        attempts -= 1;
        match publish(shared, sql).await {
            Ok(listing) => break listing,
            // A table was dropped between the two: look again.
            Err(error) if error.is_of_a_moving_catalog() && attempts > 0 => {}
            Err(error) => return Err(error),
        }
    };
    let refused =
        listing.refused.iter().map(|(table, refusal)| format!("{table}: {}", refusal.why));
    let append = listing.tables.values().filter(|table| !table.identified).map(|table| {
        let (name, why) = (table.qualified(), table.append_only());
        format!("{name}: only inserts and truncates are captured, as {why}")
    });
    let told: Vec<String> = refused.chain(append).collect();
    match told.is_empty() {
        true => shared.board.calm(TABLES_ALARM),
        false => {
            let privileges = |refusal: &Refusal| refusal.cause == Cause::SourcePrivilege;
            let cause = match listing.refused.values().any(privileges) {
                true => Cause::SourcePrivilege,
                false => Cause::TableRefused,
            };
            let some = told.iter().take(TOLD_TABLES_MAX).map(String::as_str).collect::<Vec<_>>();
            let mut what = some.join("; ");
            if let more @ 1.. = told.len() - some.len() {
                what += &format!("; and {more} more: `lakehead check` names them");
            }
            shared.board.alarm(TABLES_ALARM, cause, &what, shared.clock.wall());
        }
    }
    Ok(listing)
}

/// Lists the tables and brings the publications to them. Those of which more is published from then on are read anew, if
/// they were copied before: what was not published of them is not known.
async fn publish(shared: &Shared, sql: &mut Wire) -> Result<Listing, SourceError> {
    let mut listing = catalog::list(sql, &shared.patterns).await?;
    let due = publication::due(sql, &shared.names, &mut listing).await?;
    let is_copied = |id: &&u32| shared.facts.get(&plan_fact(**id)).is_some();
    let more: BTreeSet<u32> = due.more.iter().filter(is_copied).copied().collect();
    for table in more.iter().filter_map(|id| listing.tables.get(id)) {
        let table = table.qualified();
        tracing::warn!(table, "not all of its changes were published, from now on they are");
    }
    rewritten::doubt(&*shared.facts, &more).await?;
    publication::bring(sql, &shared.names, &due).await?;
    Ok(listing)
}

/// How often tables are listed until the publications could be brought to them.
const LIST_ATTEMPTS: u32 = 5;

/// Why there is no table to begin with.
fn nothing_to_copy(shared: &Shared, listing: Listing) -> SourceError {
    let unreadable = |refusal: &Refusal| refusal.cause == Cause::SourcePrivilege;
    match listing.refused.into_iter().find(|(_, refusal)| unreadable(refusal)) {
        Some((table, refusal)) => SourceError::Unreadable { table, why: refusal.why },
        None => SourceError::NoTables(shared.patterns.to_string()),
    }
}

/// How a session stands to what was before it.
pub(crate) enum Standing {
    /// The slot is ours, and confirmed up to here.
    Continues(Position),
    /// There is no slot yet, but for one that an earlier start of ours made and left.
    New { leftover: bool },
}

/// How it stands, or the origin that the server does not continue, and why.
pub(crate) type Judged = Result<Standing, (Origin, Break)>;

/// Judges whether the server continues what this box holds.
pub(crate) async fn judge(
    shared: &Shared,
    server: &origin::Server,
    found: Option<&origin::Slot>,
    durable: Durable,
) -> Result<Judged, SourceError> {
    let names = &shared.names;
    let confirmed = found.and_then(|slot| slot.confirmed).unwrap_or_default();
    if let Some(origin) = facts::read::<Origin>(&*shared.facts, ORIGIN_FACT)? {
        // The operator may have named another slot since.
        let made = origin.made && origin.slot == names.slot;
        let origin = Origin { slot: names.slot.clone(), made, ..origin };
        let (held, regress) = (durable.point.position, bridge::regress(shared)?);
        let read = reach::reached(&*shared.facts, origin.timeline)?;
        let checked = origin::check(&origin, server, found, (held, read), regress.as_deref());
        let continues = match checked {
            Ok(continues) => continues,
            Err(broken) => return Ok(Err((origin, broken))),
        };
        if let Continues::NewTimeline { timeline, branched } = continues {
            tracing::warn!(timeline, %branched, "a standby was promoted; the slot continues");
            let mut batch = FactBatch::default();
            reach::forget(origin.timeline, &mut batch);
            batch.put(ORIGIN_FACT, &Origin { timeline, ..origin });
            shared.facts.record(batch).await?;
        }
        return Ok(Ok(Standing::Continues(confirmed)));
    }
    if durable != Durable::default() {
        return Err(SourceError::Gap(format!(
            "the journal holds changes up to {}, but not which slot they came from",
            durable.point.position
        )));
    }
    let Some(slot) = found else {
        return Ok(Ok(Standing::New { leftover: false }));
    };
    if names.slot_given {
        // The first snapshot is taken later, and stands at a position of its own.
        let origin = first_origin(shared, server, confirmed);
        origin::check(&origin, server, Some(slot), Default::default(), None)
            .map_err(|broken| SourceError::Gap(broken.what))?;
        record(shared, &origin).await?;
        return Ok(Ok(Standing::Continues(confirmed)));
    }
    let intent: Option<String> = facts::read(&*shared.facts, INTENT_FACT)?;
    match (intent.as_ref() == Some(&names.slot), slot.active) {
        (true, false) => Ok(Ok(Standing::New { leftover: true })),
        (true, true) => Err(SourceError::StillMade { slot: names.slot.clone(), waits: None }),
        (false, _) => Err(SourceError::Gap(format!(
            "the replication slot `{0}` exists, and this box did not make it: continue the chain of the box that did with `lakehead adopt`, or, if nobody needs it, SELECT pg_drop_replication_slot('{0}')",
            names.slot
        ))),
    }
}

/// Goes back to `whole`, behind which the journal is damaged, if the server sends again what came after.
async fn go_back(
    shared: &Shared,
    whole: Durable,
    confirmed: Position,
    in_use: bool,
) -> Result<Durable, SourceError> {
    let held = whole.point.position;
    let begins = facts::read::<Origin>(&*shared.facts, ORIGIN_FACT)?;
    if confirmed > held.max(begins.map_or(held, |origin| origin.consistent_point)) {
        return Err(SourceError::Gap(format!(
            "the journal of this box is damaged: what came after {held} cannot be read, and the server was allowed to forget changes up to {confirmed}"
        )));
    }
    if in_use {
        // Whoever has it could still move it.
        return Err(SourceError::broken("go back to before damage", "the slot is still in use"));
    }
    tracing::warn!(%held, "the journal is damaged: the server is asked again for all that came after");
    Ok(shared.keep.rewind(whole).await?)
}

/// Makes the slot and records the origin.
async fn make(
    shared: &Shared,
    target: &Target,
    server: &origin::Server,
) -> Result<slot::Held, SourceError> {
    let mut intent = FactBatch::default();
    intent.put(INTENT_FACT, &shared.names.slot);
    shared.facts.record(intent).await?;
    let maker = maker(target, server).await?;
    tracing::info!("making the replication slot");
    let held = waiting::create(shared, target, maker, &shared.names.slot, false).await?;
    record_made(shared, server, held.position).await?;
    Ok(held)
}

/// Records that this box made its slot.
pub(crate) async fn record_made(
    shared: &Shared,
    server: &origin::Server,
    at: Position,
) -> Result<(), SourceError> {
    record(shared, &Origin { made: true, ..first_origin(shared, server, at) }).await
}

/// A connection to make a slot by. It must be to the server that was judged: in the meantime another one may
/// have taken its place, and the slot would begin on a timeline that nobody has noted.
pub(crate) async fn maker(target: &Target, judged: &origin::Server) -> Result<Wire, SourceError> {
    let mut wire = target.open(Purpose::Replication).await?;
    judged.is_still(&slot::identify(&mut wire).await?)?;
    Ok(wire)
}

fn first_origin(shared: &Shared, server: &origin::Server, consistent_point: Position) -> Origin {
    Origin {
        system_identifier: server.system_identifier.clone(),
        timeline: server.timeline,
        database: server.database.clone(),
        slot: shared.names.slot.clone(),
        publication: shared.names.publication.clone(),
        append: shared.names.append.clone(),
        consistent_point,
        made: false,
    }
}

async fn record(shared: &Shared, origin: &Origin) -> Result<(), SourceError> {
    let mut batch = FactBatch::default();
    batch.put(ORIGIN_FACT, origin).delete(INTENT_FACT);
    belief::begin(origin.consistent_point, &mut batch);
    Ok(shared.facts.record(batch).await?)
}

/// Key of the name of a slot that is about to be made.
pub(crate) const INTENT_FACT: &str = "source/intent";
/// The alarm that names tables which cannot be copied, or not wholly.
const TABLES_ALARM: &str = "tables";
/// So many of them.
const TOLD_TABLES_MAX: usize = 50;
