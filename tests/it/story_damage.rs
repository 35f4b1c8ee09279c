//! A journal that is damaged while the box is off, behind what the lake has: the source is asked again. A spool that is: what it
//! held is made anew.

use std::{fs, path::Path, time::Duration};

use lakehead::{
    demo::workload::Tally,
    telemetry::board::{SourceState, TableProgress},
};
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

const TABLES: &str = "CREATE TABLE papers (id bigserial PRIMARY KEY, note text NOT NULL);
CREATE TABLE moves (id int PRIMARY KEY, amount numeric(12,2));
INSERT INTO papers (note) SELECT md5(n::text) FROM generate_series(1, 20000) AS n;
INSERT INTO moves SELECT n, n / 7.0 FROM generate_series(1, 5000) AS n;
SELECT lo_from_bytea(70001, decode(repeat('ab', 300000), 'hex'))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_damaged_spool_lost_is_made_anew() {
    let setup = Setup { object_age: "2 s".into(), ..Setup::default() };
    let mut world = World::new("damage-spool", setup).await;
    world.shop().await.batch_execute(TABLES).await.unwrap();
    world.configure("sequence_interval = \"10 s\"");
    world.bucket.away(true);
    world.start();
    world.until("it streams", |status| status.state == SourceState::Streaming).await;
    world
        .until("the snapshot is sealed", |status| {
            let mut tables = status.snapshot.values();
            status.snapshot.len() > 2 && tables.all(TableProgress::is_whole)
        })
        .await;
    for round in 1..=4 {
        let work = format!(
            "INSERT INTO papers (note) SELECT 'of round {round}' FROM generate_series(1, 300);
             UPDATE papers SET note = note || '{round}' WHERE id % 50 = {round};
             DELETE FROM moves WHERE id % 40 = {round}"
        );
        world.execute(&work).await;
        if round == 2 {
            world.execute("ALTER TABLE moves ADD COLUMN at timestamptz DEFAULT now()").await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    let admin = world.admin().await;
    let wanted = world.cluster.position(&admin).await.unwrap();
    admin.batch_execute("INSERT INTO public.mark VALUES (clock_timestamp())").await.unwrap();
    world.until("all is sealed", |status| status.sealed.position > wanted).await;
    world.gateway.kill();
    let damaged = damage_spool(&world.site.data_dir().join("spool").join(SOURCE));
    world.bucket.away(false);

    // Whoever starts it again is systemd, else.
    world.start();
    let mut starts = 1;
    while world.gateway.status().await.is_none_or(|status| status.shipped.position <= wanted) {
        if let Some(code) = world.gateway.ended() {
            assert!(code == 2 && starts < 10, "{code}: {}", world.gateway.log_end());
            starts += 1;
            world.start();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.settled().await;
    let log = fs::read_to_string(world.dir.join("gateway.log")).unwrap();
    let said = |what| log.matches(what).count();
    let (anew, again) =
        (said("lost in the spool: made anew"), said("lost in the spool: they are read again"));
    // One was enough to look through all.
    assert!(starts == 2 && anew > 3 && again > 2, "{starts}, {anew}, {again}");
    assert_eq!(anew + again, damaged);
    world.assert_proven().await;
    world.assert_sent_once(starts);
    world.assert_readable().await;
    world.assert_restored_equal().await;
    world.end().await;
}

/// Flips a bit in each file: all that waits for S3 is lost, and only who reads it sees that.
fn damage_spool(spool: &Path) -> usize {
    let files = fs::read_dir(spool).unwrap().map(|file| file.unwrap().path());
    let flip = |path: std::path::PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    files.map(flip).count()
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
