//! What systemd hears of the gateway: ready, stopping, a line of status, and a ping while it makes progress.
//! <https://www.freedesktop.org/software/systemd/man/252/sd_notify.html>
//!
//! **Invariant:** no ping is sent while a registered loop is late, or while this loop itself hangs.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::{
    telemetry::{heartbeat::Heartbeat, report::Report},
    units::ByteSize,
};

/// The connection to systemd; without it, as when started by hand, all of this does nothing.
#[derive(Debug)]
pub(super) struct Service {
    heartbeat: Heartbeat,
    /// The watchdog's limit, if it watches.
    limit: Option<Duration>,
    pinged: Option<Instant>,
    late: Vec<String>,
    line: String,
}

impl Service {
    pub(super) fn new(heartbeat: Heartbeat) -> Self {
        let limit = sd_notify::watchdog_enabled();
        Self { heartbeat, limit, pinged: None, late: vec![], line: String::new() }
    }

    /// Recovery is done.
    pub(super) fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    pub(super) fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// The process stops, begins anew, and says then that it is ready.
    pub(super) fn reloading(&self) {
        // The time is asked for by newer ones, of a service that says when it reloads.
        let since = NotifyState::monotonic_usec_now().ok();
        notify(&[Some(NotifyState::Reloading), since].into_iter().flatten().collect::<Vec<_>>());
    }

    /// To be called every second.
    pub(super) fn tick(&mut self, now: Instant, report: &Report) {
        if self.may_ping(now) && self.limit.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        let line = status_line(report);
        if line != self.line {
            notify(&[NotifyState::Status(&line)]);
            self.line = line;
        }
    }

    /// Whether it is time for a ping, and everything goes round.
    fn may_ping(&mut self, now: Instant) -> bool {
        let late = self.heartbeat.late(now);
        let names: Vec<String> = late.iter().map(|late| late.name.clone()).collect();
        if names != self.late {
            for late in &late {
                let (name, silent_s) = (&late.name, late.silent.as_secs());
                tracing::error!(name, silent_s, "a loop hangs: the watchdog will end the process");
            }
            self.late = names;
        }
        let due = self.pinged.is_none_or(|last| {
            let pause = self.limit.unwrap_or(Duration::MAX) / PINGS_IN_LIMIT;
            now.saturating_duration_since(last) >= pause
        });
        let ping = due && late.is_empty();
        if ping {
            self.pinged = Some(now);
        }
        ping
    }
}

/// `erp: streaming, 0.4 s behind, journal 1.2 GiB of 50.0 GiB; …`
fn status_line(report: &Report) -> String {
    let one = |(name, source): (&String, &crate::telemetry::report::SourceReport)| {
        let status = &source.status;
        let state = format!("{:?}", status.state).to_lowercase();
        let behind = source.lag_s.round();
        let (bytes, max) = (ByteSize(status.journal_bytes), ByteSize(status.journal_bytes_max));
        let alarms = match status.alarms.len() {
            0 => String::new(),
            some => format!(", {some} alarms"),
        };
        format!("{name}: {state}, {behind} s behind, journal {bytes} of {max}{alarms}")
    };
    match report.ready {
        true => report.sources.iter().map(one).collect::<Vec<_>>().join("; "),
        false => "recovering".into(),
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd does not hear");
    }
}

/// Three pings within the limit: one may be late.
const PINGS_IN_LIMIT: u32 = 3;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        telemetry::{board::Board, report::Reporter},
    };

    #[test]
    fn systemd_is_pinged_only_while_every_loop_goes_round() {
        let start = SystemClock.now();
        let second = Duration::from_secs(1);
        let heartbeat = Heartbeat::default();
        let beat = heartbeat.register("seal erp", 5 * second, start);
        let limit = Some(30 * second);
        let mut service = Service { limit, ..Service::new(heartbeat) };
        assert!(service.may_ping(start));
        assert!(!service.may_ping(start + second), "not more often than needed");
        assert!(!service.may_ping(start + 10 * second), "the loop is late");
        beat.tick(start + 11 * second);
        assert!(service.may_ping(start + 11 * second), "it goes round again");
    }

    #[test]
    fn the_line_names_each_source() {
        let board = Board::default();
        board.source("crm");
        board.source("erp").write(|status| status.journal_bytes_max = 50 << 30);
        let reporter = Reporter::new("a", board, Heartbeat::default(), Arc::new(SystemClock));
        assert_eq!(status_line(&reporter.report()), "recovering");
        reporter.ready();
        let line = status_line(&reporter.report());
        assert_eq!(
            line,
            "crm: starting, 0 s behind, journal 0 B of 0 B; erp: starting, 0 s behind, journal 0 B of 50.0 GiB"
        );
    }
}
