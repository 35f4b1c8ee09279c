//! The ledger's facts, typed.

use serde::{Deserialize, Serialize};

use super::chain::Head;
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    units::Timestamp,
};

/// An entry on its way: exactly what is sent, so that a second try sends the same. Fact: `ledger/pending`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pending {
    /// Its key.
    pub key: String,
    /// Both lines.
    pub object: String,
    /// The multipart upload that carries it, once begun.
    pub upload: Option<String>,
    /// Where the chain stands when it is written.
    pub head: Head,
    /// Facts of the groups it covers.
    pub groups: Vec<String>,
    /// Commit time of the last transaction in it.
    pub committed_at: Option<Timestamp>,
}

/// Where the chain stands.
///
/// # Errors
///
/// The fact does not read.
pub fn head(facts: &dyn Facts) -> Result<Head, FactDamaged> {
    Ok(facts::read(facts, HEAD)?.unwrap_or_default())
}

/// The entry on its way, if any.
///
/// # Errors
///
/// The fact does not read.
pub fn pending(facts: &dyn Facts) -> Result<Option<Pending>, FactDamaged> {
    facts::read(facts, PENDING)
}

/// Adds the pending entry to a batch.
pub fn put_pending(batch: &mut FactBatch, pending: &Pending) {
    batch.put(PENDING, pending);
}

/// Adds to a batch that the pending entry is in the lake.
pub fn put_head(batch: &mut FactBatch, head: &Head) {
    batch.put(HEAD, head).delete(PENDING);
}

const HEAD: &str = "ledger/head";
const PENDING: &str = "ledger/pending";
