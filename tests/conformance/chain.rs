//! Ledger entries, which go as uploads of one part so that a lost answer can be told from another owner.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lakehead::{
    clock::SystemClock,
    facts::{FactBatch, Facts, MemoryFacts},
    ledger::{
        Audit, DamageKind, IdentityKey, Ledger, LedgerError, LedgerOptions, Proven, SourceIdentity,
        SourceReport, audit,
        chain::{ChainHead, Stamp},
        entry,
    },
    ship::{
        Encryption, Fates, Group, GroupKind, Head, Object, ObjectStore, Op, Part, Put, Request,
        Shipped, checksum,
    },
    telemetry::board::SourceBoard,
    units::{Point, Position, Sequence, Timestamp},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    losing::{Losing, Loss},
    requests::key,
    store::{Ground, PREFIX},
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        a_chain_is_written_and_proven,
        an_entry_whose_answer_was_lost_is_ours_and_stands_once,
        an_entry_that_another_box_wrote_is_not_ours,
        uploads_of_entries_never_used_are_swept,
        an_audit_goes_on_after_a_page_and_names_what_is_broken,
    }
}

async fn a_chain_is_written_and_proven(ground: &Ground) {
    let world = World::new(ground, "chain", 1);
    let groups: Vec<_> = (1..=4).map(|id| world.group(id)).collect();
    world.store_objects(&groups).await;
    let proven = world.live(Arc::new(world.door(None)), &groups).await.unwrap();
    assert_eq!((proven.entry, proven.point), (4, point(4)));
    world.assert_proven(4).await;
}

async fn an_entry_whose_answer_was_lost_is_ours_and_stands_once(ground: &Ground) {
    for request in [Request::Create, Request::Part, Request::Complete] {
        for loss in [Loss::Request, Loss::Answer, Loss::Power] {
            let world = World::new(ground, &format!("{}-{loss:?}", request.name()), 1);
            let groups = [world.group(1), world.group(2)];
            world.store_objects(&groups).await;
            world.live(Arc::new(world.door(None)), &groups[..1]).await.unwrap();
            let door = Arc::new(world.door(Some((request, loss))));
            let proven = tokio::select! {
                proven = world.live(door.clone(), &groups) => proven,
                () = door.dark.cancelled() => {
                    world.live(Arc::new(world.door(None)), &groups).await
                }
            };
            assert!(door.struck(), "{request:?} {loss:?}: nothing was lost");
            assert_eq!(proven.unwrap().entry, 2, "{request:?} {loss:?}");
            world.assert_proven(2).await;
            // One whose id was never learned stays, for an hour: see the sweep.
            let left = usize::from(request == Request::Create && loss != Loss::Request);
            assert_eq!(world.open().await, left, "{request:?} {loss:?}: uploads left open");
        }
    }
}

async fn an_entry_that_another_box_wrote_is_not_ours(ground: &Ground) {
    let ours = World::new(ground, "two-boxes", 1);
    let groups = [ours.group(1), ours.group(2)];
    ours.store_objects(&groups).await;
    let live = async |world: &World<'_>, groups: &[Group]| {
        world.live(Arc::new(world.door(None)), groups).await
    };
    live(&ours, &groups[..1]).await.unwrap();
    // Another appliance, configured for the same source.
    let stranger = World::new(ground, "two-boxes", 2);
    let end = live(&stranger, &groups[..1]).await;
    assert!(matches!(end, Err(LedgerError::ChainForeign { .. })), "{end:?}");
    // Ours, restored from a backup, while the first still runs.
    let backup = World { facts: ours.copied(), ..World::new(ground, "two-boxes", 1) };
    live(&ours, &groups).await.unwrap();
    for _ in 0..2 {
        let end = live(&backup, &groups).await;
        assert!(matches!(end, Err(LedgerError::Fenced { .. })), "{end:?}");
    }
    ours.assert_proven(2).await;
    assert_eq!(ours.open().await, 0, "uploads left open");
}

async fn uploads_of_entries_never_used_are_swept(ground: &Ground) {
    let world = World::new(ground, "sweep", 1);
    let writer = ground.s3(&ground.people.writer);
    let of_entry = entry::key(PREFIX, "sweep", 7);
    let metadata = std::collections::BTreeMap::new();
    let encryption = &Encryption::None;
    let head =
        Head { key: &of_entry, metadata: &metadata, encryption, content_type: "application/json" };
    writer.create(head).await.unwrap();
    let used = writer.create(head).await.unwrap();
    let (body, crc64nvme) = (Bytes::from_static(b"x"), &checksum::of(b"x"));
    let part = Part { key: &of_entry, upload: &used, number: 1, body: body.into(), crc64nvme };
    writer.part(part).await.unwrap();
    let group = [world.group(1)];
    world.store_objects(&group).await;
    world.live(Arc::new(world.door(None)), &group).await.unwrap();
    assert_eq!(world.open().await, 2, "younger than an hour, they stay");
    let mut later = world.door(None);
    later.older = Duration::from_secs(7200);
    world.live(Arc::new(later), &group).await.unwrap();
    let left = writer.uploads(&of_entry).await.unwrap();
    assert!(left.len() == 1 && left[0].upload == used, "{left:?}");
    writer.abort(&of_entry, &used).await.unwrap();
}

async fn an_audit_goes_on_after_a_page_and_names_what_is_broken(ground: &Ground) {
    let world = World::new(ground, "pages-of-entries", 1);
    let groups: Vec<_> = (1..=ENTRIES).map(|id| world.group(id)).collect();
    world.store_objects(&groups).await;
    let mut head = ChainHead::start(world.key.public().to_string());
    let mut entries = vec![];
    for group in &groups {
        let (next, moved) = head.next(std::slice::from_ref(group), stamp(&world.source)).unwrap();
        let signed = entry::sign(&next, &world.key);
        head = ChainHead { hash: signed.hash, ..moved };
        entries.push((entry::key(PREFIX, &world.source, next.entry), signed.object.into()));
    }
    world.store(entries).await;
    world.assert_proven(ENTRIES).await;
    // What an intruder does, the deep look names; what a listing shows, any look.
    let altered = &groups[900].objects[0].key;
    let same_length = "X".repeat(content(altered).len());
    ground.client(&ground.owner, &["alter", altered, &same_length]).await;
    assert!(world.audit(false).await.whole());
    let damage = world.audit(true).await.damage.unwrap();
    assert_eq!((damage.kind, damage.entry, &damage.key), (DamageKind::ObjectAltered, 901, altered));
    let missing = &groups[3].objects[0].key;
    ground.client(&ground.owner, &["delete", missing]).await;
    let damage = world.audit(false).await.damage.unwrap();
    assert_eq!((damage.kind, damage.entry, &damage.key), (DamageKind::ObjectMissing, 4, missing));
    let entry = entry::key(PREFIX, &world.source, 2);
    ground.client(&ground.owner, &["delete", &entry]).await;
    let damage = world.audit(false).await.damage.unwrap();
    assert_eq!((damage.kind, damage.entry), (DamageKind::EntryMissing, 2));
}

/// A box with its ledger.
struct World<'a> {
    ground: &'a Ground,
    source: String,
    key: IdentityKey,
    facts: Arc<MemoryFacts>,
}

impl<'a> World<'a> {
    fn new(ground: &'a Ground, source: &str, seed: u8) -> Self {
        let key = IdentityKey::from_seed(&[seed; 32]);
        Self { ground, source: source.into(), key, facts: Arc::default() }
    }

    fn door(&self, next: Option<(Request, Loss)>) -> Losing {
        Losing::new(self.ground.s3(&self.ground.people.writer), next)
    }

    /// The facts as a backup has them.
    fn copied(&self) -> Arc<MemoryFacts> {
        let changes = self.facts.scan("").into_iter().map(|(key, value)| (key, Some(value)));
        let facts = MemoryFacts::default();
        facts.record_blocking(FactBatch { changes: changes.collect() }).unwrap();
        Arc::new(facts)
    }

    fn group(&self, id: u64) -> Group {
        let key = key(&format!("{}/public.t/dt=2026-11-21/changes-{id:020}.parquet", self.source));
        let bytes = content(&key);
        let object = Object {
            bytes: bytes.len() as u64,
            sha256: hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes)),
            crc64nvme: checksum::of(&bytes),
            sums: Vec::new(),
            rows: [(Op::Insert, 1)].into(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::None,
            metadata: std::collections::BTreeMap::new(),
            spool: String::new(),
            key,
        };
        let (from, to) = (point(id - 1), point(id));
        let committed_at = Timestamp(1);
        let kind = GroupKind::Changes { from, to, batch: id, committed_at, transactions: 1 };
        Group { id, kind, objects: vec![object], fates: Fates::default(), at: Timestamp(1) }
    }

    async fn store_objects(&self, groups: &[Group]) {
        let objects = groups.iter().flat_map(|group| &group.objects);
        self.store(objects.map(|object| (object.key.clone(), content(&object.key))).collect())
            .await;
    }

    async fn store(&self, all: Vec<(String, Bytes)>) {
        let writer = &self.ground.s3(&self.ground.people.writer);
        let puts = all.into_iter().map(|(key, body)| async move {
            let metadata = std::collections::BTreeMap::new();
            let encryption = &Encryption::None;
            let head =
                Head { key: &key, metadata: &metadata, encryption, content_type: "text/plain" };
            let crc64nvme = &checksum::of(&body);
            writer.put(Put { head, body: body.into(), crc64nvme }).await
        });
        let ends: Vec<_> = stream::iter(puts).buffer_unordered(16).collect().await;
        let failed: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// A life of the box: writes entries for the groups that have none.
    async fn live(&self, door: Arc<Losing>, groups: &[Group]) -> Result<Proven, LedgerError> {
        let mut batch = FactBatch::default();
        for group in groups {
            batch.put(group.fact(), group);
        }
        self.facts.record(batch).await?;
        let dir = self.ground.dir.join(format!("ledger-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        let source = self.source.clone();
        let options = LedgerOptions {
            appliance: "plant7-a".into(),
            source: source.clone(),
            prefix: PREFIX.into(),
            data_dir: dir,
            identity: Arc::new(move || Some(identity(&source))),
            encryption: Encryption::None,
        };
        let (facts, clock) = (self.facts.clone(), Arc::new(SystemClock));
        let release = Arc::new(|| "lake".to_owned());
        let board = SourceBoard::default();
        let ledger = Ledger::open(options, self.key.clone(), door, facts, board, clock, release)?;
        let (give, shipped) = mpsc::channel(groups.len());
        for group in groups {
            give.send(Shipped { group: group.clone() }).await.expect("there is room");
        }
        drop(give);
        let (proven, proved) = watch::channel(Proven::default());
        let (done, _given) = mpsc::channel(2 * groups.len());
        let run = ledger.run(shipped, proven, done, CancellationToken::new());
        tokio::time::timeout(PATIENCE, run).await.expect("it ends")?;
        let proven = *proved.borrow();
        Ok(proven)
    }

    async fn audit(&self, deep: bool) -> SourceReport {
        let reader = self.ground.s3(&self.ground.people.reader);
        let what = Audit {
            prefix: PREFIX,
            source: Some(&self.source),
            public_keys: &[self.key.public()],
            deep: deep.then_some(self.ground.dir.as_path()),
        };
        let mut reports = audit(&reader, &what, &|_| None, &mut |_| {}).await.unwrap();
        reports.pop().unwrap()
    }

    async fn assert_proven(&self, entries: u64) {
        let report = self.audit(true).await;
        assert!(report.whole() && report.entries == entries && report.strangers == 0, "{report}");
    }

    /// Uploads open under the ledger's folder.
    async fn open(&self) -> usize {
        let writer = self.ground.s3(&self.ground.people.writer);
        writer.uploads(&entry::folder(PREFIX, Some(&self.source))).await.unwrap().len()
    }
}

fn content(key: &str) -> Bytes {
    Bytes::from(format!("the rows of {key}"))
}

fn point(id: u64) -> Point {
    match id {
        0 => Point::default(),
        id => Point { sequence: Sequence(id * 10), position: Position(100 + id * 10) },
    }
}

fn identity(source: &str) -> SourceIdentity {
    SourceIdentity { name: source.into(), system_identifier: "7301".into(), timeline: 1 }
}

fn stamp(source: &str) -> Stamp {
    Stamp {
        source: identity(source),
        release: "lake".into(),
        appliance: "plant7-a".into(),
        at: "2026-11-21T08:30:00.000000Z".into(),
    }
}

/// More than a page of a listing.
const ENTRIES: u64 = 1_003;
const PATIENCE: Duration = Duration::from_secs(60);
