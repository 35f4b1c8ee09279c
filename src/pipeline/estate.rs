//! What a lost box has left in the lake, read from its ledger's entries. Pure.
//!
//! **Invariant:** a table counts as whole only if the ledger says so of this very table: one that was
//! dropped and made anew under its name is another one; and which rows of an interrupted snapshot were yet
//! to be read again, only the lost box knew. It says so with the last part of a snapshot that was read at
//! one position, and when the last of those rows is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    journal::Table,
    ledger::{Entry, EntryKind, Fates},
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
    /// Tables that were not copied any more, and were not read anew since: id, and qualified name.
    pub(super) left: BTreeMap<u32, String>,
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
        let versions: BTreeMap<(String, u32), u32> = known
            .iter()
            .map(|((name, version), table)| ((name.qualified(), *version), table.id))
            .collect();
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
                EntryKind::Snapshot | EntryKind::Schema | EntryKind::Repair | EntryKind::Fence => {}
            }
            estate.look_at_rows(entry);
            // In this order: a table that left is read anew before it can be whole again.
            let named = |(name, version): (&String, &u32)| {
                Some((*versions.get(&(name.clone(), *version))?, name.clone()))
            };
            // One that is repaired behind a gap is said to be whole again.
            let Fates {
                whole,
                left,
                anew,
                rewritten: _,
                repaired: _,
                sequences: _,
                defined: _,
                large_objects: _,
            } = &entry.fates;
            estate.left.extend(left.iter().filter_map(named));
            for name in anew.keys() {
                estate.left.retain(|_, left| left != name);
                estate.whole.retain(|_, whole| whole != name);
            }
            estate.whole.extend(whole.iter().filter_map(named));
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

    fn look_at_rows(&mut self, entry: &Entry) {
        let parsed = entry.objects.iter().filter_map(|object| parse(&object.key));
        let positions = parsed.filter_map(|(_, content)| match content {
            Content::Rows { position } => Some(position),
            Content::Changes { .. } | Content::Schema { .. } => None,
        });
        if entry.kind == EntryKind::Snapshot {
            self.snapshot = self.snapshot.into_iter().chain(positions).min();
        }
    }

    /// The tables that a name stands for now, and that are not whole.
    fn lacking(&self, known: &Definitions) -> BTreeSet<String> {
        // By name and version: the last one of a name wins.
        let theirs = known.iter().filter(|(_, table)| !table.is_own());
        let now: BTreeMap<&Name, &Arc<Table>> =
            theirs.map(|((name, _), table)| (name, table)).collect();
        let lacking = now.into_iter().filter(|(_, table)| !self.whole.contains_key(&table.id));
        lacking.map(|(name, _)| name.qualified()).collect()
    }
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
            version: None,
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
            fates: Fates::default(),
            lost: None,
            adopts: None,
            release: "lake".into(),
            committed_at: None,
            appliance: appliance.into(),
            at: String::new(),
        }
    }

    fn snapshot(rows: &[(&str, u32, u64)]) -> Entry {
        entry(EntryKind::Snapshot, "a", rows)
    }

    fn named(tables: &[(&str, u32)]) -> BTreeMap<String, u32> {
        tables.iter().map(|(name, version)| (format!("public.{name}"), *version)).collect()
    }

    /// An entry that says of tables, by name and version, that they are whole.
    fn says_whole(kind: EntryKind, rows: &[(&str, u32, u64)], tables: &[(&str, u32)]) -> Entry {
        let fates = Fates { whole: named(tables), ..Fates::default() };
        Entry { fates, ..entry(kind, "a", rows) }
    }

    fn whole(entries: &[Entry], known: &[((Name, u32), Arc<Table>)]) -> (Vec<u32>, Vec<String>) {
        let estate = Estate::of(entries, &known.iter().cloned().collect(), &[]);
        (estate.whole.into_keys().collect(), estate.partial.into_iter().collect())
    }

    #[test]
    fn an_estate_says_where_it_ends_and_who_left_it() {
        let entries = [
            snapshot(&[("t", 1, 300)]),
            snapshot(&[("t", 1, 100)]),
            entry(EntryKind::Repair, "a", &[("t", 1, 50)]),
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
    fn a_table_is_whole_when_the_chain_says_so_also_an_empty_one() {
        let known = [table(7, "t", 1), table(8, "u", 1)];
        let begun = snapshot(&[("t", 1, 100), ("u", 1, 100)]);
        let none = whole(std::slice::from_ref(&begun), &known);
        assert_eq!(none, (vec![], vec!["public.t".to_owned(), "public.u".to_owned()]));
        let ended = says_whole(EntryKind::Snapshot, &[], &[("t", 1)]);
        assert_eq!(whole(&[begun, ended], &known), (vec![7], vec!["public.u".to_owned()]));
    }

    /// Parts without rows leave no object: of those only the chain's word tells.
    #[test]
    fn a_table_that_is_complete_is_not_whole_before_its_rows_were_read_again() {
        let (known, lacking) = ([table(7, "t", 1)], (vec![], vec!["public.t".to_owned()]));
        let completes = BTreeMap::from([("public.t".to_owned(), Position(200))]);
        let ended = Entry { completes, ..snapshot(&[("t", 1, 200)]) };
        assert_eq!(whole(std::slice::from_ref(&ended), &known), lacking);
        let keys = entry(EntryKind::Repair, "a", &[("t", 1, 300)]);
        assert_eq!(whole(&[ended.clone(), keys.clone()], &known), lacking);
        let told = says_whole(EntryKind::Changes, &[], &[("t", 1)]);
        assert_eq!(whole(&[ended.clone(), keys, told], &known), (vec![7], vec![]));
        // All of it was read again, by this box or by one that took its chain over.
        for kind in [EntryKind::Repair, EntryKind::Snapshot] {
            let anew = says_whole(kind, &[("t", 1, 400)], &[("t", 1)]);
            assert_eq!(whole(&[ended.clone(), anew], &known), (vec![7], vec![]));
        }
    }

    #[test]
    fn a_table_made_anew_under_an_old_name_is_not_whole_with_the_old_one() {
        let known = [table(7, "t", 1), table(9, "t", 2)];
        let old = says_whole(EntryKind::Snapshot, &[("t", 1, 100)], &[("t", 1)]);
        let new = snapshot(&[("t", 2, 500)]);
        let lacking = vec!["public.t".to_owned()];
        assert_eq!(whole(&[old.clone(), new.clone()], &known), (vec![7], lacking));
        let ended = says_whole(EntryKind::Snapshot, &[], &[("t", 2)]);
        assert_eq!(whole(&[old, new, ended], &known), (vec![7, 9], vec![]));
    }

    #[test]
    fn behind_a_gap_older_snapshots_do_not_count() {
        let known = [table(7, "t", 1)];
        let old = says_whole(EntryKind::Snapshot, &[("t", 1, 100)], &[("t", 1)]);
        let gap = entry(EntryKind::Gap, "a", &[]);
        assert_eq!(whole(&[old, gap], &known), (vec![], vec!["public.t".to_owned()]));
    }

    #[test]
    fn that_a_table_left_is_known_until_it_is_read_anew() {
        let known = Definitions::from([table(7, "t", 1), table(9, "t", 2)]);
        let whole = says_whole(EntryKind::Snapshot, &[("t", 1, 100)], &[("t", 1)]);
        let mut left = entry(EntryKind::Changes, "a", &[]);
        left.fates.left = named(&[("t", 1), ("stranger", 1)]);
        let gap = entry(EntryKind::Gap, "a", &[]);
        let chain = [whole.clone(), left.clone(), gap];
        assert_eq!(
            Estate::of(&chain, &known, &[]).left,
            BTreeMap::from([(7, "public.t".to_owned())])
        );
        let mut anew = says_whole(EntryKind::Snapshot, &[("t", 1, 500)], &[]);
        anew.fates.anew = BTreeMap::from([("public.t".to_owned(), Position(500))]);
        let estate = Estate::of(&[whole.clone(), left.clone(), anew.clone()], &known, &[]);
        assert!(estate.left.is_empty() && estate.whole.is_empty(), "{estate:?}");
        anew.fates.whole = named(&[("t", 1)]);
        let estate = Estate::of(&[whole, left, anew], &known, &[]);
        assert!(estate.left.is_empty() && estate.whole.contains_key(&7), "{estate:?}");
    }
}
