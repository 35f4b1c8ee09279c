//! Rows as lines of text: for simulation, where encoding Parquet would be most of the work and prove
//! nothing.
//!
//! ```text
//! <_op> <_sequence> <_position> <_xid> <table> <value> <value> …   \n
//! ```
//! A value is its text; `~` stands for one that is unchanged, `!` for NULL.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use super::{
    Op, SealError, Table,
    encode::{Encode, Layout, RowIn},
    object::{Draft, Maker},
};
use crate::{
    journal::{Cell, LakeType},
    units::Sequence,
};

/// One object that is being written.
struct Lines {
    table: Arc<Table>,
    layout: Layout,
    bytes: Vec<u8>,
    rows: BTreeMap<Op, u64>,
    range: Option<(Sequence, Sequence)>,
}

/// Begins an object of lines.
pub(super) fn lines(_: &Maker, table: &Arc<Table>, layout: Layout) -> Box<dyn Encode> {
    let (rows, bytes) = (BTreeMap::new(), vec![]);
    Box::new(Lines { table: Arc::clone(table), layout, bytes, rows, range: None })
}

impl Encode for Lines {
    fn append(&mut self, _: &Maker, row: &RowIn<'_>) -> Result<(), SealError> {
        let meta = row.meta();
        let (op, sequence) = (meta.op, Sequence(meta.sequence));
        let xid = meta.xid.unwrap_or_default();
        let head =
            format!("{} {} {} {xid} {}", op.letter(), sequence.0, meta.position, self.table.name);
        self.bytes.extend_from_slice(head.as_bytes());
        for (column, cell) in self.table.columns.iter().zip(row.cells()) {
            self.bytes.push(b' ');
            match cell {
                Cell::Binary(range) if column.lake == LakeType::Int64 => {
                    let number = row.bytes().get(range.clone()).and_then(|n| n.try_into().ok());
                    let number =
                        number.map_or_else(|| "?".into(), |n| i64::from_be_bytes(n).to_string());
                    self.bytes.extend_from_slice(number.as_bytes());
                }
                Cell::Null => self.bytes.push(b'!'),
                Cell::Unchanged => self.bytes.push(b'~'),
                Cell::Binary(range) | Cell::Text(range) => {
                    self.bytes.extend_from_slice(row.bytes().get(range.clone()).unwrap_or(b"?"));
                }
            }
        }
        self.bytes.push(b'\n');
        *self.rows.entry(op).or_default() += 1;
        self.range = Some((self.range.map_or(sequence, |(first, _)| first), sequence));
        Ok(())
    }

    fn declare(&mut self, op: Op) {
        self.rows.entry(op).or_default();
    }

    fn write_all(&mut self, _: &Maker) -> Result<(), SealError> {
        Ok(())
    }

    fn finish(
        self: Box<Self>,
        maker: &Maker,
        key: &dyn Fn(&str) -> String,
    ) -> Result<Draft, SealError> {
        let mut sink = maker.sink(&self.table.qualified())?;
        sink.write_all(&self.bytes).map_err(|why| sink.failed(why))?;
        sink.finish(&self.table, self.rows, key)
    }

    fn table(&self) -> &Arc<Table> {
        &self.table
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn range(&self) -> Option<(Sequence, Sequence)> {
        self.range
    }

    fn encoded(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn has_file(&self) -> bool {
        false
    }

    fn memory(&self) -> (usize, usize) {
        (0, self.bytes.len())
    }
}
