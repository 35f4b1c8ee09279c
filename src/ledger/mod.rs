//! Ledger: proves what the lake holds.
//!
//! Takes [`Shipped`](crate::ship::Shipped) groups. Gives signed [`Entry`]s in S3, numbered from 1
//! without gaps, each with the hash of the one before. Keeps the head of the chain in the facts
//! under `ledger/`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::ship::{Encryption, Group, GroupKind, Object, Shipped};
use crate::units::{Point, Position};

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
