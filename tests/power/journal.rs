//! The journal of a box whose power is cut: `power_loss.py` runs this, cuts, and compares what was said
//! with what is there.
//!
//! `power_journal write FOLDER SEED` appends runs and facts until it is killed, and says on standard
//! output what it does, line by line:
//!
//! ```text
//! sent POSITION CRC       a transaction is about to be whole in the journal's queue
//! durable POSITION BATCH  all transactions through POSITION are durable, says the journal
//! trim BATCH POSITION     all through POSITION is about to be given up
//! put KEY N               a fact is about to be recorded; N is 0 where it is deleted
//! fact KEY N              it is durable, says the journal
//! ```
//!
//! `power_journal read FOLDER BATCH` recovers the journal and says what is in it behind BATCH, as
//! `durable`, `transaction POSITION CRC`, `fact KEY N` and `damage TEXT`. `power_journal check FOLDER`
//! prints what `lakehead journal check` does, as JSON.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program that speaks through its output"
)]

use std::{cell::Cell, collections::VecDeque, path::Path, sync::Arc, time::Duration};

use lakehead::{
    clock::{Clock, SystemClock},
    config::Secret,
    facts::{FactBatch, Facts},
    journal::{Commit, Journal, Keep, Options, Piece, Run, inspect},
    shutdown::Tasks,
    telemetry::board::SourceBoard,
    units::Position,
};

const KEY: [u8; 32] = [7; 32];
/// Small, so that segments are closed, begun and unlinked all the time.
const SEGMENT_BYTES: u64 = 1 << 20;
const MAX_BYTES: u64 = 256 << 20;
const NO_TIME: Duration = Duration::ZERO;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    match words[..] {
        ["write", dir, seed] => {
            fastrand::seed(seed.parse().unwrap());
            runtime.block_on(write(dir.as_ref()));
        }
        ["read", dir, after_batch] => {
            runtime.block_on(read(dir.as_ref(), after_batch.parse().unwrap()));
        }
        ["check", dir] => {
            let report =
                inspect::check(dir.as_ref(), &Secret::new(KEY.to_vec()), &mut |_, _| {}).unwrap();
            println!("{}", serde_json::to_string(&report).unwrap());
        }
        _ => panic!("see the head of the file"),
    }
}

fn open(dir: &Path, board: &SourceBoard) -> Arc<Journal> {
    let options = Options {
        dir: dir.to_owned(),
        key: Secret::new(KEY.to_vec()),
        max_bytes: MAX_BYTES,
        segment_bytes: SEGMENT_BYTES,
    };
    Journal::open(options, board.clone(), Arc::new(SystemClock), &Tasks::new()).unwrap()
}

async fn read(dir: &Path, after_batch: u64) {
    let board = SourceBoard::default();
    let journal = open(dir, &board);
    let durable = *journal.durable().borrow();
    println!("durable {} {}", durable.point.position.0, durable.batch);
    let mut reader = journal.reader(after_batch);
    let mut bytes = vec![];
    while let Some(batch) = reader.next(NO_TIME).unwrap() {
        bytes.extend_from_slice(&batch.bytes);
        if let Some(commit) = batch.commit {
            println!("transaction {} {}", commit.position.0, crc32c::crc32c(&bytes));
            bytes.clear();
        }
    }
    assert!(bytes.is_empty(), "a transaction without an end");
    for (key, value) in journal.scan("") {
        let (number, _): (u64, String) = serde_json::from_slice(&value).unwrap();
        println!("fact {key} {number}");
    }
    board.read().journal_damage.iter().for_each(|damage| println!("damage {damage}"));
    journal.stop().await;
}

async fn write(dir: &Path) {
    let journal = open(dir, &SourceBoard::default());
    let last = journal.session().await.unwrap().point.position.0;
    let number = Cell::new(last);
    tokio::join!(
        transactions(&journal, last),
        facts(&journal, "ship/upload", &number),
        facts(&journal, "seal/spool", &number),
        facts(&journal, "source/cursor", &number),
        say_durable(&journal),
        trim(&journal),
    );
}

async fn transactions(journal: &Journal, last: u64) {
    let mut position = last;
    loop {
        position += fastrand::u64(2..1000);
        let pieces = if fastrand::u8(..10) == 0 { fastrand::usize(2..8) } else { 1 };
        let gives_up = pieces > 1 && fastrand::u8(..3) == 0;
        let mut crc = 0;
        for number in 1..=pieces {
            let piece = match (number, number == pieces) {
                (1, true) => Piece::Whole,
                (1, false) => Piece::First,
                (_, false) => Piece::Middle,
                (_, true) => Piece::Last,
            };
            let run = run(piece, position);
            crc = crc32c::crc32c_append(crc, &run.bytes);
            if run.commit.is_some() {
                println!("sent {position} {crc}");
            }
            journal.append(run).await.unwrap();
            if gives_up {
                // The source went away in the middle.
                journal.session().await.unwrap();
                break;
            }
        }
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..4000))).await;
    }
}

fn run(piece: Piece, position: u64) -> Run {
    let bytes_max = if fastrand::u8(..20) == 0 { 600_000 } else { 6_000 };
    let bytes = fastrand::usize(1..bytes_max);
    let ends = matches!(piece, Piece::Whole | Piece::Last);
    let commit = Commit {
        position: Position(position),
        begins: Position(position - 1),
        at: SystemClock.wall(),
        transactions: 1,
    };
    Run {
        piece,
        bytes: std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect(),
        changes: 1,
        commit: ends.then_some(commit),
        ..Run::new(piece)
    }
}

async fn facts(journal: &Journal, room: &str, number: &Cell<u64>) {
    loop {
        let mut batch = FactBatch::default();
        let mut said = vec![];
        for _ in 0..fastrand::usize(1..4) {
            number.set(number.get() + 1);
            let key = format!("{room}/{}", fastrand::u8(..30));
            if said.iter().any(|(known, _)| *known == key) {
                continue;
            }
            if fastrand::u8(..5) == 0 {
                batch.changes.push((key.clone(), None));
                said.push((key, 0));
            } else {
                let padding = "p".repeat(fastrand::usize(..500));
                batch.put(key.clone(), &(number.get(), padding));
                said.push((key, number.get()));
            }
        }
        said.iter().for_each(|(key, number)| println!("put {key} {number}"));
        journal.record(batch).await.unwrap();
        said.iter().for_each(|(key, number)| println!("fact {key} {number}"));
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..20_000))).await;
    }
}

async fn say_durable(journal: &Journal) {
    let mut durable = journal.durable();
    while durable.changed().await.is_ok() {
        let durable = *durable.borrow_and_update();
        println!("durable {} {}", durable.point.position.0, durable.batch);
    }
}

/// Gives up what has been durable for a second or two.
async fn trim(journal: &Journal) {
    let mut past = VecDeque::new();
    loop {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..300))).await;
        past.push_back(*journal.durable().borrow());
        if past.len() > 8 {
            let durable = past.pop_front().unwrap();
            println!("trim {} {}", durable.batch, durable.point.position.0);
            journal.trim(durable.batch);
        }
    }
}
