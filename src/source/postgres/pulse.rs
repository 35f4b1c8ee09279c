//! Feels the database's pulse while a snapshot is read: how long a small commit takes, how many transactions
//! others end, and whether somebody waits for a table that is being read. Steers the snapshot by it.
//!
//! A small commit is a logical message without content: some hundred bytes of log, written and fsynced as
//! anybody's commit is. A role that may not write one asks for nothing instead, which feels less.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{
    connect::{Backoff, Target},
    error::SourceError,
    governor::{Governor, Pace, RATE_MIN, Seen},
    login::Purpose,
    message::unknown,
    session::Shared,
    wire::Wire,
};
use crate::config::SnapshotPace;

/// Sets the pace to begin with, before anything is read.
pub(crate) fn begin(shared: &Shared) {
    if shared.config.snapshot_pace == SnapshotPace::Gentle {
        steer(shared, shared.pacer.governor().stretch().pace);
    }
}

/// Feels and steers, until dropped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    let mut governor = shared.pacer.governor();
    loop {
        let Err(error) = feel(&shared, &mut governor, &mut backoff).await;
        tracing::debug!(%error, "the database's pulse is not felt");
        shared.pacer.let_go();
        if shared.config.snapshot_pace == SnapshotPace::Gentle {
            // A database that lets nobody in has enough to do.
            steer(&shared, Pace::Rate(RATE_MIN));
        }
        sleep(backoff.next()).await;
    }
}

async fn feel(
    shared: &Shared,
    governor: &mut Governor,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let mut finger = Finger::new(target.open(Purpose::Sql).await?).await?;
    let gentle = shared.config.snapshot_pace == SnapshotPace::Gentle;
    let mut stretch = governor.stretch();
    loop {
        steer(shared, if gentle { stretch.pace } else { Pace::Free });
        let (start, read, parts) = (shared.clock.now(), shared.pacer.read(), shared.pacer.parts());
        let others = finger.transactions().await?;
        let mut commits = vec![];
        if stretch.pace == Pace::Paused {
            // What was under way comes to rest.
            sleep(REST).await;
        }
        while shared.clock.now().saturating_duration_since(start) < stretch.length {
            if gentle && stretch.pace != Pace::Free {
                commits.push(commit(shared, &mut finger).await?);
            }
            finger.look_for_waiters(shared).await?;
            sleep(if stretch.pace == Pace::Paused { PAUSED_EVERY } else { PULSE_EVERY }).await;
        }
        if !gentle {
            continue;
        }
        let parts = shared.pacer.parts().saturating_sub(parts);
        let own = u64::try_from(commits.len()).unwrap_or(u64::MAX).saturating_add(parts);
        let others = finger.transactions().await?.saturating_sub(others);
        let seen = Seen {
            commits,
            bytes: shared.pacer.read().saturating_sub(read),
            took: shared.clock.now().saturating_duration_since(start),
            others: others.saturating_sub(own),
        };
        stretch = governor.next(seen);
        shared.pacer.hold(governor.rate());
        let (slower, pace) = (governor.slower(), stretch.pace);
        tracing::debug!(slower, ?pace, "the snapshot's pace");
        backoff.reset();
    }
}

/// How long a small commit takes. If that is long, reading is slowed down before it is through.
async fn commit(shared: &Shared, finger: &mut Finger) -> Result<Duration, SourceError> {
    let start = shared.clock.now();
    let mut commit = Box::pin(finger.commit());
    let done = tokio::select! {
        done = &mut commit => Some(done),
        () = sleep(STUCK) => None,
    };
    match done {
        Some(done) => done?,
        None => {
            steer(shared, Pace::Rate(RATE_MIN));
            commit.await?;
        }
    }
    Ok(shared.clock.now().saturating_duration_since(start))
}

/// Sets the pace, and shows it.
fn steer(shared: &Shared, pace: Pace) {
    shared.pacer.set(pace);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive")]
    let rate = match pace {
        Pace::Free => None,
        Pace::Rate(rate) => Some(rate as u64),
        // A moment's pause is no rate.
        Pace::Paused => return,
    };
    shared.board.write(|status| status.snapshot_rate_bytes_per_s = rate);
}

/// The connection that feels.
struct Finger {
    wire: Wire,
    commits: &'static str,
    /// When it was looked last who waits.
    looked: Option<Instant>,
    /// Tables that somebody was seen waiting for.
    waited_for: BTreeSet<u32>,
}

impl Finger {
    async fn new(mut wire: Wire) -> Result<Self, SourceError> {
        // A standby that is waited for is not what reading is felt by, and may be away.
        wire.query("set up the session", LOCALLY).await?;
        let commits = match wire.query("feel the pulse", COMMIT).await {
            Ok(_) => COMMIT,
            Err(SourceError::Server { .. }) => NOTHING,
            Err(error) => return Err(error),
        };
        Ok(Self { wire, commits, looked: None, waited_for: BTreeSet::new() })
    }

    async fn commit(&mut self) -> Result<(), SourceError> {
        self.wire.query("feel the pulse", self.commits).await.map(drop)
    }

    /// Transactions that ended in the cluster so far, as its statistics have it.
    async fn transactions(&mut self) -> Result<u64, SourceError> {
        let rows = self.wire.query("count transactions", TRANSACTIONS).await?;
        rows.first().ok_or_else(|| unknown("transactions", "no row"))?.parse_as(0)
    }

    /// Looks every second whether somebody waits for a table that we have locked, and tells who reads it of
    /// those who waited at the last look, too.
    async fn look_for_waiters(&mut self, shared: &Shared) -> Result<(), SourceError> {
        let now = shared.clock.now();
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
            return Ok(());
        }
        self.looked = Some(now);
        let rows = self.wire.query("look who waits", WAITERS).await?;
        let tables: Result<BTreeSet<u32>, _> = rows.iter().map(|row| row.parse_as(0)).collect();
        let tables = tables?;
        shared.pacer.want(tables.intersection(&self.waited_for).copied().collect());
        self.waited_for = tables;
        Ok(())
    }
}

const LOCALLY: &str = "SELECT set_config('synchronous_commit', 'local', false) \
     WHERE current_setting('synchronous_commit') <> 'off'";
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'lakehead', '')";
const NOTHING: &str = "SELECT 1";
const TRANSACTIONS: &str =
    "SELECT coalesce(sum(xact_commit + xact_rollback), 0)::bigint FROM pg_stat_database";
/// Who blocks whom is asked only where somebody waits for a table of this database.
const WAITERS: &str = "SELECT DISTINCT relation FROM pg_locks WHERE CASE \
     WHEN NOT granted AND locktype = 'relation' \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     THEN pg_blocking_pids(pid) && \
         ARRAY(SELECT pid FROM pg_stat_activity WHERE usename = current_user \
             AND application_name = current_setting('application_name')) \
     ELSE false END";
const PULSE_EVERY: Duration = Duration::from_millis(45);
/// Pauses are short, and are all that reading is compared with.
const PAUSED_EVERY: Duration = Duration::from_millis(15);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(100);
/// A commit that takes longer slows reading down at once.
const STUCK: Duration = Duration::from_secs(1);
