//! A journal that is damaged while the box is off, behind what the lake has: the source is asked again.

use std::{fs, path::Path, time::Duration};

use lakehead::{demo::workload::Tally, telemetry::board::SourceState};
use tokio_util::sync::CancellationToken;

use crate::harness::{SOURCE, Setup, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_journal_lost_is_asked_for_again() {
    // Changes are not sealed for a while: the journal alone has them.
    let setup = Setup { release: "lake".into(), object_age: "25 s".into(), ..Setup::default() };
    let mut world = World::new("damage", setup).await;
    let workload = world.workload(21, 300_000, 60.0).await;
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world.caught_up().await;
    let (tally, stop) = (Tally::default(), CancellationToken::new());
    let tasks = world.tasks.clone();
    let work = workload.run(&tally, &tasks, &stop);
    let some = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(work, some);
    worked.unwrap();
    let held = world.until("it holds more than the lake", |status| {
        status.durable.position > status.shipped.position
    });
    let held = held.await;
    world.gateway.kill();
    let damaged = damage(&world.site.data_dir().join("journal").join(SOURCE));
    world.start();
    world.until("the damage is named", |status| !status.journal_damage.is_empty()).await;
    world.caught_up().await;
    let status =
        world.until("the lake has it", |now| now.shipped.position >= held.durable.position).await;
    assert!(status.journal_damage[0].contains(&damaged), "{:?}", status.journal_damage);
    let log = fs::read_to_string(world.dir.join("gateway.log")).unwrap();
    assert!(log.contains("asked again for all that came after"));
    world.assert_proven().await;
    world.assert_sent_once(1);
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Flips a bit of two batches in the second half of the last segment. Gives the segment's name.
fn damage(journal: &Path) -> String {
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "log");
    let files = fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
    let path = files.filter(is_segment).max().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let batches: Vec<usize> = (bytes.len() / 2..bytes.len().saturating_sub(200))
        .filter(|at| bytes[*at..].starts_with(b"LHJF") && bytes[at + 4] == 5)
        .collect();
    assert!(batches.len() > 10, "{} batches in {} bytes", batches.len(), bytes.len());
    // One whose payload is bad, and one whose header is.
    bytes[batches[2] + 100] ^= 1;
    bytes[batches[batches.len() / 2] + 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    path.file_name().unwrap().to_str().unwrap().into()
}
