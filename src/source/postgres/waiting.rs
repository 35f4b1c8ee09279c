//! Makes a slot, which waits until every transaction that is open on the server has ended: whom for is said.

use std::{convert::Infallible, time::Duration};

use tokio::time::sleep;

use super::{
    catalog::literal,
    connect::Target,
    error::SourceError,
    login::Purpose,
    message::TextRow,
    session::{Judged, Shared},
    slot::{self, Held},
    wire::Wire,
};
use crate::error::Cause;

/// [`slot::create`], with an alarm while it waits.
pub(crate) async fn create(
    shared: &Shared,
    target: &Target,
    mut maker: Wire,
    name: &str,
    temporary: bool,
) -> Result<Held, SourceError> {
    let rows = maker.query("ask for the session's process", "SELECT pg_backend_pid()").await?;
    let process = rows.first().map_or("0", |row| row.optional(0).unwrap_or("0")).to_owned();
    let made = slot::create(maker, name, temporary, &*shared.clock);
    let held = tokio::select! {
        biased;
        held = made => held,
        never = tell(shared, target, &process) => match never {},
    };
    shared.board.calm(ALARM);
    held
}

/// Says which transaction of an earlier session that still makes the slot it waits for, if that was judged.
pub(crate) async fn explain(
    sql: &mut Wire,
    judged: Result<Judged, SourceError>,
) -> Result<Judged, SourceError> {
    let Err(SourceError::StillMade { slot, .. }) = judged else { return judged };
    let process = format!(
        "(SELECT active_pid FROM pg_replication_slots WHERE slot_name = {})",
        literal(&slot)
    );
    let waits = waited_for(sql, &process).await?;
    Err(SourceError::StillMade { slot, waits })
}

/// Raises the alarm while the process waits, until it is dropped.
async fn tell(shared: &Shared, target: &Target, process: &str) -> Infallible {
    let mut wire = None;
    loop {
        sleep(LOOK_EVERY).await;
        let looked = async {
            let wire = match &mut wire {
                Some(wire) => wire,
                none => none.insert(target.open(Purpose::Sql).await?),
            };
            waited_for(wire, process).await
        };
        match looked.await {
            Ok(Some(waits)) => {
                let what = format!("a snapshot cannot begin yet: {waits}");
                shared.board.alarm(ALARM, Cause::SourceTransactions, &what, shared.clock.wall());
            }
            Ok(None) => shared.board.calm(ALARM),
            Err(error) => {
                tracing::debug!(%error, "what is waited for is not known");
                wire = None;
            }
        }
    }
}

/// The transaction that a process of the server waits for, if it does.
async fn waited_for(wire: &mut Wire, process: &str) -> Result<Option<String>, SourceError> {
    let sql = WAITED_FOR.replace("{process}", process);
    let rows = wire.query("look at who is waited for", &sql).await?;
    Ok(rows.first().map(sentence))
}

/// What is known of a transaction; of other roles' the server tells little to whoever is not in `pg_read_all_stats`.
fn sentence(row: &TextRow) -> String {
    let told = |column: usize, before: &str| {
        let said = row.optional(column).filter(|said| !said.is_empty());
        said.map(|said| format!("{before}{said}")).unwrap_or_default()
    };
    let who = match (row.optional(1), row.optional(2)) {
        (_, Some(name)) => format!("the prepared transaction `{name}`"),
        (Some(process), None) => format!("the transaction of process {process}"),
        (None, None) => told(0, "transaction "),
    };
    let [role, database, since, program] =
        [(3, " of role "), (4, " in database "), (5, ", open since "), (6, ", program ")]
            .map(|(column, before)| told(column, before));
    format!("{who}{role}{database}{since}{program}")
}

const ALARM: &str = "transactions";
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// 0 number, 1 process, 2 name of a prepared one, 3 role, 4 database, 5 since when, 6 program.
const WAITED_FOR: &str = "SELECT w.transactionid, h.pid, p.gid, coalesce(a.usename, p.owner),
    coalesce(a.datname, p.database),
    to_char(coalesce(a.xact_start, p.prepared), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), a.application_name
    FROM pg_locks w
    LEFT JOIN pg_locks h ON h.locktype = 'transactionid' AND h.transactionid = w.transactionid AND h.granted
    LEFT JOIN pg_stat_activity a ON a.pid = h.pid
    LEFT JOIN pg_prepared_xacts p ON p.transaction = w.transactionid
    WHERE w.pid = {process} AND w.locktype = 'transactionid' AND NOT w.granted LIMIT 1";
