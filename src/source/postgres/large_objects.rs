//! Looks for large objects ([`large_object`](crate::source::large_object)) beside the tables: which there are, and
//! whether the lake has them. What it lacks `large_object_parts` reads.
//!
//! Cheap for the server (P5): nothing is read while its log stands still, and the longer a look takes, the longer the
//! next one waits. A page of numbers at a time is held (P4). What the role may not read stops nothing: an alarm
//! names it, with the statement that mends it.
//!
//! **Invariant:** of a position at which a look stands, every transaction that was committed up to there is seen by
//! the look. A commit is in the log before others see it, as long as a standby is waited for. So a position counts
//! once all transactions have ended that were open when it was read.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    catalog::identifier, error::SourceError, large_object_parts, session::Shared, slot, wire::Wire,
};
use crate::{
    config,
    error::Cause,
    facts::{self, FactBatch, FactDamaged, Facts},
    source::{
        ORIGIN_FACT, Origin, RowBatch, SnapshotChunk,
        large_object::{self, Begun, Held, LOOK_FACT, Look, runs},
        reread::{EPOCH_FACT, EpochEnd},
    },
    telemetry::board::SourceState,
    units::Position,
};

/// The looks of one process.
#[derive(Debug, Default)]
pub(crate) struct LargeObjects {
    /// A position that does not count yet, and the transaction that began first after it was read.
    anchor: Option<(Position, u64)>,
    /// The last position that counts.
    stands: Option<Position>,
    /// Where the server's log ended at the last look that found nothing to read.
    seen: Option<Position>,
    /// When a look found nothing to read, or reading began.
    looked: Option<Instant>,
    /// Not before then, so that looking takes no more than a hundredth of the server's time.
    rests: Option<Instant>,
    /// What is being read was cut short: it goes on at once.
    pub(super) is_cut: Arc<AtomicBool>,
    /// The channel of a look that seal may still be at.
    handed: Option<mpsc::Sender<RowBatch>>,
}

/// A page of the server's list.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// The first number that it speaks of.
    pub(super) from: u32,
    /// The last one.
    pub(super) to: u32,
    /// By number.
    pub(super) listed: BTreeMap<u32, Listed>,
}

/// A large object of the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Listed {
    pub(super) owner: String,
    pub(super) is_readable: bool,
}

/// How a page differs from what the lake has.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Difference {
    /// To be read, with the pieces that the lake has of an older one.
    pub(super) new: BTreeMap<u32, u32>,
    /// Gone, with the pieces that the lake has.
    pub(super) gone: BTreeMap<u32, u32>,
}

/// Those that the role may not read.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Closed {
    count: u64,
    first: Vec<u32>,
    owners: BTreeSet<String>,
}

impl LargeObjects {
    /// Looks, if it is time to. `Some`: where what is to be read now stands. What the server refuses is an alarm,
    /// and stops nothing.
    pub(crate) async fn look(
        &mut self,
        shared: &Shared,
        wire: &mut Wire,
        chunks: &mpsc::Sender<SnapshotChunk>,
        is_reading: bool,
    ) -> Result<Option<Position>, SourceError> {
        if shared.config.large_objects == config::LargeObjects::Leave {
            shared.board.calm(ALARM);
            return Ok(None);
        }
        match self.look_now(shared, wire, chunks, is_reading).await {
            Err(error) if error.is_of_a_moving_catalog() => Ok(None),
            Err(error @ SourceError::Server { .. }) => {
                self.looked = Some(shared.clock.now());
                tell_refused(shared, &error);
                Ok(None)
            }
            other => other,
        }
    }

    async fn look_now(
        &mut self,
        shared: &Shared,
        wire: &mut Wire,
        chunks: &mpsc::Sender<SnapshotChunk>,
        is_reading: bool,
    ) -> Result<Option<Position>, SourceError> {
        let last: Option<Look> = facts::read(&*shared.facts, LOOK_FACT)?;
        let end = slot::log_end(wire).await?;
        if self.seen == Some(end) {
            return Ok(None);
        }
        self.stand(wire, end).await?;
        let Some(stands) = self.stands.filter(|_| !is_reading && self.is_due(shared)) else {
            return Ok(None);
        };
        let begun = shared.clock.now();
        let differs = differs(shared, wire, last).await?;
        let now = shared.clock.now();
        self.rests = Some(now + 100 * now.saturating_duration_since(begun));
        self.looked = Some(now);
        match differs {
            Differs::Yes => return Ok(Some(stands)),
            Differs::No { any: false } => self.seen = Some(end),
            Differs::No { any: true } => {
                let last = last.unwrap_or_default();
                let epoch: Option<EpochEnd> = facts::read(&*shared.facts, EPOCH_FACT)?;
                let behind = epoch.is_some_and(|epoch| epoch.end.position > last.position);
                if behind && stands > last.position {
                    self.confirm(shared, last, stands, chunks)?;
                } else if stands == end || !behind {
                    self.seen = Some(end);
                }
            }
        }
        Ok(None)
    }

    fn is_due(&mut self, shared: &Shared) -> bool {
        if self.handed.as_ref().is_some_and(|handed| !handed.is_closed()) {
            return false;
        }
        self.handed = None;
        let (now, every) = (shared.clock.now(), shared.config.sequence_interval);
        let state = shared.board.look(|status| status.state);
        if self.is_cut.swap(false, Ordering::Relaxed) {
            return true;
        }
        (self.looked.is_none() || matches!(state, SourceState::Streaming | SourceState::Snapshot))
            && self.rests.is_none_or(|until| now >= until)
            && self.looked.is_none_or(|last| now.saturating_duration_since(last) >= every)
    }

    /// Brings the position that counts up to date.
    async fn stand(&mut self, wire: &mut Wire, end: Position) -> Result<(), SourceError> {
        let (oldest, next) = transactions(wire).await?;
        if let Some((position, _)) = self.anchor.take_if(|(_, next)| oldest >= *next) {
            self.stands = self.stands.max(Some(position));
        }
        // Read after the log's end: what was committed up to there is not open any more, or was begun before.
        let anchor = *self.anchor.get_or_insert((end, next));
        if transactions(wire).await?.0 >= anchor.1 {
            self.stands = self.stands.max(Some(anchor.0));
            self.anchor = None;
        }
        Ok(())
    }

    /// Has the ledger say that nothing changed.
    fn confirm(
        &mut self,
        shared: &Shared,
        last: Look,
        stands: Position,
        chunks: &mpsc::Sender<SnapshotChunk>,
    ) -> Result<(), SourceError> {
        let mut batch = FactBatch::default();
        batch.put(LOOK_FACT, &Look { position: stands, ..last });
        let (chunk, tell) = large_object_parts::end(shared, (stands, last.number), None, batch);
        match chunks.try_send(chunk) {
            Ok(()) => {
                self.handed = Some(tell);
                Ok(())
            }
            // Seal has enough to do.
            Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(SourceError::Ended),
        }
    }
}

enum Differs {
    Yes,
    No {
        /// Whether there are any, or were.
        any: bool,
    },
}

/// Whether the lake lacks anything, or what it has does not count.
async fn differs(
    shared: &Shared,
    wire: &mut Wire,
    last: Option<Look>,
) -> Result<Differs, SourceError> {
    let facts = &*shared.facts;
    let unfinished = last.is_some_and(|last| last.begun.is_some());
    let begun = large_object::begun(facts)?;
    let (mut from, mut any, mut closed) = (Some(0), last.is_some(), Closed::default());
    while let Some(first) = from {
        let page = page(wire, first).await?;
        any |= !page.listed.is_empty();
        if any && (unfinished || begins_anew(facts, last)?) {
            return Ok(Differs::Yes);
        }
        for range in runs((page.from, page.to)) {
            if difference(facts, &page, range, &begun)? != Difference::default() {
                return Ok(Differs::Yes);
            }
        }
        closed.add(&page);
        from = page.to.checked_add(1);
    }
    closed.tell(shared);
    Ok(Differs::No { any })
}

/// Whether all of them are to be read, because none were, or before the last gap.
pub(super) fn begins_anew(facts: &dyn Facts, last: Option<Look>) -> Result<bool, FactDamaged> {
    let origin: Option<Origin> = facts::read(facts, ORIGIN_FACT)?;
    let begins = origin.map(|origin| origin.consistent_point).unwrap_or_default();
    Ok(last.is_none_or(|last| last.stands() < begins))
}

/// How the page differs from what the lake has, within numbers of one run.
pub(super) fn difference(
    facts: &dyn Facts,
    page: &Page,
    (from, to): (u32, u32),
    begun: &Begun,
) -> Result<Difference, FactDamaged> {
    let held = large_object::held(facts, (from, to), begun)?;
    let mut found = Difference::default();
    for (id, listed) in page.listed.range(from..=to) {
        match held.get(id) {
            Some(Held { is_whole: true, .. }) => {}
            known if listed.is_readable => {
                found.new.insert(*id, known.map_or(0, |held| held.pieces));
            }
            // What the lake has of it stays.
            _ => {}
        }
    }
    let gone = held.iter().filter(|(id, _)| !page.listed.contains_key(id));
    found.gone = gone.map(|(id, held)| (*id, held.pieces)).collect();
    Ok(found)
}

/// The objects from this number on.
pub(super) async fn page(wire: &mut Wire, from: u32) -> Result<Page, SourceError> {
    let readable = readable(wire.version());
    let sql = format!(
        "SELECT m.oid, pg_get_userbyid(m.lomowner), {readable} FROM pg_largeobject_metadata m \
         WHERE m.oid >= {from} ORDER BY m.oid LIMIT {PAGE}"
    );
    let mut listed = BTreeMap::new();
    for row in wire.query(LOOKING, &sql).await? {
        let one = Listed { owner: row.text(1)?.into(), is_readable: row.flag(2) };
        listed.insert(row.parse_as(0)?, one);
    }
    let last = listed.last_key_value().map(|(id, _)| *id);
    let to = last.filter(|_| listed.len() >= PAGE).unwrap_or(u32::MAX);
    Ok(Page { from, to, listed })
}

/// The condition under which the session's role may read the object `m`.
pub(super) fn readable(version: u32) -> &'static str {
    match version {
        180_000.. => "has_largeobject_privilege(m.oid, 'SELECT')",
        _ => {
            "(current_setting('lo_compat_privileges')::bool OR pg_has_role(m.lomowner, 'USAGE') OR EXISTS (SELECT FROM aclexplode(m.lomacl) a \
             WHERE a.privilege_type = 'SELECT' AND CASE a.grantee WHEN 0 THEN true ELSE pg_has_role(a.grantee, 'USAGE') END))"
        }
    }
}

/// The oldest transaction that is open, and the next one.
async fn transactions(wire: &mut Wire) -> Result<(u64, u64), SourceError> {
    let sql = "SELECT txid_snapshot_xmin(s), txid_snapshot_xmax(s) FROM txid_current_snapshot() s";
    let rows = wire.query(LOOKING, sql).await?;
    let row = rows.first().ok_or_else(|| super::message::unknown("no transactions", "no row"))?;
    Ok((row.parse_as(0)?, row.parse_as(1)?))
}

impl Closed {
    pub(super) fn add(&mut self, page: &Page) {
        for (id, listed) in page.listed.iter().filter(|(_, listed)| !listed.is_readable) {
            self.take(*id, &listed.owner);
        }
    }

    fn take(&mut self, id: u32, owner: &str) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(id);
        }
        if self.owners.len() < SHOWN {
            self.owners.insert(owner.into());
        }
    }

    /// Raises the alarm, or takes it down.
    pub(super) fn tell(&self, shared: &Shared) {
        match self.grant(&shared.url.user) {
            Some(what) => {
                let now = shared.clock.wall();
                shared.board.alarm(ALARM, Cause::SourcePrivilege, &what, now);
            }
            None => shared.board.calm(ALARM),
        }
    }

    /// What is to be granted, if some cannot be read.
    pub(super) fn grant(&self, role: &str) -> Option<String> {
        let role = identifier(role);
        let ids: Vec<String> = self.first.iter().map(ToString::to_string).collect();
        let owners: Vec<String> = self.owners.iter().map(|owner| identifier(owner)).collect();
        let (count, ids, owners) = (self.count, ids.join(", "), owners.join(", "));
        let grant = format!("GRANT SELECT ON LARGE OBJECT {ids} TO {role}");
        let more = count.saturating_sub(self.first.len() as u64);
        match (count, more) {
            (0, _) => None,
            (1, _) => Some(format!("1 large object cannot be read; run: {grant}")),
            (_, 0) => Some(format!("{count} large objects cannot be read; run: {grant}")),
            _ => Some(format!(
                "{count} large objects cannot be read; run: {grant} and {more} more, or make the role a member of their owners: GRANT {owners} TO {role}"
            )),
        }
    }
}

/// Counts those that the role may not read, of all; for `lakehead check`.
pub(super) async fn count(wire: &mut Wire) -> Result<(u64, Closed), SourceError> {
    let readable = readable(wire.version());
    let sql = format!(
        "SELECT count(*), count(*) FILTER (WHERE NOT {readable}) FROM pg_largeobject_metadata m"
    );
    let rows = wire.query_within(COUNT_LIMIT, LOOKING, &sql).await?;
    let Some(row) = rows.first() else { return Ok((0, Closed::default())) };
    let (all, closed): (u64, u64) = (row.parse_as(0)?, row.parse_as(1)?);
    let mut found = Closed::default();
    if closed > 0 {
        let sql = format!(
            "SELECT m.oid, pg_get_userbyid(m.lomowner) FROM pg_largeobject_metadata m \
             WHERE NOT {readable} ORDER BY m.oid LIMIT {SHOWN}"
        );
        for row in wire.query_within(COUNT_LIMIT, LOOKING, &sql).await? {
            found.take(row.parse_as(0)?, row.text(1)?);
        }
        found.count = closed.max(found.count);
    }
    Ok((all, found))
}

/// Raises the alarm: the server refuses to let them be looked at, or read.
pub(super) fn tell_refused(shared: &Shared, error: &SourceError) {
    tracing::warn!(%error, "large objects are not copied; rows are");
    let what = format!("large objects cannot be read: {error}");
    shared.board.alarm(ALARM, Cause::SourcePrivilege, &what, shared.clock.wall());
}

const LOOKING: &str = "look at large objects";
/// The alarm for those that cannot be read.
const ALARM: &str = "large-objects";
/// Numbers of objects held at once.
const PAGE: usize = 10_000;
const SHOWN: usize = 5;
const COUNT_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{facts::MemoryFacts, source::large_object::Part};

    fn page(from: u32, to: u32, listed: &[(u32, bool)]) -> Page {
        let one = |is_readable| Listed { owner: "shop".into(), is_readable };
        let listed = listed.iter().map(|(id, readable)| (*id, one(*readable))).collect();
        Page { from, to, listed }
    }

    #[test]
    fn what_is_closed_is_neither_new_nor_gone() {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        let key = large_object::part_fact(0);
        batch.put(&*key, &Part::Objects(BTreeMap::from([(1, 1), (2, 1), (3, 7)])));
        facts.record_blocking(batch).unwrap();
        let merged = large_object::merge(&facts, 0, &Begun::new()).unwrap();
        facts.record_blocking(merged).unwrap();
        let page = page(0, 9, &[(1, true), (2, false), (4, true), (5, false)]);
        let found = difference(&facts, &page, (0, 9), &Begun::new()).unwrap();
        let (new, gone) = (BTreeMap::from([(4, 0)]), BTreeMap::from([(3, 7)]));
        assert_eq!(found, Difference { new, gone });
    }

    #[test]
    fn all_are_read_behind_a_gap_and_at_first() {
        let (facts, mut batch) = (MemoryFacts::default(), FactBatch::default());
        let origin = r#"{"system_identifier":"7","timeline":1,"database":"erp","slot":"s","publication":"p","consistent_point":"00000000/0000000B"}"#;
        batch.changes.push((ORIGIN_FACT.into(), Some(origin.as_bytes().into())));
        facts.record_blocking(batch).unwrap();
        let at = |position, begun: Option<u64>| {
            let look = Look { position: Position(position), begun: begun.map(Position), number: 1 };
            begins_anew(&facts, Some(look)).unwrap()
        };
        assert!(begins_anew(&facts, None).unwrap() && at(10, None));
        assert!(!at(11, None) && !at(0, Some(11)));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_the_statement_that_mends_it() {
        let told = |count: u32| {
            let mut closed = Closed::default();
            closed.add(&page(0, u32::MAX, &(1..=count).map(|id| (id, false)).collect::<Vec<_>>()));
            closed.grant("box")
        };
        assert_eq!(told(0), None);
        let one = told(1).unwrap();
        assert!(one.ends_with(r#"GRANT SELECT ON LARGE OBJECT 1 TO "box""#), "{one}");
        let many = told(7).unwrap();
        assert!(many.contains(r#"ON LARGE OBJECT 1, 2, 3, 4, 5 TO "box" and 2 more"#), "{many}");
        assert!(many.ends_with(r#"GRANT "shop" TO "box""#), "{many}");
    }
}
