//! What a campaign says while it runs, and what it has done.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use lakehead::{
    clock::{Clock, SystemClock},
    demo::s3::Asked,
};

use super::{
    faults::{Fault, Plan},
    refusals,
};

/// Counts, and tells.
#[derive(Debug)]
pub(super) struct Report {
    seed: u64,
    rounds: u64,
    first: u64,
    began: Instant,
    round_began: Instant,
    done: u64,
    struck: BTreeMap<String, u32>,
    refused: BTreeSet<(&'static str, String)>,
    kills: u32,
}

/// A round that is not over. Dropped in a panic it says how to have it again.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) round: u64,
    pub(super) again: String,
    pub(super) kept: String,
}

impl Report {
    /// Of rounds `first` to `rounds`.
    pub(super) fn new(seed: u64, first: u64, rounds: u64) -> Self {
        let began = SystemClock.now();
        Self {
            seed,
            rounds,
            first,
            began,
            round_began: began,
            done: 0,
            struck: BTreeMap::new(),
            refused: BTreeSet::new(),
            kills: 0,
        }
    }

    /// A round begins.
    pub(super) fn begin(&mut self, round: u64, site: &str, plan: &Plan) {
        self.round_began = SystemClock.now();
        let Self { rounds, seed, .. } = self;
        let faults: Vec<String> = plan
            .faults
            .iter()
            .map(|(at, fault)| format!("{:.1} s {fault:?}", at.as_secs_f64()))
            .collect();
        let refusals: Vec<String> = plan
            .refusals
            .iter()
            .map(|rule| format!("{} {:?}", rule.operation, rule.fault))
            .collect();
        let large = if plan.large { ", a large transaction" } else { "" };
        eprintln!(
            "round {round} of {rounds}, seed {seed}, {site}: {}; {}{large}",
            faults.join(", "),
            refusals.join(", ")
        );
        for (_, fault) in &plan.faults {
            *self.struck.entry(fault.kind()).or_default() += 1;
            self.kills += match fault {
                Fault::Kill => 1,
                Fault::KillTwice(_) => 2,
                _ => 0,
            };
        }
    }

    /// What the store was asked in the round.
    pub(super) fn hear(&mut self, requests: &[Asked]) {
        for asked in requests {
            if let Some(fault) = asked.fault.as_ref().filter(|fault| fault.starts_with("Refuse")) {
                self.refused.insert((asked.operation, fault.clone()));
            }
        }
    }

    /// A round has been proven.
    pub(super) fn end(&mut self, round: u64, holds: &str) {
        self.done += 1;
        let now = SystemClock.now();
        let (took, all) = (now - self.round_began, (now - self.began).as_secs_f64());
        let left = self.rounds.saturating_sub(round);
        let eta_s = all / (self.done as f64) * left as f64;
        eprintln!(
            "round {round} proven in {:.1} s; {holds}; {:.1} rounds a minute, {:.0} min left",
            took.as_secs_f64(),
            self.done as f64 / all * 60.0,
            eta_s / 60.0
        );
    }

    /// All so far.
    pub(super) fn sum(&self) {
        eprintln!(
            "rounds {} to {} of seed {} proven, {} SIGKILLs; {} of {} pairs of a call and a code of the store; struck:",
            self.first,
            self.first + self.done - 1,
            self.seed,
            self.kills,
            self.refused.len(),
            refusals::count(),
        );
        for (kind, times) in &self.struck {
            eprintln!("  {times:5} {kind}");
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { round, again, kept } = self;
            eprintln!("round {round} FAILED; kept: {kept}; again: {again}");
        }
    }
}
