//! The simulation, as much of it as a run of the tests has time for: `make simulate` goes on.

use std::thread::available_parallelism;

use lakehead::sim::{self, Planted};

fn search(from: u64, count: u64, planted: Option<Planted>) -> Option<sim::Outcome> {
    let threads = available_parallelism().map_or(2, usize::from);
    sim::search(from, count, planted, threads, &|_| {})
}

#[test]
fn no_seed_breaks_an_invariant() {
    assert_eq!(search(1, SEEDS, None), None);
}

#[test]
fn kept_seeds_break_nothing_any_more() {
    let lines = include_str!("../seeds/simulation").lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let seed = line.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(sim::run(seed, None, None).violation, None, "{line}");
    }
}

#[test]
fn a_seed_is_a_run() {
    // Most of those among them have two boxes.
    for seed in (600..640).chain([649, 676, 705, 755, 781, 818]) {
        assert_eq!(sim::run(seed, None, None), sim::run(seed, None, None));
    }
}

#[test]
fn each_planted_bug_is_found_within_ten_thousand_seeds() {
    for &bug in Planted::ALL {
        let found = search(1, 10_000, Some(bug));
        let found = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        eprintln!("{bug:?}: seed {}, {:?}", found.seed, found.violation);
        assert_eq!(sim::run(found.seed, Some(bug), None), found);
    }
}

/// Less than a minute on two cores, unoptimised.
const SEEDS: u64 = 500;
