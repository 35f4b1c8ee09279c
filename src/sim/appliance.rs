//! A box: what of it outlives a crash, and one life of it, with all its rooms.
//!
//! The rooms are the real ones: the journal on the model disk, `Stream` with its batcher and its confirming
//! over a wire in memory, the sealer with lines for Parquet, the shipper, the ledger. Mirrored, since the
//! original is bound to threads or to a database's catalog: how `pipeline.rs` joins the rooms and keeps
//! house, and how `session.rs` opens a session (it asks the model instead of running SQL; what it makes of
//! the answers, `judge`, is the real one).

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant as StdInstant},
};

use futures_util::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    bucket::{LIMITS, Who},
    chain::{PREFIX, SOURCE},
    disk::ModelDisk,
    engine::{Engine, Kept, Recorded},
    follow::{Follower, follow},
    fuse::Fuse,
    halved,
    lake::{LakeClient, ModelLake},
    lock,
    oracle::Oracle,
    planted::Planted,
    server::ModelServer,
    spool::ModelSpool,
    tables::{Handed, Reader},
};
use crate::{
    clock::Clock,
    config::{self, Integers, Secret, Uuids},
    disk::device::Device,
    error::{Classified, Exit},
    facts::{self, Facts},
    journal::{self, Decode, Journal, Keep, ORIGIN_FACT, Origin, Table},
    ledger::{Head, IdentityKey, Ledger, LedgerError, LedgerOptions, Proven, SourceIdentity},
    pipeline,
    seal::{Group, SealEncryption, SealError, SealOptions, Sealer, key::Keys},
    ship::{Encryption, ObjectStore, Shipped, drive::Shipper, upload::done_fact},
    source::postgres::{batch::Sizes, pgoutput::PgDecoder},
    telemetry::board::SourceBoard,
    units::{Point, Timestamp},
};

/// How a box is configured.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) source: config::Source,
    pub(crate) sizes: Sizes,
    pub(crate) journal_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) object_bytes: u64,
    pub(crate) object_age: Duration,
    pub(crate) part_bytes: u64,
    pub(crate) requests: usize,
}

/// What outlives a crash.
pub(crate) struct Site {
    pub(crate) who: Who,
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    pub(crate) disk: ModelDisk,
    pub(crate) key: IdentityKey,
    pub(crate) server: ModelServer,
    pub(crate) lake: ModelLake,
    pub(crate) oracle: Oracle,
    pub(crate) planted: Option<Planted>,
    pub(crate) clock: Arc<SimClock>,
    /// The head that the box remembers.
    pub(crate) head: Arc<Mutex<Option<Head>>>,
    /// What it said of a gap.
    pub(crate) gap: Mutex<Option<String>>,
    /// Whether the world has made one.
    pub(crate) gap_allowed: AtomicBool,
}

/// How a life ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// By SIGKILL, or its power was cut.
    Killed,
    /// Another box owns the source.
    Fenced(String),
    /// It was asked to stop.
    Stopped,
    /// The process gave up, to be started again.
    Failed(String),
}

/// A clock that stands still but for the run's own time; its wall time can jump.
pub(crate) struct SimClock {
    began: Instant,
    jump_us: AtomicI64,
}

impl SimClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), jump_us: AtomicI64::new(0) })
    }

    pub(crate) fn jump(&self, by: i64) {
        self.jump_us.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> StdInstant {
        Instant::now().into_std()
    }

    fn wall(&self) -> Timestamp {
        let passed = i64::try_from(self.began.elapsed().as_micros()).unwrap_or(0);
        Timestamp(WALL_US + passed + self.jump_us.load(Ordering::Relaxed))
    }
}

impl Site {
    /// One life, until something ends it.
    /// Cancelling `stop` asks it to end, as SIGTERM does.
    pub(crate) async fn live(&self, fuse: Fuse, stop: CancellationToken, seed: u64) -> End {
        let ended = Box::pin(self.travel(&fuse, &stop, seed)).await;
        match ended {
            _ if fuse.is_dead() => End::Killed,
            Ok(end) => end,
            Err(error) => End::Failed(error),
        }
    }

    async fn travel(
        &self,
        fuse: &Fuse,
        stop: &CancellationToken,
        seed: u64,
    ) -> Result<End, String> {
        self.disk.lit(fuse.clone());
        let board = SourceBoard::default();
        let engine = self.open_journal(fuse, &board, seed)?;
        let facts: Arc<dyn Facts> = Arc::new(Recorded(Arc::clone(&engine)));
        let sealer = self.open_sealer(&facts, &board).map_err(said)?;
        self.mend(&*facts, &engine, &sealer)?;
        let recovered = sealer.recovered().map_err(said)?;
        let (groups, groups_in) = mpsc::channel(GROUPS + recovered.len());
        for group in &recovered {
            groups.try_send(group.clone()).map_err(said)?;
        }
        let (shipped, shipped_in) = mpsc::channel::<Shipped>(GROUPS);
        let (done, done_in) = mpsc::channel::<Group>(GROUPS);
        let lake: Arc<dyn ObjectStore> = Arc::new(LakeClient {
            lake: self.lake.clone(),
            who: self.who,
            fuse: fuse.clone(),
            oracle: self.oracle.clone(),
            planted: self.planted,
        });
        let ledger = self.open_ledger(&lake, &facts, &board, fuse).map_err(said)?;
        let (proven, proven_in) = watch::channel(ledger.proven());
        let (released, released_in) = watch::channel(ledger.proven().point);
        engine.trim(ledger.proven().batch);
        let spool = Arc::new(ModelSpool(sealer.spool()));
        let ship =
            config::Ship { part_bytes: self.setup.part_bytes, requests: self.setup.requests };
        let own = Keys::new(PREFIX).all(SOURCE);
        let (clock, shown) = (self.clock(), board.clone());
        let shipper =
            Shipper::new(lake, spool, Arc::clone(&facts), &ship, &own, shown, clock).within(LIMITS);
        let keep: Arc<dyn Keep> = Arc::new(Kept(Arc::clone(&engine)));
        let handed: Arc<Handed> = Arc::default();
        let follower =
            Follower::new(self, fuse, keep, facts, board, released_in, Arc::clone(&handed));
        let follower = follower.map_err(said)?;
        let reader = Reader {
            site: self,
            shared: Arc::clone(&follower.shared),
            handed,
            sealer: &sealer,
            groups: groups.clone(),
            random: Mutex::new(fastrand::Rng::with_seed(!seed)),
        };
        let mut rooms = Rooms::new();
        let token = stop.clone();
        rooms.ends(async { ended(ledger.run(shipped_in, proven, done, token).await) });
        let token = stop.clone();
        rooms.ends(async { ended(shipper.run(groups_in, shipped, token).await) });
        rooms.ends(follow(follower, stop.clone()));
        rooms.stays(async { ended(Err::<(), _>(engine.journal.failed().await)) });
        rooms.stays(async {
            engine.run().await;
            End::Failed("the journal stopped".into())
        });
        rooms.stays(reader.run());
        rooms.stays(self.keep_house(&engine, &sealer, done_in, proven_in, released));
        rooms.stays(self.seal(&engine, &sealer, groups));
        tokio::select! {
            biased;
            () = fuse.died() => Ok(End::Killed),
            end = rooms.end(stop) => Ok(end),
        }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn device(&self) -> Arc<dyn Device> {
        Arc::new(self.disk.clone())
    }

    fn open_journal(
        &self,
        fuse: &Fuse,
        board: &SourceBoard,
        seed: u64,
    ) -> Result<Arc<Engine>, String> {
        let options = journal::Options {
            dir: PathBuf::from(JOURNAL_DIR),
            key: Secret::new(vec![7; 32]),
            max_bytes: self.setup.journal_bytes,
            segment_bytes: self.setup.segment_bytes,
        };
        let open = || {
            let (device, options) = (self.device(), options.clone());
            Journal::open_by_hand(device, options, board.clone(), self.clock()).map_err(said)
        };
        let mut opened = open()?;
        if seed.is_multiple_of(4) {
            let found = |journal: &Journal| (*journal.durable().borrow(), journal.scan("").len());
            let once = found(&opened.0);
            drop(opened);
            opened = open()?;
            self.oracle.i9_recovery_is_idempotent(once, found(&opened.0));
        }
        let (journal, hand) = opened;
        if fuse.is_dead() {
            return Err("dead".into());
        }
        self.oracle.i10_no_damage_is_found(self.who, &board.read().journal_damage);
        self.oracle.recovered(self.who, journal.durable(), journal.scan(""));
        let (oracle, planted) = (self.oracle.clone(), self.planted);
        Ok(Engine::new(journal, hand, self.who, fuse.clone(), oracle, planted, seed))
    }

    fn open_sealer(
        &self,
        facts: &Arc<dyn Facts>,
        board: &SourceBoard,
    ) -> Result<Sealer, SealError> {
        let options = SealOptions {
            prefix: PREFIX.into(),
            source: SOURCE.into(),
            object_bytes: self.setup.object_bytes,
            object_age: self.setup.object_age,
            integers: Integers::Rising,
            uuids: Uuids::Uuid,
            encryption: SealEncryption::None,
            spool_dir: PathBuf::from(SPOOL_DIR),
            spool_key: Secret::new(vec![7; 32]),
            spool_bytes_max: 1 << 20,
        };
        Sealer::open_on(self.device(), options, Arc::clone(facts), board.clone(), self.clock())
    }

    /// Mends what rotted. What else is lost was named before it was durable.
    fn mend(&self, facts: &dyn Facts, engine: &Engine, sealer: &Sealer) -> Result<(), String> {
        let shipped = |key: &str| facts.get(&done_fact(key)).is_some();
        let missing = sealer.missing(true, shipped).map_err(said)?;
        let groups = sealer.recovered().map_err(said)?;
        for object in groups.iter().flat_map(|group| &group.objects) {
            let file = Path::new(SPOOL_DIR).join(&object.spool);
            if missing.contains(&object.key) && !self.disk.is_rotten(&file) {
                self.oracle.i7_what_a_fact_names_is_there(&object.spool);
            }
        }
        pipeline::mend(facts, &|behind| engine.journal.reader(behind), sealer).map_err(said)
    }

    fn open_ledger(
        &self,
        lake: &Arc<dyn ObjectStore>,
        facts: &Arc<dyn Facts>,
        board: &SourceBoard,
        fuse: &Fuse,
    ) -> Result<Ledger, LedgerError> {
        let known = Arc::clone(facts);
        let options = LedgerOptions {
            appliance: self.name.into(),
            source: SOURCE.into(),
            prefix: PREFIX.into(),
            data_dir: PathBuf::from("/box"),
            identity: Arc::new(move || {
                let origin: Origin = facts::read(known.as_ref(), ORIGIN_FACT).ok().flatten()?;
                Some(SourceIdentity {
                    name: SOURCE.into(),
                    system_identifier: origin.system_identifier,
                    timeline: origin.timeline,
                })
            }),
            encryption: Encryption::None,
        };
        let shown = board.clone();
        let release = Arc::new(move || shown.read().release);
        let (lake, facts, key) = (Arc::clone(lake), Arc::clone(facts), self.key.clone());
        let ledger = Ledger::open(options, key, lake, facts, board.clone(), self.clock(), release)?;
        let (fuse, remembered) = (fuse.clone(), Arc::clone(&self.head));
        Ok(ledger.remembering(Arc::new(move |head| {
            if fuse.burn() {
                *lock(&remembered) = Some(head);
            }
            Box::pin(async { Ok(()) })
        })))
    }

    /// As `pipeline.rs` seals: again after what stopped it, at a slow pace.
    async fn seal(&self, engine: &Engine, sealer: &Sealer, groups: mpsc::Sender<Group>) -> End {
        let decoder =
            &|tables: Vec<Arc<Table>>| -> Box<dyn Decode> { Box::new(PgDecoder::new(tables)) };
        loop {
            let error = match self.seal_on(engine, sealer, decoder, groups.clone()).await {
                Ok(()) => return End::Failed("sealing stopped".into()),
                Err(error) => error,
            };
            if engine.fuse.is_dead() {
                return End::Killed;
            }
            self.oracle.note(format_args!("{}: sealing stopped: {error}", self.name));
            if matches!(error, SealError::Order { .. } | SealError::Decode { .. }) {
                self.oracle.i17_the_road_finds_order(&error.to_string());
            }
            sleep(SEAL_AGAIN).await;
        }
    }

    async fn seal_on(
        &self,
        engine: &Engine,
        sealer: &Sealer,
        decoder: &dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
        groups: mpsc::Sender<Group>,
    ) -> Result<(), SealError> {
        let after = sealer.sealed()?.map_or(0, |end| end.batch);
        // Now one who is given the last batches as they came, now one who reads all from the log.
        let reader = match after.is_multiple_of(2) {
            true => engine.journal.follow(after),
            false => engine.journal.reader(after),
        };
        let reader = halved::seen(reader, self.planted);
        let mut turn = sealer.turns(reader, decoder, groups)?;
        let mut durable = engine.journal.durable();
        let mut seen = after;
        loop {
            let now = durable.borrow_and_update().batch;
            for _ in 0..=now.saturating_sub(seen) {
                if !turn()? || engine.fuse.is_dead() {
                    return Ok(());
                }
            }
            seen = now;
            sleep(SEAL_PAUSE).await;
            let _moved = timeout(SEAL_LOOK, durable.changed()).await;
        }
    }

    /// As `pipeline.rs` keeps house.
    async fn keep_house(
        &self,
        engine: &Engine,
        sealer: &Sealer,
        mut done: mpsc::Receiver<Group>,
        mut proven: watch::Receiver<Proven>,
        released: watch::Sender<Point>,
    ) -> End {
        let spool = sealer.spool();
        let mut durable = engine.journal.durable();
        let by_journal = self.planted == Some(Planted::ReleaseByJournal);
        loop {
            tokio::select! {
                biased;
                group = done.recv() => match group {
                    Some(group) => {
                        let mut objects = group.objects.iter();
                        drop(objects.try_for_each(|object| spool.remove(object)));
                    }
                    None => return End::Failed("the ledger stopped".into()),
                },
                changed = proven.changed() => {
                    if changed.is_err() {
                        return End::Failed("the ledger stopped".into());
                    }
                    let now = *proven.borrow_and_update();
                    released.send_replace(now.point);
                    engine.trim(match self.planted {
                        Some(Planted::TrimEarly) => durable.borrow().batch,
                        _ => now.batch,
                    });
                }
                _ = durable.changed(), if by_journal => {
                    let point = durable.borrow_and_update().point;
                    released.send_replace(point);
                }
            }
        }
    }
}

/// The rooms of one life. The first to end decides, as in `pipeline.rs`; the others are then asked to.
struct Rooms<'a> {
    running: FuturesUnordered<LocalBoxFuture<'a, (bool, End)>>,
    /// Of those that end when they are asked to.
    left: usize,
}

impl<'a> Rooms<'a> {
    fn new() -> Self {
        Self { running: FuturesUnordered::new(), left: 0 }
    }

    /// One that ends when it is asked to.
    fn ends(&mut self, room: impl Future<Output = End> + 'a) {
        self.left += 1;
        self.running.push(Box::pin(async { (true, room.await) }));
    }

    /// One without which the others could not end.
    fn stays(&mut self, room: impl Future<Output = End> + 'a) {
        self.running.push(Box::pin(async { (false, room.await) }));
    }

    async fn end(&mut self, stop: &CancellationToken) -> End {
        let limit = async {
            stop.cancelled().await;
            sleep(STOP_MAX).await;
        };
        let mut limit = pin!(limit);
        let mut first = None;
        while self.left > 0 {
            tokio::select! {
                biased;
                Some((ends, end)) = self.running.next() => {
                    self.left -= usize::from(ends);
                    let asked = stop.is_cancelled();
                    first.get_or_insert(if asked { End::Stopped } else { end });
                    stop.cancel();
                }
                () = &mut limit => break,
            }
        }
        first.unwrap_or(End::Stopped)
    }
}

/// What a room's end means for the process.
fn ended<E: Classified>(outcome: Result<(), E>) -> End {
    match outcome {
        Ok(()) => End::Failed("a room stopped".into()),
        Err(error) if Classified::cause(&error).disposition().exit() == Exit::Fenced => {
            End::Fenced(error.to_string())
        }
        Err(error) => End::Failed(error.to_string()),
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub(crate) const JOURNAL_DIR: &str = "/box/journal";
pub(crate) const SPOOL_DIR: &str = "/box/spool";
/// 2026-11-21T12:00:00Z
const WALL_US: i64 = 1_795_262_400_000_000;
const GROUPS: usize = 4096;
/// After that the process ends, whatever is under way.
const STOP_MAX: Duration = Duration::from_secs(5);
const SEAL_AGAIN: Duration = Duration::from_secs(2);
const SEAL_PAUSE: Duration = Duration::from_millis(7);
const SEAL_LOOK: Duration = Duration::from_millis(400);
