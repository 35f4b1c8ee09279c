//! The fault campaign: round after round of work and random faults on one appliance, then proof.
//!
//! A round is a few seconds of workload during which some faults strike, SIGKILL always among them, and
//! the store answers a few requests with an error, of which all come round. Then all heals, the gateway
//! catches up, and the round is proven (`oracle`): `verify` says PROVEN and so does `tests/verify.py`, a
//! restore that goes on in the same database is equal table by table, no change stands in the lake twice,
//! no upload is open, no alarm is left, and the ledger tells of those gaps that there were, and no others.
//!
//! Every [`ROUNDS_PER_SITE`] rounds the appliance, its database, standby and store are made anew, so that
//! a thousand rounds take no more room than these, and each as long as the others. Before that the whole
//! lake is read by readers that are not ours, and restored from nothing. Every second site has the box's
//! data on a file system of 160 MiB, and a clock of its own that can be set.
//!
//! `make campaign ROUNDS=1000 SEED=7` runs it long; round `n` of a seed draws the same faults always. A
//! round that failed is had again with the site that it was in: `FROM` is that site's first round.

mod faults;
mod oracle;
mod refusals;
mod report;
mod site;
mod strike;

use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use self::{
    faults::{Fault, Ground, draw},
    report::{Open, Report},
    site::Site,
};

/// Rounds that every run of the tests makes.
const ROUNDS: u64 = 20;
/// Meets all that is rare.
const SEED: u64 = 6_870;
/// Rounds until all is made anew.
const ROUNDS_PER_SITE: u64 = 13;
/// So much beside the reserve (32 MiB), once all is in the lake, and the box reads on: a queue's worth (8 MiB),
/// and what its open segment and its index hold.
const RESUMES_BYTES: u64 = 12 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_every_round_of_faults_all_is_there_once() {
    let rounds = number("LAKEHEAD_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("LAKEHEAD_SEED").unwrap_or(SEED);
    // Rounds are numbered from 1.
    let from = number("LAKEHEAD_FROM").unwrap_or(1).max(1);
    let mut report = Report::new(seed, from, rounds);
    let mut next = from;
    while next <= rounds {
        let number = site_of(next);
        let last = ((number + 1) * ROUNDS_PER_SITE).min(rounds);
        rounds_of_site(seed, number, next..=last, &mut report).await;
        report.sum();
        next = last + 1;
    }
}

/// Some rounds on one site, and its end.
async fn rounds_of_site(
    seed: u64,
    number: u64,
    rounds: std::ops::RangeInclusive<u64>,
    report: &mut Report,
) {
    let ground = ground(number);
    let open = |round| Open {
        round,
        again: format!("make campaign SEED={seed} FROM={} ROUNDS={round}", rounds.start()),
        kept: format!("target/it/campaign-{seed}"),
    };
    let begun = open(*rounds.start());
    let mut site = Box::pin(Site::new(seed, number, ground)).await;
    drop(begun);
    for round in rounds.clone() {
        let open = open(round);
        Box::pin(one_round(&mut site, seed, round, report)).await;
        drop(open);
    }
    let open = open(*rounds.end());
    let read = site.prove_whole().await;
    let peak = site.world.peak_bytes() >> 20;
    eprintln!("site {} proven; {peak} MiB resident at most; the lake: {read}", number + 1);
    drop(open);
    site.end().await;
}

/// One round, and its proof.
async fn one_round(site: &mut Site, seed: u64, round: u64, report: &mut Report) {
    let (own, ground) = (own_seed(seed, round), ground(site_of(round)));
    let plan = draw(&mut Rng::with_seed(own), round, ground);
    report.begin(round, ground.name(), &plan);
    let has = |meant: fn(&Fault) -> bool| plan.faults.iter().any(|(_, fault)| meant(fault));
    if has(|fault| matches!(fault, Fault::Failover { .. })) {
        site.ready_standby().await;
    }
    // With less, or while the journal holds the beginning of a transaction that does not fit, the box stays paused until
    // somebody makes room, as it says of itself.
    let filled = has(|fault| matches!(fault, Fault::Filled(room) if *room >= RESUMES_BYTES))
        && !has(|fault| matches!(fault, Fault::Crowded(_)))
        && !plan.large;
    let stop = CancellationToken::new();
    let (work, large) = (site.work(own, round, stop.clone()), site.work_large(own));
    let large = async {
        if plan.large {
            large.await;
        }
    };
    let strike = async {
        site.strike(plan.clone()).await;
        stop.cancel();
    };
    tokio::join!(work, large, strike);
    site.heal(filled, plan.patient);
    report.hear(&site.world.bucket.double.requests());
    site.prove().await;
    report.end(round, &site.holds());
}

/// The site that a round is on, from 0.
fn site_of(round: u64) -> u64 {
    (round - 1) / ROUNDS_PER_SITE
}

/// Every second site is small, and has a clock of its own.
fn ground(site: u64) -> Ground {
    let odd = site % 2 == 1;
    Ground { small: odd, clock: odd }
}

fn own_seed(seed: u64, round: u64) -> u64 {
    seed.wrapping_mul(1_000_003).wrapping_add(round)
}

#[test]
fn the_rounds_of_every_run_meet_what_is_rare() {
    let plan =
        |round| draw(&mut Rng::with_seed(own_seed(SEED, round)), round, ground(site_of(round)));
    let drawn = (1..=ROUNDS).flat_map(|round| plan(round).faults);
    let drawn: Vec<String> = drawn.map(|(_, fault)| fault.kind()).collect();
    for wanted in RARE {
        assert!(
            drawn.iter().any(|kind| kind.starts_with(wanted)),
            "{wanted} is not among {drawn:?}"
        );
    }
}

/// What no run of the tests may be without.
const RARE: [&str; 17] = [
    "SIGTERM",
    "SIGSTOP",
    "EIO",
    "ENOSPC",
    "Source Cut",
    "Source HalfOpen",
    "Lake HalfOpen",
    "Lake Stall",
    "Store LoseAnswer",
    "Credentials",
    "BoxClock",
    "Server Fast",
    "Server Immediate",
    "Failover with the slot",
    "Failover without the slot",
    "Disk filled by the journal",
    "Disk filled by a stranger",
];

#[expect(clippy::disallowed_methods, reason = "how long a campaign runs is said from outside")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}
