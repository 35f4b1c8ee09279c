//! Drives groups of objects to S3 and hands them on in the order in which they came.
//!
//! **Invariant:** a group is handed on only when each of its objects is acknowledged and that is durable
//! (`ship/done/<key>`): a restart asks S3 for none of them again.
//!
//! One task awaits everything: objects of up to [`GROUPS_MAX`] groups, their parts, the sweep. What blocks
//! (reading the spool) goes to threads for blocking work. How one object goes is in `object.rs`.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Group, ObjectStore, ReadSpool, Request, ShipError, Shipped,
    gate::Gate,
    plan::Limits,
    retry::{Backoff, Decision, PAUSE_MAX, PAUSE_MIN, Pace, decide},
    sweep::{self, Swept},
    upload::{Begun, UPLOAD_FACTS, done_fact, upload_fact},
};
use crate::{
    clock::Clock,
    config,
    error::{Classified, Disposition},
    facts::{self, FactBatch, Facts},
    telemetry::board::SourceBoard,
};

/// Sends one source's groups.
pub struct Shipper {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) spool: Arc<dyn ReadSpool>,
    pub(super) facts: Arc<dyn Facts>,
    pub(super) board: SourceBoard,
    clock: Arc<dyn Clock>,
    gate: Gate,
    pub(super) part_bytes: u64,
    pub(super) requests: usize,
    pub(super) limits: Limits,
    own: Vec<String>,
    pauses: (Duration, Duration),
    pub(super) active: Mutex<BTreeSet<String>>,
    troubled: Mutex<BTreeSet<u64>>,
    asked: AtomicU64,
}

/// What came of a request, all its tries together.
#[derive(Debug)]
pub(super) enum Said<T> {
    /// It succeeded.
    Answer(T),
    /// The key exists.
    Exists,
    /// The upload cannot be finished.
    Restart,
}

/// A group on its way.
struct Waiting {
    number: u64,
    group: Group,
    /// Objects not yet acknowledged.
    left: usize,
}

/// Marks a request as in trouble for as long as it is; the alarm is down when none is.
struct Trouble<'a> {
    shipper: &'a Shipper,
    id: Option<u64>,
}

type Going<'a> = FuturesUnordered<BoxFuture<'a, (u64, Result<(), ShipError>)>>;

impl Shipper {
    /// `own`: where this source's keys begin, those of its rows and those of its schemas; only there it
    /// sweeps.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        spool: Arc<dyn ReadSpool>,
        facts: Arc<dyn Facts>,
        config: &config::Ship,
        own: &[String],
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            store,
            spool,
            facts,
            board,
            clock,
            gate: Gate::new(config.requests),
            part_bytes: config.part_bytes,
            requests: config.requests.max(1),
            limits: Limits::S3,
            own: own.to_vec(),
            pauses: (PAUSE_MIN, PAUSE_MAX),
            active: Mutex::default(),
            troubled: Mutex::default(),
            asked: AtomicU64::new(0),
        }
    }

    /// Sends what comes from `groups` until they end and all are handed on, or until `token` is
    /// cancelled: then requests under way get [`GRACE`] to end. Dropping the future loses no more
    /// than those: the facts say where to go on.
    ///
    /// # Errors
    ///
    /// Only what this process cannot heal: the spool or the facts are lost. All else is retried,
    /// with an alarm.
    pub async fn run(
        self,
        mut groups: mpsc::Receiver<Group>,
        shipped: mpsc::Sender<Shipped>,
        token: CancellationToken,
    ) -> Result<(), ShipError> {
        let mut line: VecDeque<Waiting> = VecDeque::new();
        let mut going = Going::new();
        let mut sweeping: BoxFuture<'_, Result<(), ShipError>> = Box::pin(self.sweep_daily(&token));
        let (mut ended, mut came) = (false, 0);
        loop {
            if ended && line.is_empty() {
                return Ok(());
            }
            let ready = line.front().is_some_and(|first| first.left == 0);
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                slot = shipped.reserve(), if ready => match (slot, line.pop_front()) {
                    (Ok(slot), Some(first)) => slot.send(Shipped { group: first.group }),
                    // The ledger has ended, and says itself why.
                    _ => return Ok(()),
                },
                Some((number, end)) = going.next(), if !going.is_empty() => match end {
                    Ok(()) => arrived(&mut line, number),
                    // Both see the token at once; which is looked at first is chance.
                    Err(ShipError::Stopped) => break,
                    Err(error) => return Err(error),
                },
                group = groups.recv(), if !ended && line.len() < GROUPS_MAX => match group {
                    None => ended = true,
                    Some(group) => {
                        came += 1;
                        self.send_off(&group, came, &token, &going);
                        line.push_back(Waiting { number: came, left: group.objects.len(), group });
                    }
                },
                end = &mut sweeping => return end,
            }
        }
        let rest = async {
            while let Some((_, end)) = going.next().await {
                match end {
                    Ok(()) | Err(ShipError::Stopped) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        // What is not done in time is done after the next start.
        tokio::time::timeout(GRACE, rest).await.unwrap_or(Ok(()))
    }

    /// For a store that takes smaller parts than S3.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn within(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// With pauses of a few milliseconds.
    #[cfg(test)]
    pub(crate) fn impatient(mut self) -> Self {
        self.pauses = (Duration::from_millis(1), Duration::from_millis(5));
        self
    }

    fn send_off<'a>(
        &'a self,
        group: &Group,
        number: u64,
        token: &'a CancellationToken,
        going: &Going<'a>,
    ) {
        for object in &group.objects {
            let object = Arc::new(object.clone());
            going.push(Box::pin(async move { (number, self.object(object, token).await) }));
        }
    }

    /// Sends one request until S3 has answered it for good. `call` makes it, anew at each try; `bytes`
    /// is the length of its body.
    pub(super) async fn ask<'a, T>(
        &'a self,
        request: Request,
        bytes: u64,
        token: &'a CancellationToken,
        call: impl Fn() -> BoxFuture<'a, Result<T, ShipError>> + Send,
    ) -> Result<Said<T>, ShipError> {
        let mut backoff = self.backoff();
        let mut trouble = Trouble { shipper: self, id: None };
        loop {
            let pass = tokio::select! {
                biased;
                () = token.cancelled() => return Err(ShipError::Stopped),
                pass = self.gate.pass(bytes) => pass,
            };
            self.board.write(|status| status.requests += 1);
            let error = match call().await {
                Ok(answer) => {
                    pass.good();
                    return Ok(Said::Answer(answer));
                }
                Err(error) => error,
            };
            let pace = match decide(request, &error) {
                Decision::Exists => {
                    pass.good();
                    return Ok(Said::Exists);
                }
                Decision::Fail => return Err(error),
                Decision::Restart => {
                    self.count(&error);
                    info!(%error, "upload starts again");
                    return Ok(Said::Restart);
                }
                Decision::Retry(pace) => pace,
            };
            if pace == Pace::Slow {
                pass.slow_down();
            }
            drop(pass);
            self.count(&error);
            trouble.raise(&error, backoff.tries());
            self.pause(&mut backoff, pace, token).await?;
        }
    }

    /// Waits before the next try.
    pub(super) async fn pause(
        &self,
        backoff: &mut Backoff,
        pace: Pace,
        token: &CancellationToken,
    ) -> Result<(), ShipError> {
        let pause = backoff.pause(pace, fastrand::f64());
        let waited = token.run_until_cancelled(tokio::time::sleep(pause)).await;
        waited.ok_or(ShipError::Stopped)
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::between(self.pauses.0, self.pauses.1)
    }

    fn count(&self, error: &ShipError) {
        let cause = error.cause().name();
        self.board.write(|status| *status.retries.entry(cause.into()).or_default() += 1);
    }

    /// Aborts orphaned uploads now, when what an earlier process had sent has come at last, and daily.
    async fn sweep_daily(&self, token: &CancellationToken) -> Result<(), ShipError> {
        let mut after_start = SWEEPS_AFTER_START.into_iter();
        let mut spared = SWEEP_SPARED;
        loop {
            let swept = match self.sweep_own(token).await {
                Ok(swept) => swept,
                // `run` sees the token itself; what is left is swept at the next start.
                Err(ShipError::Stopped) => std::future::pending().await,
                Err(error) => return Err(error),
            };
            if swept.aborted > 0 {
                info!(aborted = swept.aborted, "aborted orphaned uploads");
            }
            let pause = if swept.spared == 0 {
                spared = SWEEP_SPARED;
                after_start.next().unwrap_or(SWEEP_EVERY)
            } else {
                let pause = spared;
                spared = SWEEPS_AFTER_START[1].min(2 * pause);
                pause
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn sweep_own(&self, token: &CancellationToken) -> Result<Swept, ShipError> {
        let mut all = Swept::default();
        for own in &self.own {
            let swept = self.sweep(own, token).await?;
            all.aborted += swept.aborted;
            all.spared += swept.spared;
        }
        Ok(all)
    }

    /// Aborts the orphaned uploads under `prefix`.
    pub(super) async fn sweep(
        &self,
        prefix: &str,
        token: &CancellationToken,
    ) -> Result<Swept, ShipError> {
        let asked = self.ask(Request::Uploads, 0, token, || self.store.uploads(prefix));
        let Said::Answer(open) = Box::pin(asked).await? else { return Ok(Swept::default()) };
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begun = facts::read_all::<Begun>(self.facts.as_ref(), UPLOAD_FACTS)
            .map_err(super::object::damaged)?;
        let key = |fact: String| fact[UPLOAD_FACTS.len()..].to_owned();
        let known = begun.into_iter().map(|(fact, begun)| (key(fact), begun.upload)).collect();
        let (orphans, spared) = sweep::orphans(open, prefix, &known, &active);
        for orphan in &orphans {
            let (key, upload) = (orphan.key.as_str(), orphan.upload.as_str());
            let abort = self.ask(Request::Abort, 0, token, || self.store.abort(key, upload));
            Box::pin(abort).await?;
        }
        Ok(Swept { aborted: orphans.len(), spared })
    }
}

/// Deletes the group's fact and all that ship holds of its objects: for the batch in which the ledger
/// records that the group is proven.
pub fn forget(group: &Group, batch: &mut FactBatch) {
    batch.delete(group.fact());
    for object in &group.objects {
        batch.delete(done_fact(&object.key)).delete(upload_fact(&object.key));
    }
}

fn arrived(line: &mut VecDeque<Waiting>, number: u64) {
    if let Some(group) = line.iter_mut().find(|waiting| waiting.number == number) {
        group.left -= 1;
    }
}

impl Trouble<'_> {
    /// A single failure that time heals is no news; the second in a row is.
    fn raise(&mut self, error: &ShipError, tries: u32) {
        let heals = matches!(error.cause().disposition(), Disposition::Retry(_));
        if heals && tries == 0 {
            return;
        }
        let shipper = self.shipper;
        let id = *self.id.get_or_insert_with(|| shipper.asked.fetch_add(1, Ordering::Relaxed));
        let mut troubled = shipper.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        troubled.insert(id);
        shipper.board.alarm(ROOM, error.cause(), error, shipper.clock.wall());
        if tries == 0 || tries.is_power_of_two() {
            let remedy = error.cause().disposition().remedy();
            if heals {
                warn!(%error, tries, "still trying: {remedy}");
            } else {
                error!(%error, tries, "still trying: {remedy}");
            }
        }
    }
}

impl Drop for Trouble<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut troubled = self.shipper.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        troubled.remove(&id);
        if troubled.is_empty() {
            self.shipper.board.calm(ROOM);
        }
    }
}

/// Groups under way at once: their names and states only, some KiB each.
pub const GROUPS_MAX: usize = 32;
/// What requests under way get when the process stops.
pub const GRACE: Duration = Duration::from_secs(2);
const SWEEP_EVERY: Duration = Duration::from_secs(86_400);
/// A request of a process that was killed can still be on its way: in a proxy, or for a quarter of an hour
/// in the kernel (`tcp_retries2`).
const SWEEPS_AFTER_START: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(900)];
/// While uploads are open of which only the object that is under way can tell whether they are needed; twice
/// as long each time.
const SWEEP_SPARED: Duration = Duration::from_secs(60);
const ROOM: &str = "ship";

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap, future::poll_fn, ops::Range, pin::pin, task::Poll, time::Instant,
    };

    use bytes::Bytes;
    use tokio::{task::yield_now, time::timeout};

    use super::*;
    use crate::{
        clock::SystemClock,
        facts::MemoryFacts,
        seal::key::Keys,
        ship::{
            Encryption, Fates, GroupKind, Head, Object, checksum,
            memory::{Fault, Memory, Rule},
        },
        units::Timestamp,
    };

    /// Objects by the name of their spool file.
    #[derive(Default)]
    struct Spool(Mutex<BTreeMap<String, Bytes>>);

    impl ReadSpool for Spool {
        fn read(
            &self,
            object: &Object,
            range: Range<u64>,
            each: &mut dyn FnMut(Bytes) -> bool,
        ) -> Result<(), ShipError> {
            let place = |at: u64| usize::try_from(at).unwrap();
            let whole = self.0.lock().unwrap()[&object.spool].clone();
            each(whole.slice(place(range.start)..place(range.end)));
            Ok(())
        }
    }

    struct House {
        memory: Arc<Memory>,
        spool: Arc<Spool>,
        facts: Arc<MemoryFacts>,
        board: SourceBoard,
    }

    impl House {
        fn new(seed: u64) -> Self {
            let (spool, facts) = (Arc::default(), Arc::default());
            Self {
                memory: Arc::new(Memory::new(seed).within(LIMITS)),
                spool,
                facts,
                board: SourceBoard::default(),
            }
        }

        fn group(&self, id: u64, sizes: &[usize]) -> Group {
            let object = |(bytes, n): (&usize, u64)| {
                let seed = u8::try_from(id * 16 + n).unwrap();
                let body: Bytes = (0..=250u8).cycle().skip(seed.into()).take(*bytes).collect();
                let name = format!("{id}-{n}");
                self.spool.0.lock().unwrap().insert(name.clone(), body.clone());
                Object {
                    key: format!("raw/erp/public.t/dt=2026-11-21/changes-{name}.parquet"),
                    bytes: body.len() as u64,
                    sha256: String::new(),
                    crc64nvme: checksum::of(&body),
                    rows: BTreeMap::new(),
                    table: "public.t".into(),
                    version: 1,
                    encryption: Encryption::None,
                    metadata: [("n".into(), n.to_string())].into(),
                    spool: name,
                    sums: vec![],
                }
            };
            let objects = sizes.iter().zip(0..).map(object).collect();
            let fates = Fates::default();
            Group { id, kind: GroupKind::Schema, objects, fates, at: Timestamp(0) }
        }

        fn shipper(&self, requests: usize) -> Shipper {
            let config = config::Ship { part_bytes: LIMITS.part_bytes_min, requests };
            let (spool, facts) = (self.spool.clone(), self.facts.clone());
            let (board, clock) = (self.board.clone(), Arc::new(SystemClock));
            Shipper::new(
                self.memory.clone(),
                spool,
                facts,
                &config,
                &Keys::new("raw").all("erp"),
                board,
                clock,
            )
            .within(LIMITS)
            .impatient()
        }

        /// Ships these groups to the end.
        async fn ship(&self, groups: &[Group]) -> Vec<u64> {
            let (send, receive) = mpsc::channel(groups.len().max(1));
            for group in groups {
                send.send(group.clone()).await.unwrap();
            }
            drop(send);
            let (shipped, mut handed) = mpsc::channel(groups.len().max(1));
            let run = self.shipper(4).run(receive, shipped, CancellationToken::new());
            timeout(Duration::from_secs(20), run).await.unwrap().unwrap();
            let mut ids = vec![];
            while let Some(done) = handed.recv().await {
                ids.push(done.group.id);
            }
            ids
        }

        fn assert_in_the_lake(&self, groups: &[Group]) {
            let objects = self.memory.objects();
            for object in groups.iter().flat_map(|group| &group.objects) {
                let sent = self.spool.0.lock().unwrap()[&object.spool].clone();
                assert!(objects[&object.key] == sent, "{} differs", object.key);
            }
        }

        /// Forgets the groups, and finds that no fact of ours is left.
        fn assert_forgotten(&self, groups: &[Group]) {
            let mut batch = FactBatch::default();
            groups.iter().for_each(|group| forget(group, &mut batch));
            self.facts.record_blocking(batch).unwrap();
            assert_eq!(self.facts.scan("ship/"), []);
        }

        fn requests(&self, of: Request) -> usize {
            self.memory.log().iter().filter(|(request, _)| *request == of).count()
        }
    }

    /// Of an object that goes in three parts.
    const PARTS: usize = 12 << 10;
    /// A thousandth of S3's: what is sent is summed often.
    const LIMITS: Limits = Limits { part_bytes_min: 5 << 10, ..Limits::S3 };

    #[tokio::test]
    async fn groups_are_handed_on_in_order_and_leave_no_fact() {
        let house = House::new(1);
        let groups = [house.group(1, &[10, PARTS]), house.group(2, &[]), house.group(3, &[20, 0])];
        let slow = Rule::once(Request::Put, Fault::Delay(Duration::from_millis(100)));
        house.memory.fault(Rule { key: "changes-1".into(), ..slow });
        assert_eq!(house.ship(&groups).await, [1, 2, 3]);
        house.assert_in_the_lake(&groups);
        assert_eq!(house.memory.open_uploads(), []);
        let status = house.board.read();
        assert_eq!((status.shipped_objects, status.sent_bytes), (4, 30 + PARTS as u64));
        assert!(status.retries.is_empty() && status.alarms.is_empty());
        house.assert_forgotten(&groups);
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_not_asked_for_again_after_a_restart() {
        let house = House::new(1);
        let groups = [house.group(1, &[10, PARTS])];
        assert_eq!(house.ship(&groups).await, [1]);
        let before = house.memory.log().len();
        assert_eq!(house.ship(&groups).await, [1]);
        let again = house.memory.log().split_off(before);
        assert!(again.iter().all(|(request, _)| *request == Request::Uploads), "{again:?}");
    }

    /// Which of the ways to see the token comes first is chance: so it is tried often.
    #[tokio::test]
    async fn a_stop_while_s3_is_away_is_no_error() {
        for seed in 0..40 {
            let house = House::new(seed);
            let away = Fault::Refuse(503, "ServiceUnavailable");
            house.memory.fault(Rule { times: u32::MAX, ..Rule::once(Request::Put, away) });
            let (send, receive) = mpsc::channel(1);
            send.send(house.group(1, &[10, 20, 30])).await.unwrap();
            let (shipped, _handed) = mpsc::channel(1);
            let (token, board) = (CancellationToken::new(), house.board.clone());
            let stop = async {
                while board.read().retries.is_empty() {
                    yield_now().await;
                }
                token.cancel();
            };
            let run = house.shipper(4).run(receive, shipped, token.clone());
            let (end, ()) = tokio::join!(run, stop);
            assert!(end.is_ok(), "{end:?}");
        }
    }

    #[tokio::test]
    async fn a_lost_answer_is_an_ordinary_case() {
        for (request, size) in [
            (Request::Put, 10),
            (Request::Create, PARTS),
            (Request::Part, PARTS),
            (Request::Complete, PARTS),
        ] {
            for fault in [Fault::LostAfter, Fault::LostBefore, Fault::Refuse(200, "InternalError")]
            {
                let house = House::new(1);
                let groups = [house.group(1, &[size])];
                house.memory.fault(Rule::once(request, fault));
                assert_eq!(house.ship(&groups).await, [1]);
                house.assert_in_the_lake(&groups);
                assert_eq!(house.memory.open_uploads(), [], "{request:?} {fault:?}");
                assert_eq!(house.board.read().shipped_objects, 1);
                house.assert_forgotten(&groups);
            }
        }
    }

    #[tokio::test]
    async fn an_upload_that_cannot_be_finished_starts_again_with_all_its_parts() {
        for (request, fault) in [
            (Request::Complete, Fault::Refuse(409, "ConditionalRequestConflict")),
            (Request::Complete, Fault::Refuse(400, "InvalidPart")),
            (Request::Complete, Fault::Refuse(400, "BadDigest")),
            (Request::Part, Fault::Refuse(404, "NoSuchUpload")),
        ] {
            let house = House::new(1);
            let groups = [house.group(1, &[PARTS])];
            house.memory.fault(Rule::once(request, fault));
            assert_eq!(house.ship(&groups).await, [1]);
            house.assert_in_the_lake(&groups);
            assert_eq!(house.requests(Request::Create), 2);
            assert_eq!(house.memory.open_uploads(), []);
            house.assert_forgotten(&groups);
        }
    }

    #[tokio::test]
    async fn a_restart_sends_only_the_parts_that_were_in_flight() {
        let house = House::new(1);
        let groups = [house.group(1, &[32 << 10])];
        let stuck = Rule::once(Request::Part, Fault::Delay(Duration::from_secs(60)));
        house.memory.fault(Rule { skip: 4, ..stuck });
        let (send, receive) = mpsc::channel(1);
        send.send(groups[0].clone()).await.unwrap();
        let (shipped, _handed) = mpsc::channel(1);
        let run = house.shipper(2).run(receive, shipped, CancellationToken::new());
        let six = async {
            while house.facts.scan("ship/part/").len() < 6 {
                yield_now().await;
            }
        };
        tokio::select! {
            end = run => panic!("was to be stuck: {end:?}"),
            () = six => {}
        }
        assert_eq!((house.requests(Request::Part), house.memory.open_uploads().len()), (7, 1));
        house.memory.heal();
        assert_eq!(house.ship(&groups).await, [1]);
        house.assert_in_the_lake(&groups);
        // Seven parts in all; the one stuck is sent again.
        assert_eq!((house.requests(Request::Part), house.requests(Request::Create)), (8, 1));
        house.assert_forgotten(&groups);
    }

    #[tokio::test]
    async fn what_a_person_must_mend_is_said_and_tried_until_it_is() {
        let house = House::new(1);
        let groups = [house.group(1, &[10]), house.group(2, &[PARTS])];
        house.memory.fault(Rule::often(1.0, Fault::Refuse(403, "InvalidAccessKeyId")));
        let ship = house.ship(&groups);
        let mend = async {
            while house.board.read().alarms.is_empty() {
                yield_now().await;
            }
            let alarm = house.board.read().alarms["ship"].clone();
            assert_eq!((alarm.cause.as_str(), alarm.heals), ("LakeCredentials", false));
            house.memory.heal();
        };
        assert_eq!(tokio::join!(ship, mend).0, [1, 2]);
        assert!(house.board.read().alarms.is_empty());
        assert!(house.board.read().retries["LakeCredentials"] > 1);
    }

    #[tokio::test]
    async fn orphans_of_ours_are_aborted_at_the_start_and_no_others() {
        let house = House::new(1);
        let (metadata, encryption) = (BTreeMap::new(), Encryption::None);
        let ours = ["raw/erp/public.t/x", "raw/_schema/erp/public.t/1.json"];
        let theirs = ["raw/_schema/crm/public.t/1.json", "raw/crm/public.t/x"];
        for key in [ours, theirs].as_flattened() {
            let head = Head { key, metadata: &metadata, encryption: &encryption, content_type: "" };
            house.memory.create(head).await.unwrap();
        }
        let (_send, receive) = mpsc::channel(1);
        let (shipped, _handed) = mpsc::channel(1);
        let token = CancellationToken::new();
        let run = house.shipper(4).run(receive, shipped, token.clone());
        let look = async {
            while house.memory.open_uploads().len() > theirs.len() {
                yield_now().await;
            }
            token.cancel();
        };
        timeout(Duration::from_secs(5), async { tokio::join!(run, look) })
            .await
            .unwrap()
            .0
            .unwrap();
        let left: BTreeSet<_> =
            house.memory.open_uploads().into_iter().map(|left| left.0).collect();
        assert_eq!(left, theirs.map(String::from).into());
    }

    #[tokio::test(start_paused = true)]
    async fn an_orphan_of_an_object_under_way_and_one_that_comes_late_are_aborted_soon() {
        let house = House::new(1);
        let group = house.group(1, &[PARTS]);
        let (metadata, encryption) = (BTreeMap::new(), Encryption::None);
        let begin = |key| {
            let head = Head { key, metadata: &metadata, encryption: &encryption, content_type: "" };
            house.memory.create(head)
        };
        begin(&group.objects[0].key).await.unwrap();
        house.memory.fault(Rule::once(Request::Part, Fault::Delay(Duration::from_secs(30))));
        let (send, receive) = mpsc::channel(1);
        send.send(group.clone()).await.unwrap();
        let (shipped, mut handed) = mpsc::channel(1);
        let run = house.shipper(4).run(receive, shipped, CancellationToken::new());
        let aborted = async || {
            while !house.memory.open_uploads().is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let look = async {
            handed.recv().await.unwrap();
            assert_eq!(house.memory.open_uploads().len(), 1, "it was spared");
            timeout(2 * SWEEP_SPARED, aborted()).await.unwrap();
            begin("raw/erp/public.t/late").await.unwrap();
            timeout(2 * SWEEPS_AFTER_START[1], aborted()).await.unwrap();
        };
        tokio::select! {
            end = run => panic!("{end:?}"),
            () = look => {}
        }
    }

    #[tokio::test]
    async fn bytes_that_are_not_what_was_sealed_are_never_sent() {
        for size in [10, PARTS] {
            let house = House::new(1);
            let group = house.group(1, &[size]);
            house.spool.0.lock().unwrap().insert("1-0".into(), vec![9; size].into());
            let (send, receive) = mpsc::channel(1);
            send.send(group).await.unwrap();
            let (shipped, mut handed) = mpsc::channel(1);
            let end = house.shipper(4).run(receive, shipped, CancellationToken::new()).await;
            assert!(matches!(end, Err(ShipError::Lost { .. })), "{end:?}");
            assert!(house.memory.objects().is_empty() && handed.recv().await.is_none());
            assert_eq!(
                crate::ship::upload::lost(&*house.facts).len(),
                1,
                "the next start makes it anew"
            );
        }
    }

    #[tokio::test]
    async fn requests_under_way_may_end_when_the_process_stops_but_not_for_long() {
        for (late, acknowledged) in [(200, true), (60_000, false)] {
            let house = House::new(1);
            let wait = Duration::from_millis(late);
            house.memory.fault(Rule::once(Request::Put, Fault::Delay(wait)));
            let (send, receive) = mpsc::channel(1);
            send.send(house.group(1, &[10])).await.unwrap();
            let (shipped, _handed) = mpsc::channel(1);
            let token = CancellationToken::new();
            let run = house.shipper(4).run(receive, shipped, token.clone());
            let stop = async {
                while house.requests(Request::Put) == 0 {
                    yield_now().await;
                }
                token.cancel();
            };
            let before = SystemClock.now();
            let (end, ()) = tokio::join!(run, stop);
            end.unwrap();
            assert!(Instant::duration_since(&SystemClock.now(), before) < Duration::from_secs(5));
            assert_eq!(!house.facts.scan("ship/done/").is_empty(), acknowledged);
        }
    }

    /// Every fault at random, the process killed at random moments: in the end each object is there
    /// once, whole, and nothing is left over.
    #[tokio::test]
    async fn simulation_of_faults_and_kills() {
        let mut lives = 0;
        for seed in 0..SEEDS {
            let mut dice = fastrand::Rng::with_seed(seed);
            let house = House::new(seed);
            for (chance, fault) in [
                (0.08, Fault::LostBefore),
                (0.08, Fault::LostAfter),
                (0.04, Fault::Refuse(503, "SlowDown")),
                (0.04, Fault::Refuse(500, "InternalError")),
                (0.02, Fault::Refuse(409, "ConditionalRequestConflict")),
                (0.02, Fault::Refuse(404, "NoSuchUpload")),
                (0.05, Fault::Delay(Duration::from_millis(2))),
            ] {
                house.memory.fault(Rule::often(chance, fault));
            }
            let sizes = [&[10, PARTS][..], &[PARTS], &[], &[6 << 10, 5, 5 << 10]];
            let groups: Vec<_> = sizes.iter().zip(1..).map(|(s, id)| house.group(id, s)).collect();
            let mut next = 0;
            while next < groups.len() {
                let (send, receive) = mpsc::channel(8);
                for group in &groups[next..] {
                    send.send(group.clone()).await.unwrap();
                }
                let (shipped, mut handed) = mpsc::channel(8);
                let run = house.shipper(3).run(receive, shipped, CancellationToken::new());
                let end = timeout(IDLE, short(run, dice.usize(1..LIFE_POLLS))).await;
                assert!(matches!(end, Err(_) | Ok(None)), "seed {seed}: {end:?}");
                lives += 1;
                while let Ok(done) = handed.try_recv() {
                    assert_eq!(done.group.id, groups[next].id, "seed {seed}: out of order");
                    next += 1;
                }
            }
            house.memory.heal();
            house.assert_in_the_lake(&groups);
            assert_eq!(house.memory.objects().len(), 6, "seed {seed}");
            house.assert_forgotten(&groups);
            let (_send, receive) = mpsc::channel(1);
            let (shipped, _handed) = mpsc::channel(1);
            let run = house.shipper(3).run(receive, shipped, CancellationToken::new());
            let swept = async {
                while !house.memory.open_uploads().is_empty() {
                    yield_now().await;
                }
            };
            tokio::select! {
                end = run => panic!("seed {seed}: {end:?}"),
                swept = timeout(Duration::from_secs(20), swept) => swept.unwrap(),
            }
        }
        assert!(lives > 4 * SEEDS, "{lives} lives only");
    }

    /// What comes of a future that is dropped after so many polls.
    async fn short<T>(run: impl Future<Output = T>, mut polls: usize) -> Option<T> {
        let mut run = pin!(run);
        poll_fn(|context| {
            polls -= 1;
            match run.as_mut().poll(context) {
                Poll::Ready(end) => Poll::Ready(Some(end)),
                Poll::Pending if polls == 0 => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    const SEEDS: u64 = 100;
    const LIFE_POLLS: usize = 16;
    /// Of one that lives longer than it has work.
    const IDLE: Duration = Duration::from_millis(100);
}
