//! What the demo shows while it runs: bars for the snapshot, one line for the stream, and sentences.
//!
//! On a terminal it draws; elsewhere it writes a line every few seconds. All on standard error:
//! standard output is the report's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::workload::Done;
use crate::{
    telemetry::board::{SourceState, SourceStatus},
    units::{ByteSize, Position, Timestamp},
};

/// The terminal.
#[derive(Debug)]
pub struct Screen {
    all: MultiProgress,
    live: bool,
    tables: BTreeMap<String, TableBar>,
    line: ProgressBar,
    before: Option<Sample>,
    /// What alarms said, each shown once while it lasts.
    alarms: BTreeSet<String>,
    said_at: Option<Instant>,
}

/// A table's bar, and what it began with.
#[derive(Debug)]
struct TableBar {
    bar: ProgressBar,
    since: Instant,
    rows: u64,
}

/// What rates are computed from.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    read_bytes: u64,
    sent_bytes: u64,
    done: u64,
    rates: Rates,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    read: u64,
    sent: u64,
    done: u64,
}

impl Screen {
    /// A screen that draws if standard error is a terminal and `quiet` is not wanted.
    pub fn new(quiet: bool) -> Self {
        let live = !quiet && io::stderr().is_terminal();
        let all = MultiProgress::new();
        if !live {
            all.set_draw_target(ProgressDrawTarget::hidden());
        }
        let line = all.add(ProgressBar::new_spinner());
        line.set_style(ProgressStyle::with_template(LINE).expect("a constant"));
        Self {
            all,
            live,
            tables: BTreeMap::new(),
            line,
            before: None,
            alarms: BTreeSet::new(),
            said_at: None,
        }
    }

    /// Says a sentence.
    pub fn say(&self, sentence: &str) {
        if self.live {
            self.all.println(sentence).ok();
        } else {
            writeln!(io::stderr(), "{sentence}").ok();
        }
    }

    /// Shows where the gateway is, at a time by both clocks, and how long the work still lasts.
    pub fn show(
        &mut self,
        (now, wall, left): (Instant, Timestamp, Option<Duration>),
        status: &SourceStatus,
        done: &Done,
    ) {
        let alarms: BTreeSet<String> = status
            .alarms
            .values()
            .map(|alarm| format!("{}: {}", alarm.cause, alarm.what))
            .collect();
        for alarm in alarms.difference(&self.alarms) {
            self.say(&format!("Alarm         {alarm}"));
        }
        self.alarms = alarms;
        let sample = self.sample(now, status, done);
        let [mut stream, places] = describe(status, wall, &sample.rates);
        if let Some(left) = left {
            stream += &format!(" │ {} s left", left.as_secs());
        }
        self.before = Some(sample);
        if self.live {
            self.bars(now, status);
            self.line.set_message(stream);
            self.line.set_prefix(places);
            self.line.tick();
        } else if self.said_at.is_none_or(|at| now.duration_since(at) >= SAY_EVERY) {
            self.said_at = Some(now);
            self.say(&stream);
            self.say(&places);
        }
    }

    /// Shows that the gateway does not answer.
    pub fn silent(&mut self, why: &str) {
        self.before = None;
        self.line.set_message(why.to_owned());
        self.line.set_prefix("");
        self.line.tick();
    }

    /// Takes bars and line away.
    pub fn finish(&mut self) {
        self.clear();
        self.line.finish_and_clear();
    }

    fn clear(&mut self) {
        std::mem::take(&mut self.tables).values().for_each(|table| table.bar.finish_and_clear());
    }

    fn bars(&mut self, now: Instant, status: &SourceStatus) {
        if status.state != SourceState::Snapshot {
            self.clear();
            return;
        }
        for (table, progress) in &status.snapshot {
            if progress.is_whole() {
                if let Some(shown) = self.tables.remove(table) {
                    shown.bar.finish_and_clear();
                    let rows = progress.rows;
                    self.say(&format!("    snapshot of {table}: {rows} rows"));
                }
                continue;
            }
            if progress.rows == 0 {
                continue;
            }
            let shown = self.tables.entry(table.clone()).or_insert_with(|| {
                let bar = self.all.insert_before(&self.line, ProgressBar::new(0));
                bar.set_style(ProgressStyle::with_template(BAR).expect("a constant"));
                bar.set_prefix(table.clone());
                TableBar { bar, since: now, rows: progress.rows }
            });
            let all = progress.rows_estimated.max(progress.rows);
            let rows = progress.rows.saturating_sub(shown.rows);
            shown.bar.set_length(all);
            shown.bar.set_position(progress.rows);
            shown.bar.set_message(pace(rows, all - progress.rows, now.duration_since(shown.since)));
        }
    }

    fn sample(&self, now: Instant, status: &SourceStatus, done: &Done) -> Sample {
        let copied: u64 = status.snapshot.values().map(|table| table.bytes).sum();
        let mut sample = Sample {
            at: now,
            read_bytes: status.stream_bytes + copied,
            sent_bytes: status.sent_bytes,
            done: done.transactions,
            rates: Rates::default(),
        };
        if let Some(before) = &self.before {
            let span = now.duration_since(before.at);
            sample.rates = Rates {
                read: rate(before.rates.read, sample.read_bytes, before.read_bytes, span),
                sent: rate(before.rates.sent, sample.sent_bytes, before.sent_bytes, span),
                done: rate(before.rates.done, sample.done, before.done, span),
            };
        }
        sample
    }
}

/// The stream in two lines: state, lag, throughput; and how far it is where.
fn describe(status: &SourceStatus, wall: Timestamp, rates: &Rates) -> [String; 2] {
    let behind = status.server.0.saturating_sub(status.shipped.position.0);
    let late = match (status.received_at, status.shipped_at) {
        (Some(received), shipped) if shipped.is_none_or(|shipped| shipped < received) => {
            let since = shipped.unwrap_or(received);
            format!("{} s", wall.0.saturating_sub(since.0).max(0) / 1_000_000)
        }
        _ => "0 s".into(),
    };
    let state = format!("{:?}", status.state).to_lowercase();
    let stream = format!(
        "    {state:<9} lag {late} / {} │ {} tx/s, in {}/s, out {}/s",
        ByteSize(behind),
        rates.done,
        ByteSize(rates.read),
        ByteSize(rates.sent),
    );
    let places = format!(
        "              server {} │ durable {} │ shipped {} │ entry {}",
        short(status.server),
        short(status.durable.position),
        short(status.shipped.position),
        status.entry,
    );
    [stream, places]
}

/// As PostgreSQL prints it.
fn short(position: Position) -> String {
    format!("{:X}/{:X}", position.0 >> 32, position.0 & 0xFFFF_FFFF)
}

/// How fast a table is read, and when it will be done; nothing yet at the first look.
fn pace(rows: u64, left: u64, span: Duration) -> String {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    match rows.saturating_mul(1000) / ms {
        0 => String::new(),
        per_s => format!("{per_s} rows/s, {} s left", left.div_ceil(per_s)),
    }
}

/// Per second, smoothed over the last few samples. A counter that fell began anew.
fn rate(before: u64, now: u64, then: u64, span: Duration) -> u64 {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1);
    let fresh = now.saturating_sub(then).saturating_mul(1000) / ms;
    (before.saturating_mul(2) + fresh) / 3
}

const SAY_EVERY: Duration = Duration::from_secs(5);
const BAR: &str = "    {prefix:<28!} {bar:24} {pos:>9}/{len:<9} {msg}";
const LINE: &str = "{wide_msg}\n{prefix}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_lag_rates_and_positions() {
        let mut status = SourceStatus { state: SourceState::Streaming, ..SourceStatus::default() };
        status.server = Position(0x1_0000_2000);
        status.shipped.position = Position(0x1_0000_1000);
        status.received_at = Some(Timestamp(9_000_000));
        status.shipped_at = Some(Timestamp(7_000_000));
        let rates = Rates { read: 2048, sent: 0, done: 5 };
        let [stream, places] = describe(&status, Timestamp(10_000_000), &rates);
        assert!(stream.contains("streaming lag 3 s / 4.0 KiB"), "{stream}");
        assert!(stream.contains("5 tx/s, in 2.0 KiB/s"), "{stream}");
        assert!(places.contains("server 1/2000 │ durable 0/0 │ shipped 1/1000"), "{places}");
    }

    #[test]
    fn a_table_knows_its_pace_from_the_second_look_on() {
        assert_eq!(pace(0, 100, Duration::ZERO), "");
        assert_eq!(pace(500, 1001, Duration::from_secs(2)), "250 rows/s, 5 s left");
    }

    #[test]
    fn a_rate_survives_a_restart_of_the_counter() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(0, 3000, 0, second), 1000);
        assert_eq!(rate(900, 10, 50_000, second), 600);
    }
}
