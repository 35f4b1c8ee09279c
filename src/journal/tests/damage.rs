//! Torn tails and damage.

use super::*;
use crate::source::Durable;

/// Offsets and headers of the last segment's frames, its end last.
pub(super) fn frames_of(path: &Path) -> Vec<(u64, record::FrameHeader)> {
    let bytes = fs::read(path).unwrap();
    let found = frames_in(&bytes);
    let end = found.last().map_or(0, |(offset, header)| offset + header.frame_bytes());
    assert_eq!(end, bytes.len() as u64, "all of it is frames");
    found
}

/// Offsets and headers of the frames that follow one another after a segment's header.
pub(super) fn frames_in(bytes: &[u8]) -> Vec<(u64, record::FrameHeader)> {
    let mut found = vec![];
    let mut at = record::SEGMENT_HEADER_BYTES;
    while let Some(Ok(header)) = bytes.get(at..).map(record::FrameHeader::decode) {
        found.push((at as u64, header));
        at += usize::try_from(header.frame_bytes()).unwrap();
    }
    found.retain(|(offset, header)| offset + header.frame_bytes() <= bytes.len() as u64);
    found
}

/// Two batches and a fact between them, each in a group of its own; killed.
pub(super) async fn three_groups(site: &Site) -> (PathBuf, Vec<(u64, record::FrameHeader)>) {
    let journal = site.open();
    journal.append(whole(10, 2)).await.unwrap();
    durable_at(&*journal, 1).await;
    journal.record(fact("a", 1)).await.unwrap();
    journal.append(whole(20, 2)).await.unwrap();
    durable_at(&*journal, 2).await;
    kill(journal).await;
    let path = site.segments().pop().unwrap();
    let frames = frames_of(&path);
    let control = frames.len() - 3;
    (path, frames.into_iter().skip(control).collect())
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_to_the_last_whole_frame() {
    let site = Site::new();
    let (path, frames) = three_groups(&site).await;
    let whole_file = fs::read(&path).unwrap();
    let first = usize::try_from(frames[0].0).unwrap();
    for length in first..whole_file.len() {
        for zeros in [false, true] {
            let mut torn = whole_file[..length].to_vec();
            if zeros {
                torn.resize(whole_file.len(), 0);
            }
            fs::write(&path, &torn).unwrap();
            let found = survey(&FileSystem, &site.path(), &KEY, None).unwrap();
            let ends = frames.iter().map(|(offset, header)| offset + header.frame_bytes());
            // Ciphertext may end in zeros, so that those in its place change nothing.
            let is_whole = |end: &u64| {
                let end = usize::try_from(*end).unwrap();
                torn.get(..end).is_some_and(|torn| *torn == whole_file[..end])
            };
            let kept: Vec<_> = ends.filter(is_whole).collect();
            let last = found.last.clone().unwrap();
            assert_eq!(last.end, kept.last().copied().unwrap_or(frames[0].0), "at {length}");
            assert_eq!(found.progress.durable.batch, [0, 1, 1][kept.len()], "at {length}");
            assert_eq!(found.facts.len(), [0, 0, 1][kept.len()], "at {length}");
            assert!(found.damage.is_empty());
            mend(&FileSystem, &found).unwrap();
            let again = survey(&FileSystem, &site.path(), &KEY, None).unwrap();
            assert_eq!((again.progress, again.facts), (found.progress, found.facts));
            assert_eq!(again.last.unwrap().file_bytes, last.end);
        }
    }
}

#[tokio::test]
async fn recovering_twice_finds_what_recovering_once_found() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 2)).await.unwrap();
    journal.append(piece(Piece::First, 2, None)).await.unwrap();
    journal.record(fact("a", 1)).await.unwrap();
    while journal.shared.board.read().journal_bytes < 600 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    kill(journal).await;
    let mut before = None;
    for _ in 0..3 {
        let journal = site.open();
        let batches = read_all(journal.reader(0));
        let state = (journal.session().await.unwrap(), facts_of(&journal), batches);
        assert_eq!(*before.get_or_insert(state.clone()), state);
        kill(journal).await;
    }
    assert_eq!(site.check().damage, [""; 0]);
}

pub(super) fn flip(path: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    FileExt::write_at(&file, &[byte[0] ^ 0x10], offset).unwrap();
}

#[tokio::test]
async fn a_damaged_batch_is_named_by_everyone_and_skipped_by_no_one() {
    for inside in [0, 30, 70, 90] {
        let site = Site::new();
        let (path, frames) = three_groups(&site).await;
        let (offset, header) = frames[0];
        flip(&path, offset + inside);
        let checked = site.check();
        assert_eq!(checked.damage.len(), 1, "{checked}");
        let range = format!("from byte {offset} to {}", offset + header.frame_bytes());
        assert!(checked.damage[0].contains(&range), "{checked}");
        assert!(checked.damage[0].contains("(batches 1)"), "{checked}");
        // Where the header is gone, the numbers around it tell that it held no facts.
        let journal = site.open();
        assert_eq!(journal.session().await.unwrap().batch, 2);
        assert_eq!(journal.get("a"), Some(b"1".to_vec()));
        let mut reader = journal.reader(0);
        for _ in 0..2 {
            let error = reader.next(SOON).unwrap_err().to_string();
            assert!(error.contains(&range) && error.contains("(batches 1)"), "{error}");
        }
        assert_eq!(reader_numbers(&journal, 1), [2]);
        assert!(site.board.read().journal_damage[0].contains(&range));
        journal.stop().await;
    }
}

#[tokio::test]
async fn what_could_not_be_read_once_is_read_no_more_until_the_log_goes_back() {
    let site = Site::new();
    let (path, frames) = three_groups(&site).await;
    let (offset, _) = frames[0];
    flip(&path, offset + 80);
    let journal = site.open();
    assert!(journal.reader(0).next(SOON).is_err());
    assert_eq!((journal.damaged_after(0), journal.damaged_after(1)), (Some(1), None));
    // A memory that errs, not a disk: who goes back to before it must not be overtaken.
    flip(&path, offset + 80);
    let mut reader = journal.reader(0);
    for _ in 0..2 {
        let error = reader.next(SOON).unwrap_err().to_string();
        assert!(error.contains("could not be read before"), "{error}");
    }
    let to = journal.whole_before(1, Durable::default()).unwrap();
    assert_eq!(journal.rewind(to).await.unwrap(), Durable::default());
    assert_eq!(journal.damaged_after(0), None);
    assert_eq!(reader.next(NOW).unwrap(), None);
    journal.append(whole(10, 2)).await.unwrap();
    let read = reader.next(SOON).unwrap().unwrap();
    assert_eq!((read.number, read.first), (3, Sequence(1)));
    journal.stop().await;
}

#[tokio::test]
async fn a_reader_within_a_transaction_before_which_the_log_goes_back_is_told_so() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    journal.append(piece(Piece::First, 1, None)).await.unwrap();
    journal.append(piece(Piece::Last, 1, Some(20))).await.unwrap();
    durable_at(&*journal, 3).await;
    let to = journal.whole_before(2, Durable::default()).unwrap();
    let mut reader = journal.reader(0);
    let read = [reader.next(NOW), reader.next(NOW)].map(|read| read.unwrap().unwrap().number);
    assert_eq!(read, [1, 2]);
    journal.rewind(to).await.unwrap();
    journal.append(whole(20, 2)).await.unwrap();
    durable_at(&*journal, 4).await;
    let error = reader.next(NOW).unwrap_err().to_string();
    assert!(error.contains("went back"), "{error}");
    assert_eq!(reader.next(NOW).unwrap().unwrap().number, 4);
    assert_eq!(reader_numbers(&journal, 0), [1, 4]);
    journal.stop().await;
}

pub(super) fn reader_numbers(journal: &Journal, after: u64) -> Vec<u64> {
    read_all(journal.reader(after)).iter().map(|batch| batch.number).collect()
}

#[tokio::test]
async fn a_damaged_fact_stops_the_start_unless_the_index_has_it() {
    let site = Site::new();
    let (path, frames) = three_groups(&site).await;
    let (offset, header) = frames[1];
    flip(&path, offset + 80);
    let error = site.try_open().unwrap_err();
    assert!(
        matches!(error, JournalError::Damaged { from, to, .. }
        if from == offset && to == offset + header.frame_bytes()),
        "{error}"
    );
    flip(&path, offset + 80);

    // The same with an index that was checkpointed after it: the clean stop does that.
    let site = Site::new();
    let journal = site.open();
    journal.record(fact("a", 1)).await.unwrap();
    journal.append(whole(10, 2)).await.unwrap();
    durable_at(&*journal, 1).await;
    journal.stop().await;
    drop(journal);
    let path = site.segments().pop().unwrap();
    let place = frames_of(&path).into_iter().find(|(_, header)| header.kind == record::Kind::Facts);
    flip(&path, place.unwrap().0 + 80);
    let journal = site.open();
    assert_eq!(journal.get("a"), Some(b"1".to_vec()));
    assert_eq!(journal.session().await.unwrap().batch, 1);
    assert_eq!(site.board.read().journal_damage.len(), 1);
    journal.stop().await;
}

/// Four batches, the last three in one group; killed. The frames of that.
pub(super) async fn a_group_of_three(site: &Site) -> (PathBuf, Vec<(u64, record::FrameHeader)>) {
    let journal = site.open();
    site.device.plan().hold_syncs = true;
    // The first goes into a group of its own; the others wait for its sync and share the next.
    journal.append(whole(10, 1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    for number in 2..=4 {
        journal.append(whole(10 * number, 1)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    site.device.plan().hold_syncs = false;
    durable_at(&*journal, 4).await;
    kill(journal).await;
    let path = site.segments().pop().unwrap();
    let frames = frames_of(&path);
    let group = &frames[frames.len() - 3..];
    assert!(group.iter().all(|(_, header)| header.group == group[0].1.frame), "{group:?}");
    (path, group.to_vec())
}

#[tokio::test]
async fn a_bad_frame_before_good_ones_of_its_own_group_is_a_torn_tail() {
    let site = Site::new();
    let (path, group) = a_group_of_three(&site).await;
    flip(&path, group[1].0 + 80);
    let found = survey(&FileSystem, &site.path(), &KEY, None).unwrap();
    assert!(found.damage.is_empty());
    assert_eq!((found.progress.durable.batch, found.last.unwrap().end), (2, group[1].0));
    assert_eq!(site.check().damage, [""; 0]);
    assert!(site.check().torn_bytes > 0);
}

#[tokio::test]
async fn damage_to_a_closed_segment_is_named_and_the_rest_is_read() {
    let site = Site::with(1 << 30, 5000);
    let journal = site.open();
    for number in 1..=30 {
        let run = Run { bytes: noise(1000), ..whole(10 * number, 1) };
        journal.append(run).await.unwrap();
        durable_at(&*journal, number).await;
    }
    journal.stop().await;
    drop(journal);
    let segments = site.segments();
    assert!(segments.len() > 4);
    let whole_file = fs::read(&segments[1]).unwrap();

    // A header that does not read is written again, if its salt is still there.
    flip(&segments[1], 20);
    let journal = site.open();
    assert_eq!(reader_numbers(&journal, 0), (1..=30).collect::<Vec<_>>());
    assert_eq!(site.board.read().journal_damage.len(), 1);
    journal.stop().await;
    drop(journal);
    assert_eq!(site.check().damage, [""; 0]);
    flip(&segments[1], 50);
    let journal = site.open();
    let mut reader = journal.reader(0);
    let good = std::iter::from_fn(|| reader.next(NOW).ok().flatten()).last().unwrap().number;
    let error = reader.next(NOW).unwrap_err();
    assert!(error.to_string().contains("checksum of its header"), "{error}");
    assert_eq!(site.board.read().journal_damage.len(), 2);
    journal.stop().await;
    drop(journal);

    // A closed segment that lost its end.
    fs::write(&segments[1], &whole_file[..whole_file.len() - 10]).unwrap();
    let journal = site.open();
    assert!(
        site.board.read().journal_damage.iter().any(|damage| damage.contains("it was closed at"))
    );
    let mut reader = journal.reader(good);
    let error = std::iter::from_fn(|| Some(reader.next(NOW))).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("damage from byte"), "{error}");
    journal.stop().await;
    drop(journal);

    // One that is gone.
    fs::remove_file(&segments[1]).unwrap();
    let journal = site.open();
    let mut reader = journal.reader(good);
    let error = reader.next(NOW).unwrap_err();
    assert!(error.to_string().contains("batches are missing"), "{error}");
    journal.stop().await;
}

/// Closed segments of a few batches each; the journal is open.
pub(super) async fn closed_segments(site: &Site) -> Arc<Journal> {
    let journal = site.open();
    for number in 1..=30 {
        let run = Run { bytes: noise(1000), ..whole(10 * number, 1) };
        journal.append(run).await.unwrap();
        durable_at(&*journal, number).await;
    }
    journal
}

async fn until(site: &Site, met: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
    for _ in 0..2000 {
        let status = site.board.read();
        if met(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {:?}", site.board.read());
}

#[tokio::test]
async fn a_flipped_bit_in_a_closed_segment_is_found_before_anyone_reads_it() {
    let site = Site::with(1 << 30, 5000);
    closed_segments(&site).await.stop().await;
    let damaged = site.segments()[2].clone();
    let (offset, header) =
        frames_of(&damaged).into_iter().find(|(_, header)| header.kind.is_payload()).unwrap();
    flip(&damaged, offset + 100);

    let journal = site.open();
    let status = until(&site, |status| !status.journal_damage.is_empty()).await;
    let [found] = &status.journal_damage[..] else { panic!("{status:?}") };
    let place = format!("from byte {offset} to {}", offset + header.frame_bytes());
    assert!(found.contains(&place) && found.contains(&damaged.display().to_string()), "{found}");
    assert!(found.contains(&format!("(batches {})", header.batch)), "{found}");

    // The other segments are read all the same, and nothing is wrong with them.
    let closed = site.segments().split_last().unwrap().1.to_vec();
    let bytes: u64 = closed.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let headers = (closed.len() * record::SEGMENT_HEADER_BYTES) as u64;
    until(&site, |status| status.journal_scrubbed_bytes >= bytes - headers).await;
    assert_eq!(site.board.read().journal_damage.len(), 1);

    // A reader finds the same, in the same words.
    let mut reader = journal.reader(header.batch - 1);
    let error = reader.next(NOW).unwrap_err();
    assert_eq!([error.to_string()], site.board.read().journal_damage[..]);
    journal.stop().await;
    drop(journal);
    assert_eq!(site.check().damage[..], [error.to_string()]);
}

#[tokio::test]
async fn damage_to_a_running_journal_is_found_when_its_turn_comes_and_not_once_it_is_trimmed() {
    let site = Site::with(1 << 30, 5000);
    let journal = closed_segments(&site).await;
    let segments = site.segments();
    let entry = |number: usize| lock(&journal.shared.catalogue).entries()[number].clone();
    let (lost, cut, flipped, trimmed) = (entry(1), entry(2), entry(3), entry(0));
    // All were read after they were closed.
    let bytes: u64 = (0..segments.len() - 1).map(|number| entry(number).bytes).sum();
    let headers = ((segments.len() - 1) * record::SEGMENT_HEADER_BYTES) as u64;
    until(&site, |status| status.journal_scrubbed_bytes >= bytes - headers).await;
    assert_eq!(site.board.read().journal_damage, [""; 0]);

    fs::remove_file(&lost.path).unwrap();
    let frames = frames_of(&cut.path);
    let (last, header) = frames.last().unwrap();
    fs::File::options().write(true).open(&cut.path).unwrap().set_len(*last).unwrap();
    scrub::read(&journal.shared, &lost);
    scrub::read(&journal.shared, &cut);
    flip(&flipped.path, 10);
    scrub::read(&journal.shared, &flipped);
    let damage = site.board.read().journal_damage;
    assert_eq!(damage.len(), 3, "{damage:?}");
    assert!(damage[0].contains("its file is gone"), "{damage:?}");
    let end = last + header.frame_bytes();
    assert!(damage[1].contains(&format!("from byte {last} to {end}")), "{damage:?}");
    assert!(damage[2].contains("its header"), "{damage:?}");

    flip(&trimmed.path, 200);
    lock(&journal.shared.catalogue).take_trimmed(lost.first_batch.unwrap() - 1);
    scrub::read(&journal.shared, &trimmed);
    assert_eq!(site.board.read().journal_damage.len(), 3);
    journal.stop().await;
}

#[tokio::test]
async fn show_and_check_speak_to_people() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 2)).await.unwrap();
    journal.append(piece(Piece::First, 2, None)).await.unwrap();
    journal.session().await.unwrap();
    journal.record(fact("ship/upload/1", 1)).await.unwrap();
    journal.stop().await;
    let report = inspect::show(&site.path(), &Secret::new(KEY.to_vec())).unwrap();
    assert_eq!((report.sequence, report.batch, &report.torn[..]), (2, 1, &[(2, 2)][..]));
    let text = report.to_string();
    assert!(text.contains("through change 2 at 00000000/0000000A, batch 1"), "{text}");
    assert!(text.contains("ship/upload/1"), "{text}");
    let text = site.check().to_string();
    assert!(text.contains("batches 1–2") && text.ends_with("the journal is whole"), "{text}");
}

async fn some_history(site: &Site) -> Vec<Batch> {
    let journal = site.open();
    for number in 1..=6 {
        journal.append(whole(10 * number, 2)).await.unwrap();
        durable_at(&*journal, number).await;
        journal.record(fact("a", number)).await.unwrap();
    }
    let batches = read_all(journal.reader(0));
    kill(journal).await;
    batches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_it_panic_or_tell_untruths(
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..200_usize), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let site = Site::new();
            let batches = some_history(&site).await;
            let path = site.segments().pop().unwrap();
            let mut bytes = fs::read(&path).unwrap();
            for (place, byte, length) in places {
                let from = place.index(bytes.len());
                let to = (from + length).min(bytes.len());
                bytes[from..to].fill(byte);
            }
            let changed = fs::read(&path).unwrap() != bytes;
            fs::write(&path, &bytes).unwrap();
            let checked = inspect::check(&site.path(), &Secret::new(KEY.to_vec()), &mut |_, _| {});
            let silent = checked.is_ok_and(|report| report.damage.is_empty() && report.torn_bytes == 0);
            assert!(!(silent && changed));
            let Ok(journal) = site.try_open() else { return };
            let mut reader = journal.reader(0);
            let durable = journal.durable().borrow().batch;
            let mut read = 0;
            while let Ok(Some(batch)) = reader.next(NOW) {
                read = batch.number;
                let place = usize::try_from(batch.number - 1).unwrap();
                assert_eq!(batch, batches[place]);
            }
            assert!(read == durable || reader.next(NOW).is_err(), "nothing is skipped");
            journal.stop().await;
        });
    }
}
