//! Seals chunks of snapshots: each becomes one group, with the fact that it is done.
//!
//! **Invariants:** a chunk is recorded only when all its rows came, as many as were announced; otherwise
//! nothing of it stays, and it is read again. It is recorded once, though several threads seal; the one
//! that records a table's last chunk says that the table is complete.

use std::{sync::Arc, thread};

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::{
    Fates, GroupKind, Op, SealError, Table,
    columns::{Block, Metas, RowMeta},
    encode::{BlockIn, LARGE_ROW_BYTES, RowIn},
    fates,
    object::Maker,
    sealer::{Desk, Outlet, PAUSE, REST, SnapshotChunks, lock},
    series::{Covers, Series},
};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    journal::{
        Cells, ChunkDone, Decode, DecodeError, LakeType, Reading, RowBatch, SnapshotChunk,
        chunk_fact, chunk_facts,
        fate::{By, Fate, told_fact},
        reread::{Reread, Span, reread_fact, span_fact},
    },
    units::Sequence,
};

/// Seals chunks until their channel closes, or it is stopped.
pub(super) fn run(
    desk: &Desk,
    outlet: &Outlet,
    chunks: &SnapshotChunks,
    decode: &dyn Decode,
) -> Result<(), SealError> {
    let mut rest = PAUSE;
    while !outlet.is_stopped() {
        if !desk.has_room() {
            thread::sleep(PAUSE);
            continue;
        }
        let next = lock(chunks).try_recv();
        match next {
            Ok(chunk) => {
                rest = PAUSE;
                seal(desk, outlet, chunk, decode)?;
            }
            Err(TryRecvError::Empty) => {
                thread::sleep(rest);
                rest = REST.min(2 * rest);
            }
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
    Ok(())
}

/// Seals one chunk.
pub(super) fn seal(
    desk: &Desk,
    outlet: &Outlet,
    mut chunk: SnapshotChunk,
    decode: &dyn Decode,
) -> Result<(), SealError> {
    let qualified = chunk.table.qualified();
    if is_done(&*desk.facts, &chunk) {
        tracing::warn!(table = qualified, chunk = chunk.number, "a chunk came that is done");
        return Ok(());
    }
    let table = desk.versioned(outlet, &chunk.table)?;
    let (op, again) = (op(&chunk), op(&chunk) != Op::Snapshot);
    let covers = Covers::Chunk { position: chunk.position, chunk: chunk.number, again };
    let meta =
        RowMeta { op, sequence: 0, position: chunk.position, committed_at: chunk.at, xid: None };
    let (series, cells) = (Series::new(covers, desk.cut.bytes), cells(&table, decode));
    let mut into = Into { maker: &desk.maker, table: &table, decode, series, cells };
    let mut rows = 0;
    let announced = loop {
        match next(&mut chunk.rows) {
            Some(RowBatch::Rows(batch)) => {
                rows += into.append(meta, batch)?;
            }
            Some(RowBatch::Gone(batch)) => {
                rows += into.append(RowMeta { op: Op::Delete, ..meta }, batch)?;
            }
            Some(RowBatch::End(announced)) => break announced,
            None => {
                tracing::info!(table = qualified, chunk = chunk.number, "a chunk was cut short");
                return Ok(());
            }
        }
    };
    if rows != announced {
        let what = "rows in a snapshot chunk";
        return Err(SealError::Order {
            what,
            after: Sequence(0),
            expected: announced,
            found: rows,
        });
    }
    if rows == 0 && chunk.number == 0 && !again {
        into.series.declare(&desk.maker, &table, chunk.at, Op::Snapshot);
    }
    let drafts = into.series.end(&desk.maker)?;
    let kind = |id, facts: &mut FactBatch| {
        if is_done(&*desk.facts, &chunk) {
            tracing::warn!(table = qualified, chunk = chunk.number, "a chunk was sealed twice");
            return Ok(None);
        }
        note(desk, (&chunk, &table), (id, rows), facts).map(Some)
    };
    desk.record(outlet, drafts, kind).map(drop)
}

/// Notes that the group `id` has the chunk, and says what it is.
fn note(
    desk: &Desk,
    (chunk, table): (&SnapshotChunk, &Table),
    (id, rows): (u64, u64),
    facts: &mut FactBatch,
) -> Result<(GroupKind, Fates), SealError> {
    let (name, table_id) = (table.qualified(), chunk.table.id);
    if !matches!(chunk.reading, Reading::Look { .. }) {
        facts.put(told_fact(table_id, By::Parts), &table.version);
    }
    let (position, number) = (chunk.position, chunk.number);
    let repair = GroupKind::Repair { table: name.clone(), table_id, chunk: number, position };
    let by_key = match &chunk.reading {
        Reading::Keys(notes) | Reading::Gone(notes) => {
            let notes = notes.clone();
            facts.put(
                reread_fact(table_id, position, number),
                &Reread { position, group: id, notes },
            );
            return Ok((repair, Fates::default()));
        }
        Reading::Look { of, facts: known } => {
            facts.changes.extend_from_slice(&known.changes);
            return Ok((repair, fates::seen(*of, position)));
        }
        Reading::Again { by_key } => *by_key,
        Reading::Snapshot => false,
    };
    facts.put(chunk_fact(table_id, number), &ChunkDone { position, rows });
    let done = done_chunks(&*desk.facts, table_id) + 1;
    let completes = done == u64::from(chunk.chunks);
    let span = match done {
        // What stands there is of what was before.
        1 => Span::begun(position, by_key),
        _ => span(&*desk.facts, table_id)?.unwrap_or(Span::begun(position, by_key)),
    };
    let mut span = Span::with(Some(span), position, completes);
    let mut fates = fates::begun_anew(&*desk.facts, table, position, facts)?;
    // Else rows of it may have to be read again first, which the source knows.
    span.told = span.is_one() && fates.add(Fate::Whole, table);
    facts.put(span_fact(table_id), &span);
    show(desk, &name, chunk, (done, rows));
    let kind = match chunk.reading {
        Reading::Snapshot => {
            GroupKind::Snapshot { table: name, table_id, chunk: number, position, completes }
        }
        _ => repair,
    };
    Ok((kind, fates))
}

/// What comes next, waited for only if it is not there.
fn next(rows: &mut Receiver<RowBatch>) -> Option<RowBatch> {
    match rows.try_recv() {
        Ok(batch) => Some(batch),
        Err(TryRecvError::Empty) => rows.blocking_recv(),
        Err(TryRecvError::Disconnected) => None,
    }
}

/// Whether the chunk is sealed.
fn is_done(facts: &dyn Facts, chunk: &SnapshotChunk) -> bool {
    let (id, number) = (chunk.table.id, chunk.number);
    let fact = match chunk.reading {
        Reading::Snapshot | Reading::Again { .. } => chunk_fact(id, number),
        Reading::Keys(_) | Reading::Gone(_) => reread_fact(id, chunk.position, number),
        // Each has a position of its own.
        Reading::Look { .. } => return false,
    };
    facts.get(&fact).is_some()
}

/// What its rows are.
fn op(chunk: &SnapshotChunk) -> Op {
    match chunk.reading {
        Reading::Snapshot => Op::Snapshot,
        Reading::Again { .. } | Reading::Keys(_) | Reading::Look { .. } => Op::Repair,
        Reading::Gone(_) => Op::Delete,
    }
}

/// Where the rows of a chunk go.
struct Into<'a> {
    maker: &'a Maker,
    table: &'a Arc<Table>,
    decode: &'a dyn Decode,
    series: Series,
    /// Room for those that are read at once; `None`: rows are looked at one by one.
    cells: Option<Cells>,
}

impl Into<'_> {
    /// Adds a batch of rows, and says how many.
    fn append(&mut self, meta: RowMeta, batch: Bytes) -> Result<u64, SealError> {
        let Self { maker, table, decode, series, cells } = self;
        let alone = batch.len() >= LARGE_ROW_BYTES;
        let at = meta.committed_at;
        let wrong = |why| SealError::Decode { what: table.qualified(), why };
        let mut rows = 0;
        if let Some(cells) = cells.as_mut().filter(|_| !alone) {
            let mut done = 0;
            while done < batch.len() {
                cells.clear();
                done = decode.block(table, &batch, done, cells).map_err(wrong)?;
                let block = Block { cells, bytes: &batch };
                let block = BlockIn { metas: Metas::Same(meta), block, decode: *decode };
                series.append_block(maker, table, at, &block)?;
                rows += cells.rows() as u64;
            }
            return Ok(rows);
        }
        let mut failed = None;
        let read = decode.rows(table, &batch, &mut |row| {
            rows += 1;
            let row = RowIn::new(meta, Some(row), None, &batch, *decode);
            series.append(maker, table, at, &row).map_err(|error| {
                failed = Some(error);
                DecodeError::Length { what: "a batch that could not be written" }
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        read.map_err(wrong)?;
        if alone {
            // The batch goes before its copy in the row builder is copied on.
            drop(batch);
            series.write_all(maker)?;
        }
        Ok(rows)
    }
}

/// Room for rows of the table that are read at once, if no value takes much more in its column than it does as the
/// source sent it. (Ten bytes of a numeric can be 131,072 digits: of such rows each has to be looked at before the next.)
pub(super) fn cells(table: &Table, decode: &dyn Decode) -> Option<Cells> {
    let fixed = |lake| !matches!(lake, LakeType::Text | LakeType::Binary);
    let mut columns = table.columns.iter();
    let width = table.columns.len();
    let is_bounded = columns.all(|column| fixed(column.lake) || decode.plain(column).is_some());
    is_bounded.then(|| Cells::new(width, BLOCK_CELLS / width.max(1), BLOCK_BYTES))
}

/// Chunks of the table that are recorded.
fn done_chunks(facts: &dyn Facts, table_id: u32) -> u64 {
    facts.scan(&chunk_facts(table_id)).len() as u64
}

/// The positions of the parts recorded so far; of those that were recorded before spans were, too.
fn span(facts: &dyn Facts, table_id: u32) -> Result<Option<Span>, FactDamaged> {
    let known = facts::read(facts, &span_fact(table_id))?;
    if known.is_some() {
        return Ok(known);
    }
    let done = facts::read_all::<ChunkDone>(facts, &chunk_facts(table_id))?.into_iter();
    Ok(done.fold(None, |span, (_, done)| Some(Span::with(span, done.position, false))))
}

fn show(desk: &Desk, table: &str, chunk: &SnapshotChunk, (done, rows): (u64, u64)) {
    desk.board.write(|status| {
        let progress = status.snapshot.entry(table.to_owned()).or_default();
        progress.chunks_done = u32::try_from(done).unwrap_or(u32::MAX);
        progress.chunks = chunk.chunks;
        progress.rows_done += rows;
    });
}

/// Of rows that are read a column after the other: 16 KiB, which stay in the processor's cache.
const BLOCK_CELLS: usize = 2048;
/// As above, of values.
const BLOCK_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parquet::{arrow::arrow_reader::ParquetRecordBatchReaderBuilder, basic::Encoding};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::Integers,
        seal::{
            Group,
            key::{Keys, Stem},
            memory::{Bench, NOON, Plain, row, shared, table},
        },
        units::{Position, Timestamp},
    };

    fn chunk(number: u32, chunks: u32, batches: Vec<RowBatch>) -> SnapshotChunk {
        let (send, rows) = mpsc::channel(100);
        batches.into_iter().for_each(|batch| send.try_send(batch).unwrap());
        SnapshotChunk {
            table: Arc::new(table(7, "t")),
            number,
            chunks,
            position: Position(0xAB),
            at: Timestamp(NOON),
            reading: Reading::Snapshot,
            rows,
        }
    }

    fn rows(ids: std::ops::Range<u32>) -> RowBatch {
        let rows = ids.map(|id| row(&[&id.to_string(), &format!("note {id}")]));
        RowBatch::Rows(rows.collect::<Vec<_>>().concat().into())
    }

    fn seal_all(bench: &Bench, chunks: Vec<SnapshotChunk>) -> Result<Vec<Group>, SealError> {
        let (send, receive) = mpsc::channel(100);
        chunks.into_iter().for_each(|chunk| send.try_send(chunk).unwrap());
        drop(send);
        let (groups, mut passed) = mpsc::channel(100);
        let token = CancellationToken::new();
        bench.open().run_snapshots(&shared(receive), &Plain::DECODER, groups, token)?;
        Ok(std::iter::from_fn(|| passed.try_recv().ok()).collect())
    }

    fn completes(group: &Group) -> bool {
        matches!(group.kind, GroupKind::Snapshot { completes: true, .. })
    }

    #[test]
    fn a_chunk_becomes_a_group_and_the_last_one_completes_the_table() {
        let bench = Bench::new();
        let first = chunk(1, 2, vec![rows(0..3), rows(3..5), RowBatch::End(5)]);
        let second = chunk(0, 2, vec![rows(5..6), RowBatch::End(1)]);
        let groups = seal_all(&bench, vec![first, second]).unwrap();
        assert_eq!(groups.iter().map(|group| group.id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(groups[0].kind, GroupKind::Schema);
        assert_eq!(groups.iter().map(completes).collect::<Vec<_>>(), [false, false, true]);
        let whole = BTreeMap::from([("public.t".to_owned(), 1)]);
        let fates = [Fates::default(), Fates::default(), Fates { whole, ..Fates::default() }];
        assert!(groups.iter().map(|group| &group.fates).eq(&fates), "{groups:?}");
        let told = told_fact(chunk(0, 2, vec![]).table.id, By::Parts);
        assert_eq!(facts::read::<u32>(&*bench.facts, &told).unwrap(), Some(1));
        let object = &groups[1].objects[0];
        assert!(
            object
                .key
                .starts_with("raw/erp/public.t/dt=2026-11-21/snapshot-00000000000000AB-00000001-")
        );
        assert_eq!((object.rows[&Op::Snapshot], object.version), (5, 1));
        let sealed = bench.rows(object);
        assert!(sealed.iter().all(|row| row.op == "S" && row.sequence == 0));
        assert_eq!(sealed[4].note.as_deref(), Some("note 4"));
        let done: ChunkDone = facts::read(&*bench.facts(), &chunk_fact(7, 1)).unwrap().unwrap();
        assert_eq!(done, ChunkDone { position: Position(0xAB), rows: 5 });
        assert_eq!(bench.board.read().snapshot["public.t"].chunks_done, 2);
    }

    #[test]
    fn rows_of_any_size_stay_in_order() {
        let bench = Bench::new();
        let note = |id: u32| match id % 400 {
            7 => "n".repeat(BLOCK_BYTES + 1),
            8 => "m".repeat(BLOCK_BYTES / 2),
            _ => format!("note {id}"),
        };
        let batch = |ids: std::ops::Range<u32>| {
            let rows = ids.map(|id| row(&[&id.to_string(), &note(id)]));
            RowBatch::Rows(rows.collect::<Vec<_>>().concat().into())
        };
        let chunk =
            chunk(0, 1, vec![batch(0..8), batch(8..3000), batch(3000..3001), RowBatch::End(3001)]);
        let groups = seal_all(&bench, vec![chunk]).unwrap();
        let sealed = bench.rows(&groups[1].objects[0]);
        assert_eq!(sealed.len(), 3001);
        for (id, row) in (0..).zip(&sealed) {
            assert_eq!((row.id, row.note.as_deref()), (Some(id.into()), Some(&note(id)[..])));
        }
    }

    #[test]
    fn rising_numbers_take_less_as_differences() {
        let sealed = |integers| {
            let mut bench = Bench::new();
            bench.options.integers = integers;
            let chunk = chunk(0, 1, vec![rows(0..20_000), RowBatch::End(20_000)]);
            let groups = seal_all(&bench, vec![chunk]).unwrap();
            let object = &groups[1].objects[0];
            let reader = ParquetRecordBatchReaderBuilder::try_new(bench.sent(object)).unwrap();
            let id = reader.metadata().row_group(0).column(0);
            let is_delta = id.encodings().any(|own| own == Encoding::DELTA_BINARY_PACKED);
            (bench.rows(object), is_delta, id.compressed_size())
        };
        let ((plain, no, more), (delta, yes, less)) =
            (sealed(Integers::Plain), sealed(Integers::Delta));
        assert!(plain == delta && !no && yes && less * 20 < more, "{less} and {more} bytes");
    }

    /// P4: of a text that is printed, and may be any length, each row is looked at before the next.
    #[test]
    fn only_rows_that_cannot_grow_are_read_in_blocks() {
        let mut numbers = table(7, "t");
        assert!(cells(&numbers, &Plain::DECODER).is_some());
        numbers.columns[1].lake = LakeType::Binary;
        let cells = cells(&numbers, &Plain::DECODER);
        assert!(cells.is_none(), "no plain column, and of any length");
    }

    /// Two threads seal `one` and `other`; each has taken its rows before either is ended.
    fn seal_side_by_side(bench: &Bench, one: u32, other: u32) -> Vec<Group> {
        let sealer = bench.open();
        let (send, receive) = mpsc::channel(2);
        let chunks = shared(receive);
        let (groups, mut passed) = mpsc::channel(100);
        let token = CancellationToken::new();
        thread::scope(|scope| {
            for _ in 0..2 {
                let (groups, token) = (groups.clone(), token.clone());
                let (sealer, chunks) = (&sealer, &chunks);
                let run = move || sealer.run_snapshots(chunks, &Plain::DECODER, groups, token);
                scope.spawn(move || run().unwrap());
            }
            let feeds = [one, other].map(|number| {
                let (feed, rows) = mpsc::channel(1);
                send.blocking_send(SnapshotChunk { rows, ..chunk(number, 2, vec![]) }).unwrap();
                feed
            });
            for feed in &feeds {
                feed.blocking_send(rows(0..3)).unwrap();
            }
            // There is room again only when the rows were taken: by two threads, as neither has ended.
            for feed in &feeds {
                feed.blocking_send(rows(3..5)).unwrap();
            }
            for feed in feeds {
                feed.blocking_send(RowBatch::End(5)).unwrap();
            }
            drop(send);
        });
        std::iter::from_fn(|| passed.try_recv().ok()).collect()
    }

    #[test]
    fn of_two_chunks_sealed_at_once_the_one_recorded_last_completes_the_table() {
        for _ in 0..20 {
            let bench = Bench::new();
            let groups = seal_side_by_side(&bench, 0, 1);
            assert_eq!(groups.iter().map(|group| group.id).collect::<Vec<_>>(), [1, 2, 3]);
            assert_eq!(groups.iter().map(completes).collect::<Vec<_>>(), [false, false, true]);
            assert_eq!(bench.open().recovered().unwrap(), groups);
        }
    }

    #[test]
    fn a_chunk_that_two_threads_seal_at_once_is_recorded_once() {
        for _ in 0..20 {
            let bench = Bench::new();
            let groups = seal_side_by_side(&bench, 1, 1);
            assert_eq!(groups.len(), 2, "a schema and a chunk: {groups:?}");
            assert!(!completes(&groups[1]));
            assert_eq!(bench.spooled(), 2);
        }
    }

    #[test]
    fn a_chunk_cut_short_leaves_nothing_and_can_come_again() {
        let bench = Bench::new();
        let groups = seal_all(&bench, vec![chunk(0, 1, vec![rows(0..3)])]).unwrap();
        assert_eq!(groups.len(), 1, "the schema alone");
        assert_eq!(bench.spooled(), 1);
        let again = chunk(0, 1, vec![rows(0..3), RowBatch::End(3)]);
        let groups = seal_all(&bench, vec![again]).unwrap();
        assert!(completes(&groups[0]));
        let twice = chunk(0, 1, vec![rows(0..3), RowBatch::End(3)]);
        assert!(seal_all(&bench, vec![twice]).unwrap().is_empty());
    }

    #[test]
    fn a_chunk_with_another_number_of_rows_is_an_error() {
        let bench = Bench::new();
        let error = seal_all(&bench, vec![chunk(0, 1, vec![rows(0..3), RowBatch::End(4)])]);
        let expected = "rows in a snapshot chunk after change 0: expected 4, found 3";
        assert_eq!(error.unwrap_err().to_string(), expected);
        assert_eq!(bench.spooled(), 1);
        let torn = RowBatch::Rows(row(&["1"]).into());
        let error = seal_all(&bench, vec![chunk(0, 1, vec![torn, RowBatch::End(1)])]);
        assert!(matches!(error, Err(SealError::Decode { .. })));
    }

    #[test]
    fn rows_read_again_by_key_are_repairs_and_done_with_their_group() {
        let bench = Bench::new();
        let keys = || Reading::Keys(vec!["a".into(), "b".into()]);
        let read =
            |reading| SnapshotChunk { reading, ..chunk(3, 4, vec![rows(0..2), RowBatch::End(2)]) };
        let groups = seal_all(&bench, vec![read(keys()), read(keys())]).unwrap();
        assert_eq!(groups.len(), 2, "a schema and the chunk, once");
        let position = Position(0xAB);
        let kind = GroupKind::Repair { table: "public.t".into(), table_id: 7, chunk: 3, position };
        assert_eq!(groups[1].kind, kind);
        let object = &groups[1].objects[0];
        assert!(object.key.contains("/repair-00000000000000AB-00000003-"), "{}", object.key);
        assert_eq!(object.rows, BTreeMap::from([(Op::Repair, 2)]));
        assert!(bench.rows(object).iter().all(|row| row.op == "R" && row.sequence == 0));
        let stem = Keys::new("raw").parse_data(&object.key).unwrap().stem;
        assert_eq!(stem, Stem::Repair { position, chunk: 3, part: None });
        let done: Reread =
            facts::read(&*bench.facts(), &reread_fact(7, position, 3)).unwrap().unwrap();
        assert_eq!(done, Reread { position, group: 2, notes: vec!["a".into(), "b".into()] });
        assert!(bench.facts().get(&chunk_fact(7, 3)).is_none());
    }

    #[test]
    fn the_span_says_at_which_positions_the_parts_were_read() {
        let bench = Bench::new();
        let part = |number, position| SnapshotChunk {
            position: Position(position),
            ..chunk(number, 3, vec![rows(0..1), RowBatch::End(1)])
        };
        let span = || facts::read::<Span>(&*bench.facts(), &span_fact(7)).unwrap();
        assert_eq!(span(), None);
        let (ten, thirty) = (Position(10), Position(30));
        seal_all(&bench, vec![part(0, 10), part(1, 30)]).unwrap();
        let two = |whole, by_key| Span { first: ten, last: thirty, whole, by_key, told: false };
        assert_eq!(span(), Some(two(false, false)));
        let last = SnapshotChunk { reading: Reading::Again { by_key: false }, ..part(2, 20) };
        let groups = seal_all(&bench, vec![last]).unwrap();
        assert!(matches!(groups[0].kind, GroupKind::Repair { chunk: 2, .. }));
        assert_eq!(span(), Some(two(true, false)));
        assert!(groups[0].fates.is_empty(), "its parts were read at several positions");
    }

    #[test]
    fn the_first_part_of_a_table_that_is_read_again_begins_its_span_anew() {
        let bench = Bench::new();
        let mut batch = FactBatch::default();
        batch.put(span_fact(7), &Span::begun(Position(0), true));
        bench.facts().record_blocking(batch).unwrap();
        let part = |number, position| SnapshotChunk {
            position: Position(position),
            reading: Reading::Again { by_key: true },
            ..chunk(number, 2, vec![rows(0..1), RowBatch::End(1)])
        };
        seal_all(&bench, vec![part(1, 30), part(0, 10)]).unwrap();
        let span = facts::read::<Span>(&*bench.facts(), &span_fact(7)).unwrap().unwrap();
        assert_eq!((span.first, span.last), (Position(10), Position(30)));
        assert!(span.whole && span.by_key);
    }

    #[test]
    fn an_empty_table_has_an_object_without_rows() {
        let bench = Bench::new();
        let groups = seal_all(&bench, vec![chunk(0, 1, vec![RowBatch::End(0)])]).unwrap();
        assert!(completes(&groups[1]));
        assert_eq!(groups[1].objects[0].rows, BTreeMap::from([(Op::Snapshot, 0)]));
        assert!(bench.rows(&groups[1].objects[0]).is_empty());
        let other = chunk(1, 2, vec![RowBatch::End(0)]);
        assert!(seal_all(&bench, vec![other]).unwrap()[0].objects.is_empty());
    }

    #[test]
    fn a_large_chunk_stands_in_parts() {
        let mut bench = Bench::new();
        bench.options.object_bytes = 100_000;
        let noise = || -> String { (0..3000).map(|_| fastrand::alphanumeric()).collect() };
        let batch =
            || RowBatch::Rows((0..400).flat_map(|id| row(&[&id.to_string(), &noise()])).collect());
        let groups = seal_all(
            &bench,
            vec![chunk(0, 1, vec![batch(), batch(), batch(), RowBatch::End(1200)])],
        )
        .unwrap();
        let objects = &groups[1].objects;
        assert!(objects.len() > 1);
        let parts: Vec<_> = objects
            .iter()
            .map(|object| match Keys::new("raw").parse_data(&object.key).unwrap().stem {
                Stem::Snapshot { part, chunk: 0, .. } => part.unwrap(),
                stem => panic!("{stem:?}"),
            })
            .collect();
        assert_eq!(parts, (1..=u32::try_from(objects.len()).unwrap()).collect::<Vec<_>>());
        assert_eq!(objects.iter().map(|object| bench.rows(object).len()).sum::<usize>(), 1200);
    }
}
