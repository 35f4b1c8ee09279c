//! The fault campaign: round after round of work and random faults on one appliance, then proof.
//!
//! A round is a few seconds of workload during which two or three faults strike, SIGKILL always among
//! them. Then all heals, the gateway catches up, and: `verify` says PROVEN, a restore that goes on in
//! the same database is equal table by table, no change stands in the lake twice, no upload is open.
//! The last round reads the whole lake with the readers that are not ours and restores it from nothing.
//!
//! `make campaign ROUNDS=1000 SEED=7` runs it long; round `n` of a seed draws the same faults always.

mod faults;
mod round;

use self::round::Campaign;

/// Rounds that every run of the tests makes.
const ROUNDS: u64 = 25;
const SEED: u64 = 20_261_125;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_every_round_of_faults_all_is_there_once() {
    let rounds = number("LAKEHEAD_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("LAKEHEAD_SEED").unwrap_or(SEED);
    let mut campaign = Campaign::new(seed).await;
    for round in 0..rounds {
        campaign.round(round, rounds).await;
    }
    campaign.end().await;
}

#[expect(clippy::disallowed_methods, reason = "how long a campaign runs is said from outside")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}
