//! Rows that moved between the parts of an interrupted snapshot, and whose large values no change says:
//! they are read again by their keys, and nothing is missing.

use lakehead::{
    demo::{bucket::BUCKET, compare::compare, gateway::Ended},
    ledger::Entry,
    telemetry::board::{SourceState, SourceStatus},
};
use serde_json::Value;
use tokio_postgres::Client;

use crate::harness::{SOURCE, Setup, World, assert_all_equal, copied};

/// Three parts of about 100 MiB. The last two thousand rows have a large value of their own file; there is
/// room for them in the first part. `{id}` and `{filler}` take about 1900 bytes.
const TABLE: &str = "CREATE TABLE wide (id text PRIMARY KEY, number bigint, note text NOT NULL, filler text NOT NULL, body text) WITH (autovacuum_enabled = off);
ALTER TABLE wide ALTER id SET STORAGE PLAIN, ALTER filler SET STORAGE PLAIN, ALTER body SET STORAGE EXTERNAL;
INSERT INTO wide SELECT {id}, n, 'at first', {filler}, CASE WHEN n > 148000 THEN repeat(md5(n::text), 100) END FROM generate_series(1, 150000) AS n;
DELETE FROM wide WHERE number <= 8000;
VACUUM wide";
const ROWS: u64 = 150_000 - 8000;
/// Moves rows from the last part to the first.
const MOVE: &str = "UPDATE wide SET note = 'moved' WHERE number BETWEEN 148001 AND";
const MOVED: &str =
    "SELECT count(*) FROM wide WHERE note = 'moved' AND ctid < '(10000,0)' AND body IS NOT NULL";
/// What happens to 500 of them before they are read again: other keys, an end, new values.
const AFTERWARDS: [&str; 4] = [
    "UPDATE wide SET id = '1' || id WHERE number BETWEEN 148001 AND 148050",
    "DELETE FROM wide WHERE number BETWEEN 148051 AND 148060",
    "UPDATE wide SET body = 'another' WHERE number BETWEEN 148061 AND 148070",
    "UPDATE wide SET note = 'moved again' WHERE number BETWEEN 148071 AND 148100",
];
const LACKING: u64 = 500 - 10 - 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_moved_between_parts_are_read_again_by_their_keys() {
    let Some(mut world) = begun("reread", "n::text", "repeat('x', 1900)", 500).await else {
        return;
    };
    let hold = finish_held(&mut world).await;
    for sql in AFTERWARDS {
        world.execute(sql).await;
    }
    world.caught_up().await;
    world.assert_proven().await;
    assert!(!is_said_whole(&world), "rows of it lack values");
    // A restore before the rows are read again says what it lacks.
    let admin = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    admin.batch_execute("CREATE DATABASE early").await.unwrap();
    let early = world.restore("early", &["--json"]).await;
    assert_eq!((early.code, lacking(&early)), (1, LACKING), "{early:?}");

    // What is noted survives, and so does what was read again.
    world.gateway.kill();
    world.start();
    hold.batch_execute("COMMIT").await.unwrap();
    until_read_again(&mut world, LACKING).await;
    world.gateway.kill();
    world.start();
    world.execute("UPDATE wide SET note = 'at last' WHERE number > 148200").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_sent_once(3);
    let read = world.assert_readable().await;
    eprintln!("of 500 rows that moved, {LACKING} lacked values: {read}");
    // What a box that takes over has to know is in the chain once nothing is noted any more.
    for _ in 0..60 {
        world.caught_up().await;
        if is_said_whole(&world) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    assert!(is_said_whole(&world));
    world.assert_restored_equal().await;
    // The restore of before goes on, and lacks nothing any more.
    let late = world.restore("early", &["--json"]).await;
    assert_eq!((late.code, lacking(&late)), (0, 0), "{late:?}");
    let restored = world.cluster.connect("early", &world.tasks).await.unwrap();
    assert_all_equal(&compare(&world.admin().await, &restored, copied).await.unwrap());
    world.end().await;
}

/// Their keys take more room than notes have: the table is read again, under another SIGKILL, behind which
/// as many rows are changed once more. It is not read a third time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_which_too_many_rows_moved_is_read_again_as_a_whole() {
    let (id, filler) = ("lpad(n::text, 1000, '0')", "repeat('x', 900)");
    let Some(mut world) = begun("reread-all", id, filler, 1500).await else { return };
    let hold = finish_held(&mut world).await;
    world.caught_up().await;
    hold.batch_execute("COMMIT").await.unwrap();
    let reading = |status: &SourceStatus| {
        let rows = status.snapshot.get("public.wide").map_or(0, |table| table.rows);
        status.state == SourceState::Snapshot && parts(status).0 < 3 && rows > 0
    };
    world.until("the parts are read again", reading).await;
    world.gateway.kill();
    world
        .execute("UPDATE wide SET note = 'moved again' WHERE number BETWEEN 148001 AND 149500")
        .await;
    world.start();
    world.until("they are read again", reading).await;
    world.caught_up().await;
    // A restore that goes beyond the position at which they are read, before they are in the ledger.
    let admin = world.cluster.connect("postgres", &world.tasks).await.unwrap();
    admin.batch_execute("CREATE DATABASE early").await.unwrap();
    let (done, _) = parts(&world.status().await);
    let early = world.restore("early", &["--json"]).await;
    eprintln!("{done} parts were read again; {} rows lacked values", lacking(&early));
    until_read_again(&mut world, ROWS).await;
    world.execute("UPDATE wide SET note = 'at last' WHERE number = 150000").await;
    world.caught_up().await;
    world.until("nothing is read any more", |status| parts(status).0 >= 3).await;
    // It is looked at every ten seconds.
    for _ in 0..12 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let status = world.status().await;
        assert_eq!(status.state, SourceState::Streaming, "it is read once more");
    }
    world.assert_proven().await;
    assert_eq!(read_again(&world).await, ROWS);
    world.assert_sent_once(2);
    world.assert_restored_equal().await;
    let late = world.restore("early", &["--json"]).await;
    assert_eq!((late.code, lacking(&late)), (0, 0), "{late:?}");
    let restored = world.cluster.connect("early", &world.tasks).await.unwrap();
    assert_all_equal(&compare(&world.admin().await, &restored, copied).await.unwrap());
    world.end().await;
}

/// A world whose gateway was killed when some parts of `wide` were sealed, and others not; then `rows` moved
/// from the last part to the first.
async fn begun(story: &str, id: &str, filler: &str, rows: i64) -> Option<World> {
    // Servers before 14 read a table in one part.
    let mut world = World::since(14, story, Setup::default()).await?;
    let site = world.site.dir.join("site.toml");
    let config = std::fs::read_to_string(&site).unwrap();
    // One part after the other.
    let config = config.replace("release =", "snapshot_workers = 1\nrelease =");
    lakehead::disk::write_durably(&site, config.as_bytes()).unwrap();
    world.execute_each(&TABLE.replace("{id}", id).replace("{filler}", filler)).await;
    world.start();
    let status = world.until("the first part is sealed", |status| parts(status).0 >= 1).await;
    world.gateway.kill();
    let (done, all) = parts(&status);
    assert!(all == 3 && done < all, "killed too late: {done} of {all}");
    world.execute(&format!("{MOVE} {}", 148_000 + rows)).await;
    let moved: i64 = world.shop().await.query_one(MOVED, &[]).await.unwrap().get(0);
    assert_eq!(moved, rows, "the rows did not move into a part that was read");
    Some(world)
}

/// Lets the gateway finish the snapshot. What is given back is a transaction that keeps it from reading
/// anything again: a snapshot at a position waits until all that are open have ended.
async fn finish_held(world: &mut World) -> Client {
    world.start();
    world
        .until("the snapshot goes on", |status| {
            status.state == SourceState::Snapshot
                && status.snapshot.get("public.wide").is_some_and(|table| table.rows > 0)
        })
        .await;
    let hold = world.shop().await;
    hold.batch_execute("BEGIN; INSERT INTO mark VALUES ('epoch')").await.unwrap();
    world.until("the snapshot is whole", |status| parts(status) == (3, 3)).await;
    hold
}

/// Parts of `wide` that are done, and all.
fn parts(status: &SourceStatus) -> (u32, u32) {
    status.snapshot.get("public.wide").map_or((0, 0), |table| (table.chunks_done, table.chunks))
}

/// Whether the ledger says that nothing of the table is missing.
fn is_said_whole(world: &World) -> bool {
    let keys = world.bucket.double.keys(BUCKET, &format!("raw/_ledger/{SOURCE}/"));
    keys.iter().any(|key| {
        let object = world.bucket.double.object(BUCKET, key).unwrap();
        let line = object.split(|byte| *byte == b'\n').next().unwrap();
        let entry: Entry = serde_json::from_slice(line).unwrap();
        entry.fates.whole.contains_key("public.wide")
    })
}

/// Rows read again that the ledger has.
async fn read_again(world: &World) -> u64 {
    let ended = world.audit(&["verify", "--json"]).await;
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    said["sources"][0]["rows"]["R"].as_u64().unwrap_or(0)
}

/// Waits until the ledger has as many rows read again.
async fn until_read_again(world: &mut World, rows: u64) {
    for _ in 0..240 {
        if read_again(world).await >= rows {
            return;
        }
        world.must_run();
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    panic!("not read again in time:\n{}", world.gateway.log_end());
}

/// Rows that a restore says lack values.
fn lacking(ended: &Ended) -> u64 {
    let said: Value = serde_json::from_str(&ended.stdout).unwrap();
    said["incomplete_rows"].as_u64().unwrap()
}
