//! Seal: turns batches and snapshot rows into objects that an analyst can read and nobody else.
//!
//! Takes [`Batch`](crate::journal::Batch)es or [`SnapshotChunk`](crate::journal::SnapshotChunk)s.
//! Gives [`Group`]s of [`Object`]s: Parquet, zstd, encrypted, checksummed. Keeps spool files, named
//! in the facts under `seal/`.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod columns;
pub mod key;
mod arrays;
mod changes;
mod column;
mod cut;
mod distinct;
mod encode;
mod envelope;
mod epoch;
mod error;
mod fates;
mod gcm;
mod habits;
#[cfg(feature = "sim")]
mod lines;
#[cfg(test)]
mod memory;
mod mend;
mod meta;
mod object;
mod open;
mod pack;
mod pages;
mod pieces;
mod rising;
mod run_chunks;
mod runs;
mod schema;
mod sealer;
mod series;
mod snapshot;
mod spool;
mod sums;
mod texts;
mod told;
mod unchanged;
mod waiting;
mod writer;

pub use envelope::{LakeKey, Metadata};
pub use error::SealError;
pub use fates::{Defined, Fates, Looked, LookedFor, Repaired};
pub use mend::Mending;
pub use object::SealEncryption;
pub use open::{open_bytes, open_file};
pub use schema::{put_taken, put_version};
pub use sealer::{LAST_GROUP_FACT, SealOptions, Sealer, SnapshotChunks};
pub use spool::SpoolReader;
pub use sums::{SUM_BYTES, crc64nvme, crc64nvme_combine, crc64nvme_text};

pub use crate::journal::{
    Op, Table,
    reread::{EPOCH_FACT, EpochEnd, GROUP_FACTS},
};
use crate::{
    journal::reread::group_fact,
    units::{Point, Position, Timestamp},
};

/// Objects that one ledger entry will cover, all in the spool, durable.
/// Fact: `seal/group/<id, 20 digits>`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Group {
    /// Dense number within the source, from 1. The ledger keeps this order.
    pub id: u64,
    /// What it covers.
    pub kind: GroupKind,
    /// Its objects; of an epoch without rows none.
    pub objects: Vec<Object>,
    /// What it says of tables beside them.
    #[serde(default, skip_serializing_if = "Fates::is_empty")]
    pub fates: Fates,
    /// When it was sealed.
    pub at: Timestamp,
}

/// What a [`Group`] covers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// An epoch: the run of whole transactions after `from`, up to `to`.
    Changes {
        /// Where the epoch before ended.
        from: Point,
        /// Its last commit.
        to: Point,
        /// The last journal batch in it: when the entry is in the ledger, it can be trimmed.
        batch: u64,
        /// When its last transaction was committed.
        committed_at: Timestamp,
        /// Transactions in it; of a group that a firmware sealed which did not count them, 0.
        #[serde(default)]
        transactions: u64,
    },
    /// One chunk of a table's snapshot.
    Snapshot {
        /// Qualified name.
        table: String,
        /// The table's id.
        table_id: u32,
        /// Dense from 0 within the table.
        chunk: u32,
        /// The snapshot's position.
        position: Position,
        /// Whether this was the table's last chunk to be read.
        completes: bool,
    },
    /// A range of the source's log that is lost.
    Gap {
        /// Where the epoch before ended.
        from: Point,
        /// Behind it; no change has a number in it.
        to: Point,
        /// The last journal batch before it.
        batch: u64,
        /// How it came, in a sentence.
        what: String,
    },
    /// Rows read again, because their values may stand nowhere.
    Repair {
        /// Qualified name.
        table: String,
        /// The table's id.
        table_id: u32,
        /// Which chunk of those read at the position.
        chunk: u32,
        /// The position of the snapshot that they were read under.
        position: Position,
    },
    /// New versions of tables' schemas.
    Schema,
}

/// An object in the spool, or in the lake: where it is, what it holds and how to prove it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Object {
    /// Its key in the bucket, prefix included.
    pub key: String,
    /// Length as sent.
    pub bytes: u64,
    /// SHA-256 of the bytes sent, lowercase hex.
    pub sha256: String,
    /// CRC64NVME of the bytes sent, base64 of the big-endian sum, as S3 writes it.
    pub crc64nvme: String,
    /// Rows by `_op`; of a schema object none.
    pub rows: BTreeMap<Op, u64>,
    /// The table, qualified.
    pub table: String,
    /// The version of its schema.
    pub version: u32,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// Metadata to send with it, names without `x-amz-meta-`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Name of its file in the spool folder.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spool: String,
    /// CRC64NVME of the bytes sent up to each multiple of [`SUM_BYTES`], as [`Object::crc64nvme`]; none of an
    /// object that one request takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sums: Vec<String>,
}

impl Object {
    /// CRC64NVME of a part of the bytes sent, as [`Object::crc64nvme`], if `sums` say it.
    pub fn part_sum(&self, part: &Range<u64>) -> Option<String> {
        let before = self.sum_at(part.start)?;
        let length = part.end.checked_sub(part.start)?;
        Some(crc64nvme_text(sums::crc64nvme_second(before, self.sum_at(part.end)?, length)))
    }

    /// CRC64NVME of the first `at` bytes.
    fn sum_at(&self, at: u64) -> Option<u64> {
        match at {
            0 => Some(crc64nvme(&[])),
            at if at == self.bytes => sums::parse(&self.crc64nvme),
            at if at.is_multiple_of(SUM_BYTES) => {
                let index = usize::try_from(at / SUM_BYTES).ok()? - 1;
                sums::parse(self.sums.get(index)?)
            }
            _ => None,
        }
    }
}

impl Group {
    /// Key of its fact.
    pub fn fact(&self) -> String {
        group_fact(self.id)
    }
}

/// How an object is encrypted.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// Not at all.
    None,
    /// By S3, under the customer's KMS key.
    SseKms {
        /// The key's ARN or alias.
        key_id: String,
    },
    /// By us, the data key wrapped by the key file.
    Client,
}
