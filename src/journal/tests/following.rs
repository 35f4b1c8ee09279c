//! Who reads behind the writer gets the last batches as they came: the same that the log holds.

use super::*;

#[tokio::test]
async fn who_follows_sees_what_every_reader_sees() {
    let site = Site::new();
    let journal = site.open();
    suite(&*journal, &|after| journal.follow(after)).await;
    journal.stop().await;
}

/// Appends batches of all kinds; some are gone back from.
async fn write(journal: &Journal, dice: &mut fastrand::Rng) -> u64 {
    journal.session().await.unwrap();
    let (mut position, mut ends) = (10, vec![Durable::default()]);
    for _ in 0..150 {
        position += 10;
        let mut runs = match dice.u8(..8) {
            0 => vec![
                piece(Piece::First, 2, None),
                piece(Piece::Middle, 1, None),
                piece(Piece::Last, 1, Some(position)),
            ],
            _ => vec![whole(position, dice.u64(..3))],
        };
        for run in &mut runs {
            // One that is not kept now and then.
            run.bytes = noise(if dice.u8(..20) == 0 { 700_000 } else { dice.usize(..40_000) });
        }
        for run in runs {
            journal.append(run).await.unwrap();
        }
        if dice.u8(..25) == 0 {
            let durable = *journal.durable().borrow();
            ends.push(durable);
            let to = ends[dice.usize(ends.len().saturating_sub(3)..ends.len())];
            let to = journal.rewind(to).await.unwrap();
            ends.retain(|end| end.batch <= to.batch);
            position = position.max(to.point.position.0);
        }
    }
    let batch = journal.append(whole(position + 10, 1));
    batch.await.unwrap();
    let mut durable = journal.durable();
    let reached = durable.wait_for(|durable| durable.point.position.0 == position + 10);
    tokio::time::timeout(SOON, reached).await.unwrap().unwrap().batch
}

#[tokio::test]
async fn what_is_given_as_it_came_is_what_the_log_holds() {
    for seed in 0..6 {
        let site = Site::with(1 << 30, 400_000);
        let journal = site.open();
        let (tell, told) = std::sync::mpsc::channel::<u64>();
        let mut follower = journal.follow(0);
        let reading = std::thread::spawn(move || {
            let mut dice = fastrand::Rng::with_seed(seed);
            let (mut read, mut end) = (vec![], None);
            while end.is_none_or(|end| read.last().is_none_or(|last: &Batch| last.number < end)) {
                end = end.or_else(|| told.try_recv().ok());
                match follower.next(Duration::from_millis(20)) {
                    Ok(batch) => read.extend(batch),
                    // The log went back to before the transaction of which a part was given.
                    Err(error) => assert!(error.to_string().contains("went back"), "{error}"),
                }
                // Now right behind the writer, now far.
                if dice.u8(..15) == 0 {
                    std::thread::sleep(Duration::from_millis(dice.u64(..30)));
                }
            }
            read
        });
        let last = write(&journal, &mut fastrand::Rng::with_seed(seed)).await;
        tell.send(last).unwrap();
        let read = tokio::task::spawn_blocking(|| reading.join().unwrap()).await.unwrap();
        let held = read_all(journal.reader(0));
        assert_eq!(held.last().unwrap().number, last, "seed {seed}");
        // Beside what was gone back from later, each once and in order.
        let numbers: Vec<_> = read.iter().map(|batch| batch.number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "seed {seed}: {numbers:?}");
        let read: BTreeMap<_, _> = read.into_iter().map(|batch| (batch.number, batch)).collect();
        for batch in held {
            assert_eq!(read.get(&batch.number), Some(&batch), "seed {seed}");
        }
        journal.stop().await;
    }
}
