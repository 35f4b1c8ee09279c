//! What a comparison of the lake with its source found. Pure.
//!
//! Keys are part of it: they are the auditor's answer, as the rows of `cat` are. They stand in no log.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::units::Position;

/// The whole result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProofReport {
    /// The source's name.
    pub source: String,
    /// Where both sides were compared.
    pub position: Position,
    /// Seconds for which the database held its snapshot for us.
    pub snapshot_held_s: u64,
    /// Bytes of answers that the database gave.
    pub source_bytes: u64,
    /// Every table of the lake, and every other that `tables` takes in.
    pub tables: Vec<TableProof>,
    /// What the box is to repair behind a gap, by table, if that was asked for and a table waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordered: Option<BTreeMap<String, OrderedAs>>,
}

/// How a table is to be repaired.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderedAs {
    /// By so many keys.
    Keys(usize),
    /// As a whole: why.
    Anew(String),
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TableProof {
    /// `schema.table`.
    pub table: String,
    /// What holds.
    pub verdict: Verdict,
    /// Rows in the database.
    pub source_rows: i128,
    /// Rows in the lake.
    pub lake_rows: i128,
    /// Why it was not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differences: Option<Differences>,
    /// Columns that were left out, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// By column: values that differ, but were written before the column had its type, or are not in the lake.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unknown: BTreeMap<String, u64>,
    /// Rows that are only printed otherwise.
    #[serde(skip_serializing_if = "is_zero")]
    pub reworded: u64,
    /// Whether rows are told apart by nothing but all their columns.
    pub without_key: bool,
    /// Keys of rows in which nothing differs but what is unknown; `None`: not all of them were kept.
    #[serde(skip)]
    pub unknown_rows: Option<Vec<Vec<String>>>,
    /// The table's number in the database.
    #[serde(skip)]
    pub id: u32,
    /// Whether more rows differ than were kept to be looked at, and nothing else is known to.
    #[serde(skip)]
    pub overflows: bool,
}

/// What holds of a table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Both sides are the same.
    Equal,
    /// They are not.
    Different,
    /// It was not compared, or not wholly.
    #[default]
    Unknown,
    /// It cannot be compared: the database does not tell the lake of all that happens to it.
    Untold,
}

/// What differs in a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Rows that only the database has.
    pub missing_in_lake: u64,
    /// Rows that only the lake has.
    pub missing_in_source: u64,
    /// Rows whose values differ.
    pub altered: u64,
    /// By column, of the rows that were looked at one by one: how many differ in it.
    pub columns: BTreeMap<String, u64>,
    /// The key's columns.
    pub key: Vec<String>,
    /// The least and the greatest key of all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[Vec<String>; 2]>,
    /// Some of the rows, at most [`KEYS_MAX`].
    pub rows: Vec<RowDifference>,
}

/// One row that differs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RowDifference {
    /// Its key; empty if it is too long to be told.
    pub key: Vec<String>,
    /// How.
    pub what: RowState,
    /// The columns, if its values differ.
    pub columns: Vec<String>,
}

/// How a row differs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// Only the database has it.
    MissingInLake,
    /// Only the lake has it.
    MissingInSource,
    /// Both have it, with other values.
    Altered,
}

/// Rows that are looked at one by one in each table.
pub const KEYS_MAX: usize = 500;

impl ProofReport {
    /// Whether something differs.
    pub fn differs(&self) -> bool {
        self.tables.iter().any(|table| table.verdict == Verdict::Different)
    }

    /// Leaves at most [`KEYS_MAX`] rows of each table named.
    pub(super) fn shorten(&mut self) {
        let differences = self.tables.iter_mut().filter_map(|table| table.differences.as_mut());
        differences.for_each(|found| found.rows.truncate(KEYS_MAX));
    }

    /// Whether everything that can be compared was, and is equal.
    pub fn whole(&self) -> bool {
        let good = |table: &TableProof| matches!(table.verdict, Verdict::Equal | Verdict::Untold);
        let equal = self.tables.iter().any(|table| table.verdict == Verdict::Equal);
        equal && self.tables.iter().all(good)
    }
}

impl Differences {
    /// How many rows.
    pub fn count(&self) -> u64 {
        self.missing_in_lake + self.missing_in_source + self.altered
    }

    /// Takes a key into the range.
    pub(super) fn reach(&mut self, key: &[String]) {
        if key.is_empty() {
            return;
        }
        let [least, greatest] = self.range.get_or_insert_with(|| [key.to_vec(), key.to_vec()]);
        if is_before(key, least) {
            *least = key.to_vec();
        }
        if is_before(greatest, key) {
            *greatest = key.to_vec();
        }
    }
}

/// The order of keys for people: numbers as numbers.
fn is_before(one: &[String], other: &[String]) -> bool {
    for (one, other) in one.iter().zip(other) {
        let order = match (one.parse::<i128>(), other.parse::<i128>()) {
            (Ok(one), Ok(other)) => one.cmp(&other),
            _ => one.cmp(other),
        };
        if order.is_ne() {
            return order.is_lt();
        }
    }
    false
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_orders_numbers_as_numbers() {
        let mut found = Differences::default();
        for key in ["10", "9", "-2"] {
            found.reach(&[key.to_owned(), "a".to_owned()]);
        }
        found.reach(&[]);
        let ends = found.range.unwrap().map(|key| key[0].clone());
        assert_eq!(ends, ["-2", "10"]);
    }

    #[test]
    fn what_was_not_compared_is_no_difference_and_no_proof() {
        let table = |verdict| TableProof { verdict, ..TableProof::default() };
        let report = |verdicts: &[Verdict]| ProofReport {
            source: String::new(),
            position: Position(1),
            snapshot_held_s: 0,
            source_bytes: 0,
            tables: verdicts.iter().map(|verdict| table(*verdict)).collect(),
            ordered: None,
        };
        let said = |verdicts: &[Verdict]| {
            let report = report(verdicts);
            (report.whole(), report.differs())
        };
        assert_eq!(said(&[Verdict::Equal, Verdict::Untold]), (true, false));
        assert_eq!(said(&[Verdict::Equal, Verdict::Unknown]), (false, false));
        assert_eq!(said(&[Verdict::Unknown, Verdict::Different]), (false, true));
        assert_eq!(said(&[]), (false, false), "nothing proves nothing");
    }
}
