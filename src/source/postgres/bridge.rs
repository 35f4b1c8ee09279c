//! Goes on behind a gap: notes what is lost, for the ledger; takes a slot that begins behind it; has all
//! tables read anew, or compared first (`repair`).
//!
//! | fact | what |
//! |---|---|
//! | `source/regress` | the sentence of a log that went back, until it is gone past |
//! | `source/repair/<to>` | a [`Repair`] under way, behind the gap that ends there |
//!
//! **Invariant:** origin, gap and repair are one record. A crash after the slot was made and before that
//! leaves a slot that stands behind what is held, which is the same gap (DESIGN §4). No part that was begun
//! before a gap counts behind it: nothing is forgotten before its pass has ended.

use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{
    connect::Target,
    error::SourceError,
    gone,
    origin::{Break, Server, Slot, Way},
    reach, repair,
    session::{self, Shared},
    slot, waiting,
    wire::Wire,
};
use crate::{
    error::Cause,
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{Durable, ORIGIN_FACT, Origin, gap::Gap},
    units::Position,
};

/// The repair of all tables.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Repair {
    /// How it came, in a sentence.
    pub(crate) what: String,
    /// Whether what was read before is forgotten, of those that are read anew.
    pub(crate) begun: bool,
}

/// What was seen of a log that went back.
pub(crate) fn regress(shared: &Shared) -> Result<Option<String>, FactDamaged> {
    facts::read(&*shared.facts, REGRESS_FACT)
}

/// Remembers that the server's log went back and has grown since: what it sent again is not what is held. Why the
/// session ends: the next one goes past that.
pub(crate) async fn went_back(shared: &Shared) -> SourceError {
    let held = shared.keep.durable().borrow().point.position;
    let what = format!(
        "the server does not send again what this box followed up to {held}: the database was restored to an earlier state, and went on from there, or its slot was copied without its snapshots"
    );
    let mut seen = FactBatch::default();
    seen.put(REGRESS_FACT, &what);
    match shared.facts.record(seen).await {
        Ok(()) => SourceError::broken("stream changes", what),
        Err(error) => error.into(),
    }
}

/// The repairs that are under way. Each gap has its own: another task may be passing the next one.
fn repairs(facts: &dyn Facts) -> Result<Vec<(String, Repair)>, FactDamaged> {
    facts::read_all(facts, REPAIR_FACTS)
}

/// Goes past a break, if it can be; gives where the changes behind it begin. `anew`: makes the slot anew,
/// where that is the way.
///
/// # Errors
///
/// [`SourceError::Gap`] if it is for a person or for time to mend; or what the server says.
pub(crate) async fn go_past(
    shared: &Shared,
    server: &Server,
    (origin, durable): (Origin, Durable),
    broken: Break,
    anew: BoxFuture<'_, Result<Position, SourceError>>,
) -> Result<Position, SourceError> {
    let Break { what, way } = broken;
    let made = way == Way::New;
    let to = match way {
        Way::At(position) => position,
        Way::New if !shared.names.slot_given => anew.await?,
        Way::Later | Way::Back => {
            if way == Way::Back {
                let mut seen = FactBatch::default();
                seen.put(REGRESS_FACT, &what);
                shared.facts.record(seen).await?;
            }
            let read = reach::reached(&*shared.facts, origin.timeline)?;
            let held = durable.point.position.max(origin.consistent_point).max(read);
            return Err(SourceError::Gap(format!(
                "{what}; going on behind it once its log has grown past {held}"
            )));
        }
        Way::New => {
            let name = &shared.names.slot;
            return Err(SourceError::Gap(format!(
                "{what}; `slot` names one that is not this box's own: SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
            )));
        }
        Way::Stop => return Err(SourceError::Gap(what)),
    };
    let began = origin.consistent_point;
    let gap = Gap { after: durable.batch, began, to, what: what.clone() };
    let mut batch = FactBatch::default();
    reach::pass(&*shared.facts, origin.timeline, to, &mut batch)?;
    let origin = Origin { timeline: server.timeline, consistent_point: to, made, ..origin };
    batch
        .put(gap.fact(), &gap)
        .put(ORIGIN_FACT, &origin)
        .put(format!("{REPAIR_FACTS}{}", to.key()), &Repair { what: what.clone(), begun: false })
        .delete(REGRESS_FACT);
    repair::wait(&*shared.facts, shared.config.after_gap, to, &mut batch)?;
    shared.facts.record(batch).await?;
    shared.gaps.fetch_add(1, Ordering::Relaxed);
    tracing::error!(what, %to, "a gap: going on behind it, where tables are repaired");
    shared.board.alarm(ALARM, Cause::SourceRepair, &what, shared.clock.wall());
    Ok(to)
}

/// A slot made anew, in the place of one that is of no use. Behind the publications: a change is judged by
/// those that were there when it was made.
pub(crate) async fn anew(
    shared: &Shared,
    sql: &mut Wire,
    server: &Server,
    found: Option<&Slot>,
) -> Result<Position, SourceError> {
    let name = &shared.names.slot;
    session::tables(shared, sql).await?;
    if let Some(found) = found {
        if found.active {
            return Err(SourceError::InUse { slot: name.clone() });
        }
        slot::drop_slot(sql, name).await?;
    }
    let target = Target::load(&shared.config, &shared.url)?;
    let maker = session::maker(&target, server).await?;
    Ok(waiting::create(shared, &target, maker, name, false).await?.position)
}

/// Brings a repair forward. While a pass is `running` that was begun before, nothing is forgotten. Whether
/// all tables are to be looked at anew.
pub(crate) fn look(
    facts: &dyn Facts,
    running: bool,
    batch: &mut FactBatch,
) -> Result<bool, FactDamaged> {
    let mut due = repairs(facts)?;
    due.retain(|(_, repair)| !repair.begun);
    if running || due.is_empty() {
        return Ok(false);
    }
    gone::all_anew(facts, batch)?;
    for (fact, repair) in due {
        batch.put(fact, &Repair { begun: true, ..repair });
    }
    Ok(true)
}

/// Tells of a repair, or that it has ended: all tables are `whole`. `refused`: why an order is.
pub(crate) async fn tell(
    shared: &Shared,
    whole: bool,
    refused: Option<&str>,
) -> Result<(), SourceError> {
    let mut open = repairs(&*shared.facts)?;
    let ended = open.extract_if(.., |(_, repair)| whole && repair.begun);
    let mut done = FactBatch::default();
    for (fact, repair) in ended {
        done.delete(fact);
        tracing::warn!(gap = repair.what, "all tables are repaired behind the gap");
    }
    if !done.changes.is_empty() {
        shared.facts.record(done).await?;
    }
    let waiting = repair::waiting(&*shared.facts)?;
    let refused = refused.map(|why| format!("; the order there is refused: {why}"));
    let now = shared.clock.wall();
    match open.last() {
        None => shared.board.calm(ALARM),
        Some((_, Repair { what, .. })) if waiting.is_empty() => {
            shared.board.alarm(ALARM, Cause::SourceRepair, what, now);
        }
        Some((_, Repair { what, .. })) => {
            let tables = shortened(&waiting);
            let what = format!("{what}; to be compared: {tables}{}", refused.unwrap_or_default());
            shared.board.alarm(ALARM, Cause::SourceCompare, &what, now);
        }
    }
    Ok(())
}

/// The first names, and how many there are more.
fn shortened(names: &[String]) -> String {
    let first = names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

const NAMES_SHOWN: usize = 10;
const REGRESS_FACT: &str = "source/regress";
const REPAIR_FACTS: &str = "source/repair/";
/// The alarm for tables that are repaired behind a gap.
const ALARM: &str = "repair";
