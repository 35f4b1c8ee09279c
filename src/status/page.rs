//! The status page: plain HTML, no script. Pure.
//!
//! **Invariant (I36):** every text that is not a literal of this file passes [`escape`].

use std::{fmt::Write as _, sync::LazyLock};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    telemetry::{
        board::{Alarm, LinkStatus, SourceState, SourceStatus},
        report::{Health, Report, SourceReport},
    },
    units::{BitRate, ByteSize, Timestamp},
};

/// The header that lets the page's own style in and nothing else.
pub(super) fn content_security_policy() -> &'static str {
    &POLICY
}

/// The page.
pub fn render(report: &Report) -> String {
    let name = escape(&report.appliance);
    let word = report.health();
    let class = match word {
        Health::Healthy => "well",
        Health::Recovering | Health::Heals => "wait",
        Health::NeedsPerson => "bad",
    };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: {word}</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta http-equiv=\"refresh\" content=\"5\">\
         <style>{STYLE}</style></head><body><h1>{name} <span class=\"{class}\">{word}</span></h1>\
         <p>As of {} UTC. Lakehead {}, process {}, started {} UTC.</p>",
        seconds(report.at),
        escape(&report.version),
        report.pid,
        seconds(report.started_at),
    );
    for name in &report.hanging {
        push(
            &mut page,
            format_args!(
                "<p class=\"bad\"><b>hangs: {}</b><br>The watchdog restarts the process.</p>",
                escape(name)
            ),
        );
    }
    for (name, status) in &report.links {
        link(&mut page, name, status);
    }
    for (name, source) in &report.sources {
        section(&mut page, name, source);
    }
    page.push_str("</body></html>\n");
    page
}

fn link(page: &mut String, name: &str, status: &LinkStatus) {
    let (class, state) = match status.up {
        Some(true) => ("well", "up"),
        Some(false) => ("bad", "down"),
        None => ("wait", "unknown"),
    };
    push(
        page,
        format_args!("<h2>link {} <span class=\"{class}\">{state}</span></h2>", escape(name)),
    );
    if let Some(raised) = &status.alarm {
        alarm(page, "link", raised);
    }
    page.push_str("<table>");
    row(page, "interface", &status.interface);
    row(page, "at most", &BitRate(status.rate_bytes_per_s.saturating_mul(8)).to_string());
    row(page, "on the wire since the start", &ByteSize(status.sent_bytes).to_string());
    page.push_str("</table>");
}

fn section(page: &mut String, name: &str, source: &SourceReport) {
    let status = &source.status;
    let class = match status.state {
        SourceState::Streaming | SourceState::Snapshot => "well",
        SourceState::Blocked | SourceState::Fenced => "bad",
        SourceState::Starting | SourceState::Connecting | SourceState::Stopped => "wait",
    };
    let state = match status.state {
        SourceState::Starting => "starting",
        SourceState::Connecting => "connecting",
        SourceState::Snapshot => "snapshot, and streaming",
        SourceState::Streaming => "streaming",
        SourceState::Blocked => "blocked: a person must act",
        SourceState::Fenced => "fenced: another appliance owns it",
        SourceState::Stopped => "stopped",
    };
    push(page, format_args!("<h2>{} <span class=\"{class}\">{state}</span></h2>", escape(name)));
    alarms(page, source);
    page.push_str("<table>");
    facts(page, source);
    page.push_str("</table>");
    road(page, status);
    snapshot(page, source);
}

fn facts(page: &mut String, source: &SourceReport) {
    let status = &source.status;
    let lag = format!(
        "{:.1} s, {}, {} transactions, {} changes",
        source.lag_s,
        ByteSize(source.lag_bytes),
        source.lag_transactions,
        source.lag_changes
    );
    row(page, "the lake lacks", &lag);
    let committed = match status.shipped_at {
        Some(at) => format!("entry {}, up to a commit of {} UTC", status.entry, seconds(at)),
        None => format!("entry {}", status.entry),
    };
    row(page, "ledger", &committed);
    let left = match source.journal_hours_left {
        Some(hours) => format!("; {hours:.1} h of outage left at the present rate"),
        None => String::new(),
    };
    let full = if status.journal_full { "; full: reading from the database pauses" } else { "" };
    let (bytes, max) = (status.journal_bytes, status.journal_bytes_max);
    row(page, "journal", &format!("{} of {}{left}{full}", ByteSize(bytes), ByteSize(max)));
    if status.in_progress_bytes > 0 {
        let bytes = ByteSize(status.in_progress_bytes).to_string();
        row(page, "kept of transactions that have not ended", &bytes);
    }
    row(page, "waiting to be sent", &ByteSize(status.spool_bytes).to_string());
    let (objects, sent) = (status.shipped_objects, ByteSize(status.sent_bytes));
    row(page, "sent since the start", &format!("{objects} objects, {sent}"));
    let kept = status.server.0.saturating_sub(status.confirmed.0);
    let release = match status.release.as_str() {
        "journal" => "; it may forget what the journal has",
        "lake" => "; it may forget what the ledger covers",
        _ => "",
    };
    row(page, "log kept by the database", &format!("{}{release}", ByteSize(kept)));
    if !status.server_version.is_empty() {
        row(page, "database", &format!("PostgreSQL {}", status.server_version));
    }
    for damage in &status.journal_damage {
        row(page, "damaged", damage);
    }
}

/// How far the log is where, in the order in which it travels.
fn road(page: &mut String, status: &SourceStatus) {
    page.push_str(
        "<h3>Positions</h3><table class=\"road\"><tr><th></th><th>position</th><th>behind</th>\
         <th>change</th></tr>",
    );
    let stages = [
        ("database", status.server, None),
        ("received", status.received, None),
        ("durable in the journal", status.durable.position, Some(status.durable.sequence)),
        ("sealed", status.sealed.position, Some(status.sealed.sequence)),
        ("in the lake", status.shipped.position, Some(status.shipped.sequence)),
        ("confirmed to the database", status.confirmed, None),
    ];
    for (stage, position, change) in stages {
        // 0: nothing is known yet, which is not the same as far behind.
        let (position, behind) = match position.0 {
            0 => ("–".into(), "–".into()),
            at => (position.to_string(), ByteSize(status.server.0.saturating_sub(at)).to_string()),
        };
        let change = change.map(|change| change.0.to_string()).unwrap_or_default();
        push(
            page,
            format_args!(
                "<tr><th>{stage}</th><td>{position}</td><td>{behind}</td><td>{change}</td></tr>"
            ),
        );
    }
    page.push_str("</table>");
}

fn alarms(page: &mut String, source: &SourceReport) {
    for (room, raised) in &source.status.alarms {
        alarm(page, room, raised);
    }
}

fn alarm(page: &mut String, room: &str, alarm: &Alarm) {
    let (class, heals) = match alarm.heals {
        true => ("wait", "heals by itself"),
        false => ("bad", "a person must act"),
    };
    push(
        page,
        format_args!(
            "<p class=\"{class}\"><b>{}</b> ({}; {heals}) since {} UTC<br>{}<br>What to do: {}</p>",
            escape(&alarm.cause),
            escape(room),
            seconds(alarm.since),
            escape(&alarm.what),
            escape(&alarm.remedy)
        ),
    );
}

fn snapshot(page: &mut String, source: &SourceReport) {
    let tables = &source.status.snapshot;
    if tables.is_empty() {
        return;
    }
    let open: Vec<_> = tables.iter().filter(|(_, table)| !table.is_whole()).collect();
    let finished = tables.len() - open.len();
    push(page, format_args!("<h3>Snapshot: {finished} of {} tables whole</h3>", tables.len()));
    if open.is_empty() {
        return;
    }
    if let Some(going) = source.snapshot_going() {
        push(page, format_args!("<p>{going}</p>"));
    }
    if let Some(rate) = source.status.snapshot_rate_bytes_per_s {
        push(
            page,
            format_args!(
                "<p>Held back to {}/s for those who work in the database</p>",
                ByteSize(rate)
            ),
        );
    }
    page.push_str("<table>");
    let hidden = open.len().saturating_sub(TABLES_SHOWN_MAX);
    for (name, table) in open.into_iter().take(TABLES_SHOWN_MAX) {
        push(
            page,
            format_args!(
                "<tr><th>{}</th><td><progress value=\"{:.3}\"></progress> {} of {} parts; {} of about {} rows, {}</td></tr>",
                escape(name),
                table.share(),
                table.chunks_done,
                table.chunks,
                table.rows,
                table.rows_estimated.max(table.rows),
                ByteSize(table.bytes)
            ),
        );
    }
    page.push_str("</table>");
    if hidden > 0 {
        push(page, format_args!("<p>and {hidden} tables more</p>"));
    }
}

fn row(page: &mut String, what: &str, value: &str) {
    push(page, format_args!("<tr><th>{}</th><td>{}</td></tr>", escape(what), escape(value)));
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a String does not fail");
}

/// `2026-11-21 08:30:00`: no finer than a person reads.
fn seconds(at: Timestamp) -> String {
    at.rfc3339().chars().take(19).map(|c| if c == 'T' { ' ' } else { c }).collect()
}

/// Text that means nothing in HTML, neither between tags nor in a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{FFFD}'),
            c if c.is_control() => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Open tables shown for one source.
const TABLES_SHOWN_MAX: usize = 100;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1,h2{border-bottom:1px solid #ddd}h1 span,h2 span{font-size:.65em;font-weight:normal;padding:.15em .6em;border-radius:.3em}\
h3{margin:1.2em 0 .3em}th{text-align:left;font-weight:normal;color:#555;padding:.1em 2em .1em 0;vertical-align:top}\
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere;vertical-align:top;padding:.1em 0}.road td{padding-right:2em;white-space:nowrap}\
.road td+td{text-align:right}\
.road tr:first-child th{font-size:.85em}.road tr:first-child th+th+th{text-align:right}\
.well{background:#d7f0dc}.wait{background:#fdf0c4}.bad{background:#f8d3d0}\
p.wait,p.bad{padding:.6em 1em;border-radius:.3em}progress{width:12em}\
@media(max-width:40em){th{padding-right:1em}.road{font-size:.85em}.road th,.road td{padding-right:.7em}}";

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::SystemClock,
        error::Cause,
        telemetry::{
            board::{Board, TableProgress},
            heartbeat::Heartbeat,
            report::Reporter,
        },
        units::Position,
    };

    #[test]
    fn names_from_the_database_stay_text() {
        let board = Board::default();
        let evil = "x\"'><script>alert(1)</script>";
        let source = board.source("erp");
        source.alarm("source", Cause::TableRefused, &evil, Timestamp(0));
        source.write(|status| {
            status.server_version = evil.into();
            status.journal_damage.push(evil.into());
            status.snapshot.insert(
                evil.into(),
                TableProgress { chunks: 4, chunks_done: 1, ..TableProgress::default() },
            );
            status.server = Position(0x16_B374_D848);
        });
        let reporter =
            Reporter::new("plant7-a", board, Heartbeat::default(), Arc::new(SystemClock));
        let page = render(&reporter.report());
        assert!(!page.contains("<script") && !page.contains("x\"'"), "{page}");
        assert_eq!(page.matches("x&quot;&#39;&gt;&lt;script&gt;").count(), 4);
        assert!(page.contains("00000016/B374D848"));
        assert!(page.contains("<progress value=\"0.250\">"));
        assert!(
            page.contains(Cause::TableRefused.disposition().remedy().split('`').next().unwrap())
        );
    }

    #[test]
    fn the_page_says_what_is_not_known_and_what_a_person_must_do() {
        let board = Board::default();
        let source = board.source("erp");
        source.write(|status| status.state = SourceState::Blocked);
        source.alarm("source", Cause::WalLevel, &"wal_level is replica", Timestamp(0));
        let reporter =
            Reporter::new("plant7-a", board, Heartbeat::default(), Arc::new(SystemClock));
        let page = render(&reporter.report());
        for text in [
            "plant7-a <span class=\"wait\">recovering</span>",
            "erp <span class=\"bad\">blocked: a person must act</span>",
            "<b>WalLevel</b> (source; a person must act) since 1970-01-01 00:00:00 UTC<br>wal_level is replica",
            "What to do: set `wal_level = logical`",
            "<tr><th>in the lake</th><td>–</td><td>–</td><td>0</td></tr>",
        ] {
            assert!(page.contains(text), "{text}\n{page}");
        }
    }

    #[test]
    fn a_box_with_an_alarm_is_not_called_healthy_even_if_it_heals() {
        let board = Board::default();
        let source = board.source("erp");
        let reporter =
            Reporter::new("plant7-a", board, Heartbeat::default(), Arc::new(SystemClock));
        reporter.ready();
        assert!(render(&reporter.report()).contains("<span class=\"well\">healthy</span>"));
        source.alarm("ship", Cause::LakeUnavailable, &"503", Timestamp(0));
        let page = render(&reporter.report());
        assert!(page.contains("plant7-a <span class=\"wait\">heals by itself</span>"), "{page}");
    }

    #[test]
    fn escaping_leaves_nothing_that_means_something() {
        assert_eq!(escape("a<b>&\"'\u{202E}\n"), "a&lt;b&gt;&amp;&quot;&#39;\u{FFFD}\u{FFFD}");
    }
}
