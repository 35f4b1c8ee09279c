//! Tables that are left out for a while, and come back.

use lakehead::{
    demo::compare::compare,
    telemetry::board::{SourceState, SourceStatus},
};

use crate::harness::{Setup, World, assert_all_equal, copied};

/// Without its changes in between it is another table: only what is read anew counts, in a restore from
/// nothing and in one that has it as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_excluded_for_a_while_is_read_anew_and_restored_exactly() {
    let mut world = World::new("away", Setup::default()).await;
    world
        .execute_each(
            "CREATE TABLE stays (id integer PRIMARY KEY);\n\
        CREATE TABLE keyed (id integer PRIMARY KEY, a text);\n\
        CREATE TABLE bare (id integer, a text);\nALTER TABLE bare REPLICA IDENTITY FULL;\n\
        INSERT INTO keyed SELECT n, 'old' FROM generate_series(1, 3000) AS n;\n\
        INSERT INTO bare SELECT n, 'old' FROM generate_series(1, 3000) AS n",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO stays VALUES (1)").await;
    world.execute("UPDATE keyed SET a = 'before' WHERE id < 10").await;
    world.caught_up().await;
    let admin = world.admin().await;
    let grown = world.restored("grown", &[]).await;
    assert_all_equal(&compare(&admin, &grown, copied).await.unwrap());
    assert_eq!(world.gateway.stop().await, Some(0));

    world.copy_only(&["public.stays"]);
    world.start();
    let gone = |status: &SourceStatus| !status.snapshot.contains_key("public.keyed");
    world.until("it has taken leave of them", gone).await;
    world.execute("DELETE FROM keyed WHERE id % 2 = 0; DELETE FROM bare WHERE id % 2 = 0").await;
    world.execute("UPDATE keyed SET a = 'away' WHERE id % 3 = 0").await;
    world.execute("INSERT INTO stays VALUES (2)").await;
    world.caught_up().await;
    // As they were when they left, and not without a word.
    admin.batch_execute("CREATE DATABASE away").await.unwrap();
    let away = world.restore("away", &[]).await;
    assert_eq!(away.code, 0, "{away:?}");
    for table in ["public.keyed", "public.bare"] {
        assert!(away.stdout.contains(&format!("{table} stands as it was")), "{away:?}");
    }
    assert_eq!(world.gateway.stop().await, Some(0));

    world.copy_only(&["*.*", "!public.scratch_*"]);
    world.start();
    let back = |status: &SourceStatus| {
        let whole = |name| {
            let table = status.snapshot.get(name);
            table.is_some_and(|table| table.is_whole())
        };
        whole("public.keyed") && whole("public.bare")
    };
    world.until("they are read anew", back).await;
    world.execute("INSERT INTO keyed VALUES (2, 'back'); DELETE FROM bare WHERE id = 1").await;
    world.caught_up().await;
    world.assert_proven().await;
    world.assert_restored_equal().await;
    let again = world.restore("grown", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    assert_all_equal(&compare(&admin, &grown, copied).await.unwrap());
    world.assert_readable().await;
    world.end().await;
}

/// A restore that left a table out has gone past its changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_restore_left_out_is_refused_later_and_not_restored_without_its_changes() {
    let mut world = World::new("left-out", Setup::default()).await;
    world
        .execute(
            "CREATE TABLE t (id integer PRIMARY KEY); CREATE TABLE u (id integer PRIMARY KEY);
             INSERT INTO u VALUES (1)",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("INSERT INTO t VALUES (1); INSERT INTO u VALUES (2)").await;
    world.caught_up().await;
    world.admin().await.batch_execute("CREATE DATABASE part").await.unwrap();
    let without = world.restore("part", &["--except", "public.u"]).await;
    assert_eq!(without.code, 0, "{without:?}");
    let with = world.restore("part", &[]).await;
    assert_eq!(with.code, 2, "{with:?}");
    assert!(with.stderr.contains("public.u") && with.stderr.contains("empty one"), "{with:?}");
    world.end().await;
}
