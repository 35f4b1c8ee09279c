//! What every [`ObjectStore`] and [`ObjectReader`] must do: one suite, run against `memory.rs` and,
//! through `s3.rs`, against the double, and by `make conformance` against stores of others.
#![allow(clippy::unwrap_used, reason = "a suite of tests, which end by panicking")]

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};

use super::{
    Complete, Encryption, Fetched, Head, ObjectReader, ObjectStore, Part, Put, ShipError,
    StoredPart, checksum,
};
use crate::{
    disk::work::WorkFile,
    error::{Cause, Classified},
};

/// The least length of a part that is not the last.
const PART_BYTES: usize = 5 << 20;

/// One thing that a store must do.
pub struct Check {
    /// What it must do, as a sentence.
    pub name: &'static str,
    run: for<'a> fn(&'a Bucket<'a>) -> BoxFuture<'a, ()>,
}

macro_rules! checks {
    ($($name:ident)*) => {
        [$(Check { name: stringify!($name), run: |bucket| Box::pin(bucket.$name()) }),*]
    };
}

/// The suite. They do not depend on each other.
pub const CHECKS: [Check; 12] = checks! {
    a_key_is_written_once
    a_wrong_checksum_stores_nothing
    of_racing_writers_one_wins
    parts_make_an_object_only_when_completed
    a_part_too_small_is_refused
    a_wrong_length_is_refused
    a_wrong_sum_is_refused
    a_part_that_was_not_stored_is_refused
    a_complete_never_overwrites
    a_part_of_an_aborted_upload_is_refused
    a_complete_of_an_aborted_upload_is_refused
    listings_are_in_order_and_go_on_after_a_key
};

/// A bucket as one check sees it.
pub struct Bucket<'a> {
    store: &'a dyn ObjectStore,
    reader: &'a dyn ObjectReader,
    prefix: &'a str,
    scratch: &'a Path,
    metadata: BTreeMap<String, String>,
}

impl Check {
    /// Panics unless the store does it. Writes keys under `prefix` that no other check writes, and files
    /// into the folder `scratch`.
    pub async fn run(
        &self,
        store: &dyn ObjectStore,
        reader: &dyn ObjectReader,
        prefix: &str,
        scratch: &Path,
    ) {
        (self.run)(&Bucket { store, reader, prefix, scratch, metadata: metadata() }).await;
    }
}

/// The whole suite.
#[cfg(test)]
pub(crate) async fn behaves(store: &dyn ObjectStore, reader: &dyn ObjectReader, prefix: &str) {
    let scratch = tempfile::tempdir().unwrap();
    for check in &CHECKS {
        check.run(store, reader, prefix, scratch.path()).await;
    }
}

fn metadata() -> BTreeMap<String, String> {
    [("x-amz-key-v2", "a+b/c=="), ("rows", "7")].map(|(k, v)| (k.into(), v.into())).into()
}

fn failed(error: &ShipError, cause: Cause) -> bool {
    matches!(error, ShipError::Failed { .. }) && error.cause() == cause
}

impl Bucket<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/erp/public.order%20s/dt=2026-11-21/{name}", self.prefix)
    }

    fn head<'a>(&'a self, key: &'a str) -> Head<'a> {
        let content_type = "application/vnd.apache.parquet";
        Head { key, metadata: &self.metadata, encryption: &Encryption::None, content_type }
    }

    async fn put(&self, key: &str, body: &'static [u8]) -> Result<(), ShipError> {
        let crc64nvme = &checksum::of(body);
        self.store
            .put(Put { head: self.head(key), body: Bytes::from_static(body).into(), crc64nvme })
            .await
    }

    async fn part(&self, key: &str, upload: &str, number: u32, body: &Bytes) -> StoredPart {
        let crc64nvme = checksum::of(body);
        let part = Part { key, upload, number, body: body.clone().into(), crc64nvme: &crc64nvme };
        let etag = self.store.part(part).await.unwrap();
        StoredPart { number, bytes: body.len() as u64, etag, crc64nvme }
    }

    async fn read(&self, key: &str) -> Option<Fetched> {
        self.reader.get(key).await.unwrap()
    }

    /// An upload with parts of these lengths, numbered from 1.
    async fn upload_of(&self, name: &str, lengths: &[usize]) -> Sums<'_> {
        let key = self.key(name);
        let id = self.store.create(self.head(&key)).await.unwrap();
        let mut parts = vec![];
        for (length, number) in lengths.iter().zip(1..) {
            parts.push(self.part(&key, &id, number, &vec![b'x'; *length].into()).await);
        }
        Sums { bucket: self, key, id, parts }
    }

    async fn a_key_is_written_once(&self) {
        let key = self.key("once=1");
        assert_eq!(self.read(&key).await, None);
        self.put(&key, b"first").await.unwrap();
        for again in [&b"first"[..], b"second"] {
            assert!(matches!(self.put(&key, again).await, Err(ShipError::Exists { .. })));
        }
        let read = self.read(&key).await.unwrap();
        assert_eq!((&read.bytes[..], &read.metadata), (&b"first"[..], &self.metadata));
        let file = WorkFile::create(&self.scratch.join("fetched")).unwrap();
        for bytes_max in [5, u64::MAX] {
            file.fill(b"what was there before").unwrap();
            let fetched = self.reader.fetch(&key, &file, bytes_max).await.unwrap();
            assert_eq!(fetched.as_ref(), Some(&self.metadata));
            assert_eq!(std::io::read_to_string(file.rewound().unwrap()).unwrap(), "first");
        }
        let longer = self.reader.fetch(&key, &file, 4).await;
        assert!(matches!(longer, Err(ShipError::TooLong { bytes_max: 4, .. })), "{longer:?}");
        assert_eq!(self.reader.fetch("nothing", &file, 5).await.unwrap(), None);
        self.put(&self.key("empty"), b"").await.unwrap();
        assert_eq!(self.read(&self.key("empty")).await.unwrap().bytes.len(), 0);
    }

    async fn a_wrong_checksum_stores_nothing(&self) {
        let key = self.key("wrong");
        let crc64nvme = &checksum::of(b"other");
        let put =
            Put { head: self.head(&key), body: Bytes::from_static(b"bytes").into(), crc64nvme };
        assert!(failed(&self.store.put(put).await.unwrap_err(), Cause::LakeChecksum));
        assert_eq!(self.read(&key).await, None);
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        let body = Bytes::from_static(b"bytes").into();
        let part = Part { key: &key, upload, number: 1, body, crc64nvme };
        assert!(failed(&self.store.part(part).await.unwrap_err(), Cause::LakeChecksum));
        assert_eq!(self.store.parts(&key, upload).await.unwrap(), Some(vec![]));
        self.store.abort(&key, upload).await.unwrap();
    }

    async fn of_racing_writers_one_wins(&self) {
        let key = self.key("race");
        let racers: [&'static [u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"f"];
        let ends = join_all(racers.map(|body| self.put(&key, body))).await;
        let winners: Vec<_> = ends.iter().zip(racers).filter(|(end, _)| end.is_ok()).collect();
        assert_eq!(winners.len(), 1, "{ends:?}");
        assert_eq!(self.read(&key).await.unwrap().bytes, winners[0].1);
        let refused = |end: &&Result<(), ShipError>| {
            matches!(end, Err(ShipError::Exists { .. } | ShipError::Conflict { .. }))
        };
        assert_eq!(ends.iter().filter(refused).count(), 5);
    }

    async fn parts_make_an_object_only_when_completed(&self) {
        let key = self.key("parts");
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        let first = Bytes::from(vec![b'x'; 1 + PART_BYTES]);
        let last = Bytes::from_static(b"the end");
        let two = self.part(&key, upload, 2, &last).await;
        self.part(&key, upload, 1, &Bytes::from_static(b"soon overwritten")).await;
        let one = self.part(&key, upload, 1, &first).await;
        assert_eq!(self.read(&key).await, None);
        let open = self.store.uploads(&self.key("part")).await.unwrap();
        assert!(open.len() == 1 && open[0].key == key && open[0].upload == *upload, "{open:?}");
        assert_eq!(self.store.uploads(&self.key("parts/")).await.unwrap(), []);
        let parts = vec![one, two];
        assert_eq!(self.store.parts(&key, upload).await.unwrap().as_ref(), Some(&parts));
        let (bytes, sum) = (first.len() + last.len(), &checksum::whole(&parts).unwrap());
        let complete =
            Complete { key: &key, upload, parts: &parts, bytes: bytes as u64, crc64nvme: sum };
        self.store.complete(complete).await.unwrap();
        let read = self.read(&key).await.unwrap();
        assert_eq!(read.bytes, [&first[..], &last[..]].concat());
        assert_eq!(read.metadata, self.metadata);
        assert_eq!(self.store.parts(&key, upload).await.unwrap(), None);
        assert_eq!(self.store.uploads(&key).await.unwrap(), []);
    }

    async fn a_part_too_small_is_refused(&self) {
        let sums = self.upload_of("small", &[PART_BYTES, 5, 4]).await;
        let small = sums.complete(&sums.parts, 0, None).await.unwrap_err();
        assert!(failed(&small, Cause::LakeRefused), "{small}");
        sums.assert_open().await;
    }

    async fn a_wrong_length_is_refused(&self) {
        let sums = self.upload_of("length", &[PART_BYTES, 4]).await;
        let length = sums.complete(&sums.parts, 1, None).await.unwrap_err();
        assert!(failed(&length, Cause::LakeRefused), "{length}");
        sums.assert_open().await;
    }

    async fn a_wrong_sum_is_refused(&self) {
        let sums = self.upload_of("sum", &[PART_BYTES, 4]).await;
        let sum = sums.complete(&sums.parts, 0, Some("AAAAAAAAAAA=")).await.unwrap_err();
        assert!(failed(&sum, Cause::LakeChecksum), "{sum}");
        sums.assert_open().await;
    }

    async fn a_part_that_was_not_stored_is_refused(&self) {
        let sums = self.upload_of("never", &[PART_BYTES, 4]).await;
        let (one, two) = (sums.parts[0].clone(), sums.parts[1].clone());
        let other = StoredPart { etag: format!("\"{}\"", "0".repeat(32)), ..two.clone() };
        let missing = StoredPart { number: 4, ..two };
        for wrong in [other, missing] {
            let end = sums.complete(&[one.clone(), wrong], 0, None).await.unwrap_err();
            assert!(matches!(end, ShipError::Conflict { .. }), "{end}");
        }
        sums.assert_open().await;
    }

    async fn a_complete_never_overwrites(&self) {
        let key = self.key("first");
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        let parts = [self.part(&key, upload, 1, &Bytes::from_static(b"late")).await];
        self.put(&key, b"first").await.unwrap();
        let complete =
            Complete { key: &key, upload, parts: &parts, bytes: 4, crc64nvme: &parts[0].crc64nvme };
        let end = self.store.complete(complete).await;
        assert!(matches!(end, Err(ShipError::Exists { .. })), "{end:?}");
        assert_eq!(&self.read(&key).await.unwrap().bytes[..], b"first");
        self.store.abort(&key, upload).await.unwrap();
    }

    async fn a_part_of_an_aborted_upload_is_refused(&self) {
        let upload = self.upload_of("gone", &[4]).await;
        upload.abort().await;
        let (key, id) = (&upload.key, &upload.id);
        let (body, sum) = (Bytes::from_static(b"x").into(), &checksum::of(b"x"));
        let part = Part { key, upload: id, number: 1, body, crc64nvme: sum };
        let end = self.store.part(part).await;
        assert!(matches!(end, Err(ShipError::NoSuchUpload { .. })), "{end:?}");
    }

    async fn a_complete_of_an_aborted_upload_is_refused(&self) {
        let upload = self.upload_of("left", &[4]).await;
        upload.abort().await;
        let end = upload.complete(&upload.parts, 0, None).await;
        assert!(matches!(end, Err(ShipError::NoSuchUpload { .. })), "{end:?}");
        assert_eq!(self.read(&upload.key).await, None);
    }

    async fn listings_are_in_order_and_go_on_after_a_key(&self) {
        let names = ["list/a", "list/a-b", "list/a/b", "list/b", "listen"];
        for name in names {
            self.put(&self.key(name), b"12345").await.unwrap();
        }
        let list = async |after: Option<&str>| {
            let prefix = self.key("list/");
            let page = self.reader.list(&prefix, after).await.unwrap();
            assert!(page.iter().all(|listed| listed.bytes == 5));
            page.into_iter().map(|listed| listed.key).collect::<Vec<_>>()
        };
        let expected: Vec<_> = names[..4].iter().map(|name| self.key(name)).collect();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(list(None).await, sorted);
        assert_eq!(list(Some(&sorted[1])).await, sorted[2..]);
        assert_eq!(list(Some(&self.key("list/z"))).await, Vec::<String>::new());
    }
}

/// An upload whose parts are there.
struct Sums<'a> {
    bucket: &'a Bucket<'a>,
    key: String,
    id: String,
    parts: Vec<StoredPart>,
}

impl Sums<'_> {
    /// Completes it with these parts, `more` bytes than they have, and another sum than theirs.
    async fn complete(
        &self,
        parts: &[StoredPart],
        more: u64,
        sum: Option<&str>,
    ) -> Result<(), ShipError> {
        let bytes = parts.iter().map(|part| part.bytes).sum::<u64>() + more;
        let right = checksum::whole(parts).unwrap();
        let (key, upload, crc64nvme) = (&self.key, &self.id, sum.unwrap_or(&right));
        self.bucket.store.complete(Complete { key, upload, parts, bytes, crc64nvme }).await
    }

    async fn abort(&self) {
        self.bucket.store.abort(&self.key, &self.id).await.unwrap();
    }

    /// What was refused has changed nothing; aborts it, twice.
    async fn assert_open(&self) {
        assert_eq!(self.bucket.read(&self.key).await, None);
        let held = self.bucket.store.parts(&self.key, &self.id).await.unwrap();
        assert_eq!(held.as_ref(), Some(&self.parts));
        self.abort().await;
        self.abort().await;
        assert_eq!(self.bucket.store.parts(&self.key, &self.id).await.unwrap(), None);
    }
}
