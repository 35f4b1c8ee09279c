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
    session::Shared,
};
use crate::units::Position;

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
    match error {
        SourceError::Server { error, .. } => error.code == CANNOT_CONNECT_NOW,
        SourceError::NotPrimary { .. } => true,
        _ => false,
    }
}

async fn watch(
    shared: &Shared,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, SourceError> {
    let target = Target::load(&shared.config, &shared.url)?;
    let mut wire = target.open(Purpose::Sql).await?;
    let status = if wire.version() >= 130_000 { "wal_status" } else { "NULL" };
    let sql = format!(
        "SELECT pg_current_wal_flush_lsn(), (SELECT {status} FROM pg_replication_slots WHERE slot_name = {})",
        literal(&shared.names.slot)
    );
    let mut warned = false;
    loop {
        let rows = wire.query("ask for the log's end", &sql).await?;
        if let Some(row) = rows.first() {
            let end: Position = row.parse_as(0)?;
            shared.log_end.store(end.0, Ordering::Relaxed);
            shared.board.write(|status| status.server = status.server.max(end));
            let unreserved = row.optional(1) == Some("unreserved");
            if unreserved && !warned {
                tracing::error!(
                    "the server is about to remove log that our slot needs: max_slot_wal_keep_size"
                );
            }
            warned = unreserved;
        }
        backoff.reset();
        sleep(ASK_EVERY).await;
    }
}

/// SQLSTATE of a server that starts up or shuts down.
const CANNOT_CONNECT_NOW: &str = "57P03";
const ASK_EVERY: Duration = Duration::from_secs(3);
