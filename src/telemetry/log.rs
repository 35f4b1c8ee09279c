//! The log: to stderr, for people or for machines.
//!
//! **Invariant (I36):** one event is one line, whatever stands in its fields: control characters and
//! those that turn the direction of text are escaped.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter, format::Writer,
        time::FormatTime,
    },
    registry::LookupSpan,
};

use crate::clock::{Clock, SystemClock};

/// How events are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// `Human` on a terminal, else `Plain`.
    #[default]
    Auto,
    /// Time of day and colours.
    Human,
    /// The whole time, no colours.
    Plain,
    /// One JSON object for each event.
    Json,
}

/// Why the log cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("LAKEHEAD_LOG: `{filter}` is not a filter: {why}")]
    Filter {
        /// As given.
        filter: String,
        /// What the parser said.
        why: String,
    },
    /// A log has begun already in this process.
    #[error("the log has begun already")]
    Begun,
}

/// Begins the log of the process. `filter` is `info` where it is absent; `colour` allows colours.
///
/// # Errors
///
/// The filter cannot be read, or the log has begun already.
pub fn begin(format: Format, filter: Option<&str>, colour: bool) -> Result<(), LogError> {
    let terminal = io::stderr().is_terminal();
    let format = match (format, terminal) {
        (Format::Auto, true) => Format::Human,
        (Format::Auto, false) => Format::Plain,
        (given, _) => given,
    };
    let subscriber = subscriber(format, filter, colour && terminal, io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Begun)
}

fn subscriber<W>(
    format: Format,
    filter: Option<&str>,
    colour: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let text = filter.unwrap_or(FILTER);
    let filter = EnvFilter::try_new(text)
        .map_err(|why| LogError::Filter { filter: text.into(), why: why.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match format {
        Format::Json => {
            let json = builder.json().flatten_event(true).with_current_span(false);
            Box::new(json.with_timer(Rfc3339).finish())
        }
        human => {
            let line = Line { colour, short: human == Format::Human };
            Box::new(builder.fmt_fields(Escaped).event_format(line).finish())
        }
    })
}

/// `2026-11-21T09:31:02.123456Z INFO  ship{source=erp}: object acknowledged key=raw/…`
struct Line {
    colour: bool,
    short: bool,
}

struct Rfc3339;

/// Fields as `name=value`, escaped.
struct Escaped;

struct Fields<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

/// Escapes what could end the line or turn it around.
struct Escaper<'a, 'w>(&'a mut Writer<'w>);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let time = SystemClock.wall().rfc3339();
        let time = if self.short { time.get(11..19).unwrap_or(&time) } else { &time };
        let (level, colour) = level(*event.metadata().level());
        if self.colour {
            write!(writer, "\x1b[2m{time}\x1b[0m \x1b[{colour}m{level}\x1b[0m ")?;
        } else {
            write!(writer, "{time} {level} ")?;
        }
        let target = event.metadata().target();
        writer.write_str(target.strip_prefix("lakehead::").unwrap_or(target))?;
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            write!(writer, " {}", span.name())?;
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, "{{{fields}}}")?;
            }
        }
        writer.write_str(": ")?;
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writer.write_char('\n')
    }
}

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&SystemClock.wall().rfc3339())
    }
}

impl<'w> FormatFields<'w> for Escaped {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Fields { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        if !self.first {
            self.writer.write_char(' ')?;
        }
        self.first = false;
        if field.name() != "message" {
            write!(self.writer, "{}=", field.name())?;
        }
        Escaper(&mut self.writer).write_fmt(value)
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        let plain = field.name() == "message" || !value.contains([' ', '"', '=']);
        let plain = plain && !value.is_empty();
        let written = match plain {
            true => self.write(field, format_args!("{value}")),
            false => self.write(field, format_args!("{value:?}")),
        };
        self.result = self.result.and(written);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = self.write(field, format_args!("{value:?}"));
        self.result = self.result.and(written);
    }
}

impl fmt::Write for Escaper<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() || matches!(c, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}') {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}

fn level(level: Level) -> (&'static str, u8) {
    match level {
        Level::ERROR => ("ERROR", 31),
        Level::WARN => ("WARN ", 33),
        Level::INFO => ("INFO ", 32),
        Level::DEBUG => ("DEBUG", 34),
        Level::TRACE => ("TRACE", 35),
    }
}

const FILTER: &str = "info";

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: Option<&str>, work: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(format, filter, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(String::from).collect()
    }

    #[test]
    fn a_hostile_name_stays_in_its_line() {
        let hostile = "orders\n2026 ERROR forged\x1b[31m\u{202E}";
        for format in [Format::Human, Format::Plain, Format::Json] {
            let lines = logged(format, None, || {
                let span = tracing::info_span!("seal", table = hostile);
                let _inside = span.enter();
                tracing::info!(name = %hostile, other = hostile, "sealed {hostile}");
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains('\x1b'), "{lines:?}");
        }
    }

    #[test]
    fn a_line_names_level_target_span_message_and_fields() {
        let lines = logged(Format::Plain, None, || {
            let span = tracing::info_span!("ship", source = "erp");
            let _inside = span.enter();
            tracing::warn!(target: "lakehead::ship::s3", status = 503, why = "slow down", "sent again");
        });
        let (time, rest) = lines[0].split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == 27, "{time}");
        assert_eq!(
            rest,
            "WARN  ship::s3 ship{source=erp}: sent again status=503 why=\"slow down\""
        );
    }

    #[test]
    fn json_has_the_time_the_level_and_the_fields_beside_each_other() {
        let lines = logged(Format::Json, None, || tracing::info!(objects = 3, "shipped"));
        let event: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&event["message"], &event["objects"]), (&"shipped".into(), &3.into()));
        assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn the_filter_decides_and_a_wrong_one_is_named() {
        let lines = logged(Format::Plain, Some("warn"), || {
            tracing::info!("left out");
            tracing::warn!("told");
        });
        assert_eq!(lines.len(), 1);
        let wrong = subscriber(Format::Plain, Some("ship=loud"), false, io::sink).err().unwrap();
        assert!(
            wrong.to_string().starts_with("LAKEHEAD_LOG: `ship=loud` is not a filter"),
            "{wrong}"
        );
    }
}
