//! What the ledger's tests share: groups, chains, a lake with faults, facts that crash. Tests only.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{
    Encryption, Group, GroupKind, IdentityKey, Object, Op, SourceIdentity,
    chain::{ChainHead, Stamp},
    entry,
    key::sha256,
};
use crate::{
    disk::work::WorkFile,
    error::Cause,
    facts::{FactBatch, Facts, FactsError, MemoryFacts},
    ship::{
        Complete, Fetched, Head, Listed, ObjectReader, ObjectStore, OpenUpload, Part, Put,
        ShipError, StoredPart, within,
    },
    units::{Point, Position, Sequence, Timestamp},
};

/// Keys and what stands under them.
pub(super) type Bucket = BTreeMap<String, Bytes>;

pub(super) fn point(sequence: u64, position: u64) -> Point {
    Point { sequence: Sequence(sequence), position: Position(position) }
}

pub(super) fn identity() -> SourceIdentity {
    SourceIdentity { name: "erp".into(), system_identifier: "7301".into(), timeline: 1 }
}

pub(super) fn stamp() -> Stamp {
    Stamp {
        source: identity(),
        release: "lake".into(),
        appliance: "plant7-a".into(),
        at: "2026-11-21T08:30:00.000000Z".into(),
    }
}

/// The bytes that stand under an object's key.
pub(super) fn content(key: &str) -> Bytes {
    Bytes::from(format!("the rows of {key}"))
}

pub(super) fn crc64nvme(bytes: &[u8]) -> String {
    STANDARD.encode(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes).to_be_bytes())
}

fn object(key: String, op: Option<Op>) -> Object {
    let bytes = content(&key);
    Object {
        bytes: bytes.len() as u64,
        sha256: sha256(&bytes),
        crc64nvme: crc64nvme(&bytes),
        rows: op.map(|op| (op, 2)).into_iter().collect(),
        table: "public.t".into(),
        version: 1,
        encryption: Encryption::Client,
        metadata: BTreeMap::new(),
        spool: String::new(),
        sums: vec![],
        key,
    }
}

fn group(id: u64, kind: GroupKind, folder: &str, count: usize, op: Option<Op>) -> Group {
    let keys = (0..count).rev().map(|number| format!("raw/{folder}/{id:08}-{number:04}"));
    let objects = keys.map(|key| object(key, op)).collect();
    Group { id, kind, objects, fates: super::Fates::default(), at: Timestamp(1) }
}

pub(super) fn snapshot(id: u64, count: usize) -> Group {
    let kind = GroupKind::Snapshot {
        table: "public.t".into(),
        table_id: 7,
        chunk: 0,
        position: Position(50),
        completes: false,
    };
    group(id, kind, "erp/public.t/dt=2026-11-21", count, Some(Op::Snapshot))
}

pub(super) fn schema(id: u64) -> Group {
    group(id, GroupKind::Schema, "_schema/erp/public.t", 1, None)
}

/// Transactions in each of [`changes`].
pub(super) const TRANSACTIONS: u64 = 3;

pub(super) fn changes(id: u64, from: Point, to: Point, count: usize) -> Group {
    let committed_at = Timestamp(1_800_000_000_000_000);
    let kind = GroupKind::Changes { from, to, batch: id, committed_at, transactions: TRANSACTIONS };
    group(id, kind, "erp/public.t/dt=2026-11-22", count, Some(Op::Insert))
}

/// `count` groups as a source gives them: schema, snapshot chunks, then epochs.
pub(super) fn groups(count: u64) -> Vec<Group> {
    let at = |id: u64| point(id * 10, 100 + id * 10);
    let make = |id| match id {
        1 => schema(id),
        2 | 3 => snapshot(id, 2),
        _ => changes(id, at(id - 1), at(id), (id % 3) as usize),
    };
    (1..=count).map(make).collect()
}

/// A chain with an entry for every group, and its objects.
pub(super) fn built(groups: &[Group], key: &IdentityKey) -> Bucket {
    let mut bucket = Bucket::new();
    extend(&mut bucket, ChainHead::start(key.public().to_string()), groups, key);
    bucket
}

/// Continues a chain.
pub(super) fn extend(
    bucket: &mut Bucket,
    mut head: ChainHead,
    groups: &[Group],
    key: &IdentityKey,
) -> ChainHead {
    for group in groups {
        bucket
            .extend(group.objects.iter().map(|object| (object.key.clone(), content(&object.key))));
        let (entry, next) = head.next(std::slice::from_ref(group), stamp()).unwrap();
        let signed = entry::sign(&entry, key);
        bucket.insert(entry::key("raw", "erp", entry.entry), signed.object.into());
        head = ChainHead { hash: signed.hash, ..next };
    }
    head
}

/// A temporary folder, in memory if there is one: these tests sync a lot and prove nothing about disks.
pub(super) fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    tempfile::tempdir_in(shm).or_else(|_| tempfile::tempdir()).unwrap()
}

/// What becomes of one request or record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// As it should.
    Good,
    /// Takes effect; the answer is lost.
    Lost,
    /// Takes no effect; no answer.
    Dropped,
    /// Takes effect after the next request; no answer.
    Late,
    /// 503, without effect.
    Busy,
    /// 403, without effect.
    Denied,
    /// 409, without effect.
    Conflict,
    /// A listing of parts from a moment ago, when the upload was still open.
    Stale,
    /// The process dies: before it took effect, or after.
    Crash { effect: bool },
}

/// Decides fates, in the order of requests and records.
pub(super) type Fates = Arc<Mutex<dyn FnMut(&'static str) -> Fate + Send>>;

pub(super) fn fates(decide: impl FnMut(&'static str) -> Fate + Send + 'static) -> Fates {
    Arc::new(Mutex::new(decide))
}

/// An S3 that loses answers. Serves readers too, in pages of 1000.
pub(super) struct Lake {
    inner: Mutex<Inner>,
    fates: Mutex<Fates>,
    /// Cancelled when the process is to die.
    pub(super) crash: Mutex<CancellationToken>,
}

#[derive(Default)]
struct Inner {
    bucket: Bucket,
    uploads: BTreeMap<String, Upload>,
    created: u64,
    late: Vec<(String, String)>,
    log: Vec<(&'static str, String)>,
}

struct Upload {
    key: String,
    part: Option<Bytes>,
    age: Duration,
}

impl Lake {
    pub(super) fn new(bucket: Bucket) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner { bucket, ..Inner::default() }),
            fates: Mutex::new(fates(|_| Fate::Good)),
            crash: Mutex::new(CancellationToken::new()),
        })
    }

    pub(super) fn decide(&self, fates: Fates) {
        *self.fates.lock().unwrap() = fates;
    }

    pub(super) fn bucket(&self) -> Bucket {
        self.inner().bucket.clone()
    }

    pub(super) fn insert(&self, key: &str, bytes: impl Into<Bytes>) {
        self.inner().bucket.insert(key.into(), bytes.into());
    }

    pub(super) fn log(&self) -> Vec<(&'static str, String)> {
        self.inner().log.clone()
    }

    /// Begins an upload that nobody remembers.
    pub(super) fn begin(&self, key: &str, part: Option<Bytes>, age: Duration) {
        let mut inner = self.inner();
        inner.created += 1;
        let id = format!("u{}", inner.created);
        inner.uploads.insert(id, Upload { key: key.into(), part, age });
    }

    /// Open uploads: id, and whether it has a part.
    pub(super) fn open(&self) -> Vec<(String, bool)> {
        let inner = self.inner();
        inner.uploads.iter().map(|(id, upload)| (id.clone(), upload.part.is_some())).collect()
    }

    /// What a lifecycle rule does.
    pub(super) fn expire(&self) {
        self.inner().uploads.clear();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    async fn request<T>(
        &self,
        name: &'static str,
        key: &str,
        effect: impl FnOnce(&mut Inner) -> Result<T, ShipError>,
    ) -> Result<T, ShipError> {
        self.request_or_late(name, key, None, |inner, _| effect(inner)).await
    }

    /// `upload`: which Complete is carried out later if that is its fate.
    async fn request_or_late<T>(
        &self,
        name: &'static str,
        key: &str,
        upload: Option<&str>,
        effect: impl FnOnce(&mut Inner, Fate) -> Result<T, ShipError>,
    ) -> Result<T, ShipError> {
        let fates = self.fates.lock().unwrap().clone();
        let fate = (fates.lock().unwrap())(name);
        let late = std::mem::take(&mut self.inner().late);
        let result = {
            let mut inner = self.inner();
            inner.log.push((name, key.into()));
            match fate {
                Fate::Good | Fate::Stale | Fate::Lost | Fate::Crash { effect: true } => {
                    Some(effect(&mut inner, fate))
                }
                _ => None,
            }
        };
        for (key, upload) in late {
            drop(self.inner().finish(&key, &upload));
        }
        if let (Fate::Late, Some(upload)) = (fate, upload) {
            self.inner().late.push((key.into(), upload.into()));
        }
        let failed = |status, code: &str, cause| ShipError::Failed {
            request: name,
            key: key.into(),
            status,
            code: code.into(),
            message: String::new(),
            cause,
        };
        match (fate, result) {
            (Fate::Good | Fate::Stale, Some(result)) => result,
            (Fate::Crash { .. }, _) => {
                self.crash.lock().unwrap().cancel();
                std::future::pending().await
            }
            (Fate::Busy, _) => Err(failed(503, "ServiceUnavailable", Cause::LakeUnavailable)),
            (Fate::Denied, _) => Err(failed(403, "AccessDenied", Cause::LakeForbidden)),
            (Fate::Conflict, _) => Err(ShipError::Conflict { key: key.into() }),
            _ => Err(ShipError::Unanswered { request: name, key: key.into(), why: "lost".into() }),
        }
    }
}

impl Inner {
    fn finish(&mut self, key: &str, id: &str) -> Result<(), ShipError> {
        let there = self.uploads.get(id).is_some_and(|upload| upload.key == key);
        let taken = self.bucket.contains_key(key);
        // With both true S3 may say either: here it takes turns.
        if !there && (!taken || self.created.is_multiple_of(2)) {
            return Err(ShipError::NoSuchUpload { key: key.into() });
        }
        if taken {
            return Err(ShipError::Exists { key: key.into() });
        }
        let upload = self.uploads.remove(id).unwrap();
        self.bucket.insert(key.into(), upload.part.expect("completed without a part"));
        Ok(())
    }
}

impl ObjectStore for Lake {
    fn put<'a>(&'a self, put: Put<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        panic!("the ledger does not put {}", put.head.key)
    }

    fn create<'a>(&'a self, head: Head<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        Box::pin(self.request("create", head.key, move |inner| {
            inner.created += 1;
            let id = format!("u{}", inner.created);
            let upload = Upload { key: head.key.into(), part: None, age: Duration::MAX };
            inner.uploads.insert(id.clone(), upload);
            Ok(id)
        }))
    }

    fn part<'a>(&'a self, part: Part<'a>) -> BoxFuture<'a, Result<String, ShipError>> {
        let Part { key, upload, body, crc64nvme: sum, .. } = part;
        Box::pin(async move {
            let body = body.whole().await?;
            assert_eq!(sum, crc64nvme(&body));
            let effect = move |inner: &mut Inner| {
                let known = inner.uploads.get_mut(upload);
                let upload = known.ok_or(ShipError::NoSuchUpload { key: key.into() })?;
                upload.part = Some(body);
                Ok("etag".into())
            };
            self.request("part", key, effect).await
        })
    }

    fn complete<'a>(&'a self, complete: Complete<'a>) -> BoxFuture<'a, Result<(), ShipError>> {
        let (key, upload) = (complete.key, complete.upload);
        Box::pin(self.request_or_late("complete", key, Some(upload), move |inner, _| {
            if let Some(known) = inner.uploads.get(upload) {
                let part = known.part.as_ref().expect("completed without a part");
                assert_eq!(complete.bytes, part.len() as u64);
                assert_eq!(complete.crc64nvme, crc64nvme(part));
            }
            inner.finish(key, upload)
        }))
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> BoxFuture<'a, Result<(), ShipError>> {
        Box::pin(self.request("abort", key, move |inner| {
            inner.uploads.remove(upload);
            Ok(())
        }))
    }

    fn parts<'a>(
        &'a self,
        key: &'a str,
        upload: &'a str,
    ) -> BoxFuture<'a, Result<Option<Vec<StoredPart>>, ShipError>> {
        Box::pin(self.request_or_late("parts", key, None, move |inner, fate| {
            if fate == Fate::Stale {
                return Ok(Some(vec![]));
            }
            Ok(inner.uploads.get(upload).map(|upload| {
                let stored = |body: &Bytes| StoredPart {
                    number: 1,
                    bytes: body.len() as u64,
                    etag: "etag".into(),
                    crc64nvme: crc64nvme(body),
                };
                upload.part.iter().map(stored).collect()
            }))
        }))
    }

    fn uploads<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<OpenUpload>, ShipError>> {
        Box::pin(self.request("uploads", prefix, move |inner| {
            let all = inner.uploads.iter().filter(|(_, upload)| upload.key.starts_with(prefix));
            let open = all.map(|(id, upload)| OpenUpload {
                key: upload.key.clone(),
                upload: id.clone(),
                age: Some(upload.age),
            });
            Ok(open.collect())
        }))
    }
}

impl ObjectReader for Lake {
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Listed>, ShipError>> {
        Box::pin(self.request("list", prefix, move |inner| {
            let under = inner.bucket.range(prefix.to_owned()..);
            let under = under.take_while(|(key, _)| key.starts_with(prefix));
            let rest = under.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after));
            let listed = |(key, bytes): (&String, &Bytes)| Listed {
                key: key.clone(),
                bytes: bytes.len() as u64,
            };
            Ok(rest.take(1000).map(listed).collect())
        }))
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Fetched>, ShipError>> {
        Box::pin(self.request("get", key, move |inner| {
            let found = inner.bucket.get(key).cloned();
            Ok(found.map(|bytes| Fetched { bytes, metadata: BTreeMap::new() }))
        }))
    }

    fn fetch<'a>(
        &'a self,
        key: &'a str,
        into: &'a WorkFile,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, ShipError>> {
        Box::pin(self.request("fetch", key, move |inner| {
            let Some(bytes) = inner.bucket.get(key) else { return Ok(None) };
            within(key, bytes.len() as u64, bytes_max)?;
            into.fill(bytes).unwrap();
            Ok(Some(BTreeMap::new()))
        }))
    }
}

/// Facts whose records share the fates of a lake's requests.
pub(super) struct CrashFacts {
    pub(super) memory: Arc<MemoryFacts>,
    pub(super) lake: Arc<Lake>,
}

impl Facts for CrashFacts {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.memory.get(key)
    }

    fn scan(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        self.memory.scan(prefix)
    }

    fn record(&self, batch: FactBatch) -> BoxFuture<'static, Result<(), FactsError>> {
        let fates = self.lake.fates.lock().unwrap().clone();
        let fate = (fates.lock().unwrap())("record");
        let (memory, crash) = (self.memory.clone(), self.lake.crash.lock().unwrap().clone());
        Box::pin(async move {
            match fate {
                Fate::Crash { effect } => {
                    if effect {
                        memory.record(batch).await?;
                    }
                    crash.cancel();
                    std::future::pending().await
                }
                _ => memory.record(batch).await,
            }
        })
    }

    fn record_blocking(&self, batch: FactBatch) -> Result<(), FactsError> {
        self.memory.record_blocking(batch)
    }
}
