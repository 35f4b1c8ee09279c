//! How fast a snapshot chunk becomes an object in the spool (decode, Parquet, zstd, encryption, both
//! sums, fsync), and what the encryption of mode `client` adds.
//!
//! `cargo bench --bench seal_encrypt [-- FOLDER [MIB]]`: the spool lies in the folder.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench speaks to a person")]

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use lakehead::{
    clock::{Clock, SystemClock},
    config::Secret,
    facts::MemoryFacts,
    journal::{Column, Identity, LakeType, Reading, RowBatch, SnapshotChunk, Table},
    seal::{LakeKey, SealEncryption, SealOptions, Sealer},
    source::postgres::pgoutput::PgDecoder,
    telemetry::board::SourceBoard,
    units::Position,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

mod cpu;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mib: usize = arguments.next().map_or(256, |text| text.parse().unwrap());
    println!("mode    MiB of COPY     rows/s      MB/s  CPU-s/GB  object/payload");
    let key = || LakeKey::new(Secret::new(vec![7; 32])).unwrap();
    for _ in 0..2 {
        measure(&folder, "none", SealEncryption::None, mib << 20);
        measure(&folder, "client", SealEncryption::Client(key()), mib << 20);
    }
}

fn measure(folder: &Path, mode: &str, encryption: SealEncryption, total: usize) {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let board = SourceBoard::default();
    let options = SealOptions {
        prefix: "raw".into(),
        source: "bench".into(),
        object_bytes: 64 << 20,
        object_age: Duration::from_secs(60),
        encryption,
        spool_dir: dir.path().join("spool"),
        spool_key: Secret::new(vec![9; 32]),
        spool_bytes_max: 64 << 30,
    };
    let (clock, facts) = (SystemClock, Arc::new(MemoryFacts::default()));
    let sealer = Sealer::open(options, facts, board.clone(), Arc::new(clock)).unwrap();
    let (batch, rows) = rows(256 << 10);
    let batches = total / batch.len();
    let (send, rows_in) = mpsc::channel(batches + 1);
    for _ in 0..batches {
        send.try_send(RowBatch::Rows(batch.clone().into())).unwrap();
    }
    send.try_send(RowBatch::End((batches * rows) as u64)).unwrap();
    let chunk = SnapshotChunk {
        table: Arc::new(table()),
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
    let (start, cpu) = (clock.now(), cpu::seconds());
    let decoder = PgDecoder::new(Vec::<Table>::new());
    sealer.run_snapshots(&chunks, &decoder, groups, CancellationToken::new()).unwrap();
    let (seconds, cpu) = ((clock.now() - start).as_secs_f64(), cpu::seconds() - cpu);
    let payload = (batches * batch.len()) as f64;
    let sealed = board.read();
    println!(
        "{mode:7} {:11.0} {:10.0} {:9.0} {:9.2} {:15.3}",
        payload / 1048576.0,
        sealed.sealed_rows as f64 / seconds,
        payload / seconds / 1e6,
        cpu / payload * 1e9,
        sealed.sealed_bytes as f64 / payload,
    );
}

fn table() -> Table {
    let column = |name: &str, source_type: &str, type_id, lake| Column {
        name: name.into(),
        source_type: source_type.into(),
        type_id,
        type_modifier: -1,
        lake,
        identity: name == "id",
        not_null: false,
        default: None,
        generated: None,
    };
    Table {
        id: 16_384,
        schema: "public".into(),
        name: "orders".into(),
        version: 0,
        columns: vec![
            column("id", "bigint", 20, LakeType::Int64),
            column("customer", "integer", 23, LakeType::Int32),
            column("amount", "double precision", 701, LakeType::Float64),
            column("at", "timestamp with time zone", 1184, LakeType::TimestampUtc),
            column("note", "text", 25, LakeType::Text),
        ],
        key: vec!["id".into()],
        identity: Identity::Default,
        types: vec![],
    }
}

/// Tuples of a binary COPY, about `bytes` of them, and how many.
fn rows(bytes: usize) -> (Vec<u8>, usize) {
    let (mut out, mut rows) = (vec![], 0);
    let mut dice = fastrand::Rng::with_seed(1);
    while out.len() < bytes {
        rows += 1;
        let note: String = (0..dice.usize(5..12))
            .map(|_| ["paid ", "late ", "ship ", "gift "][dice.usize(..4)])
            .collect();
        let fields: [&[u8]; 5] = [
            &(rows as u64).to_be_bytes(),
            &dice.u32(..50_000).to_be_bytes(),
            &(dice.f64() * 1e4).to_be_bytes(),
            &(848_000_000_000_000 + dice.u64(..86_400_000_000)).to_be_bytes(),
            note.as_bytes(),
        ];
        out.extend_from_slice(&5_u16.to_be_bytes());
        for field in fields {
            out.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
            out.extend_from_slice(field);
        }
    }
    (out, rows)
}
