//! The primary is lost, and a standby promoted: with the slot the road goes on, without it the gap is said and repaired.

use lakehead::{
    demo::{
        cluster::{Cluster, Stop},
        ground::random_key,
    },
    error::Cause,
    telemetry::board::SourceState,
};

use crate::harness::{SLOT, SOURCE, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_with_the_slot_is_followed() {
    let (mut world, mut standby) = pair("failover", "auto").await;
    world.start();
    world.caught_up().await;
    // In order: the standby has all that the primary wrote.
    world.cluster.stop(Stop::Fast);
    standby.stop(Stop::Fast);
    standby.copy_slot(&world.cluster, SLOT).unwrap();
    standby.start().unwrap();
    promote(&mut world, standby).await;
    change(&world).await;
    world.caught_up().await;
    let status = world.status().await;
    assert_eq!(status.state, SourceState::Streaming);
    assert!(
        !status.alarms.values().any(|alarm| alarm.cause == Cause::SourceGap.name()),
        "{status:?}"
    );
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;

    // Nor does a start on the new timeline stop it.
    world.gateway.kill();
    world.start();
    change(&world).await;
    world.caught_up().await;
    world.assert_proven().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_without_the_slot_is_a_gap_that_is_said_and_repaired() {
    let (mut world, standby) = pair("failover-gap", "auto").await;
    world.start();
    world.caught_up().await;
    world.cluster.stop(Stop::Immediate);
    promote(&mut world, standby).await;
    change(&world).await;
    world.repaired().await;
    change(&world).await;
    world.caught_up().await;
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("GAP entry"), "{ended:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

/// Without the snapshots of its slot the new primary sends nothing of what was open where it begins to decode, nor of
/// what came before that had ended; it says so to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_copied_without_its_snapshots_is_a_gap_that_is_said_and_repaired() {
    let (mut world, mut standby) = pair("failover-alone", "lake").await;
    world.start();
    world.caught_up().await;
    let admin = world.admin().await;
    let open = async |value: u32| {
        let session = world.admin().await;
        let begin = format!("BEGIN; INSERT INTO public.mark VALUES (now() + interval '{value} s')");
        session.batch_execute(&begin).await.unwrap();
        session
    };
    // The slot's place to begin at comes to the first checkpoint, where the first of these is open.
    let first = open(1).await;
    let before = world.cluster.position(&admin).await.unwrap();
    admin.batch_execute("CHECKPOINT").await.unwrap();
    let _second = open(2).await;
    first.batch_execute("COMMIT").await.unwrap();
    admin.batch_execute("CHECKPOINT").await.unwrap();
    change(&world).await;
    world.caught_up().await;
    let begins = format!(
        "SELECT FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND restart_lsn >= '{before}'"
    );
    let mut ticks = 0;
    while admin.query(&begins, &[]).await.unwrap().is_empty() {
        ticks += 1;
        assert!(ticks < 300, "the slot stays where it was made");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    // Held, and not confirmed; then more, that nobody has.
    world.bucket.away(true);
    change(&world).await;
    let wanted = world.cluster.position(&admin).await.unwrap();
    admin.batch_execute("INSERT INTO public.mark VALUES (clock_timestamp())").await.unwrap();
    world.until("it is durable", |status| status.durable.position > wanted).await;
    world.gateway.kill();
    change(&world).await;
    world.cluster.stop(Stop::Fast);
    standby.stop(Stop::Fast);
    standby.copy_slot_alone(&world.cluster, SLOT).unwrap();
    standby.start().unwrap();
    promote(&mut world, standby).await;
    change(&world).await;
    world.bucket.away(false);
    world.start();
    world.repaired().await;
    change(&world).await;
    world.caught_up().await;
    let ended = world.audit(&["verify"]).await;
    assert!(ended.code == 0 && ended.stdout.contains("without its snapshots"), "{ended:?}");
    world.assert_restored_equal().await;
    world.end().await;
}

/// A world whose gateway knows two hosts: a primary, and a standby that follows it.
async fn pair(story: &str, release: &str) -> (World, Cluster) {
    let setup = Setup { release: release.into(), ..Setup::default() };
    let mut world = World::new(story, setup).await;
    world.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text)").await;
    change(&world).await;
    let standby = world.cluster.standby_of_copy(&world.dir.join("standby")).unwrap();
    let (first, second) = (world.cluster.port(), standby.port());
    let hosts = format!(":{first},127.0.0.1:{second}/{SOURCE}");
    world.site.url = world.site.url.replace(&format!(":{first}/{SOURCE}"), &hosts);
    world.site.write(&random_key().unwrap()).unwrap();
    (world, standby)
}

/// The standby becomes the primary; the old one is gone for good.
async fn promote(world: &mut World, standby: Cluster) {
    let old = std::mem::replace(&mut world.cluster, standby);
    old.remove().unwrap();
    let admin = world.admin().await;
    admin.batch_execute("SELECT pg_promote(true, 60)").await.unwrap();
}

async fn change(world: &World) {
    world
        .execute(
            "INSERT INTO t SELECT coalesce((SELECT max(id) FROM t), 0) + n, repeat('x', 100)
             FROM generate_series(1, 1000) AS n;
             UPDATE t SET a = a || 'y' WHERE id % 7 = 0",
        )
        .await;
}
