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
    /// Whether the server tells of its standbys.
    sees_standbys: bool,
    /// Whether its own are counted when it says so.
    flushes: bool,
    /// Whether a transaction was begun.
    begun: bool,
    /// Transactions that this connection ended.
    ended: u64,
    /// What was committed that some standby may lack: up to where, and when.
    sent: VecDeque<(Position, Instant)>,
    /// When it was looked last who waits.
    looked: Option<Instant>,
    /// Tables that somebody was seen waiting for.
    waited_for: BTreeSet<u32>,
}

/// What the server's statistics have counted so far in the cluster, but for this connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    /// Transactions that ended.
    pub(super) transactions: u64,
    /// Pages that had to be read; this connection's are among them.
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
        let commits = match allowed(&mut wire, COMMIT).await? {
            true => COMMIT,
            false => NOTHING,
        };
        let sees_standbys = allowed(&mut wire, STANDBYS).await?;
        let flushes = wire.version() >= FLUSH_SINCE && allowed(&mut wire, FLUSH).await?;
        let (begun, ended) = (false, 0);
        let (sent, looked, waited_for) = (VecDeque::new(), None, BTreeSet::new());
        Ok(Self { wire, commits, sees_standbys, flushes, begun, ended, sent, looked, waited_for })
    }

    /// Begins a transaction, and reads some page of a table in it; `false` if the server refused, as it does where
    /// somebody waits to lock the table.
    pub(super) async fn page(&mut self, heap: &Heap) -> Result<bool, SourceError> {
        let (name, block) = (&heap.name, fastrand::u32(..heap.blocks.max(1)));
        let sql = format!("{PAGE} {name} WHERE ctid = '({block},1)'");
        let read = allowed(&mut self.wire, &sql).await?;
        self.begun = true;
        // The table is locked no longer, and what was refused is forgotten.
        self.wire.query("leave the page", "ROLLBACK TO page").await?;
        Ok(read)
    }

    /// Commits something small. What is felt at once is one transaction: others are counted by what is left.
    pub(super) async fn commit(&mut self, now: Instant) -> Result<(), SourceError> {
        let begin = if std::mem::take(&mut self.begun) { "" } else { "BEGIN; " };
        let sql = format!("{begin}{}; COMMIT", self.commits);
        let rows = self.wire.query("feel the pulse", &sql).await?;
        self.ended += 1;
        if self.sees_standbys
            && self.commits == COMMIT
            && let Some(row) = rows.first()
        {
            self.sent.push_back((row.parse_as(0)?, now));
        }
        Ok(())
    }

    /// How far the farthest standby is behind, of those that commits wait for and of the others; in the transaction that
    /// was begun.
    pub(super) async fn standbys(
        &mut self,
        now: Instant,
    ) -> Result<Vec<(Sense, Duration)>, SourceError> {
        if !self.sees_standbys {
            return Ok(vec![]);
        }
        let begin = if self.begun { "" } else { "BEGIN; " };
        let rows = self.wire.query("look at the standbys", &format!("{begin}{STANDBYS}")).await?;
        self.begun = true;
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

    /// What the statistics have counted. What this connection did is in them from here on.
    pub(super) async fn count(&mut self) -> Result<Count, SourceError> {
        if self.flushes {
            self.wire.query("have it counted", FLUSH).await?;
            self.ended += 1;
        }
        let rows = self.wire.query("count transactions", COUNTS).await?;
        let row = rows.first().ok_or_else(|| unknown("transactions", "no row"))?;
        let (transactions, missed): (u64, u64) = (row.parse_as(0)?, row.parse_as(1)?);
        let count = Count { transactions: transactions.saturating_sub(self.ended), missed };
        self.ended += 1;
        Ok(count)
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
        self.ended += 1;
        let tables: Result<BTreeSet<u32>, _> = rows.iter().map(|row| row.parse_as(0)).collect();
        let tables = tables?;
        let still = tables.intersection(&self.waited_for).copied().collect();
        self.waited_for = tables;
        Ok(Some(still))
    }
}

/// Whether the server does it.
async fn allowed(wire: &mut Wire, sql: &str) -> Result<bool, SourceError> {
    match wire.query("feel the pulse", sql).await {
        Ok(_) => Ok(true),
        Err(SourceError::Server { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

const LOCALLY: &str = "SELECT set_config('synchronous_commit', 'local', false) \
     WHERE current_setting('synchronous_commit') <> 'off'";
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'lakehead', '')";
const NOTHING: &str = "SELECT 1";
/// Who waits to lock a table is not to wait for a page of it, nor we for him: neither for longer than it takes, nor until
/// the commit.
const PAGE: &str = "BEGIN; SAVEPOINT page; SET LOCAL lock_timeout = '50ms'; \
     SELECT 1 FROM ONLY";
/// A session's own are counted when it pleases, unless it says so.
const FLUSH_SINCE: u32 = 150_000;
const FLUSH: &str = "SELECT pg_stat_force_next_flush()";
/// 0 transactions, 1 pages.
const COUNTS: &str = "SELECT coalesce(sum(xact_commit + xact_rollback), 0)::int8, \
     coalesce(sum(blks_read), 0)::int8 FROM pg_stat_database";
/// Of those that commits wait for, and of the others: 0 whether it is the former, 1 what each has, 2 how many microseconds
/// it took with what they had last. Of a quorum commits wait for the k fastest; where none that is named keeps up, for
/// whichever does first. Who reads changes, or only keeps the log, is no standby.
const STANDBYS: &str = "WITH senders AS (
        SELECT r.flush_lsn, greatest(r.flush_lag, '0') AS flush_lag, r.sync_state, r.sync_priority, r.replay_lsn
        FROM pg_stat_get_wal_senders() r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE r.flush_lsn IS NOT NULL AND s.slot_type IS DISTINCT FROM 'logical'),
    quorum AS (SELECT coalesce(substring(current_setting('synchronous_standby_names') from '(?i)^\\s*any\\s+(\\d+)'), '1')::int AS k),
    ranked AS (
        SELECT *, row_number() OVER (PARTITION BY sync_state ORDER BY flush_lsn DESC) AS rank,
            coalesce(bool_or(sync_state IN ('sync', 'quorum')) OVER (), false) AS kept_up FROM senders),
    judged AS (
        SELECT flush_lsn, flush_lag, replay_lsn, CASE sync_state WHEN 'sync' THEN true WHEN 'quorum' THEN rank <= k
            ELSE sync_priority > 0 AND NOT kept_up END AS waited FROM ranked, quorum)
    SELECT waited, min(flush_lsn), (extract(epoch FROM max(flush_lag)) * 1000000)::int8
    FROM judged WHERE waited OR replay_lsn IS NOT NULL GROUP BY waited";
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
