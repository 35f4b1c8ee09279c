//! How large a table is before its snapshot.

use std::collections::BTreeSet;

use super::{
    catalog::Listed,
    chunks::{Extent, Plan},
    error::SourceError,
    session::Shared,
    wire::Wire,
};
use crate::{
    facts::{self, FactDamaged},
    source::{ChunkDone, chunk_facts},
};

/// What a table measures.
pub(super) struct Size {
    pub(super) extent: Extent,
    pub(super) rows: u64,
    bytes: u64,
}

impl Size {
    /// Nothing of the table is under way, but for what a pass that was broken off may have left to seal.
    pub(super) fn tell(
        &self,
        shared: &Shared,
        (id, plan): (u32, &Plan),
        done: &BTreeSet<u32>,
    ) -> Result<(), FactDamaged> {
        let parts = facts::read_all::<ChunkDone>(&*shared.facts, &chunk_facts(id))?;
        let rows = parts.iter().map(|(_, part)| part.rows).sum();
        shared.board.write(|status| {
            let progress = status.snapshot.entry(plan.table.clone()).or_default();
            progress.chunks = plan.count();
            progress.chunks_done = u32::try_from(done.len()).unwrap_or(u32::MAX);
            (progress.rows, progress.rows_done) = (rows, rows);
            progress.rows_estimated = self.rows.max(rows);
            progress.bytes_estimated = self.bytes;
        });
        Ok(())
    }
}

/// The table's file and size; `None` if it was rewritten since the snapshot or is gone.
pub(super) async fn size(
    wire: &mut Wire,
    id: u32,
    listed: &Listed,
) -> Result<Option<(u32, Size)>, SourceError> {
    let sql = format!(
        "SELECT c.relfilenode, pg_relation_filenode(c.oid), \
         pg_relation_size(c.oid) / current_setting('block_size')::int8, current_setting('block_size'), \
         greatest(c.reltuples, 0)::int8, pg_table_size(c.oid) FROM pg_class c WHERE c.oid = {id}"
    );
    let rows = wire.query("measure a table", &sql).await?;
    let Some(row) = rows.first().filter(|row| row.optional(2).is_some()) else {
        return Ok(None);
    };
    let filenode: u32 = row.parse_as(0)?;
    if row.optional(1) != row.optional(0) {
        return Ok(None);
    }
    let divisible = listed.addressable && wire.version() >= 140_000;
    let extent = Extent { blocks: row.parse_as(2)?, block_bytes: row.parse_as(3)?, divisible };
    Ok(Some((filenode, Size { extent, rows: row.parse_as(4)?, bytes: row.parse_as(5)? })))
}
