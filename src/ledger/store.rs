//! What the ledger keeps in the facts: the head of its chain, and the entry that is on its way.
//!
//! | fact | value |
//! |---|---|
//! | `ledger/head` | [`ChainHead`] |
//! | `ledger/pending` | [`Pending`] |
//! | `ledger/orphan/<upload>` | the key of an upload that is not needed and could not be aborted yet |
//!
//! **Invariant:** an entry's bytes are durable before they are sent, an upload's id before it can take
//! effect; head, pending and the facts of the groups covered change in one batch, so that a group
//! is either still to be proven or in the chain.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Group, LedgerError, Proven, chain::ChainHead};
use crate::{
    facts::{self, FactBatch, FactDamaged, Facts},
    ship::{self, StoredPart},
};

const ORPHAN_FACTS: &str = "ledger/orphan/";
/// Where seal keeps its groups.
const GROUP_FACTS: &str = "seal/group/";

pub(super) const HEAD_FACT: &str = "ledger/head";
pub(super) const PENDING_FACT: &str = "ledger/pending";

/// An entry between its making and its proof.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Pending {
    /// The head once it is written.
    pub(super) next: ChainHead,
    /// Its key.
    pub(super) key: String,
    /// Its exact bytes, to be sent as they stand however often.
    pub(super) object: String,
    /// Keys of the facts of the groups it covers.
    pub(super) groups: Vec<String>,
    /// When the last transaction in it was committed, RFC 3339.
    pub(super) committed_at: Option<String>,
    /// How far its upload is.
    pub(super) stage: Stage,
    /// Uploads for which a Complete may have been sent: if one of them is gone, the entry is ours. Once
    /// the entry is written, those that could not be aborted.
    pub(super) sent: Vec<String>,
}

/// How far an entry's upload is. Set by `settle`, durable before the next request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stage {
    /// No upload is open. Before the first one nothing is kept: another start makes the entry anew.
    Built,
    /// CreateMultipartUpload answered.
    Open {
        /// Its id.
        upload: String,
    },
    /// The part is there; Complete may have been sent.
    Sent {
        /// Its id.
        upload: String,
        /// The only part.
        part: StoredPart,
    },
    /// Another appliance's entry stands under the key. Final.
    Refused,
}

/// How far the chain reaches, as far as this box knows: before the ledger is open.
///
/// # Errors
///
/// The fact does not read.
pub fn proven(facts: &dyn Facts) -> Result<Proven, FactDamaged> {
    let head: Option<ChainHead> = facts::read(facts, HEAD_FACT)?;
    Ok(head.map(|head| head.proven()).unwrap_or_default())
}

/// The ledger's facts, typed.
#[derive(Clone)]
pub(super) struct Store(pub(super) Arc<dyn Facts>);

impl Store {
    pub(super) fn head(&self) -> Result<Option<ChainHead>, LedgerError> {
        Ok(facts::read(&*self.0, HEAD_FACT)?)
    }

    pub(super) fn pending(&self) -> Result<Option<Pending>, LedgerError> {
        Ok(facts::read(&*self.0, PENDING_FACT)?)
    }

    /// The groups that `pending` covers.
    pub(super) fn groups(&self, pending: &Pending) -> Result<Vec<Group>, LedgerError> {
        let read = pending.groups.iter().map(|key| facts::read(&*self.0, key));
        Ok(read.filter_map(Result::transpose).collect::<Result<_, _>>()?)
    }

    /// Whether rows were sealed here that no entry covers yet.
    pub(super) fn has_groups(&self) -> bool {
        !self.0.scan(GROUP_FACTS).is_empty()
    }

    pub(super) async fn keep(&self, pending: &Pending) -> Result<(), LedgerError> {
        let mut batch = FactBatch::default();
        batch.put(PENDING_FACT, pending);
        Ok(self.0.record(batch).await?)
    }

    /// The entry is in S3: moves the head, forgets the groups.
    pub(super) async fn commit(
        &self,
        pending: &Pending,
        groups: &[Group],
    ) -> Result<(), LedgerError> {
        let mut batch = FactBatch::default();
        batch.put(HEAD_FACT, &pending.next).delete(PENDING_FACT);
        groups.iter().for_each(|group| ship::forget(group, &mut batch));
        for upload in &pending.sent {
            batch.put(format!("{ORPHAN_FACTS}{upload}"), &pending.key);
        }
        Ok(self.0.record(batch).await?)
    }

    /// Uploads to be aborted: upload id and key.
    pub(super) fn orphans(&self) -> Result<Vec<(String, String)>, LedgerError> {
        let all = facts::read_all::<String>(&*self.0, ORPHAN_FACTS)?.into_iter();
        Ok(all.map(|(fact, key)| (fact[ORPHAN_FACTS.len()..].to_owned(), key)).collect())
    }

    pub(super) async fn forget_orphan(&self, upload: &str) -> Result<(), LedgerError> {
        let mut batch = FactBatch::default();
        batch.delete(format!("{ORPHAN_FACTS}{upload}"));
        Ok(self.0.record(batch).await?)
    }
}
