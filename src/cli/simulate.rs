//! `lakehead simulate`: runs seeds of the simulation, or one of them with its chronicle. Only in builds with
//! the feature `sim`.

use std::{
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread::available_parallelism,
};

use clap::Args;
use serde_json::{Value, json};

use super::{Failure, Global, meter::Step};
use crate::{
    clock::{Clock, SystemClock},
    error::Exit,
    sim::{self, Outcome, Planted},
};

/// Which seeds.
#[derive(Args, Debug)]
pub(super) struct SimulateArgs {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Threads; one for each core if it is not given.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// Write what happens: of one seed.
    #[arg(long)]
    trace: bool,
    /// With this bug planted.
    #[arg(long, value_name = "BUG", value_parser = named)]
    planted: Option<Planted>,
    /// Go on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
}

/// What has been run so far.
#[derive(Default)]
struct Tally {
    seeds: u64,
    steps: u64,
    failed: u64,
}

/// Runs them. The exit code is 1 if one fails.
pub(super) fn simulate(global: &Global, args: &SimulateArgs) -> Result<Exit, Failure> {
    let output = global.output();
    if args.trace || args.seeds == 1 {
        let shown = args.trace.then(|| Box::new(std::io::stdout()) as Box<_>);
        let outcome = sim::run(args.from, args.planted, shown);
        output.tell(&as_json(&outcome), &told(&outcome));
        return Ok(exit(outcome.violation.is_none()));
    }
    let threads = args.threads.or(available_parallelism().ok()).map_or(1, NonZero::get);
    let (clock, end) = (SystemClock, args.from.saturating_add(args.seeds));
    let (began, tally) = (clock.now(), Mutex::new((Tally::default(), global.meter())));
    let each = |outcome: &Outcome| {
        let (tally, meter) = &mut *tally.lock().unwrap_or_else(PoisonError::into_inner);
        (tally.seeds, tally.steps) = (tally.seeds + 1, tally.steps + outcome.steps);
        tally.failed += u64::from(outcome.violation.is_some());
        meter.show(&Step {
            phase: "simulate: seeds",
            done: tally.seeds,
            all: Some(args.seeds),
            bytes: false,
            more: format!("{} failed", tally.failed),
        });
    };
    let mut next = args.from;
    while let Some(found) = sim::search(next, end - next, args.planted, threads, &each) {
        output.tell(&as_json(&found), &format!("{}\n{}", told(&found), again(&found, args)));
        next = found.seed + 1;
        if !args.keep_going {
            break;
        }
    }
    let (tally, meter) = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    drop(meter);
    let Tally { seeds, steps, failed } = tally;
    let took_s = clock.now().duration_since(began).as_secs().max(1);
    let summary = json!({ "seeds": seeds, "steps": steps, "failed": failed, "took_s": took_s });
    let text = format!(
        "{seeds} seeds from {}, {steps} steps, in {took_s} s ({}/s): {failed} failed",
        args.from,
        seeds / took_s
    );
    output.tell(&summary, &text);
    Ok(exit(failed == 0))
}

/// How to see it again, and whether that is the same.
fn again(found: &Outcome, args: &SimulateArgs) -> String {
    let same = sim::run(found.seed, args.planted, None) == *found;
    let exactly = if same { "replays exactly" } else { "does NOT replay exactly" };
    let bug = args.planted.map(|bug| format!(" --planted {}", bug.name())).unwrap_or_default();
    format!("  {exactly}: lakehead simulate --from {} --seeds 1{bug} --trace", found.seed)
}

fn told(outcome: &Outcome) -> String {
    let Outcome { seed, steps, hash, violation } = outcome;
    let what = match violation {
        None => "breaks nothing".into(),
        Some(broken) => format!("breaks {}: {}", broken.invariant, broken.what),
    };
    format!("seed {seed}, {steps} steps, hash {hash:016x}, {what}")
}

fn as_json(outcome: &Outcome) -> Value {
    let Outcome { seed, steps, hash, violation } = outcome;
    let broken = violation.as_ref().map(|broken| json!({ broken.invariant: broken.what }));
    json!({ "seed": seed, "steps": steps, "hash": format!("{hash:016x}"), "breaks": broken })
}

fn named(name: &str) -> Result<Planted, String> {
    Planted::named(name).ok_or_else(|| format!("it is one of {:?}", Planted::ALL))
}

fn exit(good: bool) -> Exit {
    if good { Exit::Done } else { Exit::Wanting }
}
