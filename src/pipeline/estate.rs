//! What a lost box has left in the lake, read from its ledger's entries. Pure.
//!
//! **Invariant:** a table counts as whole only if the ledger says that the snapshot of this very table
//! was completed, and all its parts stand at one position: one that was dropped and made anew under its
//! name is another table; and which rows of an interrupted snapshot were yet to be read again, only the
//! lost box knew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    journal::Table,
    ledger::{Entry, EntryKind},
    replay::{
        key::{Content, Name, parse},
        plan::Definitions,
    },
    units::{Point, Position},
};

/// What a new box begins with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Estate {
    /// The appliances that wrote the chain, the first one first, each once.
    pub(super) appliances: Vec<String>,
    /// Where the changes end; `None`: there are none yet.
    pub(super) reached: Option<Point>,
    /// Where the oldest snapshot stands.
    pub(super) snapshot: Option<Position>,
    /// Every version of every table.
    pub(super) versions: Vec<Arc<Table>>,
    /// Tables of whose rows all are there: id, and qualified name.
    pub(super) whole: BTreeMap<u32, String>,
    /// Tables of whose rows not all are there, by qualified name.
    pub(super) partial: BTreeSet<String>,
    /// Greatest version under which an object stands that no entry names, by qualified name.
    pub(super) taken: BTreeMap<String, u32>,
}

impl Estate {
    /// Of the whole verified chain of one source, the definitions that it names, and the keys in the
    /// source's folders that it does not name.
    pub(super) fn of(entries: &[Entry], known: &Definitions, strangers: &[String]) -> Self {
        let mut estate = Self { versions: known.values().cloned().collect(), ..Self::default() };
        let mut found = Found::default();
        for entry in entries {
            if !estate.appliances.contains(&entry.appliance) {
                estate.appliances.push(entry.appliance.clone());
            }
            match entry.kind {
                EntryKind::Changes => estate.reached = Some(entry.to),
                EntryKind::Gap => {
                    // Rows of snapshots before it may lack what was lost.
                    estate.reached = Some(entry.to);
                    estate.whole.clear();
                }
                EntryKind::Snapshot => estate.complete(entry, known, &mut found),
                EntryKind::Schema | EntryKind::Repair | EntryKind::Fence => {}
            }
        }
        estate.partial = estate.lacking(known);
        for (name, content) in strangers.iter().filter_map(|key| parse(key)) {
            if let Content::Schema { version } = content {
                let taken = estate.taken.entry(name.qualified()).or_default();
                *taken = version.max(*taken);
            }
        }
        estate
    }

    fn complete(&mut self, entry: &Entry, known: &Definitions, found: &mut Found) {
        for (name, content) in entry.objects.iter().filter_map(|object| parse(&object.key)) {
            let Content::Rows { position } = content else { continue };
            self.snapshot = Some(self.snapshot.map_or(position, |oldest| oldest.min(position)));
            let qualified = name.qualified();
            let version = entry.tables.get(&qualified).copied().unwrap_or_default();
            if let Some(table) = known.get(&(name, version)) {
                found.positions.entry(table.id).or_default().insert(position);
                found.last.insert(qualified, table.id);
            }
        }
        for (qualified, position) in &entry.completes {
            let Some(id) = found.last.get(qualified) else { continue };
            if found.positions[id].iter().all(|at| at == position) {
                self.whole.insert(*id, qualified.clone());
            }
        }
    }

    /// The tables that a name stands for now, and that are not whole.
    fn lacking(&self, known: &Definitions) -> BTreeSet<String> {
        // By name and version: the last one of a name wins.
        let now: BTreeMap<&Name, &Arc<Table>> =
            known.iter().map(|((name, _), table)| (name, table)).collect();
        let lacking = now.into_iter().filter(|(_, table)| !self.whole.contains_key(&table.id));
        lacking.map(|(name, _)| name.qualified()).collect()
    }
}

/// What was found of snapshots so far.
#[derive(Default)]
struct Found {
    /// The table whose rows were last found under a name.
    last: BTreeMap<String, u32>,
    /// Where the parts of a table stand.
    positions: BTreeMap<u32, BTreeSet<Position>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::Identity,
        ledger::{EntryObject, SourceIdentity},
        units::Sequence,
    };

    fn table(id: u32, name: &str, version: u32) -> ((Name, u32), Arc<Table>) {
        let table = Table {
            id,
            schema: "public".into(),
            name: name.into(),
            version,
            columns: vec![],
            key: vec![],
            identity: Identity::Default,
            types: vec![],
        };
        let name = Name { schema: "public".into(), table: name.into() };
        ((name, version), Arc::new(table))
    }

    fn entry(kind: EntryKind, appliance: &str, rows: &[(&str, u32, u64)]) -> Entry {
        let object = |(name, _, position): &(&str, u32, u64)| EntryObject {
            key: format!(
                "raw/erp/public.{name}/dt=2026-11-22/snapshot-{position:016X}-00000000-0123456789abcdef.parquet"
            ),
            bytes: 1,
            sha256: String::new(),
            crc64nvme: String::new(),
            rows: BTreeMap::new(),
            encryption: "none".into(),
        };
        let to = Point { sequence: Sequence(9), position: Position(900) };
        Entry {
            previous: String::new(),
            entry: 1,
            source: SourceIdentity {
                name: "erp".into(),
                system_identifier: "7".into(),
                timeline: 1,
            },
            kind,
            from: to,
            to,
            tables: rows
                .iter()
                .map(|(name, version, _)| (format!("public.{name}"), *version))
                .collect(),
            objects: rows.iter().map(object).collect(),
            completes: BTreeMap::new(),
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: appliance.into(),
            at: String::new(),
        }
    }

    fn snapshot(rows: &[(&str, u32, u64)], completes: &[(&str, u64)]) -> Entry {
        let completes =
            completes.iter().map(|(name, at)| (format!("public.{name}"), Position(*at))).collect();
        Entry { completes, ..entry(EntryKind::Snapshot, "a", rows) }
    }

    fn whole(entries: &[Entry], known: &[((Name, u32), Arc<Table>)]) -> (Vec<u32>, Vec<String>) {
        let estate = Estate::of(entries, &known.iter().cloned().collect(), &[]);
        (estate.whole.into_keys().collect(), estate.partial.into_iter().collect())
    }

    #[test]
    fn an_estate_says_where_it_ends_and_who_left_it() {
        let entries = [
            snapshot(&[("t", 1, 300)], &[]),
            snapshot(&[("t", 1, 100)], &[("t", 100)]),
            entry(EntryKind::Changes, "a", &[]),
            entry(EntryKind::Fence, "b", &[]),
            entry(EntryKind::Schema, "a", &[]),
        ];
        let known = Definitions::from([table(7, "t", 1), table(7, "t", 2)]);
        let strangers = ["raw/_schema/erp/public.t/3.json", "raw/_schema/erp/public.t/4.json", "x"];
        let estate = Estate::of(&entries, &known, &strangers.map(String::from));
        assert_eq!(estate.appliances, ["a", "b"]);
        assert_eq!(estate.reached.unwrap().sequence, Sequence(9));
        assert_eq!(estate.snapshot, Some(Position(100)));
        assert_eq!(estate.versions.len(), 2);
        assert_eq!(estate.taken, BTreeMap::from([("public.t".into(), 4)]));
        assert_eq!(Estate::of(&entries[..1], &known, &[]).reached, None);
    }

    #[test]
    fn a_table_is_whole_when_its_last_chunk_is_there_also_an_empty_one() {
        let known = [table(7, "t", 1), table(8, "u", 1)];
        let begun = snapshot(&[("t", 1, 100), ("u", 1, 100)], &[]);
        let none = whole(std::slice::from_ref(&begun), &known);
        assert_eq!(none, (vec![], vec!["public.t".to_owned(), "public.u".to_owned()]));
        let ended = whole(&[begun, snapshot(&[], &[("t", 100)])], &known);
        assert_eq!(ended, (vec![7], vec!["public.u".to_owned()]));
    }

    #[test]
    fn a_table_whose_parts_stand_at_several_positions_is_not_whole() {
        let (known, lacking) = ([table(7, "t", 1)], (vec![], vec!["public.t".to_owned()]));
        let begun = snapshot(&[("t", 1, 100)], &[]);
        let (rows, empty) =
            (snapshot(&[("t", 1, 200)], &[("t", 200)]), snapshot(&[], &[("t", 200)]));
        assert_eq!(whole(&[begun.clone(), rows], &known), lacking);
        assert_eq!(whole(&[begun, empty], &known), lacking);
    }

    #[test]
    fn a_table_made_anew_under_an_old_name_is_not_whole_with_the_old_one() {
        let known = [table(7, "t", 1), table(9, "t", 2)];
        let old = snapshot(&[("t", 1, 100)], &[("t", 100)]);
        let new = snapshot(&[("t", 2, 500)], &[]);
        let lacking = vec!["public.t".to_owned()];
        assert_eq!(whole(&[old.clone(), new.clone()], &known), (vec![7], lacking.clone()));
        let ended = snapshot(&[], &[("t", 500)]);
        assert_eq!(whole(&[old, new, ended], &known), (vec![7, 9], vec![]));
        // Both in one entry: it is the old one that was completed.
        let mut merged = snapshot(&[("t", 2, 500)], &[("t", 100)]);
        merged.objects.extend(snapshot(&[("t", 1, 100)], &[]).objects);
        assert_eq!(whole(&[merged], &known), (vec![], lacking));
    }

    #[test]
    fn behind_a_gap_older_snapshots_do_not_count() {
        let known = [table(7, "t", 1)];
        let old = snapshot(&[("t", 1, 100)], &[("t", 100)]);
        let gap = entry(EntryKind::Gap, "a", &[]);
        assert_eq!(whole(&[old, gap], &known), (vec![], vec!["public.t".to_owned()]));
    }
}
