//! Writes the chain. The ledger's awaits.
//!
//! An entry's key does not name its content, and the box may not read: if the answer to a PutObject is
//! lost, a 412 to the second try could come from ourselves or from another appliance. So each entry
//! travels as a multipart upload of one part, whose id tells the two apart:
//!
//! | after Complete | ListParts of our upload | means |
//! |---|---|---|
//! | 200 | | written by us |
//! | 412 | still there | another's entry: fenced |
//! | 412 or 404 | gone | an earlier Complete of ours took effect, its answer was lost |
//! | no answer, 5xx | still there | not written: Complete again |
//! | no answer, 5xx | gone | written by us |
//! | 409 | | begin again with a new upload |
//!
//! "Gone" has one other cause, a lifecycle rule that aborts uploads left for days. So an upload found gone
//! without a Complete sent is begun again, and one found gone after a Complete is proven by a second
//! conditional upload: 200 or 412, the entry stands.
//!
//! **Invariant:** the exact bytes are durable before they are sent, the upload's id before Complete; the
//! new head and the end of its groups are one durable batch.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Group, GroupKind, LedgerError, Proven, Shipped, SourceIdentity,
    chain::{self, Head, Stamp},
    entry,
    key::IdentityKey,
    store::{self, Pending},
    verify::KnownHead,
};
use crate::{
    clock::Clock,
    disk,
    error::Classified,
    facts::{self, FactBatch, Facts},
    ship::{
        self, Complete, Encryption, ObjectStore, Part, Request, ShipError, StoredPart, checksum,
        retry::{Backoff, Decision, PAUSE_MIN, decide},
    },
    telemetry::board::SourceBoard,
    units::{Position, Timestamp},
};

/// Which database the source is, and where its log begins for us, once known.
pub type OriginReader = Arc<dyn Fn() -> Option<(SourceIdentity, Position)> + Send + Sync>;

/// What a ledger is for.
#[derive(Clone)]
pub struct LedgerOptions {
    /// The appliance's name.
    pub appliance: String,
    /// The source's name.
    pub source: String,
    /// First part of every key.
    pub prefix: String,
    /// Where `head-<source>.json` is kept, by which `verify` knows how long the chain must be.
    pub data_dir: PathBuf,
    /// Which database the source is, and where its log begins for us, once known.
    pub origin: OriginReader,
    /// How entries are encrypted by S3: `sse-kms` as the objects are, else not; they hold no rows.
    pub encryption: Encryption,
    /// The release rule in force.
    pub release: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Writes one source's chain.
pub struct Ledger {
    options: LedgerOptions,
    key: IdentityKey,
    store: Arc<dyn ObjectStore>,
    facts: Arc<dyn Facts>,
    board: SourceBoard,
    clock: Arc<dyn Clock>,
    head: Head,
    backoff: Backoff,
}

/// What became of one try to write an entry.
enum Tried {
    Written,
    Foreign,
    Again,
}

impl Ledger {
    /// Reads where the chain stands.
    ///
    /// # Errors
    ///
    /// A fact does not read.
    pub fn open(
        options: LedgerOptions,
        key: IdentityKey,
        store: Arc<dyn ObjectStore>,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LedgerError> {
        let head = store::head(facts.as_ref())?;
        Ok(Self { options, key, store, facts, board, clock, head, backoff: Backoff::default() })
    }

    /// How far the chain reaches, by what is durable on the box.
    pub fn proven(&self) -> Proven {
        Proven {
            point: self.head.point.unwrap_or_default(),
            batch: self.head.batch,
            entry: self.head.entry,
        }
    }

    /// Writes an entry for what is shipped, in order, until the channel closes or `token` is cancelled.
    /// After each, `proven` grows and the groups go to `done`.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Fenced`] and [`LedgerError::ChainForeign`]; facts cannot be recorded; a defect.
    /// What heals is waited for, with an alarm up.
    pub async fn run(
        mut self,
        mut shipped: mpsc::Receiver<Shipped>,
        proven: watch::Sender<Proven>,
        done: mpsc::Sender<Group>,
        token: CancellationToken,
    ) -> Result<(), LedgerError> {
        let work = self.work(&mut shipped, &proven, &done);
        token.run_until_cancelled(work).await.unwrap_or(Ok(()))
    }

    async fn work(
        &mut self,
        shipped: &mut mpsc::Receiver<Shipped>,
        proven: &watch::Sender<Proven>,
        done: &mpsc::Sender<Group>,
    ) -> Result<(), LedgerError> {
        if let Some(pending) = store::pending(self.facts.as_ref())? {
            let mut groups = vec![];
            for fact in &pending.groups {
                groups.extend(facts::read::<Group>(self.facts.as_ref(), fact)?);
            }
            self.finish(pending, groups, proven, done).await?;
        }
        self.announce();
        let mut waiting: VecDeque<Group> = VecDeque::new();
        loop {
            if waiting.is_empty() {
                match shipped.recv().await {
                    Some(next) => waiting.push_back(next.group),
                    None => return Ok(()),
                }
            }
            while let Ok(next) = shipped.try_recv() {
                waiting.push_back(next.group);
            }
            let groups = first_of(&mut waiting);
            if groups.iter().all(|group| group.id <= self.head.group) {
                // In the ledger before the restart that shipped them again.
                self.forget(&groups, done).await?;
                continue;
            }
            let pending = self.prepare(&groups).await?;
            self.finish(pending, groups, proven, done).await?;
        }
    }

    async fn forget(
        &self,
        groups: &[Group],
        done: &mpsc::Sender<Group>,
    ) -> Result<(), LedgerError> {
        let mut batch = FactBatch::default();
        for group in groups {
            ship::forget(group, &mut batch);
        }
        self.facts.record(batch).await?;
        for group in groups {
            // Housekeeping ends with the road.
            drop(done.send(group.clone()).await);
        }
        Ok(())
    }

    /// Makes the entry, and its exact bytes durable.
    async fn prepare(&self, groups: &[Group]) -> Result<Pending, LedgerError> {
        let (source, start) = self.origin().await;
        let stamp = Stamp {
            source,
            start,
            release: (self.options.release)(),
            appliance: self.options.appliance.clone(),
            at: self.clock.wall(),
        };
        let (entry, mut head) = chain::next(&self.head, groups, &stamp)?;
        let signed = entry::sign(&entry, &self.key);
        head.hash = signed.hash;
        let committed_at = groups.iter().rev().find_map(committed_at);
        let pending = Pending {
            key: entry::object_key(&self.options.prefix, &self.options.source, entry.entry),
            object: String::from_utf8(signed.object).expect("JSON and base64 are UTF-8"),
            upload: None,
            head,
            groups: groups.iter().map(Group::fact).collect(),
            committed_at,
        };
        self.save(&pending).await?;
        Ok(pending)
    }

    /// The source records its origin before it gives anything; so this hardly waits.
    async fn origin(&self) -> (SourceIdentity, Position) {
        loop {
            if let Some(origin) = (self.options.origin)() {
                return origin;
            }
            tokio::time::sleep(PAUSE_MIN).await;
        }
    }

    async fn save(&self, pending: &Pending) -> Result<(), LedgerError> {
        let mut batch = FactBatch::default();
        store::put_pending(&mut batch, pending);
        Ok(self.facts.record(batch).await?)
    }

    /// Brings a pending entry into the lake, then says so.
    pub(super) async fn finish(
        &mut self,
        pending: Pending,
        groups: Vec<Group>,
        proven: &watch::Sender<Proven>,
        done: &mpsc::Sender<Group>,
    ) -> Result<(), LedgerError> {
        let head = pending.head.clone();
        self.write(pending.clone()).await?;
        let mut batch = FactBatch::default();
        store::put_head(&mut batch, &head);
        for group in &groups {
            ship::forget(group, &mut batch);
        }
        self.facts.record(batch).await?;
        self.head = head;
        self.keep_head()?;
        self.announce();
        if let Some(at) = pending.committed_at {
            self.board.write(|status| status.shipped_at = Some(at));
        }
        proven.send_replace(self.proven());
        for group in groups {
            // Housekeeping ends with the road.
            drop(done.send(group).await);
        }
        Ok(())
    }

    /// For `verify`, which does not open the journal of a running box.
    fn keep_head(&self) -> Result<(), LedgerError> {
        let path = KnownHead::file(&self.options.data_dir, &self.options.source);
        let known = KnownHead { entry: self.head.entry, hash: self.head.hash.clone() };
        let json = serde_json::to_vec(&known).expect("a head is plain data");
        disk::write_durably(&path, &json)
            .map_err(|why| LedgerError::File { path: path.display().to_string(), why })
    }

    fn announce(&self) {
        let (entry, point) = (self.head.entry, self.head.point);
        self.board.write(|status| {
            status.entry = entry;
            status.shipped = point.unwrap_or_default();
        });
    }

    /// Tries until the entry is in the lake, or is another's.
    async fn write(&self, mut pending: Pending) -> Result<(), LedgerError> {
        let mut completed = false;
        let mut backoff = self.backoff;
        loop {
            match self.attempt(&mut pending, &mut completed).await {
                Ok(Tried::Written) => {
                    self.board.calm(ROOM);
                    return Ok(());
                }
                Ok(Tried::Foreign) => {
                    self.abort(&pending).await;
                    return Err(self.fenced(pending.head.entry));
                }
                Ok(Tried::Again) => {}
                Err(LedgerError::Ship(error)) => {
                    let Decision::Retry(pace) = decide(Request::Create, &error) else {
                        return Err(error.into());
                    };
                    self.board.alarm(ROOM, error.cause(), &error, self.clock.wall());
                    tokio::time::sleep(backoff.pause(pace, fastrand::f64())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One walk through the table above. `completed`: a Complete was sent by this or an earlier process.
    async fn attempt(
        &self,
        pending: &mut Pending,
        completed: &mut bool,
    ) -> Result<Tried, LedgerError> {
        let key = pending.key.clone();
        let known = pending.upload.clone();
        let upload = match &known {
            Some(upload) => match self.store.parts(&key, upload).await? {
                Some(_) => upload.clone(),
                // The id was recorded just before the first Complete: it took effect, or a lifecycle rule
                // ended the upload. A second conditional upload proves which: 200 or 412, the entry stands.
                None => {
                    *completed = true;
                    self.begin(pending).await?
                }
            },
            None => self.begin(pending).await?,
        };
        let body = Bytes::from(pending.object.clone().into_bytes());
        let crc64nvme = checksum::of(&body);
        let bytes = u64::try_from(body.len()).expect("an entry is small");
        let part = Part { key: &key, upload: &upload, number: 1, body, crc64nvme: &crc64nvme };
        let etag = self.store.part(part).await?;
        let parts = [StoredPart { number: 1, bytes, etag, crc64nvme: crc64nvme.clone() }];
        let complete =
            Complete { key: &key, upload: &upload, parts: &parts, bytes, crc64nvme: &crc64nvme };
        match self.store.complete(complete).await {
            Ok(()) => Ok(Tried::Written),
            Err(ShipError::Exists { .. }) => {
                let open = self.store.parts(&key, &upload).await?.is_some();
                if open && !*completed {
                    return Ok(Tried::Foreign);
                }
                if open {
                    self.abort(pending).await;
                }
                Ok(Tried::Written)
            }
            Err(ShipError::Conflict { .. }) => {
                self.abort(pending).await;
                pending.upload = None;
                Ok(Tried::Again)
            }
            Err(ShipError::NoSuchUpload { .. }) => Ok(Tried::Again),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins an upload; its id is durable when this answers.
    async fn begin(&self, pending: &mut Pending) -> Result<String, LedgerError> {
        let head = ship::Head {
            key: &pending.key,
            metadata: &std::collections::BTreeMap::new(),
            encryption: &self.options.encryption,
            content_type: "application/json",
        };
        let upload = self.store.create(head).await?;
        pending.upload = Some(upload.clone());
        self.save(pending).await?;
        Ok(upload)
    }

    /// Best effort: what is left is swept.
    async fn abort(&self, pending: &Pending) {
        if let Some(upload) = &pending.upload
            && let Err(error) = self.store.abort(&pending.key, upload).await
        {
            tracing::info!(%error, "an upload of a ledger entry was left open; the next sweep aborts it");
        }
    }

    fn fenced(&self, entry: u64) -> LedgerError {
        let source_name = self.options.source.clone();
        if self.head.entry == 0 {
            LedgerError::ChainForeign { source_name }
        } else {
            LedgerError::Fenced { source_name, entry }
        }
    }
}

/// Takes the groups of the next entry off the line.
fn first_of(waiting: &mut VecDeque<Group>) -> Vec<Group> {
    let mut groups: Vec<Group> = waiting.pop_front().into_iter().collect();
    while let Some(next) = waiting.front() {
        if !chain::joins(&groups, next) {
            break;
        }
        groups.extend(waiting.pop_front());
    }
    groups
}

fn committed_at(group: &Group) -> Option<Timestamp> {
    match group.kind {
        GroupKind::Changes { committed_at, .. } => Some(committed_at),
        GroupKind::Snapshot { .. } | GroupKind::Schema => None,
    }
}

const ROOM: &str = "ledger";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{
            chain::tests::{changes, chunk, point, stamp},
            entry::tests::key,
        },
        *,
    };
    use crate::{
        clock::SystemClock,
        facts::MemoryFacts,
        ship::memory::{Fault, Memory, Rule},
    };

    struct Site {
        dir: tempfile::TempDir,
        key: IdentityKey,
        facts: Arc<MemoryFacts>,
    }

    impl Site {
        fn new() -> Self {
            let (dir, key) = key();
            Self { dir, key, facts: Arc::new(MemoryFacts::default()) }
        }

        fn ledger(&self, store: &Arc<Memory>) -> Ledger {
            let options = LedgerOptions {
                appliance: "plant7-a".into(),
                source: "erp".into(),
                prefix: "raw".into(),
                data_dir: self.dir.path().into(),
                origin: Arc::new(|| Some((stamp().source, stamp().start))),
                encryption: Encryption::None,
                release: Arc::new(|| "lake".into()),
            };
            let store = Arc::clone(store) as Arc<dyn ObjectStore>;
            let facts = Arc::clone(&self.facts) as Arc<dyn Facts>;
            let board = SourceBoard::default();
            Ledger::open(options, self.key.clone(), store, facts, board, Arc::new(SystemClock))
                .unwrap()
        }

        /// Runs the ledger over `groups` and gives what it proved.
        async fn run(&self, store: &Arc<Memory>, groups: &[Group]) -> Result<Proven, LedgerError> {
            let (shipped, shipped_in) = mpsc::channel(64);
            let (proven, proven_in) = watch::channel(Proven::default());
            let (done, mut done_in) = mpsc::channel(64);
            for group in groups {
                shipped.try_send(Shipped { group: group.clone() }).unwrap();
            }
            drop(shipped);
            self.ledger(store).run(shipped_in, proven, done, CancellationToken::new()).await?;
            while done_in.try_recv().is_ok() {}
            Ok(*proven_in.borrow())
        }
    }

    fn numbers(store: &Memory) -> Vec<String> {
        store.objects().into_keys().filter(|key| key.contains("_ledger")).collect()
    }

    #[tokio::test]
    async fn every_lost_or_refused_answer_ends_in_one_entry() {
        let faults = [
            Fault::LostAfter,
            Fault::LostBefore,
            Fault::Refuse(500, "InternalError"),
            Fault::Refuse(503, "SlowDown"),
        ];
        for request in [Request::Create, Request::Part, Request::Complete, Request::Parts] {
            for fault in faults {
                let (one, store) = (Site::new(), Arc::new(Memory::new(1)));
                store.fault(Rule::once(request, fault));
                store.fault(Rule::once(Request::Complete, fault));
                let groups = [
                    changes(1, point(0, 100), point(5, 200)),
                    changes(2, point(5, 200), point(9, 300)),
                ];
                let proven = one.run(&store, &groups).await.unwrap();
                assert_eq!(
                    (proven.entry, proven.point),
                    (2, point(9, 300)),
                    "{request:?} {fault:?}"
                );
                assert_eq!(numbers(&store).len(), 2);
                assert_eq!(store::pending(one.facts.as_ref()).unwrap(), None);
            }
        }
    }

    #[tokio::test]
    async fn a_second_owner_is_fenced_even_after_a_lost_answer() {
        let (one, other, store) = (Site::new(), Site::new(), Arc::new(Memory::new(1)));
        let first = changes(1, point(0, 100), point(5, 200));
        one.run(&store, std::slice::from_ref(&first)).await.unwrap();
        let outcome = other.run(&store, std::slice::from_ref(&first)).await;
        assert!(matches!(outcome, Err(LedgerError::ChainForeign { .. })));
        // Both now own entry 2 by their own facts; the first to write it wins.
        let head = store::head(one.facts.as_ref()).unwrap();
        let mut batch = FactBatch::default();
        store::put_head(&mut batch, &head);
        other.facts.record_blocking(batch).unwrap();
        let next = changes(2, point(5, 200), point(9, 300));
        one.run(&store, std::slice::from_ref(&next)).await.unwrap();
        store.fault(Rule::once(Request::Complete, Fault::LostBefore));
        let outcome = other.run(&store, std::slice::from_ref(&next)).await;
        assert!(matches!(outcome, Err(LedgerError::Fenced { entry: 2, .. })));
        assert_eq!(numbers(&store).len(), 2);
        assert_eq!(store.open_uploads(), vec![]);
    }

    #[tokio::test]
    async fn a_crash_at_any_point_leaves_one_entry_of_the_same_bytes() {
        let group = changes(1, point(0, 100), point(5, 200));
        let crashes = [Request::Create, Request::Part, Request::Complete, Request::Parts];
        for request in crashes {
            let (one, store) = (Site::new(), Arc::new(Memory::new(1)));
            store.fault(Rule { times: u32::MAX, ..Rule::once(request, Fault::LostAfter) });
            store.fault(Rule::once(Request::Complete, Fault::LostAfter));
            let run = one.run(&store, std::slice::from_ref(&group));
            // Longer than any pause: it keeps trying, and is killed.
            let killed = tokio::time::timeout(Duration::from_millis(150), run).await;
            assert!(killed.is_err(), "{request:?}");
            store.heal();
            // The facts of its group still stand, and ship hands it on once more.
            let proven = one.run(&store, std::slice::from_ref(&group)).await.unwrap();
            assert_eq!(proven.entry.max(one.ledger(&store).proven().entry), 1);
            assert_eq!(numbers(&store).len(), 1);
        }
    }

    #[tokio::test]
    async fn groups_that_are_in_the_ledger_already_are_only_forgotten() {
        let (one, store) = (Site::new(), Arc::new(Memory::new(1)));
        let groups = [chunk(1, false), chunk(2, true)];
        one.run(&store, &groups).await.unwrap();
        one.run(&store, &groups).await.unwrap();
        assert_eq!(numbers(&store).len(), 1);
        assert_eq!(one.ledger(&store).proven().entry, 1);
    }
}
