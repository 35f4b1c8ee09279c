//! A configuration that changes while the gateway runs.

use std::{fs, time::Duration};

use lakehead::telemetry::board::{SourceState, SourceStatus, TableProgress};

use crate::harness::{Setup, World};

/// A right one counts from then on, in the same process; a wrong one, or one with which nothing could run, changes nothing,
/// and one that is the same neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_changes_counts_after_a_reload_if_it_is_right() {
    let setup = Setup {
        tables: ["public.mark", "public.one"].map(String::from).to_vec(),
        ..Setup::default()
    };
    let mut world = World::new("reload", setup).await;
    world
        .execute_each(
            "CREATE TABLE one (id integer PRIMARY KEY);\n\
        CREATE TABLE two (id integer PRIMARY KEY);\n\
        INSERT INTO one SELECT generate_series(1, 1000);\n\
        INSERT INTO two SELECT generate_series(1, 2000)",
        )
        .await;
    world.start();
    world.whole(1).await;
    let pid = world.gateway.pid();
    let path = world.site.dir.join("site.toml");
    let right = fs::read_to_string(&path).unwrap();

    // The same, and one that is wrong.
    world.gateway.reload();
    said(&world, "the configuration is unchanged").await;
    fs::write(&path, right.replace("[lake]", "[lake]\nbukket = \"x\"")).unwrap();
    world.gateway.reload();
    said(&world, "the new configuration is wrong").await;
    fs::write(&path, right.replace("lake.key", "gone.key")).unwrap();
    world.gateway.reload();
    said(&world, "nothing could run with the new configuration").await;
    fs::write(&path, &right).unwrap();
    world.execute("INSERT INTO one VALUES (2000)").await;
    world.caught_up().await;

    // One that is right, asked for again and again: no moment of its beginning is one in which that ends it.
    world.copy_only(&["public.mark", "public.one", "public.two"]);
    for _ in 0..1000 {
        world.gateway.reload();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ready = |status: &SourceStatus| {
        let is_read = status.snapshot.get("public.two").is_some_and(TableProgress::is_whole);
        status.state == SourceState::Streaming && is_read
    };
    world.until("it reads the table that is new in the configuration", ready).await;
    world.execute("INSERT INTO two VALUES (3000)").await;
    world.caught_up().await;
    assert_eq!(world.gateway.pid(), pid);
    assert_eq!(world.gateway.ended(), None);

    // Who is asked for both ends.
    for tables in [&["public.mark", "public.one"][..], &["public.mark", "public.one", "public.two"]]
    {
        world.copy_only(tables);
        world.gateway.reload();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(world.gateway.stop().await, Some(0), "{}", world.gateway.log_end());
        world.start();
        world.caught_up().await;
    }
    world.until("it has what the configuration has", ready).await;
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Waits until the log has it.
async fn said(world: &World, what: &str) {
    for _ in 0..100 {
        if world.gateway.log_end().contains(what) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it does not say that {what}:\n{}", world.gateway.log_end());
}
