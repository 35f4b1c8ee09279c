//! Pipeline: joins the rooms into one road for each source. Who else may import them all stands above it: [`cli`](crate::cli), `sim`, `fuzz`.
//!
//! ```text
//! Postgres ──runs──▶ Journal ──batches──▶ seal thread ──┐
//!     └──chunks──────────────────────▶ seal threads ────┴─groups─▶ Shipper ─shipped─▶ Ledger
//!     ◀── shipped point ◀── housekeeping (trim, spool) ◀── proven, done ───────────────┘
//! ```
//!
//! **Invariant:** a room that fails fatally ends the process; one that a person must mend is tried
//! again at a slow pace with an alarm up, while the others go on; a fenced source stops alone.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{self, Config, Secret},
    disk,
    error::{Cause, Classified, Exit},
    facts::{self, Facts},
    journal::{self, Journal, Keep, ORIGIN_FACT, Origin},
    ledger::{IdentityKey, Ledger, LedgerOptions, Proven, SourceIdentity},
    seal::{Group, SealEncryption, SealOptions, Sealer, SpoolReader, key::Keys},
    ship::{self, Encryption, ObjectStore, ShipError, Shipped, drive::Shipper, s3::S3},
    shutdown::Tasks,
    source::{order, postgres::Postgres},
    telemetry::{
        board::{Board, SourceBoard, SourceState},
        heartbeat::{Beat, Heartbeat},
    },
    units::Point,
};

mod access;
mod adopt;
mod error;
mod estate;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod held;
mod mend;
mod sealing;
use access::{encryption, object_encryption};
pub use access::{held_journal_key, journal_key, lake, lake_key, openable};
pub use adopt::{Asked, Progress, Takeover, adopt};
pub use error::RunError;
use held::Held;
#[cfg(feature = "sim")]
pub(crate) use mend::mend;

/// What all roads share.
#[derive(Clone)]
struct Shared {
    config: Arc<Config>,
    s3: Arc<S3>,
    identity: IdentityKey,
    journal_key: Secret,
    encryption: SealEncryption,
    heartbeat: Heartbeat,
    clock: Arc<dyn Clock>,
}

/// Runs every source's road until `tasks` is told to stop, or all have ended. The caller holds `data_dir`.
///
/// `ready` is told when every journal is recovered and the road is open.
///
/// # Errors
///
/// What ended it; nothing acknowledged is lost.
pub async fn run(
    config: Config,
    board: Board,
    clock: Arc<dyn Clock>,
    heartbeat: Heartbeat,
    tasks: Tasks,
    ready: oneshot::Sender<()>,
) -> Result<(), RunError> {
    let link = access::link(&config, &board, &clock);
    if let Some(link) = link.clone() {
        let token = tasks.token();
        tasks.spawn(async move { link.watch(token).await });
    }
    let shared = Shared {
        s3: Arc::new(access::lake_over(link, &config, &clock)?),
        identity: IdentityKey::open(&config.appliance.data_dir)?,
        journal_key: journal_key(&config)?,
        encryption: encryption(&config)?,
        config: Arc::new(config),
        heartbeat,
        clock,
    };
    let (ended, mut ends) = mpsc::channel(shared.config.sources.len());
    for source in &shared.config.sources {
        let opening = Road::open_with_room(&shared, source, board.source(&source.name));
        let Some(road) = tasks.token().run_until_cancelled(opening).await else { return Ok(()) };
        let road = road?;
        let (ended, tasks) = (ended.clone(), tasks.child());
        // Its owner waits for it: the loop below.
        let own = tasks.child();
        tasks.spawn(async move {
            let outcome = Box::pin(road.travel(own)).await;
            ended.send(outcome).await.ok();
        });
    }
    drop(ended);
    ready.send(()).ok();
    let mut last = Ok(());
    while let Some(outcome) = ends.recv().await {
        match &outcome {
            Err(error) if error.cause().disposition().exit() != Exit::Fenced => return outcome,
            _ => last = outcome,
        }
    }
    last
}

/// One source's road, opened: everything durable is recovered, nothing runs yet.
struct Road {
    shared: Shared,
    source: Postgres,
    journal: Arc<Journal>,
    sealer: Sealer,
    recovered: Vec<Group>,
    board: SourceBoard,
    name: String,
}

impl Road {
    /// Opens it once there is room for the little that a start writes: whoever filled the disk may have
    /// taken the reserve, too. Cancel-safe.
    async fn open_with_room(
        shared: &Shared,
        source: &config::Source,
        board: SourceBoard,
    ) -> Result<Self, RunError> {
        loop {
            match Self::open(shared, source, board.clone()).await {
                Err(error) if error.cause() == Cause::DiskFull => {
                    board.alarm("disk", Cause::DiskFull, &error, shared.clock.wall());
                    tokio::time::sleep(ROOM_RETRY).await;
                }
                opened => {
                    board.calm("disk");
                    return opened;
                }
            }
        }
    }

    async fn open(
        shared: &Shared,
        source: &config::Source,
        board: SourceBoard,
    ) -> Result<Self, RunError> {
        let (shared, source) = (shared.clone(), source.clone());
        // Recovery reads disks: not on a worker of the runtime.
        let opened = tokio::task::spawn_blocking(move || Self::recover(shared, &source, board));
        opened.await.expect("recovery does not panic, and is not aborted")
    }

    fn recover(
        shared: Shared,
        source: &config::Source,
        board: SourceBoard,
    ) -> Result<Self, RunError> {
        let config = &shared.config;
        let data_dir = &config.appliance.data_dir;
        // The box's own: what is laid into it by others has to be its owner's.
        let path = data_dir.join(order::FOLDER);
        disk::create_dir(&path).map_err(|why| RunError::Folder { path, why })?;
        let options = journal_options(config, &source.name, &shared.journal_key);
        // Its own owner: it is stopped after the rooms that record facts.
        let journal =
            Journal::open(options, board.clone(), Arc::clone(&shared.clock), &Tasks::new())?;
        let facts: Arc<dyn Facts> = Arc::clone(&journal) as Arc<dyn Facts>;
        adopt::whole(&*facts, &source.name)?;
        let options = SealOptions {
            prefix: config.lake.prefix.clone(),
            source: source.name.clone(),
            object_bytes: config.seal.object_bytes,
            object_age: config.seal.object_age,
            integers: config.seal.integers,
            uuids: config.seal.uuids,
            encryption: shared.encryption.clone(),
            spool_dir: data_dir.join("spool").join(&source.name),
            spool_key: shared.journal_key.clone(),
            spool_bytes_max: config.journal.max_bytes / SPOOL_SHARE,
        };
        let sealer =
            Sealer::open(options, Arc::clone(&facts), board.clone(), Arc::clone(&shared.clock))?;
        let keep: Arc<dyn Keep> = Arc::new(Held::new(Arc::clone(&journal), sealer.clone())?);
        mend::mend_with_room(&journal, &sealer)?;
        let recovered = sealer.recovered()?;
        let place = (
            config.appliance.name.as_str(),
            data_dir.as_path(),
            config.journal.max_bytes / IN_PROGRESS_SHARE,
        );
        let clock = Arc::clone(&shared.clock);
        let source_room = Postgres::new(source, place, facts, keep, board.clone(), clock)?;
        Ok(Self {
            source: source_room,
            journal,
            sealer,
            recovered,
            board,
            name: source.name.clone(),
            shared,
        })
    }

    /// Runs the rooms until one ends for good, or `tasks` is stopped.
    async fn travel(self, tasks: Tasks) -> Result<(), RunError> {
        let (ended, mut ends) = mpsc::channel::<Result<(), RunError>>(ROOMS);
        let (board, journal, name) =
            (self.board.clone(), Arc::clone(&self.journal), self.name.clone());
        let started = self.start(&tasks, &ended);
        drop(ended);
        let outcome = match started {
            Ok(()) => ends.recv().await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        };
        let mut state = SourceState::Stopped;
        if let Err(error) = &outcome {
            let disposition = error.cause().disposition();
            tracing::error!(source = name, %error, remedy = error.remedy(), "the road ended");
            if disposition.exit() == Exit::Fenced {
                state = SourceState::Fenced;
            }
        }
        tasks.stop().await;
        board.write(|status| status.state = state);
        journal.stop().await;
        outcome
    }

    fn start(
        self,
        tasks: &Tasks,
        ended: &mpsc::Sender<Result<(), RunError>>,
    ) -> Result<(), RunError> {
        let (shared, lake) = (&self.shared, &self.shared.config.lake);
        let facts: Arc<dyn Facts> = Arc::clone(&self.journal) as Arc<dyn Facts>;
        let store: Arc<dyn ObjectStore> = Arc::clone(&shared.s3) as Arc<dyn ObjectStore>;
        let (chunks, chunks_in) = mpsc::channel(self.snapshot_threads());
        let (groups, groups_in) = mpsc::channel(GROUPS + self.recovered.len());
        let (shipped, shipped_in) = mpsc::channel::<Shipped>(GROUPS);
        let (done, done_in) = mpsc::channel::<Group>(GROUPS);
        for group in &self.recovered {
            groups
                .try_send(group.clone())
                .expect("the channel was made to hold the recovered groups");
        }
        let ledger = self.ledger(Arc::clone(&store), Arc::clone(&facts))?;
        // What was in the ledger before the restart is released again at once.
        let (proven, proven_in) = watch::channel(ledger.proven());
        let (released, released_in) = watch::channel(ledger.proven().point);
        self.journal.trim(ledger.proven().batch);
        let shipper = Shipper::new(
            store,
            Arc::new(Spool(self.sealer.spool())),
            facts,
            &shared.config.ship,
            &Keys::new(&lake.prefix).all(&self.name),
            self.board.clone(),
            Arc::clone(&shared.clock),
        );
        let (end, token) = (ended.clone(), tasks.token());
        tasks.spawn(async move {
            finish(&end, ledger.run(shipped_in, proven, done, token).await).await;
        });
        let (end, token) = (ended.clone(), tasks.token());
        tasks
            .spawn(async move { finish(&end, shipper.run(groups_in, shipped, token).await).await });
        let (end, token, journal) = (ended.clone(), tasks.token(), Arc::clone(&self.journal));
        tasks.spawn(async move {
            if let Some(error) = token.run_until_cancelled(journal.failed()).await {
                finish(&end, Err::<(), _>(error)).await;
            }
        });
        let clock = Arc::clone(&shared.clock);
        let beat =
            shared.heartbeat.register(format!("road {}", self.name), BEAT_LIMIT, clock.now());
        let (journal, spool) = (Arc::clone(&self.journal), self.sealer.spool());
        let keeper = Housekeeping { journal, spool, beat, clock };
        tasks.spawn(keeper.run(done_in, proven_in, released, tasks.token()));
        self.seal_threads(groups, chunks_in, tasks)?;
        let (end, source, own) = (ended.clone(), self.source, tasks.child());
        tasks.spawn(async move {
            finish(&end, Box::pin(source.run(chunks, released_in, own)).await).await;
        });
        Ok(())
    }

    fn ledger(
        &self,
        store: Arc<dyn ObjectStore>,
        facts: Arc<dyn Facts>,
    ) -> Result<Ledger, RunError> {
        let (shared, board) = (&self.shared, self.board.clone());
        let identity = identity_reader(self.name.clone(), Arc::clone(&facts));
        let options = ledger_options(&shared.config, &self.name, identity);
        let release = Arc::new(move || board.look(|status| status.release.clone()));
        let identity = shared.identity.clone();
        let clock = Arc::clone(&shared.clock);
        let own = self.board.clone();
        Ok(Ledger::open(options, identity, store, facts, own, clock, release)?)
    }
}

/// Tells the road that a room ended. The first to end decides.
async fn finish<E: Into<RunError>>(
    end: &mpsc::Sender<Result<(), RunError>>,
    outcome: Result<(), E>,
) {
    // The road may have ended already.
    drop(end.send(outcome.map_err(Into::into)).await);
}

/// What follows a ledger entry: the journal is trimmed, the spool files go, the source may be released.
struct Housekeeping {
    journal: Arc<Journal>,
    spool: SpoolReader,
    beat: Beat,
    clock: Arc<dyn Clock>,
}

impl Housekeeping {
    async fn run(
        self,
        mut done: mpsc::Receiver<Group>,
        mut proven: watch::Receiver<Proven>,
        released: watch::Sender<Point>,
        token: CancellationToken,
    ) {
        let mut pulse = tokio::time::interval(BEAT_PACE);
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _ = pulse.tick() => self.beat.tick(self.clock.now()),
                group = done.recv() => match group {
                    Some(group) => self.forget(group).await,
                    None => return,
                },
                changed = proven.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = *proven.borrow_and_update();
                    released.send_replace(now.point);
                    self.journal.trim(now.batch);
                }
            }
        }
    }

    async fn forget(&self, group: Group) {
        let spool = self.spool.clone();
        let removed = tokio::task::spawn_blocking(move || {
            group.objects.iter().try_for_each(|object| spool.remove(object))
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, "a spool file was not removed; the next start removes it");
        }
    }
}

/// The spool, as ship reads it.
struct Spool(SpoolReader);

impl ship::ReadSpool for Spool {
    fn read(
        &self,
        object: &ship::Object,
        range: std::ops::Range<u64>,
        each: &mut dyn FnMut(bytes::Bytes) -> bool,
    ) -> Result<(), ShipError> {
        self.0.pieces(object, range, each).map_err(|error| ShipError::spool(object, &error))
    }
}

fn journal_options(config: &Config, source: &str, key: &Secret) -> journal::Options {
    journal::Options {
        dir: config.appliance.data_dir.join("journal").join(source),
        key: key.clone(),
        max_bytes: config.journal.max_bytes,
        segment_bytes: config.journal.segment_bytes,
    }
}

fn ledger_options(config: &Config, source: &str, identity: Identity) -> LedgerOptions {
    LedgerOptions {
        appliance: config.appliance.name.clone(),
        source: source.into(),
        prefix: config.lake.prefix.clone(),
        data_dir: config.appliance.data_dir.clone(),
        identity,
        encryption: match object_encryption(config) {
            Encryption::Client => Encryption::None,
            other => other,
        },
    }
}

/// Says which database the ledger speaks of.
type Identity = Arc<dyn Fn() -> Option<SourceIdentity> + Send + Sync>;

/// What the source recorded when it made the slot.
fn identity_reader(name: String, facts: Arc<dyn Facts>) -> Identity {
    Arc::new(move || {
        let origin: Origin = facts::read(facts.as_ref(), ORIGIN_FACT).ok().flatten()?;
        Some(SourceIdentity {
            name: name.clone(),
            system_identifier: origin.system_identifier,
            timeline: origin.timeline,
        })
    })
}

/// Rooms of one road that can end.
const ROOMS: usize = 4;
/// Groups waiting between two rooms: names of spool files, below 1 MiB in all.
const GROUPS: usize = 64;
/// Between two looks for room to start.
const ROOM_RETRY: Duration = Duration::from_secs(2);
/// The part of the journal's budget that sealed objects may take beside it.
const SPOOL_SHARE: u64 = 4;
/// The part of the journal's budget that transactions in progress may take beside it.
const IN_PROGRESS_SHARE: u64 = 4;
/// The watchdog learns within this time that the road no longer moves.
const BEAT_LIMIT: Duration = Duration::from_secs(20);
const BEAT_PACE: Duration = Duration::from_secs(2);
