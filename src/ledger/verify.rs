//! Decides whether a chain proves what the lake holds: told what was found, key by key.
//!
//! **Invariant:** a chain is proven only if every entry from 1 to its last is there, in its place, signed by
//! a given key, linked to the one before, of this source, tiling the log, and every object it names is there
//! with its length (deep: with its SHA-256). `tests/verify.py` says the same without our code.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Entry, EntryKind, EntryObject, SourceIdentity,
    entry::{self, NO_PREVIOUS},
    key::PublicKey,
};
use crate::{
    ship::Op,
    units::{Point, Position},
};

/// The audit of one source.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The source.
    pub source: String,
    /// Whether all that was checked holds.
    pub proven: bool,
    /// The first thing that does not hold.
    pub broken: Option<Break>,
    /// Entries that hold.
    pub entries: u64,
    /// Hash of the last of them.
    pub head: String,
    /// Objects that they prove.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows by `_op`.
    pub rows: BTreeMap<Op, u64>,
    /// Up to where the source's log is proven.
    pub point: Point,
    /// Commit time of the last transaction in it.
    pub committed_at: Option<String>,
    /// When the last entry was written.
    pub written_at: Option<String>,
    /// Tables whose snapshot is whole, and its position.
    pub snapshots: BTreeMap<String, Position>,
    /// Short names of the keys that signed, and the first entry of each.
    pub signers: BTreeMap<String, u64>,
    /// Objects in the source's folders that no entry names: on their way, or another's.
    pub unlisted: u64,
    /// Whether the objects' bytes were read.
    pub deep: bool,
}

/// The first thing that does not hold.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Break {
    /// Its kind.
    pub damage: Damage,
    /// Number of the entry.
    pub entry: u64,
    /// Key of the object, or of the entry.
    pub object: String,
    /// The interval of the source's log that is no longer proven.
    pub from: Point,
    /// As above; `None` if unknown.
    pub to: Option<Point>,
    /// What was found, in words.
    pub what: String,
}

/// Kinds of damage.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// An object that an entry names is not there.
    ObjectMissing,
    /// An object has another length or other bytes.
    ObjectAltered,
    /// An entry is not there, and later ones are.
    EntryMissing,
    /// An entry's bytes or signature are not what a given key signed.
    EntryAltered,
    /// A good entry stands under another's number.
    EntriesSwapped,
    /// The last entries are gone: the known head is further.
    TailTruncated,
    /// An entry of another source or database.
    ForeignEntry,
    /// An entry does not carry the hash of the one before.
    ChainBroken,
    /// An epoch does not begin where the one before ended.
    NotTiling,
}

/// How far a chain is known to reach.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct KnownHead {
    /// Number of its last entry.
    pub entry: u64,
    /// Hash of that entry.
    pub hash: String,
}

impl KnownHead {
    /// The file beside the journal that keeps the last entry written by this box.
    pub fn file(data_dir: &Path, source: &str) -> PathBuf {
        data_dir.join(format!("head-{source}.json"))
    }

    /// What that file says, if it is there.
    pub fn kept(data_dir: &Path, source: &str) -> Option<Self> {
        let text = std::fs::read_to_string(Self::file(data_dir, source)).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// Walks one chain from its beginning.
#[derive(Debug)]
pub struct Walk<'a> {
    keys: &'a [PublicKey],
    known: Option<KnownHead>,
    identity: Option<SourceIdentity>,
    started: bool,
    named: BTreeSet<String>,
    report: Report,
}

impl Damage {
    /// As `--json` and `tests/verify.py` call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ObjectMissing => "object-missing",
            Self::ObjectAltered => "object-altered",
            Self::EntryMissing => "entry-missing",
            Self::EntryAltered => "entry-altered",
            Self::EntriesSwapped => "entries-swapped",
            Self::TailTruncated => "tail-truncated",
            Self::ForeignEntry => "foreign-entry",
            Self::ChainBroken => "chain-broken",
            Self::NotTiling => "not-tiling",
        }
    }
}

impl<'a> Walk<'a> {
    /// Before entry 1.
    pub fn new(source: &str, keys: &'a [PublicKey], known: Option<KnownHead>, deep: bool) -> Self {
        let report = Report {
            source: source.into(),
            proven: false,
            broken: None,
            entries: 0,
            head: NO_PREVIOUS.into(),
            objects: 0,
            bytes: 0,
            rows: BTreeMap::new(),
            point: Point::default(),
            committed_at: None,
            written_at: None,
            snapshots: BTreeMap::new(),
            signers: BTreeMap::new(),
            unlisted: 0,
            deep,
        };
        Self { keys, known, identity: None, started: false, named: BTreeSet::new(), report }
    }

    /// The next entry object in key order: the number in its key, and its bytes. Gives the entry if it
    /// holds; its objects are then to be told with [`Walk::object`].
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn entry(&mut self, key: &str, number: u64, bytes: &[u8]) -> Result<Entry, Box<Break>> {
        let expected = self.report.entries + 1;
        if number != expected {
            let what = format!("the next entry there is {number}");
            let to = entry::read(bytes).ok().map(|read| read.entry.from);
            return Err(self.broken(Damage::EntryMissing, expected, key, to, what));
        }
        let broken =
            |walk: &Self, damage, what: String| Err(walk.broken(damage, number, key, None, what));
        let read = match entry::read(bytes) {
            Ok(read) => read,
            Err(what) => return broken(self, Damage::EntryAltered, what),
        };
        if let Some(what) = self.foreign(&read.entry.source) {
            return broken(self, Damage::ForeignEntry, what);
        }
        let Some(signer) = read.signer(self.keys) else {
            return broken(self, Damage::EntryAltered, "no given key signed it".into());
        };
        let entry = &read.entry;
        if entry.entry != number {
            return broken(self, Damage::EntriesSwapped, format!("it is entry {}", entry.entry));
        }
        if entry.previous != self.report.head {
            let what = format!("it follows {}, not {}", entry.previous, self.report.head);
            return broken(self, Damage::ChainBroken, what);
        }
        if let Some(what) = self.untiled(entry) {
            return broken(self, Damage::NotTiling, what);
        }
        if let Some(known) = self.known.as_ref().filter(|known| known.entry == number)
            && known.hash != read.hash
        {
            return broken(
                self,
                Damage::ChainBroken,
                "it is not the entry that the known head names".into(),
            );
        }
        self.identity.get_or_insert_with(|| entry.source.clone()).timeline = entry.source.timeline;
        self.started |= tiles(entry.kind);
        self.report.signers.entry(signer.id()).or_insert(number);
        self.advance(entry, read.hash.clone());
        Ok(read.entry)
    }

    /// An object of the last entry: what the lake has under its key.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn object(
        &mut self,
        of: &Entry,
        object: &EntryObject,
        found: Found<'_>,
    ) -> Result<(), Box<Break>> {
        let broken = |walk: &mut Self, damage, what: String| {
            // The entry stands; what it says does not.
            walk.report.entries = of.entry - 1;
            let mut broken = walk.broken(damage, of.entry, &object.key, Some(of.to), what);
            broken.from = of.from;
            Err(broken)
        };
        match found {
            Found::Nothing => broken(self, Damage::ObjectMissing, "it is not there".into()),
            Found::Bytes(bytes) if bytes != object.bytes => {
                let what = format!("it has {bytes} bytes, the ledger says {}", object.bytes);
                broken(self, Damage::ObjectAltered, what)
            }
            Found::Content(sha256) if sha256 != object.sha256 => {
                let what = format!("its SHA-256 is {sha256}, the ledger says {}", object.sha256);
                broken(self, Damage::ObjectAltered, what)
            }
            Found::Bytes(_) | Found::Content(_) => {
                if self.named.insert(object.key.clone()) {
                    self.report.objects += 1;
                    self.report.bytes += object.bytes;
                    for (op, rows) in &object.rows {
                        *self.report.rows.entry(*op).or_default() += rows;
                    }
                }
                Ok(())
            }
        }
    }

    /// After the last entry. `stored`: keys of all data and schema objects of the source.
    pub fn finish<'k>(
        mut self,
        outcome: Result<(), Box<Break>>,
        stored: impl Iterator<Item = &'k str>,
    ) -> Report {
        self.report.unlisted =
            u64::try_from(stored.filter(|key| !self.named.contains(*key)).count())
                .unwrap_or(u64::MAX);
        let short = self.known.as_ref().filter(|known| known.entry > self.report.entries);
        let outcome = match (outcome, short) {
            (Ok(()), Some(known)) => {
                let what = format!("the chain is known to reach entry {}", known.entry);
                Err(self.broken(Damage::TailTruncated, self.report.entries + 1, "", None, what))
            }
            (outcome, _) => outcome,
        };
        self.report.broken = outcome.err().map(|broken| *broken);
        self.report.proven = self.report.broken.is_none();
        self.report
    }

    fn advance(&mut self, entry: &Entry, hash: String) {
        let report = &mut self.report;
        report.entries = entry.entry;
        report.head = hash;
        report.point = entry.to;
        report.written_at = Some(entry.at.clone());
        if entry.committed_at.is_some() {
            report.committed_at.clone_from(&entry.committed_at);
        }
        report.snapshots.extend(entry.completes.iter().map(|(table, at)| (table.clone(), *at)));
    }

    fn foreign(&self, source: &SourceIdentity) -> Option<String> {
        if source.name != self.report.source {
            return Some(format!("it is of source `{}`", source.name));
        }
        let known = self.identity.as_ref()?;
        if known.system_identifier != source.system_identifier {
            return Some(format!("it is of the database system {}", source.system_identifier));
        }
        (source.timeline < known.timeline)
            .then(|| format!("its timeline {} is past", source.timeline))
    }

    /// Entries that tile begin where the last of them ended; the others stand there.
    fn untiled(&self, entry: &Entry) -> Option<String> {
        let reached = self.report.point;
        let first = self.report.entries == 0;
        let begins = if first { entry.from.sequence.0 == 0 } else { entry.from == reached };
        if !begins {
            let at = |point: Point| format!("{} (sequence {})", point.position, point.sequence.0);
            return Some(format!(
                "it begins at {}, the chain stands at {}",
                at(entry.from),
                at(reached)
            ));
        }
        let forward =
            entry.to.sequence >= entry.from.sequence && entry.to.position >= entry.from.position;
        let stands = tiles(entry.kind) || entry.to == entry.from;
        (!forward || !stands).then(|| "it does not end where an entry of its kind can".into())
    }

    fn broken(
        &self,
        damage: Damage,
        entry: u64,
        object: &str,
        to: Option<Point>,
        what: String,
    ) -> Box<Break> {
        let what = what.trim().to_owned();
        Box::new(Break { damage, entry, object: object.into(), from: self.report.point, to, what })
    }
}

/// What the lake has under an object's key.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// Nothing.
    Nothing,
    /// An object of this length.
    Bytes(u64),
    /// An object whose bytes were read: lowercase hex SHA-256.
    Content(&'a str),
}

fn tiles(kind: EntryKind) -> bool {
    matches!(kind, EntryKind::Changes | EntryKind::Gap)
}
