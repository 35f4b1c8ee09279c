//! Gives back uploads of entries that are not needed: those listed as orphans, whose entry is written
//! and whose abort failed, and those that were begun and never used, as the answer to Create was lost.
//!
//! **Invariant (I21):** every upload ends completed, aborted, or listed. Of uploads that are not listed
//! only those without a part, older than [`AGE_MIN`] by the store's clock (I29), are aborted: no Complete can
//! have been sent for them by anyone, so that their absence is evidence of nothing (`settle`).

use std::time::Duration;

use tracing::debug;

use super::{
    LedgerError, entry,
    store::{Pending, Stage, Store},
};
use crate::ship::ObjectStore;

/// Another appliance may be about to send the part of a younger one.
pub(super) const AGE_MIN: Duration = Duration::from_secs(3600);

/// Aborts what is left over under the source's `_ledger/` folder. How many.
///
/// # Errors
///
/// S3 refused or did not answer; what was aborted until then stays aborted. Nothing depends on it.
pub(super) async fn sweep(
    lake: &dyn ObjectStore,
    store: &Store,
    prefix: &str,
    source: &str,
    pending: Option<&Pending>,
) -> Result<u64, LedgerError> {
    let ours = pending.and_then(|pending| match &pending.stage {
        Stage::Open { upload } | Stage::Sent { upload, .. } => Some(upload.as_str()),
        Stage::Built | Stage::Refused => None,
    });
    let mut aborted = 0;
    for (upload, key) in store.orphans()? {
        lake.abort(&key, &upload).await?;
        store.forget_orphan(&upload).await?;
        aborted += 1;
    }
    for open in lake.uploads(&entry::folder(prefix, Some(source))).await? {
        let old = open.age.is_some_and(|age| age >= AGE_MIN);
        if !old || ours == Some(open.upload.as_str()) {
            continue;
        }
        if lake.parts(&open.key, &open.upload).await?.is_some_and(|parts| parts.is_empty()) {
            lake.abort(&open.key, &open.upload).await?;
            debug!(key = open.key, upload = open.upload, "aborted an upload never used");
            aborted += 1;
        }
    }
    Ok(aborted)
}
