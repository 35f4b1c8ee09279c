//! What newer servers have of their own comes back equal, and harms nobody; with PostgreSQL 17 a standby has the slot
//! without anybody's help. Older servers leave out what they lack, and say so.

use std::{collections::BTreeSet, process::Command, time::Duration};

use lakehead::{
    demo::{
        cluster::{Cluster, ClusterOptions, SUPERUSER, Stop},
        compare::compare,
        gateway::run,
        ground::{find_installed, random_key},
    },
    error::Cause,
    telemetry::board::{SourceState, SourceStatus},
};

use crate::{
    dialect,
    harness::{SLOT, SOURCE, Setup, World, assert_all_equal, copied, known_since},
    story_new_table::read_anew,
};

const TYPES: &str = include_str!("../fixtures/types.sql");
const TYPES_CHANGES: &str = include_str!("../fixtures/types_changes.sql");

/// Statements that servers know since a major version: before the box copies, and while it streams.
struct News {
    since: u32,
    what: &'static str,
    before: &'static str,
    under_way: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_newer_servers_have_comes_back_equal() {
    let mut world = World::new("versions", Setup::default()).await;
    let major = world.major();
    let admin = world.admin().await;
    admin.batch_execute("CREATE EXTENSION btree_gist").await.unwrap();
    let (known, unknown): (Vec<&News>, Vec<&News>) =
        NEWS.iter().partition(|news| news.since <= major);
    for news in unknown {
        eprintln!("PostgreSQL {major}: left out, it came with {}: {}", news.since, news.what);
    }
    for news in &known {
        world.execute_each(news.before).await;
    }
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    for news in &known {
        world.execute_each(news.under_way).await;
    }
    // What is read anew must not come while the lake is compared.
    world.settled().await;
    let alarms = world.status().await.alarms;
    assert!(alarms.is_empty(), "{alarms:?}");
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    let ended = world.audit(&["verify", "--against-source", "--source", SOURCE]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    world.end().await;
}

/// Every type, changed behind the snapshot, comes back in another server: the one whose programs are in the folder
/// that `LAKEHEAD_POSTGRES_NEWEST` names, an upgrade by way of the lake, or one of the same version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_had_comes_back_equal_in_another_one() {
    let mut world = World::new("versions-upgrade", Setup::default()).await;
    world.execute(&dialect::types(TYPES, world.major())).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    // Large values that a change leaves out are those of rows that are read.
    world.caught_up().await;
    world.execute_each(TYPES_CHANGES).await;
    world.caught_up().await;
    world.assert_proven().await;
    let options = ClusterOptions {
        dir: world.dir.join("newest"),
        binaries: std::env::var_os("LAKEHEAD_POSTGRES_NEWEST").map(Into::into),
        ..ClusterOptions::default()
    };
    let newest = Cluster::create(&options).unwrap();
    let password = world.dir.join("newest.password");
    lakehead::disk::write_durably(&password, newest.password().as_bytes()).unwrap();
    let (to, password) = (newest.url(SUPERUSER, "postgres"), password.to_str().unwrap());
    let words = ["restore", "--source", SOURCE, "--to", &to, "--password-file", password];
    let ended = world.audit(&words).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let restored = newest.connect("postgres", &world.tasks).await.unwrap();
    let tables = compare(&world.admin().await, &restored, copied).await.unwrap();
    assert!(tables.len() >= 8, "{tables:?}");
    assert_all_equal(&tables);
    newest.remove().unwrap();
    world.end().await;
}

/// Whatever names a table's old rows, the customer's statements are not refused for the box's publications.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_with_generated_columns_are_followed_or_said_and_refused_to_nobody() {
    let mut world = World::new("versions-old-rows", Setup::default()).await;
    let major = world.major();
    world.execute_each(OLD_ROWS).await;
    if major >= VIRTUAL_SINCE {
        world.execute_each(OLD_ROWS_VIRTUAL).await;
    } else {
        eprintln!("PostgreSQL {major}: left out, it came with {VIRTUAL_SINCE}: virtual columns");
    }
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    world.execute_each(OLD_ROWS_CHANGES).await;
    let status = world.status().await;
    let told = |what: &str| what.contains("key_computed") && what.contains("a generated column");
    assert!(status.alarms.values().any(|alarm| told(&alarm.what)), "{status:#?}");
    world.execute("ALTER TABLE key_computed REPLICA IDENTITY FULL").await;
    if major >= VIRTUAL_SINCE {
        world.execute_each(OLD_ROWS_VIRTUAL_CHANGES).await;
        let status = world.status().await;
        let told = |what: &str| what.contains("virtual_full") && what.contains("virtual columns");
        assert!(status.alarms.values().any(|alarm| told(&alarm.what)), "{status:#?}");
        world.execute("DROP TABLE virtual_full").await;
    }
    // One that becomes such under way.
    world.execute("ALTER TABLE plain REPLICA IDENTITY FULL; ALTER TABLE plain ADD twice integer GENERATED ALWAYS AS (id * 2) STORED").await;
    let admin = world.admin().await;
    let mut changed = false;
    for _ in 0..100 {
        changed = admin.batch_execute("UPDATE plain SET a = 'later'").await.is_ok();
        if changed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(changed, "statements on it are refused:\n{}", world.gateway.log_end());
    world.settled().await;
    world.execute("UPDATE key_computed SET a = 'by all of it' WHERE id > 40").await;
    world.caught_up().await;
    // What changed while nothing named its rows was read anew.
    assert_eq!(read_anew(&world), ["key_computed"]);
    world.assert_proven().await;
    world.assert_readable().await;
    let gone = ["--except", "public.virtual_full"];
    let gone = if major >= VIRTUAL_SINCE { &gone[..] } else { &[] };
    let restored = world.restored("restored", gone).await;
    // A restore makes no key that has a generated column, and includes none in one.
    world.execute_each(KEYS_AS_RESTORED).await;
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    world.end().await;
}

/// Of a publication that an operator made what the server's own view says is copied, and the rest is named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_operators_publication_what_the_server_publishes_is_copied() {
    if !known_since(13, "partitioned tables in publications") {
        return;
    }
    let mut world = World::new("versions-publication", Setup::default()).await;
    let in_schemas = world.major() >= 15;
    world.execute_each(PUBLISHED).await;
    let schemas = if in_schemas { ", TABLES IN SCHEMA area" } else { "" };
    let create =
        format!("CREATE PUBLICATION theirs FOR TABLE mark, computed, whole, parts{schemas}");
    let admin = world.admin().await;
    admin.batch_execute(&create).await.unwrap();
    if world.major() >= 14 {
        half_detached(&world).await;
    }
    world.configure("publication = \"theirs\"");
    world.start();
    let mut published = published(&world).await;
    // Its updates and deletes would name no row.
    assert!(published.remove("public.computed"));
    let detached = usize::from(world.major() < 14);
    assert_eq!(published.len() - detached, if in_schemas { 7 } else { 4 }, "{published:?}");
    // The mark is always one more.
    world.whole(published.len() - 1).await;
    let status = world.status().await;
    assert_eq!(status.snapshot.into_keys().collect::<BTreeSet<_>>(), published);
    for why in ["outside: it is not in the publication", "computed: its key has a generated column"]
    {
        let refused = |what: &str| what.contains(why);
        assert!(status.alarms.values().any(|alarm| refused(&alarm.what)), "{:?}", status.alarms);
    }
    admin.batch_execute("ALTER PUBLICATION theirs ADD TABLE outside").await.unwrap();
    world.execute("INSERT INTO outside VALUES (1); INSERT INTO parts VALUES (2), (150); INSERT INTO computed VALUES (1), (2); UPDATE computed SET id = 3 WHERE id = 2").await;
    world.whole(published.len()).await;
    world.settled().await;
    world.assert_proven().await;
    let restored = world.restored("restored", &[]).await;
    let there = restored.query_one("SELECT to_regclass('computed') IS NULL", &[]).await.unwrap();
    assert!(there.get::<_, bool>(0), "it was refused");
    world.end().await;
}

/// A partition that is detached without a lock, and not to the end, as somebody still reads.
async fn half_detached(world: &World) {
    let (reader, admin) = (world.admin().await, world.admin().await);
    reader.batch_execute("BEGIN; SELECT FROM parts").await.unwrap();
    admin.batch_execute("SET statement_timeout = '1s'").await.unwrap();
    let detach = "ALTER TABLE parts DETACH PARTITION parts_3 CONCURRENTLY";
    assert!(admin.batch_execute(detach).await.is_err(), "nobody was waited for");
    reader.batch_execute("ROLLBACK").await.unwrap();
}

/// What the server says is in the publication, partitions of others among it.
async fn published(world: &World) -> BTreeSet<String> {
    let sql =
        "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'theirs'";
    let rows = world.admin().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

const PUBLISHED: &str = "CREATE SCHEMA far; CREATE SCHEMA area;
CREATE TABLE computed (id integer, b integer GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
CREATE TABLE whole (id integer PRIMARY KEY);
CREATE TABLE outside (id integer PRIMARY KEY);
CREATE TABLE parts (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE far.parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
CREATE TABLE far.parts_2_1 PARTITION OF far.parts_2 FOR VALUES FROM (100) TO (200);
CREATE TABLE parts_3 PARTITION OF parts FOR VALUES FROM (200) TO (300);
CREATE TABLE area.one (id integer PRIMARY KEY);
CREATE TABLE area.two (id integer PRIMARY KEY);
CREATE TABLE area.three (id integer PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE area_leaf PARTITION OF area.three DEFAULT;
CREATE UNLOGGED TABLE area.unlogged (id integer PRIMARY KEY)";

/// A database of the builtin provider, whose order of text is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_a_locale_of_its_own_comes_back_equal() {
    let options = "TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'";
    let setup = Setup { database: options.into(), ..Setup::default() };
    let Some(mut world) = World::since(17, "versions-locale", setup).await else { return };
    world
        .execute_each(
            "CREATE TABLE words (word text PRIMARY KEY, note text COLLATE \"unicode\");\n\
        INSERT INTO words SELECT chr(200 + n) || n, chr(9000 + n) FROM generate_series(1, 500) AS n",
        )
        .await;
    world.start();
    world.caught_up().await;
    world
        .execute_each(
            "UPDATE words SET word = upper(word) || 'É' WHERE word > 'Ā';\n\
        DELETE FROM words WHERE word < 'Í'",
        )
        .await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    let ended = world.audit(&["verify", "--against-source", "--source", SOURCE]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    world.end().await;
}

/// The primary is lost all at once; the standby has copied the slot, as the box asked for when it made it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_copies_slots_is_followed_without_a_gap() {
    let Some((mut world, standby)) = synchronized("versions-failover").await else { return };
    world.start();
    change(&world, 1).await;
    world.caught_up().await;
    until_copied(&world, &standby).await;
    for round in 2..12 {
        change(&world, round).await;
    }
    fail_over(&mut world, standby).await;
    for round in 12..20 {
        change(&world, round).await;
    }
    assert_followed(&mut world).await;
    // And the new primary's slot is one that its standbys copy.
    assert!(failover(&world).await);
    world.end().await;
}

/// A slot that was made by a server before 17, or by hand: standbys copy it once the box has been started.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_standbys_do_not_copy_is_made_one_that_they_do() {
    let Some((mut world, standby)) = synchronized("versions-failover-alter").await else { return };
    world.start();
    world.caught_up().await;
    world.gateway.kill();
    assert!(failover(&world).await);
    replicate(&world, &format!("ALTER_REPLICATION_SLOT {SLOT} (FAILOVER false)")).await;
    assert!(!failover(&world).await);
    world.start();
    world.caught_up().await;
    assert!(failover(&world).await);
    change(&world, 1).await;
    until_copied(&world, &standby).await;
    fail_over(&mut world, standby).await;
    change(&world, 2).await;
    assert_followed(&mut world).await;
    world.end().await;
}

/// A slot that nobody read from for as long as the server allows is given up, like one whose log grew too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_idle_for_too_long_is_a_gap_that_is_said_and_repaired() {
    let settings = vec![("idle_replication_slot_timeout".to_owned(), "1s".to_owned())];
    let setup = Setup { settings, ..Setup::default() };
    let Some(mut world) = World::since(18, "versions-idle", setup).await else { return };
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text)").await;
    change(&world, 1).await;
    world.start();
    world.caught_up().await;
    world.gateway.kill();
    change(&world, 2).await;
    let admin = world.admin().await;
    let lost = "SELECT FROM pg_replication_slots WHERE invalidation_reason = 'idle_timeout'";
    for tick in 0.. {
        assert!(tick < 100, "the slot stays");
        tokio::time::sleep(Duration::from_millis(250)).await;
        admin.batch_execute("CHECKPOINT").await.unwrap();
        if admin.query(lost, &[]).await.unwrap().len() == 1 {
            break;
        }
    }
    world.start();
    world.repaired().await;
    change(&world, 3).await;
    world.caught_up().await;
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("gave up"), "{ended:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

/// A world whose gateway knows two hosts: a primary, and a standby that copies its slots and is waited for.
async fn synchronized(story: &str) -> Option<(World, Cluster)> {
    let mut world = World::since(17, story, Setup::default()).await?;
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text)").await;
    let mut standby = world.cluster.standby_of_copy(&world.dir.join("standby")).unwrap();
    let admin = world.admin().await;
    let physical = "SELECT pg_create_physical_replication_slot('standby', true)";
    admin.batch_execute(physical).await.unwrap();
    standby
        .set(&[
            ("primary_slot_name", "standby"),
            ("hot_standby_feedback", "on"),
            ("sync_replication_slots", "on"),
        ])
        .unwrap();
    standby.restart(Stop::Fast).unwrap();
    // The box is never told what the standby lacks.
    world.cluster.set(&[("synchronized_standby_slots", "standby")]).unwrap();
    world.cluster.reload();
    let (first, second) = (world.cluster.port(), standby.port());
    let hosts = format!(":{first},127.0.0.1:{second}/{SOURCE}");
    world.site.url = world.site.url.replace(&format!(":{first}/{SOURCE}"), &hosts);
    world.site.write(&random_key().unwrap()).unwrap();
    Some((world, standby))
}

/// Waits until the standby has the slot for good.
async fn until_copied(world: &World, standby: &Cluster) {
    let there = standby.connect(SOURCE, &world.tasks).await.unwrap();
    let copied = format!(
        "SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND synced AND NOT temporary"
    );
    for tick in 0..600 {
        if there.query(&copied, &[]).await.unwrap().len() == 1 {
            return;
        }
        if tick % 20 == 0 {
            // The slot has to move behind what the standby has.
            change(world, 1000 + tick).await;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("the standby does not copy the slot:\n{}", standby.log_end());
}

/// The primary is lost, and the standby becomes one.
async fn fail_over(world: &mut World, standby: Cluster) {
    world.cluster.stop(Stop::Immediate);
    let old = std::mem::replace(&mut world.cluster, standby);
    old.remove().unwrap();
    let admin = world.admin().await;
    admin.batch_execute("SELECT pg_promote(true, 60)").await.unwrap();
    // It waits for no standby of its own.
    world.cluster.set(&[("synchronized_standby_slots", "")]).unwrap();
    world.cluster.reload();
}

/// No gap was met, and nothing is missing.
async fn assert_followed(world: &mut World) {
    world.caught_up().await;
    let gap = |status: &SourceStatus| {
        status.alarms.values().any(|alarm| alarm.cause == Cause::SourceGap.name())
    };
    let status = world.status().await;
    assert!(status.state == SourceState::Streaming && !gap(&status), "{status:#?}");
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && !ended.stdout.contains("GAP entry"), "{ended:?}");
    world.assert_readable().await;
    world.assert_restored_equal().await;
}

/// Whether the box's slot is one that standbys copy.
async fn failover(world: &World) -> bool {
    let sql = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    world.admin().await.query_one(&sql, &[]).await.unwrap().get(0)
}

/// Runs a command of the replication protocol, once nobody reads from the slot.
async fn replicate(world: &World, statement: &str) {
    let url = format!("{}?replication=database", world.cluster.url(SUPERUSER, SOURCE));
    let mut said = String::new();
    for _ in 0..100 {
        let mut command = Command::new(find_installed().unwrap().join("psql"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &url, "-c", statement]);
        command.env("PGPASSWORD", world.cluster.password());
        let ended = run(command, &world.dir.join("psql")).await.unwrap();
        if ended.code == 0 {
            return;
        }
        said = ended.stderr;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{statement}: {said}");
}

async fn change(world: &World, round: u32) {
    world
        .execute(&format!(
            "INSERT INTO t SELECT {round} * 1000 + n, repeat('x', 100) FROM generate_series(1, 500) AS n
             ON CONFLICT (id) DO UPDATE SET a = t.a || 'z';
             UPDATE t SET a = a || 'y' WHERE id % 7 = {round} % 7"
        ))
        .await;
}

/// The first major version with virtual generated columns.
const VIRTUAL_SINCE: u32 = 18;
const OLD_ROWS: &str =
    "CREATE TABLE stored_full (id integer, a text, b text GENERATED ALWAYS AS (a || '!') STORED);
ALTER TABLE stored_full REPLICA IDENTITY FULL;
INSERT INTO stored_full VALUES (1, 'one'), (2, 'two'), (3, repeat('large', 100000));
CREATE TABLE stored_index (id integer, a text, b text NOT NULL GENERATED ALWAYS AS (a || '!') STORED, n integer NOT NULL UNIQUE);
ALTER TABLE stored_index REPLICA IDENTITY USING INDEX stored_index_n_key;
INSERT INTO stored_index (id, a, n) VALUES (1, 'one', 1), (2, 'two', 2);
CREATE TABLE vectors (id integer PRIMARY KEY, a text, b tsvector GENERATED ALWAYS AS (to_tsvector('simple', a)) STORED);
INSERT INTO vectors VALUES (1, 'one two'), (2, NULL);
CREATE TABLE key_full (id integer, a text, b integer GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
ALTER TABLE key_full REPLICA IDENTITY FULL;
INSERT INTO key_full SELECT n, n FROM generate_series(1, 50) AS n;
CREATE TABLE key_computed (id integer, a text, b integer GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id, b));
INSERT INTO key_computed SELECT n, n FROM generate_series(1, 50) AS n;
CREATE TABLE index_computed (id integer PRIMARY KEY, b integer NOT NULL GENERATED ALWAYS AS (id * 2) STORED UNIQUE);
ALTER TABLE index_computed REPLICA IDENTITY USING INDEX index_computed_b_key;
INSERT INTO index_computed SELECT n FROM generate_series(1, 50) AS n;
CREATE TABLE key_included (id integer, a text, b integer GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id) INCLUDE (b));
INSERT INTO key_included SELECT n, n FROM generate_series(1, 50) AS n;
CREATE TABLE plain (id integer PRIMARY KEY, a text);
INSERT INTO plain VALUES (1, 'one'), (2, 'two')";
const KEYS_AS_RESTORED: &str = "ALTER TABLE key_full DROP CONSTRAINT key_full_pkey;
ALTER TABLE key_computed DROP CONSTRAINT key_computed_pkey;
ALTER TABLE key_included DROP CONSTRAINT key_included_pkey, ADD PRIMARY KEY (id)";
const OLD_ROWS_VIRTUAL: &str =
    "CREATE TABLE virtual_full (id integer PRIMARY KEY, a text, b text GENERATED ALWAYS AS (a || '?'));
ALTER TABLE virtual_full REPLICA IDENTITY FULL;
INSERT INTO virtual_full VALUES (1, 'one'), (2, 'two');
CREATE TABLE both_kinds (id integer PRIMARY KEY, a text, b text GENERATED ALWAYS AS (a || '!') STORED, c integer GENERATED ALWAYS AS (id * 2) VIRTUAL, d text);
INSERT INTO both_kinds (id, a, d) VALUES (1, 'one', 'd'), (2, NULL, NULL)";
const OLD_ROWS_VIRTUAL_CHANGES: &str = "UPDATE both_kinds SET d = 'e' WHERE id = 1;
DELETE FROM both_kinds WHERE id = 2;
INSERT INTO both_kinds (id, a) VALUES (3, 'three');
UPDATE virtual_full SET a = 'changed';
DELETE FROM virtual_full WHERE id = 2";
const OLD_ROWS_CHANGES: &str = "UPDATE key_full SET a = 'changed', id = id + 100 WHERE id < 10;
DELETE FROM key_full WHERE id = 20;
INSERT INTO key_full VALUES (0, 'new');
UPDATE key_computed SET a = 'changed', id = id + 100 WHERE id < 10;
DELETE FROM key_computed WHERE id = 20;
INSERT INTO key_computed VALUES (0, 'new');
INSERT INTO index_computed VALUES (0), (100);
UPDATE key_included SET a = 'changed', id = id + 100 WHERE id < 10;
DELETE FROM key_included WHERE id = 20;
UPDATE stored_full SET a = 'changed' WHERE id = 1;
UPDATE stored_full SET id = 30 WHERE id = 3;
DELETE FROM stored_full WHERE id = 2;
INSERT INTO stored_full VALUES (4, NULL);
UPDATE stored_index SET a = 'changed', n = 10 WHERE id = 1;
DELETE FROM stored_index WHERE id = 2;
INSERT INTO stored_index (id, a, n) VALUES (3, 'three', 3);
UPDATE vectors SET a = 'three four five' WHERE id = 2;
DELETE FROM vectors WHERE id = 1;
INSERT INTO vectors VALUES (3, 'six')";

const NEWS: [News; 12] = [
    News {
        since: 12,
        what: "a column that becomes a generated one",
        before: "CREATE TABLE becomes (id integer PRIMARY KEY, n integer, twice integer, note text);
INSERT INTO becomes VALUES (1, 1, 100), (2, 2, 200)",
        under_way: "UPDATE becomes SET n = 10 WHERE id = 1;
ALTER TABLE becomes DROP twice, ADD twice integer GENERATED ALWAYS AS (n * 2) STORED;
INSERT INTO becomes (id, n) VALUES (3, 3)",
    },
    News {
        since: 13,
        what: "a generated column that is one no more",
        before: "CREATE TABLE ceases (id integer PRIMARY KEY, n integer, twice integer GENERATED ALWAYS AS (n * 2) STORED, note text);
INSERT INTO ceases (id, n) VALUES (1, 1), (2, 2), (3, 3)",
        under_way: "ALTER TABLE ceases ALTER twice DROP EXPRESSION;
UPDATE ceases SET n = 20 WHERE id = 2;
INSERT INTO ceases VALUES (4, 4, -4)",
    },
    News {
        since: 12,
        what: "a stored generated column that is made anew by another expression",
        before: "CREATE TABLE computed (id integer PRIMARY KEY, n integer, twice integer GENERATED ALWAYS AS (n * 2) STORED, note text);
INSERT INTO computed (id, n) VALUES (1, 1), (2, 2)",
        under_way: "UPDATE computed SET n = 10 WHERE id = 1;
ALTER TABLE computed DROP twice, ADD twice integer GENERATED ALWAYS AS (n * 3) STORED;
INSERT INTO computed (id, n) VALUES (3, 3)",
    },
    News {
        since: 12,
        what: "a domain with a check that older values do not pass",
        before: "CREATE DOMAIN loose AS integer;
CREATE TABLE loosely (id integer PRIMARY KEY, n loose);
INSERT INTO loosely VALUES (1, -1), (2, 2);
ALTER DOMAIN loose ADD CONSTRAINT positive CHECK (VALUE > 0) NOT VALID",
        under_way: "INSERT INTO loosely VALUES (3, 3);
DELETE FROM loosely WHERE id = 2",
    },
    News {
        since: 15,
        what: "MERGE, unique NULLs",
        before: "CREATE TABLE merged (id integer PRIMARY KEY, n integer, UNIQUE NULLS NOT DISTINCT (n));
INSERT INTO merged SELECT n, n FROM generate_series(1, 100) AS n",
        under_way: "MERGE INTO merged m USING (SELECT n * 3 AS id FROM generate_series(1, 50) AS n) s ON m.id = s.id
    WHEN MATCHED AND m.id < 30 THEN DELETE WHEN MATCHED THEN UPDATE SET n = m.n + 1000
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, -s.id)",
    },
    News {
        since: 16,
        what: "numbers in other bases, jsonb constructors",
        before: "CREATE TABLE written (id integer PRIMARY KEY, n bigint DEFAULT 0xFF_FF, j jsonb DEFAULT JSON_OBJECT('a': 1 RETURNING jsonb));
INSERT INTO written VALUES (1), (2)",
        under_way: "INSERT INTO written VALUES (3, 0b1010, JSON_ARRAY(1, 'x' RETURNING jsonb));
UPDATE written SET n = 1_000_000 WHERE id = 1",
    },
    News {
        since: 17,
        what: "an identity column of a partitioned table",
        before: "CREATE TABLE parted (id bigint GENERATED ALWAYS AS IDENTITY, day date NOT NULL, a text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE parted_old PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2025-01-01');
CREATE TABLE parted_new PARTITION OF parted FOR VALUES FROM ('2025-01-01') TO (MAXVALUE);
CREATE TABLE parted_older PARTITION OF parted FOR VALUES FROM ('2010-01-01') TO ('2020-01-01');
INSERT INTO parted (day, a) SELECT date '2024-06-01' + n, n FROM generate_series(1, 400) AS n",
        under_way: "UPDATE parted SET day = day + 300 WHERE id % 10 = 0;
INSERT INTO parted (day, a) VALUES ('2024-12-31', 'last')",
    },
    News {
        since: 17,
        what: "MERGE with RETURNING and NOT MATCHED BY SOURCE, a domain that is NOT NULL by a constraint",
        before: "CREATE DOMAIN given AS text CONSTRAINT given_it NOT NULL CONSTRAINT long CHECK (length(VALUE) > 1);
CREATE TABLE returned (id integer PRIMARY KEY, a given);
INSERT INTO returned SELECT n, 'row ' || n FROM generate_series(1, 100) AS n",
        under_way: "MERGE INTO returned r USING (VALUES (1), (2), (200)) s (id) ON r.id = s.id
    WHEN MATCHED THEN UPDATE SET a = 'merged' WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new')
    WHEN NOT MATCHED BY SOURCE AND r.id > 90 THEN DELETE RETURNING merge_action(), r.*",
    },
    News {
        since: 18,
        what: "virtual generated columns",
        before: "CREATE TABLE virtually (id integer PRIMARY KEY, net numeric(10,2), gross numeric GENERATED ALWAYS AS (net * 1.19), stored numeric GENERATED ALWAYS AS (net * 2) STORED, note text);
INSERT INTO virtually (id, net, note) SELECT n, n / 3.0, n FROM generate_series(1, 100) AS n",
        under_way: "UPDATE virtually SET net = net + 1 WHERE id < 20;
ALTER TABLE virtually ADD late text GENERATED ALWAYS AS (note || '!') VIRTUAL;
ALTER TABLE virtually ALTER stored SET EXPRESSION AS (net * 3);
INSERT INTO virtually (id, net, note) VALUES (1000, NULL, 'last');
DELETE FROM virtually WHERE id = 50",
    },
    News {
        since: 18,
        what: "keys WITHOUT OVERLAPS and their foreign keys",
        before: "CREATE TABLE rates (id integer, valid daterange, rate numeric, PRIMARY KEY (id, valid WITHOUT OVERLAPS));
CREATE TABLE uses (id integer, valid daterange, rate integer, PRIMARY KEY (id, valid WITHOUT OVERLAPS), FOREIGN KEY (rate, PERIOD valid) REFERENCES rates (id, PERIOD valid));
INSERT INTO rates SELECT n % 50, daterange(date '2020-01-01' + n, date '2020-01-01' + n + 50), n FROM generate_series(1, 500) AS n;
INSERT INTO uses SELECT n, daterange(date '2020-01-01' + n, date '2020-01-01' + n + 10), n FROM generate_series(1, 40) AS n",
        under_way: "UPDATE uses SET valid = daterange(lower(valid) + 1, upper(valid)) WHERE id < 10;
UPDATE rates SET rate = rate * 2 WHERE id = 7;
DELETE FROM rates WHERE id > 45;
INSERT INTO rates VALUES (1, '[2030-01-01,)', 1), (1, '(,2019-01-01)', 2)",
    },
    News {
        since: 18,
        what: "NOT NULL that is NOT VALID, checks that are NOT ENFORCED",
        before: "CREATE TABLE not_valid (id integer PRIMARY KEY, a text, n integer);
INSERT INTO not_valid VALUES (1, NULL, 1), (2, 'two', -2);
ALTER TABLE not_valid ADD CONSTRAINT a_is_there NOT NULL a NOT VALID;
ALTER TABLE not_valid ADD CONSTRAINT positive CHECK (n > 0) NOT ENFORCED",
        under_way: "INSERT INTO not_valid VALUES (3, 'three', -3);
UPDATE not_valid SET n = -20 WHERE id = 2;
ALTER TABLE not_valid ADD late text;
INSERT INTO not_valid VALUES (4, 'four', 4, 'late')",
    },
    News {
        since: 18,
        what: "uuidv7, RETURNING old and new",
        before: "CREATE TABLE numbered (id uuid PRIMARY KEY DEFAULT uuidv7(), n integer);
INSERT INTO numbered (n) SELECT n FROM generate_series(1, 100) AS n",
        under_way: "INSERT INTO numbered (n) SELECT n FROM generate_series(101, 200) AS n RETURNING new.id;
UPDATE numbered SET n = -n WHERE n % 3 = 0 RETURNING old.n, new.n",
    },
];
