//! Which objects make a consistent state, from the ledger's entries. Pure.
//!
//! A table is whole at a point if its snapshot was completed at or before it, and the changes in the
//! ledger reach from the snapshot to it. Behind a gap only rows count that were read behind it, whichever
//! entry came first, unless the table was repaired by keys there (`plan_gaps`); of a table that left and is read
//! anew, only what was read then. Tables are told apart by their id: a table made anew under an old name replaces
//! the old one, a renamed table stays itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(super) use super::plan_defined::definition;
pub use super::plan_tracks::tracks;
use super::{
    ReplayError,
    apply::Shape,
    key::{Content, Name, parse},
    merge::Track,
    plan_defined::{Definition, defined, seen},
    plan_gaps::Gaps,
    plan_large_objects::LargeObjectsPlan,
    plan_names::{Away, Holders, Seen},
    plan_own::{is_reserved, take_own},
    plan_rewritten::{Rewritten, take_rewritten},
    plan_sequences::SequencesPlan,
};
use crate::{
    journal::own::OWN_SCHEMA,
    ledger::{Entry, EntryKind, EntryObject},
    seal::Table,
    units::{Point, Position},
};

/// What a restore reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// By id.
    pub tables: BTreeMap<u32, TablePlan>,
    /// In order.
    pub epochs: Vec<Epoch>,
    /// The point that all of it makes.
    pub end: Point,
    /// Tables that left and of which no whole snapshot counts: they are not restored.
    pub away: Vec<Away>,
    /// Qualified names of tables of a restore's own schema, which are not restored: they would be in its way.
    pub reserved: Vec<String>,
    /// Tables whose values may be those of before, by id.
    pub rewritten: BTreeMap<u32, Rewritten>,
    /// What says where sequences stand.
    pub sequences: SequencesPlan,
    /// What holds large objects.
    pub large_objects: LargeObjectsPlan,
}

/// A table that is restored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TablePlan {
    /// What it is called in the end.
    pub name: Option<Name>,
    /// Objects of its snapshots, by position.
    pub rows: Vec<RowsObject>,
    /// Objects of rows that were read again, by position.
    pub repairs: Vec<RowsObject>,
    /// Its oldest chunk stands here: changes up to here are in every chunk.
    pub first: Position,
    /// Its youngest chunk stands here.
    pub last: Position,
    /// The definition with its youngest chunk.
    pub definition: Option<Arc<Table>>,
    /// That chunk, if it has rows, stands here.
    pub told: Position,
    /// Where its rows begin to count: 0, or where it was read anew.
    pub anew: Position,
    /// The entry with which it left, if it was not read anew since: it stands as it was then.
    pub left: Option<u64>,
    /// After the first position of each and up to the second, its rows may be ahead of its changes or behind them:
    /// between a gap and the end of its repair by keys.
    pub doubtful: Vec<(Position, Position)>,
}

/// An object of a snapshot or repair.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsObject {
    /// Where its snapshot stands.
    pub position: Position,
    /// The object.
    pub object: EntryObject,
}

impl Plan {
    /// A version of a table, called as the table is in the end: of two that had one name, one after the other, each
    /// has its own from the beginning.
    pub fn called(&self, table: &Arc<Table>) -> Arc<Table> {
        let name = self.tables.get(&table.id).and_then(|planned| planned.name.as_ref());
        match name.filter(|name| (&name.schema, &name.table) != (&table.schema, &table.name)) {
            None => Arc::clone(table),
            Some(Name { schema, table: name }) => {
                let (schema, name) = (schema.clone(), name.clone());
                Arc::new(Table { schema, name, ..(**table).clone() })
            }
        }
    }
}

/// A run of whole transactions.
#[derive(Clone, Debug, PartialEq)]
pub struct Epoch {
    /// After this.
    pub from: Point,
    /// Up to this.
    pub to: Point,
    /// Number of its entry.
    pub entry: u64,
    /// The objects of each table.
    pub tracks: Vec<Track>,
    /// What statements made of tables, in order.
    pub defined: Vec<Definition>,
}

/// Definitions by name and version.
pub type Definitions = BTreeMap<(Name, u32), Arc<Table>>;

/// The objects that hold definitions.
pub fn definitions(entries: &[Entry]) -> Vec<(Name, u32, EntryObject)> {
    let objects = entries.iter().flat_map(|entry| &entry.objects);
    let found = objects.filter_map(|object| match parse(&object.key)? {
        (name, Content::Schema { version }) => Some((name, version, object.clone())),
        _ => None,
    });
    found.collect()
}

/// Chooses the objects for the state at `until`, or at the ledger's end, of all tables but those of
/// which `except` has the qualified name.
///
/// # Errors
///
/// [`ReplayError::Incomplete`] names the tables that are not whole there; `Missing` a definition;
/// `Unknown` a name in `except` that no table has.
pub fn plan(
    entries: &[Entry],
    definitions: &Definitions,
    until: Option<Position>,
    except: &[String],
) -> Result<Plan, ReplayError> {
    let (plan, lacking) = gather(entries, definitions, until, (except, false))?;
    match lacking.is_empty() {
        true => Ok(plan),
        false => Err(ReplayError::Incomplete {
            at: plan.end.position,
            tables: lacking.into_iter().map(|(name, why)| format!("{name} ({why})")).collect(),
        }),
    }
}

/// As [`plan`], for those who can go on without the tables that are not whole: the plan has only the others.
///
/// # Errors
///
/// [`ReplayError::Missing`] names a definition.
pub fn plan_whole(
    entries: &[Entry],
    definitions: &Definitions,
    until: Option<Position>,
) -> Result<(Plan, Vec<(String, String)>), ReplayError> {
    gather(entries, definitions, until, (&[], false))
}

/// As [`plan_whole`], as if behind each gap every table were compared with the database and repaired: what it is to be
/// compared by.
///
/// # Errors
///
/// As [`plan_whole`].
pub fn plan_closed(
    entries: &[Entry],
    definitions: &Definitions,
    until: Option<Position>,
) -> Result<(Plan, Vec<(String, String)>), ReplayError> {
    gather(entries, definitions, until, (&[], true))
}

/// The plan, and the tables that are not whole, with what each lacks.
fn gather(
    entries: &[Entry],
    definitions: &Definitions,
    until: Option<Position>,
    (except, closed): (&[String], bool),
) -> Result<(Plan, Vec<(String, String)>), ReplayError> {
    let is_known =
        |qualified: &str| definitions.keys().any(|(name, _)| name.qualified() == qualified);
    if let Some(name) = except.iter().find(|name| !is_known(name)) {
        return Err(ReplayError::Unknown { table: name.clone() });
    }
    let bound = until.unwrap_or(Position(u64::MAX));
    let gaps = Gaps::of(entries, definitions, bound, closed);
    let (_, end) = gaps.last();
    let mut gathered = Gathered { end, gaps, ..Gathered::default() };
    for (at, entry) in entries.iter().enumerate() {
        gathered.add(at, entry, definitions, bound)?;
    }
    let left = |id: u32| gathered.tables.get(&id).is_some_and(|found| found.plan.left.is_some());
    let alive = gathered.holders.alive(|name| !except.contains(name), left);
    gathered.tables.retain(|id, _| alive.contains(id));
    let reserved = gathered.tables.extract_if(.., |_, found| is_reserved(found.plan.name.as_ref()));
    let reserved = reserved.map(|(_, found)| found.name).collect();
    for epoch in &mut gathered.epochs {
        epoch.tracks.retain(|track| gathered.tables.contains_key(&track.table));
        epoch.defined.retain(|defined| gathered.tables.contains_key(&defined.table));
    }
    let (_, behind) = gathered.gaps.last();
    let (mut plan, wrong) = gathered.finish(bound);
    plan.reserved = reserved;
    take_rewritten(&mut plan, entries, definitions, bound);
    take_own(&mut plan, entries, definitions, except, behind.position);
    Ok((plan, wrong))
}

#[derive(Default)]
struct Gathered {
    tables: BTreeMap<u32, Found>,
    epochs: Vec<Epoch>,
    end: Point,
    gaps: Gaps,
    last_by_name: BTreeMap<String, u32>,
    holders: Holders,
    /// The oldest snapshot that was left out because it is younger than asked for.
    too_young: Option<Position>,
}

#[derive(Default)]
struct Found {
    plan: TablePlan,
    name: String,
    /// The last position and change at which that is known.
    called: (Position, u64),
    snapshots: BTreeSet<Position>,
    completed: Option<Position>,
    /// Whether it has objects in the plan.
    needed: bool,
}

impl Gathered {
    fn add(
        &mut self,
        at: usize,
        entry: &Entry,
        known: &Definitions,
        bound: Position,
    ) -> Result<(), ReplayError> {
        match entry.kind {
            EntryKind::Snapshot | EntryKind::Repair => self.add_rows(entry, known, bound)?,
            EntryKind::Changes if entry.from.position < bound => {
                self.add_changes(at, entry, known, bound)?;
                self.add_left(entry, known);
            }
            EntryKind::Changes | EntryKind::Schema | EntryKind::Gap | EntryKind::Fence => {}
        }
        Ok(())
    }

    fn add_rows(
        &mut self,
        entry: &Entry,
        known: &Definitions,
        bound: Position,
    ) -> Result<(), ReplayError> {
        for object in &entry.objects {
            let Some((name, Content::Rows { position })) = parse(&object.key) else { continue };
            if name.schema == OWN_SCHEMA {
                continue;
            }
            if position > bound {
                self.too_young = Some(self.too_young.map_or(position, |young| young.min(position)));
                continue;
            }
            let table = definition(entry, Some(object), &name, known)?;
            let (_, floor) = self.gaps.counts(table.id);
            let found = self.found(&table, &name, Seen::at(position));
            found.needed = true;
            if position < floor {
                continue;
            }
            let rows = RowsObject { position, object: object.clone() };
            if entry.kind == EntryKind::Repair {
                found.plan.repairs.push(rows);
                continue;
            }
            found.plan.rows.push(rows);
            found.snapshots.insert(position);
            if found.plan.last <= position || found.plan.definition.is_none() {
                found.plan.definition = Some(table);
                found.plan.last = position;
                found.plan.told = position;
            }
        }
        for (qualified, position) in entry.completes.iter().filter(|(_, at)| **at <= bound) {
            let Some((name, table)) = self.named(entry, qualified, known)? else { continue };
            let (_, floor) = self.gaps.counts(table.id);
            if *position < floor {
                continue;
            }
            let found = self.found(&table, &name, Seen::at(*position));
            found.completed = found.completed.max(Some(*position));
            found.snapshots.insert(*position);
            found.needed = true;
            found.plan.definition.get_or_insert(table);
        }
        for (qualified, position) in entry.fates.anew.iter().filter(|(_, at)| **at <= bound) {
            // All that was read of it got lost on its way here, and is read once more.
            if !entry.tables.contains_key(qualified) && !self.last_by_name.contains_key(qualified) {
                continue;
            }
            let Some((name, table)) = self.named(entry, qualified, known)? else { continue };
            let found = self.found(&table, &name, Seen::at(*position));
            found.plan.anew = found.plan.anew.max(*position);
            found.needed = true;
            found.plan.left = None;
        }
        Ok(())
    }

    /// The table that an entry of rows names, which need not hold an object of it: a part may be empty.
    fn named(
        &self,
        entry: &Entry,
        qualified: &str,
        known: &Definitions,
    ) -> Result<Option<(Name, Arc<Table>)>, ReplayError> {
        let Some((name, _)) = known.keys().find(|(name, _)| name.qualified() == *qualified) else {
            return Ok(None);
        };
        let last = self.last_by_name.get(qualified);
        let table = match (entry.tables.contains_key(qualified), last) {
            (false, Some(id)) => known.iter().rfind(|((_, _), table)| table.id == *id),
            (true, _) | (_, None) => None,
        };
        let table = match table {
            Some((_, table)) => table.clone(),
            None => definition(entry, None, name, known)?,
        };
        Ok(Some((name.clone(), table)))
    }

    fn add_left(&mut self, entry: &Entry, known: &Definitions) {
        for (qualified, version) in &entry.fates.left {
            let named = |((name, of), _): &(&(Name, u32), &Arc<Table>)| {
                of == version && name.qualified() == *qualified
            };
            let Some((_, table)) = known.iter().find(named) else { continue };
            if let Some(found) = self.tables.get_mut(&table.id) {
                found.plan.left = Some(entry.entry);
            }
        }
    }

    fn add_changes(
        &mut self,
        at: usize,
        entry: &Entry,
        known: &Definitions,
        bound: Position,
    ) -> Result<(), ReplayError> {
        for object in &entry.objects {
            if let Some((name, Content::Changes { from, .. })) = parse(&object.key) {
                if name.schema == OWN_SCHEMA {
                    continue;
                }
                let table = definition(entry, Some(object), &name, known)?;
                let (first, _) = self.gaps.counts(table.id);
                // What it is called counts in any case.
                let seen = Seen::within(entry.from.position, entry.to.position, from);
                self.found(&table, &name, seen).needed |= at >= first;
            }
        }
        let mut definitions = vec![];
        for (name, table, definition) in defined(entry, known, bound)? {
            self.found(table, name, seen(entry, &definition));
            definitions.push(definition);
        }
        definitions.retain(|of| at >= self.gaps.counts(of.table).0);
        let mut tracks = tracks(entry, known)?;
        // Rows of tables of ours are none of the database's.
        tracks.retain(|track| {
            self.tables.contains_key(&track.table) && at >= self.gaps.counts(track.table).0
        });
        let (behind, _) = self.gaps.last();
        if at >= behind {
            self.end = entry.to;
        } else if tracks.is_empty() && definitions.is_empty() {
            return Ok(());
        }
        let (from, to, entry) = (entry.from, entry.to, entry.entry);
        self.epochs.push(Epoch { from, to, entry, tracks, defined: definitions });
        Ok(())
    }

    /// The table, which was seen to be called so.
    fn found(&mut self, table: &Table, name: &Name, seen: Seen) -> &mut Found {
        self.last_by_name.insert(name.qualified(), table.id);
        self.holders.saw(name.qualified(), table.id, seen);
        let at = (seen.to, seen.change);
        let found = self.tables.entry(table.id).or_default();
        if at >= found.called {
            found.called = at;
            found.name = name.qualified();
            found.plan.name = Some(name.clone());
        }
        found
    }

    fn finish(mut self, bound: Position) -> (Plan, Vec<(String, String)>) {
        for (id, found) in &mut self.tables {
            let (_, floor) = self.gaps.counts(*id);
            found.plan.anew = found.plan.anew.max(floor);
            found.plan.doubtful = self.gaps.doubtful(*id);
            found.forget_before_anew();
        }
        let snapshots: BTreeSet<Position> =
            self.tables.values().flat_map(|found| found.snapshots.iter().copied()).collect();
        // One snapshot for all, and no changes behind it yet: the snapshot itself is the point.
        let single =
            snapshots.first().filter(|at| snapshots.len() == 1 && self.end.position < **at);
        if let Some(at) = single {
            self.end.position = *at;
        }
        let end = Point { position: self.end.position.min(bound), ..self.end };
        let mut away = vec![];
        self.tables.retain(|_, found| {
            let left = found.plan.left.filter(|_| found.completed.is_none());
            away.extend(left.map(|entry| Away {
                table: found.name.clone(),
                entry,
                before_gap: found.snapshots.is_empty(),
            }));
            left.is_none()
        });
        let mut wrong = BTreeMap::new();
        for (id, found) in self.tables.iter().filter(|(_, found)| found.needed) {
            let (first, last) = (found.snapshots.first(), found.snapshots.last());
            let why = match (found.completed, last) {
                (None, _) if let Some(position) = self.gaps.later(*id) => {
                    format!("it is repaired behind a gap from {position} on")
                }
                (None, None) if self.gaps.counts(*id).0 > 0 => {
                    "it was neither read nor compared since a gap".into()
                }
                (None, _) => "its snapshot is not complete".into(),
                (_, Some(last)) if *last > end.position => {
                    format!("its snapshot stands at {last}, the changes reach {}", end.position)
                }
                _ if first != last && !found.is_keyed() => {
                    "it has no one key, and its snapshot was read at several points".into()
                }
                _ => continue,
            };
            wrong.insert(*id, (found.name.clone(), why));
        }
        self.tables.retain(|id, _| !wrong.contains_key(id));
        let mut wrong: Vec<(String, String)> = wrong.into_values().collect();
        if let (true, true, Some(young)) =
            (self.tables.is_empty(), wrong.is_empty(), self.too_young)
        {
            wrong.push(("all".into(), format!("the first snapshot stands at {young}")));
        }
        let tables = self.tables.into_iter().map(|(id, found)| {
            let mut plan = found.plan;
            // The changes do not reach those behind the end: they are of a state that is not restored.
            plan.repairs.retain(|rows| rows.position <= end.position);
            for rows in [&mut plan.rows, &mut plan.repairs] {
                rows.sort_by(|one, other| {
                    (one.position, &one.object.key).cmp(&(other.position, &other.object.key))
                });
            }
            plan.first = found.snapshots.first().copied().unwrap_or_default();
            plan.last = plan.last.max(found.snapshots.last().copied().unwrap_or_default());
            (id, plan)
        });
        let (tables, epochs) = (tables.collect(), self.epochs);
        (Plan { tables, epochs, end, away, ..Plan::default() }, wrong)
    }
}

impl Found {
    fn is_keyed(&self) -> bool {
        self.plan.definition.as_ref().is_some_and(|table| Shape::new(table).converges())
    }

    fn forget_before_anew(&mut self) {
        let anew = self.plan.anew;
        self.snapshots.retain(|at| *at >= anew);
        self.completed = self.completed.filter(|at| *at >= anew);
        self.plan.rows.retain(|rows| rows.position >= anew);
        self.plan.repairs.retain(|rows| rows.position >= anew);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Fates, Repaired, SourceIdentity},
        replay::sample::{column, table},
        units::Sequence,
    };

    fn object(key: &str) -> EntryObject {
        EntryObject {
            key: key.into(),
            bytes: 0,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
            version: None,
        }
    }

    fn point(sequence: u64, position: u64) -> Point {
        Point { sequence: Sequence(sequence), position: Position(position) }
    }

    fn entry(kind: EntryKind, from: Point, to: Point, keys: &[String]) -> Entry {
        Entry {
            previous: String::new(),
            entry: 1,
            source: SourceIdentity {
                name: "erp".into(),
                system_identifier: String::new(),
                timeline: 1,
            },
            kind,
            from,
            to,
            tables: ["a", "b"].map(|name| (format!("public.{name}"), 1)).into(),
            objects: keys.iter().map(|key| object(key)).collect(),
            completes: BTreeMap::new(),
            fates: Fates::default(),
            lost: None,
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: "box".into(),
            at: String::new(),
        }
    }

    fn snapshot(name: &str, position: u64, completes: bool) -> Entry {
        let hash = "0123456789abcdef";
        let key = format!(
            "erp/public.{name}/dt=2026-11-21/snapshot-{position:016X}-00000000-{hash}.parquet"
        );
        let mut entry = entry(EntryKind::Snapshot, point(0, 0), point(0, 0), &[key]);
        if completes {
            entry.completes.insert(format!("public.{name}"), Position(position));
        }
        entry
    }

    fn changes(names: &[&str], from: Point, to: Point) -> Entry {
        let keys: Vec<String> = names.iter().map(|name| {
            format!("erp/public.{name}/dt=2026-11-21/changes-{:020}-{:020}-0123456789abcdef.parquet", from.sequence.0 + 1, to.sequence.0)
        }).collect();
        entry(EntryKind::Changes, from, to, &keys)
    }

    fn known() -> Definitions {
        let key: [(&str, &[&str]); 2] = [("a", &["id"]), ("b", &[])];
        let tables = key.into_iter().zip(1..).map(|((name, key), id)| {
            let table = Table { id, ..table(name, vec![column("id", "bigint", 20, -1)], key) };
            let name = Name { schema: "public".into(), table: name.into() };
            ((name, 1), Arc::new(table))
        });
        tables.collect()
    }

    #[test]
    fn a_statement_gives_a_table_its_version_and_name_though_no_row_follows() {
        let mut known = known();
        let named = |schema: &str, table: &str| Name { schema: schema.into(), table: table.into() };
        let before = known[&(named("public", "a"), 1)].clone();
        let after = Table { name: "c".into(), version: 2, ..(*before).clone() };
        let own =
            Table { id: 9, schema: OWN_SCHEMA.into(), name: "statements".into(), ..after.clone() };
        known.insert((named("public", "c"), 2), Arc::new(after));
        known.insert((named(OWN_SCHEMA, "statements"), 1), Arc::new(Table { version: 1, ..own }));
        let mut told = changes(&["b"], point(0, 100), point(5, 200));
        let rows = told.objects[0].key.replace("public.b", "pg_lakehead.statements");
        told.objects.push(object(&rows));
        told.tables.insert("pg_lakehead.statements".into(), 1);
        let (table, position, sequence) = ("public.c".to_owned(), Position(150), Sequence(3));
        told.fates.defined = vec![crate::ledger::Defined { table, version: 2, position, sequence }];
        let entries = [snapshot("a", 100, true), snapshot("b", 100, true), told];
        let of = |until| {
            let plan = plan(&entries, &known, until, &[]).unwrap();
            let tracks: Vec<u32> = plan.epochs[0].tracks.iter().map(|track| track.table).collect();
            let name = plan.tables[&1].name.as_ref().map(Name::qualified);
            (tracks, plan.epochs[0].defined.clone(), name)
        };
        let defined = Definition { table: 1, version: 2, position, sequence };
        assert_eq!(of(None), (vec![2], vec![defined], Some("public.c".into())));
        assert_eq!(of(Some(Position(149))), (vec![2], vec![], Some("public.a".into())));
    }

    #[test]
    fn what_a_restore_kept_in_the_source_is_not_restored() {
        let mut known = known();
        let name = Name { schema: "lakehead_restore".into(), table: "objects".into() };
        let own = Table {
            id: 9,
            schema: name.schema.clone(),
            name: name.table.clone(),
            ..(**known.values().next().unwrap()).clone()
        };
        known.insert((name.clone(), 1), Arc::new(own));
        let mut told = changes(&["a"], point(0, 100), point(5, 200));
        let mut rows = snapshot("a", 50, false);
        for entry in [&mut told, &mut rows] {
            let key = entry.objects[0].key.replace("public.a", "lakehead_restore.objects");
            entry.objects.push(object(&key));
            entry.tables.insert(name.qualified(), 1);
        }
        let entries = [snapshot("a", 50, true), snapshot("b", 50, true), rows, told];
        let plan = plan(&entries, &known, None, &[]).unwrap();
        assert_eq!(plan.reserved, ["lakehead_restore.objects"]);
        assert_eq!(plan.tables.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(plan.epochs[0].tracks.iter().map(|of| of.table).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_state_is_whole_when_changes_reach_its_snapshots() {
        let mut entries = vec![snapshot("a", 10, true), snapshot("b", 10, true)];
        let alone = plan(&entries, &known(), None, &[]).unwrap();
        assert_eq!((alone.end, alone.tables.len()), (point(0, 10), 2));
        entries.push(changes(&["a", "b"], point(0, 10), point(5, 20)));
        entries.push(changes(&["a"], point(5, 20), point(9, 30)));
        let whole = plan(&entries, &known(), None, &[]).unwrap();
        assert_eq!((whole.end, whole.epochs.len()), (point(9, 30), 2));
        let part = plan(&entries, &known(), Some(Position(20)), &[]).unwrap();
        assert_eq!((part.end, part.epochs.len()), (point(5, 20), 1));
        let within = plan(&entries, &known(), Some(Position(25)), &[]).unwrap();
        assert_eq!((within.end.position, within.epochs.len()), (Position(25), 2));
    }

    #[test]
    fn a_table_that_is_not_whole_is_named() {
        let said = |entries: &[Entry], until| match plan(entries, &known(), until, &[]) {
            Err(ReplayError::Incomplete { tables, .. }) => tables.join(";"),
            other => panic!("{other:?}"),
        };
        let unfinished = [snapshot("a", 10, false), changes(&["a"], point(0, 10), point(1, 20))];
        assert_eq!(said(&unfinished, None), "public.a (its snapshot is not complete)");
        let ahead = [
            snapshot("a", 10, true),
            snapshot("b", 40, true),
            changes(&["a"], point(0, 10), point(1, 20)),
        ];
        assert!(said(&ahead, None).starts_with("public.b (its snapshot stands at"));
        assert!(said(&ahead, Some(Position(5))).starts_with("all (the first snapshot"));
        let torn = [
            snapshot("b", 10, false),
            snapshot("b", 12, true),
            changes(&[], point(0, 10), point(1, 20)),
        ];
        assert!(said(&torn, None).contains("has no one key"));
    }

    #[test]
    fn a_table_that_left_before_it_was_whole_is_left_out() {
        let mut left = changes(&["a", "b"], point(0, 10), point(1, 20));
        (left.entry, left.fates.left) = (7, BTreeMap::from([("public.a".to_owned(), 1)]));
        let chain = [snapshot("a", 10, false), snapshot("b", 10, true), left];
        let plan = plan(&chain, &known(), None, &[]).unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(plan.away, [Away { table: "public.a".into(), entry: 7, before_gap: false }]);
    }

    /// The table that is there was read first, so that the older ones, whose changes the stream brings behind that,
    /// have later versions of its name.
    #[test]
    fn a_table_that_was_read_ahead_of_the_stream_keeps_its_changes_among_those_of_an_older_one() {
        let mut known = known();
        let name = Name { schema: "public".into(), table: "a".into() };
        let young = Table { id: 9, ..(*known[&(name.clone(), 1)]).clone() };
        let old = Table { id: 5, version: 2, ..young.clone() };
        known.insert((name.clone(), 1), Arc::new(young));
        known.insert((name, 2), Arc::new(old));
        let mut both = changes(&["a"], point(0, 10), point(4, 60));
        let mut of_young = changes(&["a"], point(2, 10), point(4, 60)).objects;
        of_young[0].version = Some(1);
        both.objects.append(&mut of_young);
        both.tables = BTreeMap::from([("public.a".into(), 2)]);
        let chain = [snapshot("a", 40, true), both];
        let plan = plan(&chain, &known, None, &[]).unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&9]);
        let tracks = plan.epochs[0].tracks.iter().map(|track| (track.table, track.version));
        assert_eq!(tracks.collect::<Vec<_>>(), [(9, 1)]);
    }

    #[test]
    fn a_table_that_came_later_is_not_needed_before() {
        let entries = [
            snapshot("a", 10, true),
            changes(&["a"], point(0, 10), point(1, 20)),
            snapshot("b", 20, true),
        ];
        let plan = plan(&entries, &known(), Some(Position(15)), &[]).unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&1]);
    }

    #[test]
    fn rows_read_again_are_taken_where_the_changes_reach_them() {
        let repair = |position: u64| {
            let key = format!(
                "erp/public.a/dt=2026-11-21/repair-{position:016X}-00000000-0123456789abcdef.parquet"
            );
            entry(EntryKind::Repair, point(1, 20), point(1, 20), &[key])
        };
        let entries = [
            snapshot("a", 10, false),
            snapshot("a", 12, true),
            changes(&["a"], point(0, 10), point(1, 20)),
            repair(40),
            repair(25),
            changes(&["a"], point(1, 20), point(2, 30)),
        ];
        let positions = |until: Option<u64>| {
            let plan = plan(&entries, &known(), until.map(Position), &[]).unwrap();
            let table = &plan.tables[&1];
            assert_eq!(
                (table.first, table.last, table.rows.len()),
                (Position(10), Position(12), 2)
            );
            table.repairs.iter().map(|rows| rows.position.0).collect::<Vec<_>>()
        };
        assert_eq!(positions(None), [25]);
        assert_eq!(positions(Some(24)), [0; 0]);
        assert_eq!(positions(Some(25)), [25]);
    }

    #[test]
    fn a_table_that_is_left_out_need_not_be_whole() {
        let entries = [
            snapshot("a", 10, true),
            snapshot("b", 10, false),
            changes(&["a", "b"], point(0, 10), point(1, 20)),
        ];
        let except = |name: &str| plan(&entries, &known(), None, &[name.to_owned()]);
        let plan = except("public.b").unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&1]);
        let tracks = plan.epochs.iter().flat_map(|epoch| &epoch.tracks);
        assert_eq!(tracks.map(|track| track.table).collect::<Vec<_>>(), [1]);
        assert!(matches!(except("public.a"), Err(ReplayError::Incomplete { .. })));
        assert!(matches!(except("b"), Err(ReplayError::Unknown { .. })));
    }

    #[test]
    fn behind_a_gap_only_what_was_read_anew_counts() {
        for at in 0..2 {
            let mut entries = vec![
                snapshot("a", 10, true),
                changes(&["a"], point(0, 10), point(1, 20)),
                entry(EntryKind::Gap, point(1, 20), point(1, 50), &[]),
                changes(&["a"], point(1, 50), point(2, 60)),
            ];
            assert!(plan(&entries, &known(), None, &[]).is_err());
            assert!(plan(&entries, &known(), Some(Position(20)), &[]).is_ok());
            // It may have been read before the ledger came to the gap.
            entries.insert(if at == 0 { 3 } else { 2 }, snapshot("a", 50, true));
            let whole = plan(&entries, &known(), None, &[]).unwrap();
            assert_eq!((whole.tables[&1].rows.len(), whole.epochs.len()), (1, 1));
        }
    }

    #[test]
    fn behind_a_gap_a_table_that_is_not_read_anew_yet_is_missed_unless_it_had_left() {
        let mut before = changes(&["a", "b"], point(0, 10), point(1, 20));
        let mut chain = vec![
            snapshot("a", 10, true),
            snapshot("b", 10, true),
            before.clone(),
            entry(EntryKind::Gap, point(1, 20), point(1, 50), &[]),
            snapshot("b", 50, true),
        ];
        let Err(ReplayError::Incomplete { tables, .. }) = plan(&chain, &known(), None, &[]) else {
            panic!("the table is forgotten");
        };
        assert_eq!(tables, ["public.a (it was neither read nor compared since a gap)"]);
        (before.entry, before.fates.left) = (7, BTreeMap::from([("public.a".to_owned(), 1)]));
        chain[2] = before;
        let left = plan(&chain, &known(), None, &[]).unwrap();
        assert_eq!(left.tables.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(left.away, [Away { table: "public.a".into(), entry: 7, before_gap: true }]);
    }

    /// A gap, then changes of both tables, of which `a` was repaired by keys at 55 and `b` was read anew.
    fn repaired_chain() -> Vec<Entry> {
        let repair = |position: u64| {
            let key = format!(
                "erp/public.a/dt=2026-11-21/repair-{position:016X}-00000000-0123456789abcdef.parquet"
            );
            entry(EntryKind::Repair, point(2, 60), point(2, 60), &[key])
        };
        let mut said = changes(&["b"], point(2, 60), point(3, 70));
        let repaired = Repaired { version: 1, position: Position(55) };
        said.fates.repaired = BTreeMap::from([("public.a".to_owned(), repaired)]);
        let mut anew = snapshot("b", 52, true);
        anew.fates.anew = BTreeMap::from([("public.b".to_owned(), Position(52))]);
        vec![
            snapshot("a", 10, true),
            snapshot("b", 10, true),
            changes(&["a", "b"], point(0, 10), point(1, 20)),
            changes(&["b"], point(1, 20), point(1, 25)),
            entry(EntryKind::Gap, point(1, 25), point(1, 50), &[]),
            anew,
            changes(&["a", "b"], point(1, 50), point(2, 60)),
            repair(53),
            repair(55),
            said,
        ]
    }

    #[test]
    fn a_table_that_was_repaired_by_keys_keeps_what_it_had_before_the_gap() {
        let chain = repaired_chain();
        let whole = plan(&chain, &known(), None, &[]).unwrap();
        let (a, b) = (&whole.tables[&1], &whole.tables[&2]);
        assert_eq!((a.rows.len(), a.repairs.len(), a.anew), (1, 2, Position(0)));
        assert_eq!(a.doubtful, [(Position(50), Position(55))]);
        assert_eq!((b.rows.len(), b.anew, &b.doubtful), (1, Position(52), &vec![]));
        let tracks: Vec<Vec<u32>> = whole
            .epochs
            .iter()
            .map(|epoch| epoch.tracks.iter().map(|track| track.table).collect())
            .collect();
        assert_eq!(tracks, [vec![1], vec![1, 2], vec![2]], "of what was before the gap only a's");
        assert_eq!(whole.end, point(3, 70));
        // Before the gap all counts, whatever was said later.
        let before = plan(&chain, &known(), Some(Position(22)), &[]).unwrap();
        assert_eq!((before.tables.len(), before.epochs.len()), (2, 2));
        assert!(before.tables[&1].doubtful.is_empty());
    }

    #[test]
    fn between_the_gap_and_the_repair_there_is_no_state_of_the_table() {
        let chain = repaired_chain();
        let said = |entries: &[Entry], until| match plan(entries, &known(), until, &[]) {
            Err(ReplayError::Incomplete { tables, .. }) => tables.join(";"),
            other => panic!("{other:?}"),
        };
        let within = said(&chain, Some(Position(54)));
        assert_eq!(within, "public.a (it is repaired behind a gap from 00000000/00000037 on)");
        assert!(plan(&chain, &known(), Some(Position(55)), &[]).is_ok());
        let before = &chain[..chain.len() - 1];
        assert_eq!(said(before, None), "public.a (it was neither read nor compared since a gap)");
        // What it is to be compared by has all of it.
        let (closed, lacking) = plan_closed(before, &known(), None).unwrap();
        assert_eq!((closed.tables[&1].rows.len(), lacking.len()), (1, 0));
        assert_eq!(
            closed.tables[&2].rows.len(),
            1,
            "and of one that was read anew no more than that"
        );
        // Another gap behind it counts again.
        let mut twice = chain;
        twice.push(entry(EntryKind::Gap, point(3, 70), point(3, 90), &[]));
        assert!(
            said(&twice, None)
                .starts_with("public.a (it was neither read nor compared since a gap)")
        );
        let mut healed = changes(&["a"], point(3, 90), point(4, 99));
        let repaired = Repaired { version: 1, position: Position(95) };
        healed.fates.repaired = BTreeMap::from([("public.a".to_owned(), repaired)]);
        twice.push(healed);
        let whole = plan(&twice, &known(), None, &["public.b".to_owned()]).unwrap();
        let ranges = [(50, 55), (90, 95)].map(|(from, to)| (Position(from), Position(to)));
        assert_eq!(whole.tables[&1].doubtful, ranges);
    }

    /// A second gap may come before an entry says that the first one is repaired.
    #[test]
    fn a_repair_that_is_said_behind_a_later_gap_is_none_of_that() {
        let mut chain = repaired_chain();
        let late = chain.pop().unwrap();
        chain.push(entry(EntryKind::Gap, point(2, 60), point(2, 65), &[]));
        chain.push(late);
        let Err(ReplayError::Incomplete { tables, .. }) =
            plan(&chain, &known(), None, &["public.b".to_owned()])
        else {
            panic!("the second gap is passed over");
        };
        assert_eq!(tables, ["public.a (it was neither read nor compared since a gap)"]);
    }

    /// Else a restore that has it from there on would take what was before for news.
    #[test]
    fn a_repair_does_not_bring_back_what_was_before_a_reading_anew() {
        let mut chain = repaired_chain();
        // Nobody said that b left: a box that took the chain over has read all of it.
        chain[5].fates.anew.clear();
        chain.push(entry(EntryKind::Gap, point(3, 70), point(3, 90), &[]));
        let before = plan(&chain[..10], &known(), None, &[]).unwrap();
        assert_eq!(before.tables[&2].anew, Position(50));
        let mut healed = changes(&["b"], point(3, 90), point(4, 99));
        let repaired = Repaired { version: 1, position: Position(95) };
        healed.fates.repaired = ["a", "b"].map(|name| (format!("public.{name}"), repaired)).into();
        chain.push(healed);
        let whole = plan(&chain, &known(), None, &[]).unwrap();
        let (a, b) = (&whole.tables[&1], &whole.tables[&2]);
        assert_eq!((a.anew, b.anew, b.rows.len()), (Position(0), Position(50), 1));
        let (closed, _) = plan_closed(&chain[..11], &known(), None).unwrap();
        assert_eq!((closed.tables[&1].anew, closed.tables[&2].anew), (Position(0), Position(50)));
    }

    #[test]
    fn a_table_renamed_before_a_gap_and_repaired_behind_it_stays_itself() {
        let mut known = known();
        let name = |table: &str| Name { schema: "public".into(), table: table.into() };
        let first = known[&(name("a"), 1)].clone();
        // What was `a` is called `c`; another table is called `a` since.
        let renamed = Table { name: "c".into(), version: 1, ..(*first).clone() };
        let other = Table { id: 9, version: 2, ..(*first).clone() };
        known.insert((name("c"), 1), Arc::new(renamed));
        known.insert((name("a"), 2), Arc::new(other));
        let mut of_c = changes(&["c"], point(0, 10), point(1, 20));
        of_c.tables.insert("public.c".into(), 1);
        let mut of_other = snapshot("a", 52, true);
        of_other.tables.insert("public.a".into(), 2);
        let mut said = changes(&[], point(1, 50), point(2, 60));
        let repaired = Repaired { version: 1, position: Position(55) };
        said.fates.repaired = BTreeMap::from([("public.c".to_owned(), repaired)]);
        let chain = [
            snapshot("a", 10, true),
            of_c,
            entry(EntryKind::Gap, point(1, 20), point(1, 50), &[]),
            of_other,
            said,
        ];
        let plan = plan(&chain, &known, None, &[]).unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&1, &9]);
        assert_eq!(plan.tables[&1].rows.len(), 1);
    }

    #[test]
    fn a_table_is_called_as_it_is_in_the_end_whichever_name_comes_first_in_keys() {
        let mut known = known();
        let name = |table: &str| Name { schema: "public".into(), table: table.into() };
        let first = known[&(name("b"), 1)].clone();
        // What was `b` is called `a`, what was `a` is called `c`.
        let renamed = |to: &str, of: &str, version| {
            let table = known[&(name(of), 1)].as_ref().clone();
            Arc::new(Table { name: to.into(), version, ..table })
        };
        let (to_a, to_c) = (renamed("a", "b", 2), renamed("c", "a", 1));
        known.insert((name("a"), 2), to_a);
        known.insert((name("c"), 1), to_c);
        let mut both = changes(&["b", "c"], point(0, 10), point(4, 20));
        let late = changes(&["a"], point(4, 10), point(5, 20));
        both.objects.extend(late.objects);
        both.objects.sort_by(|one, other| one.key.cmp(&other.key));
        both.tables = BTreeMap::from(
            [("a", 2), ("b", 1), ("c", 1)]
                .map(|(name, version)| (format!("public.{name}"), version)),
        );
        let chain = [snapshot("a", 10, true), snapshot("b", 10, true), both];
        let plan = plan(&chain, &known, None, &[]).unwrap();
        let names: Vec<_> = plan.tables.values().map(|table| table.name.clone().unwrap()).collect();
        assert_eq!(names, [name("c"), name("a")]);
        assert_eq!(plan.called(&first).qualified(), "public.a");
        assert_eq!(plan.called(&known[&(name("a"), 1)]).qualified(), "public.c");
    }

    #[test]
    fn of_a_table_that_left_and_is_back_only_what_was_read_anew_counts() {
        let mut left = changes(&["a"], point(1, 20), point(2, 30));
        (left.entry, left.fates.left) = (7, BTreeMap::from([("public.a".to_owned(), 1)]));
        let mut first = snapshot("a", 50, false);
        first.fates.anew = BTreeMap::from([("public.a".to_owned(), Position(50))]);
        let mut chain = vec![
            snapshot("a", 10, true),
            snapshot("b", 10, true),
            changes(&["a"], point(0, 10), point(1, 20)),
            left,
            changes(&["b"], point(2, 30), point(3, 60)),
        ];
        let away = plan(&chain, &known(), None, &[]).unwrap();
        let lefts: Vec<_> = away.tables.values().map(|table| table.left).collect();
        assert_eq!(lefts, [Some(7), None]);
        chain.push(first);
        assert!(matches!(
            plan(&chain, &known(), None, &[]),
            Err(ReplayError::Incomplete { tables, .. }) if tables.len() == 1
        ));
        chain.push(snapshot("a", 55, true));
        let back = plan(&chain, &known(), None, &[]).unwrap();
        let table = &back.tables[&1];
        assert_eq!((table.first, table.rows.len(), table.left), (Position(50), 2, None));
        // Before that it stands as it was when it left.
        let before = plan(&chain, &known(), Some(Position(45)), &[]).unwrap();
        let table = &before.tables[&1];
        assert_eq!((table.first, table.rows.len(), table.left), (Position(10), 1, Some(7)));
    }

    #[test]
    fn a_reading_anew_of_which_all_rows_got_lost_says_nothing() {
        let mut empty = snapshot("a", 20, false);
        (empty.objects, empty.tables) = (vec![], BTreeMap::new());
        empty.fates.anew = BTreeMap::from([("public.a".to_owned(), Position(20))]);
        let mut chain = vec![snapshot("b", 10, true), empty];
        chain.push(changes(&["b"], point(0, 10), point(3, 60)));
        let without = plan(&chain, &known(), None, &[]).unwrap();
        assert_eq!(without.tables.keys().collect::<Vec<_>>(), [&2]);
        let mut again = snapshot("a", 50, true);
        again.fates.anew = BTreeMap::from([("public.a".to_owned(), Position(50))]);
        chain.push(again);
        let with = plan(&chain, &known(), None, &[]).unwrap();
        assert_eq!((with.tables[&1].anew, with.tables[&1].rows.len()), (Position(50), 1));
    }

    #[test]
    fn a_snapshot_may_be_completed_by_a_part_without_rows() {
        let mut last = snapshot("a", 10, true);
        last.objects.clear();
        last.tables.clear();
        let plan = plan(&[snapshot("a", 10, false), last], &known(), None, &[]).unwrap();
        assert_eq!(plan.tables[&1].rows.len(), 1);
    }

    #[test]
    fn what_a_statement_wrote_into_rows_is_in_doubt_until_they_were_read_anew() {
        let mut anew = snapshot("a", 50, true);
        let named = |position| BTreeMap::from([("public.a".to_owned(), Position(position))]);
        (anew.fates.anew, anew.fates.rewritten) = (named(50), named(30));
        let changes = changes(&["a", "b"], point(0, 10), point(9, 60));
        let chain = [snapshot("a", 10, true), snapshot("b", 10, true), changes, anew];
        let doubts = |until: Option<u64>| {
            let plan = plan(&chain, &known(), until.map(Position), &[]).unwrap();
            plan.rewritten.into_iter().collect::<Vec<_>>()
        };
        let doubt = Rewritten { since: Position(30), anew: Position(50) };
        let found = [Some(30), Some(31), Some(49), Some(50), None].map(doubts);
        assert_eq!(found, [vec![], vec![(1, doubt)], vec![(1, doubt)], vec![], vec![]]);
    }

    #[test]
    fn a_table_made_anew_replaces_the_old_one() {
        let mut known = known();
        let name = Name { schema: "public".into(), table: "a".into() };
        let anew = Table { id: 9, version: 2, ..(*known[&(name.clone(), 1)]).clone() };
        known.insert((name, 2), Arc::new(anew));
        let mut later = snapshot("a", 20, true);
        later.tables.insert("public.a".into(), 2);
        let entries = [snapshot("a", 10, true), changes(&["a"], point(0, 10), point(1, 20)), later];
        let plan = plan(&entries, &known, None, &[]).unwrap();
        assert_eq!(plan.tables.keys().collect::<Vec<_>>(), [&9]);
        assert!(plan.epochs.iter().all(|epoch| epoch.tracks.is_empty()));
    }
}
