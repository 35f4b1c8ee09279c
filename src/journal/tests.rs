//! Tests of the whole journal: both implementations, restarts, faults of the device, and a model.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    device::{
        Device, FileSystem,
        faulty::{Event, Faulty},
    },
    memory::MemoryJournal,
    recover::{mend, survey},
    scan::{Item, Scan, Window},
    tail::Verdict,
    *,
};
use crate::{
    clock::SystemClock,
    facts::{FactBatch, Facts},
    shutdown::Tasks,
    telemetry::board::SourceBoard,
    units::{Position, Timestamp},
};

const SOON: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::from_millis(0);
const KEY: [u8; 32] = [7; 32];

/// A folder and a device that outlive the journals opened on them.
struct Site {
    dir: tempfile::TempDir,
    device: Faulty,
    board: SourceBoard,
    max_bytes: u64,
    segment_bytes: u64,
}

impl Site {
    fn new() -> Self {
        Self::with(1 << 30, 1 << 20)
    }

    fn with(max_bytes: u64, segment_bytes: u64) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            device: Faulty::default(),
            board: SourceBoard::default(),
            max_bytes,
            segment_bytes,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("erp")
    }

    fn try_open(&self) -> Result<Arc<Journal>, JournalError> {
        let options = Options {
            dir: self.path(),
            key: Secret::new(KEY.to_vec()),
            max_bytes: self.max_bytes,
            segment_bytes: self.segment_bytes,
        };
        let device: Arc<dyn Device> = Arc::new(self.device.clone());
        Journal::open_on(device, options, self.board.clone(), Arc::new(SystemClock), &Tasks::new())
    }

    fn open(&self) -> Arc<Journal> {
        self.try_open().unwrap()
    }

    fn segments(&self) -> Vec<PathBuf> {
        recover::segment_files(&self.path()).unwrap()
    }

    /// What was written and never synced is gone, down to `keep` of its bytes, in the last segment.
    fn cut_power(&self, keep: impl Fn(u64) -> u64) {
        let path = self.segments().pop().unwrap();
        let synced = self.device.plan().synced.get(&path).copied().unwrap_or(0);
        let file = fs::File::options().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(synced + keep(length.saturating_sub(synced))).unwrap();
    }

    fn check(&self) -> inspect::CheckReport {
        inspect::check(&self.path(), &Secret::new(KEY.to_vec())).unwrap()
    }
}

/// Ends the journal's threads as a SIGKILL would: without a last word.
async fn kill(journal: Arc<Journal>) {
    journal.shared.fail(JournalError::Stopped("killed".into()));
    let mut phase = journal.shared.phase.subscribe();
    phase.wait_for(|phase| *phase == keep::Phase::Ended).await.unwrap();
}

fn commit(position: u64) -> Option<Commit> {
    let (position, begins) = (Position(position), Position(position - 1));
    Some(Commit { position, begins, at: Timestamp(5), transactions: 1 })
}

fn whole(position: u64, changes: u64) -> Run {
    let bytes = format!("transaction at {position}").into_bytes();
    Run { piece: Piece::Whole, bytes, changes, commit: commit(position) }
}

fn piece(piece: Piece, changes: u64, position: Option<u64>) -> Run {
    let bytes = vec![b'p'; 100];
    Run { piece, bytes, changes, commit: position.and_then(commit) }
}

fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

async fn durable_at(keep: &dyn Keep, batch: u64) {
    let mut durable = keep.durable();
    let reached = durable.wait_for(|durable| durable.batch >= batch);
    tokio::time::timeout(SOON, reached).await.unwrap().unwrap();
}

fn read_all(mut reader: Box<dyn ReadBatches>) -> Vec<Batch> {
    std::iter::from_fn(|| reader.next(NOW).unwrap()).collect()
}

fn facts_of(journal: &Journal) -> BTreeMap<String, Vec<u8>> {
    journal.scan("").into_iter().collect()
}

fn fact(key: &str, value: u64) -> FactBatch {
    let mut batch = FactBatch::default();
    batch.put(key, &value);
    batch
}

// ---- what both implementations do ----

async fn suite(keep: &dyn Keep, reader: &dyn Fn(u64) -> Box<dyn ReadBatches>) {
    assert_eq!(keep.session().await.unwrap(), Durable::default());
    keep.append(whole(10, 3)).await.unwrap();
    keep.append(whole(20, 0)).await.unwrap();
    durable_at(keep, 2).await;

    // A large transaction is not seen before its end.
    keep.append(piece(Piece::First, 2, None)).await.unwrap();
    keep.append(piece(Piece::Middle, 2, None)).await.unwrap();
    let mut early = reader(2);
    assert_eq!(early.next(Duration::from_millis(30)).unwrap(), None);
    assert!(keep.append(whole(30, 1)).await.is_err(), "a transaction is open");
    keep.append(piece(Piece::Last, 1, Some(30))).await.unwrap();
    let pieces: Vec<_> = (0..3).map(|_| early.next(SOON).unwrap().unwrap()).collect();
    assert_eq!(
        pieces.iter().map(|batch| batch.piece).collect::<Vec<_>>(),
        [Piece::First, Piece::Middle, Piece::Last]
    );
    assert_eq!(pieces.iter().map(|batch| batch.first.0).collect::<Vec<_>>(), [4, 6, 8]);

    // A torn one is never seen, and its sequences are given again.
    keep.append(piece(Piece::First, 5, None)).await.unwrap();
    let durable = keep.session().await.unwrap();
    assert_eq!(
        (durable.batch, durable.point.sequence, durable.begins),
        (5, Sequence(8), Position(29))
    );
    assert!(keep.append(piece(Piece::Last, 1, Some(40))).await.is_err(), "no transaction is open");
    keep.append(whole(40, 1)).await.unwrap();
    let next = early.next(SOON).unwrap().unwrap();
    assert_eq!((next.number, next.first, next.commit), (7, Sequence(9), commit(40)));
    assert_eq!(next.bytes, whole(40, 1).bytes);
    assert_eq!(early.next(NOW).unwrap(), None);

    let numbers: Vec<_> = read_all(reader(0)).iter().map(|batch| batch.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 7]);
}

#[tokio::test]
async fn the_journal_on_disk_behaves() {
    let site = Site::new();
    let journal = site.open();
    suite(&*journal, &|after| journal.reader(after)).await;
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
}

#[tokio::test]
async fn the_journal_in_memory_behaves() {
    let journal = MemoryJournal::new();
    suite(&journal, &|after| journal.reader(after)).await;
}

// ---- facts and restarts ----

#[tokio::test]
async fn facts_survive_restarts_kills_and_the_loss_of_the_index() {
    let site = Site::new();
    let mut expected = BTreeMap::new();
    for round in 0..8_u64 {
        let journal = site.open();
        assert_eq!(facts_of(&journal), expected, "round {round}");
        for number in 0..5 {
            let key = format!("ship/{}", (round * 3 + number) % 11);
            let batch = if number == 3 {
                expected.remove(&key);
                FactBatch { changes: vec![(key, None)] }
            } else {
                expected.insert(key.clone(), serde_json::to_vec(&round).unwrap());
                fact(&key, round)
            };
            journal.record(batch).await.unwrap();
        }
        assert_eq!(facts_of(&journal), expected);
        if round % 2 == 0 {
            journal.stop().await;
        } else {
            kill(journal).await;
        }
        match round {
            2 | 3 => fs::remove_dir_all(site.path().join("index")).unwrap(),
            5 => fs::write(site.path().join("index.busy"), b"").unwrap(),
            _ => {}
        }
    }
    assert!(site.path().join("index.bad-1").exists());
}

#[tokio::test]
async fn an_index_that_lies_is_set_aside() {
    let site = Site::new();
    let journal = site.open();
    journal.record(fact("a", 1)).await.unwrap();
    journal.stop().await;
    drop(journal);
    {
        let (store, image) = store::Store::open(&site.path()).unwrap();
        let image = image.unwrap();
        assert_eq!(image.facts["a"], b"1");
        let lie = [("a".to_owned(), Some(b"2".to_vec()))].into();
        store.checkpoint(&image.checkpoint, lie).unwrap();
    }
    let journal = site.open();
    assert_eq!(journal.get("a"), Some(b"1".to_vec()));
    assert!(site.path().join("index.bad-1").exists());
    journal.stop().await;
    let (_, image) = store::Store::open(&site.path()).unwrap();
    assert_eq!(image.unwrap().facts["a"], b"1");
}

#[tokio::test]
async fn a_log_shorter_than_its_index_is_believed_and_said() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 1)).await.unwrap();
    durable_at(&*journal, 1).await;
    journal.append(whole(20, 1)).await.unwrap();
    durable_at(&*journal, 2).await;
    journal.stop().await;
    drop(journal);
    let path = site.segments().pop().unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let journal = site.open();
    assert_eq!(journal.session().await.unwrap().batch, 1);
    let damage = site.board.read().journal_damage;
    assert!(damage[0].contains("(batches 2)") && damage[0].contains("gone"), "{damage:?}");
}

#[tokio::test]
async fn nobody_else_opens_a_journal_that_is_held_or_has_another_key() {
    let site = Site::new();
    let journal = site.open();
    assert!(matches!(site.try_open(), Err(JournalError::Held { .. })));
    let key = Secret::new(KEY.to_vec());
    assert!(matches!(inspect::check(&site.path(), &key), Err(JournalError::Held { .. })));
    journal.stop().await;
    let open = |key: Vec<u8>| {
        let (dir, key) = (site.path(), Secret::new(key));
        let options = Options { dir, key, max_bytes: 1 << 30, segment_bytes: 1 << 20 };
        let clock = Arc::new(SystemClock);
        Journal::open(options, SourceBoard::default(), clock, &Tasks::new())
    };
    assert!(matches!(open(vec![8; 32]), Err(JournalError::Key { .. })));
    assert!(matches!(open(vec![7; 31]), Err(JournalError::Key { .. })));
    let key = Secret::new(vec![8; 32]);
    assert!(matches!(inspect::show(&site.path(), &key), Err(JournalError::Key { .. })));
    assert!(matches!(inspect::check(&site.path(), &key), Err(JournalError::Key { .. })));
    open(KEY.to_vec()).unwrap().stop().await;
}

#[tokio::test]
async fn no_key_and_nonce_are_used_twice_over_restarts_and_full_disks() {
    let site = Site::new();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..4_u64 {
        let journal = site.open();
        journal.append(whole(10 * (round + 1), 1)).await.unwrap();
        durable_at(&*journal, round + 1).await;
        site.device.plan().room = Some(60);
        journal.append(whole(10 * (round + 1) + 5, 1)).await.unwrap();
        while !site.board.read().journal_full {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        site.device.plan().room = Some(1 << 30);
        // Written after the cut, in the place of what was cut.
        journal.record(fact("a", round)).await.unwrap();
        kill(journal).await;
        site.device.plan().room = None;
    }
    for path in site.segments() {
        let mut window = Window::open(&path).unwrap();
        let salt = window.header().unwrap().unwrap().salt;
        let mut scan = Scan::new(window).unwrap();
        let mut nonces = vec![];
        while let Some(Item::Frame(header, _)) = scan.next().unwrap() {
            nonces.push(header.nonce);
            assert!(seen.insert((salt, header.nonce)));
        }
        let skipped = nonces.windows(2).any(|pair| pair[1] > pair[0] + 1);
        assert!(skipped, "the frame that was cut keeps its nonce: {nonces:?}");
    }
}

// ---- the device fails ----

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
    let found = survey(&site.path(), &KEY, None).unwrap();
    let last = found.last.unwrap();
    assert!(last.group_from < last.end);
    site.device.plan().events.clear();
    mend(&site.device, &last).unwrap();
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

// ---- budget and trimming ----

fn segment_bytes(site: &Site) -> u64 {
    site.segments().iter().map(|path| fs::metadata(path).unwrap().len()).sum()
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
    while site.segments().len() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    journal.stop().await;
    assert_eq!(site.board.read().journal_bytes, segment_bytes(&site));
    assert!(segment_bytes(&site) < 1000);
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
    assert!(
        matches!(journal.reader(0).next(NOW), Err(JournalError::Damaged { .. })),
        "it was trimmed"
    );
    journal.stop().await;
    assert!(site.segments().len() < 5);
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

// ---- torn tails and damage ----

/// Offsets and headers of the last segment's frames, its end last.
fn frames_of(path: &Path) -> Vec<(u64, record::FrameHeader)> {
    let mut scan = Scan::new(Window::open(path).unwrap()).unwrap();
    let mut found = vec![];
    while let Some(item) = scan.next().unwrap() {
        let Item::Frame(header, offset) = item else { panic!("{item:?}") };
        found.push((offset, header));
    }
    found
}

/// Two batches and a fact between them, each in a group of its own; killed.
async fn three_groups(site: &Site) -> (PathBuf, Vec<(u64, record::FrameHeader)>) {
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
            let found = survey(&site.path(), &KEY, None).unwrap();
            let kept = frames
                .iter()
                .filter(|(offset, header)| offset + header.frame_bytes() <= length as u64);
            let kept: Vec<_> = kept.map(|(offset, header)| offset + header.frame_bytes()).collect();
            let last = found.last.unwrap();
            assert_eq!(last.end, kept.last().copied().unwrap_or(frames[0].0), "at {length}");
            assert_eq!(found.progress.durable.batch, [0, 1, 1][kept.len()], "at {length}");
            assert_eq!(found.facts.len(), [0, 0, 1][kept.len()], "at {length}");
            assert!(found.damage.is_empty());
            mend(&FileSystem, &last).unwrap();
            let again = survey(&site.path(), &KEY, None).unwrap();
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

fn flip(path: &Path, offset: u64) {
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
        let journal = match site.try_open() {
            Ok(journal) => journal,
            Err(JournalError::Damaged { from, .. }) => {
                // What kind of frame it was is not known: it may have held facts.
                assert!(inside < 68 && from == offset);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(inside >= 68);
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

fn reader_numbers(journal: &Journal, after: u64) -> Vec<u64> {
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

#[tokio::test]
async fn a_bad_frame_before_good_ones_of_its_own_group_is_a_torn_tail() {
    let site = Site::new();
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
    flip(&path, group[1].0 + 80);
    let found = survey(&site.path(), &KEY, None).unwrap();
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

    // A header that does not read.
    flip(&segments[1], 20);
    let journal = site.open();
    let mut reader = journal.reader(0);
    let good = std::iter::from_fn(|| reader.next(NOW).ok().flatten()).last().unwrap().number;
    let error = reader.next(NOW).unwrap_err();
    assert!(error.to_string().contains("checksum of its header"), "{error}");
    assert_eq!(site.board.read().journal_damage.len(), 1);
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

// ---- the model ----

#[derive(Clone, Debug)]
enum Step {
    Whole { bytes: usize, changes: u64 },
    Large { pieces: usize },
    Torn { pieces: usize },
    Fact { key: u8, value: Option<u8> },
    Trim,
    Restart(End),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Stop,
    Kill,
    PowerCut,
    LoseIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end =
        prop_oneof![Just(End::Stop), Just(End::Kill), Just(End::PowerCut), Just(End::LoseIndex)];
    let step = prop_oneof![
        6 => (0..3000_usize, 0..4_u64).prop_map(|(bytes, changes)| Step::Whole { bytes, changes }),
        2 => (0..3_usize).prop_map(|pieces| Step::Large { pieces }),
        1 => (0..2_usize).prop_map(|pieces| Step::Torn { pieces }),
        4 => (0..6_u8, any::<Option<u8>>()).prop_map(|(key, value)| Step::Fact { key, value }),
        1 => Just(Step::Trim),
        2 => end.prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the journal must hold.
#[derive(Default)]
struct Model {
    /// Bytes, changes and commit of each batch that must be read, by its number.
    batches: Vec<(u64, Vec<u8>, u64, Option<Commit>)>,
    facts: BTreeMap<String, Vec<u8>>,
    next_batch: u64,
    position: u64,
    trimmed: u64,
}

impl Model {
    fn run(&mut self, piece: Piece, bytes: usize, changes: u64) -> Run {
        self.position += 10;
        let ends = matches!(piece, Piece::Whole | Piece::Last);
        let commit = if ends { commit(self.position) } else { None };
        Run { piece, bytes: noise(bytes), changes, commit }
    }

    async fn append(&mut self, journal: &Journal, run: Run, kept: bool) {
        self.next_batch += 1;
        if kept {
            self.batches.push((self.next_batch, run.bytes.clone(), run.changes, run.commit));
        }
        journal.append(run).await.unwrap();
    }

    async fn check(&self, journal: &Journal) {
        let held: Vec<_> =
            self.batches.iter().filter(|(number, ..)| *number > self.trimmed).collect();
        if let Some((last, ..)) = self.batches.last() {
            durable_at(journal, *last).await;
        }
        let mut first = 1;
        let firsts: BTreeMap<u64, u64> = self
            .batches
            .iter()
            .map(|(number, _, changes, _)| {
                first += changes;
                (*number, first - changes)
            })
            .collect();
        let read = read_all(journal.reader(self.trimmed));
        assert_eq!(read.len(), held.len());
        for (batch, (number, bytes, changes, commit)) in read.iter().zip(held) {
            let found = (&batch.number, &batch.changes, &batch.commit, &batch.first.0);
            assert_eq!(found, (number, changes, commit, &firsts[number]));
            assert!(batch.bytes == *bytes);
        }
        assert_eq!(facts_of(journal), self.facts);
    }
}

async fn restart(site: &Site, journal: Arc<Journal>, end: End, model: &mut Model) -> Arc<Journal> {
    model.check(&journal).await;
    if matches!(end, End::Stop) {
        journal.stop().await;
        drop(journal);
    } else {
        // What nobody was promised: it may be there afterwards, or not.
        let run = model.run(Piece::First, 700, 1);
        journal.append(run).await.unwrap();
        kill(journal).await;
    }
    match end {
        End::Stop | End::Kill => {}
        End::PowerCut => site.cut_power(|unsynced| fastrand::u64(0..=unsynced)),
        End::LoseIndex => fs::remove_dir_all(site.path().join("index")).unwrap(),
    }
    assert_eq!(site.check().damage, [""; 0]);
    let journal = site.open();
    let durable = journal.session().await.unwrap();
    assert_eq!(durable.batch, model.batches.last().map_or(0, |(number, ..)| *number));
    let torn = keep::lock(&journal.shared.published).torn.clone();
    let torn_end = torn.ranges().last().map_or(0, |(_, to)| *to);
    model.next_batch = durable.batch.max(torn_end);
    journal
}

async fn play(steps: Vec<Step>) {
    let site = Site::with(1 << 20, 6000);
    let mut journal = site.open();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Whole { bytes, changes } => {
                let run = model.run(Piece::Whole, bytes, changes);
                model.append(&journal, run, true).await;
            }
            Step::Large { pieces } => {
                let middle = std::iter::repeat_n(Piece::Middle, pieces);
                for piece in std::iter::once(Piece::First).chain(middle).chain([Piece::Last]) {
                    let run = model.run(piece, 500, 2);
                    model.append(&journal, run, true).await;
                }
            }
            Step::Torn { pieces } => {
                let middle = std::iter::repeat_n(Piece::Middle, pieces);
                for piece in std::iter::once(Piece::First).chain(middle) {
                    let run = model.run(piece, 300, 2);
                    model.append(&journal, run, false).await;
                }
                journal.session().await.unwrap();
            }
            Step::Fact { key, value } => {
                let key = format!("room/{key}");
                let value = value.map(|value| vec![value; 40]);
                match &value {
                    Some(value) => model.facts.insert(key.clone(), value.clone()),
                    None => model.facts.remove(&key),
                };
                journal.record(FactBatch { changes: vec![(key, value)] }).await.unwrap();
            }
            Step::Trim => {
                model.check(&journal).await;
                model.trimmed = journal.durable().borrow().batch;
                journal.trim(model.trimmed);
            }
            Step::Restart(end) => journal = restart(&site, journal, end, &mut model).await,
        }
    }
    model.check(&journal).await;
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
    assert_eq!(site.board.read().journal_damage, [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_promised_is_read(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(play(steps));
    }
}

#[test]
fn an_empty_folder_has_nothing_to_say() {
    let dir = tempfile::tempdir().unwrap();
    let found = survey(dir.path(), &KEY, None).unwrap();
    assert_eq!((found.index, found.last.is_none()), (Verdict::Behind, true));
}
