//! Requests one by one: what is stored, what is listed, what is broken off.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use lakehead::{
    error::{Cause, Classified},
    ship::{
        Complete, Encryption, Head, ObjectReader, ObjectStore, Part, Put, ShipError, StoredPart,
        checksum, s3::S3,
    },
};

use crate::{
    store::{Ground, PREFIX},
    table::{Check, checks},
};

pub(crate) fn all() -> Vec<Check> {
    checks! {
        sse_kms_objects_come_back_and_lie_under_the_key,
        the_sum_of_the_whole_object_is_stored,
        listings_go_on_after_a_page,
        parts_go_on_after_a_page,
        uploads_go_on_after_a_page,
        a_request_that_is_broken_off_harms_nothing,
    }
}

async fn sse_kms_objects_come_back_and_lie_under_the_key(ground: &Ground) {
    let (writer, reader) = (ground.s3(&ground.people.writer), ground.s3(&ground.people.reader));
    let encryption = Encryption::SseKms { key_id: ground.kms.clone() };
    let whole = key("kms/put");
    let body = Bytes::from_static(b"under a key");
    put_as(&writer, &whole, &body, &encryption).await.unwrap();
    let parts = key("kms/parts");
    let halves = [Bytes::from(vec![b'x'; PART_BYTES]), Bytes::from_static(b"the end")];
    upload(&writer, &parts, &halves, &encryption).await.unwrap();
    for (key, body) in [(&whole, body.to_vec()), (&parts, halves.concat())] {
        let read = reader.get(key).await.unwrap().unwrap();
        assert!(read.bytes == body, "{key} differs");
        let head = ground.client(&ground.owner, &["head", key]).await;
        assert_eq!(head["encryption"], "aws:kms", "{head}");
        assert_eq!(head["kms"], ground.kms.as_str(), "{head}");
    }
}

/// As AWS's own client reads it: what `verify` of others may rely on.
async fn the_sum_of_the_whole_object_is_stored(ground: &Ground) {
    let writer = ground.s3(&ground.people.writer);
    let whole = key("sum/put");
    put(&writer, &whole, b"summed").await.unwrap();
    let parts = key("sum/parts");
    let halves = [Bytes::from(vec![b'x'; PART_BYTES]), Bytes::from_static(b"the end")];
    upload(&writer, &parts, &halves, &Encryption::None).await.unwrap();
    for (key, body) in [(&whole, b"summed".to_vec()), (&parts, halves.concat())] {
        let head = ground.client(&ground.owner, &["head", key]).await;
        assert_eq!(head["crc64nvme"], checksum::of(&body).as_str(), "{head}");
        assert_eq!(head["checksum_type"], "FULL_OBJECT", "{head}");
        assert_eq!(head["bytes"], body.len(), "{head}");
    }
}

async fn listings_go_on_after_a_page(ground: &Ground) {
    let (writer, reader) = (ground.s3(&ground.people.writer), ground.s3(&ground.people.reader));
    let keys: Vec<String> = (0..MORE).map(|number| key(&format!("pages/{number:05}"))).collect();
    let puts = keys.iter().map(|key| put(&writer, key, b"12345"));
    let ends: Vec<_> = stream::iter(puts).buffer_unordered(AT_ONCE).collect().await;
    assert!(ends.iter().all(Result::is_ok));
    let (mut found, mut pages) = (vec![], 0);
    loop {
        let after = found.last().cloned();
        let page = reader.list(&key("pages/"), after.as_deref()).await.unwrap();
        if page.is_empty() {
            break;
        }
        pages += 1;
        found.extend(page.into_iter().map(|listed| listed.key));
    }
    assert!(found == keys && pages > 1, "{} keys in {pages} pages", found.len());
}

async fn parts_go_on_after_a_page(ground: &Ground) {
    let (writer, key) = (ground.s3(&ground.people.writer), key("many-parts"));
    let upload = writer.create(head(&key, &Encryption::None)).await.unwrap();
    let numbers = 1..=u32::try_from(MORE).unwrap();
    let parts =
        numbers.map(|number| part(&writer, &key, &upload, number, Bytes::from_static(b"p")));
    let mut sent: Vec<_> = stream::iter(parts).buffer_unordered(AT_ONCE).collect().await;
    sent.sort_by_key(|part| part.number);
    let held = writer.parts(&key, &upload).await.unwrap().unwrap();
    assert!(held == sent, "{} parts of {}", held.len(), sent.len());
    writer.abort(&key, &upload).await.unwrap();
}

async fn uploads_go_on_after_a_page(ground: &Ground) {
    let writer = ground.s3(&ground.people.writer);
    // Some of one key, which have their own marker.
    let keys = (0..MORE).map(|number| key(&format!("many/{:05}", number / 3)));
    let begin = keys.map(|key| {
        let writer = &writer;
        async move { (writer.create(head(&key, &Encryption::None)).await.unwrap(), key) }
    });
    let mut begun: Vec<_> = stream::iter(begin).buffer_unordered(AT_ONCE).collect().await;
    let open = writer.uploads(&key("many/")).await.unwrap();
    let mut open: Vec<_> = open.into_iter().map(|open| (open.upload, open.key)).collect();
    begun.sort();
    open.sort();
    let ends = begun.iter().map(|(upload, key)| writer.abort(key, upload));
    let ends: Vec<_> = stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
    assert!(open == begun, "{} uploads of {}", open.len(), begun.len());
    assert!(ends.iter().all(Result::is_ok));
    assert_eq!(writer.uploads(&key("many/")).await.unwrap(), []);
}

async fn a_request_that_is_broken_off_harms_nothing(ground: &Ground) {
    let (writer, reader) = (ground.s3(&ground.people.writer), ground.s3(&ground.people.reader));
    let body = Bytes::from(vec![b'x'; 48 << 20]);
    let sum = checksum::of(&body);
    for millis in [1, 20, 40] {
        let key = key(&format!("broken-{millis}"));
        let send = || {
            let head = head(&key, &Encryption::None);
            writer.put(Put { head, body: body.clone().into(), crc64nvme: &sum })
        };
        let cut = tokio::time::timeout(Duration::from_millis(millis), send()).await;
        assert!(cut.is_err(), "it was to take longer: {cut:?}");
        if let Some(read) = reader.get(&key).await.unwrap_or_default() {
            assert!(read.bytes == body, "{key} is there in part");
        }
        match send().await {
            Ok(()) | Err(ShipError::Exists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let head = ground.client(&ground.owner, &["head", &key]).await;
        assert_eq!((&head["bytes"], &head["crc64nvme"]), (&body.len().into(), &sum.clone().into()));
    }
}

pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// An answer that is an error with this cause.
pub(crate) fn says<T: std::fmt::Debug>(end: Result<T, ShipError>, cause: Cause, what: &str) {
    match end {
        Err(error) if error.cause() == cause => {}
        end => panic!("{what}: {cause:?} was due, not {end:?}"),
    }
}

pub(crate) fn head<'a>(key: &'a str, encryption: &'a Encryption) -> Head<'a> {
    const NONE: &BTreeMap<String, String> = &BTreeMap::new();
    Head { key, metadata: NONE, encryption, content_type: "application/octet-stream" }
}

pub(crate) async fn put(s3: &S3, key: &str, body: &'static [u8]) -> Result<(), ShipError> {
    put_as(s3, key, &Bytes::from_static(body), &Encryption::None).await
}

pub(crate) async fn put_as(
    s3: &S3,
    key: &str,
    body: &Bytes,
    encryption: &Encryption,
) -> Result<(), ShipError> {
    let crc64nvme = &checksum::of(body);
    s3.put(Put { head: head(key, encryption), body: body.clone().into(), crc64nvme }).await
}

pub(crate) async fn part(s3: &S3, key: &str, upload: &str, number: u32, body: Bytes) -> StoredPart {
    let (bytes, crc64nvme) = (body.len() as u64, checksum::of(&body));
    let etag = s3
        .part(Part { key, upload, number, body: body.into(), crc64nvme: &crc64nvme })
        .await
        .unwrap();
    StoredPart { number, bytes, etag, crc64nvme }
}

async fn upload(
    s3: &S3,
    key: &str,
    bodies: &[Bytes],
    encryption: &Encryption,
) -> Result<(), ShipError> {
    let upload = &s3.create(head(key, encryption)).await?;
    let mut parts = vec![];
    for (body, number) in bodies.iter().zip(1..) {
        parts.push(part(s3, key, upload, number, body.clone()).await);
    }
    let bytes = parts.iter().map(|part| part.bytes).sum();
    let crc64nvme = &checksum::whole(&parts).unwrap();
    s3.complete(Complete { key, upload, parts: &parts, bytes, crc64nvme }).await
}

const PART_BYTES: usize = 5 << 20;
/// More than a page of a listing.
const MORE: usize = 1_003;
const AT_ONCE: usize = 16;
