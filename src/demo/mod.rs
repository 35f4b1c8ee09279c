//! Demo: the whole road on this machine, from a database of its own to an S3 store of its own and back.
//!
//! [`run`] tells the story: fill a database, start the gateway, work, kill the gateway once, stop the
//! work, verify, restore, compare. What it starts ends with it. The tests' harness is made of the
//! same parts.
//!
//! **Invariant:** when [`run`] is over, or dropped, no process is left that it started.

use std::{io, path::PathBuf, sync::Arc};

use tokio::signal::unix::{SignalKind, signal};

pub use self::report::DemoReport;
use self::{cluster::ClusterError, progress::Screen, story::Story};
use crate::{clock::Clock, error::Exit, shutdown::Tasks};

pub mod bucket;
pub mod cluster;
pub mod compare;
pub mod gateway;
pub mod ground;
pub mod progress;
pub mod proxy;
pub mod report;
pub mod s3;
pub mod site;
pub mod store;
mod story;
pub mod workload;

/// What the demo was asked for.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// How long it takes, roughly, in minutes. At least half a minute of work is done.
    pub minutes: f64,
    /// Its folder; what an earlier demo left there is replaced.
    pub dir: PathBuf,
    /// No drawing on the terminal: the report will be JSON.
    pub json: bool,
}

/// Why the demo did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The folder holds what no demo made.
    #[error("{0} is not empty and was not made by a demo: give another folder with --dir")]
    Foreign(PathBuf),
    /// Another demo runs in the folder.
    #[error("another demo runs in {0}: wait for its end, or give another folder with --dir")]
    Busy(PathBuf),
    /// A file or process could not be had.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        why: io::Error,
    },
    /// The database, or the workload on it.
    #[error("PostgreSQL: {0}")]
    Cluster(#[from] ClusterError),
    /// The gateway ended by itself.
    #[error("the gateway ended with code {code}:\n{said}")]
    GatewayEnded {
        /// Its exit code; minus the signal if it was killed.
        code: i32,
        /// The end of its log.
        said: String,
    },
    /// What was committed did not arrive in the lake.
    #[error(
        "the gateway stands at {shipped}, not at {wanted}, and has not moved for {STALL_S} s:\n{said}"
    )]
    Stalled {
        /// How far the ledger reaches.
        shipped: String,
        /// How far it should.
        wanted: String,
        /// The end of its log.
        said: String,
    },
    /// A command failed that the demo cannot go on without.
    #[error("`lakehead {command}` ended with code {code}:\n{said}")]
    Command {
        /// Its words.
        command: String,
        /// Its exit code.
        code: i32,
        /// What it said.
        said: String,
    },
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted; nothing is left running")]
    Interrupted,
}

impl DemoError {
    /// How the process ends.
    pub fn exit(&self) -> Exit {
        Exit::CouldNotRun
    }
}

/// Runs the demo. Cancel-safe: what it started is ended when the future is dropped.
///
/// # Errors
///
/// See [`DemoError`]. A difference between source and lake is no error: see [`DemoReport::exit`].
pub async fn run(options: &DemoOptions, clock: Arc<dyn Clock>) -> Result<DemoReport, DemoError> {
    let tasks = Tasks::new();
    let outcome = tokio::select! {
        outcome = tell(options, clock, &tasks) => outcome,
        () = interrupted() => Err(DemoError::Interrupted),
    };
    tasks.stop().await;
    outcome
}

async fn tell(
    options: &DemoOptions,
    clock: Arc<dyn Clock>,
    tasks: &Tasks,
) -> Result<DemoReport, DemoError> {
    let screen = Screen::new(options.json);
    let mut story = Story::begin(options, clock, tasks, screen).await?;
    story.work(tasks).await?;
    story.drain(tasks).await?;
    story.judge(tasks).await
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> DemoError {
    move |why| DemoError::System { what, why }
}

/// Whether the comparison covers a table: all that the configuration's patterns match, but for the
/// table whose last row lies behind the position that the demo waits for.
fn copied(table: &str) -> bool {
    (table.starts_with("public.") || table.starts_with("Büro."))
        && !table.starts_with("public.scratch_")
        && table != "public.mark"
}

/// The patterns of [`copied`].
const TABLES: [&str; 3] = ["public.*", "Büro.*", "!public.scratch_*"];

/// The name of the one source, and of its database.
const SOURCE: &str = "shop";

/// Without any progress for so long, the demo gives up.
const STALL_S: f64 = 90.0;
