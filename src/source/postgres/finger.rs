//! The connection that feels: what small things take on the server while a snapshot is read, how much others do, and
//! whether somebody waits for a table that is being read.
//!
//! A small commit is a logical message without content: some hundred bytes of log, written and fsynced as
//! anybody's commit is. A role that may not write one asks for nothing instead, which feels less. A page is a random
//! one of the table that is read, of which most are not in memory, as those are that others have to wait for. How far
//! standbys are behind the server tells to roles in `pg_read_all_stats` only.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{error::SourceError, felt::Sense, message::unknown, pace::Heap, wire::Wire};
use crate::units::Position;

pub(super) struct Finger {
    wire: Wire,
    commits: &'static str,
    /// Whether a transaction was begun.
    begun: bool,
    /// Whether standbys were seen when it was looked last.
    standbys: bool,
    /// What was committed that some standby may lack: up to where, and when.
    sent: VecDeque<(Position, Instant)>,
    /// When it was looked last who waits.
    looked: Option<Instant>,
    /// Tables that somebody was seen waiting for.
    waited_for: BTreeSet<u32>,
}

/// What the server's statistics have counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// Transactions that ended in the cluster.
    pub(super) transactions: u64,
    /// Pages that had to be read, but for those of the tables that we read.
    pub(super) missed: u64,
}

impl Count {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            transactions: self.transactions.saturating_sub(before.transactions),
            missed: self.missed.saturating_sub(before.missed),
        }
    }
}

impl Finger {
    pub(super) async fn new(mut wire: Wire) -> Result<Self, SourceError> {
        // A standby that is waited for is felt by itself, and may be away.
        wire.query("set up the session", LOCALLY).await?;
        wire.query("set up the session", BRIEFLY).await?;
        let commits = match wire.query("feel the pulse", COMMIT).await {
            Ok(_) => COMMIT,
            Err(SourceError::Server { .. }) => NOTHING,
            Err(error) => return Err(error),
        };
        let waited_for = BTreeSet::new();
        let (begun, standbys, sent) = (false, false, VecDeque::new());
        Ok(Self { wire, commits, begun, standbys, sent, looked: None, waited_for })
    }

    /// Reads some page of a table, in a transaction that [`Finger::commit`] ends; `false`, without one, if the server
    /// refused, as it does where somebody waits to lock the table.
    pub(super) async fn page(&mut self, heap: &Heap) -> Result<bool, SourceError> {
        let (name, block) = (&heap.name, fastrand::u32(..heap.blocks.max(1)));
        let sql = format!("BEGIN; SELECT 1 FROM ONLY {name} WHERE ctid = '({block},1)'");
        match self.wire.query("read a page", &sql).await {
            Ok(_) => self.begun = true,
            Err(SourceError::Server { .. }) => {
                self.wire.query("read no page", "ROLLBACK").await?;
            }
            Err(error) => return Err(error),
        }
        Ok(self.begun)
    }

    /// Commits something small.
    pub(super) async fn commit(&mut self, now: Instant) -> Result<(), SourceError> {
        let commits = self.commits;
        // What is felt at once is one transaction: others are counted by what is left.
        let rows = match std::mem::take(&mut self.begun) {
            true => self.wire.query("feel the pulse", &format!("{commits}; COMMIT")).await?,
            false => self.wire.query("feel the pulse", commits).await?,
        };
        if self.standbys
            && self.commits == COMMIT
            && let Some(row) = rows.first()
        {
            self.sent.push_back((row.parse_as(0)?, now));
        }
        Ok(())
    }

    /// How far the farthest standby is behind, of those that commits wait for and of the others.
    pub(super) async fn standbys(
        &mut self,
        now: Instant,
    ) -> Result<Vec<(Sense, Duration)>, SourceError> {
        if !self.standbys {
            self.sent.clear();
            return Ok(vec![]);
        }
        let rows = self.wire.query("look at the standbys", STANDBYS).await?;
        let (mut behind, mut all) = (vec![], Position(u64::MAX));
        for row in &rows {
            let sense = if row.flag(0) { Sense::Waited } else { Sense::Follower };
            let (has, said): (Position, u64) = (row.parse_as(1)?, row.parse_as(2)?);
            // What it said last is of what it has. What it has not yet says more.
            let lacks = self.sent.iter().find(|(position, _)| *position > has);
            let waits = lacks.map(|(_, sent)| now.saturating_duration_since(*sent));
            behind.push((sense, waits.unwrap_or_default().max(Duration::from_micros(said))));
            all = all.min(has);
        }
        while self.sent.len() > SENT_MAX || self.sent.front().is_some_and(|sent| sent.0 <= all) {
            self.sent.pop_front();
        }
        Ok(behind)
    }

    /// What the statistics have counted; pages of `tables` are ours.
    pub(super) async fn count(&mut self, tables: &[Heap]) -> Result<Count, SourceError> {
        let ids: Vec<String> = tables.iter().map(|heap| heap.id.to_string()).collect();
        let sql = COUNTS.replace("{ids}", &ids.join(","));
        let rows = self.wire.query("count transactions", &sql).await?;
        let row = rows.first().ok_or_else(|| unknown("transactions", "no row"))?;
        self.standbys = row.optional(2) == Some("t");
        let missed: i64 = row.parse_as(1)?;
        Ok(Count { transactions: row.parse_as(0)?, missed: u64::try_from(missed).unwrap_or(0) })
    }

    /// Looks every second whether somebody waits for a table that we have locked, and says who reads it of
    /// those who waited at the last look, too.
    pub(super) async fn look_for_waiters(
        &mut self,
        now: Instant,
    ) -> Result<Option<BTreeSet<u32>>, SourceError> {
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
            return Ok(None);
        }
        self.looked = Some(now);
        let rows = self.wire.query("look who waits", WAITERS).await?;
        let tables: Result<BTreeSet<u32>, _> = rows.iter().map(|row| row.parse_as(0)).collect();
        let tables = tables?;
        let still = tables.intersection(&self.waited_for).copied().collect();
        self.waited_for = tables;
        Ok(Some(still))
    }
}

const LOCALLY: &str = "SELECT set_config('synchronous_commit', 'local', false) \
     WHERE current_setting('synchronous_commit') <> 'off'";
/// Who waits to lock a table is not to wait for a page of it, nor we for him.
const BRIEFLY: &str = "SET lock_timeout = '50ms'";
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'lakehead', '')";
const NOTHING: &str = "SELECT 1";
/// 0 transactions, 1 pages, 2 whether there are standbys that can be seen. What a session did is counted when its
/// transaction ends, in its database and its tables at once.
const COUNTS: &str = "SELECT coalesce(sum(xact_commit + xact_rollback), 0)::int8,
    coalesce(sum(blks_read), 0)::int8 - (SELECT coalesce(sum(pg_stat_get_blocks_fetched(heap) - pg_stat_get_blocks_hit(heap)), 0)::int8
        FROM (SELECT unnest(ARRAY[oid, reltoastrelid]) AS heap FROM pg_class WHERE oid = ANY ('{{ids}}'::oid[])) AS ours),
    EXISTS (SELECT FROM pg_stat_replication WHERE flush_lsn IS NOT NULL)
    FROM pg_stat_database";
/// Of those that commits wait for, and of the others: 0 whether it is the former, 1 what each has, 2 how many microseconds
/// it took with what they had last. Who reads changes is no standby.
const STANDBYS: &str = "SELECT waited, min(flush_lsn), (coalesce(extract(epoch FROM max(flush_lag)), 0) * 1000000)::int8 FROM (
        SELECT r.flush_lsn, greatest(r.flush_lag, '0') AS flush_lag, r.sync_state IN ('sync', 'quorum') AS waited
        FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE r.flush_lsn IS NOT NULL AND s.slot_type IS DISTINCT FROM 'logical') AS standbys GROUP BY waited";
/// Who blocks whom is asked only where somebody waits for a table of this database.
const WAITERS: &str = "SELECT DISTINCT relation FROM pg_locks WHERE CASE \
     WHEN NOT granted AND locktype = 'relation' \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     THEN pg_blocking_pids(pid) && \
         ARRAY(SELECT pid FROM pg_stat_activity WHERE usename = current_user \
             AND application_name = current_setting('application_name')) \
     ELSE false END";
/// A standby that lacks more is far behind by the first of them.
const SENT_MAX: usize = 10_000;
const LOOK_EVERY: Duration = Duration::from_secs(1);
