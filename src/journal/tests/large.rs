//! A journal as large as a long outage leaves it, and a box that was killed: how long recovery takes,
//! and how much of the journal it reads.
//!
//! `make large` has it at 20 GiB (`LAKEHEAD_GIB`), where it must be open within 5 s; every run of the
//! tests has a smaller one, where what was read shows that this does not grow with the journal.

use super::{
    campaign::{number, tell},
    *,
};
use crate::clock::Clock;

const START_MAX: Duration = Duration::from_secs(5);
/// Of one segment: its header, its first frame, and the ends of what is read around them.
const PROBED_MAX: u64 = 16 << 10;
/// What ten thousand tables leave in every segment's head.
const FACTS: u64 = 10_000;
const RUN_BYTES_MAX: usize = 1 << 20;

/// Writes until the segments have `bytes`, and the last one is half full; ends as a SIGKILL would,
/// with runs on their way. What was durable before.
async fn fill(site: &Site, bytes: u64) -> Durable {
    let journal = site.open();
    let changes = (0..FACTS).map(|number| {
        let value = format!("{{\"table\":{number},\"position\":\"{:020}\"}}", fastrand::u64(..));
        (format!("chunk/{number:08}"), Some(value.into_bytes()))
    });
    journal.record(FactBatch { changes: changes.collect() }).await.unwrap();
    let noise = noise(2 * RUN_BYTES_MAX);
    let mut number = 0;
    let mut next = |bytes_max| {
        number += 1;
        let from = fastrand::usize(..RUN_BYTES_MAX);
        let bytes = noise[from..from + fastrand::usize(1000..bytes_max)].to_vec();
        (number, Run { bytes, ..whole(10 * number, 1) })
    };
    while site.board.read().journal_bytes < bytes {
        journal.append(next(RUN_BYTES_MAX).1).await.unwrap();
    }
    let (number, run) = next(RUN_BYTES_MAX);
    journal.append(run).await.unwrap();
    durable_at(&*journal, number).await;
    while !last_is_half_full(site) {
        let (number, run) = next(RUN_BYTES_MAX / 4);
        journal.append(run).await.unwrap();
        durable_at(&*journal, number).await;
    }
    for _ in 0..4 {
        journal.append(next(RUN_BYTES_MAX / 4).1).await.unwrap();
    }
    let durable = *journal.durable().borrow();
    kill(journal).await;
    durable
}

fn last_is_half_full(site: &Site) -> bool {
    let bytes = fs::metadata(site.segments().pop().unwrap()).unwrap().len();
    (site.segment_bytes / 2..site.segment_bytes / 4 * 3).contains(&bytes)
}

/// What is read next comes from the disk, as after a power cut.
fn forget(site: &Site) {
    for path in site.segments() {
        FileSystem.read(&path).unwrap().forget().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_journal_is_recovered_in_seconds_from_its_last_segment() {
    let (bytes, segment_bytes) =
        number("LAKEHEAD_GIB").map_or((256 << 20, 8 << 20), |gib| (gib << 30, 64 << 20));
    let site = Site::with(2 * bytes, segment_bytes);
    let began = SystemClock.now();
    let durable = fill(&site, bytes).await;
    let filled = SystemClock.now() - began;
    forget(&site);
    let segments = site.segments().len() as u64;
    site.device.plan().read_bytes = 0;

    let began = SystemClock.now();
    let journal = site.open();
    let took = SystemClock.now() - began;
    let read = site.device.plan().read_bytes;
    let found = journal.session().await.unwrap();
    tell(&format!(
        "{} MiB in {segments} segments, written in {filled:.0?}: recovered in {took:.2?}, {read} bytes read",
        bytes >> 20
    ));
    assert!(took < START_MAX, "recovered in {took:?}");
    assert!(read > segment_bytes / 2, "the last segment was nearly empty: {read} bytes read");
    assert!(read <= 2 * segment_bytes + PROBED_MAX * segments, "{read} bytes read");

    assert!(found.batch >= durable.batch && found.batch > 100, "{found:?}, was {durable:?}");
    assert_eq!(site.board.read().journal_damage, [""; 0]);
    assert_eq!(journal.scan("chunk/").len() as u64, FACTS);
    for batch in [1, found.batch / 2, found.batch] {
        assert_eq!(journal.reader(batch - 1).next(SOON).unwrap().unwrap().number, batch);
    }
    journal.stop().await;
}
