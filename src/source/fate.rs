//! What becomes of a table, for the ledger to say: the source asks for it by a fact, seal puts it into the
//! next epoch's group, and the fact goes with that. Pure.
//!
//! | fact | what |
//! |---|---|
//! | `seal/fate/<table id>/<fate>` | a [`Fate`] that is still to be said |
//! | `seal/anew/<table id>` | true: the next part of its snapshot is the first of a reading anew |
//! | `seal/rewritten/<table id>` | the position behind which a statement changed values of it: with the above |
//! | `seal/first/<table id>` | qualified name of a table that the lake has from now on. Goes once the source knows it, or that it is gone |
//! | `seal/table/<table id>/<version>` | a definition that seal has given a number |
//! | `seal/told/<table id>/<by>` | the version that the lake was told last [`By`] changes, or by parts of a snapshot |
//!
//! A box that takes a chain over knows of a table only what the chain says.

use serde::{Deserialize, Serialize};

use crate::units::Position;

/// What is to be said of a table.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// All its rows are in the lake, with all their values.
    Whole,
    /// Its changes are not in the lake any more: it was dropped, excluded or unreadable. Should it come back,
    /// it is read anew.
    Left,
    /// Rows of it that differed from the database behind a gap were read by their keys, or are gone: with what was
    /// copied before the gap it is as the database has it, from this position on.
    Repaired(Position),
}

/// Prefix of all [`version_facts`].
pub const VERSION_FACTS: &str = "seal/table/";

/// Prefix of the keys of a table's definitions that the lake has, or gets, in the order in which they came.
pub fn version_facts(table_id: u32) -> String {
    format!("{VERSION_FACTS}{table_id:010}/")
}

/// By what the lake was told of a table's definition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// Rows of changes, or a definition behind them, as of the last epoch.
    Changes,
    /// Rows of a snapshot, or such as were read again.
    Parts,
}

/// Prefix of all [`told_fact`]s.
pub const TOLD_FACTS: &str = "seal/told/";

/// Key of the version that the lake was told last.
pub fn told_fact(table_id: u32, by: By) -> String {
    let by = match by {
        By::Changes => "changes",
        By::Parts => "parts",
    };
    format!("{TOLD_FACTS}{table_id:010}/{by}")
}

/// The table of a [`told_fact`] of this kind.
pub fn told_by(key: &str, by: By) -> Option<u32> {
    let table_id = key.strip_prefix(TOLD_FACTS)?.split('/').next()?.parse().ok()?;
    (told_fact(table_id, by) == key).then_some(table_id)
}

/// Prefix of all [`fate_fact`]s.
pub const FATE_FACTS: &str = "seal/fate/";

/// Key of a [`Fate`] that is to be said.
pub fn fate_fact(table_id: u32, fate: Fate) -> String {
    let name = match fate {
        Fate::Whole => "whole",
        Fate::Left => "left",
        Fate::Repaired(_) => "repaired",
    };
    format!("{FATE_FACTS}{table_id:010}/{name}")
}

/// Key of [`Fate::Repaired`], wherever that is.
pub fn repaired_fact(table_id: u32) -> String {
    fate_fact(table_id, Fate::Repaired(Position(0)))
}

/// Key of the fact that a table which was away is read anew. Goes with the first part of that reading.
pub fn anew_fact(table_id: u32) -> String {
    format!("seal/anew/{table_id:010}")
}

/// Key of the position behind which values of a table changed that are in no stream. Goes with [`anew_fact`].
pub fn rewritten_fact(table_id: u32) -> String {
    format!("seal/rewritten/{table_id:010}")
}

/// Prefix of all [`first_fact`]s.
pub const FIRST_FACTS: &str = "seal/first/";

/// Key of the fact that something of a table came to the lake for the first time.
pub fn first_fact(table_id: u32) -> String {
    format!("{FIRST_FACTS}{table_id:010}")
}

/// The table of a [`fate_fact`].
pub fn fated_table(key: &str) -> Option<u32> {
    key.strip_prefix(FATE_FACTS)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_are_pinned() {
        let key = fate_fact(7, Fate::Left);
        assert_eq!(key, "seal/fate/0000000007/left");
        assert_eq!(fated_table(&key), Some(7));
        assert_eq!(serde_json::to_string(&Fate::Whole).unwrap(), r#""whole""#);
        let repaired = Fate::Repaired(Position(0xAB));
        assert_eq!(fate_fact(7, repaired), "seal/fate/0000000007/repaired");
        let json = r#"{"repaired":"00000000/000000AB"}"#;
        assert_eq!(serde_json::to_string(&repaired).unwrap(), json);
        assert_eq!(fated_table("seal/fates/0000000007/left"), None);
        assert_eq!(anew_fact(7), "seal/anew/0000000007");
        assert_eq!(rewritten_fact(7), "seal/rewritten/0000000007");
        assert_eq!(first_fact(7), "seal/first/0000000007");
        assert_eq!(version_facts(7), "seal/table/0000000007/");
        let told = told_fact(7, By::Changes);
        assert_eq!(told, "seal/told/0000000007/changes");
        assert_eq!((told_by(&told, By::Changes), told_by(&told, By::Parts)), (Some(7), None));
        assert_eq!(told_fact(7, By::Parts), "seal/told/0000000007/parts");
    }
}
