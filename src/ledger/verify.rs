//! Judges a chain and what it names, from fetched lines and listed keys. Pure.
//!
//! [`Verifier::accept`] takes the entries in order of their keys, [`Verifier::close`] the end of the
//! listing; [`Verifier::see`] takes the objects that are there, [`Verifier::altered`] what a deep look
//! found. [`Verifier::report`] says up to where all of it holds.
//!
//! Checked of an entry, in this order, the first that fails being its damage: it has the form of an
//! entry; it is signed by a given key, without which it is not parsed; it speaks of this chain's source;
//! its number is that of its key; its `previous` is the hash of the one before; its signer is the one
//! before it, or took over by a `fence` and was not replaced earlier; it joins the point that the chain
//! has reached; it is the one that somebody remembers as head.
//!
//! **Invariant:** PROVEN covers only entries of which every one before, and every object that they
//! name, was found whole.

use std::collections::BTreeMap;

use super::{
    Entry, EntryKind, EntryObject, Head, Op, Owners, PublicKey, SourceIdentity,
    entry::{self, Lines, NO_PREVIOUS},
};
use crate::units::{Point, Position};

mod report;

pub use report::{Damage, DamageKind, Lost, Mended, Signer, SourceReport};

/// Follows one chain.
#[derive(Debug)]
pub struct Verifier {
    prefix: String,
    source: String,
    keys: Vec<PublicKey>,
    known: Option<Head>,
    head: Head,
    identity: Option<SourceIdentity>,
    reached: Option<Point>,
    owners: Owners,
    /// Of entry `n` at index `n - 1`.
    entries: Vec<Accepted>,
    objects: BTreeMap<String, Expected>,
    tables: BTreeMap<String, u32>,
    completes: BTreeMap<String, Position>,
    signers: Vec<Signer>,
    gaps: Vec<Lost>,
    chain_damage: Option<Damage>,
    /// By entry and key, so that the first is the first broken.
    object_damage: BTreeMap<(u64, String), Damage>,
    strangers: u64,
    stranger: Option<String>,
}

/// An object that the chain names.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The entry that names it.
    pub entry: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Lowercase hex SHA-256.
    pub sha256: String,
    /// Base64 CRC64NVME.
    pub crc64nvme: String,
    seen: bool,
}

/// What is kept of an entry that was accepted.
#[derive(Clone, Debug)]
struct Accepted {
    from: Point,
    to: Point,
    at: String,
    committed_at: Option<String>,
    release: String,
    objects: u64,
    bytes: u64,
    rows: BTreeMap<Op, u64>,
}

impl Verifier {
    /// Before the first entry of `source`'s chain. `known`: a head that somebody remembers.
    pub fn new(prefix: &str, source: &str, keys: &[PublicKey], known: Option<Head>) -> Self {
        Self {
            prefix: prefix.into(),
            source: source.into(),
            keys: keys.to_vec(),
            known,
            head: Head { entry: 0, hash: NO_PREVIOUS.into() },
            identity: None,
            reached: None,
            owners: Owners::default(),
            entries: vec![],
            objects: BTreeMap::new(),
            tables: BTreeMap::new(),
            completes: BTreeMap::new(),
            signers: vec![],
            gaps: vec![],
            chain_damage: None,
            object_damage: BTreeMap::new(),
            strangers: 0,
            stranger: None,
        }
    }

    /// Takes the object under entry `number`'s key; numbers must rise. `false`: the chain is broken
    /// here, and nothing after it can be judged.
    pub fn accept(&mut self, number: u64, object: &[u8]) -> bool {
        if self.chain_damage.is_some() {
            return false;
        }
        let due = self.head.entry + 1;
        if number != due {
            let last = number.saturating_sub(1);
            let what = match last == due {
                true => format!("entry {due} is not in the lake, entry {number} is"),
                false => format!("entries {due} to {last} are not in the lake, entry {number} is"),
            };
            // Where the hole ends stands in the entry after it, if that one can be believed.
            let lines = Lines::split(object).filter(|lines| lines.signer(&self.keys).is_some());
            let after = lines.and_then(|lines| lines.entry().ok()).map(|entry| entry.from);
            self.break_chain(DamageKind::EntryMissing, due, after, what);
            return false;
        }
        match self.judge(number, object) {
            Ok((entry, hash, signer)) => self.take(entry, hash, signer),
            Err((kind, to, what)) => self.break_chain(kind, number, to, what),
        }
        self.chain_damage.is_none()
    }

    /// The listing ended: whether something is missing at its end.
    pub fn close(&mut self) {
        if self.chain_damage.is_some() {
            return;
        }
        let after = self.head.entry + 1;
        match &self.known {
            Some(known) if known.entry > self.head.entry => {
                let what = format!(
                    "the chain ends with entry {}, but entry {} was written",
                    self.head.entry, known.entry
                );
                self.break_chain(DamageKind::TailTruncated, after, None, what);
            }
            _ if self.entries.is_empty() => {
                let what = "the lake holds no ledger for this source".into();
                self.break_chain(DamageKind::EntryMissing, 1, None, what);
            }
            _ => {}
        }
    }

    /// An object is in the lake, with this length.
    pub fn see(&mut self, key: &str, bytes: u64) {
        let Some(expected) = self.objects.get_mut(key) else {
            self.strangers += 1;
            self.stranger.get_or_insert_with(|| key.into());
            return;
        };
        expected.seen = true;
        if expected.bytes != bytes {
            let what = format!("has {bytes} bytes, the ledger says {}", expected.bytes);
            self.altered(key, what);
        }
    }

    /// All objects were listed: those not seen are missing.
    pub fn listed(&mut self) {
        let unseen = self.objects.iter().filter(|(_, expected)| !expected.seen);
        let missing: Vec<_> = unseen.map(|(key, expected)| (key.clone(), expected.entry)).collect();
        for (key, entry) in missing {
            self.break_object(DamageKind::ObjectMissing, entry, &key, "is not in the lake".into());
        }
    }

    /// An object is not what the ledger says.
    pub fn altered(&mut self, key: &str, what: String) {
        if let Some(entry) = self.objects.get(key).map(|expected| expected.entry) {
            self.break_object(DamageKind::ObjectAltered, entry, key, what);
        }
    }

    /// A deep look did not find it.
    pub fn vanished(&mut self, key: &str) {
        if let Some(entry) = self.objects.get(key).map(|expected| expected.entry) {
            let what = "is not in the lake".into();
            self.break_object(DamageKind::ObjectMissing, entry, key, what);
        }
    }

    /// The objects that the chain names and that are known to be as they were, as far as was looked, in key order.
    pub fn unbroken(&self) -> impl Iterator<Item = (&str, &Expected)> {
        let broken = |key: &str, entry| self.object_damage.contains_key(&(entry, key.to_owned()));
        self.objects().filter(move |(key, expected)| !broken(key, expected.entry))
    }

    /// The objects that the chain names, in key order.
    pub fn objects(&self) -> impl Iterator<Item = (&str, &Expected)> {
        self.objects.iter().map(|(key, expected)| (key.as_str(), expected))
    }

    /// What holds. `deep`: whether the objects were read again.
    pub fn report(self, deep: bool) -> SourceReport {
        let more = self.object_damage.len().saturating_sub(1);
        let first = self.object_damage.into_values().next();
        // Objects are of accepted entries, which all come before the chain's own damage.
        let both = usize::from(first.is_some() && self.chain_damage.is_some());
        let damage = first.or(self.chain_damage);
        let whole = damage.as_ref().map_or(u64::MAX, |damage| damage.entry.saturating_sub(1));
        let whole = usize::try_from(whole).unwrap_or(usize::MAX).min(self.entries.len());
        let accepted = &self.entries[..whole];
        let mut report = SourceReport {
            source: self.source,
            entries: count(whole),
            proven: accepted.last().map(|last| last.to),
            committed_at: accepted.iter().rev().find_map(|entry| entry.committed_at.clone()),
            reached: self.reached,
            written_at: accepted.last().map(|last| last.at.clone()),
            release: accepted.last().map(|last| last.release.clone()),
            objects: 0,
            bytes: 0,
            rows: BTreeMap::new(),
            tables: self.tables,
            completes: self.completes,
            identity: self.identity,
            head: self.head,
            signers: self.signers,
            gaps: self.gaps,
            strangers: self.strangers,
            stranger: self.stranger,
            deep,
            damage,
            more: count(more + both),
        };
        report.gaps.retain(|gap| gap.entry <= report.entries);
        report.gaps = report.gaps.into_iter().map(|gap| gap.until(report.entries)).collect();
        report.signers.retain(|signer| signer.from_entry <= report.entries);
        for entry in accepted {
            report.objects += entry.objects;
            report.bytes = report.bytes.saturating_add(entry.bytes);
            entry.rows.iter().for_each(|(op, rows)| add(&mut report.rows, *op, *rows));
        }
        report
    }

    fn judge(&self, number: u64, object: &[u8]) -> Result<(Entry, String, PublicKey), Broken> {
        let broken = |kind, what: String| Err((kind, None, what));
        let Some(lines) = Lines::split(object) else {
            return broken(DamageKind::EntryAltered, "is no entry".into());
        };
        let Some(signer) = lines.signer(&self.keys) else { return Err(unsigned(&lines)) };
        // From here on the entry's own words can be believed.
        let Ok(entry) = lines.entry() else {
            return broken(DamageKind::EntryAltered, "is no entry".into());
        };
        if let Some(why) = self.foreign(&entry) {
            return broken(DamageKind::ForeignEntry, why);
        }
        let broken = |kind, what: String| Err((kind, Some(entry.to), what));
        if entry.entry != number {
            let what = format!("holds entry {}", entry.entry);
            return broken(DamageKind::EntriesSwapped, what);
        }
        let hash = lines.hash();
        if entry.previous != self.head.hash {
            let what =
                format!("continues {}, the one before is {}", entry.previous, self.head.hash);
            return broken(DamageKind::ChainBroken, what);
        }
        if let Some(what) = self.owners.refuse(&entry, signer, &self.head.hash) {
            return broken(DamageKind::ForeignEntry, what);
        }
        if let Some(what) = self.disjoint(&entry) {
            return broken(DamageKind::NotTiling, what);
        }
        match &self.known {
            Some(known) if known.entry == number && known.hash != hash => {
                let what = format!("is {hash}, the one that was written is {}", known.hash);
                broken(DamageKind::ChainBroken, what)
            }
            _ => Ok((entry, hash, signer)),
        }
    }

    /// Why the entry is not of this chain's source.
    fn foreign(&self, entry: &Entry) -> Option<String> {
        let SourceIdentity { name, system_identifier, .. } = &entry.source;
        let expected =
            self.identity.as_ref().map_or(system_identifier, |own| &own.system_identifier);
        if *name == self.source && system_identifier == expected {
            return None;
        }
        Some(format!("is of source {name}, system {system_identifier}"))
    }

    /// Why the entry does not join the point reached.
    fn disjoint(&self, entry: &Entry) -> Option<String> {
        let (from, to) = (entry.from, entry.to);
        let fits = match entry.kind {
            EntryKind::Changes | EntryKind::Gap => {
                self.reached.is_none_or(|reached| reached == from)
                    && from.sequence <= to.sequence
                    && from.position <= to.position
            }
            EntryKind::Snapshot | EntryKind::Schema | EntryKind::Repair | EntryKind::Fence => {
                from == self.reached.unwrap_or_default() && from == to
            }
        };
        let reached = self.reached.unwrap_or_default();
        let [from, to, reached] = [from, to, reached].map(|point| report::place(Some(point)));
        (!fits).then(|| format!("covers {from} to {to}, the chain has reached {reached}"))
    }

    fn take(&mut self, entry: Entry, hash: String, signer: PublicKey) {
        self.gaps.iter_mut().for_each(|gap| gap.mend(&entry));
        let mut accepted = Accepted {
            from: entry.from,
            to: entry.to,
            at: entry.at,
            committed_at: entry.committed_at,
            release: entry.release,
            objects: count(entry.objects.len()),
            bytes: 0,
            rows: BTreeMap::new(),
        };
        for object in &entry.objects {
            accepted.bytes = accepted.bytes.saturating_add(object.bytes);
            for (op, rows) in &object.rows {
                add(&mut accepted.rows, *op, *rows);
            }
        }
        self.head = Head { entry: entry.entry, hash };
        self.entries.push(accepted);
        for object in entry.objects {
            self.expect(entry.entry, object);
        }
        if matches!(entry.kind, EntryKind::Changes | EntryKind::Gap) {
            self.reached = Some(entry.to);
        }
        if entry.kind == EntryKind::Gap {
            let (from, to, what) = (entry.from, entry.to, entry.lost);
            let (anew, repaired) = (BTreeMap::new(), BTreeMap::new());
            self.gaps.push(Lost { entry: entry.entry, from, to, what, anew, repaired });
        }
        if self.owners.take(signer) {
            let (public_key, appliance) = (signer.to_string(), entry.appliance);
            self.signers.push(Signer { from_entry: entry.entry, public_key, appliance });
        }
        self.tables.extend(entry.tables);
        self.completes.extend(entry.completes);
        self.identity = Some(entry.source);
    }

    fn expect(&mut self, number: u64, object: EntryObject) {
        if let Some(before) = self.objects.get(&object.key) {
            let what = format!("stands in entry {} already", before.entry);
            self.break_object(DamageKind::ObjectTwice, number, &object.key, what);
            return;
        }
        let EntryObject { key, bytes, sha256, crc64nvme, .. } = object;
        let expected = Expected { entry: number, bytes, sha256, crc64nvme, seen: false };
        self.objects.insert(key, expected);
    }

    fn break_chain(&mut self, kind: DamageKind, number: u64, to: Option<Point>, what: String) {
        let key = entry::key(&self.prefix, &self.source, number);
        let from = self.reached;
        self.chain_damage = Some(Damage { kind, entry: number, key, from, to, what });
    }

    fn break_object(&mut self, kind: DamageKind, number: u64, key: &str, what: String) {
        let index = usize::try_from(number - 1).ok();
        let of = index.and_then(|index| self.entries.get(index));
        let (from, to) = (of.map(|entry| entry.from), of.map(|entry| entry.to));
        let damage = Damage { kind, entry: number, key: key.into(), from, to, what };
        self.object_damage.entry((number, key.into())).or_insert(damage);
    }
}

/// Kind of damage, where the interval ends if that can be believed, and what was seen.
type Broken = (DamageKind, Option<Point>, String);

/// No given key signed it: was it changed, or did somebody else write it?
fn unsigned(lines: &Lines<'_>) -> Broken {
    if let Some(heir) = lines.heir() {
        let what = format!("hands the chain over to {heir}, a key that was not given");
        return (DamageKind::ForeignEntry, None, what);
    }
    let what = "its signature is by none of the keys given".into();
    (DamageKind::EntryAltered, None, what)
}

/// Adds to a count. An entry can say anything.
fn add(counts: &mut BTreeMap<Op, u64>, op: Op, rows: u64) {
    let count = counts.entry(op).or_default();
    *count = count.saturating_add(rows);
}

fn count(count: usize) -> u64 {
    u64::try_from(count).expect("lengths fit 64 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::{
        IdentityKey, Repaired,
        chain::ChainHead,
        testing::{self, Bucket, built, changes, groups, point},
    };
    use crate::{
        seal::{Group, GroupKind},
        units::Position,
    };

    fn key() -> IdentityKey {
        IdentityKey::from_seed(&[1; 32])
    }

    fn audit(bucket: &Bucket, known: Option<Head>) -> SourceReport {
        let mut verifier = Verifier::new("raw", "erp", &[key().public()], known);
        let mut entries = bucket
            .iter()
            .filter_map(|(key, object)| Some((entry::parse_key("raw", key)?.1, object)));
        let open = entries.all(|(number, object)| verifier.accept(number, object));
        if open {
            verifier.close();
        }
        for (key, object) in bucket.iter().filter(|(key, _)| entry::parse_key("raw", key).is_none())
        {
            verifier.see(key, object.len() as u64);
        }
        verifier.listed();
        verifier.report(false)
    }

    #[test]
    fn a_whole_chain_is_proven_to_its_end() {
        let report = audit(&built(&groups(9), &key()), None);
        assert_eq!(report.damage, None);
        assert_eq!((report.entries, report.proven), (9, Some(point(90, 190))));
        assert_eq!(report.rows, BTreeMap::from([(Op::Snapshot, 8), (Op::Insert, 12)]));
        assert_eq!((report.objects, report.strangers), (11, 0));
        let text = report.to_string();
        assert!(text.starts_with("erp: PROVEN up to 00000000/000000BE (change 90), 2027-01-15T08:00:00.000000Z: 9 entries, 11 objects"), "{text}");
        assert!(text.ends_with("rows S=8 I=12"), "{text}");
    }

    #[test]
    fn what_nobody_signed_is_not_parsed() {
        let mut bucket = built(&groups(3), &key());
        let stranger = IdentityKey::from_seed(&[9; 32]);
        let of = entry::key("raw", "erp", 2);
        let foreign = Lines::split(&bucket[&of]).unwrap().entry().unwrap();
        let source = SourceIdentity { name: "crm".into(), ..foreign.source.clone() };
        let foreign = entry::sign(&Entry { source, ..foreign }, &stranger).object;
        let (_, line2) = foreign.split_once('\n').unwrap();
        let rubbish = format!("[[[[\n{line2}");
        for object in [foreign.clone(), rubbish] {
            bucket.insert(of.clone(), object.into());
            let damage = audit(&bucket, None).damage.unwrap();
            assert_eq!((damage.kind, damage.entry), (DamageKind::EntryAltered, 2));
            // Not that it is no entry, nor whose it says that it is.
            assert_eq!(damage.what, "its signature is by none of the keys given");
        }
    }

    #[test]
    fn an_object_that_no_entry_names_is_counted_and_no_damage() {
        let mut bucket = built(&groups(5), &key());
        bucket.insert("raw/erp/public.t/dt=2026-11-23/changes-9".into(), "on its way".into());
        let report = audit(&bucket, None);
        assert_eq!((report.damage, report.strangers), (None, 1));
        assert_eq!(report.stranger.as_deref(), Some("raw/erp/public.t/dt=2026-11-23/changes-9"));
    }

    #[test]
    fn the_first_broken_entry_counts_and_proof_ends_before_it() {
        let mut bucket = built(&groups(9), &key());
        let objects: Vec<_> =
            bucket.keys().filter(|key| key.contains("dt=2026-11-22")).cloned().collect();
        bucket.remove(&objects[0]);
        bucket.remove(&objects[3]);
        bucket.remove(&entry::key("raw", "erp", 8));
        let report = audit(&bucket, None);
        let damage = report.damage.unwrap();
        assert_eq!((damage.kind, damage.entry), (DamageKind::ObjectMissing, 4));
        assert_eq!((damage.from, damage.to), (Some(point(30, 130)), Some(point(40, 140))));
        assert_eq!((report.entries, report.more), (3, 2));
        assert_eq!(report.rows, BTreeMap::from([(Op::Snapshot, 8)]));
    }

    #[test]
    fn a_hole_is_named_with_the_interval_that_it_leaves() {
        let mut bucket = built(&groups(9), &key());
        bucket.remove(&entry::key("raw", "erp", 6));
        bucket.remove(&entry::key("raw", "erp", 7));
        let damage = audit(&bucket, None).damage.unwrap();
        assert_eq!((damage.kind, damage.entry), (DamageKind::EntryMissing, 6));
        assert_eq!((damage.from, damage.to), (Some(point(50, 150)), Some(point(70, 170))));
        assert!(damage.what.contains("entries 6 to 7"), "{}", damage.what);
    }

    #[test]
    fn a_lost_range_that_the_ledger_admits_is_said_with_the_proof() {
        let mut bucket = built(&groups(4), &key());
        let report = audit(&bucket, None);
        let head = ChainHead {
            entry: 4,
            hash: report.head.hash,
            reached: report.reached,
            batch: 4,
            group: 4,
            signed_by: key().public().to_string(),
            transactions: 0,
        };
        let (from, to, what) = (point(40, 140), point(40, 900), "the slot is gone".to_owned());
        let kind = GroupKind::Gap { from, to, batch: 4, what: what.clone() };
        let gap = Group { kind, objects: vec![], ..changes(5, from, to, 0) };
        let (entry, next) = head.next(&[gap], testing::stamp()).unwrap();
        let signed = entry::sign(&entry, &key());
        bucket.insert(entry::key("raw", "erp", 5), signed.object.into());
        let head = ChainHead { hash: signed.hash, ..next };
        let mut mending = changes(6, point(40, 900), point(60, 999), 1);
        let repaired = Repaired { version: 1, position: Position(950) };
        mending.fates.repaired = BTreeMap::from([("public.a".to_owned(), repaired)]);
        mending.fates.anew = BTreeMap::from([("public.b".to_owned(), Position(960))]);
        testing::extend(&mut bucket, head, &[mending], &key());
        let report = audit(&bucket, None);
        assert_eq!((report.damage.clone(), report.entries), (None, 6));
        let mended = |table: &str, position| {
            BTreeMap::from([(table.to_owned(), Mended { entry: 6, position: Position(position) })])
        };
        let (anew, repaired) = (mended("public.b", 960), mended("public.a", 950));
        let lost = Lost { entry: 5, from, to, what: Some(what), anew, repaired };
        assert_eq!(report.gaps, std::slice::from_ref(&lost));
        let said = report.to_string();
        assert!(said.contains("GAP entry 5") && said.contains("the slot is gone"), "{said}");
        let by_keys = "erp: repaired by keys since: public.a (at 00000000/000003B6, entry 6)";
        assert!(said.contains(by_keys), "{said}");
        // What is not proven is not said.
        let before = lost.until(5);
        assert!(before.anew.is_empty() && before.repaired.is_empty());
    }

    proptest! {
        /// Nothing can be taken out, put in, exchanged or changed unseen, with the head remembered.
        #[test]
        fn whatever_is_done_to_the_lake_is_found(
            which in any::<prop::sample::Index>(),
            other in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            flip in 1..=255_u8,
            deed in 0..4_u8,
        ) {
            let whole = built(&groups(9), &key());
            let known = audit(&whole, None).head;
            let mut bucket = whole.clone();
            let keys: Vec<_> = bucket.keys().cloned().collect();
            let (one, two) = (which.get(&keys), other.get(&keys));
            match deed {
                0 => drop(bucket.remove(one)),
                1 => drop(bucket.insert(one.clone(), whole[two].clone())),
                2 => {
                    bucket.insert(one.clone(), whole[two].clone());
                    bucket.insert(two.clone(), whole[one].clone());
                }
                _ if one.contains("_ledger") => {
                    let mut bytes = whole[one].to_vec();
                    let at = at.index(bytes.len());
                    bytes[at] ^= flip;
                    bucket.insert(one.clone(), bytes.into());
                }
                _ => drop(bucket.insert(one.clone(), whole[one].slice(1..))),
            }
            // A shallow look sees lengths only: objects of one length exchanged are for a deep one.
            let lengths = |bucket: &Bucket| bucket.iter().map(|(key, bytes)| match key.contains("_ledger") {
                true => (key.clone(), bytes.clone()),
                false => (key.clone(), bytes.len().to_string().into()),
            }).collect::<Bucket>();
            let seen = audit(&bucket, Some(known)).damage.is_some();
            prop_assert_eq!(seen, lengths(&bucket) != lengths(&whole));
        }
    }

    #[test]
    fn ten_thousand_objects_are_judged_in_seconds() {
        let at = |id: u64| point(id * 10, 100 + id * 10);
        let many: Vec<_> = (1..=2500).map(|id| changes(id, at(id - 1), at(id), 4)).collect();
        let bucket = built(&many, &key());
        let begun = crate::clock::Clock::now(&crate::clock::SystemClock);
        let report = audit(&bucket, None);
        assert_eq!((report.objects, report.damage), (10_000, None));
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }
}
