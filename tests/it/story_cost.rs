//! What S3 is asked for: the requests that the README counts and prices, and no others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lakehead::{
    clock::{Clock, SystemClock},
    ledger::Entry,
};

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

/// What was asked, and how often for open uploads.
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

/// The entries, when what was asked is what they took: now, or when the one that is under way is written.
async fn paid(world: &World) -> Vec<Entry> {
    let mut differs = None;
    for _ in 0..100 {
        let (entries, (counts, _)) = (world.ledger(), asked(world));
        if counts == priced(&entries) {
            return entries;
        }
        differs = Some((counts, entries));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("asked otherwise: {differs:#?}");
}

fn elapsed(since: Instant) -> Duration {
    SystemClock.now().saturating_duration_since(since)
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
    let start = SystemClock.now();
    world.start();
    world.whole(4).await;
    world.caught_up().await;
    let entries = paid(&world).await;
    let largest = entries.iter().flat_map(|entry| &entry.objects).map(|object| object.bytes).max();
    assert!(largest > Some(PART_BYTES), "{largest:?}");

    // Two of the tables change all the time, for some ten times `object_age`.
    let (before, began) = (entries.len(), SystemClock.now());
    for round in 0..40 {
        world
            .execute(&format!(
                "UPDATE one SET n = {round}; UPDATE two SET n = {round} WHERE id < 9"
            ))
            .await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    world.caught_up().await;
    let (entries, took) = (paid(&world).await, elapsed(began));
    let changes = &entries[before..];
    // One each second, one open before it, one that is open behind it, and a mark.
    let most = usize::try_from(took.as_secs()).unwrap() + 4;
    assert!((3..=most).contains(&changes.len()), "{took:?}: {changes:#?}");
    // The two, and that of the story's marks.
    assert!(changes.iter().all(|entry| entry.objects.len() <= 3), "{changes:#?}");

    // Where nothing changes, the ledger says at most now and then that the log was followed.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let rested = paid(&world).await.split_off(entries.len());
    assert!(
        rested.len() <= 2 && rested.iter().all(|entry| entry.objects.is_empty()),
        "{rested:#?}"
    );
    // Under the keys of rows, of schemas and of the ledger, at the start; of the first two after a minute.
    let looks = asked(&world).1;
    assert!(looks == 3 || elapsed(start) >= Duration::from_secs(59) && looks == 5, "{looks}");
    world.assert_proven().await;
    world.end().await;
}

/// `[ship] part_bytes` where none is set.
const PART_BYTES: u64 = 16 << 20;
