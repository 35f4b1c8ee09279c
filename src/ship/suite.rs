//! What every [`ObjectStore`] and [`ObjectReader`] must do: one suite, run against `memory.rs` and,
//! through `s3.rs`, against the double.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{
    Complete, Encryption, Fetched, Head, ObjectReader, ObjectStore, Part, Put, ShipError,
    StoredPart, checksum,
};
use crate::error::{Cause, Classified};

/// The least length of a part that is not the last.
const PART_BYTES: usize = 5 << 20;

/// The whole suite, on keys under `prefix`.
pub(crate) async fn behaves(store: &dyn ObjectStore, reader: &dyn ObjectReader, prefix: &str) {
    let bucket = Bucket { store, reader, prefix, metadata: metadata() };
    bucket.a_key_is_written_once().await;
    bucket.a_wrong_checksum_stores_nothing().await;
    bucket.of_racing_writers_one_wins().await;
    bucket.parts_make_an_object_only_when_completed().await;
    bucket.a_complete_that_does_not_add_up_is_refused().await;
    bucket.a_complete_never_overwrites().await;
    bucket.an_unknown_upload_is_said_to_be_none().await;
    bucket.listings_are_in_order_and_go_on_after_a_key().await;
}

struct Bucket<'a> {
    store: &'a dyn ObjectStore,
    reader: &'a dyn ObjectReader,
    prefix: &'a str,
    metadata: BTreeMap<String, String>,
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
        self.store.put(Put { head: self.head(key), body: body.into(), crc64nvme }).await
    }

    async fn part(&self, key: &str, upload: &str, number: u32, body: &Bytes) -> StoredPart {
        let crc64nvme = checksum::of(body);
        let part = Part { key, upload, number, body: body.clone(), crc64nvme: &crc64nvme };
        let etag = self.store.part(part).await.unwrap();
        StoredPart { number, bytes: body.len() as u64, etag, crc64nvme }
    }

    async fn read(&self, key: &str) -> Option<Fetched> {
        self.reader.get(key).await.unwrap()
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
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fetched");
        let fetched = self.reader.fetch(&key, &file).await.unwrap();
        assert_eq!(fetched.as_ref(), Some(&self.metadata));
        assert_eq!(std::fs::read(&file).unwrap(), b"first");
        assert_eq!(self.reader.fetch("nothing", &file).await.unwrap(), None);
        self.put(&self.key("empty"), b"").await.unwrap();
        assert_eq!(self.read(&self.key("empty")).await.unwrap().bytes.len(), 0);
    }

    async fn a_wrong_checksum_stores_nothing(&self) {
        let key = self.key("wrong");
        let crc64nvme = &checksum::of(b"other");
        let put = Put { head: self.head(&key), body: Bytes::from_static(b"bytes"), crc64nvme };
        assert!(failed(&self.store.put(put).await.unwrap_err(), Cause::LakeChecksum));
        assert_eq!(self.read(&key).await, None);
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        let body = Bytes::from_static(b"bytes");
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

    async fn a_complete_that_does_not_add_up_is_refused(&self) {
        let key = self.key("sums");
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        let big = Bytes::from(vec![b'x'; PART_BYTES]);
        let one = self.part(&key, upload, 1, &big).await;
        let two = self.part(&key, upload, 2, &Bytes::from_static(b"small")).await;
        let three = self.part(&key, upload, 3, &Bytes::from_static(b"last")).await;
        let try_parts = async |parts: Vec<StoredPart>, more: u64, sum: Option<&str>| {
            let bytes = parts.iter().map(|part| part.bytes).sum::<u64>() + more;
            let right = checksum::whole(&parts).unwrap();
            let crc64nvme = sum.unwrap_or(&right);
            let complete = Complete { key: &key, upload, parts: &parts, bytes, crc64nvme };
            self.store.complete(complete).await.unwrap_err()
        };
        let small = try_parts(vec![one.clone(), two.clone(), three.clone()], 0, None).await;
        assert!(failed(&small, Cause::LakeRefused), "{small}");
        let length = try_parts(vec![one.clone(), three.clone()], 1, None).await;
        assert!(failed(&length, Cause::LakeRefused), "{length}");
        let sum = try_parts(vec![one.clone(), three.clone()], 0, Some("AAAAAAAAAAA=")).await;
        assert!(failed(&sum, Cause::LakeChecksum), "{sum}");
        let etag = StoredPart { etag: "\"0123\"".into(), ..three.clone() };
        let etag = try_parts(vec![one.clone(), etag], 0, None).await;
        assert!(matches!(etag, ShipError::Conflict { .. }), "{etag}");
        let missing = StoredPart { number: 4, ..three.clone() };
        let missing = try_parts(vec![one.clone(), missing], 0, None).await;
        assert!(matches!(missing, ShipError::Conflict { .. }), "{missing}");
        assert_eq!(self.read(&key).await, None);
        assert_eq!(self.store.parts(&key, upload).await.unwrap().unwrap().len(), 3);
        self.store.abort(&key, upload).await.unwrap();
        self.store.abort(&key, upload).await.unwrap();
        assert_eq!(self.store.parts(&key, upload).await.unwrap(), None);
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

    async fn an_unknown_upload_is_said_to_be_none(&self) {
        let key = self.key("gone");
        let upload = &self.store.create(self.head(&key)).await.unwrap();
        self.store.abort(&key, upload).await.unwrap();
        let (body, sum) = (Bytes::from_static(b"x"), &checksum::of(b"x"));
        let part = Part { key: &key, upload, number: 1, body, crc64nvme: sum };
        let end = self.store.part(part).await;
        assert!(matches!(end, Err(ShipError::NoSuchUpload { .. })), "{end:?}");
        let (etag, crc64nvme) = ("\"1\"".into(), sum.clone());
        let parts = [StoredPart { number: 1, bytes: 1, etag, crc64nvme }];
        let complete = Complete { key: &key, upload, parts: &parts, bytes: 1, crc64nvme: sum };
        let end = self.store.complete(complete).await;
        assert!(matches!(end, Err(ShipError::NoSuchUpload { .. })), "{end:?}");
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
