//! Tests of the whole journal: what both implementations do, restarts, and the ground for the rest.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

mod budget;
mod campaign;
mod damage;
mod faults;
mod harm;
mod following;
mod large;
mod model;
mod story;
mod strays;

use super::{
    device::{
        Device, FileSystem,
        faulty::{Event, Faulty},
    },
    keep::lock,
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
    telemetry::board::{SourceBoard, SourceStatus},
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
        Self::at(tempfile::tempdir().unwrap(), max_bytes, segment_bytes)
    }

    /// In memory if the machine has such a folder: syncs cost nothing.
    fn in_memory(segment_bytes: u64) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::at(dir.unwrap(), 1 << 30, segment_bytes)
    }

    fn at(dir: tempfile::TempDir, max_bytes: u64, segment_bytes: u64) -> Self {
        Self {
            dir,
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
        recover::segment_files(&FileSystem, &self.path()).unwrap()
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
        inspect::check(&self.path(), &Secret::new(KEY.to_vec()), &mut |_, _| {}).unwrap()
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
    Run { piece: Piece::Whole, bytes, changes, commit: commit(position), ..Run::new(Piece::Whole) }
}

fn piece(piece: Piece, changes: u64, position: Option<u64>) -> Run {
    let bytes = vec![b'p'; 100];
    Run { piece, bytes, changes, commit: position.and_then(commit), ..Run::new(piece) }
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
        let (mut store, image) = store::Store::open(&site.path(), &KEY).unwrap();
        let image = image.unwrap();
        assert_eq!(image.facts["a"], b"1");
        let lie = [("a".to_owned(), Some(b"2".to_vec()))].into();
        store.checkpoint(&image.checkpoint, lie).unwrap();
    }
    let journal = site.open();
    assert_eq!(journal.get("a"), Some(b"1".to_vec()));
    assert!(site.path().join("index.bad-1").exists());
    journal.stop().await;
    let (_, image) = store::Store::open(&site.path(), &KEY).unwrap();
    assert_eq!(image.unwrap().facts["a"], b"1");
}

#[tokio::test]
async fn what_a_log_shorter_than_its_index_has_lost_is_asked_for_again() {
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
    let damage = site.board.read().journal_damage;
    assert!(damage[0].contains("(batches 2)"), "{damage:?}");
    assert_eq!(journal.damaged_after(0), None, "nobody has asked for it yet");
    journal.reader(1).next(NOW).unwrap_err();
    assert_eq!((journal.damaged_after(0), journal.damaged_after(2)), (Some(2), None));
    assert_eq!(journal.session().await.unwrap().batch, 2);
    let to = journal.whole_before(2, Durable::default()).unwrap();
    assert_eq!((to.batch, to.transactions, to.point.position), (1, 1, Position(10)));
    assert_eq!(journal.rewind(to).await.unwrap(), to);
    assert_eq!(journal.damaged_after(0), None);
    journal.append(whole(20, 1)).await.unwrap();
    durable_at(&*journal, 3).await;
    let read = read_all(journal.reader(1));
    assert_eq!((read.len(), read[0].number, read[0].first), (1, 3, Sequence(2)));
    kill(journal).await;
    let journal = site.open();
    assert_eq!(read_all(journal.reader(1)), read);
    journal.stop().await;
    assert_eq!(site.check().damage.len(), 1);
}

#[tokio::test]
async fn a_mark_is_durable_and_read_as_any_batch() {
    let site = Site::new();
    let journal = site.open();
    journal.append(whole(10, 3)).await.unwrap();
    let commit = commit(25).map(|commit| Commit { transactions: 0, ..commit });
    journal.append(Run { commit, ..Run::new(Piece::Whole) }).await.unwrap();
    durable_at(&*journal, 2).await;
    kill(journal).await;
    let journal = site.open();
    let durable = journal.session().await.unwrap();
    assert_eq!((durable.point.position, durable.begins), (Position(25), Position(24)));
    assert_eq!(durable.point.sequence, Sequence(3));
    let read = read_all(journal.reader(0));
    assert_eq!((read.len(), read[1].bytes.len(), read[1].commit), (2, 0, commit));
    journal.append(whole(40, 1)).await.unwrap();
    durable_at(&*journal, 3).await;
    assert_eq!(read_all(journal.reader(2))[0].first, Sequence(4));
    journal.stop().await;
    assert_eq!(site.check().damage, [""; 0]);
}

#[tokio::test]
async fn nobody_else_opens_a_journal_that_is_held_or_has_another_key() {
    let site = Site::new();
    let journal = site.open();
    assert!(matches!(site.try_open(), Err(JournalError::Held { .. })));
    let key = Secret::new(KEY.to_vec());
    assert!(matches!(
        inspect::check(&site.path(), &key, &mut |_, _| {}),
        Err(JournalError::Held { .. })
    ));
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
    assert!(matches!(
        inspect::check(&site.path(), &key, &mut |_, _| {}),
        Err(JournalError::Key { .. })
    ));
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
        let mut window = Window::open(&FileSystem, &path).unwrap();
        let salt = window.header().unwrap().unwrap().salt;
        let mut scan = Scan::new(window, None).unwrap();
        let mut nonces = vec![];
        while let Some(Item::Frame(header, _)) = scan.next().unwrap() {
            nonces.push(header.nonce);
            assert!(seen.insert((salt, header.nonce)));
        }
        let skipped = nonces.windows(2).any(|pair| pair[1] > pair[0] + 1);
        assert!(skipped, "the frame that was cut keeps its nonce: {nonces:?}");
    }
}

#[test]
fn an_empty_folder_has_nothing_to_say() {
    let dir = tempfile::tempdir().unwrap();
    let found = survey(&FileSystem, dir.path(), &KEY, None).unwrap();
    assert_eq!((found.index, found.last.is_none()), (Verdict::Behind, true));
}
