//! Large objects of the database (`lo`, documents and pictures beside the tables), as rows of a table of ours. Pure.
//!
//! They are in no change stream: so they are looked for again and again, and those that are new go to the lake as
//! rows of [`table`], a row for each piece; a piece that has only zeros is left out, but for the first and the last.
//! What is written over in place nobody can see from outside, and is not looked for.
//!
//! | fact | what |
//! |---|---|
//! | `source/large-objects` | [`Look`]: how far they are in the lake |
//! | `source/large-object/<id / 2²⁰, hex>/<id / 2¹², hex>` | [`Block`]: those of 4,096 numbers that the lake has |
//! | `source/large-object-part/<number>` | [`Part`]: what was sealed since; recorded with its group, and merged into the blocks |
//!
//! **Invariant:** all objects that were committed up to a look's position, and could be read, are in the lake with
//! what the ledger says of it; a fact of one is recorded with the rows that it speaks of, or later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Table, own::own_table};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    units::Position,
};

/// How far they are in the lake. Fact: [`LOOK_FACT`].
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Look {
    /// All that were committed up to here are in the lake; 0: not all are.
    pub position: Position,
    /// All of them are being read, at this position or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Position>,
    /// Of the next chunk: greater than that of any in the lake.
    pub number: u32,
}

impl Look {
    /// Where what is in the lake counts from: what was read before the last gap does not.
    pub fn stands(&self) -> Position {
        self.begun.unwrap_or(self.position)
    }
}

/// Those of 4,096 numbers that the lake has, each with its pieces.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Block {
    /// As they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<u32, u32>,
    /// As they were before a gap: to be read again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stale: BTreeMap<u32, u32>,
}

/// What a chunk has.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Whole objects, with their pieces.
    Objects(BTreeMap<u32, u32>),
    /// Some pieces of a great one.
    Pieces {
        /// The object.
        id: u32,
        /// The first piece.
        from: u32,
        /// Behind the last one.
        to: u32,
        /// Pieces in all.
        of: u32,
    },
    /// Objects that are gone.
    Gone(Vec<u32>),
}

/// An object of which the lake has rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Held {
    /// Pieces, those of only zeros counted.
    pub pieces: u32,
    /// Whether all of it is there, and counts.
    pub is_whole: bool,
}

/// Pieces of great objects that are sealed: by object, the first, the one behind the last, and all.
pub type Begun = BTreeMap<u32, Vec<(u32, u32, u32)>>;

/// The table that holds the large objects of a source.
pub fn table() -> Table {
    own_table(TABLE_ID, TABLE_NAME, &COLUMNS, KEY)
}

/// How many pieces an object of so many bytes has; an empty one has one.
pub fn pieces(size: u64) -> u32 {
    u32::try_from(size.div_ceil(PIECE_BYTES).max(1)).unwrap_or(u32::MAX)
}

/// The objects from one number up to another of which the lake has rows. The numbers lie in one [`run`].
///
/// # Errors
///
/// A fact is something else.
pub fn held(
    facts: &dyn Facts,
    (from, to): (u32, u32),
    begun: &Begun,
) -> Result<BTreeMap<u32, Held>, FactDamaged> {
    let mut held = BTreeMap::new();
    for (_, block) in facts::read_all::<Block>(facts, &run_facts(run(from)))? {
        for (of, is_whole) in [(block.stale, false), (block.objects, true)] {
            let of = of.into_iter().filter(|(id, _)| (from..=to).contains(id));
            held.extend(of.map(|(id, pieces)| (id, Held { pieces, is_whole })));
        }
    }
    for (id, ranges) in begun.range(from..=to) {
        let pieces = ranges.iter().map(|(_, _, of)| *of).max().unwrap_or(0);
        let known = held.entry(*id).or_insert(Held { pieces, is_whole: false });
        known.pieces = known.pieces.max(pieces);
    }
    Ok(held)
}

/// The great objects of which some pieces are sealed.
///
/// # Errors
///
/// A fact is something else.
pub fn begun(facts: &dyn Facts) -> Result<Begun, FactDamaged> {
    let mut begun = Begun::new();
    for (_, part) in facts::read_all::<Part>(facts, PART_FACTS)? {
        if let Part::Pieces { id, from, to, of } = part {
            begun.entry(id).or_default().push((from, to, of));
        }
    }
    Ok(begun)
}

/// Of an object of so many pieces, those that are not sealed: ranges of at most `most`.
pub fn missing(begun: &[(u32, u32, u32)], pieces: u32, most: u32) -> Vec<(u32, u32)> {
    let mut done: Vec<(u32, u32)> =
        begun.iter().filter(|(_, _, of)| *of == pieces).map(|(from, to, _)| (*from, *to)).collect();
    done.sort_unstable();
    let (mut missing, mut at) = (vec![], 0);
    for (from, to) in done.into_iter().chain([(pieces, pieces)]) {
        while at < from {
            let end = from.min(at.saturating_add(most));
            missing.push((at, end));
            at = end;
        }
        at = at.max(to);
    }
    missing
}

/// What becomes of the blocks with a part; of a great object once all its pieces are there.
///
/// # Errors
///
/// A fact is something else.
pub fn merge(facts: &dyn Facts, number: u32, begun: &Begun) -> Result<FactBatch, FactDamaged> {
    let (key, mut batch) = (part_fact(number), FactBatch::default());
    let Some(part) = facts::read::<Part>(facts, &key)? else { return Ok(batch) };
    let mut blocks = BTreeMap::new();
    match part {
        Part::Objects(objects) => {
            for (id, pieces) in objects {
                let block = block(facts, &mut blocks, id)?;
                block.stale.remove(&id);
                block.objects.insert(id, pieces);
                forget_begun(facts, id, begun, &mut batch)?;
            }
        }
        Part::Pieces { id, of, .. } => {
            let ranges = begun.get(&id).map(Vec::as_slice).unwrap_or_default();
            if !missing(ranges, of, u32::MAX).is_empty() {
                return Ok(batch);
            }
            let block = block(facts, &mut blocks, id)?;
            block.stale.remove(&id);
            block.objects.insert(id, of);
            forget_begun(facts, id, begun, &mut batch)?;
        }
        Part::Gone(ids) => {
            for id in ids {
                let block = block(facts, &mut blocks, id)?;
                block.stale.remove(&id);
                block.objects.remove(&id);
                forget_begun(facts, id, begun, &mut batch)?;
            }
        }
    }
    for (number, block) in blocks {
        match block == Block::default() {
            true => batch.delete(block_fact(number)),
            false => batch.put(block_fact(number), &block),
        };
    }
    batch.delete(key);
    Ok(batch)
}

/// What becomes of the blocks of one [`run`] behind a gap: what they have is to be read again.
///
/// # Errors
///
/// A fact is something else.
pub fn outdate(facts: &dyn Facts, run: u32, begun: &Begun) -> Result<FactBatch, FactDamaged> {
    let (mut batch, mut blocks) = (FactBatch::default(), BTreeMap::new());
    let first = run << RUN_BITS;
    for (key, known) in facts::read_all::<Block>(facts, &run_facts(run))? {
        if let Some(number) =
            key.rsplit('/').next().and_then(|hex| u32::from_str_radix(hex, 16).ok())
        {
            blocks.insert(number, known);
        }
    }
    for block in blocks.values_mut() {
        block.stale.append(&mut block.objects);
    }
    for (id, ranges) in begun.range(first..=first | ((1 << RUN_BITS) - 1)) {
        let of = ranges.iter().map(|(_, _, of)| *of).max().unwrap_or(0);
        let stale = &mut block(facts, &mut blocks, *id)?.stale;
        stale.entry(*id).and_modify(|pieces| *pieces = of.max(*pieces)).or_insert(of);
        forget_begun(facts, *id, begun, &mut batch)?;
    }
    for (number, block) in blocks {
        batch.put(block_fact(number), &block);
    }
    Ok(batch)
}

fn block<'a>(
    facts: &dyn Facts,
    blocks: &'a mut BTreeMap<u32, Block>,
    id: u32,
) -> Result<&'a mut Block, FactDamaged> {
    let number = id >> BLOCK_BITS;
    if let std::collections::btree_map::Entry::Vacant(place) = blocks.entry(number) {
        place.insert(facts::read(facts, &block_fact(number))?.unwrap_or_default());
    }
    Ok(blocks.get_mut(&number).expect("it was put there"))
}

/// Forgets which pieces of an object were sealed.
fn forget_begun(
    facts: &dyn Facts,
    id: u32,
    begun: &Begun,
    batch: &mut FactBatch,
) -> Result<(), FactDamaged> {
    if !begun.contains_key(&id) {
        return Ok(());
    }
    for (key, part) in facts::read_all::<Part>(facts, PART_FACTS)? {
        if matches!(part, Part::Pieces { id: own, .. } if own == id) {
            batch.delete(key);
        }
    }
    Ok(())
}

/// Numbers of objects are looked at in runs: a million of them.
pub fn run(id: u32) -> u32 {
    id >> RUN_BITS
}

/// The numbers from `from` to `to`, by their runs.
pub fn runs((from, to): (u32, u32)) -> impl Iterator<Item = (u32, u32)> {
    (run(from)..=run(to)).map(move |run| {
        let first = run << RUN_BITS;
        (first.max(from), (first | ((1 << RUN_BITS) - 1)).min(to))
    })
}

/// Key of a [`Part`].
pub fn part_fact(number: u32) -> String {
    format!("{PART_FACTS}{number:010}")
}

/// The number in a [`part_fact`].
pub fn part_number(key: &str) -> Option<u32> {
    key.strip_prefix(PART_FACTS)?.parse().ok()
}

fn run_facts(run: u32) -> String {
    format!("{BLOCK_FACTS}{run:03x}/")
}

fn block_fact(block: u32) -> String {
    format!("{}{block:05x}", run_facts(block >> (RUN_BITS - BLOCK_BITS)))
}

/// Key of the last [`Look`].
pub const LOOK_FACT: &str = "source/large-objects";
/// Prefix of all [`part_fact`]s.
pub const PART_FACTS: &str = "source/large-object-part/";
/// Prefix of the [`Block`]s.
pub const BLOCK_FACTS: &str = "source/large-object/";
/// The name of the table that holds the large objects.
pub const TABLE_NAME: &str = "large_objects";
/// Bytes of a piece, but the last.
pub const PIECE_BYTES: u64 = 512 << 10;
/// That of the catalog `pg_largeobject`, which no customer's table can have.
pub const TABLE_ID: u32 = 2613;
/// The first columns are the key.
const KEY: usize = 2;
const RUN_BITS: u32 = 20;
const BLOCK_BITS: u32 = 12;
/// Names as in PostgreSQL's `pg_largeobject`, where it has them; and types. The size is that of the whole object.
pub const COLUMNS: [(&str, &str); 5] = [
    ("loid", "bigint"),
    ("piece", "integer"),
    ("owner", "text"),
    ("size", "bigint"),
    ("data", "bytea"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::MemoryFacts;

    fn put(facts: &MemoryFacts, number: u32, part: &Part) {
        let mut batch = FactBatch::default();
        batch.put(part_fact(number), part);
        facts.record_blocking(batch).unwrap();
    }

    fn merged(facts: &MemoryFacts) {
        for (key, _) in facts.scan(PART_FACTS) {
            let begun = begun(facts).unwrap();
            let batch = merge(facts, part_number(&key).unwrap(), &begun).unwrap();
            facts.record_blocking(batch).unwrap();
        }
    }

    fn all(facts: &MemoryFacts) -> Vec<(u32, u32, bool)> {
        let begun = begun(facts).unwrap();
        let runs = runs((0, u32::MAX)).flat_map(|range| held(facts, range, &begun).unwrap());
        runs.map(|(id, held)| (id, held.pieces, held.is_whole)).collect()
    }

    #[test]
    fn parts_become_what_is_held_and_go() {
        let facts = MemoryFacts::default();
        put(&facts, 0, &Part::Objects(BTreeMap::from([(5000, 1), (u32::MAX, 3)])));
        merged(&facts);
        assert_eq!(all(&facts), [(5000, 1, true), (u32::MAX, 3, true)]);
        put(&facts, 1, &Part::Pieces { id: 7, from: 0, to: 256, of: 300 });
        merged(&facts);
        assert_eq!(all(&facts)[0], (7, 300, false), "a great one counts once all of it is there");
        put(&facts, 2, &Part::Pieces { id: 7, from: 256, to: 300, of: 300 });
        put(&facts, 3, &Part::Gone(vec![5000]));
        merged(&facts);
        assert_eq!(all(&facts), [(7, 300, true), (u32::MAX, 3, true)]);
        put(&facts, 4, &Part::Gone(vec![7, u32::MAX]));
        merged(&facts);
        assert_eq!((all(&facts), facts.scan("source/").len()), (vec![], 0));
    }

    #[test]
    fn behind_a_gap_what_is_held_is_to_be_read_again() {
        let facts = MemoryFacts::default();
        put(&facts, 0, &Part::Objects(BTreeMap::from([(5000, 1), (6000, 9)])));
        merged(&facts);
        put(&facts, 1, &Part::Pieces { id: 7, from: 0, to: 256, of: 300 });
        for (from, _) in runs((0, u32::MAX)) {
            let begun = begun(&facts).unwrap();
            facts.record_blocking(outdate(&facts, run(from), &begun).unwrap()).unwrap();
        }
        assert_eq!(all(&facts), [(7, 300, false), (5000, 1, false), (6000, 9, false)]);
        put(&facts, 2, &Part::Objects(BTreeMap::from([(6000, 4)])));
        merged(&facts);
        assert_eq!(all(&facts)[2], (6000, 4, true));
    }

    #[test]
    fn of_a_great_object_what_is_missing_is_read() {
        assert_eq!(missing(&[], 1, 256), [(0, 1)]);
        assert_eq!(missing(&[], 600, 256), [(0, 256), (256, 512), (512, 600)]);
        assert_eq!(missing(&[(256, 512, 600), (0, 256, 600)], 600, 256), [(512, 600)]);
        assert_eq!(missing(&[(0, 100, 600)], 600, 500), [(100, 600)]);
        assert_eq!(missing(&[(0, 600, 600)], 600, 256), []);
        assert_eq!(missing(&[(0, 600, 600)], 601, 1000), [(0, 601)], "it grew: all of it is read");
        assert_eq!((pieces(0), pieces(1), pieces(1 << 20), pieces((1 << 20) + 1)), (1, 1, 2, 3));
        assert_eq!(pieces(4 << 40), 8 << 20);
    }

    #[test]
    fn the_facts_and_the_table_are_pinned() {
        assert_eq!(table().qualified(), "pg_lakehead.large_objects");
        assert_eq!(part_fact(7), "source/large-object-part/0000000007");
        assert_eq!(block_fact(0xABCDE), "source/large-object/abc/abcde");
        let json = |part: &Part| serde_json::to_string(part).unwrap();
        assert_eq!(json(&Part::Objects(BTreeMap::from([(9, 2)]))), r#"{"objects":{"9":2}}"#);
        let pieces = Part::Pieces { id: 9, from: 0, to: 1, of: 2 };
        assert_eq!(json(&pieces), r#"{"pieces":{"id":9,"from":0,"to":1,"of":2}}"#);
        assert_eq!(json(&Part::Gone(vec![9])), r#"{"gone":[9]}"#);
        let block = Block { objects: BTreeMap::from([(9, 2)]), stale: BTreeMap::from([(8, 1)]) };
        let said = serde_json::to_string(&block).unwrap();
        assert_eq!(said, r#"{"objects":{"9":2},"stale":{"8":1}}"#);
        assert_eq!(serde_json::from_str::<Block>(&said).unwrap(), block);
        let look = Look { position: Position(0xAB), begun: None, number: 3 };
        let said = serde_json::to_string(&look).unwrap();
        assert_eq!(said, r#"{"position":"00000000/000000AB","number":3}"#);
    }
}
