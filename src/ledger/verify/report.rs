//! What an audit found, in words that a person and a program can use. Pure.

use std::{collections::BTreeMap, fmt};

use serde::{Serialize, Serializer};

use crate::{
    ledger::{Entry, Fates, Head, Op, Owners, PublicKey, Repaired, SourceIdentity},
    units::{Point, Position},
};

/// What is proven of one source, and what is broken first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceReport {
    /// The source.
    pub source: String,
    /// Entries proven, from 1.
    pub entries: u64,
    /// Where the last of them stands; `None` if none is proven.
    pub proven: Option<Point>,
    /// Commit time of the last transaction proven, RFC 3339.
    pub committed_at: Option<String>,
    /// Where the last epoch (or gap) of the chain ended; `None` before the first.
    pub reached: Option<Point>,
    /// When the last of them was written, RFC 3339.
    pub written_at: Option<String>,
    /// The release rule that was in force then.
    pub release: Option<String>,
    /// Objects that the proven entries name.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows, by `_op`.
    pub rows: BTreeMap<Op, u64>,
    /// Latest version of each table's schema in the chain.
    pub tables: BTreeMap<String, u32>,
    /// Tables whose snapshot is whole, and the position of its last chunk.
    pub completes: BTreeMap<String, Position>,
    /// The database, as the last entry names it.
    pub identity: Option<SourceIdentity>,
    /// The last entry whose place in the chain holds.
    pub head: Head,
    /// Who signed, from which entry on.
    pub signers: Vec<Signer>,
    /// Ranges of the log that the ledger itself declares lost.
    pub gaps: Vec<Lost>,
    /// Objects under the source's folders that no entry names: on their way, or not ours.
    pub strangers: u64,
    /// The first of them.
    pub stranger: Option<String>,
    /// Whether the objects were read again, or only listed.
    pub deep: bool,
    /// The first that is broken.
    pub damage: Option<Damage>,
    /// Further ones known.
    pub more: u64,
}

/// A range of the source's log that the ledger itself declares lost.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Lost {
    /// The entry.
    pub entry: u64,
    /// After this.
    pub from: Point,
    /// Up to this.
    pub to: Point,
    /// How it came.
    pub what: Option<String>,
    /// Tables that were read anew as wholes since, by qualified name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub anew: BTreeMap<String, Mended>,
    /// Tables of which the rows that differed were read by their keys since.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub repaired: BTreeMap<String, Mended>,
}

/// What was done for a table behind a gap.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Mended {
    /// The entry that says so.
    pub entry: u64,
    /// Of a table that was read anew, from where on its rows count; of one that was repaired, from where on it is as
    /// the database has it.
    pub position: Position,
}

impl Lost {
    /// Without what entries behind `entry` say.
    pub(super) fn until(mut self, entry: u64) -> Self {
        self.anew.retain(|_, mended| mended.entry <= entry);
        self.repaired.retain(|_, mended| mended.entry <= entry);
        self
    }

    /// Takes in what an entry says of tables behind it.
    pub(super) fn mend(&mut self, entry: &Entry) {
        let Fates { anew, repaired, .. } = &entry.fates;
        let entry = entry.entry;
        for (table, position) in anew {
            self.repaired.remove(table);
            self.anew.insert(table.clone(), Mended { entry, position: *position });
        }
        for (table, Repaired { position, .. }) in repaired {
            // Else it was said late, and is of an earlier gap.
            if *position >= self.to.position && !self.anew.contains_key(table) {
                let mended = Mended { entry, position: *position };
                self.repaired.entry(table.clone()).or_insert(mended);
            }
        }
    }
}

impl SourceReport {
    /// Whose the chain is, and whose it was.
    pub fn owners(&self) -> Owners {
        let keys = self.signers.iter();
        keys.filter_map(|signer| PublicKey::from_base64(&signer.public_key)).collect()
    }
}

/// Who signed a run of entries.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Signer {
    /// The first entry of the run.
    pub from_entry: u64,
    /// Base64 of the key's 32 bytes.
    pub public_key: String,
    /// The appliance, as that entry names it.
    pub appliance: String,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Damage {
    /// What kind.
    pub kind: DamageKind,
    /// The entry that is broken, or whose object is.
    pub entry: u64,
    /// The key of the object that is broken: an entry's own or one that it names.
    pub key: String,
    /// Where the interval in doubt begins.
    pub from: Option<Point>,
    /// Where it ends; `None`: unknown, or everything after.
    pub to: Option<Point>,
    /// What was seen instead.
    pub what: String,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Kinds of damage. `tests/verify.py` uses the same names.
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum DamageKind { $($(#[doc = $doc])+ $name,)+ }

        impl DamageKind {
            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

kinds! {
    /// An object that an entry names is not there.
    ObjectMissing,
    /// An object has another length (or, in a deep look, content) than its entry says.
    ObjectAltered,
    /// Two entries name the same object.
    ObjectTwice,
    /// An entry is not there, later ones are.
    EntryMissing,
    /// Under an entry's key stands another entry of the same chain.
    EntriesSwapped,
    /// An entry is not as it was signed.
    EntryAltered,
    /// The last entries are not there: somebody remembers a later head.
    TailTruncated,
    /// An entry of another source, or of an appliance that does not own the chain.
    ForeignEntry,
    /// An entry does not continue the one before, or is not the head that somebody remembers.
    ChainBroken,
    /// An entry does not begin where the chain has arrived.
    NotTiling,
}

impl Serialize for DamageKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl SourceReport {
    /// Whether all that is there is proven.
    pub fn whole(&self) -> bool {
        self.damage.is_none()
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entry {} {}: {}", self.kind.name(), self.entry, self.key, self.what)?;
        match (self.from, self.to) {
            (None, None) => Ok(()),
            (from, None) => write!(f, "; in doubt: all after {}", place(from)),
            (from, to) => write!(f, "; in doubt: {} to {}", place(from), place(to)),
        }
    }
}

/// One or two lines: up to where it is PROVEN, and what is broken first.
impl fmt::Display for SourceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        match self.proven {
            None => write!(f, "nothing is proven")?,
            Some(point) => {
                let at = self.committed_at.as_ref().or(self.written_at.as_ref());
                let at = at.map(|at| format!(", {at}")).unwrap_or_default();
                let (entries, objects, bytes) = (self.entries, self.objects, self.bytes);
                write!(
                    f,
                    "PROVEN up to {}{at}: {entries} entries, {objects} objects, {bytes} bytes",
                    place(Some(point))
                )?;
                let rows = self.rows.iter().map(|(op, rows)| format!("{}={rows}", op.letter()));
                let rows: Vec<_> = rows.collect();
                write!(f, ", rows {}", if rows.is_empty() { "0".into() } else { rows.join(" ") })?;
            }
        }
        for Lost { entry, from, to, what, anew, repaired } in &self.gaps {
            let (from, to) = (place(Some(*from)), place(Some(*to)));
            write!(
                f,
                "\n{}: GAP entry {entry}: the log from {from} to {to} was lost",
                self.source
            )?;
            if let Some(what) = what {
                write!(f, ": {what}")?;
            }
            for (how, tables) in [("read anew", anew), ("repaired by keys", repaired)] {
                if !tables.is_empty() {
                    write!(f, "\n{}: {how} since: {}", self.source, named(tables))?;
                }
            }
        }
        if let Some(damage) = &self.damage {
            write!(f, "\n{}: {damage}", self.source)?;
        }
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

/// The first tables, where and by which entry, and how many there are more.
fn named(tables: &BTreeMap<String, Mended>) -> String {
    let first = tables.iter().take(TABLES_SHOWN).map(|(table, Mended { entry, position })| {
        format!("{table} (at {position}, entry {entry})")
    });
    let first = first.collect::<Vec<_>>().join(", ");
    match tables.len().saturating_sub(TABLES_SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Tables that are named for people; `--json` has all.
const TABLES_SHOWN: usize = 20;

/// A point for people: its position, and the change that it stands after.
pub(super) fn place(point: Option<Point>) -> String {
    let point = point.unwrap_or_default();
    format!("{} (change {})", point.position, point.sequence.0)
}
