//! Rows whose values may stand nowhere in the lake: the facts by which seal asks for them to be read
//! again, and the source knows that they were. Pure.
//!
//! A row can move between the parts of a table's snapshot while these are read at several positions: then
//! no part has it, and of an update that left values out (unchanged TOAST) nothing has them.
//!
//! | fact | what |
//! |---|---|
//! | `seal/epoch` | [`EpochEnd`]: where the changes were cut last |
//! | `seal/span/<table id>` | [`Span`]: the positions at which the parts sealed so far were read |
//! | `seal/unchanged/<table id>/<group>` | [`Unchanged`]: keys of such rows, recorded with their epoch's group |
//! | `seal/unchanged/<table id>/all` | they were too many: the whole table is to be read again |
//! | `seal/reread/<table id>/<position>-<chunk>` | [`Reread`]: rows that were read again, recorded with their group |
//!
//! **Invariant:** a key is noted before the epoch that needs it is in the lake, and forgotten only when its
//! row is in the ledger, or never was missing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    facts::FactBatch,
    units::{Point, Position},
};

/// What a snapshot chunk is read for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// A part of the table's snapshot.
    Snapshot,
    /// A part of the same table again: too many of its rows may lack values.
    Again {
        /// Whether it is a range of keys: then a row stays in it for as long as it keeps its key.
        by_key: bool,
    },
    /// The rows whose keys these [`unchanged_fact`]s hold.
    Keys(Vec<String>),
    /// The keys of rows that are gone, of these [`unchanged_fact`]s: the rest of each row is NULL.
    Gone(Vec<String>),
    /// A look at what is in no change stream.
    Look {
        /// At what.
        of: Sight,
        /// What becomes durable with it.
        facts: FactBatch,
    },
}

/// What a look has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sight {
    /// [Sequence generators](super::generator).
    Sequences {
        /// Whether it has all of them, or those that changed.
        whole: bool,
    },
    /// Some of the [large objects](super::large_object) that are new or gone.
    LargeObjects,
    /// The end of a look at large objects: with what came before it the lake has all of them.
    LargeObjectsEnd {
        /// If all were read, and not only those that are new: from this position on.
        from: Option<Position>,
    },
}

/// Where the changes were cut last. Fact: [`EPOCH_FACT`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EpochEnd {
    /// After this change, at this position.
    pub end: Point,
    /// The last journal batch in the epoch.
    pub batch: u64,
}

/// The positions at which a table's parts were read.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Span {
    /// The oldest.
    pub first: Position,
    /// The youngest.
    pub last: Position,
    /// Whether all parts are sealed.
    pub whole: bool,
    /// Whether the parts are ranges of keys: only a row that gets another key moves between them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_key: bool,
    /// Whether the ledger was told that the table is whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
}

/// Rows of a table that an epoch changed without saying all their values.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Unchanged {
    /// What names a row.
    pub columns: Vec<String>,
    /// The values, as the source prints them.
    pub keys: BTreeSet<Vec<String>>,
    /// They are rows that are gone as of this position: deleted, the lake is to hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<Position>,
}

/// Rows that were read again by their keys.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reread {
    /// Where the snapshot stands that they were read under.
    pub position: Position,
    /// The group that holds them.
    pub group: u64,
    /// Keys of the facts that asked for them.
    pub notes: Vec<String>,
}

/// Key of the [`EpochEnd`].
pub const EPOCH_FACT: &str = "seal/epoch";
/// Prefix of the groups of objects that are not in the ledger yet.
pub const GROUP_FACTS: &str = "seal/group/";
/// Prefix of all [`unchanged_fact`]s.
pub const UNCHANGED_FACTS: &str = "seal/unchanged/";

/// Key of the fact of a group, which is there until the ledger has it.
pub fn group_fact(group: u64) -> String {
    format!("{GROUP_FACTS}{group:020}")
}

/// Key of a table's [`Span`].
pub fn span_fact(table_id: u32) -> String {
    format!("seal/span/{table_id:010}")
}

/// Prefix of a table's [`Unchanged`] facts.
pub fn unchanged_facts(table_id: u32) -> String {
    format!("{UNCHANGED_FACTS}{table_id:010}/")
}

/// Key of the rows that one epoch changed, by its group.
pub fn unchanged_fact(table_id: u32, group: u64) -> String {
    format!("{}{group:020}", unchanged_facts(table_id))
}

/// Key of the fact that there were too many.
pub fn unchanged_all_fact(table_id: u32) -> String {
    format!("{}all", unchanged_facts(table_id))
}

/// Prefix of a table's [`Reread`]s.
pub fn reread_facts(table_id: u32) -> String {
    format!("seal/reread/{table_id:010}/")
}

/// Key of a chunk of rows read again by key.
pub fn reread_fact(table_id: u32, position: Position, chunk: u32) -> String {
    format!("{}{}-{chunk:08}", reread_facts(table_id), position.key())
}

impl Span {
    /// With one more part.
    pub fn with(before: Option<Self>, position: Position, whole: bool) -> Self {
        let before = before.unwrap_or(Self { last: position, ..Self::begun(position, false) });
        let (first, last) = (before.first.min(position), before.last.max(position));
        Self { first, last, whole, ..before }
    }

    /// Of a table of which nothing is missing, and nothing is to be said any more.
    pub fn settled(position: Position) -> Self {
        Self { whole: true, told: true, ..Self::begun(position, false) }
    }

    /// Before the first part, which will be read at `first` or later.
    pub fn begun(first: Position, by_key: bool) -> Self {
        Self { first, last: first, whole: false, by_key, told: false }
    }

    /// Whether no row can have moved from one part to another: all were read at one position.
    pub fn is_one(&self) -> bool {
        self.whole && self.first == self.last
    }

    /// Whether a row may have moved, at `position`, out of a part that was still to be read into one that
    /// was done. While parts are missing, every later position may be. `rekeyed`: it got another key there.
    pub fn may_lose(span: Option<&Self>, position: Position, rekeyed: bool) -> bool {
        span.is_none_or(|span| {
            let open = span.first < position && (!span.whole || position <= span.last);
            open && (rekeyed || !span.by_key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_may_be_lost_between_the_first_part_and_the_last() {
        let lost = |span: Option<Span>, at| Span::may_lose(span.as_ref(), Position(at), false);
        assert!(lost(None, 1), "before its first part, nothing is known");
        let begun = Span::with(None, Position(10), false);
        assert!(!lost(Some(begun), 10) && lost(Some(begun), 11) && lost(Some(begun), 999));
        let one = Span::with(Some(begun), Position(10), true);
        assert!(one.is_one() && !lost(Some(one), 11));
        let two = Span::with(Some(begun), Position(20), true);
        assert!(!two.is_one());
        let found: Vec<u64> = (0..30).filter(|at| lost(Some(two), *at)).collect();
        assert_eq!(found, (11..=20).collect::<Vec<_>>());
    }

    #[test]
    fn between_ranges_of_keys_only_a_row_with_another_key_is_lost() {
        let span = Span::with(Some(Span::begun(Position(10), true)), Position(20), true);
        assert!(!span.is_one());
        let lost = |at, rekeyed| Span::may_lose(Some(&span), Position(at), rekeyed);
        assert!((0..30).all(|at| !lost(at, false)));
        assert_eq!((lost(10, true), lost(11, true), lost(21, true)), (false, true, false));
    }

    #[test]
    fn the_facts_are_pinned() {
        assert_eq!(unchanged_fact(7, 12), "seal/unchanged/0000000007/00000000000000000012");
        assert_eq!(unchanged_all_fact(7), "seal/unchanged/0000000007/all");
        let key = reread_fact(7, Position(0xAB), 3);
        assert_eq!(key, "seal/reread/0000000007/00000000000000AB-00000003");
        let span = serde_json::to_string(&Span::with(None, Position(1), true)).unwrap();
        assert_eq!(
            span,
            r#"{"first":"00000000/00000001","last":"00000000/00000001","whole":true}"#
        );
        let keys = BTreeSet::from([vec!["7".into()]]);
        let unchanged = Unchanged { columns: vec!["id".into()], keys, gone: None };
        let json = serde_json::to_string(&unchanged).unwrap();
        assert_eq!(json, r#"{"columns":["id"],"keys":[["7"]]}"#);
    }
}
