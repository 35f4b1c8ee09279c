//! A source, its journal and a place to seal to, in memory and a temporary folder: for this room's tests.
//!
//! Records: `B` begins at xid, `C` position begins at, `R` a table as JSON, `I`, `U`, `D` table id and
//! values, `T` table ids, `N` nothing. A value is its length and its text.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::Int64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Group, GroupKind, LakeKey, Object, SealEncryption, SealError, SealOptions, Sealer, Table,
    open_bytes,
};
use crate::{
    clock::{Clock, SystemClock},
    config::Secret,
    facts::{FactBatch, Facts, MemoryFacts},
    journal::{
        Batch, Cell, Change, Column, Commit, Decode, DecodeError, Event, Identity, JournalError,
        LakeType, ORIGIN_FACT, OldRow, Op, Origin, Piece, ReadBatches, RecordKind, Row, Run, Value,
    },
    telemetry::board::SourceBoard,
    units::{Position, Sequence, Timestamp},
};

/// 2026-11-21T12:00:00Z
pub(super) const NOON: i64 = 1_795_262_400_000_000;

/// `public.<name>` with the columns `id` and `note`.
pub(super) fn table(id: u32, name: &str) -> Table {
    let column = |name: &str, lake, identity| Column {
        name: name.into(),
        source_type: if identity { "bigint" } else { "text" }.into(),
        type_id: 20,
        type_modifier: -1,
        lake,
        identity,
        not_null: identity,
        default: None,
        generated: None,
    };
    Table {
        id,
        schema: "public".into(),
        name: name.into(),
        version: 0,
        columns: vec![column("id", LakeType::Int64, true), column("note", LakeType::Text, false)],
        key: vec!["id".into()],
        identity: Identity::Default,
        types: vec![],
    }
}

/// The values of one row, as `I` and snapshots carry them.
pub(super) fn row(values: &[&str]) -> Vec<u8> {
    let mut bytes = vec![];
    for value in values {
        bytes.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes
}

/// Reads those records.
#[derive(Default)]
pub(super) struct Plain {
    tables: Vec<Arc<Table>>,
}

impl Plain {
    /// One that knows no tables: enough for values.
    pub(super) const DECODER: Self = Self { tables: vec![] };

    pub(super) fn make(tables: Vec<Arc<Table>>) -> Box<dyn Decode> {
        Box::new(Self { tables })
    }
}

struct Cursor<'a>(&'a [u8], usize);

impl Cursor<'_> {
    fn number<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let bytes = self.0.get(self.1..).and_then(<[u8]>::first_chunk);
        self.1 += N;
        bytes.copied().ok_or(DecodeError::Length { what: "a record" })
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.number().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.number().map(u64::from_be_bytes)
    }

    fn cells(&mut self, count: usize) -> Result<Row, DecodeError> {
        let mut row = vec![];
        for _ in 0..count {
            let length = self.u32()? as usize;
            row.push(Cell::Text(self.1..self.1 + length));
            self.1 += length;
        }
        if self.1 > self.0.len() {
            return Err(DecodeError::Length { what: "a value" });
        }
        Ok(row)
    }
}

impl Decode for Plain {
    fn decode(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Event, DecodeError> {
        if let Some(commit) = self.commit(kind, payload) {
            return Ok(Event::Commit(commit));
        }
        let mut cursor = Cursor(payload, 1);
        let op = match payload[0] {
            b'B' => {
                return Ok(Event::Begin {
                    begins: Position(cursor.u64()?),
                    at: Timestamp(cursor.u64()?.cast_signed()),
                    xid: cursor.u32()?,
                });
            }
            b'R' => {
                let table: Arc<Table> = Arc::new(serde_json::from_slice(&payload[1..]).unwrap());
                self.tables.retain(|known| known.id != table.id);
                self.tables.push(Arc::clone(&table));
                return Ok(Event::Table(table));
            }
            b'T' => {
                let tables: Result<_, _> =
                    (0..(payload.len() - 1) / 4).map(|_| cursor.u32()).collect();
                let (cascade, restart_identity) = (false, false);
                return Ok(Event::Truncate { tables: tables?, cascade, restart_identity });
            }
            b'N' => return Ok(Event::Nothing),
            b'I' => Op::Insert,
            b'U' => Op::Update,
            b'D' => Op::Delete,
            kind => return Err(DecodeError::Kind { what: "message", kind }),
        };
        let table = cursor.u32()?;
        let known = self.tables.iter().find(|known| known.id == table);
        let row = cursor.cells(known.ok_or(DecodeError::Table(table))?.columns.len())?;
        let (new, old) = match op {
            Op::Delete => (None, Some((OldRow::Key, row))),
            _ => (Some(row), None),
        };
        Ok(Event::Change(Change { op, table, new, old }))
    }

    fn commit(&self, _: RecordKind, payload: &[u8]) -> Option<Commit> {
        let mut cursor = Cursor(payload, 1);
        (payload[0] == b'C').then(|| Commit {
            position: Position(cursor.u64().unwrap()),
            begins: Position(cursor.u64().unwrap()),
            at: Timestamp(cursor.u64().unwrap().cast_signed()),
            transactions: 1,
        })
    }

    fn rows(
        &self,
        table: &Table,
        batch: &[u8],
        each: &mut dyn FnMut(&Row) -> Result<(), DecodeError>,
    ) -> Result<(), DecodeError> {
        let mut cursor = Cursor(batch, 0);
        while cursor.1 < batch.len() {
            each(&cursor.cells(table.columns.len())?)?;
        }
        Ok(())
    }

    fn value<'a>(
        &self,
        column: &Column,
        cell: &Cell,
        bytes: &'a [u8],
    ) -> Result<Value<'a>, DecodeError> {
        let Cell::Text(range) = cell else { return Ok(Value::Null) };
        let text = str::from_utf8(&bytes[range.clone()]).unwrap();
        match column.lake {
            LakeType::Int64 => Ok(Value::Int(text.parse().unwrap())),
            _ => Ok(Value::Text(text.into())),
        }
    }

    fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.clone()
    }
}

/// Writes batches as the journal would give them. Commits begin at odd tens and end 5 later.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) batches: Vec<Batch>,
    changes: u64,
    commits: u64,
}

impl Log {
    /// A batch with one whole transaction for each of `transactions`, committed at `at`.
    pub(super) fn whole(&mut self, at: i64, transactions: &[&[Vec<u8>]]) -> &mut Self {
        let mut run = Run::new(Piece::Whole);
        for records in transactions {
            self.begin(&mut run, at);
            self.records(&mut run, records);
            self.commit(&mut run, at);
        }
        self.push(run, None)
    }

    /// Batches with one transaction, a piece each.
    pub(super) fn pieces(&mut self, at: i64, pieces: &[&[Vec<u8>]]) -> &mut Self {
        let begins = (self.commits + 1) * 10;
        let ends = Commit {
            position: Position(begins + 5),
            begins: Position(begins),
            at: Timestamp(at),
            transactions: 1,
        };
        for (index, records) in pieces.iter().enumerate() {
            let piece = match index {
                0 => Piece::First,
                last if last + 1 == pieces.len() => Piece::Last,
                _ => Piece::Middle,
            };
            let mut run = Run::new(piece);
            if piece == Piece::First {
                self.begin(&mut run, at);
            }
            self.records(&mut run, records);
            if piece == Piece::Last {
                self.commit(&mut run, at);
            }
            self.push(run, Some(ends));
        }
        self
    }

    fn begin(&self, run: &mut Run, at: i64) {
        let begins = (self.commits + 1) * 10;
        let xid = u32::try_from(self.commits).unwrap();
        let (at, xid) = (at.to_be_bytes(), xid.to_be_bytes());
        run.push(RecordKind::Message, &[b"B", &begins.to_be_bytes()[..], &at, &xid].concat());
    }

    fn commit(&mut self, run: &mut Run, at: i64) {
        self.commits += 1;
        let begins = self.commits * 10;
        let position = (begins + 5).to_be_bytes();
        let record = [b"C", &position[..], &begins.to_be_bytes(), &at.to_be_bytes()].concat();
        run.push(RecordKind::Message, &record);
        run.commit = Some(Commit {
            position: Position(begins + 5),
            begins: Position(begins),
            at: Timestamp(at),
            transactions: 1,
        });
    }

    fn records(&mut self, run: &mut Run, records: &[Vec<u8>]) {
        for record in records {
            run.push(RecordKind::Message, record);
            run.changes += match record[0] {
                b'I' | b'U' | b'D' => 1,
                b'T' => (record.len() as u64 - 1) / 4,
                _ => 0,
            };
        }
    }

    fn push(&mut self, run: Run, ends: Option<Commit>) -> &mut Self {
        self.batches.push(Batch {
            number: self.batches.len() as u64 + 1,
            piece: run.piece,
            first: Sequence(self.changes + 1),
            changes: run.changes,
            commit: run.commit,
            ends,
            bytes: run.bytes,
        });
        self.changes += run.changes;
        self
    }
}

/// A table's description, as a record.
pub(super) fn relation(table: &Table) -> Vec<u8> {
    [b"R".to_vec(), serde_json::to_vec(table).unwrap()].concat()
}

/// A change, as a record.
pub(super) fn change(op: u8, table: u32, values: &[&str]) -> Vec<u8> {
    [vec![op], table.to_be_bytes().to_vec(), row(values)].concat()
}

/// A TRUNCATE, as a record.
pub(super) fn truncate(tables: &[u32]) -> Vec<u8> {
    [vec![b'T'], tables.iter().flat_map(|id| id.to_be_bytes()).collect()].concat()
}

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
                consistent_point: Position(3),
            },
        );
        facts.record_blocking(origin).unwrap();
        let options = SealOptions {
            prefix: "raw".into(),
            source: "erp".into(),
            object_bytes: 64 << 20,
            object_age: Duration::from_secs(60),
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
    let (sequence, id) = (number("_sequence"), number("id"));
    let rows = 0..batch.num_rows();
    rows.map(|row| Sealed {
        op: op.value(row).into(),
        sequence: sequence.value(row),
        position: position.value(row).into(),
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
