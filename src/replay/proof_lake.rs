//! The lake's side of a proof: the objects become records on disk, and these the rows at a position.
//!
//! Objects are read once: what was read before the position was known counts, and only the rest comes after it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};

use super::{
    ReplayError,
    fetch::Fetcher,
    plan::{Definitions, Plan, TablePlan},
    proof_layout::{Layout, Scope, is_unsure},
    proof_rows::{Head, Kind, Taking, record},
    proof_spill::{Heap, Spill},
    proof_state::{Bounds, Known, Leaving, count, fold},
    read::{BATCH_BYTES, LakeFile},
};
use crate::{
    journal::Op,
    ledger::EntryObject,
    seal::Table,
    source::digest::{Hash, Stamp, Sum, bucket, hash_of},
    units::Position,
};

/// The lake's tables.
pub(super) struct Lakeside<'a> {
    fetcher: &'a Fetcher,
    pub(super) spill: Spill,
    /// By table id and version.
    versions: BTreeMap<(u32, u32), Arc<Table>>,
    held: BTreeMap<u32, Held>,
    /// Rows of each table that are looked at one by one.
    pub(super) rows_max: usize,
}

/// What was read of a table.
pub(super) struct Held {
    pub(super) layout: Layout,
    /// Its last definition.
    pub(super) last: Arc<Table>,
    /// Keys of the objects that were read.
    done: HashSet<String>,
    emptied: Vec<(Position, u64)>,
    /// Rows that left their keys and need values from there.
    leaves: bool,
    /// Why its rows cannot be told apart.
    pub(super) problem: Option<String>,
}

/// A table's state is made of these.
#[derive(Clone, Debug)]
pub(super) struct View<'s> {
    pub(super) id: u32,
    pub(super) bounds: Bounds,
    pub(super) scope: &'s Scope,
    /// What the database says of it.
    pub(super) source: &'s Table,
}

/// A row of the lake at the position.
pub(super) struct LakeRow<'r> {
    pub(super) key: Hash,
    /// Of all columns that are compared.
    pub(super) hash: Hash,
    /// Their stamps, in the scope's order.
    pub(super) stamps: &'r [Stamp],
    /// Which of them may differ although nothing is wrong, or are not known.
    pub(super) unsure: &'r [bool],
}

/// The digests of a table.
#[derive(Debug, Default)]
pub(super) struct LakeSums {
    pub(super) buckets: BTreeMap<u16, Sum>,
    /// Columns with values that are unsure, and how many.
    pub(super) unsure: BTreeMap<String, u64>,
}

impl<'a> Lakeside<'a> {
    pub(super) fn new(fetcher: &'a Fetcher, spill: Spill, rows_max: usize) -> Self {
        Self { fetcher, spill, versions: BTreeMap::new(), held: BTreeMap::new(), rows_max }
    }

    /// What is held of a table.
    pub(super) fn held(&self, id: u32) -> Option<&Held> {
        self.held.get(&id)
    }

    /// Reads what the plan has and was not read yet. `told` hears of rows read, and of all.
    pub(super) async fn take(
        &mut self,
        plan: &Plan,
        known: &Definitions,
        told: &mut (dyn FnMut(&str, u64, u64) + Send),
    ) -> Result<(), ReplayError> {
        self.versions = known.values().map(|of| ((of.id, of.version), Arc::clone(of))).collect();
        let mut jobs = vec![];
        for (id, table) in &plan.tables {
            let Some(last) = self.last(*id, table, plan) else { continue };
            let layout = Layout::new(&last);
            let objects = objects(*id, table, plan);
            let rows: u64 = objects.iter().map(rows_of).sum();
            if self.held.get(id).is_none_or(|held| held.layout != layout) {
                self.spill.begin(Heap::Lake(*id), rows);
                self.held.insert(*id, Held::new(layout, Arc::clone(&last)));
            }
            let Some(held) = self.held.get_mut(id) else { continue };
            held.last = last;
            let missing: Vec<_> =
                objects.into_iter().filter(|object| !held.done.contains(&object.key)).collect();
            jobs.push((*id, missing));
        }
        let all: u64 = jobs.iter().flat_map(|(_, objects)| objects).map(rows_of).sum();
        let mut done = 0;
        for (id, objects) in jobs {
            let name = self.held.get(&id).map(|held| held.last.qualified()).unwrap_or_default();
            let fetcher = self.fetcher;
            let fetches = objects.into_iter().map(|object| async move {
                Ok::<_, ReplayError>((fetcher.rows(&object, BATCH_BYTES).await?, object))
            });
            let mut fetched = stream::iter(fetches).buffered(FETCHES);
            while let Some(next) = fetched.next().await {
                let (file, object) = next?;
                self.read(id, file, &object)?;
                done += rows_of(&object);
                told(&name, done, all);
            }
            self.spill.settle(Heap::Lake(id))?;
        }
        Ok(())
    }

    /// The definition in force at the plan's end.
    fn last(&self, id: u32, table: &TablePlan, plan: &Plan) -> Option<Arc<Table>> {
        let version =
            plan.epochs.iter().rev().find_map(|epoch| epoch.version_at_end(id, table.last));
        let named = version.and_then(|version| self.versions.get(&(id, version)).cloned());
        named.or_else(|| table.definition.clone())
    }

    fn read(
        &mut self,
        id: u32,
        mut file: LakeFile,
        object: &EntryObject,
    ) -> Result<(), ReplayError> {
        let Some(held) = self.held.get_mut(&id) else { return Ok(()) };
        held.done.insert(object.key.clone());
        let version = file.version().unwrap_or(held.last.version);
        // A table of the same name, made before or after this one in the same epoch, has other versions.
        let Some(version) = self.versions.get(&(id, version)) else { return Ok(()) };
        if let Err(why) = held.layout.names_rows_of(version, &held.last) {
            held.problem.get_or_insert(why);
            return Ok(());
        }
        let mut taking = Taking::new(&held.layout, &held.last, version);
        let mut places = None;
        let (spill, leaves) = (&mut self.spill, &mut held.leaves);
        while let Some(rows) = file.next_rows()? {
            let places = &*places.get_or_insert_with(|| taking.places(&rows, version));
            for row in 0..rows.len() {
                let meta = rows.meta(row);
                if meta.op == Op::Truncate {
                    held.emptied.push((meta.position, meta.sequence));
                    continue;
                }
                let mut push = |record: &[u8]| {
                    *leaves |= record.get(16) == Some(&(Kind::Leave as u8));
                    spill.push(Heap::Lake(id), record)
                };
                if taking.take(&rows, row, places, &mut push)?.is_none() {
                    held.problem.get_or_insert("a row does not say what it is called".into());
                }
            }
        }
        Ok(())
    }

    /// The bounds of a table's state at `end`.
    pub(super) fn bounds(&self, id: u32, table: &TablePlan, end: Position) -> Bounds {
        let Some(held) = self.held.get(&id) else { return Bounds::default() };
        let emptied =
            held.emptied.iter().copied().filter(|(at, _)| *at > table.first && *at <= end);
        // Of several parts the oldest tells where its changes begin to count.
        Bounds { anew: table.anew, skip: table.first, end, emptied: emptied.max() }
    }

    /// Brings the values of rows that left their keys to where they went. Once for each state.
    pub(super) fn follow(&mut self, id: u32, bounds: &Bounds) -> Result<(), ReplayError> {
        let Some(held) = self.held.get(&id).filter(|held| held.leaves) else { return Ok(()) };
        let (heap, columns) = (Heap::Lake(id), held.layout.columns.len());
        let mut open: Option<HashSet<(Hash, u64)>> = None;
        loop {
            let mut left = HashSet::new();
            let mut fills = vec![];
            for part in 0..self.spill.parts(heap) {
                let passes = self.spill.passes(heap, part);
                for pass in 0..passes {
                    let bytes = self.spill.read(heap, part, (pass, passes))?;
                    let mut leaving = |leaving: Leaving| {
                        let place = (leaving.to, leaving.sequence);
                        if open.as_ref().is_some_and(|open| !open.contains(&place)) {
                            return;
                        }
                        if fill(&leaving, &mut fills) {
                            left.insert(place);
                        }
                    };
                    let folded = fold(&bytes, bounds, columns, &mut leaving, &mut |_, _| {});
                    folded.ok_or_else(|| self.spill.damaged())?;
                    for fill in fills.drain(..) {
                        self.spill.push(heap, &fill)?;
                    }
                }
            }
            self.spill.settle(heap)?;
            if left.is_empty() || open.is_some_and(|open| open.len() <= left.len()) {
                return Ok(());
            }
            open = Some(left);
        }
    }

    /// The digests of a table's rows.
    pub(super) fn sums(&self, view: &View<'_>, bits: u32) -> Result<LakeSums, ReplayError> {
        let mut sums = LakeSums::default();
        let heap = Heap::Lake(view.id);
        for part in 0..self.spill.parts(heap) {
            let passes = self.spill.passes(heap, part);
            for pass in 0..passes {
                let whole = self.is_keyed(view.id);
                if !whole {
                    let (counts, unsure) = self.counts(view, part, (pass, passes))?;
                    for (hash, times) in counts {
                        sums.buckets.entry(bucket(&hash, bits)).or_default().add(&hash, times);
                    }
                    if unsure {
                        *sums.unsure.entry(String::new()).or_default() += 1;
                    }
                    continue;
                }
                let mut visit = |row: LakeRow<'_>| {
                    sums.buckets.entry(bucket(&row.key, bits)).or_default().add(&row.hash, 1);
                    let unsure = row.unsure.iter().zip(&view.scope.columns).filter(|(at, _)| **at);
                    for (_, column) in unsure {
                        *sums.unsure.entry(column.clone()).or_default() += 1;
                    }
                };
                self.rows(view, part, (pass, passes), &mut visit)?;
            }
        }
        Ok(sums)
    }

    /// Whether a table's rows are told apart by a key.
    pub(super) fn is_keyed(&self, id: u32) -> bool {
        self.held.get(&id).is_some_and(|held| !held.layout.key.is_empty())
    }

    /// The rows of one pass over one part.
    pub(super) fn rows(
        &self,
        view: &View<'_>,
        part: usize,
        passes: (usize, usize),
        visit: &mut dyn FnMut(LakeRow<'_>),
    ) -> Result<(), ReplayError> {
        let Some(held) = self.held.get(&view.id) else { return Ok(()) };
        let bytes = self.spill.read(Heap::Lake(view.id), part, passes)?;
        let places = places(&held.layout, view.scope);
        let mut masks: HashMap<u32, Vec<bool>> = HashMap::new();
        let (mut scratch, mut stamps, mut unsure) = (vec![], vec![], vec![]);
        let mut row = |key: &Hash, known: &[Known]| {
            stamps.clear();
            unsure.clear();
            for (at, place) in places.iter().enumerate() {
                let Some((stamp, version)) = known.get(*place) else { continue };
                let mask = masks.entry(*version).or_insert_with(|| self.mask(view, *version));
                unsure.push(*stamp == Stamp::Open || mask.get(at).is_none_or(|unsure| *unsure));
                stamps.push(stamp.clone());
            }
            let hash = hash_of(&stamps, &mut scratch);
            visit(LakeRow { key: *key, hash, stamps: &stamps, unsure: &unsure });
        };
        let columns = held.layout.columns.len();
        let folded = fold(&bytes, &view.bounds, columns, &mut |_| {}, &mut row);
        folded.ok_or_else(|| self.spill.damaged())
    }

    /// How often each row of a table without key is there, and whether some may differ although nothing is wrong.
    pub(super) fn counts(
        &self,
        view: &View<'_>,
        part: usize,
        passes: (usize, usize),
    ) -> Result<(HashMap<Hash, i64>, bool), ReplayError> {
        let bytes = self.spill.read(Heap::Lake(view.id), part, passes)?;
        let mut versions = BTreeSet::new();
        let mut seen = |version| {
            versions.insert(version);
        };
        let counts = count(&bytes, &view.bounds, &mut seen).ok_or_else(|| self.spill.damaged())?;
        let unsure = versions.iter().any(|version| self.mask(view, *version).contains(&true));
        Ok((counts, unsure))
    }

    fn mask(&self, view: &View<'_>, version: u32) -> Vec<bool> {
        let version = self.versions.get(&(view.id, version));
        let unsure =
            |name: &String| version.is_none_or(|version| is_unsure(version, view.source, name));
        view.scope.columns.iter().map(unsure).collect()
    }
}

impl Held {
    fn new(layout: Layout, last: Arc<Table>) -> Self {
        let (done, emptied) = (HashSet::new(), vec![]);
        Self { layout, last, done, emptied, leaves: false, problem: None }
    }
}

/// A record of what a row brings along to its new key. Whether something of it is still open.
fn fill(leaving: &Leaving, fills: &mut Vec<Vec<u8>>) -> bool {
    let Some(row) = &leaving.row else { return true };
    let stamps: Vec<Stamp> = row.iter().map(|(stamp, _)| stamp.clone()).collect();
    let version = row.iter().map(|(_, version)| *version).min().unwrap_or(0);
    let (position, sequence) = (leaving.position, leaving.sequence);
    let head = Head { kind: Kind::Fill, position, sequence, version };
    let mut bytes = vec![];
    record(&mut bytes, &leaving.to, &head, &stamps);
    fills.push(bytes);
    stamps.contains(&Stamp::Open)
}

/// Where the columns that are compared stand in the layout.
fn places(layout: &Layout, scope: &Scope) -> Vec<usize> {
    let place = |name: &String| layout.columns.iter().position(|own| own == name);
    scope.columns.iter().filter_map(place).collect()
}

/// What makes a table's state.
fn objects(id: u32, table: &TablePlan, plan: &Plan) -> Vec<EntryObject> {
    let rows = table.rows.iter().chain(&table.repairs).map(|rows| rows.object.clone());
    let epochs = plan.epochs.iter().filter(|epoch| epoch.to.position > table.first);
    let tracks = epochs.flat_map(|epoch| &epoch.tracks).filter(|track| track.table == id);
    rows.chain(tracks.flat_map(|track| track.objects.clone())).collect()
}

/// Rows of an object.
pub(super) fn rows_of(object: &EntryObject) -> u64 {
    object.rows.values().sum()
}

/// Objects fetched at once.
const FETCHES: usize = 4;
