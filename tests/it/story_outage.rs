//! S3 away for a minute under load: what the source may forget meanwhile, and what not.

use std::time::Duration;

use lakehead::{
    demo::workload::Tally, error::Cause, telemetry::board::SourceState, units::Position,
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, World};

const OUTAGE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_release_journal_the_source_goes_on_while_s3_is_away() {
    let (before, after) = outage("outage-journal", "journal").await;
    assert!(after > before, "confirmed {before} before, {after} after {OUTAGE:?} without S3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_release_lake_the_source_keeps_all_until_s3_is_back() {
    let (before, after) = outage("outage-lake", "lake").await;
    assert_eq!(after, before, "confirmed what the ledger does not cover");
}

/// Gives what the source had confirmed a moment after S3 went, and just before it came back.
async fn outage(story: &str, release: &str) -> (Position, Position) {
    let setup = Setup { release: release.into(), ..Setup::default() };
    let mut world = World::new(story, setup).await;
    let workload = world.workload(11, 2_000_000, 60.0).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let tasks = world.tasks.clone();
    let work = workload.run(&tally, &tasks, &stop);
    let away = async {
        world.caught_up().await;
        world.bucket.away(true);
        // What was on its way arrives, and standby status goes out every few seconds.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let before = confirmed(&world).await;
        tokio::time::sleep(OUTAGE - Duration::from_secs(15)).await;
        let after = confirmed(&world).await;
        let status = world.status().await;
        let alarm = status.alarms.values().find(|alarm| alarm.cause == "LakeUnavailable");
        assert!(alarm.is_some_and(|alarm| alarm.heals), "{:?}", status.alarms);
        assert!(status.durable.position > status.shipped.position, "{status:?}");
        world.bucket.away(false);
        stop.cancel();
        (before, after)
    };
    let (worked, seen) = tokio::join!(work, away);
    worked.unwrap();
    world.caught_up().await;
    let healed = world.calm(Cause::LakeUnavailable).await;
    assert_eq!(healed.release, release);
    let shipped = healed.shipped.position;
    for _ in 0..100 {
        if confirmed(&world).await >= shipped {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(confirmed(&world).await >= shipped, "not confirmed after the outage");
    world.assert_proven().await;
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
    seen
}

/// What the server itself says was confirmed to it.
async fn confirmed(world: &World) -> Position {
    let admin = world.admin().await;
    let sql =
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_type = 'logical'";
    admin.query_one(sql, &[]).await.unwrap().get::<_, String>(0).parse().unwrap()
}
