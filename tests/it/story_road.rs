//! A million rows and every type go to the lake under load, and come back equal.

use std::process::Command;

use lakehead::demo::{
    gateway::run,
    ground::find_installed,
    site::{CLIENT, NONE},
    workload::Tally,
};
use lakehead::telemetry::board::SourceState;
use tokio_util::sync::CancellationToken;

use crate::{
    dialect,
    harness::{SOURCE, Setup, World, assert_all_equal},
};

const TYPES: &str = include_str!("../fixtures/types.sql");
const TYPES_CHANGES: &str = include_str!("../fixtures/types_changes.sql");
/// DESIGN P4.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;

/// `LAKEHEAD_SCALE`: so many times 100,000. Servers of other versions differ in types, not in rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_rows_and_every_type_come_back_equal() {
    let scale = std::env::var_os("LAKEHEAD_SCALE");
    let scale = scale.map_or(10, |scale| scale.to_str().unwrap().parse().unwrap());
    let (encryption, integers, uuids) = (NONE.into(), "delta".into(), "text".into());
    let setup = Setup { encryption, integers, uuids, ..Setup::default() };
    let mut world = World::new("road", setup).await;
    world.execute(&dialect::types(TYPES, world.major())).await;
    let admin = world.admin().await;
    admin.batch_execute(HSTORE).await.unwrap();
    pgbench(&world, &["-i", "-q", "-s", &scale.to_string()]).await;
    world.start();
    // Changes under load, from the first moment of the snapshot on.
    let load = pgbench(&world, &["-c", "4", "-T", "20", "-R", "400", "-n"]);
    let changes = world.execute_each(TYPES_CHANGES);
    tokio::join!(load, changes);
    world.execute_each("UPDATE types SET id = id + 50;\nUPDATE hstores SET h = 'c=>3, d=>NULL' WHERE id = 2;\n").await;
    // The snapshot gives way to the load, and may take longer.
    world.settled().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    let read = world.assert_readable().await;
    assert!(read["rows"]["S"].as_u64().unwrap() >= scale * 100_000, "{read}");
    world.assert_sent_once(0);
    let peak = world.peak_bytes();
    assert!(peak <= RESIDENT_BYTES_MAX, "{} MiB resident", peak >> 20);
    eprintln!("a million rows: {} MiB resident at most; {read}", peak >> 20);
    world.end().await;
}

/// A table that has UUIDs as such in some files, and as text in others, is proven and restored as any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uuids_are_laid_down_otherwise_from_one_start_to_the_next() {
    let mut world = World::new("uuids", Setup::default()).await;
    world.execute_each(UUIDS).await;
    world.start();
    world.whole(2).await;
    world.execute_each(UUIDS_CHANGES).await;
    for (before, uuids, is_killed) in [("uuid", "text", false), ("text", "uuid", true)] {
        world.settled().await;
        world.execute_each(UUIDS_CHANGES).await;
        match is_killed {
            true => world.gateway.kill(),
            false => assert_eq!(world.gateway.stop().await, Some(0)),
        }
        world.reconfigure(&format!("uuids = \"{before}\""), &format!("uuids = \"{uuids}\""));
        world.start();
        world.execute_each(UUIDS_CHANGES).await;
    }
    world.settled().await;
    let read = world.assert_readable().await;
    let of = |kind: &str| read["uuids"][kind].as_u64().unwrap_or(0);
    assert!(of("string") >= 2 && of("extension<arrow.uuid>") >= 6, "{read}");
    let ended = world.audit(&["verify", "--against-source", "--json", "--source", SOURCE]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_objects_open_with_the_key_file_alone() {
    let setup = Setup { encryption: CLIENT.into(), tls: true, ..Setup::default() };
    let mut world = World::new("client", setup).await;
    let workload = world.workload(7, 8_000_000, 200.0).await;
    world.start();
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let work = workload.run(&tally, &world.tasks, &stop);
    let end = async {
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        while tally.read().truncated == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        workload.large(20_000, &tally, &world.tasks).await.unwrap();
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(work, end);
    worked.unwrap();
    world.caught_up().await;
    world.assert_proven().await;
    let read = world.assert_readable().await;
    let rows = |op: &str| read["rows"][op].as_u64().unwrap_or(0);
    let done = tally.read();
    assert!(rows("I") > 20_000 && rows("I") <= done.inserted + 100, "{read} {done:?}");
    assert!(rows("T") >= 1 && rows("D") <= done.deleted, "{read} {done:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

/// What stands at a position is what stood there: a restore up to it does not see what came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_up_to_a_position_sees_nothing_later() {
    let mut world = World::new("until", Setup::default()).await;
    let workload = world.workload(8, 1_000_000, 300.0).await;
    world.execute_each(DAYS).await;
    let admin = world.admin().await;
    let before = now(&admin).await;
    world.start();
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let work = workload.run(&tally, &world.tasks, &stop);
    let end = async {
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(work, end);
    worked.unwrap();
    let until = world.caught_up().await;
    // The mark that `caught_up` commits lies behind `until`; keep what stood before it.
    admin.batch_execute("DELETE FROM public.mark").await.unwrap();
    let then = lakehead::demo::compare::digests(&admin, crate::harness::copied).await.unwrap();
    let time = now(&admin).await;
    admin
        .batch_execute("UPDATE public.days SET dt = '2000-01-01', id = id + 10; DELETE FROM public.customers; TRUNCATE public.events; UPDATE public.orders SET total = 0")
        .await
        .unwrap();
    world.caught_up().await;
    let restored = world.restored("until", &["--until", &until.to_string()]).await;
    let found = lakehead::demo::compare::digests(&restored, crate::harness::copied).await.unwrap();
    assert_all_equal(&lakehead::demo::compare::pair(then.clone(), found));
    let restored_by_time = world.restored("time", &["--until", &time]).await;
    let digests = lakehead::demo::compare::digests(&restored_by_time, crate::harness::copied).await;
    assert_all_equal(&lakehead::demo::compare::pair(then, digests.unwrap()));
    let servers = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    servers.batch_execute("CREATE DATABASE before").await.unwrap();
    let refused = world.restore("before", &["--until", &before]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains(&format!("knows nothing of {before}")), "{refused:?}");
    // Again into the same database: nothing changes.
    let again = world.restore("until", &["--until", &until.to_string()]).await;
    assert_eq!(again.code, 0, "{again:?}");
    let admin = world.cluster.connect("until", &world.tasks).await.unwrap();
    let twice = lakehead::demo::compare::digests(&admin, crate::harness::copied).await.unwrap();
    let found = lakehead::demo::compare::digests(&restored, crate::harness::copied).await.unwrap();
    assert_all_equal(&lakehead::demo::compare::pair(found, twice));
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// The server's time as `--until` takes it, and nothing else within a second of it.
async fn now(admin: &tokio_postgres::Client) -> String {
    let pause = || tokio::time::sleep(std::time::Duration::from_secs(1));
    pause().await;
    let sql =
        r#"SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#;
    let time = admin.query_one(sql, &[]).await.unwrap().get(0);
    pause().await;
    time
}

/// Columns that are named like the folders of days, some of which updates leave out.
const DAYS: &str = "CREATE TABLE days (id integer PRIMARY KEY, dt date, dt_ text, \"DT\" bytea);
ALTER TABLE days ALTER dt_ SET STORAGE EXTERNAL;
INSERT INTO days SELECT n, '2020-01-01'::date + n, repeat('x', 9000), '\\x01' FROM generate_series(1, 9) AS n";

/// A database in `SQL_ASCII` holds what it is given, and sends it as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_is_not_utf8_stops_nothing_and_keeps_its_bytes() {
    let database = "ENCODING 'SQL_ASCII' TEMPLATE template0".into();
    let mut world = World::new("latin", Setup { database, ..Setup::default() }).await;
    world
        .execute("CREATE TABLE names (id integer PRIMARY KEY, name text); INSERT INTO names VALUES (1, E'caf\\xe9'), (2, 'plain');
             CREATE TABLE keys (key text PRIMARY KEY, n integer); INSERT INTO keys VALUES (E'\\xe8', 1), (E'\\xe9', 2), (E'\\xea', 3);
             CREATE TABLE bare (a text, n integer); ALTER TABLE bare REPLICA IDENTITY FULL; INSERT INTO bare VALUES (E'\\xe8', 1), (E'\\xe9', 2)")
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO names VALUES (3, E'na\\xefve'), (4, 'žluť'); UPDATE names SET name = E'\\xff' WHERE id = 2;
        UPDATE keys SET key = E'\\xfe', n = 20 WHERE n = 2; DELETE FROM keys WHERE n = 1; UPDATE bare SET n = 20 WHERE n = 2").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_readable().await;
    let postgres = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    postgres.batch_execute("CREATE DATABASE restored").await.unwrap();
    let ended = world.restore("restored", &["--json"]).await;
    let said: serde_json::Value = serde_json::from_str(ended.stdout.trim()).unwrap();
    // No server of another encoding takes them: said, and the lake has them.
    assert_eq!((ended.code, said["repaired_values"].as_u64()), (1, Some(11)), "{ended:?}");
    assert_eq!(said["unmatched_rows"], 0, "{ended:?}");
    let restored = world.cluster.connect("restored", &world.tasks).await.unwrap();
    let sql = "SELECT string_agg(name, ' ' ORDER BY id) FROM names";
    let names: String = restored.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(names, "caf\u{FFFD} \u{FFFD} na\u{FFFD}ve žluť");
    // Of a key the bytes, so that two stay two.
    let sql = "SELECT string_agg(key || n, ' ' ORDER BY n) FROM keys";
    let keys: String = restored.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(keys, "\\xea3 \\xfe20");
    let sql = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM bare";
    let bare: String = restored.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(bare, "1 20");
    world.end().await;
}

async fn pgbench(world: &World, words: &[&str]) {
    let mut command = Command::new(find_installed().unwrap().join("pgbench"));
    command.args(["-h", "127.0.0.1", "-p", &world.cluster.port().to_string(), "-U", "shop"]);
    command.args(words).arg(SOURCE).env("PGPASSWORD", &world.shop_password);
    let ended = run(command, &world.dir.join("pgbench")).await.unwrap();
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// A type of an extension, if the server has it.
const HSTORE: &str = "DO $$ BEGIN CREATE EXTENSION IF NOT EXISTS hstore; EXCEPTION WHEN OTHERS THEN CREATE DOMAIN hstore AS text; END $$;
    CREATE TABLE hstores (id integer PRIMARY KEY, h hstore);
    ALTER TABLE hstores OWNER TO shop;
    INSERT INTO hstores VALUES (1, 'a=>1, b=>NULL'), (2, ''), (3, NULL);";
/// As a key, beside one, in an array, under a domain; without a key each update has the old row, as text.
const UUIDS: &str = "CREATE DOMAIN token AS uuid;
CREATE TABLE documents (id uuid PRIMARY KEY, other uuid, many uuid[], token token, n integer, body text);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
INSERT INTO documents SELECT md5(n::text)::uuid, CASE WHEN n % 3 > 0 THEN md5('o' || n)::uuid END, ARRAY[md5(n::text)::uuid, NULL], md5('t' || n)::uuid, n, CASE WHEN n % 50 = 0 THEN repeat(md5(n::text), 300) END FROM generate_series(1, 3000) AS n;
INSERT INTO documents VALUES ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{}', NULL, 0, NULL);
CREATE TABLE keyless (u uuid, n integer);
ALTER TABLE keyless REPLICA IDENTITY FULL;
INSERT INTO keyless SELECT md5((n / 2)::text)::uuid, n FROM generate_series(1, 1000) AS n;
";
/// Keys that move, values that change, come and go, rows that go and come back.
const UUIDS_CHANGES: &str = "UPDATE documents SET id = md5(id::text)::uuid WHERE n % 7 = 0;
UPDATE documents SET other = id, n = n + 1 WHERE n % 5 = 0;
UPDATE documents SET other = NULL, token = md5(token::text)::uuid WHERE n % 11 = 0;
DELETE FROM documents WHERE n % 13 = 0;
INSERT INTO documents SELECT md5(random()::text || n)::uuid, md5(random()::text || n)::uuid, ARRAY[md5(random()::text)::uuid], md5(random()::text)::uuid, n FROM generate_series(1, 300) AS n;
UPDATE keyless SET u = md5(u::text)::uuid WHERE n % 3 = 0;
DELETE FROM keyless WHERE n % 10 = 0;
";
