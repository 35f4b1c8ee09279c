//! Decides which position is confirmed to the source. Pure.
//!
//! Confirming means: the server may forget everything before. So (DESIGN §4):
//! - **I1** never beyond what is durable where the release rule asks for it;
//! - **I3** never back;
//! - **I4** only at the end of a transaction with which all before it are durable, or
//! - **I5** at a position that the server named while no transaction was open, if by now nothing is
//!   open, nothing is buffered and everything received is durable. Such a position lies beyond the
//!   journal's, so it is recorded as a fact *before* it is confirmed: after a restart a slot that
//!   stands there has lost nothing.

use crate::{config::Release, units::Position};

/// The rule and what it has led to.
#[derive(Debug)]
pub(crate) struct Confirm {
    rule: Release,
    wal_bytes_max: u64,
    /// With `auto`: whether the journal is enough at present.
    relaxed: bool,
    confirmed: Position,
    /// The greatest position beyond the journal's that may be confirmed: its fact is durable.
    allowed: Position,
}

/// What is known at the moment of deciding.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Now {
    /// End of the last whole transaction that the journal has fsynced.
    pub(crate) durable: Position,
    /// How far the ledger reaches.
    pub(crate) shipped: Position,
    /// End of the last transaction recorded, durable or not.
    pub(crate) recorded: Position,
    /// Whether a transaction is open.
    pub(crate) open: bool,
    /// Whether transactions are held that the journal has not been given.
    pub(crate) buffered: bool,
    /// The last position that the server named, or at which a transaction of no consequence ended,
    /// while none was open.
    pub(crate) quiet: Position,
    /// The end of the server's log.
    pub(crate) server: Position,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Decision {
    /// What may be confirmed; not less than before.
    pub(crate) confirm: Position,
    /// What may be confirmed as soon as the fact of it is durable: then call [`Confirm::allow`].
    pub(crate) record: Option<Position>,
}

impl Confirm {
    /// Begins where the slot stands: `confirmed` is what the server holds confirmed already.
    pub(crate) fn new(rule: Release, wal_bytes_max: u64, confirmed: Position) -> Self {
        Self { rule, wal_bytes_max, relaxed: false, confirmed, allowed: Position::default() }
    }

    /// The fact that `position` may be confirmed is durable.
    pub(crate) fn allow(&mut self, position: Position) {
        self.allowed = self.allowed.max(position);
    }

    /// Whether the ledger, not the journal, is what counts at present.
    pub(crate) fn waits_for_lake(&self) -> bool {
        match self.rule {
            Release::Lake => true,
            Release::Journal => false,
            Release::Auto => !self.relaxed,
        }
    }

    /// The position confirmed so far.
    pub(crate) fn confirmed(&self) -> Position {
        self.confirmed
    }

    /// Decides.
    pub(crate) fn decide(&mut self, now: &Now) -> Decision {
        let shipped = now.shipped.min(now.durable);
        self.relax(now, shipped);
        let base = if self.waits_for_lake() { shipped } else { now.durable };
        let all_safe = !now.open && !now.buffered && base >= now.recorded;
        let quiet = if all_safe { now.quiet } else { Position::default() };
        let record = (quiet > base.max(self.allowed).max(self.confirmed)).then_some(quiet);
        self.confirmed = self.confirmed.max(base).max(quiet.min(self.allowed));
        Decision { confirm: self.confirmed, record }
    }

    /// With `auto`: the journal is enough while the server keeps too much for us, until the ledger
    /// has caught up with what was confirmed meanwhile.
    fn relax(&mut self, now: &Now, shipped: Position) {
        let kept = now.server.0.saturating_sub(self.confirmed.0);
        if kept > self.wal_bytes_max {
            self.relaxed = true;
        } else if shipped >= self.confirmed.min(now.recorded) {
            self.relaxed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(durable: u64, shipped: u64, recorded: u64) -> Now {
        Now {
            durable: Position(durable),
            shipped: Position(shipped),
            recorded: Position(recorded),
            ..Now::default()
        }
    }

    fn confirm(rule: Release) -> Confirm {
        Confirm::new(rule, 1000, Position(0))
    }

    #[test]
    fn the_rule_says_whose_durability_counts() {
        assert_eq!(confirm(Release::Journal).decide(&at(50, 20, 60)).confirm, Position(50));
        assert_eq!(confirm(Release::Lake).decide(&at(50, 20, 60)).confirm, Position(20));
        assert_eq!(confirm(Release::Auto).decide(&at(50, 20, 60)).confirm, Position(20));
    }

    #[test]
    fn auto_lets_the_journal_count_while_the_server_keeps_too_much() {
        let mut auto = confirm(Release::Auto);
        let full = Now { server: Position(1100), ..at(900, 20, 900) };
        assert_eq!(auto.decide(&full).confirm, Position(900));
        assert!(!auto.waits_for_lake());
        // Still: the ledger is behind what was confirmed.
        auto.decide(&Now { server: Position(1200), ..at(1000, 30, 1000) });
        assert!(!auto.waits_for_lake());
        auto.decide(&Now { server: Position(1200), ..at(1000, 1000, 1000) });
        assert!(auto.waits_for_lake());
        assert_eq!(auto.decide(&at(1100, 1050, 1100)).confirm, Position(1050));
    }

    #[test]
    fn a_keepalives_position_counts_only_when_all_is_safe_and_its_fact_is_durable() {
        let quiet = |now: Now| Now { quiet: Position(100), ..now };
        let mut journal = confirm(Release::Journal);
        for unsafe_now in [
            Now { open: true, ..at(50, 50, 50) },
            Now { buffered: true, ..at(50, 50, 50) },
            at(40, 40, 50),
        ] {
            let decision = journal.decide(&quiet(unsafe_now));
            assert_eq!(decision.record, None);
            assert!(decision.confirm <= Position(50));
        }
        let decision = journal.decide(&quiet(at(50, 0, 50)));
        assert_eq!((decision.confirm, decision.record), (Position(50), Some(Position(100))));
        journal.allow(Position(100));
        let decision = journal.decide(&quiet(at(50, 0, 50)));
        assert_eq!((decision.confirm, decision.record), (Position(100), None));
        let mut lake = confirm(Release::Lake);
        lake.allow(Position(100));
        assert_eq!(lake.decide(&quiet(at(50, 49, 50))).confirm, Position(49));
        assert_eq!(lake.decide(&quiet(at(50, 50, 50))).confirm, Position(100));
    }

    /// A road in small: transactions are sent, recorded, made durable, shipped, in that order.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Begin,
        Commit,
        Give,
        Sync,
        Ship,
        Keepalive,
        Allow,
        Grow,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        use Step::*;
        let step =
            prop::sample::select(vec![Begin, Commit, Give, Sync, Ship, Keepalive, Allow, Grow]);
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// I1, I3, I4, I5 in every order of events: what is confirmed is safe where the rule wants it.
        #[test]
        fn nothing_is_confirmed_that_could_still_be_lost(
            steps in steps(),
            rule in prop::sample::select(vec![Release::Auto, Release::Journal, Release::Lake]),
        ) {
            let mut confirm = Confirm::new(rule, 300, Position(0));
            let mut now = Now::default();
            let (mut log, mut given, mut wanted) = (0u64, Position(0), None);
            // Ends of transactions, by which every confirmed position is judged.
            let mut ends: Vec<Position> = vec![];
            let mut before = Position(0);
            for step in steps {
                log += 7;
                match step {
                    Step::Begin => now.open = true,
                    Step::Commit if now.open => {
                        now.open = false;
                        now.recorded = Position(log);
                        now.buffered = true;
                        ends.push(Position(log));
                    }
                    Step::Give => {
                        given = now.recorded;
                        now.buffered = false;
                    }
                    Step::Sync => now.durable = given,
                    Step::Ship => now.shipped = now.durable,
                    Step::Keepalive if !now.open => now.quiet = Position(log),
                    Step::Allow => wanted.take().into_iter().for_each(|position| confirm.allow(position)),
                    Step::Grow => log += 200,
                    Step::Commit | Step::Keepalive => {}
                }
                now.server = Position(log);
                let decision = confirm.decide(&now);
                wanted = wanted.max(decision.record);
                prop_assert!(decision.confirm >= before, "went back");
                let needed = if rule == Release::Lake { now.shipped } else { now.durable };
                // Every transaction that ends at or before the confirmed position is safe.
                let covered = ends.iter().copied().filter(|end| *end <= decision.confirm);
                prop_assert!(covered.max().unwrap_or_default() <= needed, "{:?} {:?}", decision, now);
                prop_assert!(!now.open || decision.confirm <= before.max(needed));
                before = decision.confirm;
            }
        }
    }
}
