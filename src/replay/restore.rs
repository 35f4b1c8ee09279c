//! Rebuilds a source in a PostgreSQL, at a consistent point.
//!
//! Tables first, then the rows of snapshots by COPY, then the changes of each epoch in the order of the
//! source, committed to the target at ends of the source's transactions only. A table with a key takes
//! every change since its oldest chunk again: applied twice they converge. One without a key has one
//! snapshot, and takes the changes behind it. Rows that were read again take their place among the
//! changes, at their position. Columns in which rows lacked values are NOT NULL again behind them. Large objects come then, sequences with what takes from them,
//! and last what the values of domains have to be. A restore that was cut goes on where it was; one that is
//! run again does nothing twice.

use std::{path::PathBuf, sync::Arc};

use tokio_postgres::Client;

use super::{
    Lake, ReplayError, Until,
    fetch::Fetcher,
    key::{Content, parse},
    merge::Merge,
    plan::{Definitions, definitions, plan, tracks},
    restore_rows::Restore,
    restore_target::{Target, refused},
    restore_types::{Lax, Types},
    schema::named_by_values,
};
use crate::{
    journal::{Op, own::OWN_SCHEMA},
    ledger::{Entry, EntryKind},
    seal::Table,
    units::{Point, Position, Timestamp},
};

/// What is to be restored.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The source's name, under which the target keeps its progress.
    pub source: String,
    /// Where to end; else at the end of the ledger.
    pub until: Option<Until>,
    /// Qualified names of tables to leave out.
    pub except: Vec<String>,
    /// For objects on their way. About the size of an epoch's largest objects is needed there.
    pub work_dir: PathBuf,
}

/// How far a restore is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Rows of snapshots are on their way.
    Snapshot {
        /// The table.
        table: String,
        /// Rows so far, those of earlier runs too.
        done: u64,
        /// Rows in all, of all tables.
        all: u64,
        /// Changes that come after them.
        changes: u64,
    },
    /// Changes are on their way.
    Changes {
        /// Changes so far, of this run.
        done: u64,
        /// In all, but for those that stand behind the end asked for.
        all: u64,
    },
}

/// What a restore made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RestoreReport {
    /// The point at which the target stands.
    pub at: Point,
    /// Commit time of the last transaction applied by this run.
    pub committed_at: Option<Timestamp>,
    /// Qualified names of the tables.
    pub tables: Vec<String>,
    /// Sequences that are there.
    pub sequences: u64,
    /// Large objects that are there and that this run or an earlier one made.
    pub large_objects: u64,
    /// Rows of snapshots that this run loaded.
    pub snapshot_rows: u64,
    /// Changes that this run applied.
    pub changes: u64,
    /// Rows that lack values: an update left them out, and the row before it is not in the lake. They
    /// are NULL. Not 0: something is missing.
    pub incomplete_rows: u64,
    /// Updates and deletes by this run of rows that were nowhere. Not 0: something is missing.
    pub unmatched_rows: u64,
    /// Values that are not UTF-8 and stand with U+FFFD in the place of what is not. Not 0: their bytes are in the
    /// lake only, in `_exact`.
    pub repaired_values: u64,
    /// Qualified names of those of the tables that were not copied any more: they stand as they were when
    /// they left.
    pub left: Vec<String>,
    /// Qualified names of tables that left before the lake had a whole state of them: they are not restored.
    pub away: Vec<String>,
    /// What of the definitions was not made again, in sentences.
    pub notes: Vec<String>,
}

/// Restores what `entries` (the whole verified ledger of one source, in order) describe.
///
/// # Errors
///
/// Nothing is undone: the target stands at the last commit, and another call goes on from there.
pub async fn restore(
    options: &RestoreOptions,
    lake: Lake,
    entries: &[Entry],
    client: &Client,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<RestoreReport, ReplayError> {
    let fetcher = Fetcher::new(lake, &options.work_dir)?;
    let known = read_definitions(&fetcher, entries).await?;
    let until = match options.until {
        None => None,
        Some(Until::Position(position)) => Some(position),
        Some(Until::Time(time)) => {
            let (until, has_commits) = position_at(&fetcher, entries, &known, time).await?;
            // Where there are some something was there, whatever the snapshots say: their clock is the box's.
            if !has_commits {
                after_the_beginning(&fetcher, entries, time).await?;
            }
            until
        }
    };
    let plan = plan(entries, &known, until, &options.except)?;
    let bound = until.unwrap_or(Position(u64::MAX));
    let (mut lax, mut before) = (Lax::default(), RestoreReport::default());
    loop {
        let types = Types::new(entries, &known, lax.clone());
        let target = Target::open(client, &options.source, types).await?;
        let stands = target.progress().await?.unwrap_or_default();
        let at = stands.0.position;
        if at > plan.end.position {
            return Err(ReplayError::Beyond { at, until: plan.end.position });
        }
        let versions = known.values().map(|of| ((of.id, of.version), plan.called(of))).collect();
        let mut tell = |made| progress(made);
        let mut restore =
            Restore::new(target, &fetcher, versions, bound, stands, (before, &mut tell));
        match restore.fill(&plan).await {
            // What it is to be is ahead of the rows, or behind them.
            Err(ReplayError::Domain { domain, .. }) if lax.insert(domain.clone()) => {}
            Err(why) => return Err(why),
            Ok(()) => return Ok(restore.into_report(&plan)),
        }
        before = restore.given_up();
        client.batch_execute("ROLLBACK").await.map_err(|why| refused("begin again", &why))?;
    }
}

/// Reads every definition in the ledger.
///
/// # Errors
///
/// One is not there, not what the ledger proves, or no definition of its table and version.
pub async fn read_definitions(
    fetcher: &Fetcher,
    entries: &[Entry],
) -> Result<Definitions, ReplayError> {
    let mut known = Definitions::new();
    for (name, version, object) in definitions(entries) {
        let bytes = fetcher.bytes(&object).await?;
        let table: Table =
            serde_json::from_slice(&bytes).map_err(|why| ReplayError::object(&object.key, why))?;
        if (&table.schema, &table.name, table.version) != (&name.schema, &name.table, version) {
            return Err(ReplayError::object(&object.key, "it describes another table or version"));
        }
        known.insert((name, version), Arc::new(named_by_values(table)));
    }
    Ok(known)
}

/// Before the first snapshot was taken the lake knows nothing of the source.
async fn after_the_beginning(
    fetcher: &Fetcher,
    entries: &[Entry],
    time: Timestamp,
) -> Result<(), ReplayError> {
    let snapshots = entries.iter().filter(|entry| entry.kind == EntryKind::Snapshot);
    let rows = snapshots.flat_map(|entry| &entry.objects).filter_map(|object| {
        let (name, Content::Rows { position }) = parse(&object.key)? else { return None };
        let has_rows = object.rows.get(&Op::Snapshot).is_some_and(|rows| *rows > 0);
        (has_rows && name.schema != OWN_SCHEMA).then_some((position, object))
    });
    let Some((_, first)) = rows.min_by_key(|(position, object)| (*position, object.bytes)) else {
        return Ok(());
    };
    let rows = fetcher.rows(first, FIRST_ROWS_BYTES).await?.next_rows()?;
    let Some(rows) = rows.filter(|rows| !rows.is_empty()) else { return Ok(()) };
    let began = rows.meta(0).committed_at;
    if time < began { Err(ReplayError::Before { time, began }) } else { Ok(()) }
}

/// The end of the last transaction before the first, in log order, that was committed after `time`.
/// `None`: none was. Epochs whose last commit is not later are taken whole. And whether any transaction was committed by then.
async fn position_at(
    fetcher: &Fetcher,
    entries: &[Entry],
    known: &Definitions,
    time: Timestamp,
) -> Result<(Option<Position>, bool), ReplayError> {
    let last = |entry: &Entry| -> Option<Timestamp> {
        let at = entry.committed_at.as_ref().filter(|_| entry.kind == EntryKind::Changes);
        at.and_then(|at| at.parse().ok())
    };
    let mut has_commits = entries.iter().filter_map(last).any(|at| at <= time);
    let later = entries.iter().find(|entry| last(entry).is_some_and(|at| at > time));
    let Some(entry) = later else { return Ok((None, has_commits)) };
    let tracks = tracks(entry, known)?;
    let mut merge = Merge::new(fetcher, tracks).await?;
    let mut reached = entry.from.position;
    while let Some(here) = merge.here() {
        let meta = here.rows.meta(here.row);
        if meta.committed_at > time {
            break;
        }
        (reached, has_commits) = (meta.position, true);
        merge.advance().await?;
    }
    Ok((Some(reached), has_commits))
}

/// Of the first rows of a file, so many are enough.
const FIRST_ROWS_BYTES: usize = 64 << 10;
