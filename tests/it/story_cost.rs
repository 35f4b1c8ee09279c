//! What S3 is asked for: the requests that the README counts and prices, and no others.

use std::{collections::BTreeMap, time::Duration};

use lakehead::ledger::Entry;

use crate::harness::{Setup, World};

/// Requests by name.
type Counts = BTreeMap<&'static str, u64>;

/// What the README says that these entries took.
fn priced(entries: &[Entry]) -> Counts {
    let mut counts = Counts::new();
    let mut add = |name, times| *counts.entry(name).or_default() += times;
    for entry in entries {
        for bytes in entry.objects.iter().map(|object| object.bytes) {
            if bytes <= PART_BYTES {
                add("PutObject", 1);
            } else {
                add("CreateMultipartUpload", 1);
                add("UploadPart", bytes.div_ceil(PART_BYTES));
                add("CompleteMultipartUpload", 1);
            }
        }
        // The entry itself.
        for name in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"] {
            add(name, 1);
        }
    }
    counts
}

fn asked(world: &World) -> (Counts, u64) {
    let (mut counts, mut looks) = (Counts::new(), 0);
    for asked in world.bucket.double.requests() {
        match asked.operation {
            "ListMultipartUploads" => looks += 1,
            name => *counts.entry(name).or_default() += 1,
        }
    }
    (counts, looks)
}

/// What was asked when no entry is under way.
async fn settled(world: &World) -> (Counts, u64) {
    for _ in 0..50 {
        if asked(world).0 == priced(&world.ledger()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    asked(world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_made_that_is_not_priced() {
    let setup = Setup { object_bytes: "64 MiB".into(), ..Setup::default() };
    let mut world = World::new("cost", setup).await;
    // Of one the bytes do not shrink: its object goes in parts.
    world
        .execute(
            "CREATE TABLE noise (id integer PRIMARY KEY, a bytea, b bytea);
             ALTER TABLE noise ALTER a SET STORAGE PLAIN, ALTER b SET STORAGE PLAIN;
             INSERT INTO noise SELECT n,
               decode(string_agg(md5(random()::text), ''), 'hex'),
               decode(string_agg(md5(random()::text), ''), 'hex')
               FROM generate_series(1, 9000) n, generate_series(1, 64) GROUP BY n;
             CREATE TABLE one (id integer PRIMARY KEY, n integer);
             CREATE TABLE two (id integer PRIMARY KEY, n integer);
             CREATE TABLE three (id integer PRIMARY KEY, n integer);
             INSERT INTO one SELECT n, 0 FROM generate_series(1, 100) n;
             INSERT INTO two SELECT n, 0 FROM generate_series(1, 100) n",
        )
        .await;
    world.start();
    world.whole(4).await;
    world.caught_up().await;
    let (counts, looks) = settled(&world).await;
    let entries = world.ledger();
    assert_eq!(counts, priced(&entries), "{entries:#?}");
    let largest = entries.iter().flat_map(|entry| &entry.objects).map(|object| object.bytes).max();
    assert!(largest > Some(PART_BYTES), "{largest:?}");
    // Under the keys of rows, of schemas and of the ledger, at the start.
    assert_eq!(looks, 3);

    // Two of the tables change all the time, for some ten times `object_age`.
    let before = entries.len();
    for round in 0..40 {
        world
            .execute(&format!(
                "UPDATE one SET n = {round}; UPDATE two SET n = {round} WHERE id < 9"
            ))
            .await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    world.caught_up().await;
    let (counts, _) = settled(&world).await;
    let entries = world.ledger();
    assert_eq!(counts, priced(&entries));
    let changes = &entries[before..];
    assert!((5..=14).contains(&changes.len()), "{changes:#?}");
    assert!(changes.iter().all(|entry| entry.objects.len() <= 2), "{changes:#?}");

    // Where nothing changes, the ledger says at most now and then that the log was followed.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let rested = world.ledger().split_off(entries.len());
    assert!(
        rested.len() <= 1 && rested.iter().all(|entry| entry.objects.is_empty()),
        "{rested:#?}"
    );
    let (counts, looks) = settled(&world).await;
    assert_eq!((counts, looks), (priced(&world.ledger()), 3));
    world.assert_proven().await;
    world.end().await;
}

/// `[ship] part_bytes` where none is set.
const PART_BYTES: u64 = 16 << 20;
