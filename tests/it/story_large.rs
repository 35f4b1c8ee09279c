//! What is far larger than usual: one transaction, one value, the number of tables, of columns, an
//! outage. Each gets through within the bound on memory (P4), proven, restored equal and nothing twice.
//!
//! Every run of the tests has each at a tenth or less; `make large` has them whole (`LAKEHEAD_LARGE=1`), with
//! the release build.

use std::time::{Duration, Instant};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::proxy::Way,
    error::Cause,
    ledger::Op,
    telemetry::board::{SourceStatus, TableProgress},
};

use crate::harness::{SOURCE, Setup, World};

/// DESIGN P4: the budget.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;
/// DESIGN P4: of a value above this, twice its size is beside the budget.
const LARGE_VALUE_BYTES: u64 = 64 << 20;
const WHOLE: &str = "LAKEHEAD_LARGE";

/// `whole`, or a tenth of it or less.
fn sized(whole: u64, tenth: u64) -> u64 {
    if std::env::var_os(WHOLE).is_some() { whole } else { tenth }
}

/// What may be resident with values of so many bytes under way. Before version 14 changes come as text: a `bytea` in twice its size.
fn resident_max(world: &World, bytes: u64) -> u64 {
    let sent = if world.major() < 14 { 2 * bytes } else { bytes };
    RESIDENT_BYTES_MAX + if sent > LARGE_VALUE_BYTES { 2 * sent } else { 0 }
}

/// What all large cases end with. `rows`: of `tables`, in snapshots and as changes.
async fn judge(mut world: World, what: &str, tables: &str, rows: [u64; 2], resident_max: u64) {
    let began = SystemClock.now();
    let usage = world.gateway.usage();
    assert_eq!(counted(&world, tables), rows, "rows in the ledger, of the snapshot and inserted");
    world.assert_sent_once(0);
    world.assert_proven().await;
    let proven = elapsed(began);
    world.assert_restored_equal().await;
    let restored = elapsed(began) - proven;
    eprintln!(
        "{what}: {} MiB resident at most, of {}; {:.0} CPU-s; proven in {proven:.0?}, restored and compared in {restored:.0?}",
        usage.peak_bytes >> 20,
        resident_max >> 20,
        usage.cpu_s,
    );
    assert!(usage.peak_bytes <= resident_max, "{} MiB resident", usage.peak_bytes >> 20);
    world.end().await;
}

/// Rows of the snapshot, and inserted ones, that the ledger names in folders of `tables`.
fn counted(world: &World, tables: &str) -> [u64; 2] {
    let mut rows = [0; 2];
    let folder = format!("/public.{tables}");
    for object in world.ledger().iter().flat_map(|entry| &entry.objects) {
        if object.key.contains(&folder) {
            for (at, op) in [Op::Snapshot, Op::Insert].iter().enumerate() {
                rows[at] += object.rows.get(op).copied().unwrap_or(0);
            }
        }
    }
    rows
}

fn tell(what: &str, began: Instant) {
    eprintln!("{what} after {:.1?}", elapsed(began));
}

/// Of what was rolled back to a savepoint nothing comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_five_million_rows_gets_through() {
    let (rows, undone) = (sized(5_000_000, 250_000), sized(1_000_000, 50_000));
    let mut world = World::new("large-transaction", Setup::default()).await;
    world
        .execute(
            "CREATE TABLE large (id bigint PRIMARY KEY, customer integer, at timestamptz, note text)",
        )
        .await;
    world.start();
    world.caught_up().await;
    let began = SystemClock.now();
    let insert = |from: u64, rows: u64| {
        let to = from + rows - 1;
        format!(
            "INSERT INTO large SELECT n, n % 50000, now() + n * interval '1 s', md5(n::text) FROM generate_series({from}, {to}) AS n;"
        )
    };
    let half = rows / 2;
    world
        .execute(&format!(
            "BEGIN; {} SAVEPOINT midway; {} ROLLBACK TO SAVEPOINT midway; {} COMMIT",
            insert(1, half),
            insert(half + 1, undone),
            insert(half + 1, rows - half),
        ))
        .await;
    tell("committed", began);
    world.caught_up().await;
    tell("in the ledger", began);
    let what = format!("a transaction of {rows} rows, {undone} more rolled back");
    judge(world, &what, "large/", [0, rows], RESIDENT_BYTES_MAX).await;
}

/// Once in the snapshot and once as a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_five_hundred_megabytes_gets_through() {
    let bytes = sized(500_000_000, 50_000_000);
    let mut world = World::new("large-value", Setup::default()).await;
    world.noisy(bytes).await;
    world
        .execute(&format!(
            "CREATE TABLE large (id integer PRIMARY KEY, body bytea, note text);
             ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
             INSERT INTO large VALUES (1, noise(1, {bytes}), 'in the snapshot')",
        ))
        .await;
    let began = SystemClock.now();
    world.start();
    world.caught_up().await;
    tell("the snapshot is in the ledger", began);
    world
        .execute(&format!("INSERT INTO large VALUES (2, noise(2, {bytes}), 'in the stream')"))
        .await;
    tell("committed", began);
    world.caught_up().await;
    tell("in the ledger", began);
    let what = format!("two values of {bytes} bytes");
    let most = resident_max(&world, bytes);
    judge(world, &what, "large/", [1, 1], most).await;
}

/// In the snapshots of two tables, in the stream and on their way into the lake, all at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_from_all_sides_get_through() {
    const ROWS: u64 = 3;
    let bytes = sized(200_000_000, 40_000_000);
    let mut world = World::new("large-values", Setup::default()).await;
    world.configure("snapshot_pace = \"full\"\nsnapshot_workers = 2");
    for table in ["large_1", "large_2", "large_3"] {
        let make = format!(
            "CREATE TABLE {table} (id integer PRIMARY KEY, body bytea);
             ALTER TABLE {table} ALTER body SET STORAGE EXTERNAL;"
        );
        world.execute(&make).await;
    }
    world.noisy(bytes).await;
    let noise = |seed: u64| format!("noise({seed}, {bytes})");
    // Of one value there are several: no two rows share a part of the snapshot, and it takes a while.
    for table in [1, 2] {
        world
            .execute(&format!("INSERT INTO large_{table} SELECT n, v.body FROM generate_series(1, {ROWS}) AS n, (SELECT {} AS body) AS v", noise(table)))
            .await;
    }
    world.execute(&format!("CREATE TABLE shelf AS SELECT {} AS body", noise(3))).await;
    let began = SystemClock.now();
    world.start();
    for row in 1..=ROWS {
        world.execute(&format!("INSERT INTO large_3 SELECT {row}, body FROM shelf")).await;
    }
    tell("committed", began);
    world.whole(4).await;
    world.caught_up().await;
    tell("in the ledger", began);
    let most = resident_max(&world, bytes);
    let what = format!("{} values of {bytes} bytes", 3 * ROWS + 1);
    let log = std::fs::read_to_string(world.dir.join("gateway.log")).unwrap();
    assert!(!log.contains("stands still"), "each has its turn, and gives it up");
    // The first row of the third table may have been there before its snapshot.
    let rows = counted(&world, "large_");
    assert_eq!(rows.iter().sum::<u64>(), 3 * ROWS, "{rows:?}");
    judge(world, &what, "large_", rows, most).await;
}

/// They wait for room, and for each other, without standing in each other's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_drain_from_a_full_journal() {
    const ROWS: u64 = 10;
    let bytes = 40_000_000;
    let setup =
        Setup { release: "journal".into(), journal_max: "256 MiB".into(), ..Setup::default() };
    let mut world = World::new("large-values-full", setup).await;
    world.noisy(bytes).await;
    world
        .execute(&format!(
            "CREATE TABLE large (id integer PRIMARY KEY, body bytea);
             ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
             CREATE UNLOGGED TABLE shelf AS SELECT noise(1, {bytes}) AS body"
        ))
        .await;
    world.start();
    world.caught_up().await;
    world.bucket.away(true);
    let began = SystemClock.now();
    for row in 1..=ROWS {
        world.execute(&format!("INSERT INTO large SELECT {row}, body FROM shelf")).await;
    }
    world.until("the journal is full", full).await;
    tell("full", began);
    world.bucket.away(false);
    world.calm(Cause::JournalFull).await;
    world.caught_up().await;
    tell("in the ledger", began);
    let log = std::fs::read_to_string(world.dir.join("gateway.log")).unwrap();
    assert!(!log.contains("stands still"), "each has its turn, and gives it up");
    let usage = world.gateway.usage();
    assert_eq!(counted(&world, "large/"), [0, ROWS]);
    world.assert_sent_once(0);
    world.assert_proven().await;
    assert!(usage.peak_bytes <= resident_max(&world, bytes), "{usage:?}");
    world.end().await;
}

/// All in one snapshot, and then all in one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_tables_get_through() {
    let tables = sized(10_000, 500);
    // Whoever reads them all in one transaction locks as many.
    let locks = ("max_locks_per_transaction".to_owned(), "1024".to_owned());
    let mut world =
        World::new("large-tables", Setup { settings: vec![locks], ..Setup::default() }).await;
    let each = |from: u64, to: u64, statement: &str| {
        format!(
            "DO $$ BEGIN FOR n IN {from}..{to} LOOP EXECUTE format('{statement}', n); END LOOP; END $$"
        )
    };
    for from in (1..=tables).step_by(500) {
        let make = "CREATE TABLE t_%1$s (id integer PRIMARY KEY, note integer); INSERT INTO t_%1$s VALUES (1, %1$s), (2, NULL)";
        world.execute(&each(from, tables.min(from + 499), make)).await;
    }
    let began = SystemClock.now();
    world.start();
    world.caught_up().await;
    let complete = |status: &SourceStatus| {
        let mut parts = status.snapshot.values();
        status.snapshot.len() as u64 >= tables && parts.all(TableProgress::is_whole)
    };
    world.until("all tables are sealed", complete).await;
    world.caught_up().await;
    tell("the snapshot is in the ledger", began);
    world.execute(&each(1, tables, "INSERT INTO t_%1$s VALUES (3, %1$s)")).await;
    tell("committed", began);
    world.caught_up().await;
    tell("in the ledger", began);
    let what = format!("{tables} tables");
    judge(world, &what, "t_", [2 * tables, tables], RESIDENT_BYTES_MAX).await;
}

/// Three tables of them are read at once, and then one is changed in one transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_columns_get_through() {
    const TABLES: u64 = 3;
    let rows = sized(20_000, 800);
    // To analyze them again and again takes longer than all the rest.
    let settings = vec![("autovacuum".to_owned(), "off".to_owned())];
    let mut world = World::new("large-columns", Setup { settings, ..Setup::default() }).await;
    let kinds = [
        ("integer", "n + C"),
        ("bigint", "n * 1000003::bigint + C"),
        ("text", "substr(md5((n % 97 + C)::text), 1, 3)"),
        ("real", "n / 7.0"),
        ("date", "date '2026-01-01' + n % 1000"),
    ];
    let (mut columns, mut values) = (String::new(), String::new());
    for number in 1..1000 {
        let (kind, value) = kinds[number % kinds.len()];
        columns += &format!(", c_{number} {kind}");
        values += &format!(", {}", value.replace('C', &number.to_string()));
    }
    let insert = |table: u64, from: u64| {
        let to = from + rows - 1;
        format!(
            "INSERT INTO wide_{table} SELECT n{values} FROM generate_series({from}, {to}) AS n;"
        )
    };
    for table in 1..=TABLES {
        let make = format!("CREATE TABLE wide_{table} (id integer PRIMARY KEY{columns});");
        world.execute(&(make + &insert(table, 1))).await;
    }
    let began = SystemClock.now();
    world.start();
    world.whole(3).await;
    tell("the snapshot is in the ledger", began);
    world.execute(&insert(1, rows + 1)).await;
    tell("committed", began);
    world.caught_up().await;
    tell("in the ledger", began);
    let what = format!("{TABLES} tables of 1,000 columns and {rows} rows, and as many inserted");
    judge(world, &what, "wide_", [TABLES * rows, rows], RESIDENT_BYTES_MAX).await;
}

/// As many columns as PostgreSQL has, dropped ones among them: 1,600 in all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_columns_as_a_table_can_have_come_back_equal() {
    let mut world = World::new("large-columns-all", Setup::default()).await;
    let columns = |from: u32, to: u32| {
        (from..=to).map(|number| {
            format!("c_{number} {}", ["integer", "text", "boolean"][number as usize % 3])
        })
    };
    let list = |columns: &mut dyn Iterator<Item = String>| columns.collect::<Vec<_>>().join(", ");
    let drops: Vec<String> = (1..=400).map(|number| format!("DROP c_{}", number * 3)).collect();
    world
        .execute_each(&format!(
            "CREATE TABLE most (id integer PRIMARY KEY, {});
CREATE TABLE fewer (id integer PRIMARY KEY, {});
INSERT INTO most (id, c_1, c_1599) VALUES (1, 'x', NULL), (2, NULL, -1);
INSERT INTO most SELECT n FROM generate_series(3, 200) AS n;
INSERT INTO fewer (id, c_3, c_1599) VALUES (1, 3, 4), (2, NULL, NULL);
ALTER TABLE fewer {}",
            list(&mut columns(1, 1599)),
            list(&mut columns(1, 1599)),
            drops.join(", ")
        ))
        .await;
    world.start();
    world.caught_up().await;
    world
        .execute_each(
            "UPDATE most SET c_1598 = true, c_2 = NULL WHERE id < 50;
INSERT INTO most VALUES (1000);
DELETE FROM most WHERE id = 150;
UPDATE fewer SET c_1 = 'y' WHERE id = 2;
INSERT INTO fewer VALUES (3);
ALTER TABLE fewer DROP c_1598;
INSERT INTO fewer VALUES (4, 'z')",
        )
        .await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// The store is away until the journal is full and nothing more is read, and then everything drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_until_the_journal_is_full_drains() {
    const BATCH: u64 = 64;
    let mib = sized(2048, 256);
    let setup =
        Setup { release: "journal".into(), journal_max: format!("{mib} MiB"), ..Setup::default() };
    let mut world = World::new("large-outage", setup).await;
    world
        .execute(
            "CREATE TABLE large (id bigint PRIMARY KEY, body bytea);
             ALTER TABLE large ALTER body SET STORAGE EXTERNAL",
        )
        .await;
    world.start();
    world.caught_up().await;
    world.bucket.away(true);
    let began = SystemClock.now();
    let shop = world.shop().await;
    let (mut rows, mut since) = (0, None);
    // A little longer, so that the server keeps what is not read.
    while since.is_none_or(|since: Instant| elapsed(since) < Duration::from_secs(3)) {
        let to = rows + BATCH;
        // 64 KiB that nothing compresses.
        let insert = format!(
            "INSERT INTO large SELECT n, (SELECT string_agg(sha512((n * 10000 + m)::text::bytea), '') FROM generate_series(1, 1024) AS m)
             FROM generate_series({rows} + 1, {to}) AS n"
        );
        shop.batch_execute(&insert).await.unwrap();
        rows = to;
        if since.is_none() && full(&world.status().await) {
            tell("full", began);
            since = Some(SystemClock.now());
        }
    }
    let status = world.status().await;
    assert!(full(&status) && status.shipped.sequence.0 < rows / 10, "{status:?}");
    world.bucket.away(false);
    world.calm(Cause::JournalFull).await;
    world.caught_up().await;
    tell("in the ledger", began);
    let what = format!("an outage until {mib} MiB of journal are full, {rows} rows of 64 KiB");
    judge(world, &what, "large/", [0, rows], RESIDENT_BYTES_MAX).await;
}

fn full(status: &SourceStatus) -> bool {
    status.alarms.values().any(|alarm| alarm.cause == Cause::JournalFull.name())
}

fn elapsed(began: Instant) -> Duration {
    SystemClock.now() - began
}

/// How long the snapshot still takes, as `lakehead status` says.
async fn seconds_left(world: &World) -> Option<f64> {
    let said = world.gateway.ask(&["status", "--json"], None).await.unwrap();
    let report: serde_json::Value = serde_json::from_str(&said.stdout).ok()?;
    report["sources"][SOURCE]["snapshot_seconds_left"].as_f64()
}

/// DESIGN P3, and an ETA that holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_goes_on_where_it_was_killed_and_says_how_long_it_takes() {
    let setup = Setup { proxied: true, ..Setup::default() };
    let mut world = World::new("large-table", setup).await;
    // Of five parts the last would be read by one of two workers alone.
    let workers = sized(2, 1);
    world.configure(&format!("snapshot_pace = \"full\"\nsnapshot_workers = {workers}"));
    let rows = sized(4_800_000, 480_000);
    // Some 1,070 bytes a row on the server's disk.
    world
        .execute(&format!(
            "CREATE TABLE large (id bigint PRIMARY KEY, a text);
             INSERT INTO large SELECT n, repeat(md5(n::text), 31) FROM generate_series(1, {rows}) n;
             ANALYZE large"
        ))
        .await;
    let read = |status: &SourceStatus| {
        status.snapshot.get("public.large").map_or((0, 0), |table| (table.rows, table.rows_done))
    };
    world.start();
    let mut status = world.status().await;
    while read(&status).0 < rows / 2 {
        world.must_run();
        tokio::time::sleep(Duration::from_millis(20)).await;
        status = world.status().await;
    }
    world.gateway.kill();
    // Of each connection: the rest in some 50 s, or 20.
    let rate = sized(30_000_000, 16_000_000);
    world.lanes.as_ref().unwrap().source.set(Way::Slow(rate));
    let (before, began) = (read(&status).0, SystemClock.now());
    world.start();
    let known = world.until("the plan is there again", |status| read(status).1 > 0).await;
    // Sealed since it was last asked counts as kept.
    let (_, kept) = read(&known);
    let again = before.saturating_sub(kept);
    let mut forecasts = vec![];
    while !status.snapshot["public.large"].is_whole() {
        let read_s = elapsed(began).as_secs_f64();
        if let Some(left) = seconds_left(&world).await {
            forecasts.push((read_s, left));
        }
        world.must_run();
        tokio::time::sleep(Duration::from_millis(200)).await;
        status = world.status().await;
    }
    let took = elapsed(began).as_secs_f64();
    let late = forecasts.iter().filter(|(at, _)| *at >= took / 4.0 && *at <= took * 0.9);
    let errors: Vec<f64> = late.map(|(at, left)| (at + left - took).abs() / (took - at)).collect();
    let worst = errors.iter().copied().fold(0.0, f64::max);
    let mut sorted = errors.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let of_all = again as f64 / rows as f64;
    eprintln!(
        "killed after {before} of {rows} rows: {:.1} % read again; {} forecasts in {took:.0} s, off by {:.0} % (median), {:.0} % at most",
        100.0 * of_all,
        errors.len(),
        100.0 * median,
        100.0 * worst,
    );
    // At a tenth of the size a part of 128 MiB is a fifth of all.
    let again_max = if workers == 1 { 0.25 } else { 0.05 };
    assert!(of_all < again_max, "{again} rows are read again");
    assert!(median < 0.2, "{took}: {forecasts:?}");
    world.caught_up().await;
    judge(world, "a table killed at its half", "large", [rows, 0], RESIDENT_BYTES_MAX).await;
}
