//! Behind a gap tables are compared with the database, and only the rows that differ are read
//! (`after_gap = "compare"`).

use std::{fs, path::Path, time::Duration};

use lakehead::{
    demo::compare::compare,
    error::Cause,
    ledger::{EntryKind, Op},
    telemetry::board::SourceStatus,
};
use serde_json::Value;

use crate::harness::{SOURCE, Setup, World, assert_all_equal, copied};

const TABLES: &str = "CREATE TABLE keyed (id integer PRIMARY KEY, a text, big text);\n\
    CREATE TABLE \"Odd one\" (\"Kéy\" text, n integer, v bytea, PRIMARY KEY (n, \"Kéy\"));\n\
    CREATE TABLE priced (price numeric PRIMARY KEY, a text);\n\
    CREATE TABLE emptied (id integer PRIMARY KEY, a text);\n\
    CREATE TABLE still (id integer PRIMARY KEY, a text);\n\
    CREATE TABLE grown (id integer PRIMARY KEY, a text);\n\
    CREATE TABLE wider (id integer PRIMARY KEY, a text);\n\
    CREATE TABLE bare (id integer, a text);\nALTER TABLE bare REPLICA IDENTITY FULL;\n\
    CREATE TABLE first_name (id integer PRIMARY KEY, a text);\n\
    ALTER TABLE keyed ALTER big SET STORAGE EXTERNAL;\n\
    INSERT INTO keyed SELECT n, 'a' || n, CASE n % 50 WHEN 0 THEN repeat(md5(n::text), 200) END \
        FROM generate_series(1, 20000) AS n;\n\
    INSERT INTO \"Odd one\" SELECT 'k,''' || n, n, decode(md5(n::text), 'hex') FROM generate_series(1, 500) AS n;\n\
    INSERT INTO priced SELECT n / 4.0, 'a' FROM generate_series(1, 300) AS n;\n\
    INSERT INTO emptied SELECT n, 'a' FROM generate_series(1, 300) AS n;\n\
    INSERT INTO still SELECT n, 'a' FROM generate_series(1, 3000) AS n;\n\
    INSERT INTO grown SELECT n, 'a' FROM generate_series(1, 300) AS n;\n\
    INSERT INTO wider SELECT n, 'a' FROM generate_series(1, 300) AS n;\n\
    INSERT INTO bare SELECT n, 'a' FROM generate_series(1, 300) AS n;\n\
    INSERT INTO first_name SELECT n, 'a' FROM generate_series(1, 300) AS n";

/// Nobody sends these.
const LOST: &str = "DELETE FROM keyed WHERE id % 997 = 0;\n\
    UPDATE keyed SET a = 'lost' WHERE id % 991 = 0;\n\
    UPDATE keyed SET big = repeat('lost', 2000) WHERE id % 1000 = 50;\n\
    UPDATE keyed SET id = -id WHERE id % 983 = 0;\n\
    INSERT INTO keyed SELECT n, 'new', repeat('new', 2000) FROM generate_series(30001, 30020) AS n;\n\
    UPDATE \"Odd one\" SET \"Kéy\" = \"Kéy\" || '\\' WHERE n % 100 = 0;\n\
    UPDATE \"Odd one\" SET v = '' WHERE n % 90 = 0;\n\
    UPDATE priced SET price = 1.00 WHERE price = 1;\n\
    DELETE FROM priced WHERE price = 2;\nINSERT INTO priced VALUES (2.000, 'again');\n\
    TRUNCATE emptied;\nINSERT INTO emptied VALUES (7, 'since'), (1000, 'since');\n\
    ALTER TABLE grown ADD COLUMN b integer DEFAULT 5;\n\
    UPDATE grown SET a = 'lost' WHERE id < 10;\n\
    ALTER TABLE wider ADD COLUMN b integer DEFAULT 5;\n\
    DELETE FROM bare WHERE id < 50;\nUPDATE bare SET a = 'lost' WHERE id > 290;\n\
    UPDATE second_name SET a = 'lost' WHERE id < 5";

/// These are sent: of rows that the lake has otherwise, or not at all, without their large values and under
/// other keys.
const SENT: &str = "UPDATE keyed SET a = 'sent' WHERE id % 1000 = 50;\n\
    UPDATE keyed SET id = id + 500000 WHERE id % 2000 = 50;\n\
    UPDATE keyed SET a = 'sent' WHERE id > 500000;\n\
    UPDATE keyed SET a = 'sent' WHERE id IN (30001, 30002, -983);\n\
    DELETE FROM keyed WHERE id IN (30003, 991);\n\
    INSERT INTO keyed VALUES (997, 'back', NULL);\n\
    UPDATE \"Odd one\" SET v = 'sent' WHERE n = 100;\n\
    UPDATE priced SET a = 'sent' WHERE price IN (1, 2, 3);\n\
    INSERT INTO emptied VALUES (8, 'sent');\n\
    UPDATE wider SET a = 'sent' WHERE id = 20;\n\
    UPDATE bare SET a = 'sent' WHERE id = 100;\n\
    UPDATE second_name SET a = 'sent' WHERE id = 100";

/// Compares as somebody who may read the lake.
async fn against_source(world: &World, words: &[&str]) -> (i32, Value) {
    let all = ["verify", "--against-source", "--json", "--source", SOURCE];
    let ended = world.audit(&[&all, words].concat()).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    (ended.code, said["against_source"][0].clone())
}

fn waits(status: &SourceStatus) -> bool {
    let mut alarms = status.alarms.values();
    alarms.any(|alarm| alarm.cause == Cause::SourceCompare.name())
}

/// Rows of a table with this `_op` in entries of rows read again.
fn repaired_rows(world: &World, table: &str, op: Op) -> u64 {
    let ledger = world.ledger();
    let repairs = ledger.iter().filter(|entry| entry.kind == EntryKind::Repair);
    let objects = repairs.flat_map(|entry| &entry.objects);
    let own = objects.filter(|object| object.key.contains(&format!("/public.{table}/")));
    own.filter_map(|object| object.rows.get(&op)).sum()
}

/// Proven with its gap and its repair, and equal: beside the database, from nothing and from the state before.
async fn assert_whole(world: &mut World) {
    world.caught_up().await;
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("GAP entry"), "{ended:?}");
    assert!(ended.stdout.contains("repaired by keys"), "{ended:?}");
    let (code, report) = against_source(world, &[]).await;
    assert_eq!(code, 0, "{report:#}");
    world.assert_proven_independently(&[]).await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    let again = world.restore("before", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    let admin = world.admin().await;
    let before = world.cluster.connect("before", &world.tasks).await.unwrap();
    assert_all_equal(&compare(&admin, &before, copied).await.unwrap());
    // WITH (FORCE) came with PostgreSQL 13.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'restored'";
    admin.batch_execute(end).await.unwrap();
    admin.batch_execute("DROP DATABASE restored").await.unwrap();
}

/// A world whose tables are in the lake, and restored; one has another name since, and another one its name. The
/// gateway is down.
async fn begun(story: &str) -> World {
    let mut world = World::new(story, Setup::default()).await;
    world.compare_after_gap(true);
    world.execute_each(TABLES).await;
    world.start();
    world.settled().await;
    world.restored("before", &[]).await;
    world
        .execute_each(
            "ALTER TABLE first_name RENAME TO second_name;\n\
            UPDATE second_name SET a = 'renamed' WHERE id = 50;\n\
            CREATE TABLE first_name (id integer PRIMARY KEY, a text);\n\
            INSERT INTO first_name VALUES (1, 'other')",
        )
        .await;
    world.caught_up().await;
    world.gateway.kill();
    world
}

/// What the alarms say.
fn what(status: &SourceStatus) -> String {
    status.alarms.values().map(|alarm| alarm.what.clone()).collect::<Vec<_>>().join("; ")
}

/// Another gap, behind which nothing waits for an order that is as old as the first.
async fn twice_more(world: &mut World, file: &Path, order: &Path) {
    world.gateway.kill();
    world.drop_slot().await;
    world.execute_each("DELETE FROM keyed WHERE id BETWEEN 1 AND 99").await;
    world.start();
    world.until("it waits to be compared", waits).await;
    let (code, _) =
        against_source(world, &["--repair", "--repair-file", file.to_str().unwrap()]).await;
    assert_eq!(code, 1);
    world.gateway.kill();
    world.drop_slot().await;
    world.execute_each("DELETE FROM keyed WHERE id BETWEEN 1 AND 199").await;
    world.start();
    world.until("it waits to be compared", waits).await;
    fs::copy(file, order).unwrap();
    let refused = |status: &SourceStatus| what(status).contains("is refused: it was made at");
    world.until("the order is refused", refused).await;
    let (code, report) = against_source(world, &["--repair"]).await;
    // 50 has another key.
    assert_eq!((code, report["ordered"]["public.keyed"]["keys"].as_u64()), (1, Some(198)));
    world.repaired().await;
    assert_whole(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_gap_only_the_rows_that_differ_are_read() {
    let mut world = begun("compare").await;
    world.execute_each(LOST).await;
    world.drop_slot().await;
    world.execute_each("UPDATE keyed SET a = 'between' WHERE id = 1").await;
    world.start();
    let status = world.until("it waits to be compared", waits).await;
    assert!(what(&status).contains("public.keyed"), "{}", what(&status));
    world.execute_each(SENT).await;
    world.caught_up().await;

    // Until then nothing of it passes for whole.
    let (code, report) = against_source(&world, &[]).await;
    assert_eq!(code, 2, "{report:#}");
    let refused = world.restore("before", &[]).await;
    assert!(refused.code != 0 && refused.stderr.contains("public.keyed"), "{refused:?}");

    let order = world.site.data_dir().join("repair").join(format!("{SOURCE}.json"));
    let file = world.dir.join("order.json");
    let elsewhere = ["--repair", "--repair-file", file.to_str().unwrap()];
    let (code, report) = against_source(&world, &elsewhere).await;
    let ordered = report["ordered"].clone();
    assert_eq!(code, 1, "{report:#}");
    let keys = |table: &str| ordered[format!("public.{table}")]["keys"].as_u64();
    assert!(keys("keyed").is_some_and(|keys| (80..300).contains(&keys)), "{ordered:#}");
    assert_eq!(keys("still"), Some(0), "{ordered:#}");
    assert_eq!(keys("second_name"), Some(4), "{ordered:#}");
    // Equal keys that are printed otherwise: the lake has both, of which one is none of the database's.
    assert_eq!(keys("priced"), Some(2), "{ordered:#}");
    // What rows have in a column that came after them is known.
    assert_eq!((keys("wider"), keys("grown")), (Some(0), Some(9)), "{ordered:#}");

    // Before the box has the order, rows of it get other keys, without their large values.
    world.execute_each("UPDATE keyed SET id = -id WHERE id BETWEEN 500000 AND 510000").await;
    world.caught_up().await;
    fs::copy(&file, &order).unwrap();
    // It is cut at many moments, while the keys of rows that are to be read change.
    for after in [300, 700, 1200, 2000] {
        tokio::time::sleep(Duration::from_millis(after)).await;
        world.gateway.kill();
        world
            .execute_each(
                "UPDATE keyed SET id = id + 100001 WHERE id > 500000;\n\
                UPDATE keyed SET a = 'meanwhile' WHERE id IN (30004, 30005)",
            )
            .await;
        world.start();
    }
    world.repaired().await;
    assert_whole(&mut world).await;
    assert!(!order.exists(), "it was taken");
    let read = repaired_rows(&world, "keyed", Op::Repair);
    assert!((50..600).contains(&read), "{read} of 20000 rows");
    assert!(repaired_rows(&world, "keyed", Op::Delete) > 20);
    assert_eq!(repaired_rows(&world, "still", Op::Repair), 0);

    twice_more(&mut world, &file, &order).await;

    // Nothing waits any more: that is said, and nothing is ordered.
    let ended = world.audit(&["verify", "--against-source", "--repair"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("EQUAL"), "{ended:?}");
    assert!(!order.exists());
    world.end().await;
}

/// Who does not wait has all tables read anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_wait_are_read_anew_where_that_is_configured_then() {
    let mut world = begun("compare-not").await;
    world.execute_each(LOST).await;
    world.drop_slot().await;
    world.start();
    world.until("it waits to be compared", waits).await;
    world.gateway.kill();
    world.compare_after_gap(false);
    world.start();
    world.repaired().await;
    world.execute_each(SENT).await;
    world.caught_up().await;
    let (code, report) = against_source(&world, &[]).await;
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(repaired_rows(&world, "keyed", Op::Repair), 0);
    world.assert_proven_independently(&[]).await;
    world.assert_restored_equal().await;
    world.end().await;
}

fn is_large() -> bool {
    std::env::var_os("LAKEHEAD_LARGE").is_some()
}

/// 5 M rows of which 0.1 % differ, at a fiftieth unless asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_table_of_which_a_thousandth_differs_less_than_a_twentieth_is_read() {
    let rows = if is_large() { 5_000_000 } else { 100_000 };
    let mut world = World::new("compare-large", Setup::default()).await;
    world.compare_after_gap(true);
    world
        .execute(&format!(
            "CREATE TABLE orders (id bigint PRIMARY KEY, customer integer, placed timestamptz, note text);
            INSERT INTO orders SELECT n, n % 9973, '2026-01-01'::timestamptz + n * interval '1 s',
                md5(n::text) || md5((n + 1)::text) FROM generate_series(1, {rows}) AS n"
        ))
        .await;
    world.start();
    world.whole(1).await;
    world.gateway.kill();
    world
        .execute(
            "UPDATE orders SET note = 'lost' WHERE id % 2000 = 0;
            DELETE FROM orders WHERE id % 4000 = 1;
            INSERT INTO orders SELECT -id, customer, placed, note FROM orders WHERE id % 4000 = 2",
        )
        .await;
    world.drop_slot().await;
    world.start();
    world.until("it waits to be compared", waits).await;
    let before = world.status().await.snapshot.get("public.orders").map_or(0, |table| table.bytes);
    let (code, report) = against_source(&world, &["--repair"]).await;
    assert_eq!(code, 1, "{report:#}");
    let ordered = report["ordered"]["public.orders"]["keys"].as_u64();
    assert_eq!(ordered, Some(rows / 1000), "{report:#}");
    world.repaired().await;
    world.caught_up().await;
    let read = world.status().await.snapshot["public.orders"].bytes - before;
    let compared = report["source_bytes"].as_u64().unwrap();
    let admin = world.admin().await;
    let size = "SELECT sum(pg_column_size(o.*))::int8 FROM orders o";
    let size: i64 = admin.query_one(size, &[]).await.unwrap().get(0);
    let size = u64::try_from(size).unwrap();
    eprintln!("== {rows} rows, {size} bytes: {compared} bytes read to compare, {read} to repair");
    assert!(read > 0 && compared > 0 && (read + compared) * 20 < size);
    let (code, report) = against_source(&world, &[]).await;
    assert_eq!(code, 0, "{report:#}");
    world.assert_restored_equal().await;
    world.end().await;
}
