//! Feels the database's pulse while a snapshot is read, and steers the snapshot by it.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    connect::{Backoff, Target},
    error::SourceError,
    felt::{Felt, STUCK, Sense},
    finger::Finger,
    governor::{Governor, Pace, RATE_MIN, Seen},
    login::Purpose,
    session::Shared,
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
        let mut felt = Felt::default();
        if stretch.pace == Pace::Paused {
            // What was under way comes to rest.
            sleep(REST).await;
        }
        let before = finger.count().await?;
        while shared.clock.now().saturating_duration_since(start) < stretch.length {
            let waited = finger.look_for_waiters(shared.clock.now()).await?;
            // Where nobody seems to be it is felt once a second.
            let due = stretch.pace != Pace::Free || waited.is_some() && governor.heeds();
            if let Some(waited) = waited {
                shared.pacer.want(waited);
            }
            if gentle && due {
                touch(shared, &mut finger, &mut felt, governor.heeds()).await?;
            }
            sleep(if stretch.pace == Pace::Paused { PAUSED_EVERY } else { PULSE_EVERY }).await;
        }
        if !gentle {
            continue;
        }
        let parts = shared.pacer.parts().saturating_sub(parts);
        let ended = finger.count().await?.since(before);
        let others = ended.transactions.saturating_sub(parts);
        let pages = u64::try_from(felt.of(Sense::Page).len()).unwrap_or(u64::MAX);
        let seen = Seen {
            felt,
            bytes: shared.pacer.read().saturating_sub(read),
            took: shared.clock.now().saturating_duration_since(start),
            others,
            missed: ended.missed.saturating_sub(pages),
        };
        stretch = governor.next(seen);
        shared.pacer.hold(governor.rate());
        let ((felt, slower), pace) = (governor.slower(), stretch.pace);
        tracing::debug!(?felt, slower, others, ?pace, "the snapshot's pace");
        backoff.reset();
    }
}

/// Feels once by each sense, in one transaction. What has commits wait for seconds is heeded at once, if it is to be.
async fn touch(
    shared: &Shared,
    finger: &mut Finger,
    felt: &mut Felt,
    heeds: bool,
) -> Result<(), SourceError> {
    if let Some(heap) = shared.pacer.large_table(BLOCKS_MIN) {
        let (took, read) = time(shared, finger.page(&heap)).await?;
        match read {
            true => felt.add_page(heap.id, took),
            false => shared.pacer.leave(heap.id),
        }
    }
    for (sense, behind) in finger.standbys(shared.clock.now()).await? {
        if sense == Sense::Waited && behind > STUCK && heeds {
            slow_down(shared);
        }
        felt.add(sense, behind);
    }
    let (took, ()) = time(shared, finger.commit(shared.clock.now())).await?;
    felt.add(Sense::Commit, took);
    Ok(())
}

/// How long something takes. If that is long, reading is slowed down before it is through.
async fn time<T>(
    shared: &Shared,
    what: impl Future<Output = Result<T, SourceError>>,
) -> Result<(Duration, T), SourceError> {
    let start = shared.clock.now();
    let mut what = std::pin::pin!(what);
    let done = tokio::select! {
        done = &mut what => Some(done),
        () = sleep(STUCK) => None,
    };
    let done = match done {
        Some(done) => done?,
        None => {
            slow_down(shared);
            what.await?
        }
    };
    Ok((shared.clock.now().saturating_duration_since(start), done))
}

/// Reads no faster than it has to, until the governor says how it goes on.
fn slow_down(shared: &Shared) {
    if !shared.pacer.is_paused() {
        steer(shared, Pace::Rate(RATE_MIN));
    }
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

const PULSE_EVERY: Duration = Duration::from_millis(45);
/// Pauses are short, and are all that reading is compared with.
const PAUSED_EVERY: Duration = Duration::from_millis(15);
/// A smaller table is in memory as a whole, and says nothing of reading.
const BLOCKS_MIN: u32 = 1024;
const REST: Duration = Duration::from_millis(100);
