//! The report: what the status page, the admin socket, `lakehead status` and the metrics show, in one
//! shape, so that no two of them can differ.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    board::{Board, LinkStatus, SourceState, SourceStatus},
    headway::{Forecast, Headway},
    heartbeat::Heartbeat,
    trend::Trend,
};
use crate::{clock::Clock, units::Timestamp};

/// The whole box.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Report {
    /// The appliance's name.
    pub appliance: String,
    /// This firmware's version.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When the process started.
    pub started_at: Timestamp,
    /// When the report was made.
    pub at: Timestamp,
    /// Whether recovery is done.
    pub ready: bool,
    /// Whether all is well, or heals without a person.
    pub healthy: bool,
    /// Loops that hang.
    pub hanging: Vec<String>,
    /// The links by name; none: unshaped, the routing table's way.
    pub links: BTreeMap<String, LinkStatus>,
    /// The sources by name.
    pub sources: BTreeMap<String, SourceReport>,
}

/// One source.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SourceReport {
    /// What its road says of itself.
    #[serde(flatten)]
    pub status: SourceStatus,
    /// Age of the oldest durable change that the lake lacks, in seconds.
    pub lag_s: f64,
    /// Bytes of the server's log that the lake lacks.
    pub lag_bytes: u64,
    /// Transactions durable and not in the ledger.
    pub lag_transactions: u64,
    /// Changes durable and not in the ledger.
    pub lag_changes: u64,
    /// How long the journal lasts at the present rate if nothing is shipped, in hours.
    pub journal_hours_left: Option<f64>,
    /// How fast the snapshot is read, in bytes of the server's disk; `None` while it is not, or too little was seen.
    #[serde(default)]
    pub snapshot_read_bytes_per_s: Option<f64>,
    /// How long it still takes at that rate.
    #[serde(default)]
    pub snapshot_seconds_left: Option<f64>,
}

/// Makes reports.
pub struct Reporter {
    appliance: String,
    started_at: Timestamp,
    board: Board,
    heart: Heartbeat,
    clock: Arc<dyn Clock>,
    ready: AtomicBool,
    trends: Mutex<BTreeMap<String, (Trend, Headway)>>,
}

impl Reporter {
    /// For a process that starts now.
    pub fn new(appliance: &str, board: Board, heart: Heartbeat, clock: Arc<dyn Clock>) -> Self {
        Self {
            appliance: appliance.into(),
            started_at: clock.wall(),
            board,
            heart,
            clock,
            ready: AtomicBool::new(false),
            trends: Mutex::default(),
        }
    }

    /// Recovery is done.
    pub fn ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Looks at the board, for lag and forecast. To be called every second.
    pub fn sample(&self) {
        let now = self.clock.now();
        let mut trends = self.trends.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, status) in self.board.sources() {
            let (trend, headway) = trends.entry(name).or_default();
            trend.sample(now, &status);
            headway.sample(now, &status);
        }
    }

    /// All as it is now.
    pub fn report(&self) -> Report {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let trends = self.trends.lock().unwrap_or_else(PoisonError::into_inner);
        let unseen = Default::default();
        let one = |(name, status): (String, SourceStatus)| {
            let (trend, headway) = trends.get(&name).unwrap_or(&unseen);
            let lag_s = trend.lag(now, wall, &status).as_secs_f64();
            let hours = trend.journal_left(&status).map(|left| left.as_secs_f64() / 3600.0);
            (name, SourceReport::new(status, lag_s, hours, headway.forecast()))
        };
        let sources: BTreeMap<String, SourceReport> =
            self.board.sources().into_iter().map(one).collect();
        let late = self.heart.late(now).into_iter();
        let hanging: Vec<String> = late.map(|late| late.name).collect();
        let ready = self.ready.load(Ordering::Relaxed);
        let well = sources.values().all(SourceReport::healthy);
        Report {
            appliance: self.appliance.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: self.started_at,
            at: wall,
            ready,
            healthy: ready && well && hanging.is_empty(),
            hanging,
            links: self.board.links(),
            sources,
        }
    }
}

/// The box in one word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// Recovery is not done.
    Recovering,
    /// Nothing is wrong.
    Healthy,
    /// Something is wrong that needs nobody.
    Heals,
    /// Someone must act.
    NeedsPerson,
}

impl Report {
    /// What the page and `lakehead status` say first.
    pub fn health(&self) -> Health {
        let alarms = self.sources.values().any(|source| !source.status.alarms.is_empty())
            || self.links.values().any(|link| link.alarm.is_some());
        match (self.ready, self.healthy, alarms) {
            (false, _, _) => Health::Recovering,
            (true, true, false) => Health::Healthy,
            (true, true, true) => Health::Heals,
            (true, false, _) => Health::NeedsPerson,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovering => "recovering",
            Self::Healthy => "healthy",
            Self::Heals => "heals by itself",
            Self::NeedsPerson => "needs a person",
        })
    }
}

impl SourceReport {
    fn new(
        status: SourceStatus,
        lag_s: f64,
        journal_hours_left: Option<f64>,
        snapshot: Option<Forecast>,
    ) -> Self {
        let unshipped = status.durable.position.0.saturating_sub(status.shipped.position.0);
        let unread = status.server.0.saturating_sub(status.received.0);
        Self {
            lag_s,
            lag_bytes: unshipped + unread,
            lag_transactions: status
                .transactions_durable
                .saturating_sub(status.transactions_shipped),
            lag_changes: status.durable.sequence.0.saturating_sub(status.shipped.sequence.0),
            journal_hours_left,
            snapshot_read_bytes_per_s: snapshot.map(|snapshot| snapshot.bytes_per_s),
            snapshot_seconds_left: snapshot.map(|snapshot| snapshot.left.as_secs_f64()),
            status,
        }
    }

    /// How fast the snapshot goes and how long it still takes, for people.
    pub fn snapshot_going(&self) -> Option<String> {
        let (rate, left) = self.snapshot_read_bytes_per_s.zip(self.snapshot_seconds_left)?;
        let left = Duration::try_from_secs_f64(left).unwrap_or_default();
        let minutes = left.as_secs().div_ceil(60);
        let left = match minutes {
            0..=1 => "about a minute".into(),
            2..=119 => format!("about {minutes} min"),
            _ => format!("about {} h {} min", minutes / 60, minutes % 60),
        };
        Some(format!("{:.1} MiB/s, {left} left", rate / 1_048_576.0))
    }

    /// Nothing here needs a person.
    pub fn healthy(&self) -> bool {
        !matches!(self.status.state, SourceState::Blocked | SourceState::Fenced)
            && self.status.journal_damage.is_empty()
            && self.status.alarms.values().all(|alarm| alarm.heals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        error::Cause,
        units::{Point, Position, Sequence},
    };

    fn reporter(board: &Board, heart: &Heartbeat) -> Reporter {
        Reporter::new("plant7-a", board.clone(), heart.clone(), Arc::new(SystemClock))
    }

    #[test]
    fn health_is_green_only_when_nobody_is_needed() {
        let (board, heart) = (Board::default(), Heartbeat::default());
        let reporter = reporter(&board, &heart);
        let erp = board.source("erp");
        assert!(!reporter.report().healthy, "not before recovery is done");
        reporter.ready();
        assert!(reporter.report().healthy);
        erp.alarm("ship", Cause::LakeUnavailable, &"503", Timestamp(0));
        assert!(reporter.report().healthy, "an outage heals");
        assert_eq!(reporter.report().health(), Health::Heals);
        erp.alarm("ship", Cause::LakeCredentials, &"403", Timestamp(0));
        assert!(!reporter.report().healthy);
        erp.calm("ship");
        let long_ago = SystemClock.now().checked_sub(Duration::from_secs(2)).unwrap();
        let beat = heart.register("seal erp", Duration::from_secs(1), long_ago);
        assert_eq!(reporter.report().hanging, ["seal erp"]);
        assert!(!reporter.report().healthy);
        drop(beat);
        assert!(reporter.report().healthy);
    }

    #[test]
    fn a_report_survives_its_journey_as_json() {
        let board = Board::default();
        let reporter = reporter(&board, &Heartbeat::default());
        board.source("erp").write(|status| {
            status.durable = Point { sequence: Sequence(9), position: Position(900) };
            status.shipped = Point { sequence: Sequence(4), position: Position(400) };
            (status.server, status.received) = (Position(1000), Position(950));
            (status.transactions_durable, status.transactions_shipped) = (3, 1);
            status.retries.insert("LakeSlowDown".into(), 2);
        });
        reporter.sample();
        let report = reporter.report();
        let erp = &report.sources["erp"];
        assert_eq!((erp.lag_bytes, erp.lag_transactions, erp.lag_changes), (550, 2, 5));
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["sources"]["erp"]["shipped"]["position"], "00000000/00000190");
    }
}
