//! A range of the source's log that is lost, for the ledger to say: the source notes it before it goes on
//! behind it, seal makes a group of it between the epochs, and the fact goes with that. Pure.
//!
//! | fact | what |
//! |---|---|
//! | `source/gap/<batch>-<to>` | a [`Gap`] that is still to be said |
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
    /// Its key. Of two gaps with nothing in between the earlier one comes first.
    pub fn fact(&self) -> String {
        format!("{GAP_FACTS}{:020}-{}", self.after, self.to.key())
    }
}

/// Prefix of all [`Gap`]s.
pub const GAP_FACTS: &str = "source/gap/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fact_is_pinned() {
        let to = Position(0x5A);
        let gap = Gap { after: 7, began: Position(1), to, what: "the slot is gone".into() };
        assert_eq!(gap.fact(), format!("source/gap/00000000000000000007-{}", to.key()));
        let json = r#"{"after":7,"began":"00000000/00000001","to":"00000000/0000005A","what":"the slot is gone"}"#;
        assert_eq!(serde_json::to_string(&gap).unwrap(), json);
        let later = Gap { to: Position(0x100), ..gap.clone() };
        assert!(gap.fact() < later.fact());
    }
}
