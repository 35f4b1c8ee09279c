//! Tables that are altered while nothing of theirs changes, and no event trigger tells of it: restored as they are.

use std::time::Duration;

use lakehead::{
    demo::{compare::compare, proxy::Way},
    telemetry::board::SourceStatus,
    units::Position,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{SOURCE, Setup, World, assert_all_equal, copied},
    story_ddl::definitions,
};

const TABLES: &str = "CREATE TABLE rest (id integer PRIMARY KEY, a text DEFAULT 'old', b integer NOT NULL, gone text DEFAULT 'x');
CREATE TABLE parent (id integer PRIMARY KEY, a integer);
CREATE TABLE child (PRIMARY KEY (id), c text) INHERITS (parent);
CREATE TABLE keyless (id integer NOT NULL, a text);
CREATE TABLE moved (id integer PRIMARY KEY, a text);
CREATE TABLE typed (id integer PRIMARY KEY, n varchar(20), d date DEFAULT '2026-01-01');
CREATE TYPE mood AS ENUM ('sad');
CREATE TABLE felt (id integer PRIMARY KEY, m mood);
CREATE TABLE turned (id integer PRIMARY KEY, a text);
CREATE TABLE busy (id integer PRIMARY KEY, a text);
INSERT INTO rest SELECT n, n, n FROM generate_series(1, 50) AS n;
INSERT INTO parent SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO child SELECT n, n FROM generate_series(6, 9) AS n;
INSERT INTO keyless SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO moved SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO typed SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO felt SELECT n, 'sad' FROM generate_series(1, 5) AS n;
INSERT INTO turned SELECT n, n FROM generate_series(1, 5) AS n";

const FIRST: &str = "ALTER TABLE rest ALTER a SET DEFAULT 'new', ALTER b DROP NOT NULL;
ALTER TABLE rest ADD COLUMN c integer NOT NULL DEFAULT 7;
ALTER TABLE rest DROP COLUMN gone;
ALTER TABLE rest ADD COLUMN gone integer;
ALTER TABLE parent RENAME COLUMN a TO aa;
ALTER TABLE parent ADD COLUMN a text;
ALTER TABLE typed ALTER n TYPE text, ALTER d DROP DEFAULT, ALTER n SET NOT NULL;
ALTER TABLE moved RENAME COLUMN a TO \"A b\";
ALTER TABLE moved RENAME TO went;
ALTER TABLE keyless ADD PRIMARY KEY (id);
ALTER TYPE mood ADD VALUE 'glad';
ALTER TABLE turned ADD COLUMN b integer DEFAULT 3";

/// Rows before and behind; back to what was before; once more.
const SECOND: &str = "INSERT INTO rest (id, a) VALUES (100, 'behind');
ALTER TABLE rest RENAME COLUMN c TO cc;
INSERT INTO child (id, aa, a) VALUES (100, 1, 'behind');
ALTER TABLE child RENAME COLUMN c TO cc;
ALTER TABLE turned DROP COLUMN b;
ALTER TABLE went RENAME TO moved;
ALTER TABLE keyless DROP CONSTRAINT keyless_pkey, ADD COLUMN k integer DEFAULT 1;
ALTER TABLE typed ALTER n DROP NOT NULL";

const WHILE_DOWN: &str = "ALTER TABLE rest DROP COLUMN cc;
INSERT INTO felt VALUES (100, 'glad');
ALTER TABLE felt RENAME COLUMN m TO mm;
ALTER TABLE turned ADD COLUMN e mood DEFAULT 'glad';
ALTER TABLE moved ADD COLUMN z text DEFAULT 'z'";

/// The database as it is, restored from what the lake has by now.
async fn assert_restored(world: &mut World, database: &str) -> Position {
    let at = world.settled().await;
    let admin = world.admin().await;
    let restored = world.restored(database, &[]).await;
    assert_eq!(definitions(&restored).await, definitions(&admin).await, "{database}");
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    assert_equals_source(world).await;
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_altered_at_rest_are_restored_as_they_are() {
    let setup = Setup { encryption: "mode = \"none\"".into(), ..Setup::default() };
    let mut world = World::new("at-rest", setup).await;
    world.execute_each(TABLES).await;
    world.start();
    world.whole(9).await;
    let admin = world.admin().await;
    let before = definitions(&admin).await;
    let first = world.settled().await;
    // Others' transactions go on all the while.
    let (shop, stop) = (world.shop().await, CancellationToken::new());
    let busy = async {
        for id in 0.. {
            if stop.is_cancelled() {
                return;
            }
            shop.batch_execute(&format!("INSERT INTO busy VALUES ({id}, 'x')")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let altering = async {
        world.execute_each(FIRST).await;
        let (then, at) = (definitions(&admin).await, world.settled().await);
        stop.cancel();
        (then, at)
    };
    let ((), (then, second)) = tokio::join!(busy, altering);
    assert_restored(&mut world, "altered").await;
    world.execute_each(SECOND).await;
    let third = assert_restored(&mut world, "again").await;
    let later = definitions(&admin).await;
    world.gateway.kill();
    world.execute_each(WHILE_DOWN).await;
    world.start();
    assert_restored(&mut world, "down").await;
    for (database, until, definitions_then) in
        [("one", first, before), ("two", second, then), ("three", third, later)]
    {
        let earlier = world.restored(database, &["--until", &until.to_string()]).await;
        assert_eq!(definitions(&earlier).await, definitions_then, "{database}");
        // Step by step it is the same.
        assert_eq!(world.restore(database, &[]).await.code, 0);
        assert_eq!(definitions(&earlier).await, definitions(&admin).await, "{database}");
        assert_all_equal(&compare(&admin, &earlier, copied).await.unwrap());
    }
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.assert_readable().await;
    world.end().await;
}

/// All of the lake is compared with the database, and equals it, but for what has another key than its rows had.
async fn assert_equals_source(world: &World) {
    let ended = world.audit(&["verify", "--against-source", "--json", "--source", SOURCE]).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    let tables = said["against_source"][0]["tables"].as_array().unwrap().iter();
    let is_left_out = |table: &Value| {
        let mut why = table["left_out"].as_object().into_iter().flatten();
        why.any(|(_, why)| !why.as_str().unwrap().starts_with("computed"))
    };
    let rest = tables.filter(|table| table["verdict"] != "equal" || is_left_out(table));
    let is_renamed = |table: &&Value| {
        table["why"].as_str().is_some_and(|why| why.starts_with("its rows were named by"))
    };
    let rest: Vec<_> = rest.filter(|table| !is_renamed(table)).collect();
    assert!(rest.is_empty(), "{rest:#?}");
}

/// Three parts of some 128 MiB, in a file that is not the table's first.
const LARGE: &str = "CREATE TABLE large (id integer PRIMARY KEY, a text, b text, n integer, wide text);
ALTER TABLE large ALTER wide SET STORAGE PLAIN;
TRUNCATE large;
INSERT INTO large SELECT n, 'a' || n, 'b' || n, n, repeat('w', 1900) FROM generate_series(1, 160000) AS n";

/// Names that change places, a column that is another one under its name, and ones that came, some without a value.
const MEANWHILE: &str = "UPDATE large SET a = 'sent as a' WHERE id % 1000 = 1;
ALTER TABLE large RENAME a TO between;
ALTER TABLE large RENAME b TO a;
ALTER TABLE large RENAME between TO b;
ALTER TABLE large DROP n;
ALTER TABLE large ADD n integer;
ALTER TABLE large ADD filled text DEFAULT 'before';
ALTER TABLE large ALTER filled SET DEFAULT 'behind';
ALTER TABLE large ADD empty integer;
ALTER TABLE large ALTER empty SET DEFAULT 7;
UPDATE large SET b = 'sent as b' WHERE id % 1000 = 2;
INSERT INTO large VALUES (-1, 'b', 'a', 'w', 1, 'f', 2)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_altered_between_two_parts_of_its_snapshot_keeps_its_values() {
    let begun = between_two_parts("altered-parts", LARGE, 40_000_000).await;
    let Some(mut world) = begun else { return };
    world.execute_each(MEANWHILE).await;
    world.start();
    world.whole(1).await;
    world.settled().await;
    let admin = world.admin().await;
    let restored = world.restored("restored", &[]).await;
    assert_eq!(definitions(&restored).await, definitions(&admin).await);
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
    assert_equals_source(&world).await;
    world.assert_proven().await;
    world.end().await;
}

/// A world whose box was killed when of the one table that these statements make some parts were read, at so many bytes
/// per second, and others not. `None`: the server is older than 14, where a table is read as one.
pub(crate) async fn between_two_parts(story: &str, table: &str, rate: u64) -> Option<World> {
    let encryption = "mode = \"none\"".into();
    let setup = Setup { encryption, proxied: true, ..Setup::default() };
    let mut world = World::since(14, story, setup).await?;
    world.configure("snapshot_workers = 1\nsnapshot_pace = \"full\"");
    world.execute_each(table).await;
    world.lanes.as_ref().unwrap().source.set(Way::Slow(rate));
    world.start();
    let read = |status: &SourceStatus| {
        let parted = status.snapshot.values().find(|table| table.chunks > 1);
        parted.map_or((0, 0), |table| (table.chunks_done, table.chunks))
    };
    let begun = world.until("a part is read", |status| read(status).0 > 0).await;
    world.gateway.kill();
    world.lanes.as_ref().unwrap().source.set(Way::Open);
    let (done, all) = read(&begun);
    assert!(done < all, "all {all} parts are read");
    Some(world)
}

const SAID: &str = "CREATE TABLE toggled (id integer PRIMARY KEY, a text NOT NULL);
CREATE TABLE named (id integer PRIMARY KEY, a text NOT NULL DEFAULT 'd');
CREATE TABLE computed (id integer PRIMARY KEY, a integer, g integer GENERATED ALWAYS AS (a * 2) STORED, z integer,
    b integer, h integer GENERATED ALWAYS AS (b * 2) STORED);
CREATE TABLE lagging (id integer PRIMARY KEY, a text NOT NULL);
CREATE TYPE mood AS ENUM ('sad');
CREATE TABLE moody (id integer PRIMARY KEY, m mood);
CREATE TABLE locked (id integer PRIMARY KEY, a text DEFAULT 'd');
CREATE TABLE busy (id bigserial PRIMARY KEY, a text);
INSERT INTO toggled SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO named SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO computed SELECT n, n FROM generate_series(1, 5) AS n;
INSERT INTO lagging SELECT n, n FROM generate_series(1, 5) AS n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_stream_tells_of_a_table_is_not_the_last_word_if_the_catalog_has_another() {
    let setup = Setup { encryption: "mode = \"none\"".into(), ..Setup::default() };
    let mut world = World::new("last-word", setup).await;
    world.execute_each(SAID).await;
    world.start();
    world.whole(7).await;
    world.settled().await;
    let admin = world.admin().await;
    // Rows that the stream describes otherwise than the catalog did before and does since.
    admin
        .batch_execute(
            "BEGIN; ALTER TABLE named REPLICA IDENTITY FULL; UPDATE named SET a = 'x' WHERE id = 1; \
             ALTER TABLE named REPLICA IDENTITY DEFAULT; COMMIT",
        )
        .await
        .unwrap();
    world
        .execute_each(
            "ALTER TABLE toggled ALTER a DROP NOT NULL;
ALTER TABLE computed RENAME a TO aa;
ALTER TABLE computed DROP b CASCADE",
        )
        .await;
    assert_restored(&mut world, "one").await;
    world.execute_each("ALTER TABLE toggled ALTER a SET NOT NULL").await;
    assert_restored(&mut world, "two").await;
    // The server has described this one, and does not again for the name of a type.
    world.execute("INSERT INTO moody VALUES (1, 'sad')").await;
    world.caught_up().await;
    world.execute("ALTER TYPE mood RENAME TO feeling").await;
    world.settled().await;
    world.execute("INSERT INTO moody VALUES (2, 'sad')").await;
    assert_restored(&mut world, "renamed").await;
    // As before that, while nobody was there; and a stream that comes to an older definition behind the first look.
    world.gateway.kill();
    for _ in 0..30 {
        world
            .execute("INSERT INTO busy (a) SELECT repeat('x', 300) FROM generate_series(1, 5000)")
            .await;
    }
    world
        .execute_each(
            "ALTER TABLE toggled ALTER a DROP NOT NULL;
ALTER TABLE lagging ADD COLUMN c integer;
INSERT INTO lagging VALUES (100, 'x', 1);
ALTER TABLE lagging DROP COLUMN c",
        )
        .await;
    world.start();
    assert_restored(&mut world, "three").await;
    finds_while_locked(&mut world).await;
    assert_restored(&mut world, "four").await;
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.end().await;
}

/// A table that somebody has for himself keeps nothing from being found.
async fn finds_while_locked(world: &mut World) {
    let holder = world.admin().await;
    holder.batch_execute("BEGIN; LOCK TABLE locked IN ACCESS EXCLUSIVE MODE").await.unwrap();
    world.execute_each("ALTER TABLE toggled ALTER a SET DEFAULT 'found';\nCREATE TABLE fresh (id integer PRIMARY KEY)").await;
    world
        .until("the new table is read", |status| status.snapshot.contains_key("public.fresh"))
        .await;
    // The snapshot of the new one waits for the transaction, and says so.
    let alarms = world.status().await.alarms;
    assert!(alarms.keys().all(|room| room == "transactions"), "{alarms:?}");
    holder.batch_execute("ALTER TABLE locked ALTER a DROP DEFAULT; COMMIT").await.unwrap();
}
