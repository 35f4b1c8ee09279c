//! Metrics: every one with its name, unit and meaning, read from the [`Report`] at each scrape.
//!
//! Names are `lakehead_<room>_<what>_<unit>[_total]`, in base units. Labels are `source`, and for few
//! also `state` or `cause`, whose values are counted here: no string from a database becomes a label (I36).

use prometheus::{CounterVec, Encoder, GaugeVec, Opts, Registry, TextEncoder};

use super::{
    board::{LinkStatus, SourceState},
    process::Usage,
    report::{Report, SourceReport},
};
use crate::error::Cause;

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its whole name.
    pub name: &'static str,
    /// What it means, with its unit.
    pub help: &'static str,
    read: Read,
}

/// Where a metric's value comes from.
#[derive(Clone, Copy, Debug)]
enum Read {
    /// One value for each source; grows from 0 at each start.
    Counter(fn(&SourceReport) -> u64),
    /// One value for each source.
    Gauge(fn(&SourceReport) -> f64),
    /// As `Gauge`, left out where it is not known.
    Known(fn(&SourceReport) -> Option<f64>),
    /// 1 for the state that a source is in, 0 for the others.
    States,
    /// Requests sent again, for each source and cause.
    Retries,
    /// One value for each link; grows from 0 at each start.
    LinkCounter(fn(&LinkStatus) -> u64),
    /// One value for each link.
    Link(fn(&LinkStatus) -> u64),
    /// One value; grows.
    Total(fn(&Report, Usage) -> f64),
    /// One value.
    Whole(fn(&Report, Usage) -> f64),
}

/// All metrics as Prometheus reads them.
pub fn render(report: &Report, usage: Usage) -> String {
    let registry = Registry::new();
    for metric in METRICS {
        // A name that is wrong or twice there is a defect that the tests below find.
        registered(metric, report, usage, &registry).ok();
    }
    let mut text = vec![];
    TextEncoder::new().encode(&registry.gather(), &mut text).ok();
    String::from_utf8(text).unwrap_or_default()
}

fn registered(
    metric: &Metric,
    report: &Report,
    usage: Usage,
    registry: &Registry,
) -> prometheus::Result<()> {
    let opts = Opts::new(metric.name, metric.help);
    let sources = &report.sources;
    match metric.read {
        Read::Counter(read) => {
            let counters = counter(opts, &["source"], registry)?;
            for (name, source) in sources {
                counters.with_label_values(&[name.as_str()]).inc_by(read(source) as f64);
            }
        }
        Read::Gauge(read) => {
            let gauges = gauge(opts, &["source"], registry)?;
            for (name, source) in sources {
                gauges.with_label_values(&[name.as_str()]).set(read(source));
            }
        }
        Read::Known(read) => {
            let gauges = gauge(opts, &["source"], registry)?;
            for (name, value) in sources.iter().filter_map(|(name, one)| Some((name, read(one)?))) {
                gauges.with_label_values(&[name.as_str()]).set(value);
            }
        }
        Read::States => {
            let gauges = gauge(opts, &["source", "state"], registry)?;
            for (name, source) in sources {
                for (state, label) in STATES {
                    let here = f64::from(u8::from(source.status.state == *state));
                    gauges.with_label_values(&[name.as_str(), label]).set(here);
                }
            }
        }
        Read::Retries => {
            let counters = counter(opts, &["source", "cause"], registry)?;
            for (name, source) in sources {
                for (cause, count) in &source.status.retries {
                    let known = Cause::ALL.iter().map(|cause| cause.name());
                    let cause = known.into_iter().find(|known| known == cause).unwrap_or("other");
                    counters.with_label_values(&[name.as_str(), cause]).inc_by(*count as f64);
                }
            }
        }
        Read::LinkCounter(read) => {
            let counters = counter(opts, &["link"], registry)?;
            for (name, link) in &report.links {
                counters.with_label_values(&[name.as_str()]).inc_by(read(link) as f64);
            }
        }
        Read::Link(read) => {
            let gauges = gauge(opts, &["link"], registry)?;
            for (name, link) in &report.links {
                gauges.with_label_values(&[name.as_str()]).set(read(link) as f64);
            }
        }
        Read::Total(read) => {
            counter(opts, &[], registry)?
                .with_label_values::<&str>(&[])
                .inc_by(read(report, usage));
        }
        Read::Whole(read) => {
            gauge(opts, &[], registry)?.with_label_values::<&str>(&[]).set(read(report, usage));
        }
    }
    Ok(())
}

fn counter(opts: Opts, labels: &[&str], registry: &Registry) -> prometheus::Result<CounterVec> {
    let counters = CounterVec::new(opts, labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn gauge(opts: Opts, labels: &[&str], registry: &Registry) -> prometheus::Result<GaugeVec> {
    let gauges = GaugeVec::new(opts, labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

const fn metric(name: &'static str, read: Read, help: &'static str) -> Metric {
    Metric { name, help, read }
}

/// Every metric of the box.
pub const METRICS: &[Metric] = &[
    metric(
        "lakehead_source_state",
        Read::States,
        "1 for the state that the source is in, 0 for the others.",
    ),
    metric(
        "lakehead_source_server_position_bytes",
        Read::Gauge(|one| one.status.server.0 as f64),
        "End of the server's log, as last heard, in bytes from its beginning.",
    ),
    metric(
        "lakehead_source_received_position_bytes",
        Read::Gauge(|one| one.status.received.0 as f64),
        "Received from the server, in bytes from its log's beginning.",
    ),
    metric(
        "lakehead_source_confirmed_position_bytes",
        Read::Gauge(|one| one.status.confirmed.0 as f64),
        "Confirmed to the server, in bytes from its log's beginning.",
    ),
    metric(
        "lakehead_source_kept_bytes",
        Read::Gauge(|one| one.status.server.0.saturating_sub(one.status.confirmed.0) as f64),
        "Bytes of log from what was confirmed to its end: the server keeps these, and more while transactions are long.",
    ),
    metric(
        "lakehead_source_stream_bytes_total",
        Read::Counter(|one| one.status.stream_bytes),
        "Payload bytes received from the change stream.",
    ),
    metric(
        "lakehead_source_in_progress_bytes",
        Read::Gauge(|one| one.status.in_progress_bytes as f64),
        "Bytes kept of transactions that have not ended.",
    ),
    metric(
        "lakehead_source_transactions_total",
        Read::Counter(|one| one.status.transactions),
        "Transactions received.",
    ),
    metric(
        "lakehead_source_transactions_skipped_total",
        Read::Counter(|one| one.status.transactions_skipped),
        "Transactions that were sent again and skipped, because the journal holds them.",
    ),
    metric(
        "lakehead_source_changes_total",
        Read::Counter(|one| one.status.changes),
        "Changes received.",
    ),
    metric(
        "lakehead_source_snapshot_rows",
        Read::Gauge(|one| one.status.snapshot.values().map(|table| table.rows).sum::<u64>() as f64),
        "Rows of the snapshot read so far, over all tables.",
    ),
    metric(
        "lakehead_source_snapshot_estimated_rows",
        Read::Gauge(|one| {
            one.status.snapshot.values().map(|table| table.rows_estimated).sum::<u64>() as f64
        }),
        "Rows of the snapshot in all, as the server estimates.",
    ),
    metric(
        "lakehead_source_snapshot_read_bytes_per_second",
        Read::Known(|one| one.snapshot_read_bytes_per_s),
        "How fast the snapshot is read, in bytes of the server's disk; left out while it is not.",
    ),
    metric(
        "lakehead_source_snapshot_left_seconds",
        Read::Known(|one| one.snapshot_seconds_left),
        "How long the snapshot still takes at that rate; left out while nothing is to be read.",
    ),
    metric(
        "lakehead_source_snapshot_rate_bytes_per_second",
        Read::Known(|one| one.status.snapshot_rate_bytes_per_s.map(|rate| rate as f64)),
        "What the snapshot is held back to, for those who work in the database; left out while it is not.",
    ),
    metric(
        "lakehead_journal_durable_position_bytes",
        Read::Gauge(|one| one.status.durable.position.0 as f64),
        "Fsynced in the journal, whole transactions, in bytes from the server's log's beginning.",
    ),
    metric(
        "lakehead_journal_durable_sequence",
        Read::Gauge(|one| one.status.durable.sequence.0 as f64),
        "Number of the last change fsynced in the journal.",
    ),
    metric(
        "lakehead_journal_size_bytes",
        Read::Gauge(|one| one.status.journal_bytes as f64),
        "Bytes of segment files.",
    ),
    metric(
        "lakehead_journal_limit_bytes",
        Read::Gauge(|one| one.status.journal_bytes_max as f64),
        "Limit of the segment files.",
    ),
    metric(
        "lakehead_journal_left_seconds",
        Read::Known(|one| one.journal_hours_left.map(|hours| hours * 3600.0)),
        "How long the journal lasts at the present rate if nothing is shipped.",
    ),
    metric(
        "lakehead_journal_full",
        Read::Gauge(|one| f64::from(u8::from(one.status.journal_full))),
        "1 while reading from the source is paused because the journal is full.",
    ),
    metric(
        "lakehead_journal_damaged_ranges",
        Read::Gauge(|one| one.status.journal_damage.len() as f64),
        "Damaged ranges found.",
    ),
    metric(
        "lakehead_journal_scrubbed_bytes_total",
        Read::Counter(|one| one.status.journal_scrubbed_bytes),
        "Bytes of closed segments that were read again and checked.",
    ),
    metric(
        "lakehead_journal_syncs_total",
        Read::Counter(|one| one.status.journal_syncs),
        "Group commits: fdatasyncs of a segment.",
    ),
    metric(
        "lakehead_journal_written_bytes_total",
        Read::Counter(|one| one.status.journal_written_bytes),
        "Bytes that segment files grew by.",
    ),
    metric(
        "lakehead_seal_sealed_position_bytes",
        Read::Gauge(|one| one.status.sealed.position.0 as f64),
        "Sealed into the spool, in bytes from the server's log's beginning.",
    ),
    metric("lakehead_seal_rows_total", Read::Counter(|one| one.status.sealed_rows), "Rows sealed."),
    metric(
        "lakehead_seal_objects_total",
        Read::Counter(|one| one.status.sealed_objects),
        "Objects sealed.",
    ),
    metric(
        "lakehead_seal_objects_bytes_total",
        Read::Counter(|one| one.status.sealed_bytes),
        "Bytes of sealed objects.",
    ),
    metric(
        "lakehead_seal_spool_bytes",
        Read::Gauge(|one| one.status.spool_bytes as f64),
        "Bytes waiting in the spool.",
    ),
    metric(
        "lakehead_ship_objects_total",
        Read::Counter(|one| one.status.shipped_objects),
        "Objects acknowledged by S3.",
    ),
    metric(
        "lakehead_ship_sent_bytes_total",
        Read::Counter(|one| one.status.sent_bytes),
        "Bytes of bodies sent to S3, those sent again included.",
    ),
    metric(
        "lakehead_ship_requests_total",
        Read::Counter(|one| one.status.requests),
        "Requests to S3 for objects; those of ledger entries come on top.",
    ),
    metric("lakehead_ship_retries_total", Read::Retries, "Requests sent again, by cause."),
    metric(
        "lakehead_link_up",
        Read::Link(|link| u64::from(link.up == Some(true))),
        "1 if the link's interface is up.",
    ),
    metric(
        "lakehead_link_rate_bytes_per_second",
        Read::Link(|link| link.rate_bytes_per_s),
        "The most that leaves by the link.",
    ),
    metric(
        "lakehead_link_sent_bytes_total",
        Read::LinkCounter(|link| link.sent_bytes),
        "Bytes on the wire, frames and what TCP sent again included.",
    ),
    metric(
        "lakehead_ledger_entry",
        Read::Gauge(|one| one.status.entry as f64),
        "Number of the ledger's last entry.",
    ),
    metric(
        "lakehead_ledger_position_bytes",
        Read::Gauge(|one| one.status.shipped.position.0 as f64),
        "In the ledger, in bytes from the server's log's beginning.",
    ),
    metric(
        "lakehead_ledger_sequence",
        Read::Gauge(|one| one.status.shipped.sequence.0 as f64),
        "Number of the last change in the ledger.",
    ),
    metric(
        "lakehead_ledger_transactions_total",
        Read::Counter(|one| one.status.transactions_shipped),
        "Transactions in the ledger, over all starts.",
    ),
    metric(
        "lakehead_ledger_lag_seconds",
        Read::Gauge(|one| one.lag_s),
        "Age of the oldest durable change that the lake lacks.",
    ),
    metric(
        "lakehead_ledger_lag_bytes",
        Read::Gauge(|one| one.lag_bytes as f64),
        "Bytes of the server's log that the lake lacks.",
    ),
    metric(
        "lakehead_ledger_lag_changes",
        Read::Gauge(|one| one.lag_changes as f64),
        "Changes durable and not in the ledger.",
    ),
    metric(
        "lakehead_ledger_lag_transactions",
        Read::Gauge(|one| one.lag_transactions as f64),
        "Transactions durable and not in the ledger.",
    ),
    metric(
        "lakehead_status_alarms",
        Read::Gauge(|one| one.status.alarms.len() as f64),
        "Things that are wrong now.",
    ),
    metric(
        "lakehead_status_alarms_for_people",
        Read::Gauge(|one| one.status.alarms.values().filter(|alarm| !alarm.heals).count() as f64),
        "Things that are wrong now and need a person.",
    ),
    metric(
        "lakehead_status_healthy",
        Read::Whole(|report, _| f64::from(u8::from(report.healthy))),
        "1 if all is well, or heals without a person: what /healthz says.",
    ),
    metric(
        "lakehead_status_hanging_loops",
        Read::Whole(|report, _| report.hanging.len() as f64),
        "Loops that have not gone round within their limit.",
    ),
    metric(
        "lakehead_process_cpu_seconds_total",
        Read::Total(|_, usage| usage.cpu_seconds),
        "Time on a processor, user and system.",
    ),
    metric(
        "lakehead_process_resident_bytes",
        Read::Whole(|_, usage| usage.resident_bytes as f64),
        "Memory of the process that is really there.",
    ),
    metric(
        "lakehead_process_started_seconds",
        Read::Whole(|report, _| report.started_at.0 as f64 / 1e6),
        "When the process started, in seconds since 1970.",
    ),
];

const STATES: &[(SourceState, &str)] = &[
    (SourceState::Starting, "starting"),
    (SourceState::Connecting, "connecting"),
    (SourceState::Snapshot, "snapshot"),
    (SourceState::Streaming, "streaming"),
    (SourceState::Blocked, "blocked"),
    (SourceState::Fenced, "fenced"),
    (SourceState::Stopped, "stopped"),
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;
    use crate::{
        clock::SystemClock,
        telemetry::{board::Board, heartbeat::Heartbeat, report::Reporter},
        units::Position,
    };

    fn rendered() -> String {
        let board = Board::default();
        board.source("erp").write(|status| {
            status.server = Position(1 << 40);
            status.state = SourceState::Streaming;
            status.changes = 7;
            status.retries.insert("LakeSlowDown".into(), 2);
            status.retries.insert("evil\"} 1\n".into(), 3);
        });
        board.link("dx-1").write(|status| status.sent_bytes = 8);
        let reporter = Reporter::new("a", board, Heartbeat::default(), Arc::new(SystemClock));
        render(&reporter.report(), Usage { cpu_seconds: 1.5, resident_bytes: 4096 })
    }

    #[test]
    fn every_metric_is_rendered_with_help_and_its_source() {
        let text = rendered();
        let missing: Vec<&str> = METRICS
            .iter()
            .map(|metric| metric.name)
            .filter(|name| !text.contains(&format!("# HELP {name} ")))
            .collect();
        // Their values are not known here: then their names are not there either.
        let unknown = [
            "lakehead_source_snapshot_read_bytes_per_second",
            "lakehead_source_snapshot_left_seconds",
            "lakehead_source_snapshot_rate_bytes_per_second",
            "lakehead_journal_left_seconds",
        ];
        assert_eq!(missing, unknown);
        for line in [
            "lakehead_source_server_position_bytes{source=\"erp\"} 1099511627776",
            "lakehead_source_changes_total{source=\"erp\"} 7",
            "lakehead_source_state{source=\"erp\",state=\"streaming\"} 1",
            "lakehead_source_state{source=\"erp\",state=\"fenced\"} 0",
            "lakehead_ship_retries_total{cause=\"LakeSlowDown\",source=\"erp\"} 2",
            "lakehead_ship_retries_total{cause=\"other\",source=\"erp\"} 3",
            "lakehead_link_sent_bytes_total{link=\"dx-1\"} 8",
            "lakehead_process_cpu_seconds_total 1.5",
            "lakehead_process_resident_bytes 4096",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        assert!(!text.contains("evil"));
    }

    #[test]
    fn names_follow_the_house_and_counters_end_in_total() {
        let rooms = ["source", "journal", "seal", "ship", "link", "ledger", "status", "process"];
        let mut seen = BTreeSet::new();
        for metric in METRICS {
            let room = metric.name.split('_').nth(1).unwrap();
            assert!(
                metric.name.starts_with("lakehead_") && rooms.contains(&room),
                "{}",
                metric.name
            );
            let counts = matches!(
                metric.read,
                Read::Counter(_) | Read::LinkCounter(_) | Read::Retries | Read::Total(_)
            );
            assert_eq!(metric.name.ends_with("_total"), counts, "{}", metric.name);
            assert!(metric.help.ends_with('.') && seen.insert(metric.name), "{}", metric.name);
        }
    }

    #[test]
    fn every_state_has_its_label() {
        for (state, label) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), *label);
        }
    }
}
