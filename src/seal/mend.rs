//! Makes anew what the spool has lost before S3 had it.
//!
//! Of changes the journal still has the rows, of a schema the facts have it: an object of them takes the place of the one that
//! is lost. Rows of a snapshot, and those that were read again, only the source has: their object goes from its group, what was
//! to be said of their table goes too, here and in the groups behind, and the source is to read the table again.
//!
//! **Invariants:** no group that the ledger has is touched; what a group says of a table holds of the objects that are there,
//! wherever the power is cut; an object that has a place already is made from the very same rows.

use std::{collections::BTreeSet, mem, sync::Arc};

use super::{
    Group, GroupKind, Object, SealError, Sealer, Table,
    changes::{Changes, again::AT_ONCE},
    object::Draft,
    schema,
    sealer::Desk,
    spool::SpoolFile,
};
use crate::{
    facts::{FactBatch, FactDamaged},
    journal::{Decode, ReadBatches, generator, large_object},
};

/// What is lost, and where its rows can be had.
pub struct Mending<'a> {
    /// Keys of the objects.
    pub lost: &'a BTreeSet<String>,
    /// The last journal batch that the ledger covers.
    pub proven: u64,
    /// Reads the journal behind a batch.
    pub read: &'a dyn Fn(u64) -> Box<dyn ReadBatches>,
    /// Makes a decoder that remembers the tables it is given.
    pub decode: &'a dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
    /// Adds the facts by which the source reads a table again.
    pub read_again: &'a dyn Fn(u32, &mut FactBatch) -> Result<(), FactDamaged>,
    /// Adds the facts that of an object nothing is on its way any more.
    pub abandon: &'a dyn Fn(&str, &mut FactBatch),
}

impl Sealer {
    /// Keys of objects whose file is gone, has another length or another beginning, though they are not `shipped`; with `deep`, of those, too,
    /// whose file does not open: all of it is read.
    ///
    /// # Errors
    ///
    /// The facts do not read.
    pub fn missing(
        &self,
        deep: bool,
        shipped: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>, SealError> {
        let (groups, spool) = (self.recovered()?, self.spool());
        let opens = |object: &Object| {
            let read = spool.pieces(object, 0..object.bytes, &mut |_| true);
            read.err().is_none_or(|why| !why.is_lost())
        };
        let whole = |object: &Object| spool.has(object) && (!deep || opens(object));
        let objects = groups.into_iter().flat_map(|group| group.objects);
        let missing = objects.filter(|object| !shipped(&object.key) && !whole(object));
        Ok(missing.map(|object| object.key).collect())
    }

    /// Makes the lost objects of groups that are not in the ledger anew. Blocks. What it has done stays done if it fails.
    ///
    /// # Errors
    ///
    /// The journal has the changes no more, the disk failed, or a fact does not read.
    pub fn mend(&self, mending: &Mending<'_>) -> Result<(), SealError> {
        let mender = Mender { desk: self.desk(), mending };
        mender.read_again(self.recovered()?)?;
        let mut behind = mending.proven;
        for group in self.recovered()? {
            let before = behind;
            if let GroupKind::Changes { batch, .. } | GroupKind::Gap { batch, .. } = group.kind {
                behind = batch;
            }
            mender.make_anew(group, before)?;
        }
        // Only now: wherever this is cut off, the next start finds them again.
        let mut facts = FactBatch::default();
        mending.lost.iter().for_each(|key| (mending.abandon)(key, &mut facts));
        Ok(self.desk().facts.record_blocking(facts)?)
    }

    /// Removes what there is of the files of lost objects: the disk is full.
    ///
    /// # Errors
    ///
    /// The facts do not read, or the file system refused.
    pub fn discard(&self, lost: &BTreeSet<String>) -> Result<(), SealError> {
        let (groups, spool) = (self.recovered()?, self.spool());
        let mut objects = groups.iter().flat_map(|group| &group.objects);
        objects.try_for_each(|object| match lost.contains(&object.key) {
            true => spool.remove(object),
            false => Ok(()),
        })
    }
}

/// One mending.
struct Mender<'a> {
    desk: &'a Desk,
    mending: &'a Mending<'a>,
}

impl Mender<'_> {
    /// Leaves out what only the source has, and has it read again.
    fn read_again(&self, groups: Vec<Group>) -> Result<(), SealError> {
        let (mut unread, mut changed, mut lost) = (BTreeSet::new(), vec![], vec![]);
        for mut group in groups {
            let before = group.clone();
            if let GroupKind::Snapshot { table_id, .. } | GroupKind::Repair { table_id, .. } =
                group.kind
            {
                let own = self.take_lost(&mut group);
                if !own.is_empty() {
                    unread.insert(table_id);
                }
                for Object { key, table, .. } in &own {
                    tracing::warn!(key, table, "rows are lost in the spool: they are read again");
                }
                lost.extend(own);
            }
            self.unsay(&mut group, &unread);
            if group != before {
                changed.push(group);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        // Wherever this is cut off, the next start asks again.
        for table in unread {
            let mut asked = FactBatch::default();
            (self.mending.read_again)(table, &mut asked)?;
            self.desk.facts.record_blocking(asked)?;
        }
        // The last first: no group stands behind one that was mended, and says of its table what it said.
        let mut bytes = 0;
        let mut batch = FactBatch::default();
        for group in changed.into_iter().rev() {
            batch.put(group.fact(), &group);
            bytes += batch
                .changes
                .last()
                .and_then(|(_, value)| Some(value.as_ref()?.len()))
                .unwrap_or(0);
            if bytes > RECORD_BYTES {
                self.desk.facts.record_blocking(mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        self.desk.facts.record_blocking(batch)?;
        self.remove(&lost);
        Ok(())
    }

    /// Makes the lost objects of a group anew, some at once. Its changes begin behind a batch.
    fn make_anew(&self, mut group: Group, behind: u64) -> Result<(), SealError> {
        let whole = group.clone();
        let mut lost = self.take_lost(&mut group);
        while !lost.is_empty() {
            let some: Vec<Object> = lost.drain(..lost.len().min(AT_ONCE)).collect();
            let drafts = self.again(&whole, &some, behind)?;
            self.desk.maker.spool.settle()?;
            let (objects, files): (Vec<_>, Vec<_>) =
                drafts.into_iter().map(|draft| (draft.object, draft.file)).unzip();
            group.objects.extend_from_slice(&objects);
            let mut now = group.clone();
            now.objects.extend_from_slice(&lost);
            now.objects.sort_by(|one, other| one.key.cmp(&other.key));
            let mut facts = FactBatch::default();
            facts.put(now.fact(), &now);
            // As where a group is recorded: whether the facts are there, only a restart shows.
            files.into_iter().for_each(SpoolFile::keep);
            self.desk.facts.record_blocking(facts)?;
            self.desk.maker.spool.count(&objects);
            for (Object { key, table, .. }, made) in some.iter().zip(&objects) {
                tracing::warn!(
                    key,
                    table,
                    made = made.key,
                    "an object was lost in the spool: made anew"
                );
            }
            self.remove(&some);
        }
        Ok(())
    }

    fn again(&self, group: &Group, lost: &[Object], behind: u64) -> Result<Vec<Draft>, SealError> {
        if let GroupKind::Changes { .. } = group.kind {
            let mut reader = (self.mending.read)(behind);
            return Changes::again(self.desk, group, lost, &mut *reader, self.mending.decode);
        }
        let draft = |lost: &Object| {
            let table = self.desk.version(&lost.table, lost.version);
            let what = "so is the fact of the schema that it describes";
            let table = table.ok_or_else(|| SealError::Spool { path: lost.spool.clone(), what })?;
            schema::draft(&self.desk.maker, &table, Some(lost))
        };
        lost.iter().map(draft).collect()
    }

    fn take_lost(&self, group: &mut Group) -> Vec<Object> {
        let is_lost = |object: &mut Object| self.mending.lost.contains(&object.key);
        group.objects.extract_if(.., is_lost).collect()
    }

    /// What is said of a table holds only once it is read again.
    fn unsay(&self, group: &mut Group, unread: &BTreeSet<u32>) {
        let holds = |name: &str, version: u32| {
            self.desk.version(name, version).is_none_or(|table| !unread.contains(&table.id))
        };
        let fates = &mut group.fates;
        fates.whole.retain(|name, version| holds(name, *version));
        fates.repaired.retain(|name, what| holds(name, what.version));
        if unread.contains(&generator::TABLE_ID) {
            fates.sequences.clear();
        }
        if unread.contains(&large_object::TABLE_ID) {
            fates.large_objects.clear();
        }
        if let GroupKind::Snapshot { table_id, completes, .. } = &mut group.kind {
            *completes &= !unread.contains(table_id);
        }
    }

    fn remove(&self, lost: &[Object]) {
        for object in lost {
            if let Err(error) = self.desk.maker.spool.reader().remove(object) {
                tracing::warn!(%error, "a spool file was not removed; the next start removes it");
            }
        }
    }
}

/// Of facts in one record, about: the journal takes no more than 32 MiB, and a group can have ten.
const RECORD_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs, sync::Arc, time::Duration};

    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        facts::Facts,
        journal::{Batch, Column, Reading, RowBatch, SnapshotChunk},
        seal::memory::{
            Bench, Hand, Log, NOON, Plain, change, reader, relation, row, shared, table,
        },
        units::{Position, Timestamp},
    };

    const DAY: i64 = 86_400_000_000;

    /// Epochs of two tables, one of which becomes wider, in objects of many parts and of two dates.
    fn story() -> Log {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut noise = || (0..3000).map(|_| dice.alphanumeric()).collect::<String>();
        let mut wider = table(1, "a");
        wider.columns.push(Column { name: "c".into(), ..wider.columns[1].clone() });
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a")), relation(&table(2, "b"))]]);
        for n in 0..12_u32 {
            let at = NOON + i64::from(n / 4) * DAY;
            let id = |row: u32| (n * 100 + row).to_string();
            let rows = (0..100).map(|row| match (row % 3, n >= 6) {
                (0, _) => change(b'I', 2, &[&id(row), &noise()]),
                (1, true) => change(b'U', 1, &[&id(row), &noise(), "c"]),
                _ if n >= 6 => change(b'I', 1, &[&id(row), "n", "c"]),
                _ => change(b'I', 1, &[&id(row), &noise()]),
            });
            let mut rows: Vec<_> = rows.collect();
            if n == 6 {
                // In the middle of an epoch, behind a row of what it was.
                rows.insert(0, change(b'I', 1, &["7", "the last one"]));
                rows.insert(1, relation(&wider));
            }
            match n % 3 {
                0 => log.pieces(at, &[&rows[..40], &[], &rows[40..], &[]]),
                1 => log.pieces(at, &[&[], &rows]),
                _ => log.whole(at, &[&rows[..50], &rows[50..]]),
            };
            if n == 9 {
                // In the middle of an epoch, too, and no relation follows.
                wider.columns[1].not_null = true;
                log.at_rest(at, u64::from(n + 1) * 1000, &[wider.clone()]);
            }
        }
        log
    }

    /// Loses objects, and mends. What the source was asked to read again.
    fn mend(bench: &Bench, log: &[Batch], lost: &[&Object]) -> Result<Vec<u32>, SealError> {
        let mut way = FactBatch::default();
        for object in lost {
            fs::remove_file(bench.options.spool_dir.join(&object.spool)).unwrap();
            way.put(format!("way/{}", object.key), &true);
        }
        bench.facts.record_blocking(way).unwrap();
        let asked = RefCell::new(vec![]);
        let mending = Mending {
            lost: &lost.iter().map(|object| object.key.clone()).collect(),
            proven: 0,
            read: &|behind| {
                let rest = log.iter().filter(|batch| batch.number > behind).cloned();
                reader(rest.collect(), CancellationToken::new())
            },
            decode: &Plain::make,
            read_again: &|table, batch| {
                batch.put(format!("asked/{table}"), &true);
                asked.borrow_mut().push(table);
                Ok(())
            },
            abandon: &|key, batch| {
                batch.delete(format!("way/{key}"));
            },
        };
        bench.open().mend(&mending)?;
        assert_eq!(bench.facts.scan("way/"), [], "nothing of them is on its way any more");
        Ok(asked.into_inner())
    }

    fn changes_are_mended(mut bench: Bench) {
        bench.options.object_bytes = 100_000;
        let log = story();
        bench.run(log.batches.clone()).unwrap();
        let sealer = bench.open();
        let all = |sealer: &Sealer| -> Vec<(u64, Object)> {
            let of = |group: Group| group.objects.into_iter().map(move |object| (group.id, object));
            sealer.recovered().unwrap().into_iter().flat_map(of).collect()
        };
        let before = all(&sealer);
        let is_data = |object: &Object| object.key.ends_with(".parquet");
        assert!(before.iter().filter(|(_, object)| is_data(object)).count() > 12, "{before:?}");
        assert!(before.iter().any(|(_, object)| object.key.contains("-0002-")));
        let versions: BTreeSet<_> =
            before.iter().map(|(_, object)| (&object.table, object.version)).collect();
        assert_eq!(versions.len(), 4);
        let stem = |key: &str| key.rsplit_once('-').map(|(stem, _)| stem.to_owned());
        for (_, of) in &before {
            let now = all(&bench.open());
            let place = now.iter().position(|(_, object)| match is_data(of) {
                true => stem(&object.key) == stem(&of.key),
                false => object.key == of.key,
            });
            let place = place.unwrap();
            let (_, lost) = &now[place];
            let file = bench.file(lost);
            let rows = is_data(lost).then(|| bench.rows(lost));
            assert!(mend(&bench, &log.batches, &[lost]).unwrap().is_empty());
            let then = all(&bench.open());
            assert_eq!(then.len(), now.len());
            for (at, (old, new)) in now.iter().zip(&then).enumerate() {
                assert!(at == place || old == new, "{} and {}", old.1.key, new.1.key);
            }
            let made = &then[place].1;
            assert_ne!(made.spool, lost.spool);
            assert_eq!((&made.rows, made.version), (&lost.rows, lost.version));
            match rows {
                Some(rows) => {
                    assert!(bench.rows(made) == rows);
                    assert_eq!(stem(&made.key), stem(&lost.key));
                    assert!(made.key.ends_with(&format!("-{}.parquet", &made.sha256[..16])));
                }
                None => assert_eq!((&made.key, bench.file(made)), (&lost.key, file)),
            }
            assert_eq!(bench.spooled(), then.len());
        }
    }

    #[test]
    fn changes_and_schemas_are_made_anew_from_the_journal_and_the_facts() {
        changes_are_mended(Bench::new());
        changes_are_mended(Bench::client(1));
    }

    /// More than are made at once, of several groups, tables and versions.
    #[test]
    fn all_that_waits_can_be_lost_at_once() {
        let mut bench = Bench::client(1);
        bench.options.object_bytes = 30_000;
        let log = story();
        bench.run(log.batches.clone()).unwrap();
        let objects = || -> Vec<Object> {
            let groups = bench.open().recovered().unwrap();
            groups.into_iter().flat_map(|group| group.objects).collect()
        };
        let rows = |objects: &[Object]| -> Vec<_> {
            let data = objects.iter().filter(|object| object.key.ends_with(".parquet"));
            data.map(|object| (object.table.clone(), object.version, bench.rows(object))).collect()
        };
        let before = objects();
        let (most, expected) = (
            bench.open().recovered().unwrap().iter().map(|group| group.objects.len()).max(),
            rows(&before),
        );
        assert!(most.unwrap() > AT_ONCE + 1, "{most:?}");
        let all: Vec<&Object> = before.iter().collect();
        assert!(mend(&bench, &log.batches, &all).unwrap().is_empty());
        let after = objects();
        assert!(rows(&after) == expected);
        assert_eq!((after.len(), bench.spooled()), (before.len(), before.len()));
        assert!(after.iter().zip(&before).all(|(new, old)| new.spool != old.spool));
    }

    #[test]
    fn what_the_journal_has_no_more_is_refused_and_nothing_is_recorded() {
        let bench = Bench::new();
        let log = story();
        let groups = bench.run(log.batches.clone()).unwrap();
        let last =
            groups.iter().rev().find(|group| matches!(group.kind, GroupKind::Changes { .. }));
        let lost = &last.unwrap().objects[0];
        let before = bench.facts.scan("");
        let short = &log.batches[..log.batches.len() / 2];
        let late = &log.batches[log.batches.len() - 1..];
        for (at, held) in [short, late, &[]].into_iter().enumerate() {
            if at > 0 {
                fs::write(bench.options.spool_dir.join(&lost.spool), b"").unwrap();
            }
            let error = mend(&bench, held, &[lost]).unwrap_err().to_string();
            assert!(error.contains("the journal has its changes no more"), "{error}");
            let mut now = bench.facts.scan("");
            now.retain(|(key, _)| !key.starts_with("way/"));
            assert!(now == before);
        }
    }

    #[test]
    fn what_is_missing_is_seen_at_once_and_what_is_rotten_when_it_is_read() {
        let bench = Bench::new();
        let groups = bench.run(story().batches).unwrap();
        let objects: Vec<_> = groups.iter().flat_map(|group| &group.objects).collect();
        let [gone, cut, rotten, sent] = [0, 1, 2, 3].map(|at| objects[at]);
        let path = |object: &Object| bench.options.spool_dir.join(&object.spool);
        fs::remove_file(path(gone)).unwrap();
        fs::remove_file(path(sent)).unwrap();
        let whole = fs::read(path(cut)).unwrap();
        fs::write(path(cut), &whole[..whole.len() - 1]).unwrap();
        let mut bytes = fs::read(path(rotten)).unwrap();
        bytes[60] ^= 1;
        fs::write(path(rotten), bytes).unwrap();
        let sealer = bench.open();
        let found = |deep| sealer.missing(deep, |key| key == sent.key).unwrap();
        let keys = |objects: &[&Object]| objects.iter().map(|object| object.key.clone()).collect();
        let expected: BTreeSet<String> = keys(&[gone, cut]);
        assert_eq!(found(false), expected);
        let expected: BTreeSet<String> = keys(&[gone, cut, rotten]);
        assert_eq!(found(true), expected);
        sealer.discard(&expected).unwrap();
        assert!(!path(rotten).exists() && path(objects[4]).exists());
    }

    fn chunk(table_id: u32, number: u32) -> SnapshotChunk {
        let (send, rows) = mpsc::channel(10);
        send.try_send(RowBatch::Rows(row(&[&number.to_string(), "n"]).into())).unwrap();
        send.try_send(RowBatch::End(1)).unwrap();
        SnapshotChunk {
            table: Arc::new(table(table_id, if table_id == 1 { "a" } else { "b" })),
            number,
            chunks: 2,
            position: Position(0xAB),
            at: Timestamp(NOON),
            reading: Reading::Snapshot,
            rows,
        }
    }

    #[test]
    fn rows_of_a_snapshot_are_read_again_and_until_then_nobody_is_told_that_they_are_whole() {
        let mut bench = Bench::new();
        bench.clock = Hand::stepping(Duration::ZERO);
        let (send, receive) = mpsc::channel(10);
        for (table, number) in [(1, 0), (2, 0), (2, 1), (1, 1)] {
            send.try_send(chunk(table, number)).unwrap();
        }
        drop(send);
        let (groups, _passed) = mpsc::channel(100);
        let run = (&shared(receive), &Plain::DECODER, groups, CancellationToken::new());
        bench.open().run_snapshots(run.0, run.1, run.2, run.3).unwrap();
        let before = bench.open().recovered().unwrap();
        let told = |groups: &[Group]| -> Vec<(String, bool)> {
            let of = |group: &Group| {
                let completes = matches!(group.kind, GroupKind::Snapshot { completes: true, .. });
                let tables = group.fates.whole.keys().cloned().collect::<Vec<_>>();
                tables.into_iter().map(move |table| (table, completes))
            };
            groups.iter().flat_map(of).collect()
        };
        assert_eq!(told(&before), [("public.b".into(), true), ("public.a".into(), true)]);
        let first = before.iter().find(|group| matches!(group.kind, GroupKind::Snapshot { .. }));
        let lost = first.unwrap().objects[0].clone();
        assert_eq!(lost.table, "public.a");
        assert_eq!(mend(&bench, &[], &[&lost]).unwrap(), [1]);
        assert!(bench.facts.get("asked/1").is_some(), "in the same record");
        let after = bench.open().recovered().unwrap();
        assert_eq!(told(&after), [("public.b".into(), true)]);
        let completes =
            |group: &&Group| matches!(group.kind, GroupKind::Snapshot { completes: true, .. });
        assert_eq!(after.iter().filter(completes).count(), 1);
        let objects = |groups: &[Group]| -> Vec<Object> {
            groups.iter().flat_map(|group| group.objects.clone()).collect()
        };
        let mut rest = objects(&before);
        rest.retain(|object| object.key != lost.key);
        assert_eq!(objects(&after), rest);
        let ids = |groups: &[Group]| groups.iter().map(|group| group.id).collect::<Vec<_>>();
        assert_eq!(ids(&after), ids(&before), "the ledger has them in order, without a gap");
    }
}
