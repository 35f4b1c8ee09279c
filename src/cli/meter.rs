//! Progress of a long command: one line on the terminal, with rate and ETA.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::clock::Clock;

/// Draws at most a few times a second, on standard error, and only if that is a terminal.
pub(super) struct Meter {
    name: &'static str,
    clock: Arc<dyn Clock>,
    begun: Instant,
    drawn: Option<Instant>,
    terminal: bool,
}

impl Meter {
    pub(super) fn new(name: &'static str, clock: &Arc<dyn Clock>) -> Self {
        let (clock, begun) = (Arc::clone(clock), clock.now());
        Self { name, clock, begun, drawn: None, terminal: stderr().is_terminal() }
    }

    /// Shows that `done` of `all` are done.
    pub(super) fn show(&mut self, done: u64, all: u64, more: &str) {
        let now = self.clock.now();
        let recent = self.drawn.is_some_and(|drawn| now - drawn < EVERY);
        if !self.terminal || (recent && done < all) {
            return;
        }
        self.drawn = Some(now);
        let line = line(self.name, done, all, now - self.begun, more);
        // A terminal that is gone is no reason to stop.
        write!(stderr(), "\r\x1b[K{line}").ok();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            writeln!(stderr()).ok();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn line(name: &str, done: u64, all: u64, spent: Duration, more: &str) -> String {
    let rate = done as f64 / spent.as_secs_f64().max(0.001);
    let eta_s = all.saturating_sub(done) as f64 / rate.max(0.001);
    let percent = 100.0 * done as f64 / all.max(1) as f64;
    format!("{name} {done}/{all} ({percent:.0} %), {rate:.1}/s, ETA {eta_s:.0} s, {more}")
}

const EVERY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_eta() {
        let line = line("verify", 50, 200, Duration::from_secs(5), "9 objects");
        assert_eq!(line, "verify 50/200 (25 %), 10.0/s, ETA 15 s, 9 objects");
    }
}
