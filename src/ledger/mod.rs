//! Ledger: proves what the lake holds.
//!
//! Takes [`Shipped`](crate::ship::Shipped) groups. Gives signed [`Entry`]s in S3, numbered from 1
//! without gaps, each with the hash of the one before. Keeps the head of the chain in the facts
//! under `ledger/`.
//!
//! Writing: [`Ledger`] takes groups, [`chain`] makes the next entry of them, [`entry`] signs it, and
//! `settle` brings it into S3 exactly once. Reading: [`audit()`] fetches what [`verify`] judges;
//! [`adopt()`] continues the chain of a lost box.

use std::{collections::BTreeMap, fmt, fs, io, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod adopt;
pub mod audit;
pub mod chain;
pub mod entry;
pub mod key;
pub mod owners;
mod settle;
mod store;
mod sweep;
#[cfg(test)]
mod testing;
pub mod verify;
pub mod write;

pub use adopt::{Adopted, adopt, inspect};
pub use audit::{Audit, Progress, audit};
pub use key::{IdentityKey, PublicKey};
pub use owners::Owners;
pub use store::proven;
pub use verify::{Damage, DamageKind, SourceReport};
pub use write::{Ledger, LedgerOptions};

pub use crate::ship::{
    Defined, Encryption, Fates, Group, GroupKind, Looked, LookedFor, Object, Op, Repaired, Shipped,
};
use crate::{
    error::{Cause, Classified},
    facts::{FactDamaged, FactsError},
    ship::ShipError,
    shutdown::Tasks,
    units::{Point, Position},
};

/// Line 1 of an entry's object; line 2 is the base64 of its Ed25519 signature.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Entry {
    /// Lowercase hex SHA-256 of line 1 of the entry before (without its newline); 64 zeros in entry 1.
    pub previous: String,
    /// From 1.
    pub entry: u64,
    /// Whose log it covers.
    pub source: SourceIdentity,
    /// What it covers.
    pub kind: EntryKind,
    /// Where it begins: for `changes` and `gap` the `to` of the last of these; for others the point the chain has reached.
    pub from: Point,
    /// Where it ends; for others than `changes` and `gap` equal to `from`.
    pub to: Point,
    /// Qualified table → version of its schema in this entry.
    pub tables: BTreeMap<String, u32>,
    /// The objects, in key order.
    pub objects: Vec<EntryObject>,
    /// Tables whose snapshot is whole with this entry: qualified name → the position of its last chunk.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub completes: BTreeMap<String, Position>,
    /// Tables of which all rows are in the lake with this entry, with all their values; and tables that are
    /// not copied any more.
    #[serde(flatten)]
    pub fates: Fates,
    /// Of a `gap`: how it came, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// Of a `fence`: who takes the chain over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopts: Option<Adoption>,
    /// The release rule in force: `journal` or `lake`.
    pub release: String,
    /// Commit time of the last transaction covered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<String>,
    /// The appliance's name.
    pub appliance: String,
    /// When it was written, RFC 3339 UTC.
    pub at: String,
}

/// How far the ledger reaches, durable in S3 and in the facts. What it covers may be confirmed to the
/// source under `release = "lake"`, and trimmed from the journal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Proven {
    /// After this change, at this position.
    pub point: Point,
    /// The last journal batch covered.
    pub batch: u64,
    /// Number of the last entry.
    pub entry: u64,
}

/// Which database an entry speaks of.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceIdentity {
    /// Its name in the configuration.
    pub name: String,
    /// PostgreSQL's `system_identifier`.
    pub system_identifier: String,
    /// PostgreSQL's timeline.
    pub timeline: u32,
}

/// What an entry covers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Rows of snapshots, and versions of tables' schemas that came with them.
    Snapshot,
    /// An epoch of whole transactions.
    Changes,
    /// Versions of tables' schemas, alone.
    Schema,
    /// A range of the log that was lost.
    Gap,
    /// Rows read again.
    Repair,
    /// A new owner of the chain.
    Fence,
}

/// An object as the ledger proves it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EntryObject {
    /// Its key in the bucket, prefix included.
    pub key: String,
    /// Length as sent.
    pub bytes: u64,
    /// Lowercase hex.
    pub sha256: String,
    /// Base64, as S3 writes it.
    pub crc64nvme: String,
    /// Rows by `_op`.
    pub rows: BTreeMap<Op, u64>,
    /// `none`, `sse-kms` or `client`.
    pub encryption: String,
    /// The version of its table's schema, where that is not the one in the entry's `tables`: of a table that changed
    /// in the epoch, or of one of several that had one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// In a `fence`: the box that signs this entry and those after it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Adoption {
    /// Its Ed25519 public key: base64 of the 32 bytes.
    pub public_key: String,
    /// Hash of the entry that it continues, as in `previous`.
    pub head: String,
}

/// An entry of a chain that somebody remembers: what a chain is measured by whose tail was cut off.
/// File: `data_dir/head-<source>.json`; text: `<entry>:<hash>`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Its number.
    pub entry: u64,
    /// Lowercase hex SHA-256 of its line 1.
    pub hash: String,
}

impl Head {
    /// The last entry that the box of `data_dir` has written, if it was this one.
    pub fn kept(data_dir: &Path, source: &str) -> Option<Self> {
        let text = fs::read_to_string(data_dir.join(write::head_file_name(source))).ok()?;
        serde_json::from_str(&text).ok()
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.entry, self.hash)
    }
}

impl FromStr for Head {
    type Err = crate::units::UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (entry, hash) = text.split_once(':')?;
            let digest = hex::decode(hash).ok().filter(|bytes| bytes.len() == 32)?;
            Some(Self { entry: entry.parse().ok()?, hash: hex::encode(digest) })
        };
        parse().ok_or_else(|| crate::units::UnitError {
            text: text.into(),
            what: "a head",
            example: "12:<64 hex digits>",
        })
    }
}

/// Why the chain cannot be written, read or taken over.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another appliance wrote the entry that was ours to write.
    #[error("{key} was written by another appliance")]
    Fenced {
        /// The entry's key.
        key: String,
    },
    /// A fresh box found a chain in its place.
    #[error("{key} was there before this box's first entry")]
    ChainForeign {
        /// The entry's key.
        key: String,
    },
    /// A group came out of its order: one before it is missing.
    #[error("group {found} came where group {expected} was due")]
    Disorder {
        /// The number that was due.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// An epoch does not begin where the last one ended, or ends before it begins.
    #[error(
        "group {group} begins at {from:?} and ends at {to:?}; the ledger stands at {reached:?}"
    )]
    NotTiling {
        /// The group.
        group: u64,
        /// Where it begins.
        from: Point,
        /// Where it ends.
        to: Point,
        /// Where the chain stands.
        reached: Option<Point>,
    },
    /// Rows were shipped before it was recorded which database they come from.
    #[error("the source's identity is not recorded")]
    Unidentified,
    /// The identity key is not the one that signed the chain's head.
    #[error("the chain was signed by {signed}, the key in `identity.key` is {found}")]
    KeyChanged {
        /// The key that signed.
        signed: String,
        /// The key that is there.
        found: String,
    },
    /// A key file is unusable.
    #[error("key {path}: {why}")]
    KeyFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The disk refused.
    #[error("write {path}: {why}")]
    Disk {
        /// The file.
        path: String,
        /// What the system said.
        why: io::Error,
    },
    /// The facts cannot be recorded.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A fact cannot be read.
    #[error(transparent)]
    FactDamaged(#[from] FactDamaged),
    /// S3 refused, or did not answer.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// The chain to be adopted is broken.
    #[error("the chain cannot be continued: {0}")]
    Broken(Box<Damage>),
    /// The chain is not the one that was just verified.
    #[error("the chain changed while it was read")]
    Changed,
    /// There is no chain to be adopted.
    #[error("the lake holds no ledger under {0}")]
    NoChain(String),
    /// The box has work of its own that an adopted chain would not continue.
    #[error("this box already has a ledger or sealed rows for `{0}`: adopt with an empty data_dir")]
    NotEmpty(String),
    /// The box's key signed the chain before another box took it over: no verifier believes that it owns it again.
    #[error(
        "this box's key signed the ledger of `{0}` before another box took it over: adopt with an empty data_dir"
    )]
    Replaced(String),
    /// Shutdown was asked for.
    #[error("stopped")]
    Stopped,
}

impl Classified for LedgerError {
    fn cause(&self) -> Cause {
        match self {
            Self::Fenced { .. } => Cause::Fenced,
            Self::ChainForeign { .. } => Cause::ChainForeign,
            Self::Disorder { .. } | Self::NotTiling { .. } | Self::Unidentified => Cause::Defect,
            Self::KeyChanged { .. } => Cause::IdentityKey,
            Self::KeyFile { .. } => Cause::SecretFile,
            Self::Disk { why, .. } if why.kind() == io::ErrorKind::StorageFull => Cause::DiskFull,
            Self::Disk { .. } | Self::Facts(_) => Cause::DiskFailed,
            Self::FactDamaged(_) => Cause::JournalDamaged,
            Self::Ship(error) => error.cause(),
            Self::Broken(_) | Self::Changed => Cause::LakeAltered,
            Self::NoChain(_) | Self::NotEmpty(_) | Self::Replaced(_) => Cause::Config,
            Self::Stopped => Cause::LakeUnavailable,
        }
    }
}

/// Runs blocking `work` on a thread of its own and awaits it.
async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    // Told nobody: the one who asked was dropped, and with it the question.
    Tasks::new().thread(name, move || drop(tell.send(work())))?;
    told.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = Head { entry: 12, hash: "ab".repeat(32) };
        assert_eq!(head.to_string().parse(), Ok(head));
        for wrong in ["", "12", "12:ab", "x:abab", &format!("1:{}", "zz".repeat(32))] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
