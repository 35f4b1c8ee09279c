//! Plans which parts of a table are read, one by one, for its snapshot. Pure.
//!
//! A part is a range of the table's blocks; where all of it is read again, of its keys. Fact `source/snapshot/<table id>`: a [`Plan`], recorded
//! before its first part is read; the numbers of its parts never change their number, so that parts
//! which are sealed stay sealed over restarts.
//!
//! **Invariant (I12):** at any time the parts that are done and those that are not cover, together,
//! every row of the table as it was when the part was read: the last part is open-ended, and when the
//! table was rewritten (its rows stand in other blocks), the parts not done cover the whole table anew.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ranges::Ranges, rewritten::Layout};

/// The parts of a table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Plan {
    /// Qualified name, for people.
    pub(crate) table: String,
    /// The table's file when it was planned.
    pub(crate) filenode: u32,
    /// The parts, by number.
    pub(crate) chunks: Vec<Blocks>,
    /// Whether all parts are sealed.
    pub(crate) done: bool,
    /// Whether they are read a second time, for the rows that may lack values.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) again: bool,
    /// The parts of that, which then count instead of `chunks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ranges: Option<Ranges>,
    /// How often all of it was begun to be read again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) passes: u32,
    /// Whether the table was seen to be gone: dropped, or no longer among those to be copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) gone: bool,
    /// Whether the ledger was told of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) told: bool,
    /// Its columns with the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layout: Option<Layout>,
    /// How many columns there had ever been when the file was seen first, if not those of `layout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) columns: Option<u16>,
}

/// A range of blocks.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Blocks {
    /// The first block.
    pub(crate) from: u32,
    /// The block after the last; the table's end, wherever that is by then, if absent.
    pub(crate) to: Option<u32>,
}

/// How large a table is, and whether it may be read in parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Extent {
    pub(crate) blocks: u32,
    pub(crate) block_bytes: u32,
    /// Parts may stand under different snapshots only if rows can be told apart, and are read by
    /// block only since PostgreSQL 14.
    pub(crate) divisible: bool,
}

impl Plan {
    /// A plan for a table that has none.
    pub(crate) fn new(table: String, filenode: u32, extent: Extent) -> Self {
        let count = match extent.divisible {
            true => extent.blocks.div_ceil(chunk_blocks(extent)).clamp(1, CHUNKS_MAX),
            false => 1,
        };
        let chunks = divided(extent.blocks, count);
        Self { filenode, chunks, ..Self::empty(table) }
    }

    /// A plan without parts.
    pub(crate) fn empty(table: String) -> Self {
        Self {
            table,
            filenode: 0,
            chunks: vec![],
            done: false,
            again: false,
            ranges: None,
            passes: 0,
            gone: false,
            told: false,
            layout: None,
            columns: None,
        }
    }

    /// It is seen with a file, and with these columns. Gives those that it had before.
    pub(crate) fn see(&mut self, file: u32, layout: Layout) -> Option<Layout> {
        self.columns = self.columns_of(file).filter(|first| *first != layout.attributes());
        self.filenode = file;
        self.layout.replace(layout)
    }

    /// How many columns there had ever been when this `file` was seen first; `None`: it was not yet.
    pub(crate) fn columns_of(&self, file: u32) -> Option<u16> {
        let as_read = || self.layout.as_ref().map(Layout::attributes);
        self.columns.or_else(as_read).filter(|_| self.filenode == file)
    }

    /// What is left of it when the table is gone.
    pub(crate) fn parted(&self) -> Self {
        Self { done: self.done, gone: true, told: true, ..Self::empty(self.table.clone()) }
    }

    /// The plan of a table that is back: its parts are still to be made.
    pub(crate) fn anew(&self) -> Self {
        Self::empty(self.table.clone())
    }

    /// Whether it has no parts yet: the table was gone.
    pub(crate) fn is_to_be_made(&self) -> bool {
        !self.done && self.count() == 0
    }

    /// The plan by which all of it is read again. The number of its parts is kept for those to come.
    pub(crate) fn again(&self) -> Self {
        let passes = self.passes.saturating_add(1);
        Self { done: false, again: true, ranges: None, passes, ..self.clone() }
    }

    /// Whether it is read again by its keys because even that did not do.
    pub(crate) fn is_restless(&self) -> bool {
        self.passes > 1
    }

    /// The table was rewritten: the parts not done cover it anew. Ranges of keys are what they were.
    pub(crate) fn renew(&mut self, done: &BTreeSet<u32>, filenode: u32, extent: Extent) {
        self.filenode = filenode;
        if self.ranges.is_some() {
            return;
        }
        let open: Vec<u32> = self.missing(done).collect();
        let count = u32::try_from(open.len()).unwrap_or(u32::MAX);
        for (number, blocks) in open.into_iter().zip(divided(extent.blocks, count.max(1))) {
            if let Some(chunk) = usize::try_from(number).ok().and_then(|at| self.chunks.get_mut(at))
            {
                *chunk = blocks;
            }
        }
    }

    /// How many parts there are.
    pub(crate) fn count(&self) -> u32 {
        let blocks = || u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        self.ranges.as_ref().map_or_else(blocks, Ranges::count)
    }

    /// Numbers of the parts that are not done.
    pub(crate) fn missing(&self, done: &BTreeSet<u32>) -> impl Iterator<Item = u32> {
        (0..self.count()).filter(move |number| !done.contains(number))
    }

    /// The condition on the rows of a part, with its WHERE.
    pub(crate) fn condition(&self, number: u32) -> Option<String> {
        match &self.ranges {
            Some(ranges) => Some(ranges.condition(number)),
            None => self.blocks(number).map(Blocks::condition),
        }
    }

    fn blocks(&self, number: u32) -> Option<Blocks> {
        self.chunks.get(usize::try_from(number).ok()?).copied()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Blocks {
    /// The whole table.
    pub(crate) const ALL: Self = Self { from: 0, to: None };

    /// The condition on the rows of the part, with its WHERE; empty for the whole table.
    fn condition(self) -> String {
        let from = (self.from > 0).then(|| format!("ctid >= '({},0)'", self.from));
        let to = self.to.map(|to| format!("ctid < '({to},0)'"));
        match (from, to) {
            (None, None) => String::new(),
            (Some(one), None) | (None, Some(one)) => format!(" WHERE {one}"),
            (Some(from), Some(to)) => format!(" WHERE {from} AND {to}"),
        }
    }
}

/// `count` ranges of about the same size, the last one open.
fn divided(blocks: u32, count: u32) -> Vec<Blocks> {
    let bound = |number: u32| {
        let bound = u64::from(blocks) * u64::from(number) / u64::from(count.max(1));
        u32::try_from(bound).unwrap_or(u32::MAX)
    };
    let ranges = (0..count).map(|number| Blocks {
        from: bound(number),
        to: (number + 1 < count).then(|| bound(number + 1)),
    });
    ranges.collect()
}

fn chunk_blocks(extent: Extent) -> u32 {
    (CHUNK_BYTES / extent.block_bytes.max(1)).max(1)
}

/// Of a table's main file, per part: seconds of reading, which is what a crash costs.
const CHUNK_BYTES: u32 = 128 << 20;
/// Keeps the plan's fact small: beyond 2 TiB the parts grow.
const CHUNKS_MAX: u32 = 16_384;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(blocks: u32, divisible: bool) -> Extent {
        Extent { blocks, block_bytes: 8192, divisible }
    }

    /// Which of `parts` read the row in `block`.
    fn readers<'a>(plan: &'a Plan, parts: &'a [u32], block: u32) -> impl Iterator<Item = u32> + 'a {
        parts.iter().copied().filter(move |number| {
            let blocks = plan.blocks(*number).unwrap();
            blocks.from <= block && blocks.to.is_none_or(|to| block < to)
        })
    }

    #[test]
    fn a_plans_fact_keeps_its_bytes() {
        let plan = Plan::new("public.t".into(), 9, extent(16_385, true));
        assert_eq!(
            serde_json::to_string(&plan).unwrap(),
            r#"{"table":"public.t","filenode":9,"chunks":[{"from":0,"to":8192},{"from":8192,"to":null}],"done":false}"#
        );
        let gone = serde_json::to_string(&Plan { gone: true, ..plan.clone() }).unwrap();
        assert!(gone.ends_with(r#","done":false,"gone":true}"#), "{gone}");
        assert_eq!(plan.condition(0).unwrap(), " WHERE ctid < '(8192,0)'");
        assert_eq!(plan.condition(1).unwrap(), " WHERE ctid >= '(8192,0)'");
        let again = r#"{"table":"public.t","filenode":9,"chunks":[],"done":false,"again":true,"ranges":{"columns":[{"name":"id","of":"bigint"}],"bounds":[["7"]]},"passes":1}"#;
        let again: Plan = serde_json::from_str(again).unwrap();
        assert_eq!((again.count(), again.passes), (2, 1));
        assert_eq!(again.condition(1).unwrap(), r#" WHERE ("id") > ('7'::bigint)"#);
    }

    #[test]
    fn a_rewrite_moves_no_key_to_another_part() {
        let again = r#"{"table":"public.t","filenode":9,"chunks":[{"from":0,"to":7},{"from":7,"to":null}],"done":false,"again":true,"ranges":{"columns":[{"name":"id","of":"bigint"}],"bounds":[["7"]]}}"#;
        let mut plan: Plan = serde_json::from_str(again).unwrap();
        let before = plan.clone();
        plan.renew(&BTreeSet::from([0]), 10, extent(100, true));
        assert_eq!(plan, Plan { filenode: 10, ..before });
        let next = plan.again();
        assert_eq!((&next.ranges, next.passes, next.chunks.len()), (&None, 1, 2));
        // A person hears of it when a second one is needed.
        assert!(!next.is_restless() && next.again().is_restless());
    }

    #[test]
    fn a_table_whose_rows_cannot_be_told_apart_is_one_part() {
        let plan = Plan::new("public.t".into(), 9, extent(1 << 20, false));
        assert_eq!(plan.chunks, [Blocks { from: 0, to: None }]);
        assert_eq!(plan.chunks[0].condition(), "");
    }

    proptest! {
        #[test]
        fn every_block_is_read_by_exactly_one_part(
            blocks in 0u32..3_000_000, probe in 0u32..4_000_000,
        ) {
            let plan = Plan::new("public.t".into(), 9, extent(blocks, true));
            let all: Vec<u32> = plan.missing(&BTreeSet::new()).collect();
            prop_assert_eq!(readers(&plan, &all, probe).count(), 1);
        }

        #[test]
        fn after_a_rewrite_the_parts_not_done_read_every_block_once(
            blocks in 100_000u32..900_000, after in 0u32..900_000,
            done in prop::collection::btree_set(0u32..6, 0..6), probe in 0u32..1_000_000,
        ) {
            let mut plan = Plan::new("public.t".into(), 9, extent(blocks, true));
            let before = plan.clone();
            plan.renew(&done, 10, extent(after, true));
            let open: Vec<u32> = plan.missing(&done).collect();
            prop_assert_eq!(plan.count(), before.count());
            prop_assert_eq!(readers(&plan, &open, probe).count(), 1);
            for number in done.into_iter().filter(|number| *number < before.count()) {
                prop_assert_eq!(plan.blocks(number), before.blocks(number));
            }
        }
    }
}
