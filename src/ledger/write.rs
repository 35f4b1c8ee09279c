//! The ledger's hand: takes shipped groups in order, writes entries, lets go of what they prove.
//!
//! For every entry, in this order: its bytes are made once; `settle` brings them into S3, keeping them in
//! `ledger/pending` before they are sent, and tells a lost answer from a foreign owner; one batch of
//! facts moves the head and forgets the groups; only then [`Proven`] grows and the groups are given to those
//! who remove their files. After a crash the pending entry is settled first, with the same bytes.
//!
//! **Invariant (I2, I8):** `Proven` never passes what stands in S3 and in the facts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Encryption, EntryKind, Group, Head, IdentityKey, LedgerError, Proven, Shipped, SourceIdentity,
    chain::{ChainHead, Shared, Stamp},
    entry, on_thread,
    settle::{Pauses, Settle},
    store::{Pending, Stage, Store},
    sweep,
};
use crate::{
    clock::Clock, disk, facts::Facts, ship::ObjectStore, telemetry::board::SourceBoard,
    units::Timestamp,
};

/// Whose ledger, and where.
#[derive(Clone)]
pub struct LedgerOptions {
    /// The appliance's name.
    pub appliance: String,
    /// The source's name.
    pub source: String,
    /// The lake's prefix; may be empty.
    pub prefix: String,
    /// Where `head-<source>.json` is kept.
    pub data_dir: PathBuf,
    /// Which database the source is; asked for with every entry.
    pub identity: Arc<dyn Fn() -> Option<SourceIdentity> + Send + Sync>,
    /// `SseKms` is asked of S3 for entries too; else they are sent plain: they hold no rows.
    pub encryption: Encryption,
}

/// Writes one source's chain.
pub struct Ledger {
    options: LedgerOptions,
    key: IdentityKey,
    lake: Arc<dyn ObjectStore>,
    store: Store,
    board: SourceBoard,
    clock: Arc<dyn Clock>,
    release: Arc<dyn Fn() -> String + Send + Sync>,
    head: ChainHead,
    pauses: Pauses,
    /// When it was looked for uploads that are not needed.
    swept_at: Option<Instant>,
    /// When groups were last gathered that may share an entry.
    gathered_at: Option<Instant>,
    remember: Remember,
}

/// Keeps the head where [`Head::kept`] finds it: a file in `data_dir`.
pub(crate) type Remember =
    Arc<dyn Fn(Head) -> BoxFuture<'static, Result<(), LedgerError>> + Send + Sync>;

/// The ends that the pipeline holds the other sides of.
struct Outlets<'a> {
    proven: &'a watch::Sender<Proven>,
    done: &'a mpsc::Sender<Group>,
    token: &'a CancellationToken,
}

impl Ledger {
    /// Reads where the chain stands.
    ///
    /// # Errors
    ///
    /// [`LedgerError::KeyChanged`] if another key signed its head; a fact that cannot be read.
    pub fn open(
        options: LedgerOptions,
        key: IdentityKey,
        lake: Arc<dyn ObjectStore>,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
        release: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> Result<Self, LedgerError> {
        let store = Store(facts);
        let found = key.public().to_string();
        let head = store.head()?.unwrap_or_else(|| ChainHead::start(found.clone()));
        if head.signed_by != found {
            return Err(LedgerError::KeyChanged { signed: head.signed_by, found });
        }
        let pauses = Pauses::default();
        let (swept_at, gathered_at) = (None, None);
        let path = head_file(&options);
        let remember: Remember =
            Arc::new(move |head| Box::pin(write_head(path.clone(), head)) as BoxFuture<'_, _>);
        let mut ledger = Self {
            options,
            key,
            lake,
            store,
            board,
            clock,
            release,
            head,
            pauses,
            swept_at,
            gathered_at,
            remember,
        };
        ledger.show(None);
        Ok(ledger)
    }

    /// With another place for the head than a file.
    #[cfg(feature = "sim")]
    pub(crate) fn remembering(self, remember: Remember) -> Self {
        Self { remember, ..self }
    }

    /// How far the chain reaches, as far as is known to be in S3.
    pub fn proven(&self) -> Proven {
        self.head.proven()
    }

    /// Writes entries until `token` is cancelled or `shipped` is closed. Groups that the ledger covers
    /// already, sent again after a crash, go to `done` at once. A group may be given to `done` twice.
    ///
    /// # Errors
    ///
    /// Another appliance owns the chain, the groups are not in order, or the disk failed.
    pub async fn run(
        mut self,
        mut shipped: mpsc::Receiver<Shipped>,
        proven: watch::Sender<Proven>,
        done: mpsc::Sender<Group>,
        token: CancellationToken,
    ) -> Result<(), LedgerError> {
        let out = Outlets { proven: &proven, done: &done, token: &token };
        match self.write(&mut shipped, &out).await {
            Err(LedgerError::Stopped) => Ok(()),
            end => end,
        }
    }

    async fn write(
        &mut self,
        shipped: &mut mpsc::Receiver<Shipped>,
        out: &Outlets<'_>,
    ) -> Result<(), LedgerError> {
        self.publish(out, None).await?;
        let pending = self.store.pending()?;
        self.sweep(pending.as_ref(), out.token).await?;
        if let Some(pending) = pending {
            let groups = self.store.groups(&pending)?;
            self.prove(pending, groups, out).await?;
        }
        let mut held = None;
        while let Some(groups) = self.collect(shipped, &mut held, out).await? {
            let pending = self.build(&groups)?;
            self.prove(pending, groups, out).await?;
            self.sweep(None, out.token).await?;
        }
        Ok(())
    }

    /// The groups of the next entry; `None` when there will be no more.
    async fn collect(
        &mut self,
        shipped: &mut mpsc::Receiver<Shipped>,
        held: &mut Option<Group>,
        out: &Outlets<'_>,
    ) -> Result<Option<Vec<Group>>, LedgerError> {
        let first = loop {
            let next = match held.take() {
                Some(group) => group,
                None => tokio::select! {
                    biased;
                    () = out.token.cancelled() => return Err(LedgerError::Stopped),
                    next = shipped.recv() => match next {
                        Some(next) => next.group,
                        None => return Ok(None),
                    },
                },
            };
            if next.id > self.head.group {
                break next;
            }
            out.give(next).await?;
        };
        let mut shared = Shared::new(first);
        if shared.is_open() {
            *held = self.gather(shipped, &mut shared, out.token).await?;
        }
        Ok(Some(shared.into_groups()))
    }

    /// Takes what may share the entry: what is there, and what comes until [`GATHER_EVERY`] has passed since the last time.
    /// Gives the first group that may not.
    async fn gather(
        &mut self,
        shipped: &mut mpsc::Receiver<Shipped>,
        shared: &mut Shared,
        token: &CancellationToken,
    ) -> Result<Option<Group>, LedgerError> {
        let since = self.gathered_at.map(|at| self.clock.now().saturating_duration_since(at));
        let wait = since.map_or(Duration::ZERO, |since| GATHER_EVERY.saturating_sub(since));
        let mut end = std::pin::pin!(tokio::time::sleep(wait));
        let other = loop {
            let next = tokio::select! {
                biased;
                () = token.cancelled() => return Err(LedgerError::Stopped),
                next = shipped.recv() => next,
                () = &mut end => None,
            };
            let Some(next) = next else { break None };
            if let Err(other) = shared.add(next.group) {
                break Some(*other);
            }
        };
        self.gathered_at = Some(self.clock.now());
        Ok(other)
    }

    fn build(&self, groups: &[Group]) -> Result<Pending, LedgerError> {
        let stamp = Stamp {
            source: (self.options.identity)().ok_or(LedgerError::Unidentified)?,
            release: (self.release)(),
            appliance: self.options.appliance.clone(),
            at: self.clock.wall().rfc3339(),
        };
        let (entry, next) = self.head.next(groups, stamp)?;
        let facts = groups.iter().map(Group::fact).collect();
        Ok(pending(&entry, next, &self.key, &self.options, facts))
    }

    /// Settles, commits, and tells everyone.
    async fn prove(
        &mut self,
        mut pending: Pending,
        groups: Vec<Group>,
        out: &Outlets<'_>,
    ) -> Result<(), LedgerError> {
        let settle = Settle {
            lake: &*self.lake,
            store: &self.store,
            encryption: &self.options.encryption,
            board: &self.board,
            clock: &*self.clock,
            pauses: self.pauses,
            token: out.token,
        };
        settle.settle(&mut pending).await?;
        self.store.commit(&pending, &groups).await?;
        self.head = pending.next;
        debug!(entry = self.head.entry, groups = groups.len(), "entry written");
        let committed_at = pending.committed_at.and_then(|text| text.parse().ok());
        self.publish(out, committed_at).await?;
        for group in groups {
            out.give(group).await?;
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        out: &Outlets<'_>,
        committed_at: Option<Timestamp>,
    ) -> Result<(), LedgerError> {
        out.proven.send_replace(self.head.proven());
        self.show(committed_at);
        if self.head.entry == 0 {
            return Ok(());
        }
        (self.remember)(Head { entry: self.head.entry, hash: self.head.hash.clone() }).await
    }

    fn show(&mut self, committed_at: Option<Timestamp>) {
        let head = &mut self.head;
        self.board.write(|status| {
            status.entry = head.entry;
            status.shipped = head.reached.unwrap_or_default();
            status.shipped_at = committed_at.or(status.shipped_at);
            if status.shipped == status.durable {
                // What an older firmware left to be sealed it had not counted in the journal.
                head.transactions = status.transactions_durable;
            }
            status.transactions_shipped = head.transactions;
        });
    }

    /// Gives uploads back that are not needed, if [`SWEEP_EVERY`] has passed since.
    async fn sweep(
        &mut self,
        pending: Option<&Pending>,
        token: &CancellationToken,
    ) -> Result<(), LedgerError> {
        let now = self.clock.now();
        if self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < SWEEP_EVERY) {
            return Ok(());
        }
        self.swept_at = Some(now);
        let LedgerOptions { prefix, source, .. } = &self.options;
        let sweep = sweep::sweep(&*self.lake, &self.store, prefix, source, pending);
        let swept = tokio::select! {
            biased;
            () = token.cancelled() => return Err(LedgerError::Stopped),
            swept = sweep => swept,
        };
        match swept {
            Err(LedgerError::Ship(error)) => {
                warn!(%error, "uploads of the ledger that are not needed stay for another hour");
                Ok(())
            }
            swept => swept.map(drop),
        }
    }
}

impl Outlets<'_> {
    async fn give(&self, group: Group) -> Result<(), LedgerError> {
        tokio::select! {
            biased;
            () = self.token.cancelled() => Err(LedgerError::Stopped),
            sent = self.done.send(group) => sent.map_err(|_| LedgerError::Stopped),
        }
    }
}

/// How often an entry of rows of snapshots, of definitions, or of rows read again is written while more of them come: of many
/// small tables each would have one of its own, with three requests, a signature, and facts to be fsynced. The
/// first does not wait, nor does an epoch behind them.
const GATHER_EVERY: Duration = Duration::from_millis(250);
/// How often uploads that are not needed are looked for, after an entry.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// More than a head and its folder's entry.
const SPARE_BYTES: u64 = 16 << 10;

/// An entry ready to be settled.
pub(super) fn pending(
    entry: &super::Entry,
    next: ChainHead,
    key: &IdentityKey,
    options: &LedgerOptions,
    groups: Vec<String>,
) -> Pending {
    let signed = entry::sign(entry, key);
    debug_assert!(entry.kind != EntryKind::Changes || next.reached == Some(entry.to));
    Pending {
        next: ChainHead { hash: signed.hash, ..next },
        key: entry::key(&options.prefix, &options.source, entry.entry),
        object: signed.object,
        groups,
        committed_at: entry.committed_at.clone(),
        stage: Stage::Built,
        sent: vec![],
    }
}

/// Writes what `verify` on this box measures the chain by.
pub(super) async fn keep_head(
    options: &LedgerOptions,
    head: &ChainHead,
) -> Result<(), LedgerError> {
    let head = Head { entry: head.entry, hash: head.hash.clone() };
    write_head(head_file(options), head).await
}

async fn write_head(path: PathBuf, head: Head) -> Result<(), LedgerError> {
    let shown = path.display().to_string();
    let bytes = serde_json::to_vec(&head).expect("a head is plain data");
    let wrote = on_thread("head", move || keep(&path, &bytes)).await;
    wrote.map_err(|why| LedgerError::Disk { path: shown, why })
}

/// Writes the head, on a full disk into the room of a spare file: only then is what was proven removed, and
/// makes room.
fn keep(path: &Path, head: &[u8]) -> io::Result<()> {
    let spare = path.with_extension("spare");
    match disk::write_durably(path, head) {
        Err(why) if why.kind() == io::ErrorKind::StorageFull => {
            disk::remove(&spare)?;
            disk::write_durably(path, head)?;
        }
        wrote => wrote?,
    }
    if !spare.exists() {
        // Without it the next one finds out.
        let _best_effort = disk::create(&spare).and_then(|file| disk::reserve(&file, SPARE_BYTES));
    }
    Ok(())
}

/// Name of the file in which this box remembers the head of a source's chain, as JSON of [`Head`].
pub fn head_file_name(source: &str) -> String {
    format!("head-{source}.json")
}

/// The head that this box remembers of a source's chain. Blocks.
pub fn known_head(data_dir: &Path, source: &str) -> Option<Head> {
    let bytes = fs::read(data_dir.join(head_file_name(source))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn head_file(options: &LedgerOptions) -> PathBuf {
    options.data_dir.join(head_file_name(&options.source))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Mutex,
            atomic::{AtomicU32, Ordering},
        },
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{
        clock::SystemClock,
        error::Classified,
        facts::{FactBatch, MemoryFacts},
        ledger::{
            EntryKind, GroupKind, testing,
            testing::{Bucket, CrashFacts, Fate, Lake, changes, fates, groups, point},
            verify::Verifier,
        },
    };

    /// A box, its lake, and what survives a crash of it.
    struct World {
        lake: Arc<Lake>,
        memory: Arc<MemoryFacts>,
        dir: tempfile::TempDir,
        board: SourceBoard,
        key: IdentityKey,
        clock: Arc<dyn Clock>,
    }

    /// The runtime's clock, which a busy machine does not drive.
    struct Runtime;

    impl Clock for Runtime {
        fn now(&self) -> Instant {
            tokio::time::Instant::now().into_std()
        }

        fn wall(&self) -> Timestamp {
            SystemClock.wall()
        }
    }

    /// A clock on which an hour passes each time it is looked at.
    #[derive(Default)]
    struct Hours(AtomicU32);

    impl Clock for Hours {
        fn now(&self) -> Instant {
            let hours = self.0.fetch_add(1, Ordering::Relaxed);
            SystemClock.now() + Duration::from_secs(3600) * hours
        }

        fn wall(&self) -> Timestamp {
            SystemClock.wall()
        }
    }

    #[derive(Debug)]
    enum End {
        Finished { proven: Proven, done: Vec<u64> },
        Crashed,
        Failed(LedgerError),
    }

    impl World {
        fn new(bucket: Bucket, groups: &[Group]) -> Self {
            let memory = Arc::new(MemoryFacts::default());
            let mut batch = FactBatch::default();
            for group in groups {
                batch.put(group.fact(), group);
            }
            memory.record_blocking(batch).unwrap();
            Self {
                lake: Lake::new(bucket),
                memory,
                dir: testing::scratch(),
                board: SourceBoard::default(),
                key: IdentityKey::from_seed(&[1; 32]),
                clock: Arc::new(SystemClock),
            }
        }

        fn open(&self) -> Result<Ledger, LedgerError> {
            let options = LedgerOptions {
                appliance: "plant7-a".into(),
                source: "erp".into(),
                prefix: "raw".into(),
                data_dir: self.dir.path().into(),
                identity: Arc::new(|| Some(testing::identity())),
                encryption: Encryption::None,
            };
            let facts = CrashFacts { memory: self.memory.clone(), lake: self.lake.clone() };
            let mut ledger = Ledger::open(
                options,
                self.key.clone(),
                self.lake.clone(),
                Arc::new(facts),
                self.board.clone(),
                self.clock.clone(),
                Arc::new(|| "lake".into()),
            )?;
            let zero = Duration::ZERO;
            ledger.pauses = Pauses { first: zero, max: zero, halt: zero, again: zero };
            Ok(ledger)
        }

        /// A life: ship sends all groups that are not forgotten, until all are proven or the box dies.
        async fn live(&self) -> End {
            let crash = CancellationToken::new();
            *self.lake.crash.lock().unwrap() = crash.clone();
            let waiting = crate::facts::read_all::<Group>(&*self.memory, "seal/group/").unwrap();
            let (give, shipped) = mpsc::channel(100);
            for (_, group) in waiting {
                give.send(Shipped { group }).await.unwrap();
            }
            drop(give);
            let (proven, proved) = watch::channel(Proven::default());
            let (done, mut given) = mpsc::channel(200);
            let ledger = match self.open() {
                Ok(ledger) => ledger,
                Err(error) => return End::Failed(error),
            };
            let ended = tokio::select! {
                ended = ledger.run(shipped, proven, done, CancellationToken::new()) => ended,
                () = crash.cancelled() => return End::Crashed,
            };
            if let Err(error) = ended {
                return End::Failed(error);
            }
            let mut ids = vec![];
            while let Ok(group) = given.try_recv() {
                ids.push(group.id);
            }
            End::Finished { proven: *proved.borrow(), done: ids }
        }

        /// Lives until all is proven.
        async fn live_on(&self) -> End {
            for _ in 0..100 {
                match self.live().await {
                    End::Crashed => {}
                    end => return end,
                }
            }
            End::Crashed
        }

        /// What an auditor finds.
        fn audit(&self) -> crate::ledger::SourceReport {
            let mut verifier = Verifier::new("raw", "erp", &[self.key.public()], None);
            for (key, object) in self.lake.bucket() {
                if let Some((_, number)) = entry::parse_key("raw", &key) {
                    verifier.accept(number, &object);
                }
            }
            verifier.close();
            verifier.report(false)
        }

        /// Everything given is in the chain, once, and nothing is left over.
        fn assert_proven(&self, groups: &[Group]) {
            let report = self.audit();
            assert_eq!(report.damage, None);
            let objects: usize = groups.iter().map(|group| group.objects.len()).sum();
            assert_eq!(report.objects, objects as u64);
            let last = groups.iter().rev().find_map(|group| match &group.kind {
                GroupKind::Changes { to, .. } => Some(*to),
                _ => None,
            });
            assert_eq!(report.reached, last);
            let epochs =
                groups.iter().filter(|group| matches!(group.kind, GroupKind::Changes { .. }));
            let head = Store(self.memory.clone()).head().unwrap().unwrap();
            assert_eq!(head.transactions, epochs.count() as u64 * testing::TRANSACTIONS);
            assert_eq!(known_head(self.dir.path(), "erp").unwrap(), report.head);
            // An upload stays only where its abort failed, listed, or Create's answer was lost: without a part.
            let facts = self.memory.scan("").into_iter().map(|(key, _)| key);
            let (orphans, rest): (Vec<_>, Vec<_>) =
                facts.partition(|key| key.starts_with("ledger/orphan/"));
            assert_eq!(rest, ["ledger/head"]);
            for (upload, part) in self.lake.open() {
                assert!(!part || orphans.contains(&format!("ledger/orphan/{upload}")), "{upload}");
            }
        }
    }

    /// One entry per group, as if they came one by one: the test's lake has them all at once.
    fn epochs(count: u64) -> Vec<Group> {
        let at = |id: u64| point(id * 10, 100 + id * 10);
        (1..=count).map(|id| changes(id, at(id - 1), at(id), 1)).collect()
    }

    #[tokio::test]
    async fn a_ledger_that_has_caught_up_has_as_many_transactions_as_the_journal() {
        let all = groups(7);
        let world = World::new(Bucket::new(), &all);
        // Of what it gives, the journal has counted less than there is.
        world.board.write(|status| {
            (status.durable, status.transactions_durable) = (point(70, 170), 5);
        });
        let End::Finished { .. } = world.live().await else { panic!() };
        assert_eq!(world.board.read().transactions_shipped, 5);
        // And so it goes on, also after a restart.
        let next = [changes(8, point(70, 170), point(75, 175), 0)];
        let (_, ahead) = world.open().unwrap().head.next(&next, testing::stamp()).unwrap();
        assert_eq!(ahead.transactions, 5 + testing::TRANSACTIONS);
    }

    #[tokio::test]
    async fn groups_become_a_chain_and_are_let_go() {
        let all = groups(7);
        let world = World::new(Bucket::new(), &all);
        let End::Finished { proven, done } = world.live().await else { panic!() };
        world.assert_proven(&all);
        assert_eq!(done, [1, 2, 3, 4, 5, 6, 7]);
        // A schema and two chunks in one, four epochs.
        assert_eq!(proven, Proven { point: point(70, 170), batch: 7, entry: 5 });
        let status = world.board.read();
        assert_eq!((status.entry, status.shipped), (5, point(70, 170)));
        assert_eq!(status.transactions_shipped, 4 * testing::TRANSACTIONS);
        assert_eq!(status.shipped_at, Some(Timestamp(1_800_000_000_000_000)));
        let log = world.lake.log();
        let count = |name| log.iter().filter(|(known, _)| *known == name).count();
        assert_eq!((count("create"), count("part"), count("complete")), (5, 5, 5));
        assert_eq!((count("parts"), count("abort")), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_within_a_moment_shares_an_entry_and_an_epoch_does_not_wait() {
        let epoch = changes(31, point(0, 100), point(10, 110), 1);
        let mut all: Vec<_> = (1..=30)
            .map(|id| if id % 2 == 1 { testing::schema(id) } else { testing::snapshot(id, 1) })
            .collect();
        all.push(epoch);
        let mut world = World::new(Bucket::new(), &all);
        world.clock = Arc::new(Runtime);
        let (give, shipped) = mpsc::channel(1);
        let (proven, proved) = watch::channel(Proven::default());
        let (done, _given) = mpsc::channel(100);
        let began = tokio::time::Instant::now();
        let ship = async {
            for group in all.clone() {
                // As fast as is usual where tables are small; the last ones at once.
                if group.id < 24 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                give.send(Shipped { group }).await.unwrap();
            }
            drop(give);
        };
        let token = CancellationToken::new();
        let ledger = world.open().unwrap();
        let (ended, ()) = tokio::join!(ledger.run(shipped, proven, done, token), ship);
        ended.unwrap();
        // The first by itself, those of a quarter of a second, the rest as soon as the epoch is there, the epoch.
        assert_eq!(proved.borrow().entry, 4);
        assert!(began.elapsed() < Duration::from_millis(23 * 20 + 10), "{:?}", began.elapsed());
        assert_eq!(world.audit().objects, 31);
    }

    #[tokio::test]
    async fn a_group_that_is_proven_already_is_only_let_go() {
        let all = groups(5);
        let world = World::new(Bucket::new(), &all);
        world.live().await;
        let before = world.lake.bucket();
        let mut batch = FactBatch::default();
        batch.put(all[4].fact(), &all[4]);
        world.memory.record_blocking(batch).unwrap();
        let End::Finished { done, proven } = world.live().await else { panic!() };
        assert_eq!((done, proven.entry), (vec![5], 3));
        assert_eq!(world.lake.bucket(), before);
    }

    #[tokio::test]
    async fn a_crash_anywhere_twice_loses_and_repeats_nothing() {
        crash_twice(&epochs(2)).await;
    }

    /// A definition and rows share the first entry, an epoch has the second.
    #[tokio::test]
    async fn nor_does_a_crash_about_an_entry_of_several_groups() {
        crash_twice(&groups(4)).await;
    }

    async fn crash_twice(all: &[Group]) {
        let mut crashes = 0;
        for first in 0.. {
            let mut reached_first = false;
            for second in 0..24 {
                for effects in 0..4_u8 {
                    let world = World::new(Bucket::new(), all);
                    let count = Arc::new(Mutex::new((0, 0)));
                    let counter = count.clone();
                    world.lake.decide(fates(move |_| {
                        let mut counter = counter.lock().unwrap();
                        let (at, stop) = (counter.0, if counter.1 == 0 { first } else { second });
                        counter.0 += 1;
                        if counter.1 < 2 && at == stop {
                            let effect = effects >> counter.1 & 1 == 1;
                            *counter = (0, counter.1 + 1);
                            return Fate::Crash { effect };
                        }
                        Fate::Good
                    }));
                    let end = world.live_on().await;
                    assert!(matches!(end, End::Finished { .. }), "{first} {second}: {end:?}");
                    world.assert_proven(all);
                    reached_first |= count.lock().unwrap().1 > 0;
                    crashes += count.lock().unwrap().1;
                }
            }
            if !reached_first {
                break;
            }
        }
        assert!(crashes > 1000, "{crashes}");
    }

    #[tokio::test]
    async fn a_lost_answer_to_complete_is_not_taken_for_another_owner() {
        for fate in [Fate::Lost, Fate::Late, Fate::Dropped, Fate::Busy, Fate::Conflict] {
            for times in 1..8 {
                let all = epochs(2);
                let world = World::new(Bucket::new(), &all);
                let mut left = times;
                world.lake.decide(fates(move |name| {
                    if name == "complete" && left > 0 {
                        left -= 1;
                        return fate;
                    }
                    Fate::Good
                }));
                let end = world.live().await;
                assert!(matches!(end, End::Finished { .. }), "{fate:?} {times}: {end:?}");
                world.assert_proven(&all);
            }
        }
    }

    #[tokio::test]
    async fn a_listing_that_lags_once_does_not_fence() {
        let all = epochs(1);
        let world = World::new(Bucket::new(), &all);
        let (mut lost, mut stale) = (true, true);
        world.lake.decide(fates(move |name| match name {
            "complete" if std::mem::take(&mut lost) => Fate::Lost,
            "parts" if std::mem::take(&mut stale) => Fate::Stale,
            _ => Fate::Good,
        }));
        let end = world.live().await;
        assert!(matches!(end, End::Finished { .. }), "{end:?}");
        assert_eq!(world.lake.log().iter().filter(|(name, _)| *name == "parts").count(), 2);
        world.assert_proven(&all);
    }

    #[tokio::test]
    async fn an_entry_of_another_appliance_fences_for_good() {
        let all = epochs(2);
        let world = World::new(Bucket::new(), &all);
        let foreign = entry::key("raw", "erp", 2);
        world.lake.insert(&foreign, "another's");
        for _ in 0..2 {
            let End::Failed(error) = world.live().await else { panic!() };
            assert!(matches!(error, LedgerError::Fenced { .. }), "{error}");
            assert_eq!(error.cause().disposition().exit(), crate::error::Exit::Fenced);
        }
        assert_eq!(world.lake.bucket()[&foreign], "another's");
        assert_eq!(world.lake.open(), []);
        assert_eq!(world.board.read().alarms["ledger"].cause, "Fenced");
        // What is not proven is kept.
        assert!(world.memory.get(&all[1].fact()).is_some());
        assert!(world.memory.get(&all[0].fact()).is_none());
    }

    #[tokio::test]
    async fn a_fresh_box_stops_at_a_chain_that_is_there_already() {
        let world = World::new(Bucket::new(), &epochs(1));
        world.lake.insert(&entry::key("raw", "erp", 1), "a chain");
        let End::Failed(error) = world.live().await else { panic!() };
        assert!(matches!(error, LedgerError::ChainForeign { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_upload_that_a_lifecycle_rule_took_is_begun_again() {
        for stage in ["part", "complete"] {
            let all = epochs(1);
            let world = World::new(Bucket::new(), &all);
            world.lake.decide(fates(move |name| match name == stage {
                true => Fate::Crash { effect: false },
                false => Fate::Good,
            }));
            assert!(matches!(world.live().await, End::Crashed));
            world.lake.expire();
            world.lake.decide(fates(|_| Fate::Good));
            let end = world.live().await;
            assert!(matches!(end, End::Finished { .. }), "{end:?}");
            world.assert_proven(&all);
        }
    }

    #[tokio::test]
    async fn what_a_person_must_mend_is_an_alarm_and_not_an_end() {
        let world = World::new(Bucket::new(), &epochs(1));
        let (board, mut left) = (world.board.clone(), 6);
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let kept = seen.clone();
        world.lake.decide(fates(move |_| {
            kept.lock().unwrap().extend(board.read().alarms);
            left -= 1;
            if left > 0 { Fate::Denied } else { Fate::Good }
        }));
        assert!(matches!(world.live().await, End::Finished { .. }));
        assert_eq!(seen.lock().unwrap()["ledger"].cause, "LakeForbidden");
        assert!(world.board.read().alarms.is_empty());
    }

    #[tokio::test]
    async fn a_key_that_did_not_sign_the_head_does_not_go_on() {
        let mut world = World::new(Bucket::new(), &epochs(1));
        world.live().await;
        world.key = IdentityKey::from_seed(&[2; 32]);
        let End::Failed(error) = world.live().await else { panic!() };
        assert!(matches!(error, LedgerError::KeyChanged { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_missing_group_stops_the_chain() {
        let all = epochs(3);
        let world = World::new(Bucket::new(), &[all[0].clone(), all[2].clone()]);
        let End::Failed(error) = world.live().await else { panic!() };
        assert!(matches!(error, LedgerError::Disorder { expected: 2, found: 3 }), "{error}");
    }

    #[tokio::test]
    async fn uploads_never_used_are_given_back_and_others_are_left_alone() {
        let world = World::new(Bucket::new(), &[]);
        let key = entry::key("raw", "erp", 1);
        world.lake.begin(&key, None, sweep::AGE_MIN);
        // Whatever the time is here (I29).
        world.lake.begin(&key, None, sweep::AGE_MIN / 2);
        world.lake.begin(&key, Some("bytes".into()), Duration::MAX);
        world.lake.begin("raw/_ledger/crm/1", None, Duration::MAX);
        world.live().await;
        let left: Vec<_> = world.lake.open().into_iter().map(|(id, _)| id).collect();
        assert_eq!(left, ["u2", "u3", "u4"]);
    }

    #[tokio::test]
    async fn an_upload_whose_begin_was_not_answered_does_not_wait_for_a_restart() {
        let all = epochs(2);
        let mut world = World::new(Bucket::new(), &all);
        world.clock = Arc::new(Hours::default());
        let mut left = 3;
        world.lake.decide(fates(move |name| {
            if name == "create" && left > 0 {
                left -= 1;
                return Fate::Lost;
            }
            Fate::Good
        }));
        assert!(matches!(world.live().await, End::Finished { .. }));
        world.assert_proven(&all);
        assert_eq!(world.lake.open(), []);
    }

    #[tokio::test]
    async fn shutdown_ends_a_wait_for_s3() {
        let world = World::new(Bucket::new(), &epochs(1));
        world.lake.decide(fates(|_| Fate::Busy));
        let ledger = world.open().unwrap();
        let (give, shipped) = mpsc::channel(1);
        give.send(Shipped { group: epochs(1).remove(0) }).await.unwrap();
        let (token, board) = (CancellationToken::new(), world.board.clone());
        let (proven, _proved) = watch::channel(Proven::default());
        let (done, _given) = mpsc::channel(1);
        let stop = async {
            while board.read().retries.is_empty() {
                tokio::task::yield_now().await;
            }
            token.cancel();
        };
        let (ended, ()) = tokio::join!(ledger.run(shipped, proven, done, token.clone()), stop);
        assert!(ended.is_ok());
    }

    fn any_fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            8 => Just(Fate::Good),
            2 => Just(Fate::Lost),
            1 => Just(Fate::Dropped),
            2 => Just(Fate::Late),
            1 => Just(Fate::Busy),
            1 => Just(Fate::Conflict),
            1 => any::<bool>().prop_map(|effect| Fate::Crash { effect }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever answers are lost and whenever the box dies, with another appliance writing the
        /// second entry at some moment or never: what the box believes is what the lake holds.
        #[test]
        fn the_box_knows_whose_entry_stands(
            plan in prop::collection::vec(any_fate(), 0..40),
            intruder in prop::option::of(0..30_usize),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let all = epochs(3);
            let world = World::new(Bucket::new(), &all);
            let (lake, place) = (world.lake.clone(), entry::key("raw", "erp", 2));
            let (mut at, foreign) = (0, place.clone());
            world.lake.decide(fates(move |name| {
                if intruder.is_some_and(|moment| at >= moment) && !lake.bucket().contains_key(&foreign) {
                    lake.insert(&foreign, "another's");
                }
                at += 1;
                let fate = plan.get(at - 1).copied().unwrap_or(Fate::Good);
                // A 409 answers writes that are conditional, nothing else.
                if fate == Fate::Conflict && name != "complete" { Fate::Busy } else { fate }
            }));
            let end = runtime.block_on(world.live_on());
            let theirs = world.lake.bucket().get(&place).is_some_and(|entry| entry == "another's");
            match end {
                End::Finished { .. } => {
                    prop_assert!(!theirs);
                    prop_assert_eq!(world.audit().reached, Some(point(30, 130)));
                    world.assert_proven(&all);
                    // In peace, the next start gives back what stayed.
                    world.lake.decide(fates(|_| Fate::Good));
                    runtime.block_on(world.live());
                    prop_assert!(world.lake.open().iter().all(|(_, part)| !part));
                    prop_assert_eq!(world.memory.scan("ledger/orphan/"), []);
                }
                End::Failed(LedgerError::Fenced { key }) => {
                    prop_assert!(theirs);
                    prop_assert_eq!(key, place);
                    prop_assert_eq!(world.audit().entries, 1);
                }
                end => prop_assert!(false, "{:?}", end),
            }
        }
    }

    #[test]
    fn the_facts_are_pinned() {
        let head = ChainHead::start("key".into());
        let (entry, next) = head.next(&epochs(1), testing::stamp()).unwrap();
        assert_eq!(entry.kind, EntryKind::Changes);
        let json = serde_json::to_string(&ChainHead { hash: "h".into(), ..next }).unwrap();
        assert_eq!(
            json,
            r#"{"entry":1,"hash":"h","reached":{"sequence":10,"position":"00000000/0000006E"},"batch":1,"group":1,"signed_by":"key","transactions":3}"#
        );
        let stage = Stage::Open { upload: "u".into() };
        assert_eq!(serde_json::to_string(&stage).unwrap(), r#"{"open":{"upload":"u"}}"#);
        assert_eq!(serde_json::to_string(&Stage::Refused).unwrap(), r#""refused""#);
    }
}
