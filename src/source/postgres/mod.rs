//! PostgreSQL 12 to 18: logical replication by pgoutput, snapshots by binary COPY.
//!
//! | file | does |
//! |---|---|
//! | `url`, `tls`, `wire`, `message`, `login`, `connect` | a connection to the primary |
//! | `pattern`, `catalog`, `definition`, `relation` | what tables there are and what they look like |
//! | `name`, `publication`, `slot`, `waiting`, `origin`, `reach`, `session` | what we make on the server, and whether it continues what we hold |
//! | `stream`, `batch`, `vocabulary`, `labels`, `confirm`, `gauge` | the change stream |
//! | `in_progress`, `aside`, `stream/pending` | transactions that come before they are committed |
//! | `tables`, `gone`, `chunks`, `snapshot`, `exported`, `gulp` | the rows that were there before |
//! | `governor`, `pace`, `pulse` | how fast they are read, so that nobody feels it |
//! | `adopt` | the slot of a lost box, taken over |
//! | `reread`, `ranges` | rows to be read again |
//! | `statements`, `at_rest`, `stream/resting` | statements of DDL, where the database tells of them; definitions that changed without a word |
//! | `generators`, `large_objects`, `large_object_parts` | the sequences and large objects of the database, which no stream has |
//! | `bridge`, `repair` | how to go on behind a gap |
//! | `witness`, `digest` | what the database holds at one position, for the proof of the lake's content |
//! | `check` | all that can be looked at beforehand |
//! | `pgoutput`, `copy`, `fields` | records and rows, read again behind the journal |
//! | `types`, `builtin` and its forms | values |

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::sleep,
};

#[cfg(feature = "fuzz")]
pub mod fuzz;
mod adopt;
pub(crate) mod at_rest;
pub(crate) mod aside;
pub(crate) mod batch;
pub(crate) mod belief;
pub(crate) mod bridge;
mod builtin;
pub mod calendar;
pub(crate) mod catalog;
mod check;
pub(crate) mod chunks;
mod confirm;
pub(crate) mod connect;
pub mod copy;
mod definition;
mod digest;
pub mod error;
mod exported;
mod felt;
mod fields;
mod finger;
pub mod float;
mod gauge;
mod generators;
pub(crate) mod gone;
mod governor;
mod gulp;
mod hand;
mod in_progress;
mod labels;
mod large_object_parts;
mod large_objects;
mod line;
mod login;
mod lull;
mod message;
pub(crate) mod name;
mod nested;
mod network;
mod numeric;
pub(crate) mod origin;
pub(crate) mod pattern;
pub(crate) mod pace;
pub mod pgoutput;
mod publication;
mod pulse;
mod ranges;
pub(crate) mod reach;
mod relation;
mod render;
mod repair;
mod reread;
mod rewritten;
pub(crate) mod session;
mod size;
mod slot;
pub(crate) mod snapshot;
mod standby;
mod statements;
pub(crate) mod stream;
pub(crate) mod tables;
pub mod text;
mod texts;
pub(crate) mod tls;
pub mod types;
pub mod url;
mod vocabulary;
mod waiting;
pub(crate) mod wire;
mod witness;

pub use adopt::{Chain, Outlook, Said, Succession, put_said, succeed, unused};
pub use check::check;
pub use connect::client;
pub use digest::Measure;
pub use error::SourceError;
pub use statements::SCRIPT as STATEMENTS_SCRIPT;
pub use witness::{Calling, Unread, Witness};

use self::{
    aside::Aside,
    at_rest::AtRest,
    batch::Sizes,
    confirm::Confirm,
    connect::Backoff,
    name::Names,
    pace::Pacer,
    pattern::Patterns,
    session::{Fresh, Shared},
    stream::{End, Shown, Stream},
    tables::Tables,
    url::Url,
};
use super::{Keep, ORIGIN_FACT, Origin, SnapshotChunk, order};
use crate::{
    clock::Clock,
    config,
    disk::device::FileSystem,
    error::Classified,
    facts::{self, Facts},
    shutdown::Tasks,
    telemetry::board::{SourceBoard, SourceState},
    units::{Point, Position},
};

/// One PostgreSQL database, followed.
pub struct Postgres {
    shared: Arc<Shared>,
    shown: Shown,
}

impl Postgres {
    /// Reads the configuration, and which slot this box follows. Nothing is connected yet. Blocks shortly.
    ///
    /// # Errors
    ///
    /// The URL or a pattern cannot be used, or the fact does not read.
    pub fn new(
        config: &config::Source,
        (appliance, data_dir, in_progress_bytes_max): (&str, &Path, u64),
        facts: Arc<dyn Facts>,
        keep: Arc<dyn Keep>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SourceError> {
        let origin: Option<Origin> = facts::read(&*facts, ORIGIN_FACT)?;
        let folder = data_dir.join(IN_PROGRESS_FOLDER).join(&config.name);
        let aside = Aside::new(Arc::new(FileSystem), folder, in_progress_bytes_max);
        if let Err(error) = aside.clear() {
            tracing::warn!(%error, "transactions in progress of an earlier start are left on the disk");
        }
        // Entries can be written before the stream is there.
        let confirm = Confirm::new(config.release, config.release_wal_max, Position(0));
        board.write(|status| status.release = confirm.in_force().into());
        let shared = Shared {
            order_file: order::file(data_dir, &config.name),
            config: config.clone(),
            url: own_url(config)?,
            patterns: Patterns::new(&config.tables)?,
            names: Names::of(appliance, config, origin.as_ref()),
            facts,
            keep,
            board,
            aside,
            clock,
            log_end: AtomicU64::new(0),
            keeps_bytes_max: AtomicU64::new(u64::MAX),
            server_leaves: AtomicBool::new(false),
            gaps: AtomicU64::new(0),
            sizes: Sizes::default(),
            pacer: Pacer::default(),
            judging: Mutex::default(),
            at_rest: AtRest::default(),
        };
        Ok(Self { shared: Arc::new(shared), shown: Shown::default() })
    }

    /// Follows the database until `tasks` are told to stop: snapshot rows go to `chunks`, changes to
    /// the journal, and the server is confirmed what the journal and `shipped` allow.
    ///
    /// What time or a person can mend is an alarm on the board, and tried again.
    ///
    /// # Errors
    ///
    /// What the process must end for: the journal stopped, or the next room did.
    pub async fn run(
        mut self,
        chunks: mpsc::Sender<SnapshotChunk>,
        shipped: watch::Receiver<Point>,
        tasks: Tasks,
    ) -> Result<(), SourceError> {
        let token = tasks.token();
        let mut road = Road { group: tasks.child(), chunks, shipped, tables: None };
        let gauge = gauge::run(Arc::clone(&self.shared));
        let stopped = road.group.token();
        road.group.spawn(async move {
            stopped.run_until_cancelled(gauge).await;
        });
        let mut backoff = Backoff::default();
        let ended = loop {
            // Boxed: the future is large, and there is one.
            let turn = Box::pin(self.turn(&mut road, &mut backoff));
            let wait = match turn.await {
                Ok(None) => break Ok(()),
                Ok(Some(End::NeedsText)) => {
                    self.shown.text_only = true;
                    continue;
                }
                Ok(Some(End::AtCommit)) => {
                    self.shown.at_commit_since = Some(self.shared.clock.now());
                    continue;
                }
                Ok(Some(End::Again)) => {
                    self.shown.at_commit_since = None;
                    continue;
                }
                Err(error) if error.is_fatal() => break Err(error),
                Err(error) => self.alarm(&error, &mut backoff),
            };
            if token.run_until_cancelled(sleep(wait)).await.is_none() {
                break Ok(());
            }
        };
        road.group.stop().await;
        // A road that is being stopped ends its rooms in any order.
        let ended = match ended {
            Err(_) if token.is_cancelled() => Ok(()),
            ended => ended,
        };
        self.shared.board.write(|status| status.state = SourceState::Stopped);
        ended
    }

    /// One session. `None`: it was told to stop, and said good-bye.
    async fn turn(
        &self,
        road: &mut Road,
        backoff: &mut Backoff,
    ) -> Result<Option<End>, SourceError> {
        let shared = &self.shared;
        shared.board.write(|status| {
            if status.state != SourceState::Blocked {
                status.state = SourceState::Connecting;
            }
        });
        let stop = road.group.token();
        let mut opened = tokio::select! {
            () = stop.cancelled() => return Ok(None),
            fatal = told(&mut road.tables) => return Err(fatal),
            opened = session::open(shared) => opened?,
        };
        let fresh = opened.fresh.take();
        if road.tables.is_none() {
            // What an earlier start left to repair is said before anything streams.
            bridge::tell(shared, false, None).await?;
            road.tables = Some(self.spawn_tables(road, fresh));
        }
        let shipped = road.shipped.clone();
        let start = Stream::start(opened, Arc::clone(shared), shipped, self.shown);
        let Some(stream) = stop.run_until_cancelled(start).await else {
            return Ok(None);
        };
        let mut stream = stream?;
        shared.board.calm(ALARM);
        let state = tables::resting_state(shared);
        shared.board.write(|status| status.state = state);
        backoff.reset();
        let end = tokio::select! {
            () = stop.cancelled() => None,
            fatal = told(&mut road.tables) => return Err(fatal),
            end = stream.run() => Some(end?),
        };
        stream.leave().await;
        Ok(end)
    }

    /// Begins to look after the tables.
    fn spawn_tables(&self, road: &Road, fresh: Option<Fresh>) -> oneshot::Receiver<SourceError> {
        let (tell, told) = oneshot::channel();
        let group = road.group.clone();
        let token = group.token();
        let tables = Tables::new(Arc::clone(&self.shared), road.chunks.clone(), group, fresh);
        road.group.spawn(async move {
            if let Some(fatal) = token.run_until_cancelled(tables.run()).await {
                // Nobody listens any more if the source was stopped.
                drop(tell.send(fatal));
            }
        });
        told
    }

    /// Raises the alarm, and says how long to wait.
    fn alarm(&self, error: &SourceError, backoff: &mut Backoff) -> Duration {
        let (shared, heals) = (&self.shared, error.heals());
        shared.board.alarm(ALARM, error.cause(), error, shared.clock.wall());
        let state = if heals { SourceState::Connecting } else { SourceState::Blocked };
        shared.board.write(|status| status.state = state);
        if heals {
            tracing::warn!(%error, "the session with the database ended; trying again");
            return backoff.next();
        }
        tracing::error!(%error, remedy = error.cause().disposition().remedy(), "blocked");
        BLOCKED_WAIT.mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

/// What the sessions of one run share.
struct Road {
    /// Owns all tasks beside the stream.
    group: Tasks,
    chunks: mpsc::Sender<SnapshotChunk>,
    shipped: watch::Receiver<Point>,
    /// Tells when the tables' task failed for good; none before the first session.
    tables: Option<oneshot::Receiver<SourceError>>,
}

/// Waits for the tables' task to fail; for ever before it has begun.
async fn told(tables: &mut Option<oneshot::Receiver<SourceError>>) -> SourceError {
    match tables {
        Some(told) => told.await.unwrap_or(SourceError::Ended),
        None => std::future::pending().await,
    }
}

/// The URL of a source, which holds no password.
fn own_url(config: &config::Source) -> Result<Url, SourceError> {
    let url = Url::parse(&config.url)?;
    match url.password {
        None => Ok(url),
        Some(_) => Err(SourceError::Url("it holds a password: put it into `password_file`".into())),
    }
}

/// Transactions in progress are laid aside here, below `data_dir`.
const IN_PROGRESS_FOLDER: &str = "in-progress";
/// The alarm of the session.
const ALARM: &str = "source";
/// Between two looks at what a person must mend.
const BLOCKED_WAIT: Duration = Duration::from_secs(15);
