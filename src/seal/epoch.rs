//! The open objects of all tables within one epoch, bounded in memory and in number.
//!
//! **Invariant:** all of them together hold at most about [`OPEN_MAX`], plus one row or block of rows, whatever the
//! transaction: the table that holds most writes its row group; where there is nothing to write, the object
//! of the table that was silent longest is ended as a part.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    SealError, Table,
    cut::{Progress, day},
    encode::{BlockIn, RowIn},
    object::{Draft, Maker},
    series::{Covers, Series},
};
use crate::units::Timestamp;

/// What was gathered since the last cut.
pub(super) struct Epoch {
    bounds: Bounds,
    object_bytes: u64,
    began: Option<Instant>,
    committed_at: Timestamp,
    transactions: u64,
    day: Option<i64>,
    dates: bool,
    series: BTreeMap<u32, Series>,
    unweighed: usize,
}

/// What all open objects may take together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    memory: usize,
    files: usize,
}

impl Epoch {
    /// Nothing yet. An object is ended when it has `object_bytes`.
    pub(super) fn new(bounds: Bounds, object_bytes: u64) -> Self {
        Self {
            bounds,
            object_bytes,
            began: None,
            committed_at: Timestamp::default(),
            transactions: 0,
            day: None,
            dates: false,
            series: BTreeMap::new(),
            unweighed: 0,
        }
    }

    /// A batch is in it: its age counts from the first.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began.get_or_insert(now);
    }

    /// A transaction is in it.
    pub(super) fn commit(&mut self, at: Timestamp) {
        self.committed_at = at;
        self.transactions += 1;
    }

    /// The log was followed until `at` by the server's clock, and nothing of ours was in it.
    pub(super) fn reach(&mut self, at: Timestamp) {
        self.committed_at = at.max(self.committed_at);
    }

    /// Adds a row of a transaction committed at `at`.
    pub(super) fn append(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        row: &RowIn<'_>,
    ) -> Result<(), SealError> {
        self.series(table, at).append(maker, table, at, row)?;
        self.unweighed += row.weight() + ROW_MEMORY;
        Ok(())
    }

    /// Adds rows of transactions of one day, of which one was committed at `at`.
    pub(super) fn append_block(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        rows: &BlockIn<'_>,
    ) -> Result<(), SealError> {
        self.series(table, at).append_block(maker, table, at, rows)?;
        let cells = rows.block.cells;
        self.unweighed += cells.bytes() + cells.rows() * ROW_MEMORY;
        Ok(())
    }

    fn series(&mut self, table: &Table, at: Timestamp) -> &mut Series {
        self.dates |= self.day.replace(day(at)).is_some_and(|before| before != day(at));
        let new = || Series::new(Covers::Changes, self.object_bytes);
        self.series.entry(table.id).or_insert_with(new)
    }

    /// Writes what the table holds in memory.
    pub(super) fn write_out(&mut self, maker: &Maker, table_id: u32) -> Result<(), SealError> {
        self.series.get_mut(&table_id).map_or(Ok(()), |series| series.write_all(maker))
    }

    /// Keeps the invariant. Cheap unless much came since it was last called.
    pub(super) fn relieve(&mut self, maker: &Maker) -> Result<(), SealError> {
        if self.unweighed < (self.bounds.memory / 64).min(WEIGH_BYTES) {
            return Ok(());
        }
        self.unweighed = 0;
        loop {
            let (mut held, mut files) = (0, 0);
            for series in self.series.values() {
                let (free, fixed) = series.memory();
                held += free + fixed;
                files += usize::from(series.has_file());
            }
            if held <= self.bounds.memory && files <= self.bounds.files {
                return Ok(());
            }
            let open = || self.series.iter().filter(|(_, series)| series.is_open());
            let (heaviest, silent) = (
                open().max_by_key(|(_, series)| series.memory().0),
                open().min_by_key(|(_, series)| series.last()),
            );
            let worth = heaviest.filter(|(_, series)| series.memory().0 >= FREE_MIN);
            let (chosen, write) = match (worth, silent) {
                (Some((id, _)), _) if held > self.bounds.memory => (*id, true),
                (_, Some((id, _))) => (*id, false),
                (_, None) => return Ok(()),
            };
            let series = self.series.get_mut(&chosen).expect("chosen from the map");
            if write { series.write_all(maker)? } else { series.roll(maker)? }
        }
    }

    /// Bytes in memory that all open objects take.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.series.values().map(Series::memory).map(|(free, fixed)| free + fixed).sum()
    }

    /// How far it is; `None` before its first batch.
    pub(super) fn progress(&self) -> Option<Progress> {
        Some(Progress {
            began: self.began?,
            bytes: self.series.values().map(Series::encoded).sum(),
            tables: self.series.values().filter(|series| series.is_open()).count(),
            dates: self.dates,
        })
    }

    /// When its last transaction was committed.
    pub(super) fn committed_at(&self) -> Timestamp {
        self.committed_at
    }

    /// How many transactions are in it.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions
    }

    /// Ends all objects.
    pub(super) fn end(self, maker: &Maker) -> Result<Vec<Draft>, SealError> {
        let mut drafts = vec![];
        for series in self.series.into_values() {
            drafts.extend(series.end(maker)?);
        }
        Ok(drafts)
    }
}

/// Tables with an open object, at which an epoch is cut.
pub(super) const OPEN_TABLES_MAX: usize = 1000;
/// 48 MiB of memory, and 128 open files.
pub(super) const OPEN_MAX: Bounds = Bounds { memory: 48 << 20, files: 128 };
/// Memory is weighed when this much came: it grows by a small multiple of it at most.
const WEIGH_BYTES: usize = 256 << 10;
/// What a row may cost beside its values: the first one of a table makes its builders.
const ROW_MEMORY: usize = 1 << 10;
/// Below this it is not worth a row group.
const FREE_MIN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        journal::{Cell, Op},
        seal::{
            SealEncryption,
            columns::RowMeta,
            key::Keys,
            memory::{Plain, table},
            spool::Spool,
        },
        telemetry::board::SourceBoard,
        units::Position,
    };

    fn maker(dir: &std::path::Path) -> Maker {
        let key = crate::config::Secret::new(vec![1; 32]);
        let spool = Spool::open(dir, "erp", key, &[], SourceBoard::default()).unwrap();
        Maker {
            keys: Keys::new("raw"),
            source: "erp".into(),
            encryption: SealEncryption::None,
            integers: crate::config::Integers::Rising,
            uuids: crate::config::Uuids::Uuid,
            spool,
            encode: crate::seal::encode::parquet,
            habits: std::sync::Mutex::default(),
            presses: Default::default(),
        }
    }

    fn meta(sequence: u64) -> RowMeta {
        let (op, position, committed_at) = (Op::Insert, Position(5), Timestamp(0));
        RowMeta { op, sequence, position, committed_at, xid: None }
    }

    #[test]
    fn many_tables_and_many_rows_stay_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let maker = maker(dir.path());
        let bounds = Bounds { memory: 2 << 20, files: 3 };
        let mut epoch = Epoch::new(bounds, 64 << 20);
        let tables: Vec<_> = (0..200).map(|id| Arc::new(table(id, &format!("t{id}")))).collect();
        let note: String = (0..20_000).map(|_| fastrand::alphanumeric()).collect();
        let bytes = format!("7{note}");
        let cells = vec![Cell::Text(0..1), Cell::Text(1..bytes.len())];
        let decoder = Plain::DECODER;
        let (mut most, mut files) = (0, 0);
        for sequence in 1..=1500_u64 {
            // Most rows are of a few tables; each table comes now and then.
            let id = if sequence % 3 == 0 { sequence / 3 % 200 } else { sequence % 4 };
            let table = &tables[usize::try_from(id).unwrap()];
            let row = RowIn::new(meta(sequence), Some(&cells), None, bytes.as_bytes(), &decoder);
            epoch.append(&maker, table, Timestamp(0), &row).unwrap();
            epoch.relieve(&maker).unwrap();
            most = most.max(epoch.held());
            files = files.max(epoch.series.values().filter(|series| series.has_file()).count());
        }
        assert!(most < bounds.memory + (1 << 20), "{most}");
        assert!(files <= bounds.files + 2, "{files}");
        epoch.begin(SystemClock.now());
        assert!(epoch.progress().unwrap().bytes > 1 << 20);
        let drafts = epoch.end(&maker).unwrap();
        let rows: u64 = drafts.iter().flat_map(|draft| draft.object.rows.values()).sum();
        assert_eq!(rows, 1500);
        let mut keys: Vec<_> = drafts.iter().map(|draft| &draft.object.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), drafts.len());
    }
}
