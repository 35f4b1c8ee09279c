//! Rows of the lake's objects as records of what becomes of a key, in any order. Pure.
//!
//! ```text
//! hash, 16 bytes   of the key; of a table without one, of the row
//! kind u8 | position u64 BE | sequence u64 BE | version u32 BE
//! then, by kind, stamps of all columns of the layout, or another hash, or nothing
//! stamp: 0 NULL | 1 length u16 BE, text | 2 SHA-256 | 3 not known here
//! ```
//!
//! A row of a snapshot, or one that was read again, is as all changes up to its position left it: it comes
//! behind them.

use super::{
    proof_layout::Layout,
    read::{Field, Rows},
    schema::{before, plain_default, same_column},
};
use crate::{
    journal::{Column, LakeType, Op, Value},
    seal::{Table, columns::spelling},
    source::digest::{Hash, Stamp, hash_of},
    units::Position,
};

/// What a record says of its key.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    /// The values that a row brings along that gets this key: comes right before [`Kind::Moved`].
    Fill = 0,
    /// A whole row, as it was read.
    Row = 1,
    /// It is this row; what is not known is as it was before.
    Put = 2,
    /// It is this row; what is not known stands under the key that the row had before.
    Moved = 3,
    /// It has no row.
    Delete = 4,
    /// It has no row; the row has another key, whose hash follows, and needs values from here.
    Leave = 5,
    /// Of a table without key: one row more like this.
    Add = 6,
    /// Of a table without key: one row less like this.
    Remove = 7,
}

/// The head of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) position: Position,
    /// Of a row that was read, the last of all.
    pub(super) sequence: u64,
    /// The version of the table under which it was written.
    pub(super) version: u32,
}

/// How rows of one version of a table become records.
pub(super) struct Taking {
    version: u32,
    /// Of each column of the layout: what it is in the lake, under this version; `None`: it had none.
    lakes: Vec<Option<LakeType>>,
    /// In that version's table.
    called: Vec<String>,
    /// As the file spells them.
    names: Vec<String>,
    /// What the rows have in one that came after them.
    befores: Vec<Stamp>,
    /// The key's columns, as columns of the layout.
    key: Vec<usize>,
    scratch: String,
    bytes: Vec<u8>,
}

/// Texts of an old row, by column.
type Old<'a> = Vec<(&'a str, Option<&'a str>)>;

impl Taking {
    /// For a layout of the definition `last`.
    pub(super) fn new(layout: &Layout, last: &Table, version: &Table) -> Self {
        let place = |name: &String| layout.columns.iter().position(|own| own == name);
        let key: Vec<usize> = layout.key.iter().filter_map(place).collect();
        let named = |name: &String| last.columns.iter().find(|own| own.name == *name);
        let columns: Vec<_> = layout.columns.iter().map(named).collect();
        let same = |column: &Option<&Column>| column.and_then(|own| same_column(version, own));
        let name = |column| same(column).map_or_else(String::new, |own| own.name.clone());
        let before = |(at, column): (usize, &Option<&Column>)| match (before((*column)?), *column) {
            (Some(value), Some(column)) => printed(value?, column.lake, key.contains(&at)),
            // All rows were written anew since it came, and with what nobody knows.
            (None, Some(column)) if !key.is_empty() => plain_default(column).map(|_| Stamp::Open),
            (None, Some(_)) | (_, None) => None,
        };
        let befores = columns.iter().enumerate().map(|of| before(of).unwrap_or(Stamp::Null));
        Self {
            version: version.version,
            lakes: columns.iter().map(|column| same(column).map(|own| own.lake)).collect(),
            called: columns.iter().map(name).collect(),
            names: vec![],
            befores: befores.collect(),
            key,
            scratch: String::new(),
            bytes: vec![],
        }
    }

    /// Where the layout's columns stand in a file of the version, before its rows are taken.
    pub(super) fn places(&mut self, rows: &Rows, version: &Table) -> Vec<Option<usize>> {
        let names: Vec<&str> = rows.names().collect();
        let spelt = spelling(version, |name| names.contains(&name));
        self.names = self.called.iter().map(|name| spelt(name)).collect();
        let known = self.names.iter().zip(&self.lakes);
        let place = |(name, lake): (&String, &Option<LakeType>)| {
            lake.and_then(|_| names.iter().position(|own| own == name))
        };
        known.map(place).collect()
    }

    /// Gives the records of a row. `Err` of `push`, or `None`: the row does not say what it is called.
    pub(super) fn take<E>(
        &mut self,
        rows: &Rows,
        row: usize,
        places: &[Option<usize>],
        push: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<()>, E> {
        let meta = rows.meta(row);
        let read = matches!(meta.op, Op::Snapshot | Op::Repair);
        let head = Head {
            kind: Kind::Row,
            position: meta.position,
            sequence: if read { u64::MAX } else { meta.sequence },
            version: self.version,
        };
        let of = |kind| Head { kind, ..head };
        let old = rows.old_key(row);
        let stamps = self.stamps(rows, row, places, old.as_ref());
        if self.key.is_empty() {
            let now = self.hash(&stamps);
            match (meta.op, &old) {
                (Op::Insert, _) => push(self.record(now, of(Kind::Add), &[]))?,
                (Op::Delete, _) => push(self.record(now, of(Kind::Remove), &[]))?,
                (Op::Update, None) => {}
                (Op::Update, Some(old)) => {
                    let Some(before) = self.old_stamps(old) else { return Ok(None) };
                    let before = self.hash(&before);
                    push(self.record(before, of(Kind::Remove), &[]))?;
                    push(self.record(now, of(Kind::Add), &[]))?;
                }
                (_, _) => push(self.record(now, head, &[]))?,
            }
            return Ok(Some(()));
        }
        let before = old.as_ref().and_then(|old| self.old_name(old));
        let Some(now) = self.name(&stamps).or(before) else { return Ok(None) };
        match meta.op {
            Op::Delete => push(self.record(before.unwrap_or(now), of(Kind::Delete), &[]))?,
            Op::Update if before.is_some_and(|before| before != now) => {
                let before = before.unwrap_or(now);
                if stamps.contains(&Stamp::Open) {
                    push(self.leave(before, of(Kind::Leave), now))?;
                    push(self.record(now, of(Kind::Moved), &stamps))?;
                } else {
                    push(self.record(before, of(Kind::Delete), &[]))?;
                    push(self.record(now, of(Kind::Put), &stamps))?;
                }
            }
            _ if read => push(self.record(now, head, &stamps))?,
            _ => push(self.record(now, of(Kind::Put), &stamps))?,
        }
        Ok(Some(()))
    }

    fn record(&mut self, hash: Hash, head: Head, stamps: &[Stamp]) -> &[u8] {
        record(&mut self.bytes, &hash, &head, stamps);
        &self.bytes
    }

    fn leave(&mut self, hash: Hash, head: Head, to: Hash) -> &[u8] {
        record(&mut self.bytes, &hash, &head, &[]);
        self.bytes.extend_from_slice(&to);
        &self.bytes
    }

    /// What stands for the row's values. Of a table without key nothing may be left open, and a value that is
    /// left out stands in the old row.
    fn stamps(
        &mut self,
        rows: &Rows,
        row: usize,
        places: &[Option<usize>],
        old: Option<&Old<'_>>,
    ) -> Vec<Stamp> {
        let mut stamps = Vec::with_capacity(places.len());
        for (at, place) in places.iter().enumerate() {
            let Some(place) = *place else {
                stamps.push(self.before(at));
                continue;
            };
            let stamp = match rows.field(row, place) {
                Field::Value(value) if self.key.contains(&at) => {
                    self.scratch.clear();
                    value.print(rows.lake(place), &mut self.scratch);
                    match value {
                        Value::Null => Stamp::Null,
                        _ => Stamp::Short(self.scratch.as_str().into()),
                    }
                }
                Field::Value(value) => Stamp::of_value(&value, rows.lake(place), &mut self.scratch),
                Field::Unchanged => match old.and_then(|old| self.old_stamp(old, at)) {
                    Some(stamp) => stamp,
                    None => Stamp::Open,
                },
            };
            stamps.push(stamp);
        }
        stamps
    }

    fn old_stamps(&self, old: &Old<'_>) -> Option<Vec<Stamp>> {
        (0..self.names.len()).map(|at| self.old_stamp(old, at)).collect()
    }

    /// A value of the old row, if it says it.
    fn old_stamp(&self, old: &Old<'_>, at: usize) -> Option<Stamp> {
        let Some(lake) = *self.lakes.get(at)? else { return Some(self.before(at)) };
        let (_, text) = old.iter().find(|(name, _)| *name == self.names[at])?;
        let Some(text) = text else { return Some(Stamp::Null) };
        printed(text, lake, self.key.contains(&at))
    }

    fn before(&self, at: usize) -> Stamp {
        self.befores.get(at).cloned().unwrap_or(Stamp::Null)
    }

    /// The hash of the key's values, if all are known.
    fn name(&mut self, stamps: &[Stamp]) -> Option<Hash> {
        let key: Option<Vec<&Stamp>> = self.key.iter().map(|at| stamps.get(*at)).collect();
        let key = key.filter(|key| !key.contains(&&Stamp::Open))?;
        Some(hash_of(key, &mut self.bytes))
    }

    fn old_name(&self, old: &Old<'_>) -> Option<Hash> {
        let key: Option<Vec<Stamp>> = self.key.iter().map(|at| self.old_stamp(old, *at)).collect();
        Some(hash_of(&key?, &mut vec![]))
    }

    fn hash(&mut self, stamps: &[Stamp]) -> Hash {
        hash_of(stamps, &mut self.bytes)
    }
}

/// What stands for a value that was printed. `None`: it is none of its type.
fn printed(text: &str, lake: LakeType, in_key: bool) -> Option<Stamp> {
    Some(match (lake, text.strip_prefix("\\x")) {
        _ if in_key => Stamp::Short(text.into()),
        (LakeType::Binary, Some(digits)) => {
            let bytes = hex::decode(digits).ok()?;
            Stamp::of_value(&Value::Bytes(bytes.into()), lake, &mut String::new())
        }
        _ => Stamp::of_text(text),
    })
}

/// Writes a record.
pub(super) fn record(into: &mut Vec<u8>, hash: &Hash, head: &Head, stamps: &[Stamp]) {
    into.clear();
    into.extend_from_slice(hash);
    into.push(head.kind as u8);
    into.extend_from_slice(&head.position.0.to_be_bytes());
    into.extend_from_slice(&head.sequence.to_be_bytes());
    into.extend_from_slice(&head.version.to_be_bytes());
    for stamp in stamps {
        match stamp {
            Stamp::Null => into.push(0),
            Stamp::Short(text) => {
                into.push(1);
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                into.extend_from_slice(&length.to_be_bytes());
                into.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
            }
            Stamp::Long(sum) => {
                into.push(2);
                into.extend_from_slice(sum);
            }
            Stamp::Open => into.push(3),
        }
    }
}

/// Reads the head of what follows a record's hash, and gives the rest. `None`: it is none.
pub(super) fn head(bytes: &[u8]) -> Option<(Head, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let kind = KINDS.into_iter().find(|known| *known as u8 == *kind)?;
    let head = Head {
        kind,
        position: Position(u64::from_be_bytes(*position)),
        sequence: u64::from_be_bytes(*sequence),
        version: u32::from_be_bytes(*version),
    };
    Some((head, rest))
}

/// Reads a record's stamps. `None`: they are none.
pub(super) fn stamps(bytes: &[u8]) -> Option<Vec<Stamp>> {
    let (mut rest, mut found) = (bytes, vec![]);
    while let Some((kind, after)) = rest.split_first() {
        let (stamp, after) = match kind {
            0 => (Stamp::Null, after),
            1 => {
                let (length, after) = after.split_first_chunk::<2>()?;
                let (text, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
                (Stamp::Short(str::from_utf8(text).ok()?.into()), after)
            }
            2 => {
                let (sum, after) = after.split_first_chunk::<32>()?;
                (Stamp::Long(*sum), after)
            }
            3 => (Stamp::Open, after),
            _ => return None,
        };
        found.push(stamp);
        rest = after;
    }
    Some(found)
}

const KINDS: [Kind; 8] = [
    Kind::Fill,
    Kind::Row,
    Kind::Put,
    Kind::Moved,
    Kind::Delete,
    Kind::Leave,
    Kind::Add,
    Kind::Remove,
];
