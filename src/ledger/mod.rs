//! Ledger: proves what the lake holds.
//!
//! Takes [`Shipped`](crate::ship::Shipped) groups. Gives signed [`Entry`]s in S3, numbered from 1
//! without gaps, each with the hash of the one before. Keeps the head of the chain in the facts
//! under `ledger/`.

use std::collections::BTreeMap;

pub mod audit;
pub mod chain;
pub mod entry;
pub mod key;
pub mod store;
pub mod verify;
pub mod write;

use serde::{Deserialize, Serialize};

pub use crate::ship::{Encryption, Group, GroupKind, Object, Shipped};
use crate::{
    error::{Cause, Classified},
    facts::{FactDamaged, FactsError},
    ship::ShipError,
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
    /// Of a `fence`: whose chain it takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopts: Option<Adopts>,
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
    /// Rows of snapshots.
    Snapshot,
    /// An epoch of whole transactions.
    Changes,
    /// Versions of tables' schemas.
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
    pub rows: BTreeMap<crate::ship::Op, u64>,
    /// `none`, `sse-kms` or `client`.
    pub encryption: String,
}

/// What a `fence` entry says of the change of owner.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Adopts {
    /// The new owner's public key: base64 of its 32 bytes.
    pub public_key: String,
    /// The appliance that wrote the chain so far.
    pub appliance: String,
}

/// Why the ledger cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Another appliance wrote the entry that was ours to write.
    #[error("entry {entry} of source `{source_name}` was written by another appliance")]
    Fenced {
        /// The source.
        source_name: String,
        /// The entry's number.
        entry: u64,
    },
    /// The lake holds a chain for this source, and this box has none.
    #[error(
        "the lake holds a ledger for source `{source_name}` already, which this box did not write"
    )]
    ChainForeign {
        /// The source.
        source_name: String,
    },
    /// The identity key cannot be used.
    #[error("identity key {path}: {what}")]
    Key {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A file beside the journal cannot be written.
    #[error("write {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        why: std::io::Error,
    },
    /// A group does not continue the chain: a defect.
    #[error("the ledger stands at {stands}, but an epoch begins at {begins}")]
    NotTiling {
        /// Where the chain stands.
        stands: String,
        /// Where the epoch begins.
        begins: String,
    },
    /// The chain that is to be adopted is not whole.
    #[error("the chain of source `{source_name}` cannot be adopted: {what}")]
    NotAdoptable {
        /// The source.
        source_name: String,
        /// What is wrong.
        what: String,
    },
    /// A request failed.
    #[error(transparent)]
    Ship(#[from] ShipError),
    /// Facts cannot be recorded.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A fact does not read.
    #[error(transparent)]
    Damaged(#[from] FactDamaged),
}

impl Classified for LedgerError {
    fn cause(&self) -> Cause {
        match self {
            Self::Fenced { .. } => Cause::Fenced,
            Self::ChainForeign { .. } => Cause::ChainForeign,
            Self::Key { .. } => Cause::SecretFile,
            Self::File { .. } | Self::Facts(_) => Cause::DiskFailed,
            Self::NotTiling { .. } => Cause::Defect,
            Self::NotAdoptable { .. } => Cause::LakeAltered,
            Self::Ship(error) => error.cause(),
            Self::Damaged(_) => Cause::JournalDamaged,
        }
    }
}
