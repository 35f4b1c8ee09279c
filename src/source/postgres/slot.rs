//! The replication slot on the server: looks at it, makes it, drops it.

use std::time::Duration;

use super::{
    catalog::{identifier, literal},
    error::SourceError,
    message::unknown,
    origin::{Server, Slot, parse_history},
    wire::Wire,
};
use crate::{
    clock::Clock,
    units::{Position, Timestamp},
};

/// A snapshot of the database that other connections can read under while this one stays idle.
#[derive(Debug)]
pub(crate) struct Held {
    /// The connection that exports it. Its next command, or its end, ends the snapshot.
    _wire: Wire,
    /// Its name for SET TRANSACTION SNAPSHOT.
    pub(crate) snapshot: String,
    /// Where it stands in the log.
    pub(crate) position: Position,
    /// When it was taken.
    pub(crate) at: Timestamp,
}

/// Asks a replication connection for the server's identity.
pub(crate) async fn identify(wire: &mut Wire) -> Result<Server, SourceError> {
    let rows = wire.query("identify the system", "IDENTIFY_SYSTEM").await?;
    let row = rows.first().ok_or_else(|| unknown("no identity", "no row"))?;
    let timeline: u32 = row.parse_as(1)?;
    let mut server = Server {
        system_identifier: row.text(0)?.into(),
        timeline,
        log_end: row.parse_as(2)?,
        database: row.text(3)?.into(),
        history: vec![],
    };
    if timeline > 1 {
        let sql = format!("TIMELINE_HISTORY {timeline}");
        let rows = wire.query("read the timeline's history", &sql).await?;
        let text = rows.first().and_then(|row| row.optional(1)).unwrap_or_default();
        server.history = parse_history(text);
    }
    Ok(server)
}

/// The slot of that name, if there is one.
pub(crate) async fn look(wire: &mut Wire, name: &str) -> Result<Option<Slot>, SourceError> {
    let status = if wire.version() >= 130_000 { "wal_status" } else { "''" };
    let failover = if wire.version() >= FAILOVER_SINCE { "failover" } else { "false" };
    let sql = format!(
        "SELECT plugin, database, active, restart_lsn, confirmed_flush_lsn, {status}, {failover} \
         FROM pg_replication_slots WHERE slot_name = {}",
        literal(name)
    );
    let rows = wire.query("look at the replication slot", &sql).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let position = |column| row.optional(column).map(|_| row.parse_as(column)).transpose();
    Ok(Some(Slot {
        plugin: row.optional(0).unwrap_or_default().into(),
        database: row.optional(1).unwrap_or_default().into(),
        active: row.flag(2),
        restart: position(3)?,
        confirmed: position(4)?,
        wal_status: row.optional(5).unwrap_or_default().into(),
        failover: row.flag(6),
    }))
}

/// Makes a slot, and takes over the connection to hold its snapshot. Waits until every transaction
/// that is open on the server has ended.
pub(crate) async fn create(
    mut wire: Wire,
    name: &str,
    temporary: bool,
    clock: &dyn Clock,
) -> Result<Held, SourceError> {
    let sql = create_statement(wire.version(), name, temporary);
    let rows = wire.query_within(CREATE_LIMIT, "make the replication slot", &sql).await?;
    let row = rows.first().ok_or_else(|| unknown("no slot", "no row"))?;
    let (position, snapshot) = (row.parse_as(1)?, row.text(2)?.to_owned());
    tracing::info!(slot = name, %position, temporary, "made a replication slot");
    // Behind the wait: the snapshot has what was committed meanwhile.
    Ok(Held { _wire: wire, snapshot, position, at: clock.wall() })
}

/// CREATE_REPLICATION_SLOT as the server's version knows it. Standbys that copy slots (`sync_replication_slots`) take
/// it too, unless it ends with its connection.
fn create_statement(version: u32, name: &str, temporary: bool) -> String {
    let options = match version {
        ..150_000 => "EXPORT_SNAPSHOT",
        FAILOVER_SINCE.. if !temporary => "(SNAPSHOT 'export', FAILOVER)",
        _ => "(SNAPSHOT 'export')",
    };
    let temporary = if temporary { " TEMPORARY" } else { "" };
    format!("CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput {options}", identifier(name))
}

/// Has standbys that copy slots take this one too, if it was made otherwise. One that cannot be changed now is
/// followed as it is.
pub(crate) async fn ready_for_failover(
    wire: &mut Wire,
    name: &str,
    slot: &Slot,
) -> Result<(), SourceError> {
    if wire.version() < FAILOVER_SINCE || slot.failover || slot.active {
        return Ok(());
    }
    let sql = format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", identifier(name));
    match wire.query("have standbys copy the replication slot", &sql).await {
        Ok(_) => tracing::info!(slot = name, "standbys copy the replication slot from now on"),
        Err(SourceError::Server { error, .. }) => {
            tracing::warn!(slot = name, %error, "standbys do not copy the replication slot");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Where the server's log ends: behind whatever was seen to be committed.
pub(crate) async fn log_end(wire: &mut Wire) -> Result<Position, SourceError> {
    let asking = "ask for the log's end";
    let rows = wire.query(asking, "SELECT pg_current_wal_insert_lsn()").await?;
    rows.first().ok_or_else(|| unknown("no log's end", "no row"))?.parse_as(0)
}

/// Drops a slot.
pub(crate) async fn drop_slot(wire: &mut Wire, name: &str) -> Result<(), SourceError> {
    let sql = format!("SELECT pg_drop_replication_slot({})", literal(name));
    wire.query("drop the replication slot", &sql).await.map(drop)
}

/// Long transactions on the server are waited for.
const CREATE_LIMIT: Duration = Duration::from_secs(2 * 3600);
/// The first version whose standbys copy slots.
const FAILOVER_SINCE: u32 = 170_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_made_for_failover_where_the_server_can_and_the_slot_stays() {
        let options = |version, temporary| {
            let sql = create_statement(version, "a\"b", temporary);
            let kind = if temporary { " TEMPORARY" } else { "" };
            let start = format!("CREATE_REPLICATION_SLOT \"a\"\"b\"{kind} LOGICAL pgoutput ");
            sql.strip_prefix(&start).map(ToOwned::to_owned)
        };
        let known = [
            (140_018, false, "EXPORT_SNAPSHOT"),
            (160_004, false, "(SNAPSHOT 'export')"),
            (170_000, true, "(SNAPSHOT 'export')"),
            (180_004, false, "(SNAPSHOT 'export', FAILOVER)"),
        ];
        for (version, temporary, wanted) in known {
            assert_eq!(options(version, temporary).as_deref(), Some(wanted), "{version}");
        }
    }
}
