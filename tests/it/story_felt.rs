//! What others feel of a snapshot beside their own commits holds it back as well: a disk that they wait for, a standby
//! that falls behind (P5).

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::Mutex,
    time::{Duration, Instant},
};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::{cluster::Stop, proxy::Way},
};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, World};

/// A table of one row a page, and one of which others read and change rows.
async fn fill(world: &World, pages: u32) {
    world
        .execute(&format!(
            "CREATE TABLE big (id integer PRIMARY KEY, a text);
             ALTER TABLE big ALTER a SET STORAGE PLAIN;
             INSERT INTO big SELECT n, repeat(md5(n::text), 220) FROM generate_series(1, {pages}) AS n;
             CREATE TABLE work (id integer PRIMARY KEY, n integer, a text);
             INSERT INTO work SELECT n, 0, repeat(md5(n::text), 12) FROM generate_series(1, {WORK}) AS n"
        ))
        .await;
    world.execute("VACUUM ANALYZE").await;
}

/// Others' statements, one after the other until they are stopped; what each took is noted.
async fn work(shop: &Client, sql: &str, stop: &CancellationToken, took: &Mutex<Vec<Duration>>) {
    let statement = shop.prepare(sql).await.unwrap();
    while !stop.is_cancelled() {
        let (id, start) = (fastrand::i32(1..=WORK), SystemClock.now());
        shop.execute(&statement, &[&id]).await.unwrap();
        took.lock().unwrap().push(elapsed(start));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn elapsed(since: Instant) -> Duration {
    SystemClock.now().saturating_duration_since(since)
}

/// What the slower ones took, so that a failure can be judged.
fn p95(took: &Mutex<Vec<Duration>>) -> Duration {
    let mut took = std::mem::take(&mut *took.lock().unwrap());
    took.sort();
    took.get(took.len() * 95 / 100).copied().unwrap_or_default()
}

/// Has the server read its tables from a slow disk from its next start on.
fn slow_disk(world: &mut World) -> File {
    let library = world.dir.join("slow_disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/slow_disk.c");
    let words = ["-O2", "-shared", "-fPIC", "-o"];
    let made = Command::new("cc").args(words).arg(&library).arg(source).arg("-ldl").status();
    assert!(made.unwrap().success());
    let disk = world.dir.join("slow_disk");
    fs::write(&disk, [0; 16]).unwrap();
    world.cluster.lend(&library, "LD_PRELOAD").unwrap();
    let disk = world.cluster.lend(&disk, "SLOW_DISK").unwrap();
    world.cluster.restart(Stop::Fast).unwrap();
    File::options().write(true).open(disk).unwrap()
}

fn set(disk: &File, page: Duration) {
    let nanos = i64::try_from(page.as_nanos()).unwrap();
    disk.write_all_at(&nanos.to_ne_bytes(), 0).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_pages_that_are_read_holds_a_snapshot_back() {
    let settings = vec![("shared_buffers".into(), "2MB".into())];
    let mut world = World::new("felt-pages", Setup { settings, ..Setup::default() }).await;
    fill(&world, PAGES).await;
    let disk = slow_disk(&mut world);
    world.configure("snapshot_workers = 1");
    // Some 4 MB a second.
    set(&disk, Duration::from_millis(2));
    let (stop, took) = (CancellationToken::new(), Mutex::default());
    let shops = [world.admin().await, world.admin().await, world.admin().await];
    let reads = shops.each_ref().map(|shop| work(shop, READS, &stop, &took));
    let reads = futures_util::future::join_all(reads);
    tokio::join!(reads, held_back(&mut world, 3_500_000, &took, &stop));
    set(&disk, Duration::ZERO);
    ends_well(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_standby_that_shares_the_servers_network_holds_a_snapshot_back() {
    let mut world = World::new("felt-standby", Setup { proxied: true, ..Setup::default() }).await;
    fill(&world, PAGES).await;
    let standby = world.cluster.standby_of_copy(&world.dir.join("standby")).unwrap();
    let port = world.cluster.port();
    let source = &world.lanes.as_ref().unwrap().source;
    let beside = source.beside(([127, 0, 0, 1], port).into()).await.unwrap();
    standby.follow(beside.address().port()).unwrap();
    standby.reload();
    // What the box reads goes first.
    source.set(Way::Ahead(8_000_000));
    beside.set(Way::Narrow(8_000_000));
    let admin = world.admin().await;
    admin.batch_execute("GRANT pg_read_all_stats TO lakehead").await.unwrap();
    world.cluster.set(&[("synchronous_standby_names", "walreceiver")]).unwrap();
    world.cluster.reload();
    let waited = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'";
    while admin.query(waited, &[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (shop, stop, took) = (world.admin().await, CancellationToken::new(), Mutex::default());
    let changes = work(&shop, "UPDATE work SET n = n + 1 WHERE id = $1", &stop, &took);
    tokio::join!(changes, held_back(&mut world, 12_000_000, &took, &stop));
    world.lanes.as_ref().unwrap().source.set(Way::Open);
    beside.set(Way::Open);
    ends_well(world).await;
    standby.remove().unwrap();
}

/// Has the box read beside those who work, until it reads no more than this many bytes a second; the table is not at
/// its end by then. Then they stop.
async fn held_back(
    world: &mut World,
    rate: u64,
    took: &Mutex<Vec<Duration>>,
    stop: &CancellationToken,
) {
    tokio::time::sleep(Duration::from_secs(2)).await;
    let alone = p95(took);
    world.start();
    let held = world
        .until("it is held back", |status| {
            let of_big = status.snapshot.get("public.big");
            assert!(
                of_big.is_none_or(|big| big.rows_done < u64::from(PAGES)),
                "it was never held back"
            );
            status.snapshot_rate_bytes_per_s.is_some_and(|held| held <= rate)
        })
        .await;
    took.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let rows = held.snapshot["public.big"].rows;
    eprintln!("95th percentile {alone:?} alone, {:?} beside it, after {rows} rows", p95(took));
    stop.cancel();
}

async fn ends_well(mut world: World) {
    world.whole(2).await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

const READS: &str = "SELECT a FROM work WHERE id = $1";
const PAGES: u32 = 25_000;
const WORK: i32 = 40_000;
