//! Our S3 side against stores that others wrote: `make conformance`, which runs this inside
//! `enclose.sh` with the folder that `install.sh` filled.
//!
//! The double is strict, and ours: what we misunderstood of S3, it misunderstands too. Ceph RGW and
//! LocalStack were written by others, and complement each other: the one enforces signatures, users and
//! clocks, the other the rules of the requests. What each is known to do otherwise is in [`differences`].
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs,
    reason = "checks end by panicking and talk to whoever runs them"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use lakehead::{
    clock::{Clock, SystemClock},
    ship::suite,
};

use self::{
    differences::DIFFERENCES,
    store::{Ground, Store},
    table::{Check, Row, keep_panics, text},
};

mod chain;
mod differences;
mod losing;
mod people;
mod refusals;
mod requests;
mod road;
mod shipping;
mod store;
mod table;

/// `conformance DIR [STORE|WORD]...`: all checks at all stores, or those whose names have one of the words.
fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(dir) = words.next().map(PathBuf::from) else {
        println!("`make conformance` runs this");
        return ExitCode::from(2);
    };
    let words: Vec<String> = words.collect();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    let (end, ended) = mpsc::channel();
    std::thread::spawn(move || end.send(runtime.block_on(run(&dir, &words))));
    match ended.recv_timeout(RUN_MAX) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(RecvTimeoutError::Disconnected) => ExitCode::FAILURE,
        // What it started ends with it: it is the first process of its namespace.
        Err(RecvTimeoutError::Timeout) => {
            println!("not ended after {RUN_MAX:?}");
            ExitCode::from(3)
        }
    }
}

async fn run(dir: &Path, words: &[String]) -> bool {
    let (mut checks, mut stores) = (all(), Store::ALL.to_vec());
    for known in DIFFERENCES {
        let there = checks.iter().any(|check| check.name == known.check);
        assert!(there, "differences.rs names no check: {}", known.check);
    }
    let named = |store: &Store| words.iter().any(|word| word == store.name());
    if stores.iter().any(named) {
        stores.retain(named);
    }
    let words: Vec<_> =
        words.iter().filter(|word| Store::ALL.iter().all(|store| store.name() != *word)).collect();
    if !words.is_empty() {
        checks.retain(|check| words.iter().any(|word| check.name.contains(*word)));
    }
    let mut rows = vec![];
    for store in &stores {
        println!("starting {}", store.name());
        let mut ground = Ground::open(*store, dir).await;
        keep_panics();
        for check in &checks {
            let begun = SystemClock.now();
            let outcome = check.outcome(&ground).await;
            let took = SystemClock.now().duration_since(begun);
            println!("{:>10} {} {}", store.name(), outcome.sign(), check.name);
            rows.push(Row { check: check.name, store: *store, outcome, took });
            if !ground.runs() {
                println!("{} has ended by itself: see {}", store.name(), ground.dir.display());
                return false;
            }
        }
        drop(std::panic::take_hook());
        let dir = ground.dir.clone();
        drop(ground);
        // Of what failed, the logs and the data stay.
        if rows.iter().all(|row| row.outcome.good()) {
            fs::remove_dir_all(dir).unwrap();
        }
    }
    println!("{}", text(&checks, &stores, &rows));
    !rows.is_empty() && rows.iter().all(|row| row.outcome.good())
}

fn all() -> Vec<Check> {
    let mut checks: Vec<_> = suite::CHECKS.iter().map(Check::suite).collect();
    checks.extend(requests::all());
    checks.extend(refusals::all());
    checks.extend(shipping::all());
    checks.extend(chain::all());
    checks.extend(people::all());
    checks.extend(road::all());
    checks
}

/// All takes ten minutes on two cores.
const RUN_MAX: Duration = Duration::from_mins(45);
