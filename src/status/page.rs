//! The status page: plain HTML, no script. Pure.
//!
//! **Invariant (I36):** every text that is not a literal of this file passes [`escape`].

use std::{fmt::Write as _, sync::LazyLock};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};

use crate::{
    telemetry::{
        board::{SourceState, TableProgress},
        report::{Report, SourceReport},
    },
    units::ByteSize,
};

/// The header that lets the page's own style in and nothing else.
pub(super) fn content_security_policy() -> &'static str {
    &POLICY
}

/// The page.
pub fn render(report: &Report) -> String {
    let name = escape(&report.appliance);
    let (class, word) = match (report.ready, report.healthy) {
        (false, _) => ("wait", "recovering"),
        (true, true) => ("well", "healthy"),
        (true, false) => ("bad", "needs a person"),
    };
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}: {word}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\
         <style>{STYLE}</style></head><body><h1>{name} <span class=\"{class}\">{word}</span></h1>\
         <p>lakehead {}, process {} since {}; as of {} UTC</p>",
        escape(&report.version),
        report.pid,
        report.started_at.rfc3339(),
        report.at.rfc3339(),
    );
    for name in &report.hanging {
        push(&mut page, format_args!("<p class=\"bad\">hangs: {}</p>", escape(name)));
    }
    for (name, source) in &report.sources {
        section(&mut page, name, source);
    }
    page.push_str("</body></html>\n");
    page
}

fn section(page: &mut String, name: &str, source: &SourceReport) {
    let status = &source.status;
    let class = match status.state {
        SourceState::Streaming | SourceState::Snapshot => "well",
        SourceState::Blocked | SourceState::Fenced => "bad",
        SourceState::Starting | SourceState::Connecting | SourceState::Stopped => "wait",
    };
    let state = format!("{:?}", status.state).to_lowercase();
    push(page, format_args!("<h2>{} <span class=\"{class}\">{state}</span></h2>", escape(name)));
    alarms(page, source);
    page.push_str("<table>");
    row(page, "server", &format!("{} (version {})", status.server, status.server_version));
    row(page, "received", &status.received.to_string());
    for (what, point) in
        [("durable", status.durable), ("sealed", status.sealed), ("in the lake", status.shipped)]
    {
        row(page, what, &format!("{} (change {})", point.position, point.sequence.0));
    }
    row(page, "confirmed", &format!("{} (release {})", status.confirmed, status.release));
    row(page, "ledger", &format!("entry {}", status.entry));
    let lag = format!(
        "{:.1} s, {}, {} transactions, {} changes",
        source.lag_s,
        ByteSize(source.lag_bytes),
        source.lag_transactions,
        source.lag_changes
    );
    row(page, "lag", &lag);
    let left = match source.journal_hours_left {
        Some(hours) => format!("; {hours:.1} h of outage left at the present rate"),
        None => String::new(),
    };
    let (bytes, max) = (status.journal_bytes, status.journal_bytes_max);
    row(page, "journal", &format!("{} of {}{left}", ByteSize(bytes), ByteSize(max)));
    row(page, "waiting to be sent", &ByteSize(status.spool_bytes).to_string());
    row(
        page,
        "sent",
        &format!("{} objects, {}", status.shipped_objects, ByteSize(status.sent_bytes)),
    );
    for damage in &status.journal_damage {
        row(page, "damaged", damage);
    }
    page.push_str("</table>");
    snapshot(page, source);
}

fn alarms(page: &mut String, source: &SourceReport) {
    for (room, alarm) in &source.status.alarms {
        let class = if alarm.heals { "wait" } else { "bad" };
        push(
            page,
            format_args!(
                "<p class=\"{class}\"><b>{}: {}</b> since {}: {}<br>{}</p>",
                escape(room),
                escape(&alarm.cause),
                alarm.since.rfc3339(),
                escape(&alarm.what),
                escape(&alarm.remedy)
            ),
        );
    }
}

fn snapshot(page: &mut String, source: &SourceReport) {
    let tables = &source.status.snapshot;
    if tables.is_empty() {
        return;
    }
    let done = |table: &TableProgress| table.chunks > 0 && table.chunks_done >= table.chunks;
    let finished = tables.values().filter(|table| done(table)).count();
    push(page, format_args!("<h3>Snapshot: {finished} of {} tables</h3><table>", tables.len()));
    let open = tables.iter().filter(|(_, table)| !done(table));
    for (name, table) in open.take(TABLES_SHOWN_MAX) {
        push(
            page,
            format_args!(
                "<tr><th>{}</th><td><progress max=\"{}\" value=\"{}\"></progress> {} of about {} rows, {}</td></tr>",
                escape(name),
                table.chunks.max(1),
                table.chunks_done,
                table.rows,
                table.rows_estimated.max(table.rows),
                ByteSize(table.bytes)
            ),
        );
    }
    page.push_str("</table>");
}

fn row(page: &mut String, what: &str, value: &str) {
    push(page, format_args!("<tr><th>{}</th><td>{}</td></tr>", escape(what), escape(value)));
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("writing to a String does not fail");
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
h1 span,h2 span{font-size:.7em;padding:.1em .5em;border-radius:.3em}\
th{text-align:left;font-weight:normal;color:#666;padding-right:2em;vertical-align:top}\
td{font-variant-numeric:tabular-nums}.well{background:#d7f0dc}.wait{background:#fdf0c4}.bad{background:#f8d3d0}\
p.wait,p.bad{padding:.5em 1em}progress{width:12em}";

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
        telemetry::{board::Board, heartbeat::Heartbeat, report::Reporter},
        units::{Position, Timestamp},
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
        assert!(page.contains("<progress max=\"4\" value=\"1\">"));
        assert!(
            page.contains(Cause::TableRefused.disposition().remedy().split('`').next().unwrap())
        );
    }

    #[test]
    fn escaping_leaves_nothing_that_means_something() {
        assert_eq!(escape("a<b>&\"'\u{202E}\n"), "a&lt;b&gt;&amp;&quot;&#39;\u{FFFD}\u{FFFD}");
    }
}
