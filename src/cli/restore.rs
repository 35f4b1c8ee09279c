//! `lakehead restore`: rebuilds a source in a PostgreSQL, at a consistent point.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;

use super::{
    Failure, Global,
    meter::{Meter, Step},
    reading::{self, Reading},
    verify,
};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Config, Secret},
    error::Exit,
    ledger::{Entry, LedgerError, audit},
    pipeline,
    replay::{self, Progress, RestoreOptions, RestoreReport},
    shutdown::Tasks,
    source::postgres::{self, url::Url},
    units::{Position, Timestamp},
};

pub(super) const EXAMPLES: &str = "Examples, into an empty database:
  lakehead restore --source erp --to postgresql://restore@db2:5432/erp --password-file pw
  lakehead restore … --until 2026-11-21T08:30:00Z      after the last commit up to then
  lakehead restore … --until 00000016/B374D848         after the last commit up to that position
The same command again goes on where the last one ended.";

#[derive(Args, Debug)]
pub(super) struct RestoreArgs {
    /// The source to rebuild.
    #[arg(long)]
    source: String,
    /// The database to rebuild it in: postgresql://user@host:5432/database
    #[arg(long, value_name = "URL")]
    to: String,
    /// The password for it, mode 0600.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A key that entries may be signed with; the box's own identity.pub if none is given.
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// Stop at this position or time; else at the end of the ledger.
    #[arg(long, value_name = "POSITION|TIME")]
    until: Option<Until>,
    /// Leave this table out, written schema.table; may be given several times.
    #[arg(long, value_name = "TABLE")]
    except: Vec<String>,
    /// Go on as the ledger grows.
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Where a restore ends: after the last transaction at or before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Until {
    /// In the source's log.
    Position(Position),
    /// By the transactions' commit times.
    Time(Timestamp),
}

impl From<Until> for replay::Until {
    fn from(until: Until) -> Self {
        match until {
            Until::Position(position) => Self::Position(position),
            Until::Time(time) => Self::Time(time),
        }
    }
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let position = text.parse().map(Self::Position);
        position.or_else(|_| text.parse().map(Self::Time)).map_err(|_| {
            "write a position like 00000016/B374D848 or a time like 2026-11-21T08:30:00Z".into()
        })
    }
}

pub(super) async fn restore(global: &Global, args: RestoreArgs) -> Result<Exit, Failure> {
    if args.follow {
        return Err(Failure::not_here(
            "--follow is not in this firmware yet",
            "leave it out, and restore again: what is there already is not done twice",
        ));
    }
    let config = args.reading.config(global)?;
    let source = reading::source(&config, Some(&args.source))?;
    let to = Config::database_url("--to", &args.to)?;
    let password = args.password_file.as_deref().map(config::load_secret).transpose()?;
    let public_keys = verify::public_keys(&config, &source, args.public_key);
    let (until, except) = (args.until, args.except);
    rebuild(global, Asked { config, source, to, password, until, except, public_keys }).await
}

/// What is to be rebuilt.
struct Asked {
    config: Config,
    source: String,
    to: String,
    password: Option<Secret>,
    until: Option<Until>,
    except: Vec<String>,
    public_keys: Vec<PathBuf>,
}

async fn rebuild(global: &Global, asked: Asked) -> Result<Exit, Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut meter = global.meter();
    let entries = chain(&asked, &clock, &mut meter).await?;
    let mut url = Url::parse(&asked.to)?;
    url.password = asked.password;
    let tasks = Tasks::new();
    let client = postgres::client(&url, &tasks).await?;
    let work = reading::work_dir(&asked.config)?;
    let options = RestoreOptions {
        source: asked.source,
        until: asked.until.map(Into::into),
        except: asked.except,
        work_dir: work.path().into(),
    };
    let mut show = |progress| meter.show(&step(progress));
    let lake = reading::lake(&asked.config)?;
    let restored = Box::pin(replay::restore(&options, lake, &entries, &client, &mut show)).await;
    drop(meter);
    drop(client);
    tasks.stop().await;
    let report = restored?;
    global.output().tell(&json(&report), &Lines(&report));
    let lacking = [report.incomplete_rows, report.unmatched_rows, report.repaired_values];
    let whole = lacking.iter().all(|count| *count == 0);
    Ok(if whole { Exit::Done } else { Exit::Wanting })
}

/// The ledger's entries, proven: nothing is restored from a chain that is broken.
async fn chain(
    asked: &Asked,
    clock: &Arc<dyn Clock>,
    meter: &mut Meter,
) -> Result<Vec<Entry>, Failure> {
    let (config, keys) = (&asked.config, &asked.public_keys);
    let report = verify::prove(config, &asked.source, keys, None, None, meter).await?;
    if let Some(damage) = report.damage {
        return Err(LedgerError::Broken(Box::new(damage)).into());
    }
    let s3 = pipeline::lake(config, clock)?;
    Ok(audit::entries(&s3, &config.lake.prefix, &report).await?)
}

fn step(progress: Progress) -> Step<'static> {
    match progress {
        Progress::Snapshot { table, done, all, changes } => {
            let more = format!("{table}; then {changes} changes");
            Step { phase: "restore: rows", done, all: Some(all), bytes: false, more }
        }
        Progress::Changes { done, all } => {
            let more = String::new();
            Step { phase: "restore: changes", done, all: Some(all), bytes: false, more }
        }
    }
}

fn json(report: &RestoreReport) -> serde_json::Value {
    serde_json::json!({
        "at": report.at,
        "committed_at": report.committed_at.map(Timestamp::rfc3339),
        "tables": report.tables,
        "sequences": report.sequences,
        "large_objects": report.large_objects,
        "snapshot_rows": report.snapshot_rows,
        "changes": report.changes,
        "incomplete_rows": report.incomplete_rows,
        "unmatched_rows": report.unmatched_rows,
        "repaired_values": report.repaired_values,
        "left": report.left,
        "away": report.away,
        "notes": report.notes,
    })
}

struct Lines<'a>(&'a RestoreReport);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        write!(
            f,
            "restored {} tables up to {} (change {}): {} rows of snapshots, {} changes",
            report.tables.len(),
            report.at.position,
            report.at.sequence.0,
            report.snapshot_rows,
            report.changes
        )?;
        for note in &report.notes {
            write!(f, "\n  note: {note}")?;
        }
        if report.incomplete_rows > 0 {
            write!(
                f,
                "\n  INCOMPLETE: {} rows lack values that are not in the lake",
                report.incomplete_rows
            )?;
        }
        if report.unmatched_rows > 0 {
            write!(
                f,
                "\n  UNMATCHED: {} changes of rows that are not in the lake",
                report.unmatched_rows
            )?;
        }
        if report.repaired_values > 0 {
            write!(
                f,
                "\n  REPAIRED: {} texts are not UTF-8: U+FFFD stands for what is not, their bytes in the lake's `_exact`",
                report.repaired_values
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_position_or_a_time() {
        assert_eq!("16/B374D848".parse(), Ok(Until::Position(Position(0x16_B374_D848))));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Until::Time(Timestamp(1_000_000))));
        assert!("yesterday".parse::<Until>().is_err());
    }
}
