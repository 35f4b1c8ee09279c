//! The budget, trimming, and rolling segments.

use futures_util::FutureExt;

use super::*;

fn segment_bytes(site: &Site) -> u64 {
    // One may be unlinked meanwhile.
    site.segments().iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
}

#[tokio::test]
async fn a_full_journal_waits_and_trimming_lets_it_go_on() {
    let site = Site::with(400_000, 1 << 20);
    let journal = site.open();
    let mut reader = journal.reader(0);
    let mut read = 0;
    let mut waits = 0;
    for number in 1..=100_u64 {
        let mut run = whole(10 * number, 1);
        run.bytes = noise(20_000);
        let mut appended = journal.append(run);
        while tokio::time::timeout(Duration::from_millis(100), &mut appended).await.is_err() {
            waits += 1;
            assert!(site.board.read().journal_full);
            assert_eq!(site.board.read().alarms["journal"].cause, "JournalFull");
            assert!(journal.room(20_000).now_or_never().is_none(), "nobody is let in before it");
            while let Some(batch) = reader.next(NOW).unwrap() {
                read = batch.number;
            }
            journal.trim(read);
        }
        assert!(segment_bytes(&site) <= 400_000 + 2000);
    }
    assert!(waits > 3, "{waits}");
    durable_at(&*journal, 100).await;
    let rest = read_all(journal.reader(read));
    assert_eq!(rest.last().unwrap().number, 100);
    assert_eq!(rest.len() as u64, 100 - read);
    journal.trim(100);
    while segment_bytes(&site) >= 1000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    journal.room(20_000).now_or_never().unwrap().unwrap();
    journal.stop().await;
    assert_eq!(site.board.read().journal_bytes, segment_bytes(&site));
    assert!(!site.board.read().journal_full);
}

#[tokio::test]
async fn a_reader_follows_over_segments_that_are_rolled_and_trimmed() {
    let site = Site::with(1 << 30, 20_000);
    let journal = site.open();
    let mut reader = journal.reader(0);
    let trimmer = journal.clone();
    let reading = std::thread::spawn(move || {
        for number in 1..=200 {
            let batch = reader.next(SOON).unwrap().unwrap();
            assert_eq!((batch.number, batch.first.0), (number, number));
            if number % 7 == 0 {
                trimmer.trim(number);
            }
        }
    });
    for number in 1..=200 {
        let mut run = whole(10 * number, 1);
        run.bytes = noise(1000);
        journal.append(run).await.unwrap();
        if number % 10 == 0 {
            journal.record(fact("a", number)).await.unwrap();
        }
    }
    tokio::task::spawn_blocking(|| reading.join().unwrap()).await.unwrap();
    while site.segments().len() >= 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        matches!(journal.reader(0).next(NOW), Err(JournalError::Damaged { .. })),
        "it was trimmed"
    );
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
    assert_eq!(site.open().get("a"), Some(b"200".to_vec()));
}

#[tokio::test]
async fn a_run_larger_than_the_queue_passes_alone() {
    let site = Site::new();
    let journal = site.open();
    let bytes = noise(3 * pack::PART_BYTES + 5);
    let run = Run { bytes: bytes.clone(), ..whole(10, 1) };
    journal.append(run).await.unwrap();
    journal.append(whole(20, 1)).await.unwrap();
    durable_at(&*journal, 2).await;
    let read = read_all(journal.reader(0));
    assert!(read[0].bytes == bytes);
    assert_eq!(read[1].number, 2);
    journal.stop().await;
    assert_eq!(site.check().segments.iter().map(|segment| segment.batches).sum::<u64>(), 2);
}

#[tokio::test]
async fn a_reader_that_waits_lets_go_of_a_segment_that_was_trimmed() {
    let site = Site::with(1 << 30, 4 << 20);
    let journal = site.open();
    let mut reader = journal.reader(0);
    let mut run = whole(10, 1);
    run.bytes = noise(2 << 20);
    journal.append(run).await.unwrap();
    assert_eq!(reader.next(SOON).unwrap().unwrap().number, 1);
    let first = site.segments().remove(0);
    // A reader can know of a batch a little before the watermark, behind which nothing is trimmed.
    durable_at(&*journal, 1).await;
    journal.trim(1);
    while first.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(reader.next(NOW).unwrap().is_none());
    let first = format!("{} (deleted)", first.display());
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let mut open = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    assert!(!open.any(|file| file == Path::new(&first)), "its room is not free");
    journal.append(whole(20, 1)).await.unwrap();
    assert_eq!(reader.next(SOON).unwrap().unwrap().number, 2);
    journal.stop().await;
}
