//! Watches the server's log beside the stream: how far it has grown, what the slot keeps of it.
//!
//! The stream tells only how far the server has *read* its log for us.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    catalog::literal,
    connect::{Backoff, Target},
    error::SourceError,
    login::Purpose,
    message::TextRow,
    session::Shared,
};
use crate::{error::Cause, units::Position};

/// Asks every few seconds, until dropped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        let Err(error) = watch(&shared, &mut backoff).await;
        if leaves(&error) {
            shared.server_leaves.store(true, Ordering::Relaxed);
        }
        tracing::debug!(%error, "the log's end is not known");
        sleep(backoff.next()).await;
    }
}

/// Whether the server that the stream is connected to shuts down: it lets nobody in any more.
fn leaves(error: &SourceError) -> bool {
    error.lets_nobody_in() || matches!(error, SourceError::NotPrimary { .. })
}

async fn watch(
    shared: &Shared,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let mut wire = target.open(Purpose::Sql).await?;
    let sql = asked(wire.version(), &shared.names.slot);
    loop {
        let rows = wire.query("ask for the log's end", &sql).await?;
        if let Some(row) = rows.first() {
            let end: Position = row.parse_as(0)?;
            shared.log_end.store(end.0, Ordering::Relaxed);
            shared.board.write(|status| status.server = status.server.max(end));
            warn(shared, &Kept::of(row)?);
        }
        backoff.reset();
        sleep(ASK_EVERY).await;
    }
}

/// What the server keeps of its log for the slot.
#[derive(Debug, Default)]
struct Kept {
    /// `wal_status`.
    status: String,
    /// How much may be written until the slot can be lost. Below 0: at the next checkpoint.
    left_bytes: Option<i64>,
    /// How much the server keeps for a slot.
    bytes_max: Option<u64>,
}

impl Kept {
    fn of(row: &TextRow) -> Result<Self, SourceError> {
        let number = |column| row.optional(column).map(|_| row.parse_as(column)).transpose();
        let bytes_max: Option<i64> = number(3)?;
        Ok(Self {
            status: row.optional(1).unwrap_or_default().into(),
            left_bytes: number(2)?,
            bytes_max: bytes_max.and_then(|bytes| u64::try_from(bytes).ok()),
        })
    }

    /// Why the slot is in danger, or is no more, if it `was`.
    fn danger(&self, was: bool) -> Option<String> {
        let max = self.bytes_max?;
        let left = match self.status.as_str() {
            "lost" | "" => return None,
            "unreserved" => 0,
            _ => u64::try_from(self.left_bytes?).unwrap_or(0),
        };
        // What it was raised at is not where it ends, so that it does not come and go.
        let enough = if was { max / 8 * 3 } else { max / 4 };
        (left < enough).then(|| {
            format!(
                "the database keeps {} MiB of its log for the slot (`max_slot_wal_keep_size`), {} MiB more and it can give the slot up",
                max >> 20,
                left >> 20
            )
        })
    }
}

/// Says it before the slot is lost, and lets the stream know how much there is.
fn warn(shared: &Shared, kept: &Kept) {
    shared.keeps_bytes_max.store(kept.bytes_max.unwrap_or(u64::MAX), Ordering::Relaxed);
    let was = shared.board.look(|status| status.alarms.contains_key(ALARM));
    match kept.danger(was) {
        Some(what) => {
            if !was {
                tracing::error!(what, "the slot is going to be lost");
            }
            shared.board.alarm(ALARM, Cause::SlotShort, &what, shared.clock.wall());
        }
        None => shared.board.calm(ALARM),
    }
}

/// The end of the log; `wal_status`, `safe_wal_size` and the limit in bytes, which came with version 13.
fn asked(version: u32, slot: &str) -> String {
    let kept = match version >= 130_000 {
        true => {
            "s.wal_status, s.safe_wal_size, (SELECT nullif(setting, '-1')::int8 << 20 FROM pg_settings WHERE name = 'max_slot_wal_keep_size')"
        }
        false => "NULL, NULL, NULL",
    };
    format!(
        "SELECT pg_current_wal_flush_lsn(), {kept} FROM (VALUES (1)) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = {}",
        literal(slot)
    )
}

const ASK_EVERY: Duration = Duration::from_secs(3);
/// The alarm for a slot that is going to be lost.
const ALARM: &str = "slot";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_in_danger_before_it_is_lost_and_the_alarm_does_not_flutter() {
        let kept = |status: &str, left_mib: i64| Kept {
            status: status.into(),
            left_bytes: Some(left_mib << 20),
            bytes_max: Some(1 << 30),
        };
        assert_eq!(kept("reserved", 300).danger(false), None);
        assert!(kept("extended", 200).danger(false).unwrap().contains("1024 MiB"));
        assert!(kept("extended", 300).danger(true).is_some());
        assert_eq!(kept("extended", 400).danger(true), None);
        assert!(kept("unreserved", -5).danger(false).is_some());
        // That is a gap, and said as one.
        assert_eq!(kept("lost", 0).danger(true), None);
        assert_eq!(Kept { bytes_max: None, ..kept("extended", 0) }.danger(false), None);
    }
}
