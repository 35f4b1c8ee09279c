//! From records to the rows that a table has at a position. Pure.
//!
//! **Invariant:** the order in which records are given does not matter; only position and sequence do.

use std::collections::HashMap;

use super::{
    proof_rows::{Head, Kind, head, stamps},
    proof_spill::{records, split},
};
use crate::{
    source::digest::{Hash, Stamp},
    units::Position,
};

/// Which records count.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Bounds {
    /// Rows that were read before this do not.
    pub(super) anew: Position,
    /// Changes up to here are in the rows already.
    pub(super) skip: Position,
    /// The state is that at this position.
    pub(super) end: Position,
    /// Nothing counts that stands at or before the last TRUNCATE.
    pub(super) emptied: Option<(Position, u64)>,
}

/// A value of a row, and the version under which it was written.
pub(super) type Known = (Stamp, u32);

/// A row that leaves its key for another one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Leaving {
    /// The key that it gets.
    pub(super) to: Hash,
    /// When.
    pub(super) position: Position,
    pub(super) sequence: u64,
    /// What it was; `None`: it was not there.
    pub(super) row: Option<Vec<Known>>,
}

impl Bounds {
    fn take(&self, head: &Head) -> bool {
        let begun = match head.kind {
            Kind::Row => head.position >= self.anew,
            _ => head.position > self.skip,
        };
        let place = (head.position, head.sequence);
        begun && head.position <= self.end && self.emptied.is_none_or(|emptied| place > emptied)
    }
}

/// Gives every row that is there in the end, and every row that left its key for another. `None`: the bytes
/// are no records of `columns` columns.
pub(super) fn fold(
    bytes: &[u8],
    bounds: &Bounds,
    columns: usize,
    leaving: &mut dyn FnMut(Leaving),
    visit: &mut dyn FnMut(&Hash, &[Known]),
) -> Option<()> {
    let mut found = vec![];
    for record in records(bytes) {
        let (hash, rest) = split(record)?;
        let (head, body) = head(rest)?;
        if bounds.take(&head) {
            found.push((hash, head, body));
        }
    }
    found.sort_unstable_by_key(|(hash, head, _)| {
        (*hash, head.position, head.sequence, head.kind != Kind::Fill)
    });
    for run in found.chunk_by(|one, other| one.0 == other.0) {
        let mut row: Option<Vec<Known>> = None;
        let mut fill: Option<(Head, Vec<Known>)> = None;
        for (_, head, body) in run {
            let read = || {
                let stamps = stamps(body).filter(|stamps| stamps.len() == columns)?;
                Some(stamps.into_iter().map(|stamp| (stamp, head.version)).collect::<Vec<_>>())
            };
            match head.kind {
                Kind::Fill => {
                    // Of several the one that knows most.
                    let filled = read()?;
                    let open = |row: &[Known]| {
                        row.iter().filter(|(stamp, _)| *stamp == Stamp::Open).count()
                    };
                    let same = fill.as_ref().filter(|(of, _)| of.sequence == head.sequence);
                    if same.is_none_or(|(_, known)| open(&filled) < open(known)) {
                        fill = Some((*head, filled));
                    }
                }
                Kind::Row => row = Some(read()?),
                Kind::Put => {
                    let mut now = read()?;
                    complete(&mut now, row.take());
                    row = Some(now);
                }
                Kind::Moved => {
                    let mut now = read()?;
                    let brought = fill.take().filter(|(of, _)| {
                        (of.position, of.sequence) == (head.position, head.sequence)
                    });
                    complete(&mut now, brought.map(|(_, row)| row));
                    row = Some(now);
                }
                Kind::Delete => row = None,
                Kind::Leave => {
                    let (position, sequence) = (head.position, head.sequence);
                    let to = (*body).try_into().ok()?;
                    leaving(Leaving { to, position, sequence, row: row.take() });
                }
                Kind::Add | Kind::Remove => return None,
            }
        }
        if let (Some(row), Some((hash, ..))) = (row, run.first()) {
            visit(hash, &row);
        }
    }
    Some(())
}

/// How often each row is there in a table without key; `version` is told of each version that counts.
pub(super) fn count(
    bytes: &[u8],
    bounds: &Bounds,
    version: &mut dyn FnMut(u32),
) -> Option<HashMap<Hash, i64>> {
    let mut counts = HashMap::new();
    for record in records(bytes) {
        let (hash, rest) = split(record)?;
        let (head, _) = head(rest)?;
        if !bounds.take(&head) {
            continue;
        }
        version(head.version);
        let times = match head.kind {
            Kind::Row | Kind::Add => 1,
            Kind::Remove => -1,
            _ => return None,
        };
        *counts.entry(hash).or_insert(0) += times;
    }
    counts.retain(|_, times| *times != 0);
    Some(counts)
}

/// Fills in what is not known.
fn complete(now: &mut [Known], before: Option<Vec<Known>>) {
    let Some(before) = before else { return };
    for (now, before) in now.iter_mut().zip(before) {
        if now.0 == Stamp::Open {
            *now = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{replay::proof_rows::record, source::digest::hash_of};

    fn text(value: impl ToString) -> Stamp {
        Stamp::Short(value.to_string().into())
    }

    fn name(key: u8) -> Hash {
        hash_of([&text(key)], &mut vec![])
    }

    fn framed(records: &[Vec<u8>]) -> Vec<u8> {
        let framed = records.iter().flat_map(|record| {
            [&u32::try_from(record.len()).unwrap().to_le_bytes()[..], record].concat()
        });
        framed.collect()
    }

    fn made(key: u8, kind: Kind, at: (u64, u64), stamps: &[Stamp]) -> Vec<u8> {
        let head = Head { kind, position: Position(at.0), sequence: at.1, version: 1 };
        let mut bytes = vec![];
        record(&mut bytes, &name(key), &head, stamps);
        bytes
    }

    fn bounds(end: u64) -> Bounds {
        Bounds { end: Position(end), ..Bounds::default() }
    }

    type State = BTreeMap<Hash, Vec<Stamp>>;

    /// The rows, with what leaves brought along until nothing is open any more.
    fn state(mut all: Vec<Vec<u8>>, bounds: &Bounds) -> State {
        loop {
            let (mut rows, mut fills) = (State::new(), vec![]);
            let mut leaving = |leaving: Leaving| {
                let Some(row) = leaving.row else { return };
                let stamps: Vec<Stamp> = row.into_iter().map(|(stamp, _)| stamp).collect();
                let head = Head {
                    kind: Kind::Fill,
                    position: leaving.position,
                    sequence: leaving.sequence,
                    version: 1,
                };
                let mut bytes = vec![];
                record(&mut bytes, &leaving.to, &head, &stamps);
                fills.push(bytes);
            };
            let mut visit = |hash: &Hash, row: &[Known]| {
                rows.insert(*hash, row.iter().map(|(stamp, _)| stamp.clone()).collect());
            };
            fold(&framed(&all), bounds, 2, &mut leaving, &mut visit).unwrap();
            fills.retain(|fill| !all.contains(fill));
            if fills.is_empty() {
                return rows;
            }
            all.extend(fills);
        }
    }

    proptest! {
        /// What a database does to rows, recorded with values left out and shuffled, gives its rows again.
        #[test]
        fn the_state_is_that_of_the_database_at_every_position(
            moves in prop::collection::vec((0u8..9, 0u8..4, 0u8..4, any::<bool>()), 1..40),
            snapshots in prop::collection::vec(0usize..40, 4),
            seed in any::<u64>(),
        ) {
            let mut rows: BTreeMap<u8, u64> = (0..2).map(|key| (key, 1000)).collect();
            let mut records: Vec<Vec<u8>> = vec![];
            let mut emptied: Vec<(Position, u64)> = vec![];
            let mut history = vec![rows.clone()];
            let full = |key: u8, value: u64| vec![text(key), text(value)];
            let open = |key: u8| vec![text(key), Stamp::Open];
            // The snapshot of each key is read at a position of its own.
            let read_at = |key: u8| snapshots[usize::from(key)].min(moves.len()) as u64 + 1;
            for (serial, (kind, key, other, said)) in moves.iter().copied().enumerate() {
                let at = (serial as u64 + 2, serial as u64 + 1);
                let there = rows.get(&key).copied();
                match (kind, there) {
                    (0, _) => {
                        rows.clear();
                        emptied.push((Position(at.0), at.1));
                    }
                    (1..=2, None) => {
                        rows.insert(key, at.1);
                        records.push(made(key, Kind::Put, at, &full(key, at.1)));
                    }
                    (3..=4, Some(_)) if said => {
                        rows.insert(key, at.1);
                        records.push(made(key, Kind::Put, at, &full(key, at.1)));
                    }
                    (3..=4, Some(_)) => records.push(made(key, Kind::Put, at, &open(key))),
                    (5..=6, Some(value)) if !rows.contains_key(&other) => {
                        rows.remove(&key);
                        rows.insert(other, value);
                        let mut leave = made(key, Kind::Leave, at, &[]);
                        leave.extend_from_slice(&name(other));
                        records.push(leave);
                        records.push(made(other, Kind::Moved, at, &open(other)));
                    }
                    (7, Some(_)) => {
                        rows.remove(&key);
                        records.push(made(key, Kind::Delete, at, &[]));
                    }
                    _ => {}
                }
                history.push(rows.clone());
            }
            // All at the first position; and again, of each key, later.
            for key in 0..4 {
                for at in [1, read_at(key)] {
                    if let Some(value) = history[usize::try_from(at).unwrap() - 1].get(&key) {
                        records.push(made(key, Kind::Row, (at, u64::MAX), &full(key, *value)));
                    }
                }
            }
            fastrand::Rng::with_seed(seed).shuffle(&mut records);
            let first = snapshots.iter().map(|at| (*at).min(moves.len()) + 1).max().unwrap();
            for end in first..=moves.len() + 1 {
                let emptied = emptied.iter().copied().filter(|(at, _)| at.0 <= end as u64).max();
                let bounds = Bounds { anew: Position(1), skip: Position(1), emptied, ..bounds(end as u64) };
                let expected: State = history[end - 1]
                    .iter()
                    .map(|(key, value)| (name(*key), full(*key, *value)))
                    .collect();
                prop_assert_eq!(state(records.clone(), &bounds), expected);
            }
        }
    }

    #[test]
    fn what_nobody_says_stays_open() {
        let records = [made(1, Kind::Put, (5, 1), &[text(1), Stamp::Open])];
        let rows = state(records.to_vec(), &bounds(9));
        assert_eq!(rows[&name(1)][1], Stamp::Open);
        assert!(state(records.to_vec(), &bounds(4)).is_empty());
    }

    #[test]
    fn equal_rows_without_a_key_are_counted() {
        let records = [
            made(1, Kind::Row, (1, u64::MAX), &[]),
            made(1, Kind::Add, (2, 1), &[]),
            made(2, Kind::Remove, (3, 2), &[]),
            made(2, Kind::Row, (1, u64::MAX), &[]),
        ];
        let mut versions = vec![];
        let bounds = Bounds { skip: Position(1), ..bounds(9) };
        let counts = count(&framed(&records), &bounds, &mut |version| versions.push(version));
        assert_eq!(counts.unwrap(), HashMap::from([(name(1), 2)]));
        assert_eq!(versions, [1; 4]);
        assert_eq!(count(&framed(&[vec![0; 20]]), &bounds, &mut |_| {}), None);
    }
}
