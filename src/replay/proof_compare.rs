//! Looks into the buckets that differ: which rows, and in what.
//!
//! The last word has the value, not its text: what differs is read again from the database by its key, decoded as
//! the box decodes it, and compared once more.

use std::collections::{BTreeSet, HashMap};

use super::{
    ReplayError,
    proof_lake::{Lakeside, View},
    proof_report::{Differences, RowDifference, RowState, TableProof, Verdict},
    proof_spill::{Heap, records, split},
};
use crate::{
    journal::{Cell, LakeType},
    source::{
        digest::{Hash, Stamp, bucket, hash, hash_of},
        postgres::{Measure, SourceError, Unread, Witness, types},
    },
};

/// Why the rows of a table were not looked at.
pub(super) enum Stopped {
    /// It alone: why.
    Table(String),
    /// Nothing can be read from the database any more.
    Source(SourceError),
    /// Nor from the lake, or the disk.
    Replay(ReplayError),
}

impl From<Unread> for Stopped {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Table(why) => Self::Table(why),
            Unread::All(why) => Self::Source(why),
        }
    }
}

impl From<ReplayError> for Stopped {
    fn from(why: ReplayError) -> Self {
        Self::Replay(why)
    }
}

/// A row that both sides have, and that differs.
struct Suspect {
    key: Vec<String>,
    hash: Hash,
    stamps: Vec<Stamp>,
    unsure: Vec<bool>,
    /// Whether it was counted as altered: it differs in a column that is sure in all rows.
    counted: bool,
}

/// A row of the database, as it was listed.
struct Listed {
    hash: Hash,
    sure: Hash,
    key: String,
}

/// Compares the rows of `buckets`, and says what differs in `proof`.
pub(super) async fn compare(
    lake: &mut Lakeside<'_>,
    witness: &Witness,
    view: &View<'_>,
    (measure, buckets): (&Measure, &BTreeSet<u16>),
    proof: &mut TableProof,
) -> Result<(), Stopped> {
    let (heap, own) = (Heap::Source(view.id), Heap::Lake(view.id));
    let spill = &mut lake.spill;
    spill.begin_like(heap, own);
    let keyed = !measure.key.is_empty();
    let mut take = |key: &str, row: Hash, sure: Hash| {
        let name = if keyed { hash(key.as_bytes()) } else { row };
        let record = [&name[..], &row, &sure, key.as_bytes()].concat();
        spill.push(heap, &record).map_err(Stopped::Replay)
    };
    let list: Vec<u16> = buckets.iter().copied().collect();
    witness.rows(view.id, measure, &list, &mut take).await?;
    spill.settle(heap)?;
    let mut found = Found { rows_max: lake.rows_max, ..Found::default() };
    for part in 0..lake.spill.parts(own) {
        let passes = lake.spill.passes(own, part).max(lake.spill.passes(heap, part));
        for pass in 0..passes {
            let bytes = lake.spill.read(heap, part, (pass, passes))?;
            let listed = listed(&bytes).ok_or_else(|| lake.spill.damaged())?;
            if keyed {
                found.rows(lake, view, (measure, buckets), listed, (part, (pass, passes)))?;
            } else {
                let (mut counts, unsure) = lake.counts(view, part, (pass, passes))?;
                counts.retain(|hash, _| buckets.contains(&bucket(hash, measure.bits)));
                found.unsure_rows |= unsure;
                found.counts(counts, listed);
            }
        }
    }
    lake.spill.forget(heap);
    found.look_closer(witness, view, measure, proof).await?;
    found.judge(measure, proof);
    Ok(())
}

/// The database's rows by the hash of their keys, of equal ones all.
fn listed(bytes: &[u8]) -> Option<HashMap<Hash, Vec<Listed>>> {
    let mut listed: HashMap<Hash, Vec<Listed>> = HashMap::new();
    for record in records(bytes) {
        let (name, rest) = split(record)?;
        let (hash, rest) = split(rest)?;
        let (sure, key) = split(rest)?;
        let key = String::from_utf8(key.to_vec()).ok()?;
        listed.entry(name).or_default().push(Listed { hash, sure, key });
    }
    Some(listed)
}

#[derive(Default)]
struct Found {
    /// Rows that are kept of each sort.
    rows_max: usize,
    differences: Differences,
    suspects: Vec<Suspect>,
    /// How many of them are counted, and how many are not.
    kept: [usize; 2],
    /// Rows that differ, and were not kept to be looked at.
    more: u64,
    /// Keys of those in which nothing differs but what is unknown.
    unknown: Vec<Vec<String>>,
    /// Whether more rows may differ in that.
    unknown_more: bool,
    /// Whether rows of a table without key may differ although nothing is wrong.
    unsure_rows: bool,
    /// Whether a suspect turned out to differ.
    real: bool,
}

impl Found {
    fn rows(
        &mut self,
        lake: &Lakeside<'_>,
        view: &View<'_>,
        (measure, buckets): (&Measure, &BTreeSet<u16>),
        mut listed: HashMap<Hash, Vec<Listed>>,
        (part, passes): (usize, (usize, usize)),
    ) -> Result<(), Stopped> {
        let place = |name: &String| measure.columns.iter().position(|own| own == name);
        let sure: Vec<usize> = measure.sure.iter().filter_map(place).collect();
        let named: Vec<usize> = measure.key.iter().filter_map(place).collect();
        let mut scratch = vec![];
        let mut visit = |row: super::proof_lake::LakeRow<'_>| {
            if !buckets.contains(&bucket(&row.key, measure.bits)) {
                return;
            }
            let there = listed.get_mut(&row.key).and_then(Vec::pop);
            let Some(there) = there else {
                let key =
                    named.iter().filter_map(|at| Some(row.stamps.get(*at)?.text()?.to_owned()));
                self.lacks(key.collect(), RowState::MissingInSource);
                return;
            };
            if there.hash == row.hash {
                return;
            }
            let known = sure.iter().filter_map(|at| row.stamps.get(*at));
            let sure_equal =
                row.unsure.contains(&true) && hash_of(known, &mut scratch) == there.sure;
            // Rows that may be unknown only do not keep others from being looked at.
            let kept = &mut self.kept[usize::from(sure_equal)];
            let room = *kept < self.rows_max;
            *kept += usize::from(room);
            let key = texts(&there.key);
            if !sure_equal {
                self.differences.altered += 1;
                self.differences.reach(&key);
            }
            if room {
                self.suspects.push(Suspect {
                    key,
                    hash: row.key,
                    stamps: row.stamps.to_vec(),
                    unsure: row.unsure.to_vec(),
                    counted: !sure_equal,
                });
            } else if sure_equal {
                self.unknown_more = true;
            } else {
                self.more += 1;
            }
        };
        lake.rows(view, part, passes, &mut visit)?;
        for left in listed.into_values().flatten() {
            self.lacks(texts(&left.key), RowState::MissingInLake);
        }
        Ok(())
    }

    fn counts(&mut self, mut counts: HashMap<Hash, i64>, listed: HashMap<Hash, Vec<Listed>>) {
        for (hash, rows) in listed {
            *counts.entry(hash).or_insert(0) -= i64::try_from(rows.len()).unwrap_or(i64::MAX);
        }
        for more in counts.into_values() {
            match more {
                0 => {}
                1.. => self.differences.missing_in_source += more.unsigned_abs(),
                _ => self.differences.missing_in_lake += more.unsigned_abs(),
            }
        }
    }

    fn lacks(&mut self, key: Vec<String>, what: RowState) {
        match what {
            RowState::MissingInSource => self.differences.missing_in_source += 1,
            RowState::MissingInLake | RowState::Altered => self.differences.missing_in_lake += 1,
        }
        self.differences.reach(&key);
        if self.differences.rows.len() < self.rows_max {
            self.differences.rows.push(RowDifference { key, what, columns: vec![] });
        }
    }

    /// Reads the rows that differ again, and compares value by value.
    async fn look_closer(
        &mut self,
        witness: &Witness,
        view: &View<'_>,
        measure: &Measure,
        proof: &mut TableProof,
    ) -> Result<(), Stopped> {
        if self.suspects.is_empty() {
            return Ok(());
        }
        let keys: Vec<Vec<String>> =
            self.suspects.iter().map(|suspect| suspect.key.clone()).collect();
        let answers = witness.stamps(view.id, measure, &keys).await?;
        let answers: HashMap<Hash, String> =
            answers.into_iter().map(|(key, all)| (hash(key.as_bytes()), all)).collect();
        self.differences.range = None;
        let lacking: Vec<_> = self.differences.rows.iter().map(|row| row.key.clone()).collect();
        lacking.iter().for_each(|key| self.differences.reach(key));
        for suspect in std::mem::take(&mut self.suspects) {
            let there = answers.get(&suspect.hash).and_then(|all| Stamp::read_all(all));
            let Some(there) = there.filter(|there| there.len() == suspect.stamps.len()) else {
                // Its key is not found by its own text: it stays a row that differs.
                self.altered(suspect, vec![]);
                continue;
            };
            let mut columns = vec![];
            let (mut unknown, mut reworded) = (false, false);
            for (at, (lake, source)) in suspect.stamps.iter().zip(&there).enumerate() {
                let Some(name) = measure.columns.get(at).filter(|_| lake != source) else {
                    continue;
                };
                if decoded(view, name, source).as_ref() == Some(lake) {
                    reworded = true;
                } else if suspect.unsure.get(at).is_none_or(|unsure| *unsure) {
                    unknown = true;
                    *proof.unknown.entry(name.clone()).or_default() += 1;
                } else {
                    columns.push(name.clone());
                }
            }
            if !columns.is_empty() {
                self.altered(suspect, columns);
                continue;
            }
            if unknown {
                self.unknown.push(suspect.key);
            }
            proof.reworded += u64::from(reworded && !unknown);
            if suspect.counted {
                self.differences.altered = self.differences.altered.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn altered(&mut self, suspect: Suspect, columns: Vec<String>) {
        let key = suspect.key;
        self.real = true;
        self.differences.altered += u64::from(!suspect.counted);
        self.differences.reach(&key);
        for column in &columns {
            *self.differences.columns.entry(column.clone()).or_default() += 1;
        }
        self.differences.rows.push(RowDifference { key, what: RowState::Altered, columns });
    }

    fn judge(mut self, measure: &Measure, proof: &mut TableProof) {
        self.differences.key.clone_from(&measure.key);
        proof.unknown_rows = (!self.unknown_more).then(|| std::mem::take(&mut self.unknown));
        let lacking = self.differences.missing_in_lake + self.differences.missing_in_source;
        let unsure = measure.key.is_empty() && self.unsure_rows;
        proof.verdict = match (lacking > 0 && !unsure) || self.real {
            true => Verdict::Different,
            false if self.more > 0 || unsure => {
                proof.overflows = self.more > 0;
                proof.why = Some(
                    "rows differ that were written before the table had its columns as they are"
                        .into(),
                );
                Verdict::Unknown
            }
            false => Verdict::Equal,
        };
        if proof.verdict == Verdict::Different {
            proof.differences = Some(self.differences);
        }
    }
}

/// The texts of a key's stamps.
fn texts(stamps: &str) -> Vec<String> {
    let stamps = Stamp::read_all(stamps).unwrap_or_default();
    stamps.iter().filter_map(|stamp| stamp.text().map(str::to_owned)).collect()
}

/// What the lake would have of a value of the database, if that stands for itself.
fn decoded(view: &View<'_>, column: &str, stamp: &Stamp) -> Option<Stamp> {
    let text = stamp.text()?;
    let column = view.source.columns.iter().find(|own| own.name == column)?;
    if column.lake == LakeType::Text {
        return None;
    }
    let value = types::value(column, &Cell::Text(0..text.len()), text.as_bytes()).ok()?;
    Some(Stamp::of_value(&value, column.lake, &mut String::new()))
}
