//! Memory is bounded, whatever one row holds (P4).

use std::{collections::BTreeMap, fs};

use lakehead::telemetry::board::{SourceStatus, TableProgress};

use crate::harness::{Setup, World};

/// The largest value in the story.
const VALUE_BYTES: u64 = 100 << 20;
/// DESIGN P4: the budget, plus twice the largest single value above 64 MiB.
const RESIDENT_BYTES_MAX: u64 = (256 << 20) + 2 * VALUE_BYTES;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_a_hundred_mebibytes_stays_within_the_budget() {
    let mut world = World::new("memory", Setup::default()).await;
    world.noisy(100 << 20).await;
    world
        .execute(
            "CREATE TABLE large (id integer PRIMARY KEY, body bytea, note text);
             ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
             INSERT INTO large SELECT n, decode(repeat(md5(n::text), 30000), 'hex'), 'small' FROM generate_series(1, 100) AS n;
             INSERT INTO large VALUES (1000, noise(1, 104857600), 'in the snapshot')",
        )
        .await;
    world.start();
    world.caught_up().await;
    let shop = world.shop().await;
    for sql in [
        "INSERT INTO large VALUES (1001, noise(2, 104857600), 'in the stream')",
        "UPDATE large SET note = 'unchanged body' WHERE id >= 1000",
        "UPDATE large SET body = noise(3, 104857600) WHERE id = 1000",
    ] {
        shop.batch_execute(sql).await.unwrap();
    }
    world.caught_up().await;
    world.assert_proven().await;
    let peak = world.peak_bytes();
    eprintln!("a value of 100 MiB: {} MiB resident at most", peak >> 20);
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB resident", peak >> 20);
    world.assert_restored_equal().await;
    world.end().await;
}

/// Two large tables, each with large values in the middle, are read and sealed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tables_with_large_values_are_sealed_at_once_within_the_budget() {
    let mut world = World::new("memory-two", Setup::default()).await;
    world.noisy(70_400_000).await;
    world
        .execute(
            "CREATE TABLE one (id integer PRIMARY KEY, note text, body bytea);
             ALTER TABLE one ALTER body SET STORAGE EXTERNAL;
             CREATE TABLE two (LIKE one INCLUDING ALL);
             INSERT INTO one SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 100000) AS n;
             INSERT INTO one SELECT 200000 + n, 'large', noise(n, 70400000) FROM generate_series(1, 2) AS n;
             INSERT INTO one SELECT 300000 + n, repeat(md5(n::text), 20) FROM generate_series(1, 100000) AS n;
             INSERT INTO two SELECT * FROM one",
        )
        .await;
    world.start();
    world.until("rows are sealed", |status| status.sealed_rows > 300_000).await;
    let sealing = processor_ticks(world.gateway.pid().unwrap(), "seal-snapshot");
    world.caught_up().await;
    world.assert_proven().await;
    let peak = world.peak_bytes();
    eprintln!("{} MiB resident at most; ticks of the threads: {sealing:?}", peak >> 20);
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB resident", peak >> 20);
    assert!(sealing.len() == 2 && sealing.values().all(|ticks| *ticks > 0), "{sealing:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

/// A reader whose rows nobody takes yet must not hold what the others wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_readers_than_sealers_get_through_large_values() {
    let mut world = World::new("memory-readers", Setup::default()).await;
    let path = world.site.dir.join("site.toml");
    let text = fs::read_to_string(&path).unwrap();
    let more = text.replace("\nrelease = ", "\nsnapshot_workers = 6\nrelease = ");
    assert_ne!(text, more);
    lakehead::disk::write_durably(&path, more.as_bytes()).unwrap();
    let tables = ["a", "b", "c", "d", "e", "f"].map(|name| {
        format!(
            "CREATE TABLE {name} (id integer PRIMARY KEY, body bytea);
             ALTER TABLE {name} ALTER body SET STORAGE EXTERNAL;
             INSERT INTO {name} SELECT n, decode(repeat(md5(n::text), 600000), 'hex') FROM generate_series(1, 6) AS n"
        )
    });
    world.execute(&tables.join(";")).await;
    world.start();
    let whole = |status: &SourceStatus| {
        let mut parts = status.snapshot.values();
        status.snapshot.len() > tables.len() && parts.all(TableProgress::is_whole)
    };
    world.until("all tables are sealed", whole).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Time on a processor of the process's threads whose names begin so.
fn processor_ticks(pid: u32, name: &str) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        let (head, fields) = stat.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        // 14 and 15, counted from 1 and from the number before the name.
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        comm.starts_with(name).then(|| (comm.to_owned(), ticks))
    });
    stats.collect()
}
