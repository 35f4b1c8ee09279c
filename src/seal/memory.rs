//! A source, its journal and a place to seal to, in memory and a temporary folder: for this room's tests.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType},
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Group, GroupKind, LakeKey, Object, SealEncryption, SealError, SealOptions, Sealer, open_bytes,
};
use crate::{
    clock::{Clock, SystemClock},
    config::{Integers, Secret, Uuids},
    facts::{FactBatch, Facts, MemoryFacts},
    journal::{Batch, JournalError, ORIGIN_FACT, Origin, ReadBatches},
    telemetry::board::SourceBoard,
    units::{Position, Timestamp},
};

mod plain;

pub(super) use plain::{Log, NOON, Plain, change, left_out, relation, row, table, truncate};

/// Gives its batches, and stops the reader at the end.
struct Reader {
    batches: std::vec::IntoIter<Batch>,
    token: CancellationToken,
}

/// A reader of these batches, which cancels `token` at their end.
pub(super) fn reader(batches: Vec<Batch>, token: CancellationToken) -> Box<dyn ReadBatches> {
    Box::new(Reader { batches: batches.into_iter(), token })
}

impl ReadBatches for Reader {
    fn next(&mut self, _: Duration) -> Result<Option<Batch>, JournalError> {
        let next = self.batches.next();
        if next.is_none() {
            self.token.cancel();
        }
        Ok(next)
    }
}

/// A clock that a test moves, and that moves by itself a little each time it is looked at.
pub(super) struct Hand {
    began: Instant,
    passed: AtomicU64,
    step: u64,
    wall: AtomicI64,
}

impl Hand {
    pub(super) fn stepping(step: Duration) -> Arc<Self> {
        let step = u64::try_from(step.as_millis()).unwrap();
        let (began, passed, wall) = (SystemClock.now(), AtomicU64::new(0), AtomicI64::new(NOON));
        Arc::new(Self { began, passed, step, wall })
    }
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.passed.fetch_add(self.step, Ordering::Relaxed))
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.wall.fetch_add(1, Ordering::Relaxed))
    }
}

/// A row as it stands in an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Sealed {
    pub(super) op: String,
    pub(super) sequence: i64,
    pub(super) position: String,
    /// In microseconds since 1970.
    pub(super) committed_at: i64,
    pub(super) xid: i64,
    pub(super) id: Option<i64>,
    pub(super) note: Option<String>,
}

/// A box: its facts and its spool outlive a [`Sealer`].
pub(super) struct Bench {
    pub(super) dir: TempDir,
    pub(super) facts: Arc<MemoryFacts>,
    pub(super) options: SealOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) board: SourceBoard,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let facts = Arc::new(MemoryFacts::default());
        let mut origin = FactBatch::default();
        origin.put(
            ORIGIN_FACT,
            &Origin {
                system_identifier: "1".into(),
                timeline: 1,
                database: "erp".into(),
                slot: "s".into(),
                publication: "p".into(),
                append: None,
                consistent_point: Position(3),
                made: false,
            },
        );
        facts.record_blocking(origin).unwrap();
        let options = SealOptions {
            prefix: "raw".into(),
            source: "erp".into(),
            object_bytes: 64 << 20,
            object_age: Duration::from_secs(60),
            integers: Integers::Rising,
            uuids: Uuids::Uuid,
            encryption: SealEncryption::None,
            spool_dir: dir.path().join("spool/erp"),
            spool_key: Secret::new(vec![7; 32]),
            spool_bytes_max: 1 << 30,
        };
        let clock = Hand::stepping(Duration::from_secs(25));
        Self { dir, facts, options, clock, board: SourceBoard::default() }
    }

    pub(super) fn client(key: u8) -> Self {
        let mut bench = Self::new();
        let key = LakeKey::new(Secret::new(vec![key; 32])).unwrap();
        bench.options.encryption = SealEncryption::Client(key);
        bench
    }

    pub(super) fn facts(&self) -> Arc<dyn Facts> {
        Arc::clone(&self.facts) as Arc<dyn Facts>
    }

    /// A start of the box.
    pub(super) fn open(&self) -> Sealer {
        let (board, clock) = (self.board.clone(), Arc::clone(&self.clock));
        Sealer::open(self.options.clone(), self.facts(), board, clock).unwrap()
    }

    /// Seals batches until they are read, and gives the groups passed on.
    pub(super) fn run(&self, batches: Vec<Batch>) -> Result<Vec<Group>, SealError> {
        self.run_on(&self.open(), batches)
    }

    pub(super) fn run_on(
        &self,
        sealer: &Sealer,
        batches: Vec<Batch>,
    ) -> Result<Vec<Group>, SealError> {
        let (groups, mut passed) = mpsc::channel(1000);
        let token = CancellationToken::new();
        sealer.run_changes(reader(batches, token.clone()), &Plain::make, groups, token)?;
        Ok(std::iter::from_fn(|| passed.try_recv().ok()).collect())
    }

    /// The bytes of an object as they would be sent.
    pub(super) fn sent(&self, object: &Object) -> Bytes {
        self.open().spool().read(object, 0..object.bytes).unwrap()
    }

    /// The file inside an object.
    pub(super) fn file(&self, object: &Object) -> Bytes {
        let key = match &self.options.encryption {
            SealEncryption::Client(key) => Some(key),
            _ => None,
        };
        open_bytes(self.sent(object).to_vec(), &object.metadata, key).unwrap().into()
    }

    /// The rows of an object.
    pub(super) fn rows(&self, object: &Object) -> Vec<Sealed> {
        let file = ParquetRecordBatchReaderBuilder::try_new(self.file(object)).unwrap();
        file.build().unwrap().flat_map(|batch| sealed(&batch.unwrap())).collect()
    }

    /// Names of the files in the spool.
    pub(super) fn spooled(&self) -> usize {
        count(&self.options.spool_dir)
    }
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn sealed(batch: &RecordBatch) -> Vec<Sealed> {
    let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().clone();
    let number =
        |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
    let (op, position, note) = (text("_op"), text("_position"), text("note"));
    let (sequence, id, xid) = (number("_sequence"), number("id"), number("_xid"));
    let committed_at = batch.column_by_name("_committed_at").unwrap();
    let committed_at = committed_at.as_primitive::<TimestampMicrosecondType>();
    let rows = 0..batch.num_rows();
    rows.map(|row| Sealed {
        op: op.value(row).into(),
        sequence: sequence.value(row),
        position: position.value(row).into(),
        committed_at: committed_at.value(row),
        xid: xid.value(row),
        id: id.is_valid(row).then(|| id.value(row)),
        note: note.is_valid(row).then(|| note.value(row).into()),
    })
    .collect()
}

/// The epochs among groups.
pub(super) fn epochs(groups: &[Group]) -> Vec<&Group> {
    groups.iter().filter(|group| matches!(group.kind, GroupKind::Changes { .. })).collect()
}

/// Facts whose group is gone, as the ledger leaves them.
pub(super) fn forget(facts: &dyn Facts, groups: &[Group]) {
    let mut batch = FactBatch::default();
    for group in groups {
        batch.delete(group.fact());
    }
    facts.record_blocking(batch).unwrap();
}

/// A mutex around the receiving end of a channel of chunks.
pub(super) fn shared<T>(receiver: mpsc::Receiver<T>) -> Arc<Mutex<mpsc::Receiver<T>>> {
    Arc::new(Mutex::new(receiver))
}
