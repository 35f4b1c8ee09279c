//! The source is not harmed by its snapshot (P5): who needs a table gets it, no snapshot is held for long, and
//! reading gives way to those who work in the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::proxy::Way,
    telemetry::board::SourceState,
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, World};

/// A table of about 110 bytes a row.
async fn fill(world: &World, table: &str, rows: u32) {
    let sql = format!(
        "CREATE TABLE {table} (id integer PRIMARY KEY, a text);
         INSERT INTO {table} SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, {rows}) AS n;
         ANALYZE {table}"
    );
    world.execute(&sql).await;
}

fn elapsed(since: Instant) -> Duration {
    SystemClock.now().saturating_duration_since(since)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_alters_a_table_waits_seconds_for_its_snapshot() {
    let mut world = World::new("gentle-lock", Setup { proxied: true, ..Setup::default() }).await;
    fill(&world, "big", 100_000).await;
    // The part would take some 20 s.
    let lanes = world.lanes.as_ref().unwrap();
    lanes.source.set(Way::Slow(500_000));
    world.start();
    world
        .until("the table is being read", |status| {
            status.snapshot.get("public.big").is_some_and(|table| table.rows > 0)
        })
        .await;
    let shop = world.admin().await;
    shop.batch_execute("SET lock_timeout = '60s'").await.unwrap();
    let start = SystemClock.now();
    shop.batch_execute("ALTER TABLE big ADD COLUMN late integer DEFAULT 7").await.unwrap();
    let waited = elapsed(start);
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    let status = world.status().await;
    assert_eq!(status.snapshot["public.big"].chunks_done, 0, "it had to wait");
    world.lanes.as_ref().unwrap().source.set(Way::Open);
    shop.batch_execute("UPDATE big SET late = 8 WHERE id % 1000 = 0").await.unwrap();
    world.whole(1).await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_snapshot_is_held_for_longer_than_it_may_be() {
    let mut world = World::new("gentle-age", Setup { proxied: true, ..Setup::default() }).await;
    world.configure("snapshot_age = \"10 s\"\nsnapshot_workers = 1");
    for table in ["one", "two", "three", "four"] {
        fill(&world, table, 40_000).await;
    }
    // A table in some 5 s.
    world.lanes.as_ref().unwrap().source.set(Way::Slow(900_000));
    let (admin, stop) = (world.admin().await, CancellationToken::new());
    let watching = watch(&admin, &stop);
    let copying = async {
        world.start();
        world.whole(4).await;
        stop.cancel();
    };
    let ((oldest, connections), ()) = tokio::join!(watching, copying);
    eprintln!("a snapshot was held for {oldest:?}, by {connections} connections at most");
    assert!((3..=7).contains(&connections), "{connections} connections, with one worker");
    // A part that was begun is read to its end.
    assert!((10..20).contains(&oldest.as_secs()), "a snapshot was held for {oldest:?}");
    let ledger = world.ledger();
    let keys = ledger.iter().flat_map(|entry| &entry.objects).map(|object| object.key.as_str());
    let positions: BTreeSet<&str> = keys
        .filter_map(|key| key.rsplit('/').next()?.strip_prefix("snapshot-")?.split('-').next())
        .collect();
    assert!(positions.len() >= 2, "one snapshot: {positions:?}");
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// For how long the box kept the server from cleaning up at most, and how many connections it had.
async fn watch(admin: &Client, stop: &CancellationToken) -> (Duration, usize) {
    let sql = "SELECT pid, coalesce(backend_xmin::text, '') FROM pg_stat_activity \
               WHERE usename = 'lakehead'";
    let mut since: BTreeMap<(i32, String), Instant> = BTreeMap::new();
    let (mut longest, mut connections) = (Duration::ZERO, 0);
    while stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(200))).await.is_some() {
        let rows = admin.query(sql, &[]).await.unwrap();
        connections = connections.max(rows.len());
        let now = SystemClock.now();
        let held = rows.iter().map(|row| (row.get(0), row.get(1)));
        let held: Vec<(i32, String)> =
            held.filter(|(_, xmin): &(_, String)| !xmin.is_empty()).collect();
        since.retain(|key, _| held.contains(key));
        for key in held {
            let since = *since.entry(key).or_insert(now);
            longest = longest.max(now.saturating_duration_since(since));
        }
    }
    (longest, connections)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_gives_way_to_those_who_work_and_takes_all_when_nobody_does() {
    let mut world = World::new("gentle-pace", Setup { proxied: true, ..Setup::default() }).await;
    fill(&world, "big", 400_000).await;
    world
        .execute(
            "CREATE TABLE work (id integer PRIMARY KEY, n integer); INSERT INTO work VALUES (1, 0)",
        )
        .await;
    world.lanes.as_ref().unwrap().source.set(Way::Slow(1_500_000));
    let (shop, stop) = (world.admin().await, CancellationToken::new());
    let working = async {
        while !stop.is_cancelled() {
            shop.batch_execute("UPDATE work SET n = n + 1").await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let copying = async {
        world.start();
        world
            .until("it is held back", |status| {
                status.snapshot.contains_key("public.big")
                    && status.snapshot_rate_bytes_per_s.is_some()
            })
            .await;
        // The first seconds it is held back whoever is there.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let status = world.status().await;
        assert_eq!(status.state, SourceState::Snapshot);
        assert!(status.snapshot_rate_bytes_per_s.is_some(), "it is held back no more");
        stop.cancel();
    };
    tokio::join!(working, copying);
    world.until("nobody is there", |status| status.snapshot_rate_bytes_per_s.is_none()).await;
    let status = world.status().await;
    assert_eq!(status.state, SourceState::Snapshot, "it had read all");
    world.lanes.as_ref().unwrap().source.set(Way::Open);
    world.whole(1).await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// What one connection gives is what holds it up here, as a server's process or a distant network does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_read_nearly_twice_as_fast_as_one() {
    let mut took = vec![];
    for workers in [1, 2] {
        let setup = Setup { proxied: true, ..Setup::default() };
        let mut world = World::new(&format!("workers-{workers}"), setup).await;
        world.configure(&format!("snapshot_workers = {workers}\nsnapshot_pace = \"full\""));
        for table in ["one", "two", "three", "four"] {
            fill(&world, table, 40_000).await;
        }
        world.lanes.as_ref().unwrap().source.set(Way::Slow(1_500_000));
        world.start();
        world.until("it reads", |status| status.snapshot.values().any(|part| part.rows > 0)).await;
        let start = SystemClock.now();
        world.whole(4).await;
        took.push(elapsed(start).as_secs_f64());
        world.assert_proven().await;
        world.end().await;
    }
    assert!(took[0] / took[1] >= 1.6, "{took:?} s");
}
