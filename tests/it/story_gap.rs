//! The source forgets, or goes back: each gap is noticed, written into the ledger, and repaired.

use std::{fs, time::Duration};

use lakehead::{
    demo::{cluster::Stop, compare::compare},
    error::Cause,
    telemetry::board::{SourceState, SourceStatus},
};

use tokio_postgres::Client;

use crate::harness::{SLOT, Setup, World, assert_all_equal, copied, known_since};

/// Tables with a key and without, copied, and restored as they are; the gateway is down.
async fn begun(story: &str, setup: Setup) -> World {
    let mut world = World::new(story, setup).await;
    world
        .execute_each(
            "CREATE TABLE keyed (id integer PRIMARY KEY, a text);\n\
        CREATE TABLE bare (id integer, a text);\nALTER TABLE bare REPLICA IDENTITY FULL;\n\
        INSERT INTO keyed SELECT n, 'old' FROM generate_series(1, 3000) AS n;\n\
        INSERT INTO bare SELECT n, 'old' FROM generate_series(1, 3000) AS n",
        )
        .await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.execute("UPDATE keyed SET a = 'streamed' WHERE id < 10").await;
    world.caught_up().await;
    world.restored("grown", &[]).await;
    world.gateway.kill();
    world
}

/// Changes that nobody sends: rows come, change and go.
async fn change(world: &World, round: u32) {
    world
        .execute(&format!(
            "DELETE FROM keyed WHERE id % 7 = {round}; DELETE FROM bare WHERE id % 7 = {round};
             UPDATE keyed SET a = 'round {round}' WHERE id % 5 = {round};
             UPDATE bare SET a = 'round {round}' WHERE id % 5 = {round};
             INSERT INTO keyed SELECT 10000 * {round} + n, 'new' FROM generate_series(1, 500) AS n
             ON CONFLICT (id) DO UPDATE SET a = 'again'"
        ))
        .await;
}

/// Waits until nothing is left to repair, and judges what came of it: proven with its gaps, and equal, from
/// nothing and from the state before.
async fn repaired(world: &mut World) -> String {
    world.repaired().await;
    change(world, 6).await;
    world.caught_up().await;
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("PROVEN"), "{ended:?}");
    assert!(ended.stdout.contains("GAP entry"), "{ended:?}");
    world.assert_proven_independently(&[]).await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    let again = world.restore("grown", &[]).await;
    assert_eq!(again.code, 0, "{again:?}");
    let admin = world.admin().await;
    let grown = world.cluster.connect("grown", &world.tasks).await.unwrap();
    assert_all_equal(&compare(&admin, &grown, copied).await.unwrap());
    let slots = admin.query("SELECT slot_name::text FROM pg_replication_slots", &[]).await.unwrap();
    let slots: Vec<String> = slots.iter().map(|row| row.get(0)).collect();
    assert_eq!(slots, [SLOT]);
    ended.stdout
}

/// Waits until somebody reads from the slot.
async fn is_followed(admin: &Client) {
    let query = format!("SELECT FROM pg_replication_slots WHERE active AND slot_name = '{SLOT}'");
    for _ in 0..600 {
        if admin.query(&query, &[]).await.unwrap().len() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody follows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_dropped_is_a_gap_that_is_said_and_repaired() {
    let mut world = begun("gap-dropped", Setup::default()).await;
    change(&world, 1).await;
    world.drop_slot().await;
    change(&world, 2).await;
    // The repair is cut at many moments, and what it began is finished.
    for after in [200, 400, 700, 1100, 1600] {
        world.start();
        change(&world, 3).await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        world.gateway.kill();
    }
    world.start();
    let said = repaired(&mut world).await;
    // Killed between the making of the slot and the note, the next start finds a slot that stands too far.
    assert!(said.contains("is gone") || said.contains("was made anew"), "{said}");
    world.end().await;
}

/// With what the box holds still on its way to the lake, and dropped once more before the repair has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_dropped_twice_under_a_backlog_is_repaired() {
    let setup = Setup { release: "journal".into(), ..Setup::default() };
    let mut world = begun("gap-twice", setup).await;
    world.bucket.away(true);
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    change(&world, 1).await;
    let admin = world.admin().await;
    let wanted = world.cluster.position(&admin).await.unwrap();
    admin.batch_execute("INSERT INTO public.mark VALUES (now())").await.unwrap();
    world.until("it is durable", |status| status.durable.position > wanted).await;
    for round in 2..4 {
        world.gateway.kill();
        world.drop_slot().await;
        change(&world, round).await;
        world.start();
        is_followed(&admin).await;
    }
    world.bucket.away(false);
    repaired(&mut world).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_server_gave_up_is_a_gap_that_is_said_and_repaired() {
    if !known_since(13, "max_slot_wal_keep_size") {
        return;
    }
    let settings = [("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "32MB")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut world = begun("gap-given-up", Setup { settings, ..Setup::default() }).await;
    let admin = world.admin().await;
    let mut lost = false;
    for round in 0..20 {
        change(&world, round % 6).await;
        admin.batch_execute("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
        let state = "SELECT wal_status FROM pg_replication_slots";
        lost = admin.query_one(state, &[]).await.unwrap().get::<_, String>(0) == "lost";
        if lost {
            break;
        }
    }
    assert!(lost);
    world.start();
    let said = repaired(&mut world).await;
    assert!(said.contains("gave up"), "{said}");
    world.end().await;
}

/// A database put back to a backup that lacks what the box has shipped since, and how the box stood; the
/// gateway is down.
async fn put_back(story: &str) -> (World, SourceStatus) {
    let mut world = begun(story, Setup::default()).await;
    world.cluster.stop(Stop::Fast);
    let backup = world.dir.join("backup");
    world.cluster.back_up(&backup).unwrap();
    world.cluster.start().unwrap();
    world.start();
    for round in 1..4 {
        change(&world, round).await;
    }
    world.caught_up().await;
    let before = world.status().await;
    world.gateway.kill();
    world.cluster.stop(Stop::Fast);
    world.cluster.go_back(&backup).unwrap();
    world.cluster.start().unwrap();
    (world, before)
}

/// Nothing shows it but what the server sends again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_restored_and_went_on_while_nobody_looked_is_repaired() {
    let (mut world, before) = put_back("gap-unseen").await;
    let held = before.durable.position;
    let admin = world.admin().await;
    while world.cluster.position(&admin).await.unwrap() <= held {
        change(&world, 5).await;
    }
    world.start();
    let said = repaired(&mut world).await;
    assert!(said.contains("went on from there"), "{said}");
    world.end().await;
}

/// The log goes back behind what the box holds: nothing is copied before it has grown past that, so that
/// positions only grow in the lake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_restored_from_a_backup_is_repaired_once_its_log_has_grown() {
    let (mut world, before) = put_back("gap-restored").await;
    let before = before.shipped;
    world.start();
    let blocked = |status: &SourceStatus| {
        let gap = |alarm: &lakehead::telemetry::board::Alarm| {
            alarm.cause == Cause::SourceGap.name() && alarm.what.contains("grown past")
        };
        status.state == SourceState::Blocked && status.alarms.values().any(gap)
    };
    let status = world.until("it waits", blocked).await;
    assert_eq!(status.shipped, before);
    world.assert_proven().await;
    // Meanwhile the log grows, also while nobody looks.
    world.gateway.kill();
    let admin = world.admin().await;
    for _ in 0..3 {
        admin
            .batch_execute(
                "SELECT pg_switch_wal(); CREATE TABLE scratch_x (n integer); DROP TABLE scratch_x",
            )
            .await
            .unwrap();
    }
    assert!(world.cluster.position(&admin).await.unwrap() > before.position);
    world.start();
    let said = repaired(&mut world).await;
    assert!(said.contains("restored to an earlier state"), "{said}");
    world.end().await;
}

/// Another database is no gap but a mistake: nothing is taken from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_is_refused_and_nothing_of_it_comes_into_the_lake() {
    let mut world = begun("gap-other", Setup::default()).await;
    let other = World::new("gap-other-server", Setup::default()).await;
    let (first, second) = (world.cluster.port(), other.cluster.port());
    let site = world.site.dir.join("site.toml");
    let config = fs::read_to_string(&site).unwrap();
    let config = config.replace(&format!(":{first}/"), &format!(":{second}/"));
    lakehead::disk::write_durably(&site, config.as_bytes()).unwrap();
    let password = other.site.dir.join("source.password");
    fs::copy(password, world.site.dir.join("source.password")).unwrap();
    world.start();
    let refused = |status: &SourceStatus| {
        status.state == SourceState::Blocked
            && status.alarms.values().any(|alarm| alarm.what.contains("another one"))
    };
    world.until("it refuses", refused).await;
    let slots = other.admin().await.query("SELECT FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(slots.len(), 0);
    // What was on its way when the box was killed may have come; nothing else has.
    world.assert_proven().await;
    let systems: std::collections::BTreeSet<String> =
        world.ledger().into_iter().map(|entry| entry.source.system_identifier).collect();
    assert_eq!(systems.len(), 1, "{systems:?}");
    world.assert_restored_equal().await;
    world.end().await;
    other.end().await;
}
