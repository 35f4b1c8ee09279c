//! SIGKILL at 20 random moments, in snapshot and in stream: nothing lost, nothing twice.

use std::time::Duration;

use lakehead::{
    demo::workload::Tally,
    telemetry::board::{SourceState, TableProgress},
};
use tokio_util::sync::CancellationToken;

use crate::harness::{Setup, World};

const KILLS: usize = 20;
const SEED: u64 = 41;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_lose_nothing_and_write_nothing_twice() {
    // Small objects and several parts for each, so that a kill meets every step.
    let setup = Setup { object_bytes: "12 MiB".into(), ..Setup::default() };
    let mut world = World::new("kill", setup).await;
    let config = std::fs::read_to_string(world.site.dir.join("site.toml")).unwrap();
    let parts = format!("{config}\n[ship]\npart_bytes = \"5 MiB\"\n");
    lakehead::disk::write_durably(&world.site.dir.join("site.toml"), parts.as_bytes()).unwrap();
    let workload = world.workload(SEED, 80_000_000, 120.0).await;
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let tasks = world.tasks.clone();
    let work = workload.run(&tally, &tasks, &stop);
    let kill = async {
        let mut rng = fastrand::Rng::with_seed(SEED);
        let mut met = vec![];
        for kill in 0..KILLS {
            world.start();
            // Half of them early, while the snapshot is read; the others once it is done.
            if kill >= KILLS / 2 {
                world
                    .until("it streams, and has all that was there before", |status| {
                        let mut tables = status.snapshot.values();
                        status.state == SourceState::Streaming
                            && !status.snapshot.is_empty()
                            && tables.all(TableProgress::is_whole)
                    })
                    .await;
            }
            if kill == KILLS * 3 / 4 {
                workload.large(50_000, &tally, &tasks).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(rng.u64(50..2500))).await;
            met.push(world.gateway.status().await.map(|status| status.state));
            world.must_run();
            world.gateway.kill();
        }
        stop.cancel();
        met
    };
    let (worked, met) = tokio::join!(work, kill);
    worked.unwrap();
    eprintln!("killed while: {met:?}");
    assert!(met.contains(&Some(SourceState::Snapshot)), "{met:?}");
    assert!(met.contains(&Some(SourceState::Streaming)), "{met:?}");
    world.start();
    world.caught_up().await;
    let status = world.until("the ledger has all", |now| now.durable == now.shipped).await;
    assert!(status.transactions_durable > status.transactions, "counted over all starts");
    assert_eq!(status.transactions_shipped, status.transactions_durable);
    world.assert_proven().await;
    world.assert_sent_once(KILLS);
    let read = world.assert_readable().await;
    eprintln!("after {KILLS} kills: {read}");
    world.assert_restored_equal().await;
    world.end().await;
}
