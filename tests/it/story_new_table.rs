//! The source's schema lives: tables come, change and go while the gateway runs.

use lakehead::telemetry::board::SourceState;

use crate::harness::{Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_while_running_is_copied_from_its_first_row() {
    let mut world = World::new("new-table", Setup::default()).await;
    world.execute("CREATE TABLE old (id integer PRIMARY KEY, a text); INSERT INTO old SELECT n, n FROM generate_series(1, 100) AS n").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world
        .execute(
            "CREATE TABLE fresh (id integer PRIMARY KEY, a text);
             INSERT INTO fresh SELECT n, 'before it was seen' FROM generate_series(1, 5000) AS n",
        )
        .await;
    world
        .until("the new table's snapshot is whole", |status| {
            status
                .snapshot
                .get("public.fresh")
                .is_some_and(|table| table.chunks > 0 && table.chunks_done >= table.chunks)
        })
        .await;
    world
        .execute(
            "UPDATE fresh SET a = 'changed' WHERE id % 2 = 0; DELETE FROM fresh WHERE id % 5 = 0;
             INSERT INTO fresh SELECT n, 'after' FROM generate_series(6000, 7000) AS n",
        )
        .await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_and_go_under_way() {
    let mut world = World::new("columns", Setup::default()).await;
    world.execute("CREATE TABLE t (id integer PRIMARY KEY, a text, b integer); INSERT INTO t SELECT n, n, n FROM generate_series(1, 1000) AS n").await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    for sql in [
        "UPDATE t SET a = 'one' WHERE id = 1",
        "ALTER TABLE t ADD COLUMN c numeric(10,2); UPDATE t SET c = id / 3.0 WHERE id % 2 = 0",
        "BEGIN; INSERT INTO t VALUES (2000, 'x', 1, 2); ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (2001, 'y', 3); COMMIT",
        "ALTER TABLE t ALTER c TYPE text; UPDATE t SET c = 'a text now' WHERE id = 3",
    ] {
        world.execute(sql).await;
    }
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    world.assert_readable().await;
    world.end().await;
}
