//! How fast a snapshot chunk becomes an object in the spool (decode, Parquet, zstd, encryption, both
//! sums, fsync), what the encryption of mode `client` adds, and what memory it takes beyond the rows.
//!
//! `cargo bench --bench seal_encrypt [-- FOLDER [MIB [TABLE MODE]]]`: the spool lies in the folder. Each twice, or
//! that one once.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench speaks to a person")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use lakehead::{
    clock::{Clock, SystemClock},
    config::{Integers, Secret, Uuids},
    facts::MemoryFacts,
    journal::{Column, Reading, RowBatch, SnapshotChunk, Table},
    seal::{LakeKey, SealEncryption, SealOptions, Sealer},
    source::postgres::pgoutput::PgDecoder,
    telemetry::board::SourceBoard,
    units::Position,
};
use rows::{orders, tuples, wide};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

mod cpu;
mod rows;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mib: usize = arguments.next().map_or(256, |text| text.parse().unwrap());
    let one = arguments.next().zip(arguments.next());
    let wanted = |table: &Table| one.as_ref().is_none_or(|(name, _)| *name == table.name);
    println!(
        "table   mode     MiB      rows     rows/s      MB/s  CPU-s/GB  object/payload  peak MiB"
    );
    let key = || LakeKey::new(Secret::new(vec![7; 32])).unwrap();
    for table in [orders(), wide(), broad()].into_iter().filter(wanted) {
        let batches = batches(&table, mib << 20);
        for _ in 0..one.as_ref().map_or(2, |_| 1) {
            for (mode, encryption) in
                [("none", SealEncryption::None), ("client", SealEncryption::Client(key()))]
            {
                if one.as_ref().is_none_or(|(_, of)| of == mode) {
                    measure(&folder, &table, &batches, mode, encryption);
                }
            }
        }
    }
}

/// A thousand columns, as those of [`orders`] again and again: about 16 KB.
fn broad() -> Table {
    let orders = orders();
    let mut columns = orders.columns.clone();
    let kinds = orders.columns[1..].iter().cycle();
    columns.extend(kinds.zip(orders.columns.len()..1000).map(|(kind, number)| {
        let name = format!("{}_{number}", kind.name);
        Column { name, ..kind.clone() }
    }));
    Table { name: "broad".into(), columns, ..orders }
}

/// Batches as a COPY gives them, and how many rows are in each.
fn batches(table: &Table, total: usize) -> Vec<(Bytes, u64)> {
    let (mut dice, mut first) = (fastrand::Rng::with_seed(1), 1);
    let batch = |_| {
        let (batch, rows) = tuples(table, first, BATCH_BYTES, &mut dice);
        first += rows;
        (batch.into(), rows)
    };
    (0..total.div_ceil(BATCH_BYTES)).map(batch).collect()
}

fn measure(
    folder: &Path,
    table: &Table,
    batches: &[(Bytes, u64)],
    mode: &str,
    encryption: SealEncryption,
) {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let board = SourceBoard::default();
    let options = SealOptions {
        prefix: "raw".into(),
        source: "bench".into(),
        object_bytes: 64 << 20,
        object_age: Duration::from_secs(60),
        integers: Integers::Rising,
        uuids: Uuids::Uuid,
        encryption,
        spool_dir: dir.path().join("spool"),
        spool_key: Secret::new(vec![9; 32]),
        spool_bytes_max: 64 << 30,
    };
    let (clock, facts) = (SystemClock, Arc::new(MemoryFacts::default()));
    let sealer = Sealer::open(options, facts, board.clone(), Arc::new(clock)).unwrap();
    let (send, rows_in) = mpsc::channel(batches.len() + 1);
    for (batch, _) in batches {
        send.try_send(RowBatch::Rows(batch.clone())).unwrap();
    }
    send.try_send(RowBatch::End(batches.iter().map(|(_, rows)| rows).sum())).unwrap();
    let chunk = SnapshotChunk {
        table: Arc::new(Table { version: 0, ..table.clone() }),
        number: 0,
        chunks: 1,
        position: Position(1),
        at: clock.wall(),
        reading: Reading::Snapshot,
        rows: rows_in,
    };
    let (give, chunks) = mpsc::channel(1);
    give.try_send(chunk).unwrap();
    drop(give);
    let chunks = Arc::new(Mutex::new(chunks));
    let (groups, _passed) = mpsc::channel(4);
    forget_peak();
    let before = peak_bytes();
    let (start, cpu) = (clock.now(), cpu::seconds());
    let decoder = PgDecoder::new(Vec::<Table>::new());
    sealer.run_snapshots(&chunks, &decoder, groups, CancellationToken::new()).unwrap();
    let (seconds, cpu) = ((clock.now() - start).as_secs_f64(), cpu::seconds() - cpu);
    let payload = batches.iter().map(|(batch, _)| batch.len()).sum::<usize>() as f64;
    let sealed = board.read();
    println!(
        "{:7} {mode:7} {:4.0} {:9} {:10.0} {:9.0} {:9.2} {:15.3} {:9.0}",
        table.name,
        payload / 1048576.0,
        sealed.sealed_rows,
        sealed.sealed_rows as f64 / seconds,
        payload / seconds / 1e6,
        cpu / payload * 1e9,
        sealed.sealed_bytes as f64 / payload,
        (peak_bytes() - before) as f64 / 1048576.0,
    );
}

/// The most that was resident since [`forget_peak`].
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// What is resident now is the peak: proc(5).
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// As the reader of a COPY gives them.
const BATCH_BYTES: usize = 256 << 10;
