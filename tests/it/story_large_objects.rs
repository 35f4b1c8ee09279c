//! Large objects: read beside the stream, and restored byte for byte, as both servers' own digests say.

use std::{fs, process::Command, time::Duration};

use lakehead::{
    demo::{bucket::BUCKET, gateway::run},
    error::Cause,
    telemetry::board::SourceState,
    units::Position,
};
use tokio_postgres::Client;

use crate::harness::{SOURCE, Setup, World, interpreter};

/// Empty, of exactly two pieces, of some, with a hole and a tail of whole pieces of zeros, and one of a great number.
const OBJECTS: &str = "CREATE TABLE papers (id serial PRIMARY KEY, file oid);
SELECT lo_from_bytea(70001, '');
SELECT lo_from_bytea(70002, decode(repeat('ab', 1048576), 'hex'));
SELECT lo_from_bytea(70003, (SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, 100000) n) || 'end');
DO $$ DECLARE fd int; BEGIN PERFORM lo_create(70004); fd := lo_open(70004, 393216); PERFORM lo_lseek64(fd, 3000000, 0);
    PERFORM lowrite(fd, 'behind a hole'); PERFORM lo_truncate64(fd, 17162::int8 * 524288); END $$;
SELECT lo_from_bytea(4000000000, 'a great number');
INSERT INTO papers (file) SELECT oid FROM pg_largeobject_metadata WHERE lomowner = 'shop'::regrole";

/// Of each: number, owner, size, digest. The digest of the greatest is that of its beginning.
const ALL: &str = "SELECT m.oid, pg_get_userbyid(m.lomowner)::text, lo_lseek64(m.fd, 0, 2) AS size, lo_close(m.fd),
    (SELECT string_agg(md5(lo_get(m.oid, at * 8388608, 8388608)), ',' ORDER BY at) FROM generate_series(0, 24) at) ||
    md5(lo_get(m.oid, 8997000000, 2000000))
    FROM (SELECT oid, lomowner, lo_open(oid, 262144) AS fd FROM pg_largeobject_metadata OFFSET 0) m ORDER BY 1";

async fn objects(client: &Client) -> Vec<(u32, String, i64, String)> {
    client.batch_execute("BEGIN").await.unwrap();
    let rows = client.query(ALL, &[]).await.unwrap();
    client.batch_execute("COMMIT").await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(4))).collect()
}

/// Waits until the ledger tells of a look at them behind this position.
async fn looked(world: &mut World, behind: Position) {
    for _ in 0..480 {
        let entries = world.ledger();
        let mut looks = entries.iter().flat_map(|entry| &entry.fates.large_objects);
        if looks.any(|look| look.position >= behind) {
            return;
        }
        world.must_run();
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("nobody looks for large objects:\n{}", world.gateway.log_end());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_are_restored_byte_for_byte() {
    let setup = Setup { encryption: "mode = \"none\"".into(), ..Setup::default() };
    let mut world = World::new("large-objects", setup).await;
    let shop = world.shop().await;
    shop.batch_execute(OBJECTS).await.unwrap();
    let admin = world.admin().await;
    admin.batch_execute("SELECT lo_from_bytea(80001, 'closed')").await.unwrap();
    world.configure("sequence_interval = \"10 s\"");
    world.start();
    let status =
        world.until("one is told of", |status| status.alarms.contains_key("large-objects")).await;
    let alarm = &status.alarms["large-objects"];
    assert_eq!(alarm.cause, Cause::SourcePrivilege.name());
    let grant = "GRANT SELECT ON LARGE OBJECT 80001 TO \"lakehead\"";
    assert!(alarm.what.contains(grant), "{alarm:?}");
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    let first = world.caught_up().await;
    looked(&mut world, first).await;
    let before = objects(&admin).await;
    let restored = world.restored("first", &[]).await;
    let open: Vec<_> = before.iter().filter(|one| one.0 != 80001).cloned().collect();
    assert_eq!((objects(&restored).await, open.len()), (open, 5));

    // What is granted, comes, goes, and takes the number of one that is gone.
    admin.batch_execute(grant).await.unwrap();
    shop.batch_execute(
        "SELECT lo_unlink(70002); SELECT lo_unlink(70003); SELECT lo_from_bytea(70005, 'new');
         INSERT INTO papers (file) VALUES (70005)",
    )
    .await
    .unwrap();
    world.until("it is granted", |status| status.alarms.is_empty()).await;
    let second = world.caught_up().await;
    looked(&mut world, second).await;
    shop.batch_execute(
        "SELECT lo_from_bytea(70003, 'another'); INSERT INTO papers (file) VALUES (70003)",
    )
    .await
    .unwrap();
    let third = world.caught_up().await;
    looked(&mut world, third).await;
    let now = objects(&admin).await;
    let mine = "SELECT lo_from_bytea(70009, 'of the target')";
    restored.batch_execute(mine).await.unwrap();
    let again = world.restore("first", &[]).await;
    assert!(again.code == 0 && is_quiet(&again.stdout), "{again:?}");
    restored.batch_execute("SELECT lo_unlink(70009)").await.unwrap();
    assert_eq!(objects(&restored).await, now);
    let idle = world.restore("first", &[]).await;
    assert!(idle.code == 0 && is_quiet(&idle.stdout), "{idle:?}");
    assert_eq!(objects(&restored).await, now, "run again, it changes nothing");
    world.assert_restored_equal().await;

    // At an earlier point what was there then is there, and what has gone since.
    let earlier = objects(&world.restored("earlier", &["--until", &first.to_string()]).await).await;
    assert!(before.iter().filter(|one| one.0 != 80001).all(|one| earlier.contains(one)));
    let without = ["--except", "pg_lakehead.large_objects"];
    assert_eq!(objects(&world.restored("without", &without).await).await, []);
    world.assert_proven().await;
    world.assert_proven_independently(&[]).await;
    world.assert_readable().await;
    assert_read_as_a_table(&world, &admin).await;
    world.end().await;
}

/// Whether a restore has nothing to say but that the log of an idle database has grown since the last look.
fn is_quiet(said: &str) -> bool {
    said.matches("note: ").count()
        == said.matches("note: large objects were looked for last").count()
}

/// DuckDB finds the latest pieces in the folder, and of those the bytes of the objects.
async fn assert_read_as_a_table(world: &World, admin: &Client) {
    let folder = world.dir.join("objects");
    fs::create_dir_all(&folder).unwrap();
    let keys =
        world.bucket.double.keys(BUCKET, &format!("raw/{SOURCE}/pg_lakehead.large_objects/"));
    for (number, key) in keys.iter().enumerate() {
        let object = world.bucket.double.object(BUCKET, key).unwrap();
        fs::write(folder.join(format!("{number}.parquet")), object).unwrap();
    }
    let script = "import sys, duckdb, hashlib; rows = duckdb.sql(f\"SELECT loid, data FROM (\
        SELECT *, row_number() OVER (PARTITION BY loid, piece ORDER BY _position DESC) AS n \
        FROM read_parquet('{sys.argv[1]}/*.parquet')) WHERE n = 1 AND _op <> 'D' AND size < 8000000000 ORDER BY loid, piece\").fetchall(); \
        ids = sorted({loid for loid, _ in rows}); \
        print(','.join(f'{i}:' + hashlib.md5(b''.join(d for loid, d in rows if loid == i)).hexdigest() for i in ids))";
    let mut command = Command::new(interpreter());
    command.args(["-c", script, folder.to_str().unwrap()]);
    let ended = run(command, &world.dir.join("duckdb")).await.unwrap();
    let sql = "SELECT string_agg(oid || ':' || md5(lo_get(oid)), ',' ORDER BY oid) FROM pg_largeobject_metadata WHERE oid <> 70004";
    let wanted: String = admin.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(ended.stdout.trim(), wanted, "{}", ended.stderr);
}

/// One that takes several parts, and some that take a part together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_amid_large_objects_loses_none() {
    let mut world = World::new("large-objects-kill", Setup::default()).await;
    let shop = world.shop().await;
    shop.batch_execute(
        "CREATE TABLE papers (id serial PRIMARY KEY, file oid);
         DO $$ DECLARE block bytea := (SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, 32768) n); BEGIN
         FOR id IN 70001..70010 LOOP PERFORM lo_from_bytea(id, block || id::text::bytea); END LOOP;
         PERFORM lo_create(70011);
         FOR at IN 0..179 LOOP PERFORM lo_put(70011, at::int8 * 1048576, block); PERFORM lo_put(70011, at::int8 * 1048576, at::text::bytea); END LOOP; END $$;
         INSERT INTO papers (file) SELECT oid FROM pg_largeobject_metadata",
    )
    .await
    .unwrap();
    world.configure("sequence_interval = \"10 s\"");
    world.start();
    let folder = format!("raw/{SOURCE}/pg_lakehead.large_objects/");
    for kill in 0..2 {
        let mut tries = 0;
        while world.bucket.double.keys(BUCKET, &folder).len() <= 8 * kill {
            tries += 1;
            assert!(tries < 1200, "{}", world.gateway.log_end());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.gateway.kill();
        let told = |entry: &lakehead::ledger::Entry| !entry.fates.large_objects.is_empty();
        assert!(!world.ledger().iter().any(told), "it was killed too late");
        world.start();
    }
    let here = world.caught_up().await;
    looked(&mut world, here).await;
    let restored = world.restored("killed", &[]).await;
    let admin = world.admin().await;
    let wanted = objects(&admin).await;
    assert_eq!((objects(&restored).await, wanted.len()), (wanted, 11));
    world.assert_proven().await;
    world.end().await;
}
