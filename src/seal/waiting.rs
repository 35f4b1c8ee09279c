//! Rows of changes that wait for others of their table, to be read together, a column after the other. Pure.
//!
//! **Invariant:** the rows of a table go on in the order that they came in. None waits beyond the batch that it points
//! into, nor beside one of another day.

use std::{ops::Range, sync::Arc};

use super::{Table, columns::RowMeta, cut::day, snapshot};
use crate::journal::{Cells, Decode};

/// Rows that wait, by table.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    tables: Vec<Rows>,
    /// Whose row came last.
    last: usize,
    /// The day that they were committed on.
    day: Option<i64>,
    rows: usize,
}

/// Those of one table.
#[derive(Debug)]
struct Rows {
    id: u32,
    table: Arc<Table>,
    /// `None`: they have to be looked at one by one.
    cells: Option<Cells>,
    metas: Vec<RowMeta>,
}

impl Waiting {
    /// Where the rows of a table wait.
    pub(super) fn place(&mut self, id: u32) -> Option<usize> {
        if self.tables.get(self.last).is_none_or(|rows| rows.id != id) {
            self.last = self.tables.iter().position(|rows| rows.id == id)?;
        }
        Some(self.last)
    }

    /// Whether there is no place for another table's rows.
    pub(super) fn is_full(&self) -> bool {
        self.tables.len() >= TABLES_MAX
    }

    /// Makes a place for the rows of a table.
    pub(super) fn admit(&mut self, table: &Arc<Table>, decode: &dyn Decode) -> usize {
        let (table, cells) = (Arc::clone(table), snapshot::cells(table, decode));
        self.tables.push(Rows { id: table.id, table, cells, metas: vec![] });
        self.last = self.tables.len() - 1;
        self.last
    }

    /// Whether a row that was committed then cannot wait with those that do.
    pub(super) fn is_of_another_day(&self, meta: &RowMeta) -> bool {
        self.rows > 0 && self.day != Some(day(meta.committed_at))
    }

    /// Where the next row of that place is to be read to; `None`: it cannot wait.
    pub(super) fn cells(&mut self, place: usize) -> Option<&mut Cells> {
        self.tables[place].cells.as_mut()
    }

    /// The row that was read to that place waits. True: it is the last that can.
    pub(super) fn add(&mut self, place: usize, meta: RowMeta) -> bool {
        let rows = &mut self.tables[place];
        rows.metas.push(meta);
        self.day = Some(day(meta.committed_at));
        self.rows += 1;
        rows.cells.as_ref().is_some_and(Cells::is_full)
    }

    /// All places.
    pub(super) fn places(&self) -> Range<usize> {
        0..self.tables.len()
    }

    /// The rows that wait there, if there are any.
    pub(super) fn rows(&self, place: usize) -> Option<(&Arc<Table>, &Cells, &[RowMeta])> {
        let Rows { table, cells, metas, .. } = self.tables.get(place)?;
        let cells = cells.as_ref().filter(|_| !metas.is_empty())?;
        Some((table, cells, metas))
    }

    /// They have gone on.
    pub(super) fn gone(&mut self, place: usize) {
        let rows = &mut self.tables[place];
        rows.cells.iter_mut().for_each(Cells::clear);
        self.rows -= rows.metas.len();
        rows.metas.clear();
        rows.metas.shrink_to(METAS_KEPT);
    }

    /// Gives up all places, where nothing waits any more.
    pub(super) fn leave(&mut self) {
        debug_assert_eq!(self.rows, 0, "they go on first");
        *self = Self::default();
    }
}

/// Each holds 26 KiB, whether or not rows wait: 16 of cells, and room for [`METAS_KEPT`].
const TABLES_MAX: usize = 64;
/// More are only in a block of few columns.
const METAS_KEPT: usize = 256;
