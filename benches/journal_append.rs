//! How fast the journal takes runs in, what that costs, and what it writes.
//!
//! `cargo bench --bench journal_append [-- FOLDER [MIB]]`: the folder's disk is what is measured.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench speaks to a person")]

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use lakehead::{
    clock::{Clock, SystemClock},
    config::Secret,
    journal::{Commit, Journal, Keep, Options, Piece, Run},
    shutdown::Tasks,
    telemetry::board::SourceBoard,
    units::Position,
};

mod cpu;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let folder = arguments.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mib: usize = arguments.next().map_or(512, |text| text.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    println!("payload        run      MB/s  CPU-s/GB  written/payload  syncs  p50 ms  p99 ms");
    for (name, payload) in [("noise", noise as fn(usize) -> Vec<u8>), ("rows", rows)] {
        for run_bytes in [16 << 10, 256 << 10, 1 << 20] {
            runtime.block_on(measure(&folder, name, payload(run_bytes), mib << 20));
        }
    }
}

async fn measure(folder: &std::path::Path, name: &str, bytes: Vec<u8>, total: usize) {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let board = SourceBoard::default();
    let options = Options {
        dir: dir.path().join("journal"),
        key: Secret::new(vec![7; 32]),
        max_bytes: 64 << 30,
        segment_bytes: 64 << 20,
    };
    let clock = SystemClock;
    let journal = Journal::open(options, board.clone(), Arc::new(clock), &Tasks::new()).unwrap();
    let mut durable = journal.durable();
    let runs = total / bytes.len();
    let (start, cpu, io) = (clock.now(), cpu::seconds(), written_bytes());
    for number in 1..=runs as u64 {
        journal.append(run(&bytes, number)).await.unwrap();
    }
    durable.wait_for(|durable| durable.batch == runs as u64).await.unwrap();
    let seconds = (clock.now() - start).as_secs_f64();
    let payload = (runs * bytes.len()) as f64;
    let (cpu, io) = (cpu::seconds() - cpu, (written_bytes() - io) as f64);
    let syncs = board.read().journal_syncs;

    // The latency of one commit on an idle journal.
    let mut waits = vec![];
    for number in 1..=100 {
        let start = clock.now();
        journal.append(run(&bytes[..1000], runs as u64 + number)).await.unwrap();
        durable.wait_for(|durable| durable.batch == runs as u64 + number).await.unwrap();
        waits.push(clock.now() - start);
    }
    waits.sort();
    journal.stop().await;
    println!(
        "{name:8} {:8} KiB {:9.0} {:9.2} {:16.3} {syncs:6} {:7.1} {:7.1}",
        bytes.len() >> 10,
        payload / seconds / 1e6,
        cpu / payload * 1e9,
        io / payload,
        millis(waits[50]),
        millis(waits[98]),
    );
}

fn run(bytes: &[u8], number: u64) -> Run {
    let (position, begins) = (Position(number * 10), Position(number * 10 - 1));
    let commit = Some(Commit { position, begins, ..Commit::default() });
    Run { piece: Piece::Whole, bytes: bytes.to_vec(), changes: 1, commit, ..Run::new(Piece::Whole) }
}

fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect()
}

/// Like the change stream of a table: numbers that count up, words, a little noise.
fn rows(bytes: usize) -> Vec<u8> {
    let mut text = vec![];
    for number in 0_u64.. {
        if text.len() >= bytes {
            break;
        }
        text.extend_from_slice(&number.to_be_bytes());
        text.extend_from_slice(&fastrand::u32(..).to_be_bytes());
        text.extend_from_slice(b"I\0\0\x40\x11N\0\x04t\0\0\0\x0aplant seven, line ");
        text.extend_from_slice(number.to_string().as_bytes());
    }
    text.truncate(bytes);
    text
}

fn written_bytes() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.unwrap().parse().unwrap()
}

fn millis(wait: Duration) -> f64 {
    wait.as_secs_f64() * 1e3
}
