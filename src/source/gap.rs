//! A range of the source's log that is lost, for the ledger to say: the source notes it before it goes on
//! behind it, seal makes a group of it between the epochs, and the fact goes with that. Pure.
//!
//! | fact | what |
//! |---|---|
//! | `source/gap/<batch>` | a [`Gap`] that is still to be said |
//!
//! **Invariant:** a gap is durable before the first change behind it, and said before it (DESIGN §4).

use serde::{Deserialize, Serialize};

use crate::units::Position;

/// What was lost.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Gap {
    /// The last batch of the journal before it; 0: there was none.
    pub after: u64,
    /// Where the log began that was followed until then.
    pub began: Position,
    /// Where it ends: what comes after this is there.
    pub to: Position,
    /// How it came, in a sentence.
    pub what: String,
}

impl Gap {
    /// This one and a `later` one, if nothing came in between.
    pub fn joined(self, later: Self) -> Self {
        let what = format!("{}; then {}", self.what, later.what);
        Self { began: self.began, to: self.to.max(later.to), what, ..later }
    }
}

/// Prefix of all [`gap_fact`]s.
pub const GAP_FACTS: &str = "source/gap/";

/// Key of the [`Gap`] after a batch.
pub fn gap_fact(after: u64) -> String {
    format!("{GAP_FACTS}{after:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fact_is_pinned_and_two_gaps_with_nothing_in_between_are_one() {
        assert_eq!(gap_fact(7), "source/gap/00000000000000000007");
        let gap = |began, to, what: &str| Gap {
            after: 7,
            began: Position(began),
            to: Position(to),
            what: what.into(),
        };
        let both = gap(1, 50, "one").joined(gap(50, 90, "two"));
        assert_eq!(both, gap(1, 90, "one; then two"));
        let json = r#"{"after":7,"began":"00000000/00000001","to":"00000000/0000005A","what":"one; then two"}"#;
        assert_eq!(serde_json::to_string(&both).unwrap(), json);
    }
}
