//! The desk of a source's sealing: numbers groups, makes them durable, and passes them on.
//!
//! | fact | what |
//! |---|---|
//! | `seal/group/<id>` | a [`Group`] whose objects are in the spool; deleted when the ledger has it; written anew where an object was lost ([`mend`](super::mend)) |
//! | `seal/last_group` | the id given last |
//! | `seal/epoch` | [`EpochEnd`]: where the changes were cut last |
//! | `seal/relation/<table id>` | a table as the decoder remembered it there |
//! | `seal/table/<table id>/<version>` | a version of a table's schema |
//! | `seal/taken/<qualified name>` | version numbers that a lost box took |
//! | `seal/chunk/<table id>/<chunk>` | a sealed chunk of a snapshot |
//! | `seal/fate` | what is to be said of tables: see [`fate`](crate::journal::fate) |
//! | `source/generator` | written here with the rows of a look: see [`generator`](crate::journal::generator) |
//! | `seal/span`, `seal/unchanged`, `seal/reread` | rows to be read again: see [`reread`](crate::journal::reread) |
//!
//! **Invariant:** a group's objects are fsynced before its fact is, and its fact before it is passed on;
//! groups are passed on in the order of their ids, which have no gaps.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tokio::sync::mpsc::{Receiver, Sender, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::{
    EPOCH_FACT, EpochEnd, Fates, GROUP_FACTS, Group, GroupKind, SealEncryption, SealError, Table,
    changes::Changes,
    cut::Cut,
    encode::{self, EncodeWith},
    epoch::OPEN_TABLES_MAX,
    fates,
    key::Keys,
    object::{Draft, Maker},
    pack::Presses,
    schema::{self, Versions},
    snapshot,
    spool::{Spool, SpoolReader},
};
use crate::{
    clock::Clock,
    config::{Integers, Secret, Uuids},
    facts::{self, FactBatch, FactDamaged, Facts},
    journal::{Decode, ReadBatches, SnapshotChunk, fate::first_fact},
    telemetry::board::SourceBoard,
};

/// What a [`Sealer`] is told.
#[derive(Clone, Debug)]
pub struct SealOptions {
    /// First part of every key, without slashes at its ends.
    pub prefix: String,
    /// The source's name.
    pub source: String,
    /// Size at which an epoch is cut and an object ended, in bytes.
    pub object_bytes: u64,
    /// Age at which an epoch is cut.
    pub object_age: Duration,
    /// How whole numbers, dates and times are laid down.
    pub integers: Integers,
    /// How UUIDs are laid down.
    pub uuids: Uuids,
    /// How objects are encrypted.
    pub encryption: SealEncryption,
    /// The source's own folder for objects that wait.
    pub spool_dir: PathBuf,
    /// What the keys of spool files are derived from: the journal's key.
    pub spool_key: Secret,
    /// Nothing more is sealed while this many bytes wait in the spool.
    pub spool_bytes_max: u64,
}

/// Key of the id given last.
pub const LAST_GROUP_FACT: &str = "seal/last_group";
/// Prefix of the tables that the decoder remembers.
pub(super) const RELATION_FACTS: &str = "seal/relation/";

/// Snapshot chunks on their way to the threads that seal them.
pub type SnapshotChunks = Arc<Mutex<Receiver<SnapshotChunk>>>;

/// Seals for one source. Clones are one.
#[derive(Clone)]
pub struct Sealer(Arc<Desk>);

/// What the sealing threads share.
pub(super) struct Desk {
    pub(super) maker: Maker,
    pub(super) cut: Cut,
    pub(super) facts: Arc<dyn Facts>,
    pub(super) board: SourceBoard,
    pub(super) clock: Arc<dyn Clock>,
    spool: SpoolReader,
    spool_bytes_max: u64,
    versions: Mutex<Versions>,
    last_group: Mutex<u64>,
}

/// Where groups go, and what stops it.
#[derive(Clone, Debug)]
pub(super) struct Outlet {
    pub(super) groups: Sender<Group>,
    pub(super) token: CancellationToken,
}

impl Sealer {
    /// Opens the spool, and removes from it what no group names.
    ///
    /// # Errors
    ///
    /// The facts or the spool cannot be read.
    pub fn open(
        options: SealOptions,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SealError> {
        let (dir, source, key) = (&options.spool_dir, &options.source, options.spool_key.clone());
        let spool = Spool::open(dir, source, key, &groups(&*facts)?, board.clone())?;
        Self::with(options, spool, encode::parquet, facts, board, clock)
    }

    /// [`Sealer::open`] on another disk, in a folder that is there, with rows as lines of text.
    #[cfg(feature = "sim")]
    pub(crate) fn open_on(
        device: Arc<dyn crate::disk::device::Device>,
        options: SealOptions,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SealError> {
        let (dir, source, key) = (&options.spool_dir, &options.source, options.spool_key.clone());
        let spool = Spool::open_on(device, dir, source, key, &groups(&*facts)?, board.clone())?;
        Self::with(options, spool, super::lines::lines, facts, board, clock)
    }

    fn with(
        options: SealOptions,
        spool: Spool,
        encode: EncodeWith,
        facts: Arc<dyn Facts>,
        board: SourceBoard,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SealError> {
        let last: u64 = facts::read(&*facts, LAST_GROUP_FACT)?.unwrap_or(0);
        Ok(Self(Arc::new(Desk {
            spool: spool.reader(),
            maker: Maker {
                keys: Keys::new(&options.prefix),
                source: options.source,
                encryption: options.encryption,
                integers: options.integers,
                uuids: options.uuids,
                spool,
                encode,
                habits: Mutex::default(),
                presses: Presses::default(),
            },
            cut: Cut {
                bytes: options.object_bytes,
                age: options.object_age,
                tables: OPEN_TABLES_MAX,
            },
            versions: Mutex::new(Versions::load(&*facts)?),
            last_group: Mutex::new(last),
            spool_bytes_max: options.spool_bytes_max,
            facts,
            board,
            clock,
        })))
    }

    /// The groups that were sealed and are not in the ledger yet, in the order of their ids. They are to
    /// go down the road before those of this start; so are they after `run_changes` or `run_snapshots`
    /// was stopped by its token.
    ///
    /// # Errors
    ///
    /// The facts do not read.
    pub fn recovered(&self) -> Result<Vec<Group>, SealError> {
        groups(&*self.0.facts)
    }

    /// Where the changes were cut last: the journal is read from the batch after it. `None` before the
    /// first epoch.
    ///
    /// # Errors
    ///
    /// The fact does not read.
    pub fn sealed(&self) -> Result<Option<EpochEnd>, SealError> {
        Ok(facts::read(&*self.0.facts, EPOCH_FACT)?)
    }

    /// The reading side of the spool.
    pub fn spool(&self) -> SpoolReader {
        self.0.spool.clone()
    }

    /// Seals changes until `token` stops it. Blocks: a thread of its own, and only one. `reader` may begin
    /// anywhere at or before the batch after [`Sealer::sealed`]; `decode` makes a decoder that remembers
    /// the tables it is given.
    ///
    /// # Errors
    ///
    /// Nothing of the open epoch was recorded; it can be run again.
    pub fn run_changes(
        &self,
        mut reader: Box<dyn ReadBatches>,
        decode: &dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
        groups: Sender<Group>,
        token: CancellationToken,
    ) -> Result<(), SealError> {
        let outlet = Outlet { groups, token };
        Changes::resume(&self.0, outlet, decode)?.run(&mut *reader)
    }

    /// The desk.
    pub(super) fn desk(&self) -> &Desk {
        &self.0
    }

    /// [`Sealer::run_changes`] turned by hand: each call reads what is there, one batch at most, and cuts
    /// what is due.
    #[cfg(feature = "sim")]
    pub(crate) fn turns(
        &self,
        mut reader: Box<dyn ReadBatches>,
        decode: &dyn Fn(Vec<Arc<Table>>) -> Box<dyn Decode>,
        groups: Sender<Group>,
    ) -> Result<impl FnMut() -> Result<bool, SealError> + '_, SealError> {
        let outlet = Outlet { groups, token: CancellationToken::new() };
        let mut changes = Changes::resume(&self.0, outlet, decode)?;
        Ok(move || match self.0.has_room() {
            true => changes.turn(&mut *reader, Duration::ZERO),
            false => Ok(true),
        })
    }

    /// Seals snapshot chunks until their channel closes or `token` stops it. Blocks; any number of
    /// threads may share `chunks`. Each needs about 32 MiB.
    ///
    /// # Errors
    ///
    /// Nothing of the chunk at hand was recorded; it can be run again.
    pub fn run_snapshots(
        &self,
        chunks: &SnapshotChunks,
        decode: &dyn Decode,
        groups: Sender<Group>,
        token: CancellationToken,
    ) -> Result<(), SealError> {
        snapshot::run(&self.0, &Outlet { groups, token }, chunks, decode)
    }

    /// [`Sealer::run_snapshots`] by hand: seals one chunk, all of which is there.
    #[cfg(feature = "sim")]
    pub(crate) fn seal_chunk(
        &self,
        chunk: SnapshotChunk,
        decode: &dyn Decode,
        groups: Sender<Group>,
    ) -> Result<(), SealError> {
        let outlet = Outlet { groups, token: CancellationToken::new() };
        snapshot::seal(&self.0, &outlet, chunk, decode)
    }
}

impl Desk {
    /// Makes a group of `drafts` durable and passes it on. `kind` is asked, with the group's id, while no
    /// other group can be recorded; it may add facts, which become durable with the group, and may say
    /// that there is nothing to record any more. False: that, or stopped; nothing was recorded.
    pub(super) fn record(
        &self,
        outlet: &Outlet,
        mut drafts: Vec<Draft>,
        kind: impl FnOnce(u64, &mut FactBatch) -> Result<Option<(GroupKind, Fates)>, SealError>,
    ) -> Result<bool, SealError> {
        drafts.sort_by(|one, other| one.object.key.cmp(&other.object.key));
        if !drafts.is_empty() {
            self.maker.spool.settle()?;
        }
        let mut last = lock(&self.last_group);
        if outlet.is_stopped() {
            return Ok(false);
        }
        let mut facts = FactBatch::default();
        let Some((kind, fates)) = kind(*last + 1, &mut facts)? else { return Ok(false) };
        let (objects, files): (Vec<_>, Vec<_>) =
            drafts.into_iter().map(|draft| (draft.object, draft.file)).unzip();
        let group = Group { id: *last + 1, kind, objects, fates, at: self.clock.wall() };
        facts.put(group.fact(), &group).put(LAST_GROUP_FACT, &group.id);
        // From here on the files stay, come what may: a fact whose fsync failed can still be there after a
        // restart. If it is not, they are removed then.
        files.into_iter().for_each(super::spool::SpoolFile::keep);
        self.facts.record_blocking(facts)?;
        *last = group.id;
        self.maker.spool.count(&group.objects);
        self.show(&group);
        self.send(outlet, group);
        Ok(true)
    }

    /// `table` with the number of its shape's version. A new one's object is on its way before this returns.
    pub(super) fn versioned(
        &self,
        outlet: &Outlet,
        table: &Table,
    ) -> Result<Arc<Table>, SealError> {
        let mut versions = lock(&self.versions);
        if let Some(known) = versions.find(table) {
            return Ok(Arc::clone(known));
        }
        let numbered = versions.number(table);
        let draft = schema::draft(&self.maker, &numbered, None)?;
        let first = versions.last(table.id).is_none() && !table.is_own();
        let kind = |_, facts: &mut FactBatch| {
            schema::put_version(facts, &numbered);
            if first {
                facts.put(first_fact(table.id), &table.qualified());
            }
            Ok(Some((GroupKind::Schema, Fates::default())))
        };
        if self.record(outlet, vec![draft], kind)? {
            tracing::info!(table = numbered.qualified(), version = numbered.version, "new schema");
            versions.learn(Arc::clone(&numbered));
        }
        Ok(numbered)
    }

    /// The version of a table's schema, by the name that it has there.
    pub(super) fn version(&self, qualified: &str, version: u32) -> Option<Arc<Table>> {
        lock(&self.versions).named(qualified, version)
    }

    /// What of tables is to be said with the next epoch, and the facts that go with that.
    pub(super) fn fates(&self) -> Result<(Fates, FactBatch), FactDamaged> {
        let versions = lock(&self.versions);
        fates::due(&*self.facts, |id| versions.last(id))
    }

    /// Whether more may be sealed.
    pub(super) fn has_room(&self) -> bool {
        self.spool.bytes_waiting() <= self.spool_bytes_max
    }

    /// Passes a group on, in order, because the caller holds the desk.
    fn send(&self, outlet: &Outlet, mut group: Group) {
        while !outlet.is_stopped() {
            match outlet.groups.try_send(group) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(back)) => group = back,
            }
            thread::sleep(PAUSE);
        }
    }

    fn show(&self, group: &Group) {
        let rows: u64 = group.objects.iter().flat_map(|object| object.rows.values()).sum();
        let bytes: u64 = group.objects.iter().map(|object| object.bytes).sum();
        self.board.write(|status| {
            status.sealed_rows += rows;
            status.sealed_objects += group.objects.len() as u64;
            status.sealed_bytes += bytes;
            if let GroupKind::Changes { to, .. } | GroupKind::Gap { to, .. } = &group.kind {
                status.sealed = *to;
            }
        });
    }
}

impl Outlet {
    /// Whether nobody waits for groups any more.
    pub(super) fn is_stopped(&self) -> bool {
        self.token.is_cancelled() || self.groups.is_closed()
    }
}

/// Locks; what a panicked thread left is whole, because each change is one assignment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn groups(facts: &dyn Facts) -> Result<Vec<Group>, SealError> {
    let groups = facts::read_all::<Group>(facts, GROUP_FACTS)?;
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// How long a thread waits for room before it looks again.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long at most a thread that has nothing to do sleeps before it looks whether it is to stop, or an epoch
/// is due.
pub(super) const REST: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::memory::{Bench, Log, NOON, Plain, change, reader, relation, table};

    fn log(epochs: usize) -> Log {
        let mut log = Log::default();
        log.whole(NOON, &[&[relation(&table(1, "a"))]]);
        for _ in 0..epochs * 3 {
            log.whole(NOON, &[&[change(b'I', 1, &["1", "n"])]]);
        }
        log
    }

    #[test]
    fn groups_come_back_after_a_restart_and_strangers_go() {
        let bench = Bench::new();
        let groups = bench.run(log(2).batches).unwrap();
        let stranger = bench.options.spool_dir.join("00000000000000000099.spool");
        std::fs::write(&stranger, b"left by a crash").unwrap();
        let sealer = bench.open();
        assert_eq!(sealer.recovered().unwrap(), groups);
        assert!(!stranger.exists());
        let objects: Vec<_> = groups.iter().flat_map(|group| &group.objects).collect();
        let waiting: u64 = objects.iter().map(|object| object.bytes).sum();
        assert_eq!(sealer.spool().bytes_waiting(), waiting);
        assert_eq!(bench.board.read().spool_bytes, waiting);
        for object in objects {
            sealer.spool().remove(object).unwrap();
            sealer.spool().remove(object).unwrap();
        }
        assert_eq!((bench.spooled(), bench.board.read().spool_bytes), (0, 0));
    }

    #[test]
    fn a_full_spool_stops_sealing_until_objects_are_gone() {
        let mut bench = Bench::new();
        bench.options.spool_bytes_max = 1;
        let sealer = bench.open();
        let (groups, mut passed) = tokio::sync::mpsc::channel(100);
        let token = CancellationToken::new();
        thread::scope(|scope| {
            let reader = reader(log(5).batches, CancellationToken::new());
            let run =
                scope.spawn(|| sealer.run_changes(reader, &Plain::make, groups, token.clone()));
            let stop = token.clone().drop_guard();
            let mut first = vec![passed.blocking_recv().unwrap()];
            thread::sleep(PAUSE * 5);
            first.extend(std::iter::from_fn(|| passed.try_recv().ok()));
            assert!(first.len() < 4, "sealed on, though the spool is full");
            for object in first.iter().flat_map(|group| &group.objects) {
                sealer.spool().remove(object).unwrap();
            }
            let next = passed.blocking_recv().unwrap();
            assert_eq!(next.id, first.len() as u64 + 1);
            drop(stop);
            run.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_was_stopped_before_it_was_passed_on_is_recovered() {
        let bench = Bench::new();
        let (groups, mut passed) = tokio::sync::mpsc::channel(1);
        let token = CancellationToken::new();
        let sealer = bench.open();
        thread::scope(|scope| {
            let reader = reader(log(3).batches, CancellationToken::new());
            let run =
                scope.spawn(|| sealer.run_changes(reader, &Plain::make, groups, token.clone()));
            let stop = token.clone().drop_guard();
            while sealer.recovered().unwrap().len() < 2 {
                thread::sleep(PAUSE);
            }
            drop(stop);
            run.join().unwrap().unwrap();
        });
        assert_eq!(passed.try_recv().unwrap().id, 1);
        assert!(passed.try_recv().is_err());
        let ids: Vec<_> = sealer.recovered().unwrap().iter().map(|group| group.id).collect();
        assert_eq!(ids, [1, 2]);
    }
}
