//! `lakehead status`: what the running gateway does, asked over its admin socket.

use std::fmt;

use super::{Failure, Global};
use crate::{
    error::Exit,
    status::admin,
    telemetry::{
        board::{Alarm, LinkStatus, TableProgress},
        report::{Report, SourceReport},
    },
    units::{BitRate, ByteSize},
};

pub(super) async fn status(global: &Global) -> Result<Exit, Failure> {
    let config = global.config()?;
    let report = admin::ask(&config.appliance.data_dir).await?;
    global.output().tell(&report, &Table(&report));
    Ok(Exit::Done)
}

/// The report for people.
struct Table<'a>(&'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let health = report.health();
        writeln!(
            f,
            "{}  {health}  (lakehead {}, process {}, since {})",
            report.appliance,
            report.version,
            report.pid,
            report.started_at.rfc3339()
        )?;
        for name in &report.hanging {
            writeln!(f, "  HANGS      {name}")?;
        }
        report.links.iter().try_for_each(|(name, status)| link(f, name, status))?;
        report.sources.iter().try_for_each(|(name, source)| one(f, name, source))
    }
}

fn link(f: &mut fmt::Formatter<'_>, name: &str, status: &LinkStatus) -> fmt::Result {
    let state = match status.up {
        Some(true) => "up",
        Some(false) => "down",
        None => "unknown",
    };
    let rate = BitRate(status.rate_bytes_per_s.saturating_mul(8));
    let sent = ByteSize(status.sent_bytes);
    writeln!(f, "\nlink {name}  {state}  {}, at most {rate}, {sent} sent", status.interface)?;
    status.alarm.iter().try_for_each(|raised| alarm(f, "link", raised))
}

fn alarm(f: &mut fmt::Formatter<'_>, room: &str, alarm: &Alarm) -> fmt::Result {
    let since = alarm.since.rfc3339();
    writeln!(f, "  ALARM      {room}: {} since {since}: {}", alarm.cause, alarm.what)?;
    writeln!(f, "             {}", alarm.remedy)
}

fn one(f: &mut fmt::Formatter<'_>, name: &str, source: &SourceReport) -> fmt::Result {
    let status = &source.status;
    let state = format!("{:?}", status.state).to_lowercase();
    writeln!(f, "\nsource {name}  {state}  PostgreSQL {}", status.server_version)?;
    writeln!(f, "  server     {}", status.server)?;
    writeln!(f, "  received   {}", status.received)?;
    for (what, point) in
        [("durable", status.durable), ("sealed", status.sealed), ("in lake", status.shipped)]
    {
        writeln!(f, "  {what:<9}  {}  change {}", point.position, point.sequence.0)?;
    }
    writeln!(f, "  confirmed  {}  release {}", status.confirmed, status.release)?;
    writeln!(f, "  ledger     entry {}", status.entry)?;
    writeln!(
        f,
        "  lag        {:.1} s, {}, {} transactions, {} changes",
        source.lag_s,
        ByteSize(source.lag_bytes),
        source.lag_transactions,
        source.lag_changes
    )?;
    write!(
        f,
        "  journal    {} of {}",
        ByteSize(status.journal_bytes),
        ByteSize(status.journal_bytes_max)
    )?;
    match source.journal_hours_left {
        Some(hours) => writeln!(f, ", {hours:.1} h of outage left at the present rate")?,
        None => writeln!(f)?,
    }
    if status.in_progress_bytes > 0 {
        let bytes = ByteSize(status.in_progress_bytes);
        writeln!(f, "  open       {bytes} of transactions that have not ended")?;
    }
    writeln!(f, "  spool      {} waiting to be sent", ByteSize(status.spool_bytes))?;
    snapshot(f, source)?;
    for damage in &status.journal_damage {
        writeln!(f, "  DAMAGED    {damage}")?;
    }
    status.alarms.iter().try_for_each(|(room, raised)| alarm(f, room, raised))
}

fn snapshot(f: &mut fmt::Formatter<'_>, source: &SourceReport) -> fmt::Result {
    let tables = source.status.snapshot.values();
    if tables.clone().all(TableProgress::is_whole) {
        return Ok(());
    }
    let (mut done, mut all, mut rows) = (0, 0, 0);
    for table in tables {
        done += u64::from(table.chunks_done);
        all += u64::from(table.chunks);
        rows += table.rows;
    }
    let count = source.status.snapshot.len();
    write!(f, "  snapshot   {done} of {all} parts of {count} tables, {rows} rows")?;
    if let Some(going) = source.snapshot_going() {
        write!(f, ", {going}")?;
    }
    match source.status.snapshot_rate_bytes_per_s {
        Some(rate) => writeln!(f, ", held back to {}/s for those who work there", ByteSize(rate)),
        None => writeln!(f),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::SystemClock,
        error::Cause,
        telemetry::{board::Board, heartbeat::Heartbeat, report::Reporter},
        units::{Point, Position, Sequence, Timestamp},
    };

    #[test]
    fn the_table_shows_positions_lag_and_alarms_with_their_remedy() {
        let board = Board::default();
        let erp = board.source("erp");
        erp.write(|status| {
            status.durable = Point { sequence: Sequence(42), position: Position(0x16_0000_0100) };
            status.journal_bytes_max = 50 << 30;
        });
        erp.alarm("ship", Cause::LakeUnavailable, &"503", Timestamp(0));
        let dx = board.link("dx-1");
        dx.write(|status| {
            (status.interface, status.rate_bytes_per_s) = ("eth1".into(), 100_000_000);
            (status.up, status.sent_bytes) = (Some(false), 3 << 30);
        });
        dx.alarm(Cause::LinkDown, &"interface eth1 is down", Timestamp(0));
        let reporter =
            Reporter::new("plant7-a", board, Heartbeat::default(), Arc::new(SystemClock));
        reporter.ready();
        let shown = Table(&reporter.report()).to_string();
        for line in [
            "link dx-1  down  eth1, at most 800 Mbit/s, 3.0 GiB sent",
            "  ALARM      link: LinkDown since 1970-01-01T00:00:00.000000Z: interface eth1 is down",
            "  durable    00000016/00000100  change 42",
            "  journal    0 B of 50.0 GiB",
            "  ALARM      ship: LakeUnavailable since 1970-01-01T00:00:00.000000Z: 503",
            "             waiting for S3, with changes kept in the journal: check that the bucket's endpoint answers from this box",
        ] {
            assert!(shown.lines().any(|known| known == line), "{line}\n{shown}");
        }
        assert!(shown.starts_with("plant7-a  heals by itself  ("));
    }
}
