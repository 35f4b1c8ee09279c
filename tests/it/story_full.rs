//! The disk is full: the box waits for room, or makes it, and goes on.

use std::{fs, time::Duration};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::cluster::Stop,
    disk,
    error::Cause,
    telemetry::board::{SourceState, SourceStatus},
};

use crate::{
    harness::{SOURCE, Setup, World},
    small_disk::SmallDisk,
};

/// A box on a small disk that has caught up, and is down.
async fn begun(story: &str) -> (World, SmallDisk) {
    let setup = Setup { journal_max: "512 MiB".into(), ..Setup::default() };
    let mut world = World::new(story, setup).await;
    let small = SmallDisk::mount(&world.site.data_dir(), 200 << 20);
    let around = small.around();
    world.gateway.wrap(&around.iter().map(String::as_str).collect::<Vec<_>>());
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a bytea)").await;
    world.start();
    world.caught_up().await;
    world.gateway.kill();
    trim_segments(&small);
    (world, small)
}

/// What is kept free for segments is free.
fn trim_segments(small: &SmallDisk) {
    let journal = small.outside().join("journal").join(SOURCE);
    for path in disk::list(&journal, "log").unwrap() {
        let segment = fs::File::options().write(true).open(&path).unwrap();
        segment.set_len(segment.metadata().unwrap().len()).unwrap();
    }
}

fn full(status: &SourceStatus) -> bool {
    status.alarms.values().any(|alarm| alarm.cause == Cause::DiskFull.name())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_disk_without_a_free_byte_waits_for_room() {
    let (mut world, small) = begun("full").await;
    world.execute("INSERT INTO t SELECT generate_series(1, 1000)").await;
    // It gives the reserve back when it finds the disk full; and the stranger was quicker.
    fs::remove_file(small.outside().join("journal").join(SOURCE).join("reserve")).unwrap();
    small.leave(0);
    world.start();
    world.until("it waits", full).await;
    assert_eq!(world.gateway.stop().await, Some(0), "it can be stopped meanwhile");
    world.start();
    world.until("it waits again", full).await;
    small.relieve();
    world.calm(Cause::DiskFull).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// The journal has room for what comes, but there is none to seal it: then the reserve is for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fills_the_disk_is_sealed_into_the_reserve_and_drains() {
    let (mut world, small) = begun("full-drains").await;
    world
        .execute(
            "INSERT INTO t SELECT n, (SELECT string_agg(sha256((n * 10000 + m)::text::bytea), '')
             FROM generate_series(1, 3200) AS m) FROM generate_series(1, 120) AS n",
        )
        .await;
    // 12 MB.
    small.leave(18 << 20);
    world.start();
    world.until("it is full", full).await;
    world.caught_up().await;
    assert!(small.free_bytes() < 64 << 20, "nobody else made room");
    small.relieve();
    world.calm(Cause::DiskFull).await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Of a source that is not read any more the server is stopped all the same: it does not wait for the box.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stops_in_order_though_the_box_has_no_room_for_its_changes() {
    let (mut world, small) = begun("full-server-stops").await;
    world.bucket.away(true);
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO t VALUES (1)").await;
    world.until("it is read", |status| status.durable.sequence.0 > 0).await;
    small.leave(4 << 20);
    let more = "INSERT INTO t SELECT n, (SELECT string_agg(sha256((random() * 1e9 + m)::text::bytea), '')
        FROM generate_series(1, 3200) AS m) FROM generate_series((SELECT coalesce(max(id), 0) + 1 FROM t), (SELECT coalesce(max(id), 0) + 60 FROM t)) AS n";
    // Until what was sealed takes the last room, and what lies between them is full, too.
    let mut last = world.status().await;
    for _ in 0..60 {
        world.execute(more).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = world.status().await;
        let stands = now.received == last.received && unread(&now) > UNREAD_BYTES;
        last = now;
        if full(&last) && stands {
            break;
        }
    }
    assert!(full(&last) && unread(&last) > UNREAD_BYTES, "{last:#?}");
    let began = SystemClock.now();
    world.cluster.stop(Stop::Fast);
    let took = SystemClock.now().saturating_duration_since(began);
    assert!(took < STOPS_WITHIN, "{took:?}\n{}", world.gateway.log_end());
    world.cluster.start().unwrap();
    world.bucket.away(false);
    small.relieve();
    world.calm(Cause::DiskFull).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// What the server has and the box has not read.
fn unread(status: &SourceStatus) -> u64 {
    status.server.0.saturating_sub(status.received.0)
}

/// More than lies between them.
const UNREAD_BYTES: u64 = 16 << 20;
/// Seconds after which the box has seen it, and some.
const STOPS_WITHIN: Duration = Duration::from_secs(15);

/// What waits for the lake is shipped, and makes room, though others take each free byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_drains_from_a_disk_without_a_free_byte() {
    let (mut world, small) = begun("full-sealed").await;
    world.bucket.away(true);
    world.start();
    world.execute("INSERT INTO t SELECT generate_series(1, 50000)").await;
    world.until("it is sealed", |status| status.sealed.sequence.0 >= 50_000).await;
    world.gateway.kill();
    fs::remove_file(small.outside().join("journal").join(SOURCE).join("reserve")).unwrap();
    trim_segments(&small);
    small.leave(1 << 20);
    world.start();
    let spare = small.outside().join(format!("head-{SOURCE}.spare"));
    world.until("it is full", |status| full(status) && spare.exists()).await;
    small.leave(0);
    world.bucket.away(false);
    world.until("it is shipped", |status| status.shipped.sequence.0 >= 50_000).await;
    assert!(small.free_bytes() < 16 << 20, "nobody else made room");
    small.relieve();
    world.calm(Cause::DiskFull).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}
