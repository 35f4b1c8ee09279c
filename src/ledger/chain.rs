//! The chain: which entry comes next. Pure.
//!
//! **Invariant (I23):** entries are numbered from 1 without gaps, each carries the hash of the one
//! before; those of kind `changes` and `gap` tile the log: each begins where the last one ended. The
//! others stand at the point reached, which before the first epoch is `{0, 00000000/00000000}`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Adoption, Entry, EntryKind, Fates, Group, GroupKind, LedgerError, Proven, SourceIdentity,
    entry::{self, NO_PREVIOUS},
};
use crate::units::{Point, Position};

/// Objects in one entry of merged groups, at most: an entry stays below about 256 KiB.
pub const MERGED_OBJECTS_MAX: usize = 500;

/// Where the chain stands. Fact `ledger/head`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChainHead {
    /// Number of the last entry; 0 before the first.
    pub entry: u64,
    /// Its hash.
    pub hash: String,
    /// Where the last epoch (or gap) ended; before the first one nothing.
    pub reached: Option<Point>,
    /// The last journal batch covered; 0 before the first.
    pub batch: u64,
    /// The last group covered; 0 before the first.
    pub group: u64,
    /// Who signed it: base64 as in [`PublicKey`](super::PublicKey).
    pub signed_by: String,
    /// Transactions of this box that the chain covers.
    #[serde(default)]
    pub transactions: u64,
}

/// What an entry says beside what its groups say.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// Whose log.
    pub source: SourceIdentity,
    /// The release rule in force.
    pub release: String,
    /// The appliance.
    pub appliance: String,
    /// Now, RFC 3339.
    pub at: String,
}

impl ChainHead {
    /// Before the first entry.
    pub fn start(signed_by: String) -> Self {
        Self {
            entry: 0,
            hash: NO_PREVIOUS.into(),
            reached: None,
            batch: 0,
            group: 0,
            signed_by,
            transactions: 0,
        }
    }

    /// What the other rooms need to know of it.
    pub fn proven(&self) -> Proven {
        let point = self.reached.unwrap_or_default();
        Proven { point, batch: self.batch, entry: self.entry }
    }

    /// The next entry, and what the head is with it; its `hash` is still to be set.
    ///
    /// # Errors
    ///
    /// The groups are not those that are due: [`LedgerError::Disorder`], [`LedgerError::NotTiling`].
    pub fn next(&self, groups: &[Group], stamp: Stamp) -> Result<(Entry, Self), LedgerError> {
        let mut head = Self { entry: self.entry + 1, ..self.clone() };
        let at = head.reached.unwrap_or_default();
        let mut next = self.blank(EntryKind::Schema, at, stamp);
        for group in groups {
            if group.id != head.group + 1 {
                return Err(LedgerError::Disorder { expected: head.group + 1, found: group.id });
            }
            head.group = group.id;
            match &group.kind {
                GroupKind::Changes { from, to, batch, committed_at, transactions } => {
                    tiles(head.reached, *from, *to, group.id)?;
                    (head.reached, head.batch) = (Some(*to), *batch);
                    head.transactions += transactions;
                    (next.kind, next.from, next.to) = (EntryKind::Changes, *from, *to);
                    next.committed_at = Some(committed_at.rfc3339());
                }
                GroupKind::Gap { from, to, batch, what } => {
                    tiles(head.reached, *from, *to, group.id)?;
                    (head.reached, head.batch) = (Some(*to), *batch);
                    (next.kind, next.from, next.to) = (EntryKind::Gap, *from, *to);
                    next.lost = Some(what.clone());
                }
                // Among definitions, too: see `Shared`.
                GroupKind::Snapshot { table, position, completes, .. } => {
                    next.kind = EntryKind::Snapshot;
                    if *completes {
                        next.completes.insert(table.clone(), *position);
                    }
                }
                GroupKind::Repair { .. } => next.kind = EntryKind::Repair,
                GroupKind::Schema => {}
            }
            for object in &group.objects {
                raise(&mut next.tables, &object.table, object.version);
                next.objects.push(entry::proof(object));
            }
            let Fates { whole, left, anew, rewritten, repaired, sequences, defined, large_objects } =
                &group.fates;
            // What was whole before it is read anew is so no more: whoever reads the entry takes `whole` for the last word.
            next.fates.whole.retain(|name, _| !anew.contains_key(name));
            whole.iter().for_each(|(name, version)| raise(&mut next.fates.whole, name, *version));
            left.iter().for_each(|(name, version)| raise(&mut next.fates.left, name, *version));
            next.fates.anew.extend(anew.iter().map(|(name, position)| (name.clone(), *position)));
            let since = rewritten.iter().map(|(name, position)| (name.clone(), *position));
            next.fates.rewritten.extend(since);
            next.fates.repaired.extend(repaired.iter().map(|(name, what)| (name.clone(), *what)));
            next.fates.sequences.extend(sequences);
            next.fates.defined.extend(defined.iter().cloned());
            next.fates.large_objects.extend(large_objects);
        }
        let all = groups.iter().flat_map(|group| &group.objects);
        for (proof, object) in next.objects.iter_mut().zip(all) {
            proof.version = proof.version.filter(|own| next.tables.get(&object.table) != Some(own));
        }
        next.objects.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((next, head))
    }

    /// The entry by which another box takes the chain over, and what the head is with it.
    pub fn fence(&self, public_key: String, stamp: Stamp) -> (Entry, Self) {
        let mut next = self.blank(EntryKind::Fence, self.reached.unwrap_or_default(), stamp);
        let head = self.hash.clone();
        next.adopts = Some(Adoption { public_key: public_key.clone(), head });
        // The journal and the groups of the box that was lost are lost with it.
        let head = Self {
            entry: self.entry + 1,
            batch: 0,
            group: 0,
            signed_by: public_key,
            transactions: 0,
            ..self.clone()
        };
        (next, head)
    }

    fn blank(&self, kind: EntryKind, at: Point, stamp: Stamp) -> Entry {
        Entry {
            previous: self.hash.clone(),
            entry: self.entry + 1,
            source: stamp.source,
            kind,
            from: at,
            to: at,
            tables: BTreeMap::new(),
            objects: vec![],
            completes: BTreeMap::<String, Position>::new(),
            fates: Fates::default(),
            lost: None,
            adopts: None,
            release: stamp.release,
            committed_at: None,
            appliance: stamp.appliance,
            at: stamp.at,
        }
    }
}

/// Of two tables of one name the younger one counts.
fn raise(versions: &mut BTreeMap<String, u32>, table: &str, version: u32) {
    let known = versions.entry(table.into()).or_default();
    *known = version.max(*known);
}

/// Groups that share an entry: those of tables that are read for the first time come as definition and rows in turn, and an
/// entry of rows may name definitions. Epochs stand alone: an entry is where the whole source is consistent.
///
/// **Invariant:** a name has one version in such an entry. What is said there by name alone (`completes`, `anew`) is said of the
/// table with that version.
pub struct Shared {
    groups: Vec<Group>,
    objects: usize,
    /// Of each name; `None`: rows without an object, of which nothing says it.
    versions: BTreeMap<String, Option<u32>>,
}

impl Shared {
    /// `first` alone.
    pub fn new(first: Group) -> Self {
        let (objects, versions) = (first.objects.len(), versions(&first).collect());
        Self { groups: vec![first], objects, versions }
    }

    /// Whether others of its kind may join.
    pub fn is_open(&self) -> bool {
        self.groups.first().is_some_and(|first| alike(&first.kind, &first.kind))
    }

    /// Adds the group that comes next.
    ///
    /// # Errors
    ///
    /// The group, if it is for another entry.
    pub fn add(&mut self, next: Group) -> Result<(), Box<Group>> {
        let is_alike = self.groups.first().is_some_and(|first| alike(&first.kind, &next.kind));
        let fits = self.objects + next.objects.len() <= MERGED_OBJECTS_MAX;
        let is_repair = matches!(next.kind, GroupKind::Repair { .. });
        let agrees = |(name, version): (String, Option<u32>)| {
            self.versions.get(&name).is_none_or(|known| known.is_some() && *known == version)
        };
        if !is_alike || !fits || !(is_repair || versions(&next).all(agrees)) {
            return Err(Box::new(next));
        }
        self.versions.extend(versions(&next));
        self.objects += next.objects.len();
        self.groups.push(next);
        Ok(())
    }

    /// The groups, in order.
    pub fn into_groups(self) -> Vec<Group> {
        self.groups
    }
}

fn alike(one: &GroupKind, other: &GroupKind) -> bool {
    matches!(
        (one, other),
        (
            GroupKind::Snapshot { .. } | GroupKind::Schema,
            GroupKind::Snapshot { .. } | GroupKind::Schema
        ) | (GroupKind::Repair { .. }, GroupKind::Repair { .. })
    )
}

/// The tables that a group speaks of, and their versions.
fn versions(group: &Group) -> impl Iterator<Item = (String, Option<u32>)> {
    let own = match &group.kind {
        GroupKind::Snapshot { table, .. } if group.objects.is_empty() => {
            Some((table.clone(), None))
        }
        _ => None,
    };
    let objects = group.objects.iter().map(|object| (object.table.clone(), Some(object.version)));
    own.into_iter().chain(objects)
}

fn tiles(reached: Option<Point>, from: Point, to: Point, group: u64) -> Result<(), LedgerError> {
    let joins = reached.is_none_or(|point| point == from);
    if joins && from.sequence <= to.sequence && from.position <= to.position {
        Ok(())
    } else {
        Err(LedgerError::NotTiling { group, from, to, reached })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::{
        Looked, LookedFor,
        testing::{changes, point, schema, snapshot, stamp},
    };

    fn start() -> ChainHead {
        ChainHead::start("key".into())
    }

    #[test]
    fn an_entry_says_what_its_groups_said() {
        let (entry, head) = start().next(&[snapshot(1, 2), snapshot(2, 3)], stamp()).unwrap();
        assert_eq!((entry.entry, entry.kind), (1, EntryKind::Snapshot));
        assert_eq!((entry.from, entry.to), (Point::default(), Point::default()));
        assert_eq!(entry.objects.len(), 5);
        assert!(entry.objects.is_sorted_by(|a, b| a.key < b.key));
        assert_eq!(head.reached, None);
        let epoch = changes(3, point(0, 100), point(5, 200), 1);
        let (entry, head) = head.next(&[epoch], stamp()).unwrap();
        assert_eq!((entry.entry, entry.from, entry.to), (2, point(0, 100), point(5, 200)));
        assert_eq!(head.proven(), Proven { point: point(5, 200), batch: 3, entry: 2 });
        let (entry, _) = head.next(&[schema(4)], stamp()).unwrap();
        assert_eq!(
            (entry.kind, entry.from, entry.to),
            (EntryKind::Schema, point(5, 200), point(5, 200))
        );
    }

    #[test]
    fn an_entry_of_ten_thousand_tables_is_read_again() {
        let mut epoch = changes(1, point(0, 100), point(5, 200), 1);
        let one = epoch.objects.remove(0);
        let (prefix, schema) = ("p".repeat(200), "s".repeat(63));
        for n in 0..10_000 {
            let table = format!("{schema}.{n:063}");
            for name in [
                format!("_schema/erp/{table}/1.json"),
                format!(
                    "erp/{table}/dt=2026-11-22/changes-{n:020}-{n:020}-0001-0123456789abcdef.parquet"
                ),
            ] {
                let (key, table) = (format!("{prefix}/{name}"), table.clone());
                epoch.objects.push(crate::ledger::Object { key, table, ..one.clone() });
            }
        }
        let (entry, _) = start().next(&[epoch], stamp()).unwrap();
        let signed = entry::sign(&entry, &crate::ledger::IdentityKey::from_seed(&[1; 32]));
        // As it stands in the facts before it is sent; and to be fetched.
        assert!(serde_json::to_string(&signed.object).unwrap().len() < 20 << 20);
        assert!((signed.object.len() as u64) < crate::ship::GET_BYTES_MAX / 2);
    }

    #[test]
    fn an_object_says_its_version_where_its_tables_name_has_another() {
        let mut epoch = changes(1, point(0, 100), point(5, 200), 2);
        epoch.objects[1].version += 1;
        let (entry, _) = start().next(&[epoch.clone()], stamp()).unwrap();
        let version = |key: &str| {
            let mut own = entry.objects.iter().filter(|object| object.key == key);
            own.next().unwrap().version
        };
        let [older, younger] = [0, 1].map(|at| &epoch.objects[at]);
        assert_eq!(older.table, younger.table);
        assert_eq!(version(&older.key), Some(older.version));
        assert_eq!(version(&younger.key), None);
    }

    #[test]
    fn a_snapshot_is_complete_with_its_last_chunk_even_without_rows() {
        let mut last = snapshot(1, 0);
        let GroupKind::Snapshot { completes, .. } = &mut last.kind else { panic!() };
        *completes = true;
        let (entry, _) = start().next(&[last], stamp()).unwrap();
        assert_eq!(entry.completes, BTreeMap::from([("public.t".into(), Position(50))]));
    }

    #[test]
    fn an_entry_says_what_becomes_of_tables() {
        let said = |name: &str, version| BTreeMap::from([(name.to_owned(), version)]);
        let looked = |position| Looked { position: Position(position), whole: position < 0x80 };
        let defined = |position| crate::ledger::Defined {
            table: "f".into(),
            version: 5,
            position: Position(position),
            sequence: crate::units::Sequence(7),
        };
        let looked_for = |position| LookedFor {
            position: Position(position),
            from: (position < 0x80).then_some(Position(0x65)),
        };
        let fates = |whole, left, looks: &[u64]| Fates {
            whole,
            left,
            anew: BTreeMap::from([("d".to_owned(), Position(0x50))]),
            rewritten: BTreeMap::from([("d".to_owned(), Position(0x48))]),
            repaired: BTreeMap::from([(
                "e".to_owned(),
                crate::ledger::Repaired { version: 4, position: Position(0x60) },
            )]),
            sequences: looks.iter().map(|position| looked(*position)).collect(),
            defined: looks.iter().map(|position| defined(*position)).collect(),
            large_objects: looks.iter().map(|position| looked_for(*position)).collect(),
        };
        let first = Group { fates: fates(said("a", 1), said("b", 2), &[0x70]), ..snapshot(1, 1) };
        let second = Group { fates: fates(said("a", 3), said("c", 1), &[0x80]), ..snapshot(2, 1) };
        let (entry, _) = start().next(&[first, second], stamp()).unwrap();
        let left = BTreeMap::from([("b".to_owned(), 2), ("c".to_owned(), 1)]);
        assert_eq!(entry.fates, fates(said("a", 3), left, &[0x70, 0x80]));
        let json = serde_json::to_string(&entry).unwrap();
        let said = r#""whole":{"a":3},"left":{"b":2,"c":1},"anew":{"d":"00000000/00000050"},"rewritten":{"d":"00000000/00000048"},"repaired":{"e":{"version":4,"position":"00000000/00000060"}},"sequences":[{"position":"00000000/00000070","whole":true},{"position":"00000000/00000080"}],"defined":[{"table":"f","version":5,"position":"00000000/00000070","sequence":7},{"table":"f","version":5,"position":"00000000/00000080","sequence":7}],"large_objects":[{"position":"00000000/00000070","from":"00000000/00000065"},{"position":"00000000/00000080"}]"#;
        assert!(json.contains(said), "{json}");
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }

    #[test]
    fn rows_read_again_stand_at_the_point_reached_and_merge() {
        let repair = |id| {
            let (table, position) = ("public.t".into(), Position(90));
            let kind = GroupKind::Repair { table, table_id: 1, chunk: 0, position };
            Group { kind, ..snapshot(id, 2) }
        };
        let (_, head) =
            start().next(&[changes(1, point(0, 9), point(5, 200), 0)], stamp()).unwrap();
        let groups = [repair(2), repair(3)];
        assert!(shares(&groups) && !shares(&[repair(2), snapshot(3, 1)]));
        let (entry, head) = head.next(&groups, stamp()).unwrap();
        assert_eq!((entry.kind, entry.objects.len()), (EntryKind::Repair, 4));
        assert_eq!((entry.from, entry.to), (point(5, 200), point(5, 200)));
        assert_eq!((head.group, head.reached), (3, Some(point(5, 200))));
        assert!(entry.completes.is_empty());
    }

    #[test]
    fn a_missing_group_is_not_passed_over() {
        let wrong = start().next(&[snapshot(2, 1)], stamp());
        assert!(matches!(wrong, Err(LedgerError::Disorder { expected: 1, found: 2 })));
        let twice = start().next(&[snapshot(1, 1), snapshot(1, 1)], stamp());
        assert!(matches!(twice, Err(LedgerError::Disorder { expected: 2, found: 1 })));
    }

    #[test]
    fn an_epoch_must_begin_where_the_last_one_ended() {
        let (_, head) =
            start().next(&[changes(1, point(0, 9), point(5, 200), 0)], stamp()).unwrap();
        for (from, to) in [
            (point(5, 201), point(6, 300)),
            (point(4, 200), point(6, 300)),
            (point(6, 200), point(7, 300)),
            (point(5, 200), point(4, 300)),
            (point(5, 200), point(5, 199)),
        ] {
            let wrong = head.next(&[changes(2, from, to, 0)], stamp());
            assert!(
                matches!(wrong, Err(LedgerError::NotTiling { group: 2, .. })),
                "{from:?} {to:?}"
            );
        }
    }

    #[test]
    fn a_fence_stands_where_the_lost_box_ended() {
        let (_, head) =
            start().next(&[changes(1, point(0, 9), point(5, 200), 0)], stamp()).unwrap();
        let head = ChainHead { hash: "12".repeat(32), ..head };
        let (entry, after) = head.fence("new".into(), stamp());
        assert_eq!((entry.from, entry.to, entry.entry), (point(5, 200), point(5, 200), 2));
        assert_eq!(
            entry.adopts,
            Some(Adoption { public_key: "new".into(), head: "12".repeat(32) })
        );
        assert_eq!((after.group, after.batch, after.reached), (0, 0, Some(point(5, 200))));
    }

    /// Whether all share an entry.
    fn shares(groups: &[Group]) -> bool {
        let mut groups = groups.iter().cloned();
        let mut shared = Shared::new(groups.next().unwrap());
        groups.all(|next| shared.add(next).is_ok())
    }

    #[test]
    fn definitions_and_rows_of_snapshots_share_an_entry_and_epochs_never_do() {
        let (a, b) = (snapshot(1, 1), snapshot(2, 1));
        assert!(shares(&[a.clone(), b.clone()]));
        assert!(shares(&[snapshot(1, MERGED_OBJECTS_MAX - 1), b.clone()]));
        assert!(!shares(&[snapshot(1, MERGED_OBJECTS_MAX), b.clone()]));
        assert!(shares(&[schema(1), schema(2)]));
        assert!(shares(&[schema(1), b]) && shares(&[a.clone(), schema(2)]));
        let epoch = changes(2, point(0, 1), point(1, 2), 0);
        assert!(!shares(&[a.clone(), epoch.clone()]) && !shares(&[epoch.clone(), a.clone()]));
        assert!(!shares(&[epoch.clone(), epoch.clone()]) && !shares(&[schema(1), epoch.clone()]));
        let is_open = |first: &Group| Shared::new(first.clone()).is_open();
        assert!(is_open(&a) && is_open(&schema(1)) && !is_open(&epoch));
    }

    #[test]
    fn a_name_that_two_tables_have_has_one_version_in_an_entry() {
        let of = |mut group: Group, version| {
            group.objects.iter_mut().for_each(|object| object.version = version);
            group
        };
        let (young, rows) = (|| of(schema(2), 2), |version| of(snapshot(2, 1), version));
        // Rows of the older one say that it is complete, and then the younger one's definition comes.
        assert!(!shares(&[snapshot(1, 1), young()]) && !shares(&[snapshot(1, 0), young()]));
        assert!(!shares(&[schema(1), young()]) && !shares(&[young(), snapshot(1, 1)]));
        assert!(shares(&[young(), rows(2)]) && shares(&[rows(2), rows(2)]));
        // A last part that had no rows: nothing says of which of them.
        assert!(!shares(&[young(), snapshot(3, 0)]) && !shares(&[schema(1), snapshot(3, 0)]));
        assert!(!shares(&[snapshot(3, 0), schema(1)]));
        let mut other = young();
        other.objects.iter_mut().for_each(|object| object.table = "public.other".into());
        assert!(shares(&[snapshot(1, 1), other]));
    }

    #[test]
    fn what_was_whole_before_it_is_read_anew_is_not_whole() {
        let (whole, anew) = (
            BTreeMap::from([("t".to_owned(), 1)]),
            BTreeMap::from([("t".to_owned(), Position(9))]),
        );
        let of = |id, fates| Group { fates, ..snapshot(id, 1) };
        let before = || of(1, Fates { whole: whole.clone(), ..Fates::default() });
        let again = |whole| of(2, Fates { whole, anew: anew.clone(), ..Fates::default() });
        let said = |groups: [Group; 2]| start().next(&groups, stamp()).unwrap().0.fates.whole;
        assert_eq!(said([before(), again(BTreeMap::new())]), BTreeMap::new());
        // Of one part it is whole with that.
        assert_eq!(said([before(), again(whole.clone())]), whole);
    }

    #[test]
    fn an_entry_of_rows_and_definitions_is_one_of_rows_in_whatever_order_they_come() {
        for groups in
            [[schema(1), snapshot(2, 1), schema(3)], [snapshot(1, 1), schema(2), schema(3)]]
        {
            let (entry, head) = start().next(&groups, stamp()).unwrap();
            assert_eq!((entry.kind, entry.objects.len(), head.group), (EntryKind::Snapshot, 3, 3));
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_covered_once_in_order_and_tiles(kinds in prop::collection::vec((0..3_u8, 0..4_usize, 0..5_u64), 1..40)) {
            let (mut head, mut id, mut at) = (start(), 0, point(0, 7));
            let (mut objects, mut entries) = (0, vec![]);
            let mut queue: Vec<Group> = vec![];
            for (kind, count, step) in kinds {
                id += 1;
                objects += count;
                queue.push(match kind {
                    0 => snapshot(id, count),
                    1 => { let mut group = schema(id); group.objects = snapshot(id, count).objects; group }
                    _ => {
                        let from = at;
                        at = point(from.sequence.0 + step, from.position.0 + step);
                        changes(id, from, at, count)
                    }
                });
            }
            let mut rest = queue.into_iter().peekable();
            while let Some(first) = rest.next() {
                let mut shared = Shared::new(first);
                while let Some(next) = rest.peek().cloned() {
                    if shared.add(next).is_err() {
                        break;
                    }
                    rest.next();
                }
                let groups = shared.into_groups();
                let (entry, mut next) = head.next(&groups, stamp()).unwrap();
                next.hash = format!("{:064}", entry.entry);
                prop_assert_eq!(&entry.previous, &head.hash);
                prop_assert_eq!(entry.entry, head.entry + 1);
                head = next;
                entries.push(entry);
            }
            prop_assert_eq!(head.group, id);
            prop_assert_eq!(entries.iter().map(|entry| entry.objects.len()).sum::<usize>(), objects);
            let mut reached = None;
            for entry in &entries {
                if entry.kind == EntryKind::Changes {
                    prop_assert!(reached.is_none_or(|point| point == entry.from));
                    reached = Some(entry.to);
                } else {
                    prop_assert_eq!(entry.from, reached.unwrap_or_default());
                    prop_assert_eq!(entry.to, entry.from);
                }
            }
        }
    }
}
