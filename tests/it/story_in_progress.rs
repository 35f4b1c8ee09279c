//! Large transactions come while they go on (from version 14 on): the box keeps them, and not the server's disk.
//! What comes of them is what comes of those that are sent at their commits.

use std::time::{Duration, Instant};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::cluster::Stop,
    telemetry::board::{SourceState, SourceStatus},
};
use tokio_postgres::Client;

use crate::harness::{SLOT, Setup, World};

/// The least that a server allows: nearly every transaction is sent in blocks.
const WORK_MEM: &str = "64kB";
/// DESIGN P4: the budget.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;
const SINCE: u32 = 14;

async fn world(story: &str, setup: Setup) -> Option<World> {
    let settings = [("logical_decoding_work_mem", WORK_MEM), ("max_prepared_transactions", "10")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    World::since(SINCE, story, Setup { settings, ..setup }).await
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap();
}

fn insert(table: &str, from: u32, rows: u32) -> String {
    let to = from + rows - 1;
    format!(
        "INSERT INTO {table} (id, note) SELECT n, md5(n::text) FROM generate_series({from}, {to}) n;"
    )
}

/// Transactions that the server has sent in blocks, and bytes that it has kept on its disk.
async fn counted(world: &World) -> (i64, i64) {
    let sql = "SELECT stream_txns, spill_bytes FROM pg_stat_replication_slots WHERE slot_name = $1";
    let row = world.admin().await.query_one(sql, &[&SLOT]).await.unwrap();
    (row.get(0), row.get(1))
}

fn keeps(status: &SourceStatus) -> bool {
    status.in_progress_bytes > 500_000
}

/// One of 6,000 rows. After a restart the server sends of those that were confirmed past in progress only what it has in memory
/// when more comes: others stay on its disk until their commit, by chance.
fn keeps_one(status: &SourceStatus) -> bool {
    status.in_progress_bytes > 300_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_in_progress_come_as_if_they_came_at_once() {
    let Some(mut world) = world("in-progress", Setup::default()).await else { return };
    world
        .execute(
            "CREATE TABLE plain (id integer PRIMARY KEY, note text);
             CREATE TABLE altered (id integer PRIMARY KEY, note text);
             CREATE TABLE altered_too (id integer PRIMARY KEY, note text);
             CREATE TABLE emptied (id integer PRIMARY KEY, note text);
             CREATE TABLE small (id integer PRIMARY KEY, note text);
             CREATE TABLE toasted (id integer PRIMARY KEY, note text, body text);
             ALTER TABLE toasted ALTER body SET STORAGE EXTERNAL;
             CREATE TYPE pair AS (a integer, b text);
             INSERT INTO emptied SELECT n, 'before' FROM generate_series(-500, -1) n;
             INSERT INTO toasted SELECT n, 'before', repeat(md5(n::text), 200) FROM generate_series(-500, -1) n",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    interleaved(&mut world).await;
    world.caught_up().await;
    let (blocks, _) = counted(&world).await;
    assert!(blocks >= 6, "{blocks} transactions came in blocks");
    let status = world.until("nothing is open", |status| status.in_progress_bytes == 0).await;
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    torn(&mut world).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_sent_once(2);
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Several that are open at once, with what can be undone in them undone.
async fn interleaved(world: &mut World) {
    let [a, b, c, d, e] = [
        world.shop().await,
        world.shop().await,
        world.shop().await,
        world.shop().await,
        world.shop().await,
    ];
    for client in [&a, &b, &c, &d] {
        run(client, "BEGIN").await;
    }
    run(&a, &insert("plain", 1, 3000)).await;
    run(&b, &insert("altered", 1, 3000)).await;
    run(&b, &insert("altered_too", 1, 3000)).await;
    run(&e, "INSERT INTO small VALUES (1, 'between')").await;
    run(&c, &format!("TRUNCATE emptied; {}", insert("emptied", 1, 3000))).await;
    run(&d, &insert("plain", 1_000_000, 5000)).await;
    // Of a table that the transaction has not described: rolled back, and described again.
    run(&a, &format!("SAVEPOINT one; {} ROLLBACK TO one", insert("small", 100, 3000))).await;
    run(&e, "INSERT INTO small VALUES (2, 'between')").await;
    run(&a, &format!("SAVEPOINT two; {} SAVEPOINT three;", insert("small", 10_000, 3000))).await;
    run(&a, &format!("{} RELEASE three; ROLLBACK TO one;", insert("small", 20_000, 3000))).await;
    run(&a, &insert("small", 30_000, 3000)).await;
    run(&a, &format!("SAVEPOINT four; {} RELEASE four", insert("plain", 10_000, 3000))).await;
    run(&a, "UPDATE plain SET id = -id WHERE id % 3 = 0; DELETE FROM plain WHERE id % 7 = 0").await;
    // What a savepoint takes back is described so to nobody.
    run(
        &b,
        &format!(
            "SAVEPOINT one; ALTER TABLE altered ADD undone integer; {} ROLLBACK TO one",
            insert("altered", 10_000, 3000)
        ),
    )
    .await;
    run(&b, &insert("altered", 20_000, 3000)).await;
    // And one column whose binary form is not read.
    run(
        &b,
        "ALTER TABLE altered_too ADD pair pair; UPDATE altered_too SET pair = (id, note) WHERE id % 2 = 0",
    )
    .await;
    run(&b, &insert("altered", 30_000, 3000)).await;
    run(&c, "UPDATE toasted SET note = 'after'; UPDATE toasted SET body = repeat(note, 3000) WHERE id % 5 = 0").await;
    world.until("they are kept", keeps).await;
    // The ledger goes on past their beginnings.
    world.caught_up().await;
    run(&d, "ROLLBACK").await;
    run(&c, "COMMIT").await;
    run(&e, "INSERT INTO small VALUES (3, 'between')").await;
    run(&b, "COMMIT").await;
    run(&a, &format!("{} COMMIT", insert("plain", 40_000, 3000))).await;
    run(&e, &format!("BEGIN; {} ROLLBACK", insert("plain", 50_000, 3000))).await;
    run(&e, &insert("small", 50_000, 3000)).await;
}

/// The box is killed, and then the server, while transactions are open.
async fn torn(world: &mut World) {
    let [a, b, c] = [world.shop().await, world.shop().await, world.shop().await];
    run(&a, &format!("BEGIN; {}", insert("plain", 100_000, 6000))).await;
    run(&b, &format!("BEGIN; {} PREPARE TRANSACTION 'kept'", insert("plain", 200_000, 6000))).await;
    run(&c, &format!("BEGIN; {} PREPARE TRANSACTION 'not kept'", insert("plain", 300_000, 6000)))
        .await;
    world.until("they are kept", keeps).await;
    world.caught_up().await;
    let confirmed = world.status().await.confirmed;
    world.until("it is confirmed past their beginnings", |now| now.confirmed > confirmed).await;
    world.gateway.kill();
    run(&a, &insert("plain", 110_000, 100)).await;
    world.start();
    world.until("one is kept again", keeps_one).await;
    run(&a, &format!("{} COMMIT", insert("plain", 120_000, 3000))).await;
    run(&a, &format!("BEGIN; {}", insert("plain", 400_000, 6000))).await;
    world.caught_up().await;
    world.until("the next is kept", keeps_one).await;
    world.cluster.restart(Stop::Immediate).unwrap();
    let shop = world.shop().await;
    run(&shop, "COMMIT PREPARED 'kept'; ").await;
    run(&shop, "ROLLBACK PREPARED 'not kept'").await;
    run(&shop, &insert("small", 60_000, 3000)).await;
}

/// The server itself fails on it, as often as it is tried, and not at the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_the_server_cannot_send_in_progress_comes_at_its_commit() {
    let Some(mut world) = world("in-progress-refused", Setup::default()).await else { return };
    world.execute("CREATE TABLE altered (id integer PRIMARY KEY, note text)").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    let open = world.shop().await;
    let add = |column: &str| format!("ALTER TABLE altered ADD {column} integer;");
    let all = [
        "BEGIN;".into(),
        insert("altered", 1, 3000),
        "SAVEPOINT one;".into(),
        add("undone"),
        insert("altered", 10_000, 3000),
        "ROLLBACK TO one;".into(),
        insert("altered", 20_000, 3000),
        add("really"),
        insert("altered", 30_000, 3000),
        "COMMIT".into(),
    ];
    run(&open, &all.concat()).await;
    world.caught_up().await;
    let status = world.status().await;
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// One that may not take so much of the box's disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_finds_no_room_in_the_box_is_kept_by_the_server() {
    let setup = Setup { journal_max: "256 MiB".into(), ..Setup::default() };
    let Some(mut world) = world("in-progress-room", setup).await else { return };
    world.execute("CREATE TABLE noise (id integer PRIMARY KEY, body bytea)").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    let noise = |from: u32, rows: u32| {
        format!(
            "INSERT INTO noise SELECT n, (SELECT string_agg(sha512((n * 1000 + m)::text::bytea), '') FROM generate_series(1, 16) m)
             FROM generate_series({from}, {from} + {rows} - 1) n;"
        )
    };
    let open = world.shop().await;
    run(&open, &format!("BEGIN; {}", noise(1, 24_000))).await;
    let kept = world.until("it is kept", |status| status.in_progress_bytes > (18 << 20)).await;
    assert!(kept.in_progress_bytes <= 72 << 20, "{}", kept.in_progress_bytes);
    run(&open, &noise(100_001, 60_000)).await;
    for _ in 0..600 {
        if world.gateway.log_end().contains("find no room") {
            break;
        }
        world.status().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.until("what was kept is gone", |status| status.in_progress_bytes == 0).await;
    run(&open, "COMMIT").await;
    world.caught_up().await;
    let (_, spilled) = counted(&world).await;
    assert!(spilled > 64 << 20, "{spilled} bytes on the server's disk");
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// What it costs whom, one way and the other in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_comes_while_it_goes_on_spares_the_servers_disk() {
    let whole = std::env::var_os("LAKEHEAD_LARGE").is_some();
    let (rows, rounds): (u32, u32) = if whole { (1_000_000, 3) } else { (200_000, 1) };
    let settings = vec![("logical_decoding_work_mem".to_owned(), "4MB".to_owned())];
    let setup = Setup { settings, ..Setup::default() };
    let Some(mut world) = World::since(SINCE, "in-progress-cost", setup).await else { return };
    world.execute("CREATE TABLE large (id bigint PRIMARY KEY, customer integer, at timestamptz, note text)").await;
    world.start();
    world.caught_up().await;
    let mut before = counted(&world).await.1;
    for round in 0..2 * rounds {
        let at_commit = round % 2 == 1;
        world.gateway.stop().await;
        if round == 1 {
            world.configure("large_transactions = \"at_commit\"");
        } else {
            let path = world.site.dir.join("site.toml");
            let (is, was) = if at_commit {
                ("at_commit", "as_they_come")
            } else {
                ("as_they_come", "at_commit")
            };
            let text = std::fs::read_to_string(&path).unwrap().replace(was, is);
            lakehead::disk::write_durably(&path, text.as_bytes()).unwrap();
        }
        world.start();
        world.until("it streams", |status| status.state == SourceState::Streaming).await;
        world.caught_up().await;
        let cpu_before = world.gateway.usage().cpu_s;
        let shop = world.shop().await;
        let from = round * rows + 1;
        run(&shop, &format!(
            "BEGIN; INSERT INTO large SELECT n, n % 50000, now() + n * interval '1 s', md5(n::text) FROM generate_series({from}, {from} + {rows} - 1) n"
        ))
        .await;
        // What is sent meanwhile has come.
        tokio::time::sleep(Duration::from_secs(if at_commit { 1 } else { 5 })).await;
        let status = world.status().await;
        let (open, wanted) =
            (status.in_progress_bytes, status.durable.sequence.0 + u64::from(rows));
        let began = SystemClock.now();
        run(&shop, "COMMIT").await;
        world.until("it is durable", |status| status.durable.sequence.0 >= wanted).await;
        let durable = elapsed(began);
        world.caught_up().await;
        let cpu = world.gateway.usage().cpu_s - cpu_before;
        let spilled = counted(&world).await.1;
        eprintln!(
            "{rows} rows {}: durable {durable:.2?} after the commit; {} KiB kept here before it; {} KiB on the server's disk; {:.2} µs of CPU a row",
            if at_commit { "at their commit" } else { "as they come" },
            open >> 10,
            (spilled - before) >> 10,
            cpu * 1e6 / f64::from(rows),
        );
        assert_eq!(spilled > before, at_commit, "{spilled} {before}");
        assert_eq!(open > 0, !at_commit);
        before = spilled;
    }
    let peak = world.peak_bytes();
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB resident", peak >> 20);
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

fn elapsed(began: Instant) -> Duration {
    SystemClock.now() - began
}
