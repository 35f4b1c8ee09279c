//! Columns that become NOT NULL once their rows have values: rows on their way into a restore may have none yet.

use lakehead::{
    demo::{compare::compare, proxy::Way},
    telemetry::board::SourceStatus,
};
use serde_json::Value;

use crate::{
    harness::{Setup, World, assert_all_equal, copied},
    story_ddl::definitions,
};

/// Some three parts of 128 MiB, a row in each block.
const SPARSE: &str =
    "CREATE TABLE sparse (id integer PRIMARY KEY, a text, wide text) WITH (fillfactor = 10);
ALTER TABLE sparse ALTER wide SET STORAGE PLAIN;
INSERT INTO sparse SELECT n, nullif(n % 3, 0), repeat('w', 800) FROM generate_series(1, 40000) AS n";

/// One column comes, another one was there. Both get values once some rows were read, and before others are.
const MEANWHILE: &str = "INSERT INTO sparse VALUES (-1, NULL, 'w');
DELETE FROM sparse WHERE id BETWEEN 1 AND 100;
VACUUM (INDEX_CLEANUP ON) sparse";

/// In a session of its own: a row moves into an emptied block, which is of a part that was read.
const MOVED: &str = "UPDATE sparse SET id = -3, wide = repeat('w', 7500) WHERE id = 30000;
ALTER TABLE sparse ADD x integer;
INSERT INTO sparse VALUES (-2, NULL, 'w', NULL);
UPDATE sparse SET x = id, a = coalesce(a, 'told');
ALTER TABLE sparse ALTER x SET NOT NULL, ALTER a SET NOT NULL;
INSERT INTO sparse VALUES (-4, 'a', 'w', 1)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_becomes_not_null_between_two_parts_of_a_snapshot_is_restored() {
    let setup = Setup { encryption: "mode = \"none\"".into(), proxied: true, ..Setup::default() };
    // A table is read in parts from 14 on.
    let Some(mut world) = World::since(14, "not-null-parts", setup).await else { return };
    world.configure("snapshot_workers = 1\nsnapshot_pace = \"full\"");
    world.execute_each(SPARSE).await;
    world.lanes.as_ref().unwrap().source.set(Way::Slow(4_000_000));
    world.start();
    let begun = world.until("a part is read", |status| part(status).0 > 0).await;
    world.gateway.kill();
    world.lanes.as_ref().unwrap().source.set(Way::Open);
    let (done, all) = part(&begun);
    assert!(done < all, "all {all} parts are read");
    // A snapshot that is still held keeps the server from emptying blocks.
    let admin = world.admin().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lakehead'";
    admin.batch_execute(end).await.unwrap();
    world.execute_each(MEANWHILE).await;
    world.execute_each(MOVED).await;
    world.start();
    world.whole(1).await;
    world.settled().await;
    assert_as_source(&world, "restored", false).await;
    world.assert_proven().await;
    world.end().await;
}

/// Parts that are read, and all.
fn part(status: &SourceStatus) -> (u32, u32) {
    status.snapshot.get("public.sparse").map_or((0, 0), |table| (table.chunks_done, table.chunks))
}

/// A restore, from where one `stands` already or not, is as the source.
async fn assert_as_source(world: &World, database: &str, stands: bool) {
    let admin = world.admin().await;
    let restored = match stands {
        false => world.restored(database, &[]).await,
        true => {
            let ended = world.restore(database, &[]).await;
            assert_eq!(ended.code, 0, "{ended:?}");
            world.cluster.connect(database, &world.tasks).await.unwrap()
        }
    };
    assert_eq!(definitions(&restored).await, definitions(&admin).await, "{database}");
    assert_all_equal(&compare(&admin, &restored, copied).await.unwrap());
}

const TABLES: &str = "CREATE TABLE added (id integer PRIMARY KEY, a text);
CREATE TABLE held (id integer PRIMARY KEY, a text, b text);
CREATE TABLE toggled (id integer PRIMARY KEY, a text NOT NULL, b text);
CREATE TABLE computed (id integer PRIMARY KEY, a integer, g integer GENERATED ALWAYS AS (a * 2) STORED);
CREATE TABLE doubled (id integer PRIMARY KEY, a integer, g integer GENERATED ALWAYS AS (a * 2) STORED NOT NULL);
CREATE TABLE numbered (id integer PRIMARY KEY, n integer);
INSERT INTO added SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO held SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO toggled SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO computed SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO doubled SELECT n, n FROM generate_series(1, 50) AS n;
INSERT INTO numbered SELECT n, n FROM generate_series(1, 50) AS n";

/// While nobody listens: rows without values, in columns that get them later.
const LACKING: &str = "ALTER TABLE added ADD x integer, ADD y text;
INSERT INTO added VALUES (100, 'new');
UPDATE added SET a = 'changed' WHERE id < 10;
INSERT INTO held VALUES (100, NULL);
ALTER TABLE toggled ALTER a DROP NOT NULL;
INSERT INTO toggled VALUES (100, NULL);
UPDATE toggled SET a = NULL WHERE id = 1;
INSERT INTO computed VALUES (100, NULL);
ALTER TABLE doubled ALTER g DROP NOT NULL;
INSERT INTO doubled VALUES (100, NULL);
ALTER TABLE numbered ALTER n DROP NOT NULL;
INSERT INTO numbered VALUES (100, NULL)";

/// The columns that are told NOT NULL once all rows have values.
const TOLD: &str = "UPDATE added SET x = id, y = 'y' WHERE id > 0;
ALTER TABLE added ALTER x SET NOT NULL, ALTER y SET NOT NULL, ALTER y SET DEFAULT 'd';
UPDATE held SET a = 'told' WHERE a IS NULL;
ALTER TABLE held ALTER a SET NOT NULL;
UPDATE toggled SET a = 'told' WHERE a IS NULL;
ALTER TABLE toggled ALTER a SET NOT NULL;
UPDATE computed SET a = 1 WHERE a IS NULL;
ALTER TABLE computed ALTER g SET NOT NULL;
UPDATE doubled SET a = 1 WHERE a IS NULL;
ALTER TABLE doubled ALTER g SET NOT NULL;
UPDATE numbered SET n = 100 WHERE n IS NULL;
ALTER TABLE numbered ALTER n SET NOT NULL, ALTER n ADD GENERATED BY DEFAULT AS IDENTITY (START 1000);
INSERT INTO added VALUES (101, 'behind', 1, 'y')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_gets_its_values_behind_its_definition_is_not_null_in_the_end() {
    let mut world =
        World::new("not-null", Setup { encryption: "mode = \"none\"".into(), ..Setup::default() })
            .await;
    world.execute_each(TABLES).await;
    world.start();
    world.whole(6).await;
    let before = world.settled().await;
    world.gateway.kill();
    world.execute_each(LACKING).await;
    let lacking = world.cluster.position(&world.admin().await).await.unwrap();
    world.execute_each(TOLD).await;
    // What the box reads of the definitions is ahead of what the stream brings.
    world.start();
    world.settled().await;
    assert_as_source(&world, "restored", false).await;

    // Of rows that lack values at the end it is said, and only there; from there it goes on.
    let lacked =
        ["added x", "added y", "computed g", "doubled g", "held a", "numbered n", "toggled a"];
    let of = |text: &str| text.replace(' ', ": rows lack a value in the column ");
    let lacked = lacked.map(|text| format!("public.{}, which is NOT NULL", of(text)));
    world.restored("earlier", &["--until", &before.to_string()]).await;
    world
        .cluster
        .connect("postgres", &world.tasks)
        .await
        .unwrap()
        .batch_execute("CREATE DATABASE within")
        .await
        .unwrap();
    for (name, until, wanted) in
        [("earlier", before, &[][..]), ("earlier", lacking, &lacked), ("within", lacking, &lacked)]
    {
        // Once more, it says so again.
        for _ in 0..2 {
            let ended = world.restore(name, &["--until", &until.to_string(), "--json"]).await;
            assert_eq!(ended.code, 0, "{ended:?}");
            let report: Value = serde_json::from_str(&ended.stdout).unwrap();
            let mut notes: Vec<_> =
                report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            notes.retain(|note| note.contains("NOT NULL"));
            notes.sort_unstable();
            assert_eq!(notes, wanted, "{name}");
            let restored = world.cluster.connect(name, &world.tasks).await.unwrap();
            let rows = "SELECT count(*) FROM added AS r WHERE to_jsonb(r)->'y' = 'null'";
            let lacking: i64 = restored.query_one(rows, &[]).await.unwrap().get(0);
            assert_eq!(lacking, if wanted.is_empty() { 0 } else { 51 }, "{name}");
        }
    }
    for name in ["earlier", "within"] {
        assert_as_source(&world, name, true).await;
    }
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.end().await;
}
