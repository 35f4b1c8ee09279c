//! Decides which position is confirmed to the source. Pure.
//!
//! Confirming means: the server may forget everything before. So (DESIGN §4):
//! - **I1** never beyond what is durable where the release rule asks for it;
//! - **I3** never back;
//! - **I4** only at the end of a transaction with which all before it are durable, or
//! - **I5** at a position that the server named while no transaction was open. Such a position is
//!   given to the journal as a *mark*, a run without a transaction of the server's, behind all that came before it: so it is
//!   durable, and then in the ledger, as the end of a transaction is. What is confirmed is always what
//!   the journal, or the lake, can show: also a box that continues another's chain finds the slot of one
//!   that had nothing to do for a week where the chain ends.

use crate::{config::Release, units::Position};

/// The rule and what it has led to.
#[derive(Debug)]
pub(crate) struct Confirm {
    rule: Release,
    wal_bytes_max: u64,
    /// With `auto`: whether the journal is enough at present.
    relaxed: bool,
    confirmed: Position,
}

/// What is known at the moment of deciding.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Now {
    /// End of the last whole transaction that the journal has fsynced.
    pub(crate) durable: Position,
    /// How far the ledger reaches.
    pub(crate) shipped: Position,
    /// End of the last transaction, or the last mark, given to the journal, durable or not.
    pub(crate) recorded: Position,
    /// Whether a transaction is open.
    pub(crate) open: bool,
    /// Whether transactions are held that the journal has not been given whole.
    pub(crate) buffered: bool,
    /// The last position that the server named, or at which a transaction of no consequence ended,
    /// while none was open.
    pub(crate) quiet: Position,
    /// The end of the server's log.
    pub(crate) server: Position,
    /// How much of it the server keeps for us at most, if it has a limit.
    pub(crate) keeps_bytes_max: Option<u64>,
}

impl Confirm {
    /// Begins where the slot stands: `confirmed` is what the server holds confirmed already.
    pub(crate) fn new(rule: Release, wal_bytes_max: u64, confirmed: Position) -> Self {
        Self { rule, wal_bytes_max, relaxed: false, confirmed }
    }

    /// Whether the ledger, not the journal, is what counts at present.
    pub(crate) fn waits_for_lake(&self) -> bool {
        match self.rule {
            Release::Lake => true,
            Release::Journal => false,
            Release::Auto => !self.relaxed,
        }
    }

    /// What counts at present, as the status and the ledger call it.
    pub(crate) fn in_force(&self) -> &'static str {
        if self.waits_for_lake() { "lake" } else { "journal" }
    }

    /// The position confirmed so far.
    pub(crate) fn confirmed(&self) -> Position {
        self.confirmed
    }

    /// What may be confirmed; not less than before.
    pub(crate) fn decide(&mut self, now: &Now) -> Position {
        let shipped = now.shipped.min(now.durable);
        self.relax(now, shipped);
        let safe = if self.waits_for_lake() { shipped } else { now.durable };
        self.confirmed = self.confirmed.max(safe);
        self.confirmed
    }

    /// The position to be given to the journal as a mark, so that it can be confirmed.
    pub(crate) fn mark(&self, now: &Now) -> Option<Position> {
        let news = now.quiet > now.recorded.max(self.confirmed);
        (news && !now.open && !now.buffered).then_some(now.quiet)
    }

    /// With `auto`: the journal is enough while the server keeps too much for us, or half of all that it would
    /// keep before it gives the slot up, until the ledger
    /// has caught up with what was confirmed meanwhile.
    fn relax(&mut self, now: &Now, shipped: Position) {
        let kept = now.server.0.saturating_sub(self.confirmed.0);
        let half = now.keeps_bytes_max.map_or(u64::MAX, |bytes| bytes / 2);
        if kept > self.wal_bytes_max.min(half) {
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
        assert_eq!(confirm(Release::Journal).decide(&at(50, 20, 60)), Position(50));
        assert_eq!(confirm(Release::Lake).decide(&at(50, 20, 60)), Position(20));
        assert_eq!(confirm(Release::Auto).decide(&at(50, 20, 60)), Position(20));
    }

    #[test]
    fn auto_lets_the_journal_count_while_the_server_keeps_too_much() {
        let mut auto = confirm(Release::Auto);
        let full = Now { server: Position(1100), ..at(900, 20, 900) };
        assert_eq!(auto.decide(&full), Position(900));
        assert!(!auto.waits_for_lake());
        // Still: the ledger is behind what was confirmed.
        auto.decide(&Now { server: Position(1200), ..at(1000, 30, 1000) });
        assert!(!auto.waits_for_lake());
        auto.decide(&Now { server: Position(1200), ..at(1000, 1000, 1000) });
        assert!(auto.waits_for_lake());
        assert_eq!(auto.decide(&at(1100, 1050, 1100)), Position(1050));
    }

    #[test]
    fn auto_lets_the_journal_count_before_the_server_gives_the_slot_up() {
        let kept =
            |bytes| Now { keeps_bytes_max: Some(bytes), server: Position(600), ..at(500, 20, 500) };
        assert_eq!(confirm(Release::Auto).decide(&kept(1200)), Position(20));
        assert_eq!(confirm(Release::Auto).decide(&kept(1000)), Position(500));
        assert_eq!(confirm(Release::Lake).decide(&kept(1000)), Position(20));
    }

    #[test]
    fn a_keepalives_position_is_marked_only_when_all_before_it_was_given_to_the_journal() {
        let quiet = |now: Now| Now { quiet: Position(100), ..now };
        let mut lake = confirm(Release::Lake);
        for unsafe_now in
            [Now { open: true, ..at(50, 50, 50) }, Now { buffered: true, ..at(50, 50, 50) }]
        {
            assert_eq!(lake.mark(&quiet(unsafe_now)), None);
        }
        assert_eq!(lake.mark(&quiet(at(40, 0, 50))), Some(Position(100)));
        // Given: it counts where it is safe, and is not given again.
        let given = quiet(at(100, 50, 100));
        assert_eq!((lake.mark(&given), lake.decide(&given)), (None, Position(50)));
        assert_eq!(confirm(Release::Journal).decide(&given), Position(100));
        assert_eq!(lake.decide(&quiet(at(100, 100, 100))), Position(100));
        // What the server holds confirmed already needs no mark.
        let stands = Confirm::new(Release::Lake, 1000, Position(100));
        assert_eq!(stands.mark(&quiet(at(50, 50, 50))), None);
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
        Mark,
        Grow,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        use Step::*;
        let step =
            prop::sample::select(vec![Begin, Commit, Give, Sync, Ship, Keepalive, Mark, Grow]);
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
            let (mut log, mut given) = (0u64, Position(0));
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
                    Step::Mark => {
                        if let Some(position) = confirm.mark(&now) {
                            // The journal takes it behind all that it was given.
                            (now.recorded, given) = (position, position);
                        }
                    }
                    Step::Grow => log += 200,
                    Step::Commit | Step::Keepalive => {}
                }
                now.server = Position(log);
                let confirmed = confirm.decide(&now);
                prop_assert!(confirmed >= before, "went back");
                let needed = if rule == Release::Lake { now.shipped } else { now.durable };
                // Every transaction that ends at or before the confirmed position is safe.
                let covered = ends.iter().copied().filter(|end| *end <= confirmed);
                prop_assert!(covered.max().unwrap_or_default() <= needed, "{:?} {:?}", confirmed, now);
                // And no more than the journal, or the ledger, can show.
                prop_assert!(confirmed <= needed, "{:?} {:?}", confirmed, now);
                before = confirmed;
            }
        }
    }
}
