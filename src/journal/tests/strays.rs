//! Frames and files of one segment in the place of another's.

use super::{
    damage::{a_group_of_three, closed_segments, flip, frames_of, reader_numbers, three_groups},
    *,
};

#[tokio::test]
async fn what_was_cut_off_is_not_read_from_a_copy_that_still_has_it() {
    let site = Site::new();
    let (path, group) = a_group_of_three(&site).await;
    flip(&path, group[1].0 + 80);
    fs::copy(&path, site.path().join(segment::file_name(7))).unwrap();
    let journal = site.open();
    journal.append(whole(30, 2)).await.unwrap();
    journal.append(whole(40, 2)).await.unwrap();
    durable_at(&*journal, 4).await;
    kill(journal).await;
    // The copy is the longer one now.
    let journal = site.open();
    let changes: Vec<_> = read_all(journal.reader(0)).iter().map(|read| read.changes).collect();
    assert_eq!(changes, [1, 1, 2, 2]);
    journal.stop().await;
}

/// The index covers the last segment, and opens none of what stands there.
#[tokio::test]
async fn facts_of_another_segment_in_place_of_the_last_one_are_not_taken_for_lost_ones() {
    let site = Site::with(1 << 30, 5000);
    let journal = site.open();
    for number in 1..=20 {
        journal.record(fact("a", number)).await.unwrap();
    }
    journal.stop().await;
    drop(journal);
    let mut bytes = fs::read(&site.segments()[0]).unwrap();
    bytes[..record::SEGMENT_HEADER_BYTES].fill(0);
    closed_segments(&site).await.stop().await;
    fs::write(site.segments().last().unwrap(), &bytes).unwrap();
    let journal = site.open();
    assert_eq!(journal.get("a"), Some(b"20".to_vec()));
    assert_eq!(journal.session().await.unwrap().batch, 30);
    assert!(!site.board.read().journal_damage.is_empty());
    journal.stop().await;
}

#[tokio::test]
async fn what_could_be_a_later_segment_and_opens_nothing_stops_the_start() {
    let site = Site::new();
    let (path, _) = three_groups(&site).await;
    let copy = site.path().join(segment::file_name(7));
    fs::write(&copy, &fs::read(&path).unwrap()[..200]).unwrap();
    for _ in 0..2 {
        let error = site.try_open().map(drop).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { .. }), "{error}");
    }
    fs::remove_file(&copy).unwrap();
    let journal = site.open();
    assert_eq!(reader_numbers(&journal, 0), [1, 2]);
    journal.stop().await;
}

#[tokio::test]
async fn a_segment_with_a_stray_frame_of_the_last_one_is_not_taken_for_it() {
    let site = Site::with(1 << 30, 5000);
    closed_segments(&site).await.stop().await;
    let segments = site.segments();
    let (hurt, last) = (&segments[1], segments.last().unwrap());
    let whole_file = fs::read(hurt).unwrap();
    let head = record::SEGMENT_HEADER_BYTES..usize::try_from(frames_of(hurt)[2].0).unwrap();
    let stray = fs::read(last).unwrap()[head.clone()].to_vec();
    // The head of the last one in its place, or only the end of it, with or without the header.
    for (lost, flipped) in [(0, false), (100, false), (100, true)] {
        let mut bytes = whole_file.clone();
        bytes[head.clone()].copy_from_slice(&stray);
        bytes[head.start..head.start + lost].fill(0);
        bytes[20] ^= u8::from(flipped);
        fs::write(hurt, &bytes).unwrap();
        let journal = site.open();
        assert_eq!(reader_numbers(&journal, 0), (1..=30).collect::<Vec<_>>(), "{lost} {flipped}");
        journal.stop().await;
        let copied = |said: &String| said.contains("copy of another segment");
        assert!(!site.board.read().journal_damage.iter().any(copied));
    }
}
