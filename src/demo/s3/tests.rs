//! The double against our own client, over HTTP and TLS; and what only raw requests can show.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    clock::SystemClock,
    config,
    error::{Cause, Classified, Finding},
    facts::{FactBatch, Facts, MemoryFacts},
    link::Dialer,
    ship::{
        Complete, Encryption, Fates, GET_BYTES_MAX, Group, GroupKind, Head, ObjectReader,
        ObjectStore, Part, Put, ReadSpool, ShipError, StoredPart,
        check::check,
        checksum,
        credentials::{Credentials, Keys},
        drive::{Shipper, forget},
        s3::{S3, S3Options},
        suite,
    },
    telemetry::board::SourceBoard,
    units::Timestamp,
};

const BUCKET: &str = "acme-raw";

struct House {
    double: S3Double,
    dir: TempDir,
}

fn keys() -> Vec<Key> {
    vec![
        Key::new("AKWRITER", "writer-secret", Role::Writer),
        Key::new("AKREADER", "reader-secret", Role::Reader),
        Key::new("AKADMIN", "admin-secret", Role::Admin),
    ]
}

fn credentials(access: &str, secret: &str) -> Credentials {
    Credentials::Keys(Keys {
        access_key_id: access.into(),
        secret_access_key: config::Secret::new(secret.into()),
        session_token: None,
    })
}

async fn start(root: &Path, tls: bool) -> S3Double {
    let options = DoubleOptions {
        root: root.into(),
        keys: keys(),
        region: "eu-central-1".into(),
        buckets: vec![BUCKET.into()],
        tls,
        address: ([127, 0, 0, 1], 0).into(),
    };
    S3Double::start(options).await.unwrap()
}

impl House {
    async fn new(tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { double: start(&dir.path().join("double"), tls).await, dir }
    }

    fn options(&self) -> S3Options {
        let ca = self.double.ca_pem().map(|pem| {
            let path = self.dir.path().join("ca.pem");
            fs::write(&path, pem).unwrap();
            path
        });
        S3Options {
            bucket: BUCKET.into(),
            region: "eu-central-1".into(),
            endpoint: Some(self.double.endpoint().into()),
            path_style: true,
            ca_file: ca,
            owner: None,
            encryption: Encryption::None,
            appliance: "plant7-a".into(),
            clock: Arc::new(SystemClock),
            patience: Duration::from_secs(5),
        }
    }

    fn s3(&self, access: &str) -> S3 {
        let key = keys().into_iter().find(|key| key.access == access).unwrap();
        S3::new(self.options(), credentials(access, &key.secret), Dialer::new(None)).unwrap()
    }

    fn lake(&self) -> config::Lake {
        config::Lake {
            bucket: BUCKET.into(),
            prefix: "raw".into(),
            region: "eu-central-1".into(),
            endpoint: Some(self.double.endpoint().into()),
            path_style: true,
            owner: None,
            credentials_file: None,
            ca_file: None,
        }
    }
}

const NONE: &BTreeMap<String, String> = &BTreeMap::new();

fn head<'a>(key: &'a str, encryption: &'a Encryption) -> Head<'a> {
    Head { key, metadata: NONE, encryption, content_type: "text/plain" }
}

async fn put(s3: &S3, key: &str, body: &[u8]) -> Result<(), ShipError> {
    let crc64nvme = &checksum::of(body);
    let body = Bytes::copy_from_slice(body).into();
    s3.put(Put { head: head(key, &Encryption::None), body, crc64nvme }).await
}

#[tokio::test]
async fn our_client_and_the_double_behave_over_http() {
    let house = House::new(false).await;
    suite::behaves(&house.s3("AKADMIN"), &house.s3("AKREADER"), "raw").await;
}

#[tokio::test]
async fn our_client_and_the_double_behave_over_tls() {
    let house = House::new(true).await;
    suite::behaves(&house.s3("AKWRITER"), &house.s3("AKREADER"), "raw").await;
    let asked = house.double.requests();
    let writes = asked
        .iter()
        .filter(|asked| matches!(asked.operation, "PutObject" | "CompleteMultipartUpload"));
    assert!(writes.clone().count() > 10);
    assert!(writes.clone().all(|asked| asked.if_none_match.as_deref() == Some("*")));
    house.double.stop().await;
}

#[tokio::test]
async fn an_object_that_is_too_long_to_be_an_entry_is_not_read_to_its_end() {
    let house = House::new(false).await;
    let most = usize::try_from(GET_BYTES_MAX).unwrap();
    for (key, length) in [("raw/most", most), ("raw/long", most + 1)] {
        house.double.tamper(BUCKET, key, Some(&vec![0; length])).unwrap();
    }
    let reader = house.s3("AKREADER");
    assert_eq!(reader.get("raw/most").await.unwrap().unwrap().bytes.len(), most);
    let error = reader.get("raw/long").await.unwrap_err();
    assert!(matches!(error, ShipError::TooLong { bytes_max: GET_BYTES_MAX, .. }), "{error}");
    assert_eq!(error.cause(), Cause::LakeAltered);
}

#[tokio::test]
async fn the_box_needs_its_four_permissions_and_has_no_more() {
    let house = House::new(false).await;
    let (writer, reader) = (house.s3("AKWRITER"), house.s3("AKREADER"));
    put(&writer, "raw/x", b"1").await.unwrap();
    let forbidden = |error: ShipError| assert_eq!(error.cause(), Cause::LakeForbidden, "{error}");
    forbidden(writer.get("raw/x").await.unwrap_err());
    forbidden(writer.list("raw/", None).await.unwrap_err());
    forbidden(put(&reader, "raw/y", b"1").await.unwrap_err());
    forbidden(reader.uploads("raw/").await.unwrap_err());
}

#[tokio::test]
async fn credentials_clock_bucket_and_authority_are_told_apart() {
    let house = House::new(true).await;
    let cause = async |s3: &S3| put(s3, "raw/x", b"1").await.unwrap_err().cause();
    let with = |access, secret| {
        S3::new(house.options(), credentials(access, secret), Dialer::new(None)).unwrap()
    };
    assert_eq!(cause(&with("AKWRITER", "wrong")).await, Cause::LakeCredentials);
    assert_eq!(cause(&with("AKNOBODY", "x")).await, Cause::LakeCredentials);
    let mut expired = keys();
    expired[0].expired = true;
    house.double.set_keys(expired);
    assert_eq!(cause(&house.s3("AKWRITER")).await, Cause::LakeCredentials);
    house.double.set_keys(keys());
    let elsewhere = |change: &dyn Fn(&mut S3Options)| {
        let mut options = house.options();
        change(&mut options);
        S3::new(options, credentials("AKWRITER", "writer-secret"), Dialer::new(None)).unwrap()
    };
    let bucket = elsewhere(&|options| options.bucket = "nowhere".into());
    assert_eq!(cause(&bucket).await, Cause::LakeBucket);
    let region = elsewhere(&|options| options.region = "us-east-1".into());
    assert_eq!(cause(&region).await, Cause::LakeBucket);
    let untrusted = elsewhere(&|options| options.ca_file = None);
    assert_eq!(cause(&untrusted).await, Cause::LakeCertificate);
    house.double.set_clock_ahead_s(-1000);
    let late = house.s3("AKWRITER");
    assert_eq!(cause(&late).await, Cause::ClockSkew);
    assert!((-1002..=-998).contains(&late.clock_ahead_s().unwrap()));
    assert_eq!(house.double.keys(BUCKET, ""), Vec::<String>::new());
}

#[tokio::test]
async fn keys_are_rotated_by_writing_the_file() {
    let house = House::new(false).await;
    let file = house.dir.path().join("aws");
    let write = |access: &str, secret: &str| {
        let beside = file.with_extension("new");
        let text =
            format!("[default]\naws_access_key_id={access}\naws_secret_access_key={secret}\n");
        fs::write(&beside, text).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).unwrap();
        crate::disk::rename(&beside, &file).unwrap();
    };
    write("AKWRITER", "old-secret");
    let s3 = S3::new(house.options(), Credentials::File(file.clone()), Dialer::new(None)).unwrap();
    assert_eq!(put(&s3, "raw/x", b"1").await.unwrap_err().cause(), Cause::LakeCredentials);
    write("AKWRITER", "writer-secret");
    put(&s3, "raw/x", b"1").await.unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "[default]\n").unwrap();
    assert_eq!(put(&s3, "raw/y", b"1").await.unwrap_err().cause(), Cause::SecretFile);
}

#[tokio::test]
async fn the_sse_headers_reach_the_object() {
    let house = House::new(false).await;
    let s3 = house.s3("AKADMIN");
    let kms = Encryption::SseKms { key_id: "arn:aws:kms:eu-central-1:1:key/k".into() };
    let (body, crc64nvme) = (Bytes::from_static(b"1").into(), &checksum::of(b"1"));
    s3.put(Put { head: head("raw/x", &kms), body, crc64nvme }).await.unwrap();
    let upload = s3.create(head("raw/y", &kms)).await.unwrap();
    let sse = |head: &store::Head| (head.sse.clone(), head.kms_key_id.clone(), head.bucket_key);
    let expected = (
        Some("aws:kms".to_owned()),
        Some("arn:aws:kms:eu-central-1:1:key/k".to_owned()),
        Some(true),
    );
    house
        .double
        .store
        .look(BUCKET, |bucket| {
            assert_eq!(sse(&bucket.objects["raw/x"].head), expected);
            assert_eq!(sse(&bucket.uploads[&("raw/y".to_owned(), upload.clone())].head), expected);
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn faults_are_what_they_say_and_stand_in_the_log() {
    let house = House::new(false).await;
    let (double, s3) = (&house.double, house.s3("AKADMIN"));
    let cases: [(Fault, Cause, bool); 7] = [
        (Fault::Refuse(503, "SlowDown"), Cause::LakeSlowDown, false),
        (Fault::Refuse(500, "InternalError"), Cause::LakeUnavailable, false),
        (Fault::LoseAnswer, Cause::LakeUnavailable, true),
        (Fault::Cut(100_000), Cause::LakeUnavailable, false),
        (Fault::ErrorBody, Cause::LakeUnavailable, false),
        (Fault::ErrorBodyAfter, Cause::LakeUnavailable, true),
        (Fault::Corrupt, Cause::LakeChecksum, false),
    ];
    let body = vec![7; 1 << 20];
    for ((fault, cause, applied), n) in cases.into_iter().zip(0..) {
        let key = format!("raw/{n}");
        double.fault(Rule::once("PutObject", fault.clone()));
        let error = put(&s3, &key, &body).await.unwrap_err();
        assert_eq!(error.cause(), cause, "{fault:?}: {error}");
        assert_eq!(double.object(BUCKET, &key).is_some(), applied, "{fault:?}");
        let asked = double.requests().pop().unwrap();
        let lost = matches!(fault, Fault::LoseAnswer | Fault::Cut(_));
        assert_eq!((asked.applied, asked.delivered), (applied, !lost), "{asked:?}");
        let again = put(&s3, &key, &body).await;
        assert_eq!(matches!(again, Err(ShipError::Exists { .. })), applied, "{again:?}");
    }
}

/// As Ceph RGW answers about uploads that are gone: `make conformance` asks it.
#[tokio::test]
async fn an_upload_that_is_gone_is_known_from_the_list_where_answers_do_not_say_so() {
    let house = House::new(false).await;
    let (double, s3, key) = (&house.double, house.s3("AKWRITER"), "raw/x");
    double.fault(Rule::always("CompleteMultipartUpload", Fault::Refuse(500, "InternalError")));
    double.fault(Rule::always("ListParts", Fault::Refuse(403, "AccessDenied")));
    let (id, part) = upload_of_one(&s3, key).await;
    // Still open: the answers are believed.
    assert_eq!(complete(&s3, key, &id, &part).await.unwrap_err().cause(), Cause::LakeUnavailable);
    assert_eq!(s3.parts(key, &id).await.unwrap_err().cause(), Cause::LakeForbidden);
    s3.abort(key, &id).await.unwrap();
    let end = complete(&s3, key, &id, &part).await;
    assert!(matches!(end, Err(ShipError::NoSuchUpload { .. })), "{end:?}");
    assert_eq!(s3.parts(key, &id).await.unwrap(), None);
    // Who may not list uploads either learns nothing, and the answers are believed.
    double.fault(Rule::always("ListMultipartUploads", Fault::Refuse(403, "AccessDenied")));
    assert_eq!(complete(&s3, key, &id, &part).await.unwrap_err().cause(), Cause::LakeUnavailable);
    assert_eq!(s3.parts(key, &id).await.unwrap_err().cause(), Cause::LakeForbidden);
}

async fn upload_of_one(s3: &S3, key: &str) -> (String, StoredPart) {
    let (body, crc64nvme) = (Bytes::from_static(b"1").into(), checksum::of(b"1"));
    let upload = s3.create(head(key, &Encryption::None)).await.unwrap();
    let part = Part { key, upload: &upload, number: 1, body, crc64nvme: &crc64nvme };
    let etag = s3.part(part).await.unwrap();
    (upload, StoredPart { number: 1, bytes: 1, etag, crc64nvme })
}

async fn complete(s3: &S3, key: &str, upload: &str, part: &StoredPart) -> Result<(), ShipError> {
    let (parts, crc64nvme) = (std::slice::from_ref(part), part.crc64nvme.as_str());
    s3.complete(Complete { key, upload, parts, bytes: part.bytes, crc64nvme }).await
}

#[tokio::test]
async fn what_stands_still_is_given_up_and_what_is_late_is_not() {
    let house = House::new(false).await;
    let patience = Duration::from_millis(300);
    let options = S3Options { patience, ..house.options() };
    let s3 = S3::new(options, credentials("AKADMIN", "admin-secret"), Dialer::new(None)).unwrap();
    house.double.fault(Rule::once("PutObject", Fault::Stall));
    let stalled = put(&s3, "raw/x", b"1").await;
    assert!(matches!(stalled, Err(ShipError::Unanswered { .. })), "{stalled:?}");
    house.double.fault(Rule::once("PutObject", Fault::Delay(Duration::from_millis(150))));
    put(&s3, "raw/x", b"1").await.unwrap();
}

#[tokio::test]
async fn a_store_that_is_away_comes_back_with_all_it_had() {
    let house = House::new(false).await;
    let s3 = house.s3("AKADMIN");
    put(&s3, "raw/x", b"1").await.unwrap();
    let upload = s3.create(head("raw/y", &Encryption::None)).await.unwrap();
    let (body, crc64nvme) = (Bytes::from_static(b"part").into(), &checksum::of(b"part"));
    let part = Part { key: "raw/y", upload: &upload, number: 1, body, crc64nvme };
    s3.part(part).await.unwrap();
    house.double.away(true);
    while put(&s3, "raw/z", b"1").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    house.double.away(false);
    while put(&s3, "raw/back", b"1").await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let House { double, dir } = house;
    double.stop().await;
    let double = start(&dir.path().join("double"), false).await;
    let house = House { double, dir };
    let s3 = house.s3("AKADMIN");
    assert_eq!(&s3.get("raw/x").await.unwrap().unwrap().bytes[..], b"1");
    let parts: Vec<StoredPart> = s3.parts("raw/y", &upload).await.unwrap().unwrap();
    assert_eq!((parts.len(), parts[0].crc64nvme.as_str()), (1, crc64nvme.as_str()));
    let complete = Complete { key: "raw/y", upload: &upload, parts: &parts, bytes: 4, crc64nvme };
    s3.complete(complete).await.unwrap();
    assert_eq!(&s3.get("raw/y").await.unwrap().unwrap().bytes[..], b"part");
}

#[tokio::test]
async fn an_intruder_is_seen_by_readers() {
    let house = House::new(false).await;
    let s3 = house.s3("AKADMIN");
    put(&s3, "raw/x", b"true").await.unwrap();
    put(&s3, "raw/y", b"true").await.unwrap();
    house.double.tamper(BUCKET, "raw/x", Some(b"false")).unwrap();
    house.double.tamper(BUCKET, "raw/y", None).unwrap();
    assert_eq!(&s3.get("raw/x").await.unwrap().unwrap().bytes[..], b"false");
    assert_eq!(s3.get("raw/y").await.unwrap(), None);
}

fn problems(found: &[Finding]) -> Vec<(&str, Cause)> {
    let wrong = |found: &Finding| found.problem.as_ref().map(|(cause, _)| *cause);
    found.iter().filter_map(|f| Some((f.check.as_str(), wrong(f)?))).collect()
}

#[tokio::test]
async fn a_check_names_what_is_wrong_and_leaves_one_small_object() {
    let house = House::new(false).await;
    let s3 = house.s3("AKWRITER");
    for _ in 0..3 {
        let found = check(&house.lake(), &s3).await;
        assert_eq!(problems(&found), [], "{found:?}");
        assert_eq!(found.len(), 8);
    }
    assert_eq!(house.double.keys(BUCKET, ""), ["raw/_check/writable"]);
    assert_eq!(house.double.open_uploads(BUCKET), []);

    let found = check(&house.lake(), &house.s3("AKREADER")).await;
    let forbidden = ["lake: list uploads", "lake: write", "lake: begin an upload"];
    assert_eq!(problems(&found), forbidden.map(|name| (name, Cause::LakeForbidden)));

    house.double.set_clock_ahead_s(400);
    assert_eq!(problems(&check(&house.lake(), &s3).await), [("lake: clock", Cause::ClockSkew)]);
    house.double.set_clock_ahead_s(-4000);
    let found = check(&house.lake(), &s3).await;
    assert_eq!(problems(&found)[0], ("lake: reach", Cause::ClockSkew));
    house.double.set_clock_ahead_s(0);

    let mut options = house.options();
    options.bucket = "nowhere".into();
    let nowhere =
        S3::new(options, credentials("AKWRITER", "writer-secret"), Dialer::new(None)).unwrap();
    let found = check(&house.lake(), &nowhere).await;
    assert_eq!(problems(&found), [("lake: reach", Cause::LakeBucket)]);

    house.double.away(true);
    let fresh = loop {
        let fresh = house.s3("AKWRITER");
        let found = check(&house.lake(), &fresh).await;
        if !problems(&found).is_empty() {
            break found;
        }
    };
    assert_eq!(problems(&fresh), [("lake: reach", Cause::LakeUnavailable)]);
}

/// Objects by the name of their spool file.
#[derive(Default)]
struct Spool(Mutex<BTreeMap<String, Bytes>>);

impl ReadSpool for Spool {
    fn read(
        &self,
        object: &crate::ship::Object,
        range: std::ops::Range<u64>,
        each: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), ShipError> {
        let place = |at: u64| usize::try_from(at).unwrap();
        let whole = self.0.lock().unwrap()[&object.spool].clone();
        each(whole.slice(place(range.start)..place(range.end)));
        Ok(())
    }
}

fn group(spool: &Spool, id: u64) -> Group {
    let object = |(bytes, n): (usize, usize)| {
        let body = Bytes::from(vec![u8::try_from(n).unwrap(); bytes]);
        let name = format!("{id}-{n}");
        spool.0.lock().unwrap().insert(name.clone(), body.clone());
        crate::ship::Object {
            key: format!("raw/erp/public.t/dt=2026-11-21/changes-{name}.parquet"),
            bytes: bytes as u64,
            sha256: String::new(),
            crc64nvme: checksum::of(&body),
            rows: BTreeMap::new(),
            table: "public.t".into(),
            version: 1,
            encryption: Encryption::None,
            metadata: [("x-amz-matdesc".into(), "{\"a\":\"b\"}".into())].into(),
            spool: name,
            sums: vec![],
        }
    };
    let objects = [(11 << 20, 1), (100, 2), (6 << 20, 3)].map(object).to_vec();
    Group { id, kind: GroupKind::Schema, objects, fates: Fates::default(), at: Timestamp(0) }
}

/// The whole room over TLS against a store that does everything a store can do wrong.
#[tokio::test]
async fn groups_reach_a_store_that_fails_in_every_way() {
    let house = House::new(true).await;
    for (operation, chance, fault) in [
        ("", 0.06, Fault::LoseAnswer),
        ("", 0.06, Fault::Cut(70_000)),
        ("", 0.05, Fault::Refuse(503, "SlowDown")),
        ("", 0.05, Fault::Refuse(500, "InternalError")),
        ("", 0.05, Fault::Delay(Duration::from_millis(20))),
        ("UploadPart", 0.1, Fault::Corrupt),
        ("PutObject", 0.1, Fault::Corrupt),
        ("CompleteMultipartUpload", 0.2, Fault::ErrorBody),
        ("CompleteMultipartUpload", 0.2, Fault::ErrorBodyAfter),
        ("CompleteMultipartUpload", 0.2, Fault::Refuse(409, "ConditionalRequestConflict")),
    ] {
        house.double.fault(Rule::often(operation, chance, fault));
    }
    let (spool, facts) = (Arc::new(Spool::default()), Arc::new(MemoryFacts::default()));
    let groups: Vec<Group> = (1..=6).map(|id| group(&spool, id)).collect();
    let config = config::Ship { part_bytes: 5 << 20, requests: 4 };
    let (store, board) = (Arc::new(house.s3("AKWRITER")), SourceBoard::default());
    let clock = Arc::new(SystemClock);
    let (read, kept) = (spool.clone(), facts.clone());
    let shipper =
        Shipper::new(store, read, kept, &config, &["raw/erp/".into()], board.clone(), clock)
            .impatient();
    let (send, receive) = mpsc::channel(8);
    for group in &groups {
        send.send(group.clone()).await.unwrap();
    }
    drop(send);
    let (shipped, mut handed) = mpsc::channel(8);
    let run = shipper.run(receive, shipped, CancellationToken::new());
    tokio::time::timeout(Duration::from_secs(60), run).await.unwrap().unwrap();
    let mut batch = FactBatch::default();
    for group in &groups {
        assert_eq!(handed.recv().await.unwrap().group.id, group.id);
        forget(group, &mut batch);
        for object in &group.objects {
            let there = house.double.object(BUCKET, &object.key).unwrap();
            assert!(there == spool.0.lock().unwrap()[&object.spool], "{}", object.key);
        }
    }
    facts.record_blocking(batch).unwrap();
    assert_eq!(facts.scan("ship/"), []);
    let status = board.read();
    assert_eq!((status.shipped_objects, status.alarms.len()), (18, 0));
    assert!(status.requests > 18 && !status.retries.is_empty());
    // Every key was written once: nothing was ever applied to one that existed.
    let asked = house.double.requests();
    let writes = |operation| move |asked: &&Asked| asked.operation == operation && asked.applied;
    let put = asked.iter().filter(writes("PutObject")).count();
    let complete = asked.iter().filter(writes("CompleteMultipartUpload")).count();
    assert_eq!(put + complete, 18);
}

/// What the client says of a body that ends early is not why.
#[tokio::test]
async fn a_spool_that_is_not_what_was_sealed_is_said_and_nothing_is_stored() {
    let house = House::new(true).await;
    for object in 0..3 {
        let spool = Arc::new(Spool::default());
        let mut group = group(&spool, 1);
        group.objects = vec![group.objects.swap_remove(object)];
        let name = group.objects[0].spool.clone();
        let length = usize::try_from(group.objects[0].bytes).unwrap();
        spool.0.lock().unwrap().insert(name, vec![0; length].into());
        let config = config::Ship { part_bytes: 5 << 20, requests: 4 };
        let (store, facts) = (Arc::new(house.s3("AKWRITER")), Arc::new(MemoryFacts::default()));
        let (own, clock) = (["raw/erp/".into()], Arc::new(SystemClock));
        let shipper =
            Shipper::new(store, spool, facts, &config, &own, SourceBoard::default(), clock);
        let (send, receive) = mpsc::channel(1);
        send.send(group.clone()).await.unwrap();
        let (shipped, _handed) = mpsc::channel(1);
        let run = shipper.run(receive, shipped, CancellationToken::new());
        let end = tokio::time::timeout(Duration::from_secs(20), run).await.unwrap();
        assert!(matches!(end, Err(ShipError::Lost { .. })), "{end:?}");
        assert!(house.double.object(BUCKET, &group.objects[0].key).is_none());
    }
}
