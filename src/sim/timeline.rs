//! A timeline of the model server: what was committed on it, and what stands in its tables.

use std::{collections::BTreeMap, sync::Arc};

use super::server::TABLES;
use crate::units::Position;

/// A timeline's own log, from the very beginning.
#[derive(Clone)]
pub(crate) struct Timeline {
    /// As the server says it. A database that was put back to a backup has the one of then.
    pub(super) number: u32,
    /// The one that it branched off, and where.
    pub(super) parent: usize,
    pub(super) branched: Position,
    pub(crate) log: Vec<Arc<Transaction>>,
    /// The changes to our tables, in order.
    pub(crate) changes: Vec<Arc<Change>>,
    /// What stands in each table: by key, the values.
    pub(crate) rows: Vec<BTreeMap<u64, String>>,
}

/// A committed transaction.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) begins: Position,
    pub(crate) end: Position,
    pub(crate) xid: u32,
    /// Microseconds since 2000-01-01.
    pub(crate) at: i64,
    pub(crate) rows: Vec<Row>,
    /// Changes to our tables up to and with this transaction.
    pub(crate) changes_after: usize,
}

/// What a transaction does.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) op: u8,
    pub(crate) table: usize,
    /// Columns beyond the first two.
    pub(crate) more: usize,
    pub(crate) key: u64,
    pub(crate) note: String,
    /// Whether the note is not sent, as it did not change.
    pub(crate) unchanged: bool,
}

/// A change as it must stand in the lake.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Change {
    pub(crate) position: Position,
    /// Of the commit record's beginning.
    pub(crate) begins: Position,
    /// All but the sequence: `<_op> <_position> <_xid> <table> <values>`.
    pub(crate) text: String,
}

impl Timeline {
    /// That of a new database.
    pub(super) fn first() -> Self {
        Self {
            number: 1,
            parent: 0,
            branched: Position(0),
            log: vec![],
            changes: vec![],
            rows: vec![BTreeMap::new(); TABLES],
        }
    }

    /// Leaves the first transactions.
    pub(super) fn cut(&mut self, kept: usize) {
        self.log.truncate(kept);
        let changes = self.log.last().map_or(0, |last| last.changes_after);
        self.changes.truncate(changes);
        self.rows = Self::first().rows;
        let log = std::mem::take(&mut self.log);
        log.iter().flat_map(|transaction| &transaction.rows).for_each(|row| self.apply(row));
        self.log = log;
    }

    /// A row is changed.
    pub(super) fn apply(&mut self, row: &Row) {
        let table = &mut self.rows[row.table];
        match row.op {
            b'T' => table.clear(),
            b'D' => drop(table.remove(&row.key)),
            _ => drop(table.insert(row.key, format!("{}{}", row.note, " x".repeat(row.more)))),
        }
    }
}

impl Row {
    /// The values as they stand in the lake.
    pub(super) fn shown(&self) -> String {
        let more = |of: &str| (0..self.more).map(|_| format!(" {of}")).collect::<String>();
        match self.op {
            b'T' => String::new(),
            b'D' => format!(" {} !{}", self.key, more("!")),
            _ if self.unchanged => format!(" {} ~{}", self.key, more("x")),
            _ => format!(" {} {}{}", self.key, self.note, more("x")),
        }
    }
}
