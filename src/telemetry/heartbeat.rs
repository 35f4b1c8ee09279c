//! Heartbeats: whether every loop still goes round. The watchdog pings systemd only while all do.
//!
//! **Invariant:** a loop that hangs is late for as long as it hangs; one that ended by itself is not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// All loops that promised to tick.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat(Arc<Mutex<Loops>>);

/// One loop's promise to tick; taken back when dropped.
#[derive(Debug)]
pub struct Beat {
    heart: Heartbeat,
    id: u64,
}

/// A loop that has not ticked within its limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Late {
    /// Its name.
    pub name: String,
    /// How long ago it last ticked.
    pub silent: Duration,
}

#[derive(Debug, Default)]
struct Loops {
    next: u64,
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    limit: Duration,
    /// `None` while it rests.
    ticked: Option<Instant>,
}

impl Heartbeat {
    /// Registers a loop that will [`Beat::tick`] at least every `limit`, from `now` on.
    pub fn register(&self, name: impl Into<String>, limit: Duration, now: Instant) -> Beat {
        let running = Running { name: name.into(), limit, ticked: Some(now) };
        let id = self.with(|loops| {
            loops.next += 1;
            loops.running.insert(loops.next, running);
            loops.next
        });
        Beat { heart: self.clone(), id }
    }

    /// The loops that are late at `now`; empty when all is well.
    pub fn late(&self, now: Instant) -> Vec<Late> {
        self.with(|loops| {
            let silent = |one: &Running| {
                let silent = now.saturating_duration_since(one.ticked?);
                (silent > one.limit).then(|| Late { name: one.name.clone(), silent })
            };
            loops.running.values().filter_map(silent).collect()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Loops) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Beat {
    /// The loop has gone round, and did what it had to.
    pub fn tick(&self, now: Instant) {
        self.set(Some(now));
    }

    /// The loop waits for something that may never come, such as work: it is not late until it ticks again.
    pub fn rest(&self) {
        self.set(None);
    }

    fn set(&self, ticked: Option<Instant>) {
        self.heart.with(|loops| {
            if let Some(one) = loops.running.get_mut(&self.id) {
                one.ticked = ticked;
            }
        });
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.heart.with(|loops| drop(loops.running.remove(&self.id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn one_loop_that_hangs_is_late_whatever_the_others_do() {
        let start = SystemClock.now();
        let heart = Heartbeat::default();
        let hangs = heart.register("ship erp", LIMIT, start);
        let goes = heart.register("seal erp", LIMIT, start);
        goes.tick(start + LIMIT * 2);
        assert_eq!(heart.late(start + LIMIT), []);
        let late = heart.late(start + LIMIT * 2);
        assert_eq!(late, [Late { name: "ship erp".into(), silent: LIMIT * 2 }]);
        hangs.tick(start + LIMIT * 2);
        assert_eq!(heart.late(start + LIMIT * 2), []);
    }

    #[test]
    fn a_loop_that_rests_or_ended_is_not_late() {
        let start = SystemClock.now();
        let heart = Heartbeat::default();
        let rests = heart.register("ship erp", LIMIT, start);
        rests.rest();
        assert_eq!(heart.late(start + LIMIT * 9), []);
        rests.tick(start + LIMIT * 9);
        assert_eq!(heart.late(start + LIMIT * 11).len(), 1);
        drop(rests);
        assert_eq!(heart.late(start + LIMIT * 11), []);
    }
}
