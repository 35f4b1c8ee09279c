//! The short run, with the other tests: every target reads its corpus, and some seconds of what chance makes
//! of it. What breaks a promise is kept in `target/fuzz/found/` and belongs into the corpus, with the fix.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    reason = "tests end by panicking, and talk to whoever runs them"
)]

mod allocator;
mod mutate;
mod seeds;

use std::{
    collections::BTreeSet,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    time::{Duration, Instant},
};

use lakehead::fuzz::{TARGETS, Target};

/// Of each target, with the tests.
const TIME: Duration = Duration::from_secs(3);
/// One input takes far less, in a debug build on a busy machine too.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);

macro_rules! any_bytes {
    ($($test:ident: $name:literal,)+) => {
        $(#[test] fn $test() { run($name); })+
        const TESTED: &[&str] = &[$($name),+];
    };
}

any_bytes! {
    admin_takes_any_bytes: "admin",
    answers_takes_any_bytes: "answers",
    chain_takes_any_bytes: "chain",
    copy_takes_any_bytes: "copy",
    credentials_takes_any_bytes: "credentials",
    definition_takes_any_bytes: "definition",
    entry_takes_any_bytes: "entry",
    envelope_takes_any_bytes: "envelope",
    frame_takes_any_bytes: "frame",
    http_takes_any_bytes: "http",
    keys_takes_any_bytes: "keys",
    messages_takes_any_bytes: "messages",
    names_takes_any_bytes: "names",
    parquet_takes_any_bytes: "parquet",
    pgoutput_takes_any_bytes: "pgoutput",
    plaintext_takes_any_bytes: "plaintext",
    plans_takes_any_bytes: "plans",
    scram_takes_any_bytes: "scram",
    segment_takes_any_bytes: "segment",
    site_takes_any_bytes: "site",
    spool_takes_any_bytes: "spool",
    urls_takes_any_bytes: "urls",
    values_takes_any_bytes: "values",
    wire_takes_any_bytes: "wire",
}

#[test]
fn every_target_has_a_test_and_a_corpus() {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, TESTED);
    let folders = fs::read_dir("tests/fuzz/corpus").unwrap();
    let folders = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: BTreeSet<String> = folders.collect();
    assert_eq!(folders, names.iter().map(|name| (*name).to_owned()).collect());
}

fn run(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "tests/fuzz/corpus/{name} is empty");
    allocator::warm(target);
    corpus.iter().for_each(|input| held(target, input));
    let seed = fastrand::u64(..);
    let mut chance = fastrand::Rng::with_seed(seed);
    let (began, mut count) = (Instant::now(), 0_u64);
    while began.elapsed() < TIME {
        held(target, &mutate::mutated(&corpus, &mut chance));
        count += 1;
    }
    eprintln!("{name}: {} inputs of the corpus, {count} by chance, seed {seed}", corpus.len());
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = fs::read_dir(Path::new("tests/fuzz/corpus").join(name)).unwrap();
    let mut paths: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Holds a target to its promises; an input that breaks one is kept.
fn held(target: &Target, input: &[u8]) {
    let began = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| allocator::hold(target, input)));
    let took = began.elapsed();
    if done.is_ok() && took < INPUT_TIME_MAX {
        return;
    }
    let folder = Path::new("target/fuzz/found");
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(format!("{}-{:08x}", target.name, crc32(input)));
    fs::write(&path, input).unwrap();
    eprintln!("{} after {took:?}: the input is in {}", target.name, path.display());
    done.unwrap_or_else(|panic| resume_unwind(panic));
    panic!("{} took {took:?}", target.name);
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
