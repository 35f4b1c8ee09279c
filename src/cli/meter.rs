//! Progress of a long command on standard error: how far, how fast, how long still.
//!
//! On a terminal one line, drawn again; elsewhere a plain line every few seconds, so that a log of a job
//! that hangs can be told from one of a job that works. Work comes in phases, each with a rate of its own.

use std::{
    fmt,
    io::{IsTerminal, stderr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::output::{printable, to_stderr};
use crate::{clock::Clock, units::ByteSize};

/// Shows the progress of one command.
pub(super) struct Meter {
    clock: Arc<dyn Clock>,
    manner: Manner,
    phase: Option<Phase>,
    shown_at: Instant,
    /// Whether a drawn line is still to be ended.
    drawn: bool,
}

/// How far a phase is.
#[derive(Clone, Debug)]
pub(super) struct Step<'a> {
    /// What is being done, with what is counted: `restore: rows`. A phase lasts as long as its name.
    pub(super) phase: &'a str,
    /// Done so far, by earlier runs too.
    pub(super) done: u64,
    /// In all, if that is known.
    pub(super) all: Option<u64>,
    /// Whether bytes are counted.
    pub(super) bytes: bool,
    /// What else there is to say; may be empty.
    pub(super) more: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    Silent,
    Plain,
    Drawn,
}

/// What a phase's rate is computed from: two marks, the older one dropped when the younger has aged.
struct Phase {
    name: String,
    older: (Instant, u64),
    younger: (Instant, u64),
}

impl Meter {
    /// A meter that shows nothing if `quiet` is wanted.
    pub(super) fn new(clock: &Arc<dyn Clock>, quiet: bool) -> Self {
        let manner = match (quiet, stderr().is_terminal()) {
            (true, _) => Manner::Silent,
            (false, true) => Manner::Drawn,
            (false, false) => Manner::Plain,
        };
        let (clock, shown_at) = (Arc::clone(clock), clock.now());
        Self { clock, manner, phase: None, shown_at, drawn: false }
    }

    /// Shows how far it is, if that was not shown just now.
    pub(super) fn show(&mut self, step: &Step<'_>) {
        let now = self.clock.now();
        let phase = self.phase.get_or_insert_with(|| Phase::new(step, now));
        if phase.name != step.phase {
            *phase = Phase::new(step, now);
        }
        phase.mark(step.done, now);
        let pause = if self.manner == Manner::Drawn { DRAW_EVERY } else { TELL_EVERY };
        let whole = self.manner == Manner::Drawn && Some(step.done) == step.all;
        let recent = now.saturating_duration_since(self.shown_at) < pause && !whole;
        if self.manner == Manner::Silent || recent {
            return;
        }
        self.shown_at = now;
        let line = printable(&line(step, phase.rate_per_s(step.done, now)));
        self.drawn = self.manner == Manner::Drawn;
        match self.manner {
            Manner::Drawn => to_stderr(&format!("\r\x1b[K{line}")),
            Manner::Plain | Manner::Silent => to_stderr(&format!("{line}\n")),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.drawn {
            to_stderr("\n");
        }
    }
}

impl Phase {
    fn new(step: &Step<'_>, now: Instant) -> Self {
        let mark = (now, step.done);
        Self { name: step.phase.into(), older: mark, younger: mark }
    }

    fn mark(&mut self, done: u64, now: Instant) {
        if now.saturating_duration_since(self.younger.0) >= WINDOW {
            self.older = std::mem::replace(&mut self.younger, (now, done));
        }
    }

    /// Over the last one or two windows; `None` while there is too little to tell.
    fn rate_per_s(&self, done: u64, now: Instant) -> Option<f64> {
        let (since, before) = self.older;
        let span = now.saturating_duration_since(since);
        let rate = count(done.saturating_sub(before)) / span.as_secs_f64().max(f64::MIN_POSITIVE);
        (span >= SPAN_MIN).then_some(rate)
    }
}

/// One line, without its end.
fn line(step: &Step<'_>, rate_per_s: Option<f64>) -> String {
    let Step { phase, done, all, bytes, more } = step;
    let amount = |amount: u64| match bytes {
        true => ByteSize(amount).to_string(),
        false => amount.to_string(),
    };
    let mut line = match all {
        Some(all) => {
            let percent = (100 * u128::from(*done)).checked_div((*all).into()).unwrap_or(100);
            format!("{phase} {} of {} ({percent} %)", amount(*done), amount(*all))
        }
        None => format!("{phase} {} of an unknown number", amount(*done)),
    };
    match (rate_per_s, all.map(|all| all.saturating_sub(*done))) {
        (None, _) => {}
        (Some(rate), left) => {
            let shown = if *bytes || rate >= 10.0 { rate.round() } else { rate };
            line += &match bytes {
                true => format!(", {}/s", ByteSize(whole(shown))),
                false if rate >= 10.0 => format!(", {}/s", whole(shown)),
                false => format!(", {shown:.1}/s"),
            };
            match left {
                None | Some(0) => {}
                Some(_) if rate <= 0.0 => line += ", time left unknown",
                Some(left) => {
                    let left = Duration::try_from_secs_f64(count(left) / rate);
                    line += &format!(", {} left", Left(left.unwrap_or(Duration::MAX)));
                }
            }
        }
    }
    if !more.is_empty() {
        line += &format!("; {more}");
    }
    line
}

/// A span of time as people say it: no finer than its worth.
struct Left(Duration);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64().ceil();
        let (minutes, hours) = (whole(seconds / 60.0), whole(seconds / 3600.0));
        match hours {
            0 if seconds < 120.0 => write!(f, "{seconds} s"),
            0 | 1 => write!(f, "{minutes} min"),
            2..48 => write!(f, "{hours} h {} min", minutes % 60),
            _ => write!(f, "{} d", hours / 24),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn count(amount: u64) -> f64 {
    amount as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and amounts are positive"
)]
fn whole(amount: f64) -> u64 {
    amount as u64
}

const DRAW_EVERY: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A rate is of the last one or two of these.
const WINDOW: Duration = Duration::from_secs(15);
/// A rate over less than this says nothing.
const SPAN_MIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn step(done: u64, all: Option<u64>) -> Step<'static> {
        Step { phase: "restore: rows", done, all, bytes: false, more: String::new() }
    }

    #[test]
    fn a_line_has_rate_and_time_left() {
        let some = step(50, Some(200));
        assert_eq!(line(&some, None), "restore: rows 50 of 200 (25 %)");
        assert_eq!(line(&some, Some(2.5)), "restore: rows 50 of 200 (25 %), 2.5/s, 60 s left");
        assert_eq!(
            line(&some, Some(0.0)),
            "restore: rows 50 of 200 (25 %), 0.0/s, time left unknown"
        );
        let none = step(0, Some(0));
        assert_eq!(line(&none, Some(1.0)), "restore: rows 0 of 0 (100 %), 1.0/s");
        let unknown = Step { more: "public.t".into(), ..step(1000, None) };
        assert_eq!(
            line(&unknown, Some(99.5)),
            "restore: rows 1000 of an unknown number, 100/s; public.t"
        );
        let bytes = Step { bytes: true, ..step(1 << 20, Some(3 << 20)) };
        assert_eq!(
            line(&bytes, Some(1024.0)),
            "restore: rows 1.0 MiB of 3.0 MiB (33 %), 1.0 KiB/s, 34 min left"
        );
    }

    #[test]
    fn a_span_is_said_no_finer_than_it_is_worth() {
        let said = |seconds| Left(Duration::from_secs_f64(seconds)).to_string();
        let spans = [0.1, 119.0, 120.5, 7199.0, 7260.0, 200_000.0];
        assert_eq!(spans.map(said), ["1 s", "119 s", "2 min", "119 min", "2 h 1 min", "2 d"]);
        assert!(Left(Duration::MAX).to_string().ends_with(" d"));
    }

    #[test]
    fn a_rate_is_that_of_the_last_moments_and_not_of_earlier_runs() {
        let begun = SystemClock.now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        // An earlier run did a million.
        let mut phase = Phase::new(&step(1_000_000, None), begun);
        assert_eq!(phase.rate_per_s(1_000_001, begun + SPAN_MIN / 2), None);
        let mut done = 1_000_000;
        for second in 1..=60 {
            done += if second <= 20 { 10 } else { 1000 };
            phase.mark(done, at(second));
        }
        let rate = phase.rate_per_s(done, at(60)).unwrap();
        assert!((rate - 1000.0).abs() < 1.0, "{rate}");
    }
}
