//! What is written to the database: transactions whose rows are there to be changed.

use std::collections::BTreeSet;

use super::{
    server::{ModelServer, TABLES},
    timeline::Row,
};

/// Who writes.
pub(crate) struct Workload {
    /// The last key that was given.
    keys: u64,
    /// Microseconds since 2000-01-01, of the server.
    at: i64,
}

impl Default for Workload {
    fn default() -> Self {
        Self { keys: 0, at: 848_577_600_000_000 }
    }
}

impl Workload {
    /// Commits a transaction: mostly small, some without rows of ours, some large.
    pub(crate) fn commit(&mut self, server: &ModelServer, random: &mut fastrand::Rng) {
        self.at += random.i64(1..40_000);
        if random.u16(..400) == 0 {
            self.at += 86_400_000_000;
        }
        let count = match random.u8(..16) {
            0 => 0,
            1 => random.usize(10..40),
            _ => random.usize(1..5),
        };
        let mut touched = Touched::default();
        let rows = (0..count).map(|_| self.row(server, random, &mut touched)).collect();
        server.commit(rows, self.at);
    }

    /// A row of a transaction that has `touched` others. Each stands once in it.
    fn row(
        &mut self,
        server: &ModelServer,
        random: &mut fastrand::Rng,
        touched: &mut Touched,
    ) -> Row {
        let table = random.usize(..TABLES);
        let drawn = OPS.get(random.usize(..OPS.len())).copied();
        let number = random.usize(..);
        let known = server.with(|state| state.pick(table, number));
        let known = known.filter(|(key, _)| !touched.has(table, *key));
        let op = match (drawn.unwrap_or(b'I'), &known) {
            (b'U' | b'D', None) => b'I',
            (op, _) => op,
        };
        self.keys += 1;
        let (key, before) = match (op, known) {
            (b'U' | b'D', Some((key, note))) => (key, note),
            _ => (self.keys, String::new()),
        };
        touched.add(table, key, op == b'T');
        let length = if random.u8(..10) == 0 { 300 } else { 12 };
        let note: String = (0..random.usize(1..length)).map(|_| random.lowercase()).collect();
        let more = server.with(|state| state.columns_more(table));
        let unchanged = op == b'U' && random.u8(..4) == 0;
        let note = if unchanged { before } else { note };
        Row { op, table, more, key, note, unchanged }
    }
}

/// What a transaction has touched.
#[derive(Default)]
struct Touched {
    rows: BTreeSet<(usize, u64)>,
    emptied: BTreeSet<usize>,
}

impl Touched {
    fn has(&self, table: usize, key: u64) -> bool {
        self.emptied.contains(&table) || self.rows.contains(&(table, key))
    }

    fn add(&mut self, table: usize, key: u64, empties: bool) {
        self.rows.insert((table, key));
        if empties {
            self.emptied.insert(table);
        }
    }
}

/// How often what is done.
const OPS: &[u8] = b"IIIIIIUUUUUDDDT";
