//! The device fails: syncs that do not come, short writes, no room.

use super::*;

#[tokio::test]
async fn nothing_is_said_before_the_sync_that_covers_it() {
    let site = Site::new();
    let journal = site.open();
    site.device.plan().hold_syncs = true;
    journal.append(whole(10, 1)).await.unwrap();
    let recorded = journal.record(fact("a", 1));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(matches!(site.device.plan().events.last(), Some(Event::Write(..))), "it was written");
    assert_eq!(*journal.durable().borrow(), Durable::default());
    assert_eq!(journal.get("a"), None);
    assert_eq!(journal.reader(0).next(NOW).unwrap(), None);
    site.device.plan().hold_syncs = false;
    recorded.await.unwrap();
    durable_at(&*journal, 1).await;
    assert_eq!(journal.get("a"), Some(b"1".to_vec()));
    journal.stop().await;
}

#[tokio::test]
async fn after_a_failed_sync_nothing_more_counts() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    durable_at(&*journal, 1).await;
    let mut reader = journal.reader(1);
    site.device.plan().sync_fails_after = Some(0);
    journal.append(whole(20, 1)).await.unwrap();
    assert!(matches!(journal.failed().await, JournalError::Write { .. }));
    assert!(matches!(journal.failed().await, JournalError::Stopped(_)));
    assert_eq!(journal.durable().borrow().batch, 1);
    assert!(reader.next(SOON).is_err());
    assert!(journal.append(whole(30, 1)).await.is_err());
    assert!(journal.session().await.is_err());
    assert!(journal.record(fact("a", 1)).await.is_err());
    assert_eq!(site.board.read().alarms["journal"].cause, "DiskFailed");
    kill(journal).await;
    site.cut_power(|_| 0);
    let journal = site.open();
    assert_eq!(journal.session().await.unwrap().batch, 1);
    journal.stop().await;
}

#[tokio::test]
async fn the_last_group_is_written_again_before_it_counts() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    durable_at(&*journal, 1).await;
    kill(journal).await;
    let found = survey(&FileSystem, &site.path(), &KEY, None).unwrap();
    let last = found.last.clone().unwrap();
    assert!(last.group_from < last.end);
    site.device.plan().events.clear();
    mend(&site.device, &found).unwrap();
    let path = last.path.clone();
    assert_eq!(
        site.device.plan().events,
        [Event::Write(path.clone(), last.end), Event::Sync(path)]
    );
}

#[tokio::test]
async fn short_writes_are_finished() {
    let site = Site::new();
    site.device.plan().short = true;
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    durable_at(&*journal, 1).await;
    assert_eq!(read_all(journal.reader(0)).len(), 1);
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
}

#[tokio::test]
async fn a_full_disk_keeps_facts_going_and_loses_no_run() {
    let site = Site::with(16 << 20, 1 << 20);
    site.device.plan().room = Some((1 << 20) + (8 << 20) + 50_000);
    let journal = site.open();
    // The reserve is 1 MiB; what is left beside it is used up.
    let taken = site.device.plan().room.unwrap() - 30_000;
    site.device.plan().room = Some(30_000);
    let mut sent = vec![];
    for number in 1..=2000 {
        tokio::time::sleep(Duration::from_micros(200)).await;
        let mut run = whole(10 * number, 1);
        run.bytes = noise(1000);
        sent.push(run.bytes.clone());
        let full =
            tokio::time::timeout(Duration::from_millis(300), journal.append(run.clone())).await;
        if full.is_err() {
            sent.pop();
            break;
        }
    }
    let status = site.board.read();
    assert!(status.journal_full && sent.len() < 2000, "{} runs", sent.len());
    assert_eq!(status.alarms["journal"].cause, "DiskFull");
    for number in 0..100 {
        journal.record(fact(&format!("seal/{number}"), number)).await.unwrap();
    }
    assert!(journal.durable().borrow().batch < sent.len() as u64, "some runs wait");
    *site.device.plan().room.as_mut().unwrap() += taken;
    durable_at(&*journal, sent.len() as u64).await;
    let read: Vec<_> = read_all(journal.reader(0)).into_iter().map(|batch| batch.bytes).collect();
    assert!(read == sent, "all runs, once, in order");
    assert!(!site.board.read().journal_full);
    assert!(site.board.read().alarms.is_empty());
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
}

#[tokio::test]
async fn the_reserve_is_given_to_another_room_that_finds_the_disk_full() {
    let site = Site::with(16 << 20, 1 << 20);
    let journal = site.open();
    let reserve = journal.shared.dir.join("reserve");
    assert!(reserve.exists());
    journal.lend_reserve();
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if !reserve.exists() {
            break;
        }
    }
    // Though there is room, it is not taken back at once: a group takes a while to be sealed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!reserve.exists());
    assert_eq!(site.board.read().alarms["journal"].cause, "DiskFull");
    journal.record(fact("a", 1)).await.unwrap();
    let stuck = journal.append(whole(20, 1));
    assert!(tokio::time::timeout(Duration::from_millis(50), stuck).await.is_err());
    tokio::time::timeout(SOON, journal.stop()).await.unwrap();
}

#[tokio::test]
async fn facts_wait_for_room_while_the_reserve_is_lent_and_runs_longer() {
    let site = Site::with(16 << 20, 1 << 20);
    let journal = site.open();
    journal.lend_reserve();
    while !site.board.read().journal_full {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Whom it was lent to has used it all.
    site.device.plan().room = Some(0);
    let mut waits = journal.record(fact("a", 1));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut waits).await.is_err());
    site.device.plan().room = Some(1 << 30);
    tokio::time::timeout(SOON, waits).await.unwrap().unwrap();
    let run = journal.append(whole(20, 1));
    assert!(tokio::time::timeout(Duration::from_millis(500), run).await.is_err());
    assert!(!journal.shared.dir.join("reserve").exists(), "it is lent still");
    tokio::time::timeout(SOON, journal.stop()).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_still_opens_and_stops() {
    let site = Site::with(16 << 20, 1 << 20);
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    durable_at(&*journal, 1).await;
    journal.stop().await;
    drop(journal);
    site.device.plan().room = Some(4000);
    let journal = site.open();
    assert!(site.board.read().journal_full);
    journal.record(fact("a", 1)).await.unwrap();
    let stuck = journal.append(whole(20, 1));
    assert!(tokio::time::timeout(Duration::from_millis(50), stuck).await.is_err());
    site.device.plan().room = Some(0);
    let refused = journal.record(fact("b", 1));
    tokio::time::timeout(SOON, journal.stop()).await.unwrap();
    assert!(refused.await.is_err());
}
