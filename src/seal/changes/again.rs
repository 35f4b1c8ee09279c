//! Seals changes of an epoch again, of which objects were lost before S3 had them.
//!
//! **Invariant:** the object that takes the place of another has the same changes of the same table, as many of each kind, and
//! is of the same version of its schema.

use std::{cmp::Reverse, collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Changes, Outlet};
use crate::{
    facts,
    journal::{Decode, ReadBatches},
    seal::{
        Group, GroupKind, Object, SealError, Table,
        encode::{LARGE_ROW_BYTES, RowIn},
        key::{Keys, Stem},
        object::{Draft, Maker},
        sealer::{Desk, RELATION_FACTS},
        series::{Covers, Series},
    },
    units::{Sequence, Timestamp},
};

/// All other changes are passed over.
pub(super) struct Only {
    lost: Vec<Lost>,
    /// What an object may hold before it is written.
    free_max: usize,
}

/// An object that is made again.
struct Lost {
    table: u32,
    changes: RangeInclusive<u64>,
    series: Series,
}

impl Only {
    fn new(lost: Vec<Lost>) -> Self {
        let free_max = FREE_MAX / lost.len().max(1);
        Self { lost, free_max }
    }

    fn find(&mut self, table: u32, sequence: u64) -> Option<&mut Lost> {
        let has = |lost: &&mut Lost| lost.table == table && lost.changes.contains(&sequence);
        self.lost.iter_mut().find(has)
    }

    /// Whether the change is wanted.
    pub(super) fn has(&mut self, table: u32, sequence: u64) -> bool {
        self.find(table, sequence).is_some()
    }

    /// Adds a row, if it is wanted. A large one is written later, once the record that it came in is gone.
    pub(super) fn append(
        &mut self,
        maker: &Maker,
        table: &Arc<Table>,
        at: Timestamp,
        row: &RowIn<'_>,
    ) -> Result<(), SealError> {
        let free_max = self.free_max;
        let Some(lost) = self.find(table.id, row.meta().sequence) else { return Ok(()) };
        lost.series.append(maker, table, at, row)?;
        match row.weight() < LARGE_ROW_BYTES && lost.series.memory().0 >= free_max {
            true => lost.series.write_all(maker),
            false => Ok(()),
        }
    }

    /// Writes what the objects of a table hold in memory.
    pub(super) fn write_out(&mut self, maker: &Maker, table: u32) -> Result<(), SealError> {
        let mut lost = self.lost.iter_mut().filter(|lost| lost.table == table);
        lost.try_for_each(|lost| lost.series.write_all(maker))
    }
}

impl<'a> Changes<'a> {
    /// Makes each of the `lost` objects of `group` again, [`AT_ONCE`] at most. `reader` begins with the group's first batch.
    pub(in crate::seal) fn again(
        desk: &'a Desk,
        group: &Group,
        lost: &[Object],
        reader: &mut dyn ReadBatches,
        decode: &dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
    ) -> Result<Vec<Draft>, SealError> {
        let GroupKind::Changes { from: begins, batch: last, .. } = group.kind else {
            return Ok(vec![]);
        };
        let gone = |what| SealError::Spool { path: lost[0].spool.clone(), what };
        let mut only = vec![];
        for object in lost {
            let (from, to) = range(object).ok_or_else(|| gone("its key is none of changes"))?;
            let table = desk.version(&object.table, object.version);
            let table = table.ok_or_else(|| gone("its schema is not known"))?.id;
            let series = Series::new(Covers::Changes, u64::MAX);
            only.push(Lost { table, changes: from.0..=to.0, series });
        }
        let end = only.iter().map(|lost| *lost.changes.end()).max().unwrap_or(0);

        let outlet = Outlet { groups: mpsc::channel(1).0, token: CancellationToken::new() };
        let tables = remembered(desk, group)?;
        let known = &|_| decode(tables.values().cloned().collect());
        let mut changes = Self::resume(desk, outlet, known)?;
        changes.tables =
            tables.iter().map(|(id, table)| (*id, (Arc::clone(table), None))).collect();
        (changes.from, changes.to) = (Some(begins), begins);
        changes.only = Some(Only::new(only));
        while changes.to.sequence.0 < end {
            let batch = reader.next(WAIT)?.filter(|batch| batch.number <= last);
            let batch = batch.ok_or_else(|| gone("the journal has its changes no more"))?;
            if batch.first.0 > changes.to.sequence.0 + 1 {
                return Err(gone("the journal has its changes no more"));
            }
            changes.take(batch)?;
            reader.let_go();
        }
        let made = changes.only.take().map_or(vec![], |only| only.lost);
        let made = lost.iter().zip(made);
        made.map(|(lost, made)| one(made.series.end(&desk.maker)?, lost)).collect()
    }

    /// Writes what is held in memory of a table.
    pub(super) fn write_out(&mut self, table: u32) -> Result<(), SealError> {
        match &mut self.only {
            Some(only) => only.write_out(&self.desk.maker, table),
            None => self.epoch.write_out(&self.desk.maker, table),
        }
    }
}

/// The tables as the decoder knew them when the epoch began: of one that became another within it, the stream tells there.
fn remembered(desk: &Desk, group: &Group) -> Result<BTreeMap<u32, Arc<Table>>, SealError> {
    let all = facts::read_all::<Table>(&*desk.facts, RELATION_FACTS)?.into_iter();
    let mut tables: BTreeMap<_, _> = all.map(|(_, table)| (table.id, Arc::new(table))).collect();
    let versions = group.objects.iter().filter_map(|object| {
        Some((range(object)?.0, desk.version(&object.table, object.version)?))
    });
    let mut versions: Vec<_> = versions.collect();
    versions.sort_by_key(|(from, _)| Reverse(*from));
    tables.extend(versions.into_iter().map(|(_, table)| (table.id, table)));
    Ok(tables)
}

/// The first change and the last one in an object.
fn range(object: &Object) -> Option<(Sequence, Sequence)> {
    match Keys::stem(&object.key)? {
        Stem::Changes { from, to, .. } => Some((from, to)),
        Stem::Snapshot { .. } | Stem::Repair { .. } => None,
    }
}

/// The only draft, with the key of what it takes the place of but for the hash.
fn one(mut drafts: Vec<Draft>, lost: &Object) -> Result<Draft, SealError> {
    let after = range(lost).map_or(Sequence(0), |(from, _)| from);
    let expect = |what, expected, found| {
        if expected == found {
            Ok(())
        } else {
            Err(SealError::Order { what, after, expected, found })
        }
    };
    let count = |object: &Object| object.rows.values().sum();
    expect("objects that take the place of one", 1, drafts.len() as u64)?;
    let mut draft = drafts.remove(0);
    let object = &mut draft.object;
    expect("changes sealed again", count(lost), count(object))?;
    expect(
        "kinds of changes sealed again that are the same",
        1,
        (object.rows == lost.rows).into(),
    )?;
    expect(
        "changes sealed again from the same to the same",
        1,
        (range(object) == range(lost)).into(),
    )?;
    expect("version of changes sealed again", lost.version.into(), object.version.into())?;
    let hash = object.key.rsplit('-').next().unwrap_or_default();
    let stem = lost.key.rsplit_once('-').map_or("", |(stem, _)| stem);
    object.key = format!("{stem}-{hash}");
    Ok(draft)
}

/// Objects made at once: each holds some memory, and a file.
pub(in crate::seal) const AT_ONCE: usize = if cfg!(test) { 2 } else { 16 };
/// What all of them may hold before it is written: 32 MiB.
const FREE_MAX: usize = 32 << 20;
/// What is read is durable already.
const WAIT: Duration = Duration::ZERO;
