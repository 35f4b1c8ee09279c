//! The source room of one life: opens sessions with the model server, follows them, tries again.
//!
//! It mirrors `Postgres::run` and `session::open`, less the catalog and the snapshot: the slot is looked at,
//! judged by the real `judge`, made if it is new, and then the real `Stream` runs. A break that `judge`
//! finds is gone past by the real `bridge::go_past`, which is given the model's way to make a slot anew.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    appliance::{End, Site},
    fuse::Fuse,
    lock,
    tables::Handed,
};
use crate::{
    facts::{self, FactBatch, Facts},
    journal::{Durable, Keep, ORIGIN_FACT, Origin},
    source::postgres::{
        aside::Aside,
        at_rest::AtRest,
        belief, bridge,
        connect::Backoff,
        error::SourceError,
        name::Names,
        origin::{self, Break, Way},
        pace::Pacer,
        pattern::Patterns,
        session::{self, INTENT_FACT, Session, Shared, Standing},
        stream::{Shown, Stream},
        url::Url,
    },
    telemetry::board::SourceBoard,
    units::{Point, Position},
};

/// What a source room needs.
pub(crate) struct Follower<'a> {
    site: &'a Site,
    fuse: &'a Fuse,
    pub(crate) shared: Arc<Shared>,
    released: watch::Receiver<Point>,
    handed: Arc<Handed>,
    /// Whether it waits for the server's log to grow past what is held.
    waits: AtomicBool,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(
        site: &'a Site,
        fuse: &'a Fuse,
        keep: Arc<dyn Keep>,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        released: watch::Receiver<Point>,
        handed: Arc<Handed>,
    ) -> Result<Self, SourceError> {
        let config = site.setup.source.clone();
        let origin: Option<Origin> = facts::read(&*facts, ORIGIN_FACT)?;
        let shared = Shared {
            url: Url::parse(&config.url)?,
            patterns: Patterns::new(&config.tables)?,
            names: Names::of(site.name, &config, origin.as_ref()),
            config,
            facts,
            keep,
            board,
            aside: Aside::new(
                Arc::new(site.disk.clone()),
                PathBuf::from("/box/in-progress"),
                1 << 20,
            ),
            clock: site.clock.clone(),
            log_end: AtomicU64::new(0),
            keeps_bytes_max: AtomicU64::new(u64::MAX),
            server_leaves: AtomicBool::new(false),
            gaps: AtomicU64::new(0),
            order_file: PathBuf::new(),
            sizes: site.setup.sizes,
            pacer: Pacer::default(),
            judging: tokio::sync::Mutex::default(),
            at_rest: AtRest::default(),
        };
        let (shared, waits) = (Arc::new(shared), AtomicBool::new(false));
        Ok(Self { site, fuse, shared, released, handed, waits })
    }
}

/// Follows the source until the process must end for it.
pub(crate) async fn follow(follower: Follower<'_>, stop: CancellationToken) -> End {
    let site = follower.site;
    let mut backoff = Backoff::default();
    loop {
        let turn = async {
            let stream = Box::pin(stop.run_until_cancelled(follower.open())).await;
            let Some(stream) = stream.transpose()? else { return Ok(true) };
            backoff.reset();
            *lock(&site.gap) = None;
            follower.handed.opened.cancel();
            Box::pin(through(stream, &stop)).await
        };
        let error = match turn.await {
            Ok(false) => continue,
            Ok(true) => return End::Stopped,
            Err(error) => error,
        };
        site.oracle.note(format_args!("{}: session ended: {error}", site.name));
        if let SourceError::Gap(what) = &error {
            site.oracle.a_gap_is_real(site.gap_allowed.load(Ordering::Relaxed), what);
            let waits = follower.waits.load(Ordering::Relaxed);
            *lock(&site.gap) = (!waits).then(|| what.clone());
        }
        if error.is_fatal() {
            return End::Failed(error.to_string());
        }
        if matches!(error, SourceError::Unknown(_)) {
            site.oracle.i17_the_road_finds_order(&error.to_string());
        }
        let pause = sleep(if error.heals() { backoff.next() } else { BLOCKED_WAIT });
        if stop.run_until_cancelled(pause).await.is_none() {
            return End::Stopped;
        }
    }
}

/// A session to its end. Whether it was stopped; then it says good-bye.
async fn through(mut stream: Stream, stop: &CancellationToken) -> Result<bool, SourceError> {
    match stop.run_until_cancelled(stream.run()).await {
        Some(ended) => ended.map(|_| false),
        None => {
            stream.leave().await;
            Ok(true)
        }
    }
}

impl Follower<'_> {
    /// Opens a session.
    async fn open(&self) -> Result<Stream, SourceError> {
        let (server, shared) = (&self.site.server, &self.shared);
        let slot = &shared.names.slot;
        let sql = server.connect(None)?;
        let started = server.started();
        let mut wire = server.connect(Some(slot))?;
        wire.parameters.extend(sql.parameters.clone());
        let turn = shared.judging.lock().await;
        let identity = server.identify()?;
        let found = server.look(slot);
        let durable = shared.keep.session().await?;
        self.waits.store(false, Ordering::Relaxed);
        let confirmed = match session::judge(shared, &identity, found.as_ref(), durable).await? {
            Ok(Standing::Continues(confirmed)) => confirmed,
            Ok(Standing::New { leftover }) => self.make(&identity, leftover).await?,
            Err((origin, broken)) => {
                let seen = (&identity, found.as_ref());
                self.go_past(seen, (origin, durable), broken).await?
            }
        };
        drop(turn);
        server.seen();
        shared.log_end.store(server.with(|state| state.end().0), Ordering::Relaxed);
        let belief = belief::judge(&*shared.facts, durable, confirmed, started)?;
        let session = Session { wire, sql, durable, confirmed, binary: false, belief, fresh: None };
        let released = self.released.clone();
        let shown = Shown { text_only: true, ..Shown::default() };
        Stream::start(session, Arc::clone(shared), released, shown).await
    }

    async fn make(
        &self,
        identity: &origin::Server,
        leftover: bool,
    ) -> Result<Position, SourceError> {
        let (server, shared) = (&self.site.server, &self.shared);
        let slot = &shared.names.slot;
        if leftover {
            self.effect().await;
            server.drop_slot(slot);
        }
        let mut intent = FactBatch::default();
        intent.put(INTENT_FACT, slot);
        shared.facts.record(intent).await?;
        self.effect().await;
        identity.is_still(&server.identify()?)?;
        let fresh = server.make_slot(slot)?;
        let at = fresh.position;
        *lock(&self.handed.fresh) = Some(fresh);
        self.site.oracle.slot_made(self.site.who, at);
        session::record_made(shared, identity, at).await?;
        Ok(at)
    }

    /// As `session::open` goes past a break.
    async fn go_past(
        &self,
        (identity, found): (&origin::Server, Option<&origin::Slot>),
        stood: (Origin, Durable),
        broken: Break,
    ) -> Result<Position, SourceError> {
        let (site, shared) = (self.site, &self.shared);
        site.oracle.a_gap_is_real(site.gap_allowed.load(Ordering::Relaxed), &broken.what);
        self.waits.store(matches!(broken.way, Way::Later | Way::Back), Ordering::Relaxed);
        if let Way::At(position) = broken.way {
            site.oracle.goes_on(site.who, position);
        }
        let passed =
            bridge::go_past(shared, identity, stood, broken, Box::pin(self.anew(identity, found)));
        let passed = passed.await;
        if matches!(passed, Err(SourceError::Gap(_))) {
            // What it saw is recorded.
            site.server.seen();
        }
        passed
    }

    /// As `bridge::anew`, without publications.
    async fn anew(
        &self,
        identity: &origin::Server,
        found: Option<&origin::Slot>,
    ) -> Result<Position, SourceError> {
        let (site, slot) = (self.site, &self.shared.names.slot);
        if let Some(found) = found {
            if found.active {
                return Err(SourceError::InUse { slot: slot.clone() });
            }
            self.effect().await;
            site.server.drop_slot(slot);
        }
        self.effect().await;
        identity.is_still(&site.server.identify()?)?;
        let to = site.server.make_slot(slot)?.position;
        site.oracle.goes_on(site.who, to);
        Ok(to)
    }

    /// Something outside of the box is about to change.
    async fn effect(&self) {
        if !self.fuse.burn() {
            std::future::pending::<()>().await;
        }
    }
}

/// Between two looks at what a person must mend.
const BLOCKED_WAIT: Duration = Duration::from_secs(15);
