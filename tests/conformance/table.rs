//! What a check is, what came of it at each store, and the table of both.

use std::{
    panic::AssertUnwindSafe,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use lakehead::ship::suite;

use crate::{
    differences::{DIFFERENCES, Difference},
    store::{Ground, PREFIX, Store},
};

/// Something that must hold at every store.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    /// Of the suite that the double and `memory.rs` pass too.
    Suite(&'static suite::Check),
    Ours(for<'a> fn(&'a Ground) -> LocalBoxFuture<'a, ()>),
}

/// Checks out of functions of their names.
macro_rules! checks {
    ($($name:ident,)+) => {
        vec![$($crate::table::Check::ours(stringify!($name), |ground| Box::pin($name(ground)))),+]
    };
}
pub(crate) use checks;

/// What came of a check at a store.
#[derive(Debug)]
pub(crate) enum Outcome {
    Holds,
    /// It fails, as is known of this store.
    Differs(&'static Difference),
    /// It fails; why.
    Fails(String),
    /// It holds, though the list says otherwise.
    HoldsAfterAll(&'static Difference),
}

/// One run of one check.
pub(crate) struct Row {
    pub(crate) check: &'static str,
    pub(crate) store: Store,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

/// Where the last panic was, and what it said.
static PANIC: Mutex<String> = Mutex::new(String::new());

impl Check {
    pub(crate) fn suite(check: &'static suite::Check) -> Self {
        Self { name: check.name, run: Run::Suite(check) }
    }

    pub(crate) fn ours(
        name: &'static str,
        run: for<'a> fn(&'a Ground) -> LocalBoxFuture<'a, ()>,
    ) -> Self {
        Self { name, run: Run::Ours(run) }
    }

    /// What comes of it here.
    pub(crate) async fn outcome(&self, ground: &Ground) -> Outcome {
        let known = DIFFERENCES
            .iter()
            .find(|known| known.store == ground.store && known.check == self.name);
        let run = AssertUnwindSafe(self.run(ground)).catch_unwind();
        let Ok(ended) = tokio::time::timeout(CHECK_MAX, run).await else {
            return Outcome::Fails(format!("not ended after {CHECK_MAX:?}"));
        };
        match (ended, known) {
            (Ok(()), None) => Outcome::Holds,
            (Ok(()), Some(known)) => Outcome::HoldsAfterAll(known),
            (Err(_), known) => {
                let said = PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone();
                match known.filter(|known| said.contains(known.shows)) {
                    Some(known) => Outcome::Differs(known),
                    None => Outcome::Fails(said),
                }
            }
        }
    }

    async fn run(&self, ground: &Ground) {
        match self.run {
            Run::Ours(run) => run(ground).await,
            Run::Suite(check) => {
                let (writer, reader) = (&ground.people.writer, &ground.people.reader);
                let (writer, reader) = (ground.s3(writer), ground.s3(reader));
                let prefix = format!("{PREFIX}/suite");
                check.run(&writer, &reader, &prefix, &ground.dir).await;
            }
        }
    }
}

/// Keeps what panics say, instead of printing it.
pub(crate) fn keep_panics() {
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
}

impl Outcome {
    pub(crate) fn good(&self) -> bool {
        matches!(self, Self::Holds | Self::Differs(_))
    }

    pub(crate) fn sign(&self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Differs(_) => "differs",
            Self::Fails(_) => "FAILS",
            Self::HoldsAfterAll(_) => "HOLDS",
        }
    }
}

/// The table, and below it the differences and what failed.
pub(crate) fn text(checks: &[Check], stores: &[Store], rows: &[Row]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut lines = vec![String::new()];
    let of = |check: &Check, store: &Store| {
        let row = rows.iter().find(|row| row.check == check.name && row.store == *store);
        row.map_or("-".into(), |row| {
            format!("{} {:.1} s", row.outcome.sign(), row.took.as_secs_f64())
        })
    };
    let heads = stores.iter().map(|store| format!("  {:<16}", store.name())).collect::<String>();
    lines.push(format!("{:width$}{heads}", ""));
    for check in checks {
        let cells = stores.iter().map(|store| format!("  {:<16}", of(check, store)));
        lines.push(format!("{:width$}{}", check.name, cells.collect::<String>()));
    }
    for Row { check, store, outcome, .. } in rows {
        let place = format!("{} at {}", check, store.name());
        match outcome {
            Outcome::Holds => {}
            Outcome::Differs(known) => {
                lines.push(format!("\n{place} differs: {} ({})", known.reason, known.source));
            }
            Outcome::Fails(said) => lines.push(format!("\n{place} FAILS: {said}")),
            Outcome::HoldsAfterAll(known) => lines.push(format!(
                "\n{place} HOLDS, though differences.rs says otherwise; strike it: {}",
                known.reason
            )),
        }
    }
    let good = rows.iter().filter(|row| row.outcome.good()).count();
    let differ = rows.iter().filter(|row| matches!(row.outcome, Outcome::Differs(_))).count();
    lines.push(format!("\n{good} of {} as they must be, {differ} known differences", rows.len()));
    lines.join("\n")
}

/// A check takes a minute at most on a machine that is not busy.
const CHECK_MAX: Duration = Duration::from_mins(5);
